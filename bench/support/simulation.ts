// Days of an application's life in minutes: rows are written with the times at which they would have come, all in the past,
// and a worker is driven by hand at a clock that follows them.
//
// The clock moves by the worker's settings: what is due is asked of the server's clock, so settle_for and max_wait are longer by as
// much as the simulated time is behind it. Nothing that waits is touched. The clock is settle_for ahead of the last row: those that
// have not settled are not simulated.
import pg from 'pg'
import { loadConfig } from '../../src/config.ts'
import { createPool } from '../../src/db/pool.ts'
import type { BatchResult } from '../../src/offload/batch-result.ts'
import { loadSources, type Source } from '../../src/source/sources.ts'
import { openStore } from '../../src/store/object-store.ts'
import { type Arrival, writeArrivals } from './arrivals.ts'
import { isClassA } from './class-a.ts'
import { createHandWorker } from './hand-worker.ts'
import type { BenchDatabase } from './servers.ts'

export interface Simulation {
  pool: pg.Pool
  store: ReturnType<typeof openStore>
  sources: Map<number, Source>
  /** Class A and GetObject operations, as the store counts them. */
  requests: { classA: number; gets: number }
  /** Rows come in, one each `1 / rowsPerSecond`, for so long; then the worker looks what is due. */
  advance(arrivals: Iterator<Arrival>, rowsPerSecond: number, seconds: number): Promise<BatchResult>
  close(): Promise<void>
}

export interface SimulationOptions {
  /** Of the whole simulation, at least. */
  seconds: number
  entriesAtOnce: number
  /** Of the daemon's environment. */
  settings?: Record<string, string>
}

export async function startSimulation(
  database: BenchDatabase,
  options: SimulationOptions,
): Promise<Simulation> {
  await database.admin.query(`select lighter.set_defaults('1 minute', '24 hours')`)
  const config = loadConfig({ ...database.env, ...options.settings })
  const requests = { classA: 0, gets: 0 }
  const store = openStore(config.store, operation => {
    if (isClassA(operation)) requests.classA++
    if (operation === 'GetObject') requests.gets++
  })
  const pool = createPool(database.urls.daemon, 4, () => undefined, { unlimited: true })
  const writer = new pg.Client({ connectionString: database.urls.admin })
  await writer.connect()
  // The trigger would queue the rows with the time of today.
  await writer.query('set session_replication_role = replica')
  const sources = await loadSources(pool)
  const worker = createHandWorker({
    pool,
    store,
    config: config.offload,
    entriesAtOnce: options.entriesAtOnce,
  })
  const beganMs = Date.now() - options.seconds * 1000
  let seconds = 0
  let written = 0

  const sourcesNow = () => {
    const behindMs = Date.now() - (beganMs + seconds * 1000)
    return new Map(
      [...sources].map(([id, source]) => [
        id,
        { ...source, settleMs: behindMs, maxWaitMs: source.maxWaitMs - source.settleMs + behindMs },
      ]),
    )
  }

  return {
    pool,
    store,
    sources,
    requests,
    advance: async (arrivals, rowsPerSecond, step) => {
      const page: Arrival[] = []
      const times: number[] = []
      for (seconds += step; (written + 1) / rowsPerSecond <= seconds; ) {
        const { value, done } = arrivals.next()
        if (done) break
        page.push(value)
        times.push(beganMs + (++written / rowsPerSecond) * 1000)
      }
      await writeArrivals(writer, page, times)
      const result = await worker.work(sourcesNow)
      if (result.failed > 0 || result.deadLetters > 0 || result.outage !== null || result.leaseLost)
        throw new Error(`a batch went wrong: ${result.rowError ?? result.outage?.message ?? 'lease lost'}`)
      // The day on which the reports count it.
      await database.admin.query(
        'update lighter.storage_changes set day = $1::timestamptz::date where day > $1::timestamptz::date',
        [new Date(beganMs + seconds * 1000)],
      )
      return result
    },
    close: async () => {
      await writer.end()
      await pool.end()
      store.close()
    },
  }
}
