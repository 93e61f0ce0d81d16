// What the dashboard shows, from the same views as `lighter stats`: a part that changes by the second and is cheap, and
// one that is larger and changes slowly.

import type pg from 'pg'
import { inTransactionWithRetry, type Queryable } from '../db/pool.ts'
import { tableNameSql } from '../db/settings.ts'
import { type DaemonReport, readDaemons } from '../reports/daemons.ts'
import { readSections, type Stats, sections } from '../reports/read.ts'
import { savingsVerdict } from '../reports/render.ts'
import type { Verdict } from '../reports/verdict.ts'

interface Totals {
  artifacts: number
  payload_bytes: number
  objects: number
  object_bytes: number
}

export interface HourOfLatency {
  hour: string
  queue: 'live' | 'backfill'
  rows: number
  p50_ms: number
  p95_ms: number
  p99_ms: number
}

export interface FailedRow {
  /** Null: its table is not attached any more, and it can't be retried. */
  source_id: number | null
  source: string | null
  row_id: string
  attempts: number
  failed_at: string
  last_error: string
}

interface FastSections {
  at: string
  totals: Totals
  queue: Stats['queue']
  /** This hour and the one before. */
  recent: HourOfLatency[]
  /** The latest. */
  failures: FailedRow[]
}

export interface FastReport extends FastSections {
  daemons: DaemonReport[]
}

export interface SlowReport {
  at: string
  hours: HourOfLatency[]
  /** UTC days, oldest first. */
  days: { day: string; artifacts: number; payload_bytes: number; object_bytes: number }[]
  kinds: Stats['storage_by_kind']
  tenants: (Stats['top_tenants'][number] & { kinds: Record<string, number> })[]
  tenant_count: number
  packs: Stats['packs']
  savings: Stats['savings'] & { verdict: Verdict }
  /** Partitions together; null: not known. */
  tables: {
    source: string
    column: string
    bytes: number | null
    reusable_bytes_estimated: number | null
    rewritten_bytes_estimated: number | null
    rows: number | null
    paused: boolean
  }[]
  retention_due: Stats['retention_due']
  damaged: number
  sweeps: {
    sweep: string
    runs: {
      started_at: string
      seconds: number
      outcome: 'running' | 'done' | 'failed'
      dry_run: boolean
      counts: Record<string, number> | null
      error: string | null
    }[]
  }[]
}

const shownTenants = 15
const shownFailures = 50
/** Of an error; the whole is in lighter.failures. */
const shownErrorCharacters = 600
const shownHours = 31 * 24
const shownDays = 90
const shownRuns = 14
/** More than there are. */
const countedDamage = 1000
/** Nobody waits for longer for figures, and a database in trouble needs none of it. */
const fastTimeoutMs = 10_000
/** Sums over all tenants and days; below what a statement of ours may take at all. */
const slowTimeoutMs = 45_000

const latencyColumns = 'hour, queue, rows, p50_ms, p95_ms, p99_ms'

const fastSections: Record<keyof FastSections, string> = {
  at: sections.at,
  totals: `(
    select json_build_object('artifacts', coalesce(sum(artifacts), 0)::bigint, 'payload_bytes', coalesce(sum(payload_bytes), 0)::bigint,
                             'objects', coalesce(sum(objects), 0)::bigint, 'object_bytes', coalesce(sum(object_bytes), 0)::bigint)
      from lighter.storage_total_entries)`,
  queue: sections.queue,
  recent: `(
    select coalesce(json_agg(l order by l.hour, l.queue), '[]')
      from (select ${latencyColumns} from lighter.offload_latency where hour > now() - interval '2 hours') l)`,
  failures: `(
    select coalesce(json_agg(f order by f.failed_at desc, f.row_id), '[]')
      from (select case when source is not null then source_id end as source_id, source, row_id, attempts, failed_at,
                   left(last_error, ${shownErrorCharacters}) as last_error
              from lighter.failures order by failed_at desc, row_id limit ${shownFailures}) f)`,
}

type SlowSections = Omit<SlowReport, 'savings'> & Pick<Stats, 'savings'>

