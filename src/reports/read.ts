// Reads the reports that `lighter stats` shows, all of one moment.
import type { Queryable } from '../db/pool.ts'

interface KindStorage {
  kind: string
  artifacts: number
  payload_bytes: number
  objects: number
  object_bytes: number
  deleted_artifacts: number
  /** Days, as 2026-01-31; null when nothing of the kind is alive. */
  oldest: string | null
  newest: string | null
}

interface TenantStorage {
  tenant_id: string
  /** What the application calls it, where that is no uuid. */
  external_id: string | null
  plan: string
  legal_hold: boolean
  artifacts: number
  payload_bytes: number
  objects: number
  object_bytes: number
}

export interface QueueHealth {
  source_id: number
  source: string
  /** Rows whose turn it is, or that failed. Those of the next three wait on purpose: that is no lag. */
  depth: number
  due: number
  in_flight: number
  retrying: number
  failed: number
  oldest_seconds: number | null
  exact: boolean
  paused: boolean
  /** Just written. */
  settling: number
  /** Until there is enough of their tenant and kind for a PUT. */
  waiting: number
  waiting_bytes: number
  /** Of the oldest that settles or waits. */
  waiting_seconds: number | null
  /** When the oldest that waits leaves, if its tenant has enough by then. */
  next_departure: string | null
}

/** Something of an attached table that can not be looked at any more. */
interface MissingPart {
  source: string
  part: string
  name: string
  reason: string
  stops_offload: boolean
  advice: string
}

interface OffloadLatency {
  hour: string
  queue: 'live' | 'backfill'
  rows: number
  p50_ms: number
  p95_ms: number
  p99_ms: number
  max_ms: number
}

interface Failure {
  source: string | null
  row_id: string
  attempts: number
  failed_at: string
  last_error: string
}

/** As in the view: names that end in _estimated are no measurements; null: not known. */
export interface Savings {
  artifacts: number
  payload_bytes: number
  objects: number
  object_bytes: number
  tables_bytes: number | null
  bookkeeping_bytes: number
  database_bytes: number | null
  reusable_bytes_estimated: number | null
  rewrite_frees_bytes_estimated: number | null
  rewritten_bytes_estimated: number | null
  statistics_at: string | null
  not_known: string[] | null
  inline_bytes_estimated: number
  inline_database_bytes_estimated: number | null
  saved_bytes_estimated: number
  pays_bytes: boolean | null
  still_inline_rows: number
  still_inline_exact: boolean
  still_inline_bytes_estimated: number
  class_a_last_30_days: number
  storage_usd_per_month: number
  class_a_usd_last_30_days: number
  bookkeeping_usd_per_month: number
  usd_per_month: number
  inline_usd_per_month_estimated: number
  saved_usd_per_month_estimated: number
  pays_usd: boolean | null
  break_even_reads_per_month_estimated: number | null
}

interface PackHealth {
  kind: string
  objects: number
  packs: number
  object_bytes: number
  avg_object_bytes: number | null
  artifacts_per_object: number | null
  live_share: number | null
  partly_dead: number
  deleting: number
  uploading: number
  orphans: number
}

interface RetentionDue {
  tenants: number
  artifacts: number
  payload_bytes: number
}

interface SweepRunSummary {
  sweep: string
  started_at: string
  seconds: number
  outcome: 'running' | 'done' | 'failed'
  dry_run: boolean
  counts: Record<string, number>
  error: string | null
}

export interface Stats {
  at: string
  storage_by_kind: KindStorage[]
  /** The largest. */
  top_tenants: TenantStorage[]
  tenants: number
  queue: QueueHealth[]
  /** While there is one, release sweeps keep all payloads. */
  missing_parts: MissingPart[]
  latency: OffloadLatency[]
  /** The latest. */
  failures: Failure[]
  savings: Savings
  packs: PackHealth[]
  retention_due: RetentionDue
  /** The last run of each. */
  sweeps: SweepRunSummary[]
}

const shownTenants = 10
const shownFailures = 5
const shownHours = 24
const shownParts = 100

