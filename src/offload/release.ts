// Jobs that were claimed and not committed: back into the queue, or out as dead letters.
import type { Queryable } from '../db/pool.ts'
import type { Job } from './claim.ts'

export interface Release {
  job: Job
  /** Null: nothing went wrong, it just was not its turn. */
  error: string | null
  /** Whether the row is to blame. An outage of the store must not burn attempts. */
  countsAsAttempt: boolean
  /** A dead letter at once: trying again would only cost the same again. */
  final: boolean
  delayMs: number
}

/** Wait before the next attempt: exponential from 1 s to 10 min, with jitter so that a crowd spreads out. */
export function backoffMs(attempts: number, random: () => number = Math.random): number {
  return Math.min(1000 * 2 ** Math.max(0, attempts - 1), 600_000) * (0.5 + random() / 2)
}

/**
 * Makes jobs available again after their delay. One that has used up `maxAttempts` becomes a dead letter
 * instead: its row stays inline and whole, and lighter.retry brings it back.
 * @returns the jobs that became dead letters
 */
export async function releaseJobs(db: Queryable, releases: Release[], maxAttempts: number): Promise<Job[]> {
  if (releases.length === 0) return []
  const { rows } = await db.query<Job>({
    text: `
      with released as materialized (
        select r.*
          from unnest($1::int[], $2::text[], $3::text[], $4::bool[], $5::int[], $7::bool[])
                 as r(source_id, row_id, error, counts, delay_ms, final)
          join lighter.jobs j on j.source_id = r.source_id and j.row_id = r.row_id
         order by r.source_id, r.row_id
           for update of j
      ),
      dead as (
        delete from lighter.jobs j using released r
         where j.source_id = r.source_id and j.row_id = r.row_id and (r.final or r.counts and j.attempts >= $6)
        returning j.source_id, j.row_id, j.attempts, j.enqueued_at, r.error
      ),
      letters as (
        insert into lighter.failed_jobs (source_id, row_id, attempts, enqueued_at, last_error)
        select source_id, row_id, attempts, enqueued_at, coalesce(error, 'unknown') from dead
        on conflict (source_id, row_id) do update
          set attempts = excluded.attempts, failed_at = now(), last_error = excluded.last_error
      ),
      waiting as (
        update lighter.jobs j
           -- whose turn it just was not keeps its place: at the end it would wait for the whole of a backlog
           set available_at = case when r.delay_ms = 0 then least(j.enqueued_at, now())
                                   else now() + r.delay_ms * interval '1 ms' end,
               attempts = case when r.counts then j.attempts else greatest(j.attempts - 1, 0) end,
               last_error = coalesce(r.error, j.last_error)
          from released r
         where j.source_id = r.source_id and j.row_id = r.row_id and not (r.final or r.counts and j.attempts >= $6)
      )
      select source_id as "sourceId", row_id as "rowId", attempts from dead`,
    values: [
      releases.map(r => r.job.sourceId),
      releases.map(r => r.job.rowId),
      releases.map(r => r.error),
      releases.map(r => r.countsAsAttempt),
      releases.map(r => Math.round(r.delayMs)),
      maxAttempts,
      releases.map(r => r.final),
    ],
  })
  return rows
}
