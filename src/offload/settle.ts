// The end of rows in their lease: done, back into the queue, or out of it as dead letters.
import { arrayText } from '../db/array-text.ts'
import { type Columns, namesOf, type Parameters, parameters } from '../db/parameters.ts'
import type { Queryable } from '../db/pool.ts'
import { type Job, type Lease, LeaseLost, type Waited } from './lease.ts'

/** A row that was neither offloaded nor found to have nothing to offload. */
export interface Returned {
  job: Job
  /** Null: nothing went wrong, it just was not its turn. */
  error: string | null
  /** Whether the row is to blame. An outage of the store must not burn attempts. */
  countsAsAttempt: boolean
  /** It had changed, or was locked, when its offload was to be committed. */
  conflicted: boolean
  /** A dead letter at once: trying again would only cost the same again. */
  final: boolean
  delayMs: number
  /** It waits for others of its tenant; null: only for its turn. */
  waits: Waited | null
}

/** Wait before the next attempt: exponential from 1 s to 10 min, with jitter so that a crowd spreads out. */
export function backoffMs(attempts: number, random: () => number = Math.random): number {
  return Math.min(1000 * 2 ** Math.max(0, attempts - 1), 600_000) * (0.5 + random() / 2)
}

/** It is given up: its row stays inline and whole, and lighter.retry brings it back. */
export const isDeadLetter = ({ job, countsAsAttempt, final }: Returned, maxAttempts: number): boolean =>
  final || (countsAsAttempt && job.attempts >= maxAttempts)

/**
 * Takes rows out of their lease: `done` for good, `returned` into lighter.waiting or, given up, lighter.failed_jobs. What
 * somebody else has taken out of the lease meanwhile (a restore, a detach) is returned nowhere.
 *
 * One statement. In a transaction, call `closeJobs` once that has committed.
 * @throws {LeaseLost} the lease is another daemon's by now; nothing is changed
 */
export async function settle(
  db: Queryable,
  lease: Lease,
  done: Job[],
  returned: Returned[],
  maxAttempts: number,
): Promise<void> {
  const positions = [...done.map(job => job.position), ...returned.map(({ job }) => job.position)]
  if (positions.length === 0) return
  const back = [...returned].sort((a, b) => byKey(a.job, b.job))
  const p = parameters()
  const { rows } = await db.query<{ held: number }>({
    text: settleSql(p, lease, positions, back, maxAttempts),
    prepare: true,
    values: p.values,
  })
  if (rows[0]?.held !== 1) throw new LeaseLost()
}

/** In memory, what `settle` has done. */
export function closeJobs(jobs: Job[]): void {
  for (const job of jobs) job.lease.open.delete(job.position)
}

const backColumns = (maxAttempts: number): Columns<Returned> => ({
  position: ['int', ({ job }) => job.position],
  source_id: ['int', ({ job }) => job.sourceId],
  row_id: ['text', ({ job }) => job.rowId],
  priority: ['int2', ({ job }) => job.priority],
  delay_ms: ['int8', r => Math.round(r.delayMs)],
  attempts: ['int', ({ job, countsAsAttempt }) => (countsAsAttempt ? job.attempts : job.attempts - 1)],
  conflicts: ['int2', ({ job, conflicted }) => Math.min(job.conflicts + (conflicted ? 1 : 0), 30)],
  enqueued_ms: ['float8', ({ job }) => job.enqueuedMs],
  // What waits for others has no trouble any more.
  error: ['text', ({ job, error, waits }) => (waits === null ? (error ?? job.error) : null)],
  is_dead: ['bool', r => isDeadLetter(r, maxAttempts)],
  tenant_id: ['uuid', ({ waits }) => waits?.tenantId ?? null],
  phase: ['int2', ({ waits }) => waits?.phase ?? null],
  bytes: ['int', ({ waits }) => (waits === null ? null : Math.min(Math.round(waits.bytes), 2 ** 31 - 1))],
  row_xmin: ['xid', ({ waits }) => waits?.xmin ?? null],
  entity_id: ['uuid', ({ waits }) => waits?.entityId ?? null],
})