/** Each a scalar subquery that gives JSON; together in one statement they are of one snapshot. */
export const sections = {
  at: 'now()',
  storage_by_kind: `(
    select coalesce(json_agg(k order by k.payload_bytes desc, k.kind), '[]')
      from (select kind, artifacts, payload_bytes, objects, object_bytes, deleted_artifacts,
                   (oldest at time zone 'UTC')::date as oldest, (newest at time zone 'UTC')::date as newest
              from lighter.storage_by_kind) k)`,
  top_tenants: `(
    select coalesce(json_agg(t order by t.payload_bytes desc, t.tenant_id), '[]')
      from (select tenant_id, external_id, plan, legal_hold, artifacts, payload_bytes, objects, object_bytes
              from lighter.storage_by_tenant order by payload_bytes desc, tenant_id limit ${shownTenants}) t)`,
  tenants: '(select count(*) from lighter.storage_by_tenant where artifacts > 0)',
  queue: `(
    select coalesce(json_agg(q order by q.source), '[]')
      from (select source_id, source, depth, due, in_flight, retrying, failed, oldest_seconds, exact, paused,
                   settling, waiting, waiting_bytes, waiting_seconds, next_departure
              from lighter.queue_health) q)`,
  missing_parts: `(
    select coalesce(json_agg(m order by m.source, m.part, m.name), '[]')
      from (select source, part, name, reason, stops_offload, advice from lighter.missing_parts
             order by source_id, part, name limit ${shownParts}) m)`,
  latency: `(
    select coalesce(json_agg(l order by l.hour desc, l.queue), '[]')
      from (select hour, queue, rows, p50_ms, p95_ms, p99_ms, max_ms from lighter.offload_latency
             where hour > now() - make_interval(hours => ${shownHours})) l)`,
  failures: `(
    select coalesce(json_agg(f order by f.failed_at desc), '[]')
      from (select source, row_id, attempts, failed_at, last_error from lighter.failures
             order by failed_at desc limit ${shownFailures}) f)`,
  savings: `(
    select to_json(s)
      from (select artifacts, payload_bytes, objects, object_bytes, tables_bytes, bookkeeping_bytes, database_bytes,
                   reusable_bytes_estimated, rewrite_frees_bytes_estimated, rewritten_bytes_estimated, statistics_at, not_known,
                   inline_bytes_estimated, inline_database_bytes_estimated, saved_bytes_estimated, pays_bytes,
                   still_inline_rows, still_inline_exact, still_inline_bytes_estimated, class_a_last_30_days,
                   storage_usd_per_month, class_a_usd_last_30_days, bookkeeping_usd_per_month, usd_per_month,
                   inline_usd_per_month_estimated, saved_usd_per_month_estimated, pays_usd, break_even_reads_per_month_estimated
              from lighter.savings) s)`,
  packs: `(
    select coalesce(json_agg(p order by p.object_bytes desc, p.kind), '[]')
      from (select kind, objects, packs, object_bytes, avg_object_bytes, artifacts_per_object, live_share, partly_dead,
                   deleting, uploading, orphans
              from lighter.pack_health) p)`,
  retention_due: `(
    select to_json(r)
      from (select count(distinct tenant_id) as tenants, coalesce(sum(artifacts), 0) as artifacts,
                   coalesce(sum(payload_bytes), 0) as payload_bytes
              from lighter.retention_due) r)`,
  sweeps: `(
    select coalesce(json_agg(w order by w.started_at desc), '[]')
      from (select distinct on (sweep) sweep, started_at, seconds, outcome, dry_run, counts, error
              from lighter.sweep_history order by sweep, started_at desc) w)`,
} satisfies Record<keyof Stats, string>

/**
 * One statement, so one snapshot; the numbers come as JSON, which is exact up to 2^53.
 * Reads reports and nothing else: any member of lighter_reporter may.
 */
export function readStats(db: Queryable): Promise<Stats> {
  return readSections<Stats>(db, sections)
}

/** The members of the answer, each by its scalar subquery. */
export async function readSections<T>(db: Queryable, parts: Record<keyof T & string, string>): Promise<T> {
  const members = Object.entries<string>(parts).map(([name, sql]) => `'${name}', ${sql}`)
  const { rows } = await db.query<{ sections: T }>(
    `select json_build_object(${members.join(',\n      ')}) as sections`,
  )
  if (rows[0] === undefined) throw new Error('the query answered no row')
  return rows[0].sections
}
