// What makes a backfill wait: daemons that do not keep up, replicas that do not, and the rate that was asked for.
import { setTimeout } from 'node:timers/promises'
import type { Queryable } from '../db/pool.ts'
import { backfillPriority } from '../offload/claim.ts'
import { createPace } from '../sweeps/pace.ts'

export interface ThrottleOptions {
  /** Rows enqueued a second at most. */
  rate: number
  /** Rows of backfills that may wait at once, of all tables. */
  maxQueue: number
  /** Seconds that a replica may be behind. */
  maxLagSeconds: number
}

const lookAgainMs = 500
const lagEveryMs = 2000

/** To be awaited after each page with what it enqueued. Ends early, without an error, when the signal is aborted. */
export function createThrottle(
  db: Queryable,
  options: ThrottleOptions,
  signal: AbortSignal,
  onWait: (reason: string) => void,
): (queued: number) => Promise<void> {
  const pace = createPace(options.rate, signal)
  // Never below the truth, as long as nobody else enqueues: then it need not be counted after every page.
  let atMost = Number.POSITIVE_INFINITY
  let lagAt = Number.NEGATIVE_INFINITY

  const hasRoom = async () => {
    if (atMost < options.maxQueue) return true
    atMost = await queuedBackfill(db, options.maxQueue)
    // With a little room, so that it does not wait for every single job.
    return atMost < options.maxQueue * 0.9
  }
  const isReplicated = async () => {
    if (performance.now() - lagAt < lagEveryMs) return true
    const lag = await replicationLag(db)
    if (lag > options.maxLagSeconds) return false
    lagAt = performance.now()
    return true
  }
  const waitFor = async (condition: () => Promise<boolean>, reason: string) => {
    while (!signal.aborted && !(await condition())) {
      onWait(reason)
      await setTimeout(lookAgainMs, undefined, { signal }).catch(() => undefined)
    }
  }
  return async queued => {
    atMost += queued
    await pace(queued)
    await waitFor(hasRoom, `waiting: ${options.maxQueue} backfill jobs are queued (is a daemon running?)`)
    await waitFor(isReplicated, `waiting: a replica is more than ${options.maxLagSeconds} s behind`)
  }
}

/** Counted up to `most` and no further: the rest makes no difference. */
export async function queuedBackfill(db: Queryable, most: number): Promise<number> {
  const { rows } = await db.query<{ n: number }>({
    text: `select count(*)::int as n
             from (select from lighter.waiting where priority = ${backfillPriority} and tenant_id is null limit $1) queued`,
    values: [most],
  })
  return rows[0]?.n ?? 0
}

/**
 * Seconds of the slowest replica; 0 where there is none, or the role may not see it (pg_monitor may). Of its replay:
 * that is what its readers see, and what keeps growing while a long query of theirs holds it up.
 */
async function replicationLag(db: Queryable): Promise<number> {
  const { rows } = await db.query<{ lag: number | null }>(
    'select extract(epoch from max(replay_lag))::float8 as lag from pg_stat_replication',
  )
  return rows[0]?.lag ?? 0
}
