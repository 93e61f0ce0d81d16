// Sweeps run at once and by name, with settings of the test's own.
import { pino } from 'pino'
import type { OffloadConfig, SweepConfig } from '../../src/config.ts'
import { createPool } from '../../src/db/pool.ts'
import { sweeps } from '../../src/sweeps/all.ts'
import type { Sweep } from '../../src/sweeps/context.ts'
import type { SweepName } from '../../src/sweeps/names.ts'
import { runSweep, type SweepOutcome } from '../../src/sweeps/run.ts'
import { ageArtifacts } from './artifacts.ts'
import type { TestEnvironment } from './environment.ts'

export async function runNow(
  environment: TestEnvironment,
  name: SweepName,
  options: {
    dryRun?: boolean
    /** Settings as in the environment of a daemon. */
    env?: Record<string, string>
    config?: Partial<SweepConfig>
    offload?: Partial<OffloadConfig>
    sweep?: Sweep
    signal?: AbortSignal
  } = {},
): Promise<SweepOutcome> {
  const pool = createPool(environment.urls.daemon, 4, () => undefined)
  try {
    const sweep = options.sweep ?? sweeps[name]
    return await runSweep({
      name,
      sweep,
      pool,
      lockUrl: environment.urls.daemon,
      store: environment.store,
      config: {
        ...environment.config(options.env).sweeps,
        ...(options.env === undefined && { rate: 1_000_000 }),
        deleteDelayMs: 0,
        ...options.config,
      },
      offload: { ...environment.config(options.env).offload, ...options.offload },
      log: pino({ level: 'silent' }),
      dryRun: options.dryRun ?? false,
      signal: options.signal ?? new AbortController().signal,
    })
  } finally {
    await pool.end()
  }
}

/** Lets time pass: everything of the tenant's, and of the queue of deletions, becomes older by so much. */
export async function age(environment: TestEnvironment, interval: string): Promise<void> {
  await environment.admin.query(
    `update lighter.frame_exceptions set deleted_at = deleted_at - $1::interval, purged_at = purged_at - $1::interval`,
    [interval],
  )
  await environment.admin.query(
    `update lighter.loose_artifacts set deleted_at = deleted_at - $1::interval, purged_at = purged_at - $1::interval`,
    [interval],
  )
  await ageArtifacts(environment.admin, interval)
  await environment.admin.query(
    `update lighter.objects
        set created_at = created_at - $1::interval, stored_at = stored_at - $1::interval, lease_until = lease_until - $1::interval,
            dead_since = dead_since - $1::interval, delete_after = delete_after - $1::interval,
            first_deleted_at = first_deleted_at - $1::interval`,
    [interval],
  )
  await environment.admin.query('update lighter.sweep_runs set started_at = started_at - $1::interval', [
    interval,
  ])
}

/** Keys under the environment's prefix, but for the owner object. */
export async function bucketKeys(environment: TestEnvironment): Promise<string[]> {
  const keys: string[] = []
  for await (const { key } of environment.store.list(environment.store.prefix)) {
    if (!key.endsWith('pg-lighter-owner.json')) keys.push(key)
  }
  return keys.sort()
}

/**
 * Two release sweeps and a retention sweep, each past the grace period of the one before.
 * @returns how the release sweeps ended: their counts, or the error
 */
export async function releasedTwice(environment: TestEnvironment): Promise<(SweepOutcome | Error)[]> {
  const outcomes: (SweepOutcome | Error)[] = []
  for (let n = 0; n < 2; n++) {
    await age(environment, '31 days')
    outcomes.push(await runNow(environment, 'release').catch((error: Error) => error))
    await environment.admin.query(
      `update public.artifact_refs set released_at = released_at - interval '31 days' where released_at is not null`,
    )
  }
  await age(environment, '31 days')
  await runNow(environment, 'retention')
  return outcomes
}

/** The policy that the documentation names: artifacts of tenants that are not premium expire after 90 days. */
export async function expireAfter90Days(environment: TestEnvironment): Promise<void> {
  await environment.admin.query(
    `update lighter.retention_policies set keep_days = 90 where plan = 'standard' and tenant_id is null and kind is null`,
  )
}
