// From the application's commit to the commit that left a pointer in the row, against one bare PUT.
import { loadConfig } from '../src/config.ts'
import { openStore } from '../src/store/object-store.ts'
import { startContestant } from './support/contestant.ts'
import { heavyMessages } from './support/messages.ts'
import { atMost, type BenchReport, figure, machine, type Table } from './support/report.ts'
import { type BenchDatabase, postgresSettings, startServers } from './support/servers.ts'
import { write } from './support/write.ts'

export async function benchLatency(quick: boolean): Promise<{ report: BenchReport; tables: Table[] }> {
  const servers = await startServers({ track_commit_timestamp: 'on' })
  try {
    const database = await servers.createDatabase()
    const metadata = [...heavyMessages('real', 1)][0]?.metadata ?? ''
    const figures: Record<string, number> = {}
    const daemon = await startContestant('daemon', database.env)
    const rows: string[][] = []
    /** A store that is asked now and then is slower than one that is kept busy, for us as for a bare PUT. */
    const measurePut = async (perSecond: number | null, count: number) => {
      const put = await barePut(database, metadata, count, perSecond)
      const key = perSecond === null ? 'bare_put' : `bare_put_${perSecond}_per_second`
      figures[`${key}.p50_ms`] = put.p50
      figures[`${key}.p99_ms`] = put.p99
      rows.push([
        perSecond === null ? 'bare PUTs, one after the other' : `bare PUTs, ${perSecond} a second`,
        figure(put.p50),
        figure(put.p99),
        '',
      ])
      return put
    }
    const put = await measurePut(null, quick ? 100 : 500)
    const pacedPut = await measurePut(50, quick ? 100 : 500)
    for (const perSecond of [1, 50, 500]) {
      // One a second leaves the daemon asleep in between: each row is woken for by LISTEN.
      const seconds = perSecond === 1 ? (quick ? 8 : 30) : quick ? 4 : 15
      await new Promise(resolve => setTimeout(resolve, 3000))
      const { xids } = await write(database, {
        clients: perSecond === 500 ? 8 : 2,
        seconds,
        metadata,
        perSecond,
      })
      await queueEmpty(database)
      const { p50, p99 } = await latencies(database, xids)
      figures[`${perSecond}_per_second.p50_ms`] = p50
      figures[`${perSecond}_per_second.p99_ms`] = p99
      rows.push([
        `${perSecond} messages/s${perSecond === 1 ? ' (from idle)' : ''}`,
        figure(p50),
        figure(p99),
        figure(p50 / put.p50),
      ])
    }
    await daemon.stop()
    await database.drop()
    return {
      report: {
        bench: 'latency',
        machine: machine(),
        settings: { quick, postgres: postgresSettings },
        figures,
        goals: [
          atMost(
            'p50 at 50 messages/s against one bare PUT',
            (figures['50_per_second.p50_ms'] ?? 0) / put.p50,
            3,
          ),
          atMost(
            'the same against a bare PUT at the same pace',
            (figures['50_per_second.p50_ms'] ?? 0) / pacedPut.p50,
            3,
          ),
        ],
      },
      tables: [{ title: 'commit to rewritten row', header: ['', 'p50 ms', 'p99 ms', 'against a PUT'], rows }],
    }
  } finally {
    await servers.stop()
  }
}

/** @param perSecond null: the next as soon as the last is there */
async function barePut(database: BenchDatabase, text: string, count: number, perSecond: number | null) {
  const store = openStore(loadConfig(database.env).store)
  const body = Buffer.from(text)
  const times: number[] = []
  for (let n = 0; n < count + 20; n++) {
    if (perSecond !== null) await new Promise(resolve => setTimeout(resolve, 1000 / perSecond))
    const started = performance.now()
    await store.put(`${store.prefix}bare/${perSecond}/${n}`, body, { contentType: 'application/json' })
    if (n >= 20) times.push(performance.now() - started)
  }
  store.close()
  times.sort((a, b) => a - b)
  return { p50: times[Math.floor(count * 0.5)] ?? 0, p99: times[Math.floor(count * 0.99)] ?? 0 }
}

export async function queueEmpty(database: BenchDatabase): Promise<void> {
  for (;;) {
    const { rows } = await database.admin.query('select from lighter.jobs limit 1')
    if (rows.length === 0) return
    await new Promise(resolve => setTimeout(resolve, 50))
  }
}

/** The row's first version is gone, but the writer has kept its transaction's id beside the row's. */
export async function latencies(
  database: BenchDatabase,
  writes: string[],
): Promise<{ p50: number; p99: number }> {
  const { rows } = await database.admin.query<{ rows: number; p50: number; p99: number }>(
    `with artifacts as (
       select l.row_id, l.xmin from lighter.loose_artifacts l
       union all
       select r.id::text, f.xmin
         from lighter.frames f
        cross join lateral unnest(f.row_uuids) with ordinality r(id, place)
        where (r.place - 1)::smallint <> all (f.voids)
     ), latencies as (
       select extract(epoch from pg_xact_commit_timestamp(a.xmin)
                                 - pg_xact_commit_timestamp(split_part(w, ' ', 1)::xid)) * 1000 as ms
         from unnest($1::text[]) w
         join artifacts a on a.row_id = split_part(w, ' ', 2)
     )
     select count(*)::int as rows,
            (percentile_disc(0.5) within group (order by ms))::float8 as p50,
            (percentile_disc(0.99) within group (order by ms))::float8 as p99
       from latencies`,
    [writes],
  )
  const [found] = rows
  if (found?.rows !== writes.length)
    throw new Error(`${writes.length} rows written, ${found?.rows} offloaded`)
  return found
}