const slowSections: Record<keyof SlowSections, string> = {
  at: sections.at,
  hours: `(
    select coalesce(json_agg(l order by l.hour, l.queue), '[]')
      from (select ${latencyColumns} from lighter.offload_latency
             where hour > now() - make_interval(hours => ${shownHours})) l)`,
  days: `(
    select coalesce(json_agg(d order by d.day), '[]')
      from (select day, sum(artifacts)::bigint as artifacts, sum(payload_bytes)::bigint as payload_bytes,
                   sum(object_bytes)::bigint as object_bytes
              from lighter.storage_by_day
             where day > (now() at time zone 'UTC')::date - ${shownDays}
             group by day) d)`,
  kinds: sections.storage_by_kind,
  // Of each tenant shown its kinds by the key of the rollup.
  tenants: `(
    select coalesce(json_agg(t order by t.payload_bytes desc, t.tenant_id), '[]')
      from (select tenant_id, plan, legal_hold, artifacts, payload_bytes, objects, object_bytes,
                   (select coalesce(json_object_agg(k.kind, k.bytes), '{}')
                      from (select e.kind, sum(e.payload_bytes)::bigint as bytes
                              from lighter.storage_entries e
                             where e.tenant_id = top.tenant_id
                             group by e.kind having sum(e.payload_bytes) > 0) k) as kinds
              from (select * from lighter.storage_by_tenant order by payload_bytes desc, tenant_id limit ${shownTenants}) top) t)`,
  tenant_count: sections.tenants,
  packs: sections.packs,
  savings: sections.savings,
  tables: `(
    select coalesce(json_agg(t order by t.source, t."column"), '[]')
      from (with sizes as materialized (select * from lighter.table_sizes() where not ours)
            select ${tableNameSql('s.relation')} as source, s.json_column as "column", s.paused,
                   case when bool_and(z.bytes is not null) then sum(z.bytes)::bigint end as bytes,
                   case when bool_and(z.reusable_bytes_estimated is not null)
                        then sum(z.reusable_bytes_estimated)::bigint end as reusable_bytes_estimated,
                   case when bool_and(z.rewritten_bytes_estimated is not null)
                        then sum(z.rewritten_bytes_estimated)::bigint end as rewritten_bytes_estimated,
                   case when bool_and(p.reltuples >= 0) then sum(p.reltuples)::bigint end as rows
              from lighter.sources s
              join pg_class c on c.oid = s.relation
              left join sizes z on s.id = any (z.sources)
              left join pg_class p on p.oid = z.relation
             group by s.id) t)`,
  retention_due: sections.retention_due,
  damaged: `(select count(*) from (select from lighter.damaged_artifacts limit ${countedDamage}) d)`,
  sweeps: `(
    select coalesce(json_agg(s order by s.sweep), '[]')
      from (select n.sweep, json_agg(r order by r.started_at desc) as runs
              from unnest('{orphans,retention,release,compaction,verify,scan,rollup,vacuum}'::text[]) n(sweep)
             cross join lateral (
               select started_at, seconds, outcome, dry_run, counts, left(error, ${shownErrorCharacters}) as error
                 from lighter.sweep_history h where h.sweep = n.sweep order by started_at desc limit ${shownRuns}) r
             group by n.sweep) s)`,
}

export const readFast = (pool: pg.Pool): Promise<FastReport> =>
  inReport(pool, fastTimeoutMs, async db => ({
    ...(await readSections<FastSections>(db, fastSections)),
    daemons: await readDaemons(db),
  }))

export const readSlow = (pool: pg.Pool): Promise<SlowReport> =>
  inReport(pool, slowTimeoutMs, async db => {
    const report = await readSections<SlowSections>(db, slowSections)
    return { ...report, savings: { ...report.savings, verdict: savingsVerdict(report.savings) } }
  })

/** Sums are read whole, which the sessions of our pools else avoid (src/db/prepared.ts). */
function inReport<T>(pool: pg.Pool, timeoutMs: number, read: (db: Queryable) => Promise<T>): Promise<T> {
  return inTransactionWithRetry(
    pool,
    read,
    `set transaction read only; set local enable_seqscan = on; set local statement_timeout = ${timeoutMs}`,
  )
}
