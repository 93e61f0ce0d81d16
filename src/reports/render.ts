// The reports as text, for a terminal of a given width.
import { styleText } from 'node:util'
import { formatBytes, formatCount } from '../cli/output.ts'
import type { QueueHealth, Savings, Stats } from './read.ts'
import { type Column, cut, fitTable, wrap } from './table.ts'
import { formatUsd, type Verdict, verdictOf } from './verdict.ts'

const text = (title: string): Column => ({ title, flexible: true })
const number = (title: string): Column => ({ title, right: true })

/**
 * All reports, section by section; what changes most comes first, since a screen may be too short for all. Before them,
 * if offloading does not pay, that it does not.
 */
export function renderStats(stats: Stats, width: number): string[] {
  const sections = [
    queue(stats, width),
    missing(stats, width),
    latency(stats, width),
    failures(stats, width),
    storage(stats, width),
    tenants(stats, width),
    savings(stats, width),
    packs(stats, width),
    sweeps(stats, width),
  ]
  const verdict = savingsVerdict(stats.savings)
  const warning =
    verdict.pays === false
      ? ['', ...wrap(verdict.text, width).map(line => styleText(['bold', 'yellow'], line))]
      : []
  return [
    ...warning,
    ...sections.flatMap(({ title, lines }) =>
      lines.length === 0
        ? []
        : ['', styleText(['bold', 'cyan'], cut(title, width)), ...lines.map(line => line.trimEnd())],
    ),
  ]
}

/** What changes from moment to moment, in one line: for a log, not a screen. */
export function renderLine(stats: Stats): string {
  const total = (of: (q: QueueHealth) => number) => stats.queue.reduce((sum, q) => sum + of(q), 0)
  const oldest = Math.max(0, ...stats.queue.map(q => q.oldest_seconds ?? 0))
  const latest = stats.latency.find(l => l.queue === 'live')
  return [
    stats.at.slice(0, 19),
    `queue ${formatCount(total(q => q.depth))}${stats.queue.every(q => q.exact) ? '' : ' (about)'}`,
    `oldest ${formatSeconds(oldest)}`,
    `settling ${formatCount(total(q => q.settling))}`,
    `waiting ${formatCount(total(q => q.waiting))} (${formatBytes(total(q => q.waiting_bytes))})`,
    `in flight ${formatCount(total(q => q.in_flight))}`,
    `retrying ${formatCount(total(q => q.retrying))}`,
    `failed ${formatCount(total(q => q.failed))}`,
    latest === undefined ? 'p95 -' : `p95 ${formatMs(latest.p95_ms)}`,
    `artifacts ${formatCount(stats.savings.artifacts)}`,
    `payloads ${formatBytes(stats.savings.payload_bytes)}`,
    `stored ${formatBytes(stats.savings.object_bytes)}`,
    ...(savingsVerdict(stats.savings).pays === false ? ['does not pay'] : []),
  ].join('  ')
}

interface Section {
  title: string
  /** None: the section is left out. */
  lines: string[]
}

const section = (title: string, lines: string[]): Section => ({ title, lines })

function storage({ storage_by_kind: kinds }: Stats, width: number): Section {
  if (kinds.length === 0) return section('Storage', ['nothing is stored yet'])
  return section(
    'Storage',
    fitTable(
      [
        text('kind'),
        number('artifacts'),
        number('payloads'),
        number('stored'),
        number('ratio'),
        number('objects'),
        number('in grace'),
        number('oldest'),
      ],
      kinds.map(k => [
        k.kind,
        formatCount(k.artifacts),
        formatBytes(k.payload_bytes),
        formatBytes(k.object_bytes),
        k.object_bytes === 0 ? '-' : `${(k.payload_bytes / k.object_bytes).toFixed(1)}×`,
        formatCount(k.objects),
        formatCount(k.deleted_artifacts),
        k.oldest ?? '-',
      ]),
      width,
    ),
  )
}

function tenants({ top_tenants: top, tenants: all }: Stats, width: number): Section {
  if (top.length === 0) return section('Tenants', [])
  return section(
    all > top.length ? `Tenants, the largest ${top.length} of ${formatCount(all)}` : 'Tenants',
    fitTable(
      [
        text('tenant'),
        text('plan'),
        number('artifacts'),
        number('payloads'),
        number('stored'),
        number('objects'),
      ],
      top.map(t => [
        t.external_id === null ? t.tenant_id : `${t.external_id} (${t.tenant_id})`,
        t.legal_hold ? `${t.plan}, on hold` : t.plan,
        formatCount(t.artifacts),
        formatBytes(t.payload_bytes),
        formatBytes(t.object_bytes),
        formatCount(t.objects),
      ]),
      width,
    ),
  )
}

