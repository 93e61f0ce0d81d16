// A sweep, as a daemon would run it.
import { pino } from 'pino'
import { loadConfig } from '../../src/config.ts'
import { createPool } from '../../src/db/pool.ts'
import { openStore } from '../../src/store/object-store.ts'
import { sweeps } from '../../src/sweeps/all.ts'
import type { Counts } from '../../src/sweeps/context.ts'
import type { SweepName } from '../../src/sweeps/names.ts'
import { runSweep } from '../../src/sweeps/run.ts'
import type { BenchDatabase } from './servers.ts'

/** One sweep, to its end, at full speed. @returns what it has done */
export async function sweepNow(database: BenchDatabase, name: SweepName): Promise<Counts> {
  const config = loadConfig(database.env)
  const pool = createPool(database.urls.daemon, 4, () => undefined, { unlimited: true })
  const store = openStore(config.store)
  try {
    const sweep = sweeps[name]
    const { counts } = await runSweep({
      name,
      sweep,
      pool,
      lockUrl: database.urls.daemon,
      store,
      config: { ...config.sweeps, rate: 1_000_000 },
      offload: config.offload,
      log: pino({ level: 'silent' }),
      dryRun: false,
      signal: new AbortController().signal,
    })
    return counts
  } finally {
    await pool.end()
    store.close()
  }
}