/** In one order in all statements that write lighter.waiting, so that two of them can't deadlock. The lease is locked first. */
function settleSql(
  p: Parameters,
  lease: Lease,
  positions: number[],
  back: Returned[],
  maxAttempts: number,
): string {
  const columns = backColumns(maxAttempts)
  return `
  with held as materialized (
    select l.id, l.done, l.done || ${p.one(arrayText(positions))}::int[] as done_now
      from lighter.leases l where l.id = ${p.one(lease.id)} for update
  ),
  -- Two commits of one lease do not know of each other's rows, so its row tells which of them is the last.
  judged as materialized (
    select h.id, h.done_now,
           cardinality(h.done_now) >= ${p.one(lease.jobs.length)}
             and (select count(distinct d.position) from unnest(h.done_now) d(position)) >= ${p.one(lease.jobs.length)} as is_last
      from held h
  ),
  ended as (
    delete from lighter.leases l using judged j where l.id = j.id and j.is_last
  ),
  shrunk as (
    update lighter.leases l set done = j.done_now from judged j where l.id = j.id and not j.is_last
  ),
  back as materialized (
    select r.source_id, r.row_id, r.priority, r.delay_ms, r.attempts, r.conflicts, to_timestamp(r.enqueued_ms / 1000) as enqueued_at,
           r.error, r.is_dead, r.tenant_id, r.phase, r.bytes, r.row_xmin, r.entity_id
      from ${p.unnest(back, columns)} with ordinality as r(${namesOf(columns)}, ord)
      join held h on r.position <> all (h.done)
     order by r.ord
  ),
  dead as (
    insert into lighter.failed_jobs (source_id, row_id, attempts, enqueued_at, last_error)
    select source_id, row_id, attempts, enqueued_at, coalesce(error, 'unknown') from back where is_dead
        on conflict (source_id, row_id) do update
       set attempts = excluded.attempts, failed_at = now(), last_error = excluded.last_error
  ),
  again as (
    insert into lighter.waiting as w (source_id, row_id, priority, available_at, attempts, conflicts, enqueued_at, last_error,
        tenant_id, phase, bytes, row_xmin, entity_id)
    select source_id, row_id, priority,
           -- whose turn it just was not keeps its place: at the end it would wait for the whole of a backlog
           case when delay_ms = 0 then least(enqueued_at, now()) else now() + delay_ms * interval '1 ms' end,
           attempts, conflicts, enqueued_at, error, tenant_id, phase, bytes, row_xmin, entity_id
      from back where not is_dead
        on conflict (source_id, row_id) do update
       set priority = least(w.priority, excluded.priority),
           available_at = case when w.tenant_id is not null and excluded.tenant_id is not null then excluded.available_at
                               when greatest(w.conflicts, excluded.conflicts, w.attempts, excluded.attempts) > 0
                               then greatest(w.available_at, excluded.available_at) else least(w.available_at, excluded.available_at) end,
           attempts = greatest(w.attempts, excluded.attempts), conflicts = greatest(w.conflicts, excluded.conflicts),
           enqueued_at = least(w.enqueued_at, excluded.enqueued_at), last_error = coalesce(excluded.last_error, w.last_error),
           -- What waits for its turn only is looked at when that comes.
           (tenant_id, phase, bytes, row_xmin, entity_id) = (
             select excluded.tenant_id, excluded.phase, excluded.bytes, excluded.row_xmin, excluded.entity_id where w.tenant_id is not null)
  )
  select count(*)::int as held from held`
}

/** As Postgres orders by collation "C", of text that keys have. */
function byKey(a: Job, b: Job): number {
  return a.sourceId - b.sourceId || (a.rowId < b.rowId ? -1 : a.rowId > b.rowId ? 1 : 0)
}
