// One sweep, with the short periods of the torture.
import type pg from 'pg'
import { pino } from 'pino'
import type { Config } from '../src/config.ts'
import type { ObjectStore } from '../src/store/object-store.ts'
import { sweeps } from '../src/sweeps/all.ts'
import type { Sweep } from '../src/sweeps/context.ts'
import type { SweepName } from '../src/sweeps/names.ts'
import { sweepOrphansDeep } from '../src/sweeps/orphans-deep.ts'
import { runSweep, type SweepOutcome } from '../src/sweeps/run.ts'
import { compactionConfig, sweepConfig } from './settings.ts'

export type TortureSweep = SweepName | 'orphans-deep'

export interface SweepReport extends SweepOutcome {
  sweep: TortureSweep
  /** Found by the deep sweep: keys that are not on record, and stored objects that are not there. */
  unknown: string[]
  missing: string[]
}

export interface SweepTools {
  pool: pg.Pool
  store: ObjectStore
  config: Config
  signal: AbortSignal
}

export async function tortureSweep(
  name: TortureSweep,
  { pool, store, config, signal }: SweepTools,
): Promise<SweepReport> {
  const unknown: string[] = []
  const missing: string[] = []
  const deep: Sweep = context =>
    sweepOrphansDeep(context, {
      deleteUnknown: false,
      maxDeletions: 0,
      onUnknown: found => unknown.push(found.key),
      onMissing: found => missing.push(found.key),
    })
  const sweep = name === 'orphans-deep' ? deep : sweeps[name]
  const outcome = await runSweep({
    name,
    sweep,
    pool,
    lockUrl: config.listenDatabaseUrl,
    store,
    config: { ...config.sweeps, ...(name === 'compaction' ? compactionConfig : sweepConfig) },
    offload: config.offload,
    log: pino({ level: 'silent' }),
    dryRun: false,
    signal,
  })
  return { sweep: name, ...outcome, unknown, missing }
}
