// Reading back: rows hydrated a second, loose and packed, one by one and in batches.
import pg from 'pg'
import { hydrateMany } from '../src/artifacts/hydrate.ts'
import { readRows } from '../src/artifacts/rows.ts'
import { loadConfig } from '../src/config.ts'
import { loadSources } from '../src/source/sources.ts'
import { openStore } from '../src/store/object-store.ts'
import { startContestant } from './support/contestant.ts'
import { heavyMessages, loadMessages } from './support/messages.ts'
import { type BenchReport, figure, machine, type Table } from './support/report.ts'
import { postgresSettings, startServers } from './support/servers.ts'

export async function benchRead(quick: boolean): Promise<{ report: BenchReport; tables: Table[] }> {
  const servers = await startServers()
  const count = quick ? 1000 : 5000
  try {
    const figures: Record<string, number> = {}
    const rows: string[][] = []
    for (const packing of ['off', 'on']) {
      const database = await servers.createDatabase()
      const ids = await loadMessages(database.admin, heavyMessages('real', count))
      const contestant = await startContestant('lighter', {
        ...database.env,
        OFFLOAD_PACKING: packing,
        BENCH_ROWS: String(count),
      })
      await contestant.run()
      await contestant.stop()
      const db = new pg.Pool({ connectionString: database.urls.daemon, max: 4 })
      db.on('error', () => undefined) // the database is dropped under it
      const store = openStore(loadConfig(database.env).store)
      const source = [...(await loadSources(db)).values()][0]
      if (source === undefined) throw new Error('not attached')
      for (const batch of [1, 20, 200]) {
        const asked = ids.slice(0, batch === 1 ? count / 10 : count)
        let bytes = 0
        const started = performance.now()
        for (let n = 0; n < asked.length; n += batch) {
          const inputs = [...(await readRows(db, source, asked.slice(n, n + batch))).values()]
          for (const result of await hydrateMany({ db, store }, inputs)) {
            if (result.error !== null) throw result.error
            bytes += result.metadata?.length ?? 0
          }
        }
        const seconds = (performance.now() - started) / 1000
        const key = `${packing === 'on' ? 'packed' : 'loose'}.batch_${batch}`
        figures[`${key}.rows_per_second`] = asked.length / seconds
        figures[`${key}.mb_per_second`] = bytes / 1e6 / seconds
        rows.push([
          packing === 'on' ? 'packed' : 'loose',
          String(batch),
          figure(asked.length / seconds),
          figure(bytes / 1e6 / seconds),
        ])
      }
      await db.end()
      store.close()
      await database.drop()
    }
    return {
      report: {
        bench: 'read',
        machine: machine(),
        settings: { quick, postgres: postgresSettings },
        figures,
        goals: [],
      },
      tables: [
        {
          title: 'rows hydrated, real distribution',
          header: ['objects', 'rows at once', 'rows/s', 'MB/s'],
          rows,
        },
      ],
    }
  } finally {
    await servers.stop()
  }
}