function queue({ queue: sources, at }: Stats, width: number): Section {
  if (sources.length === 0) return section('Queue', ['no table is attached: lighter attach <table>'])
  const about = (q: QueueHealth, n: number) => `${q.exact ? '' : '~'}${formatCount(n)}`
  return section(
    'Queue',
    fitTable(
      [
        text('source'),
        number('queued'),
        number('due'),
        number('oldest'),
        number('settling'),
        number('waiting'),
        number('bytes'),
        number('next leave'),
        number('in flight'),
        number('retrying'),
        number('failed'),
      ],
      sources.map(q => [
        q.paused ? `${q.source} (paused)` : q.source,
        about(q, q.depth),
        about(q, q.due),
        q.oldest_seconds === null ? '-' : formatSeconds(q.oldest_seconds),
        about(q, q.settling),
        about(q, q.waiting),
        formatBytes(q.waiting_bytes),
        formatDeparture(q, at),
        formatCount(q.in_flight),
        formatCount(q.retrying),
        formatCount(q.failed),
      ]),
      width,
    ),
  )
}

/** When rows that wait leave at the latest. Where no tenant has enough for an object, it needs more of them. */
export function formatDeparture({ next_departure: next, waiting }: QueueHealth, at: string): string {
  if (next === null) return waiting > 0 ? 'needs more' : '-'
  return formatSeconds(Math.max(0, (Date.parse(next) - Date.parse(at)) / 1000))
}

function missing({ missing_parts: parts }: Stats, width: number): Section {
  return section(
    'Out of sight: no payload is given up until this is settled (lighter doctor)',
    parts.length === 0
      ? []
      : fitTable(
          [text('source'), text('part'), text('name'), text('reason')],
          parts.map(p => [p.source, p.part, p.name, p.reason]),
          width,
        ),
  )
}

const shownHours = 6

function latency({ latency: hours }: Stats, width: number): Section {
  if (hours.length === 0) return section('Latency', ['nothing was offloaded in the last 24 hours'])
  return section(
    'Latency, from when a row was due to its offload, by hour (UTC)',
    fitTable(
      [
        text('hour'),
        text('queue'),
        number('rows'),
        number('p50'),
        number('p95'),
        number('p99'),
        number('max'),
      ],
      hours
        .slice(0, shownHours)
        .map(h => [
          new Date(h.hour).toISOString().slice(0, 16).replace('T', ' '),
          h.queue,
          formatCount(h.rows),
          ...[h.p50_ms, h.p95_ms, h.p99_ms, h.max_ms].map(formatMs),
        ]),
      width,
    ),
  )
}

function failures({ failures: latest, queue: sources }: Stats, width: number): Section {
  if (latest.length === 0) return section('Failures', [])
  const all = sources.reduce((sum, q) => sum + q.failed, 0)
  return section(
    `Failures, the latest ${latest.length} of ${formatCount(Math.max(all, latest.length))}; lighter retry brings them back`,
    fitTable(
      [text('source'), text('row'), number('attempts'), text('error')],
      latest.map(f => [
        f.source ?? '(detached)',
        f.row_id,
        formatCount(f.attempts),
        f.last_error.replace(/\s+/g, ' '),
      ]),
      width,
    ),
  )
}

