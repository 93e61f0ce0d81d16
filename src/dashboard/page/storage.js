// What is stored: by tenant and kind, in which objects, and what that saves.
import { createChart } from './charts.js'
import { code, emptyState, fill, h, openSection, panel } from './dom.js'
import { formatBytes, formatCount, formatRatio, formatShare, formatUsd, spaced } from './format.js'
import { createTable } from './table.js'

/** @typedef {import('./feed.js').Slow} Slow */

const dayMs = 86_400_000
const shownDays = 30
/** Colours of kinds; what is beyond shares the last one. */
const kindColors = 6

/** @param {number | null} bytes */
const known = bytes => (bytes === null ? 'not known' : formatBytes(bytes))
/** @param {number | null} bytes */
const about = bytes => (bytes === null ? 'not known' : `about ${formatBytes(bytes)}`)

export function createStorage() {
  const days = createChart({
    title: 'Bytes moved by day',
    utc: true,
    time: at => new Date(at).toISOString().slice(0, 10),
    series: [
      { label: 'Payload', color: '--accent', draw: 'bars', format: formatBytes },
      { label: 'Stored', color: '--second', draw: 'bars', format: formatBytes },
    ],
  })
  /** @type {Map<string, number>} */
  let colorOf = new Map()
  let most = 1

  /** @param {Slow['tenants'][number]} tenant */
  const bar = tenant => {
    const kinds = Object.entries(tenant.kinds).sort(
      ([a], [b]) => (colorOf.get(a) ?? 0) - (colorOf.get(b) ?? 0),
    )
    const parts = kinds.map(([kind, bytes]) => {
      const part = h('i', {
        class: `kind kind-${colorOf.get(kind) ?? kindColors}`,
        title: `${spaced(kind)}: ${formatBytes(bytes)}`,
      })
      part.style.width = `${(bytes / most) * 100}%`
      return part
    })
    return [
      h('span', { class: 'bar', 'aria-hidden': 'true' }, parts),
      h(
        'span',
        { class: 'visually-hidden' },
        kinds.map(([kind, bytes]) => `${spaced(kind)} ${formatBytes(bytes)}`).join(', '),
      ),
    ]
  }
  /** @type {import('./table.js').Column<Slow['tenants'][number]>[]} */
  const tenantColumns = [
    {
      title: 'Tenant',
      head: true,
      class: 'mono',
      cell: t => [
        t.tenant_id,
        t.plan !== 'standard' && h('span', { class: 'badge badge-quiet' }, t.plan),
        t.legal_hold && h('span', { class: 'badge badge-warn' }, 'legal hold'),
      ],
    },
    { title: 'By kind', class: 'bars', cell: bar },
    { title: 'Payload', numeric: true, cell: t => formatBytes(t.payload_bytes) },
    { title: 'Stored', numeric: true, cell: t => formatBytes(t.object_bytes) },
    { title: 'Artifacts', numeric: true, cell: t => formatCount(t.artifacts) },
    { title: 'Objects', numeric: true, cell: t => formatCount(t.objects) },
  ]
  const nothing = () =>
    emptyState(
      'Nothing is stored yet. What is offloaded, or stored through the API, is summed up here within seconds.',
    )
  const tenants = createTable({
    caption: 'Storage by tenant and kind',
    key: t => t.tenant_id,
    version: t => [t, most, [...colorOf]],
    empty: nothing(),
    columns: tenantColumns,
  })
  /** @typedef {Slow['packs'][number] & {kind_row: Slow['kinds'][number] | undefined}} KindRow */
  /** @type {import('./table.js').Column<KindRow>[]} */
  const kindColumns = [
    {
      title: 'Kind',
      head: true,
      cell: p => [h('i', { class: `swatch kind-${colorOf.get(p.kind) ?? kindColors}` }), spaced(p.kind)],
    },
    { title: 'Artifacts', numeric: true, cell: p => formatCount(p.kind_row?.artifacts ?? 0) },
    { title: 'Payload', numeric: true, cell: p => formatBytes(p.kind_row?.payload_bytes ?? 0) },
    { title: 'Stored', numeric: true, cell: p => formatBytes(p.object_bytes) },
    { title: 'Objects', numeric: true, cell: p => formatCount(p.objects) },
    { title: 'Packs', numeric: true, cell: p => formatCount(p.packs) },
    {
      title: 'Average',
      numeric: true,
      cell: p => (p.avg_object_bytes === null ? '–' : formatBytes(p.avg_object_bytes)),
    },
    {
      title: 'Artifacts each',
      numeric: true,
      cell: p => (p.artifacts_per_object === null ? '–' : String(p.artifacts_per_object)),
    },
    { title: 'Alive', numeric: true, cell: p => formatShare(p.live_share) },
    { title: 'Partly dead', numeric: true, cell: p => formatCount(p.partly_dead) },
    { title: 'Leaving', numeric: true, cell: p => formatCount(p.deleting) },
    { title: 'Uploading', numeric: true, cell: p => formatCount(p.uploading) },
    {
      title: 'Orphans',
      numeric: true,
      cell: p => (p.orphans > 0 ? h('span', { class: 'badge badge-warn' }, formatCount(p.orphans)) : '0'),
    },
  ]
  const kinds = createTable({
    caption: 'Kinds and the objects that hold them',
    key: p => p.kind,
    empty: nothing(),
    columns: kindColumns,
  })
  /** @type {import('./table.js').Column<Slow['tables'][number]>[]} */
  const tableColumns = [
    { title: 'Table', head: true, cell: t => [t.source, ' ', h('span', { class: 'note' }, t.column)] },
    { title: 'On disk now', numeric: true, cell: t => known(t.bytes) },
    { title: 'Free for new rows, about', numeric: true, cell: t => known(t.reusable_bytes_estimated) },
    { title: 'After a rewrite, about', numeric: true, cell: t => known(t.rewritten_bytes_estimated) },
    { title: 'Rows, about', numeric: true, cell: t => (t.rows === null ? '–' : formatCount(t.rows)) },
  ]
  const tables = createTable({
    caption: 'Attached tables',
    key: t => `${t.source} ${t.column}`,
    empty: emptyState(
      'No table is attached. ',
      code('lighter attach public.conversation_messages'),
      ' begins.',
    ),
    columns: tableColumns,
  })
  const verdict = h('p', { class: 'message' })
  const savings = h('dl', { class: 'ledger' })
  const savingsPanel = panel(
    'Savings',
    { class: 'savings', note: 'at the prices in lighter.prices' },
    verdict,
    savings,
    tables.element,
  )
  savingsPanel.id = 'savings'
  const rest = h('p', { class: 'note' })
  const legend = h('ul', { class: 'legend' })
  const damage = h('p', { class: 'message message-bad', hidden: true })

  openSection(
    'storage',
    damage,
    h(
      'div',
      { class: 'columns' },
      panel('Bytes moved', { note: `by day (UTC), what is still alive`, tools: days.legend }, days.element),
      savingsPanel,
    ),
    panel('By tenant and kind', { tools: legend }, tenants.element, rest),
    panel('Pack health', { note: 'kinds and the objects that hold them' }, kinds.element),
  )

  /** @param {Slow} slow */
  const drawDays = slow => {
    const end = Math.floor(Date.parse(slow.at) / dayMs) * dayMs
    const xs = Array.from({ length: shownDays }, (_, i) => end - (shownDays - 1 - i) * dayMs)
    const byDay = new Map(slow.days.map(day => [Date.parse(day.day), day]))
    const payload = xs.map(x => Number(byDay.get(x)?.payload_bytes ?? 0))
    const total = payload.reduce((sum, bytes) => sum + bytes, 0)
    days.update(
      xs.map(x => x / 1000),
      [payload, xs.map(x => Number(byDay.get(x)?.object_bytes ?? 0))],
      `${formatBytes(total)} of payloads in ${shownDays} days.`,
    )
  }

  /** @param {Slow} slow */
  const drawSavings = ({ savings: s }) => {
    /** @param {string} term @param {string} value @param {string} [note] */
    const line = (term, value, note) =>
      h(
        'div',
        {},
        h('dt', {}, term),
        h('dd', {}, value, note !== undefined && h('span', { class: 'note' }, ` ${note}`)),
      )
    verdict.className = `message ${s.verdict.pays === null ? '' : s.verdict.pays ? 'message-good' : 'message-bad'}`
    fill(verdict, s.verdict.text)
    fill(
      savings,
      line(
        'On disk now: attached tables and all of pg-lighter',
        known(s.database_bytes),
        `${known(s.tables_bytes)} and ${formatBytes(s.bookkeeping_bytes)}`,
      ),
      line('Of that free for new rows, since VACUUM', about(s.reusable_bytes_estimated)),
      line('A rewrite (VACUUM FULL, pg_repack) would give back', about(s.rewrite_frees_bytes_estimated)),
      line(
        'After a rewrite',
        about(s.rewritten_bytes_estimated),
        s.not_known === null ? undefined : `not known of ${s.not_known.join('; ')}`,
      ),
      line('With all payloads inline', about(s.inline_database_bytes_estimated)),
      line(
        'The payloads in their rows would take',
        about(s.inline_bytes_estimated),
        `${formatUsd(s.inline_usd_per_month_estimated)} a month`,
      ),
      line(
        'In the bucket they take',
        formatBytes(s.object_bytes),
        `${formatUsd(s.storage_usd_per_month)} a month, ${s.object_bytes > 0 ? `${formatRatio(s.payload_bytes / s.object_bytes)} smaller` : 'nothing yet'}`,
      ),
      line(
        'Writes, last 30 days',
        formatCount(s.class_a_last_30_days),
        `class A operations, ${formatUsd(s.class_a_usd_last_30_days)}`,
      ),
      line('Tables of pg-lighter', `${formatUsd(s.bookkeeping_usd_per_month)} a month`),
      s.artifacts > 0 &&
        line(
          'Saved a month, about',
          formatUsd(s.saved_usd_per_month_estimated),
          !s.break_even_reads_per_month_estimated
            ? undefined
            : `less reads: ${formatCount(s.break_even_reads_per_month_estimated)} would use it up`,
        ),
      s.still_inline_rows > 0 &&
        line(
          'Rows that still wait inline, no savings yet',
          `${s.still_inline_exact ? '' : 'about '}${formatCount(s.still_inline_rows)}`,
          s.still_inline_bytes_estimated > 0
            ? `about ${formatBytes(s.still_inline_bytes_estimated)} of payloads`
            : undefined,
        ),
    )
  }

  return {
    /** @param {Slow} slow */
    slow: slow => {
      colorOf = new Map(slow.kinds.map((kind, i) => [kind.kind, Math.min(i + 1, kindColors)]))
      most = Math.max(1, ...slow.tenants.map(t => t.payload_bytes))
      drawDays(slow)
      drawSavings(slow)
      fill(
        legend,
        slow.kinds.map(kind =>
          h('li', {}, h('i', { class: `swatch kind-${colorOf.get(kind.kind)}` }), spaced(kind.kind)),
        ),
      )
      tenants.update(slow.tenants)
      tables.update(slow.tables)
      const byKind = new Map(slow.kinds.map(kind => [kind.kind, kind]))
      kinds.update(slow.packs.map(pack => ({ ...pack, kind_row: byKind.get(pack.kind) })))
      const notes = []
      if (slow.tenant_count > slow.tenants.length)
        notes.push(
          `The ${slow.tenants.length} largest of ${formatCount(slow.tenant_count)} tenants; all are in lighter.storage_by_tenant.`,
        )
      if (slow.retention_due.artifacts > 0)
        notes.push(
          `The next retention sweep lets ${formatCount(slow.retention_due.artifacts)} artifacts (${formatBytes(slow.retention_due.payload_bytes)}) of ${formatCount(slow.retention_due.tenants)} tenants expire.`,
        )
      fill(rest, notes.join(' '))
      damage.hidden = slow.damaged === 0
      fill(
        damage,
        `${slow.damaged >= 1000 ? '1,000 or more' : formatCount(slow.damaged)} artifacts can not be read back as they were stored. See `,
        code('select * from lighter.damaged_artifacts'),
        ' and the runbook.',
      )
    },
  }
}
