// What /metrics tells of the database, in one short transaction that only reads.
import type pg from 'pg'
import { beginSql } from '../db/prepared.ts'
import type { SweepName } from '../sweeps/names.ts'

/** Sources with figures of their own; those beyond are left out. */
const maxSources = 50
/** The server gives up on each statement after this. */
const timeoutMs = 2000

export interface Figures {
  queues: {
    source: string
    depth: number
    due: number
    inFlight: number
    retrying: number
    failed: number
    oldestSeconds: number
    paused: boolean
    settling: number
    waiting: number
    waitingBytes: number
    oldestWaitingSeconds: number
    /** Below 0: overdue. Null: of none that waits there is enough. */
    departureSeconds: number | null
  }[]
  /** How long a group has had its time and enough for an object, and has not left; 0: none has. Paused sources apart. */
  overdueSeconds: number
  damaged: number
  notifyQueueUsage: number
  oldestTransactionSeconds: number
  sweeps: {
    sweep: string
    /** In seconds since 1970, as all times here. */
    succeededAt: number
    startedAt: number | null
    seconds: number
    outcome: string
    counts: Record<string, number>
  }[]
}

/** @throws when it takes longer than a scrape may */
export async function readFigures(pool: pg.Pool, sweeps: SweepName[]): Promise<Figures> {
  const client = await pool.connect()
  let whole = false
  try {
    await client.query(`${beginSql(client, 'read only')}; set local statement_timeout = ${timeoutMs}`)
    const queues = await client.query<Figures['queues'][number]>({
      text: `
        select source, sum(depth)::float8 as depth, sum(due)::float8 as due, sum(in_flight)::float8 as "inFlight",
               sum(retrying)::float8 as retrying, sum(failed)::float8 as failed,
               coalesce(max(oldest_seconds), 0)::float8 as "oldestSeconds", bool_or(paused) as paused,
               sum(settling)::float8 as settling, sum(waiting)::float8 as waiting, sum(waiting_bytes)::float8 as "waitingBytes",
               coalesce(max(waiting_seconds), 0)::float8 as "oldestWaitingSeconds",
               extract(epoch from min(next_departure) - now())::float8 as "departureSeconds"
          from lighter.queue_health
         group by source
         order by source
         limit $1`,
      values: [maxSources],
    })
    const rest = await client.query<
      Pick<Figures, 'damaged' | 'notifyQueueUsage' | 'oldestTransactionSeconds'>
    >(`
      select (select count(*)::int from public.artifact_refs where damaged_at is not null and purged_at is null) as damaged,
             pg_notification_queue_usage() as "notifyQueueUsage",
             (select coalesce(max(extract(epoch from now() - xact_start)), 0)::float8
                from pg_stat_activity
               where backend_xmin is not null and pid <> pg_backend_pid() and datname = current_database()) as "oldestTransactionSeconds"`)
    const runs = await client.query<Figures['sweeps'][number]>({
      text: `
        select s.sweep,
               extract(epoch from coalesce(success.finished_at, (select created_at from lighter.installation)))::float8 as "succeededAt",
               extract(epoch from last.started_at)::float8 as "startedAt", last.seconds, last.outcome,
               coalesce(finished.counts, '{}') as counts
          from unnest($1::text[]) s(sweep)
          left join lateral (
            select h.started_at, h.seconds, h.outcome from lighter.sweep_history h
             where h.sweep = s.sweep and not h.dry_run order by h.started_at desc limit 1) last on true
          left join lateral (
            select h.finished_at from lighter.sweep_history h
             where h.sweep = s.sweep and not h.dry_run and h.outcome = 'done' order by h.started_at desc limit 1) success on true
          left join lateral (
            select h.counts from lighter.sweep_history h
             where h.sweep = s.sweep and not h.dry_run and h.outcome <> 'running' order by h.started_at desc limit 1) finished on true`,
      values: [sweeps],
    })
    await client.query('commit')
    const [others] = rest.rows
    if (others === undefined) throw new Error('no figures')
    whole = true
    const overdue = queues.rows.map(({ paused, departureSeconds }) => (paused ? 0 : -(departureSeconds ?? 0)))
    return { queues: queues.rows, overdueSeconds: Math.max(0, ...overdue), ...others, sweeps: runs.rows }
  } finally {
    // Of a statement that was not waited for to its end the answer is still on its way.
    client.release(!whole)
  }
}