function savings({ savings: s, retention_due: due }: Stats, width: number): Section {
  const known = (bytes: number | null) => (bytes === null ? 'not known' : formatBytes(bytes))
  const about = (bytes: number | null) => (bytes === null ? 'not known' : `about ${formatBytes(bytes)}`)
  return section(
    'Savings',
    [
      savingsVerdict(s).text,
      `on disk now: ${known(s.database_bytes)}, tables ${known(s.tables_bytes)} and everything of pg-lighter ${formatBytes(s.bookkeeping_bytes)}`,
      `of that free for new rows: ${about(s.reusable_bytes_estimated)}; a rewrite (VACUUM FULL, pg_repack) would give back: ${about(s.rewrite_frees_bytes_estimated)}`,
      `after a rewrite: ${about(s.rewritten_bytes_estimated)}; with all payloads inline: ${about(s.inline_database_bytes_estimated)}`,
      ...(s.not_known ?? []).map(reason => `not known of ${reason}`),
      `${formatBytes(s.payload_bytes)} of payloads left the tables, where they would take about ${formatBytes(s.inline_bytes_estimated)}: ${formatUsd(s.inline_usd_per_month_estimated)} a month`,
      `bill now ${formatUsd(s.usd_per_month)} a month: bucket ${formatUsd(s.storage_usd_per_month)}, ${formatCount(s.class_a_last_30_days)} writes of 30 days ${formatUsd(s.class_a_usd_last_30_days)}, tables of pg-lighter ${formatUsd(s.bookkeeping_usd_per_month)}`,
      ...(s.artifacts > 0 && s.break_even_reads_per_month_estimated
        ? [
            `reads are not counted: about ${formatCount(s.break_even_reads_per_month_estimated)} a month would use up what is saved`,
          ]
        : []),
      ...(s.still_inline_rows > 0 ? [stillInline(s)] : []),
      due.artifacts === 0
        ? 'nothing is due to expire'
        : `${formatCount(due.artifacts)} artifact(s), ${formatBytes(due.payload_bytes)}, of ${formatCount(due.tenants)} tenant(s) are due to expire`,
    ].flatMap(line => wrap(line, width)),
  )
}

function stillInline(s: Savings): string {
  const bytes = s.still_inline_bytes_estimated
  return `${s.still_inline_exact ? '' : 'about '}${formatCount(s.still_inline_rows)} row(s) still wait inline${bytes > 0 ? `, about ${formatBytes(bytes)} of payloads` : ''}: no savings yet`
}

/** Both sides of it are estimates, since what the payloads would take inline is one. */
export const savingsVerdict = (s: Savings): Verdict =>
  verdictOf({
    artifacts: s.artifacts,
    savedUsd: s.saved_usd_per_month_estimated,
    savedBytes: s.saved_bytes_estimated,
    paysUsd: s.pays_usd,
    paysBytes: s.pays_bytes,
    period: 'a month',
    measured: false,
  })

function packs({ packs: kinds }: Stats, width: number): Section {
  if (kinds.length === 0) return section('Objects', [])
  return section(
    'Objects',
    fitTable(
      [
        text('kind'),
        number('objects'),
        number('packs'),
        number('average'),
        number('artifacts each'),
        number('alive'),
        number('partly dead'),
        number('leaving'),
        number('uploading'),
        number('orphans'),
      ],
      kinds.map(p => [
        p.kind,
        formatCount(p.objects),
        formatCount(p.packs),
        p.avg_object_bytes === null ? '-' : formatBytes(p.avg_object_bytes),
        p.artifacts_per_object === null ? '-' : p.artifacts_per_object.toFixed(1),
        p.live_share === null ? '-' : `${(p.live_share * 100).toFixed(0)} %`,
        formatCount(p.partly_dead),
        formatCount(p.deleting),
        formatCount(p.uploading),
        formatCount(p.orphans),
      ]),
      width,
    ),
  )
}

function sweeps({ sweeps: runs, at }: Stats, width: number): Section {
  if (runs.length === 0) return section('Sweeps', ['none has run yet'])
  return section(
    'Sweeps, the last run of each',
    fitTable(
      [text('sweep'), number('ago'), number('took'), text('outcome'), text('what')],
      runs.map(r => [
        r.sweep,
        formatSeconds((Date.parse(at) - Date.parse(r.started_at)) / 1000),
        formatSeconds(r.seconds),
        r.dry_run ? `${r.outcome}, dry run` : r.outcome,
        r.error?.replace(/\s+/g, ' ') ??
          Object.entries(r.counts)
            .filter(([, n]) => n !== 0)
            .map(([name, n]) => `${name.replaceAll('_', ' ')} ${formatCount(n)}`)
            .join(', '),
      ]),
      width,
    ),
  )
}

function formatMs(ms: number): string {
  return ms < 1000 ? `${Math.round(ms)} ms` : formatSeconds(ms / 1000)
}

function formatSeconds(seconds: number): string {
  if (seconds < 10) return `${seconds.toFixed(1)} s`
  if (seconds < 120) return `${Math.round(seconds)} s`
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h`
  return `${Math.round(seconds / 86_400)} days`
}
