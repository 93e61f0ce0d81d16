// What the sweeps get through: artifacts a second of retention and compaction, and what they free.
import { loadConfig } from '../src/config.ts'
import { openStore } from '../src/store/object-store.ts'
import { startContestant } from './support/contestant.ts'
import { heavyMessages, loadMessages } from './support/messages.ts'
import { type BenchReport, figure, machine, type Table } from './support/report.ts'
import { type BenchDatabase, postgresSettings, startServers } from './support/servers.ts'
import { sweepNow } from './support/sweep-now.ts'

export async function benchSweeps(quick: boolean): Promise<{ report: BenchReport; tables: Table[] }> {
  const servers = await startServers()
  const count = quick ? 5000 : 50_000
  try {
    const database = await servers.createDatabase()
    await loadMessages(database.admin, heavyMessages('real', count))
    const contestant = await startContestant('lighter', { ...database.env, BENCH_ROWS: String(count) })
    await contestant.run()
    await contestant.stop()
    const artifacts = await countOf(database, 'select count(*)::int as n from artifact_refs')
    const figures: Record<string, number> = { artifacts, 'bucket.before_bytes': await bucketBytes(database) }
    const rows: string[][] = []
    const measure = async (
      name: 'release' | 'retention' | 'compaction',
      key: string,
      label: string,
      done: string,
    ) => {
      const started = performance.now()
      const counts = await sweepNow(database, name)
      const seconds = (performance.now() - started) / 1000
      figures[`${key}.artifacts_per_second`] = (counts[done] ?? 0) / seconds
      rows.push([label, figure(counts[done] ?? 0), figure(seconds), figure((counts[done] ?? 0) / seconds)])
    }
    await database.admin.query(
      `update lighter.frames set created_at = created_at - interval '2 days';
       update lighter.loose_artifacts set created_at = created_at - interval '2 days'`,
    )
    await database.admin.query('delete from conversation_messages where random() < 0.6')
    await measure('release', 'release', 'release (every pointer looked at)', 'released')
    await database.admin.query(
      `update lighter.frame_exceptions set released_at = released_at - interval '30 days';
       update lighter.loose_artifacts set released_at = released_at - interval '30 days'`,
    )
    await measure('release', 'tombstone', 'tombstones after the grace', 'tombstoned')
    await database.admin.query(
      `update lighter.frame_exceptions set deleted_at = deleted_at - interval '30 days';
       update lighter.loose_artifacts set deleted_at = deleted_at - interval '30 days'`,
    )
    await measure('retention', 'purge', 'purge', 'purged')
    await measure('compaction', 'compaction', 'compaction of half-dead packs', 'artifacts_moved')
    await database.admin.query(
      `update lighter.objects set delete_after = now() - interval '1 hour' where state = 'deleting'`,
    )
    await sweepNow(database, 'orphans')
    figures['bucket.after_bytes'] = await bucketBytes(database)
    await database.admin.query(
      `update lighter.frames set created_at = now() - interval '1 year';
       update lighter.loose_artifacts set created_at = now() - interval '1 year';
       update lighter.retention_policies set keep_days = 90`,
    )
    await measure('retention', 'expiry', 'expiry by policy', 'expired')
    await database.drop()
    return {
      report: {
        bench: 'sweeps',
        machine: machine(),
        settings: { quick, postgres: postgresSettings },
        figures,
        goals: [],
      },
      tables: [
        {
          title: `sweeps over ${figure(artifacts)} artifacts of the real distribution, unthrottled`,
          header: ['', 'artifacts', 'seconds', 'a second'],
          rows,
        },
        {
          title: 'the bucket, when 60 % of the messages were deleted',
          header: ['', 'MB'],
          rows: [
            ['before', figure((figures['bucket.before_bytes'] ?? 0) / 1e6)],
            ['after release, purge and compaction', figure((figures['bucket.after_bytes'] ?? 0) / 1e6)],
          ],
        },
      ],
    }
  } finally {
    await servers.stop()
  }
}

async function bucketBytes(database: BenchDatabase): Promise<number> {
  const store = openStore(loadConfig(database.env).store)
  let bytes = 0
  for await (const { size } of store.list(store.prefix)) bytes += size
  store.close()
  return bytes
}

async function countOf(database: BenchDatabase, sql: string): Promise<number> {
  const { rows } = await database.admin.query<{ n: number }>(sql)
  return rows[0]?.n ?? 0
}
