// At a glance, and what has been done hour by hour.
import { createChart } from './charts.js'
import { byId, code, emptyState, fill, h, openSection, panel, setText } from './dom.js'
import {
  formatAgo,
  formatBytes,
  formatCount,
  formatMs,
  formatRatio,
  formatSeconds,
  formatShort,
  formatUsd,
} from './format.js'

/** @typedef {import('./feed.js').Fast} Fast */
/** @typedef {import('./feed.js').Slow} Slow */
/** @typedef {import('../report.ts').HourOfLatency} Hour */

const hourMs = 3_600_000
const ranges = [
  { label: '24 hours', hours: 24 },
  { label: '7 days', hours: 7 * 24 },
  { label: '31 days', hours: 31 * 24 },
]

/** @param {string} label @param {string} [href] */
function tile(label, href) {
  const value = h('dd', { class: 'tile-value' }, h('span', { class: 'skeleton skeleton-value' }))
  const more = h('dd', { class: 'tile-more' }, h('span', { class: 'skeleton' }))
  const element = h(
    'div',
    { class: 'tile' },
    h('dt', {}, href === undefined ? label : h('a', { href }, label)),
    value,
    more,
  )
  return {
    element,
    /** @param {string} text @param {string} detail @param {'good' | 'bad' | 'warn' | ''} [mood] */
    set: (text, detail, mood = '') => {
      setText(value, text)
      setText(more, detail)
      element.dataset.mood = mood
    },
  }
}

export function createOverview() {
  const tiles = {
    rows: tile('Rows offloaded, 24 h', '#activity'),
    moved: tile('Out of Postgres', '#storage'),
    queue: tile('In the queue', '#queue'),
    latency: tile('Latency, last hour', '#activity'),
    failures: tile('Failures', '#failures'),
    saved: tile('Saved', '#savings'),
  }
  const warning = h('p', { class: 'message message-bad', hidden: true })
  fill(
    byId('overview'),
    warning,
    h(
      'dl',
      { class: 'tiles' },
      Object.values(tiles).map(t => t.element),
    ),
  )

  const rowsChart = createChart({
    title: 'Rows offloaded by the hour',
    series: [{ label: 'Rows', color: '--accent', draw: 'bars', format: formatShort }],
  })
  const latencyChart = createChart({
    title: 'From due to offloaded, by the hour',
    log: true,
    series: [
      { label: 'p50', color: '--accent', draw: 'line', format: formatMs },
      { label: 'p99', color: '--second', draw: 'line', format: formatMs },
    ],
  })
  let range = 24
  /** @type {Hour[]} */
  let known = []
  /** @type {Hour[]} */
  let recent = []
  let now = Date.now()
  /** @type {Fast | null} */
  let last = null

  const buttons = ranges.map(({ label, hours }) =>
    h(
      'button',
      {
        type: 'button',
        'aria-pressed': String(hours === range),
        click: (/** @type {Event} */ event) => {
          range = hours
          for (const button of buttons)
            button.setAttribute('aria-pressed', String(button === event.currentTarget))
          draw()
        },
      },
      label,
    ),
  )
  const choice = h('div', { class: 'choice', role: 'group', 'aria-label': 'Time shown' }, buttons)
  const charts = h(
    'div',
    { class: 'columns' },
    panel(
      'Rows offloaded',
      { note: 'by the hour of the commit', tools: rowsChart.legend },
      rowsChart.element,
    ),
    panel('Latency', { note: 'from when a row was due', tools: latencyChart.legend }, latencyChart.element),
  )
  const nothing = emptyState(
    'No row has been offloaded in this time. Attach a table with ',
    code('lighter attach public.conversation_messages'),
    ' and write to it, or bring existing rows in with ',
    code('lighter backfill'),
    '.',
  )

  /** Hours with what came since they were read. */
  const merged = () => {
    const key = (/** @type {Hour} */ hour) => `${hour.hour} ${hour.queue}`
    return [...new Map([...known, ...recent].map(hour => [key(hour), hour])).values()]
  }

  const draw = () => {
    const end = Math.floor(now / hourMs) * hourMs
    const xs = Array.from({ length: range }, (_, i) => end - (range - 1 - i) * hourMs)
    /** @type {Map<number, {rows: number, p50: number | null, p99: number | null}>} */
    const byHour = new Map(xs.map(x => [x, { rows: 0, p50: null, p99: null }]))
    for (const hour of merged()) {
      const point = byHour.get(Date.parse(hour.hour))
      if (point === undefined) continue
      point.rows += hour.rows
      if (hour.queue === 'live') Object.assign(point, { p50: hour.p50_ms, p99: hour.p99_ms })
    }
    const points = [...byHour.values()]
    const rows = points.reduce((sum, point) => sum + point.rows, 0)
    const seconds = xs.map(x => x / 1000)
    const most = Math.max(...points.map(point => point.rows))
    rowsChart.update(
      seconds,
      [points.map(point => point.rows)],
      `${formatCount(rows)} rows in ${range} hours, ${formatCount(most)} in the busiest hour.`,
    )
    const slowest = Math.max(0, ...points.map(point => point.p99 ?? 0))
    latencyChart.update(
      seconds,
      [points.map(point => point.p50), points.map(point => point.p99)],
      slowest === 0 ? 'No live rows.' : `The highest p99 of an hour is ${formatMs(slowest)}.`,
    )
    const content = rows === 0 ? nothing : charts
    if (content.parentElement === null) {
      openSection('activity', content)
      byId('activity').querySelector('h2')?.append(choice)
    }
  }

  /** @param {Fast} fast */
  const showFast = fast => {
    last = fast
    recent = fast.recent
    now = Date.parse(fast.at)
    const { totals, queue } = fast
    const day = merged().filter(hour => Date.parse(hour.hour) > now - 24 * hourMs)
    const rows = day.reduce((sum, hour) => sum + hour.rows, 0)
    const backfilled = day.filter(hour => hour.queue === 'backfill').reduce((sum, hour) => sum + hour.rows, 0)
    tiles.rows.set(
      formatShort(rows),
      backfilled > 0
        ? `${formatShort(backfilled)} of them by backfill`
        : `${formatShort(totals.artifacts)} artifacts live`,
    )
    tiles.moved.set(
      formatBytes(totals.payload_bytes),
      totals.object_bytes > 0
        ? `${formatBytes(totals.object_bytes)} stored (${formatRatio(totals.payload_bytes / totals.object_bytes)})`
        : 'nothing is stored yet',
    )
    const depth = queue.reduce((sum, q) => sum + q.depth, 0)
    const oldest = Math.max(0, ...queue.map(q => q.oldest_seconds ?? 0))
    const settling = queue.reduce((sum, q) => sum + q.settling, 0)
    const waiting = queue.reduce((sum, q) => sum + q.waiting, 0)
    const waitingBytes = queue.reduce((sum, q) => sum + q.waiting_bytes, 0)
    const paused = queue.filter(q => q.paused).length
    tiles.queue.set(
      `${queue.every(q => q.exact) ? '' : '≈ '}${formatShort(depth)}`,
      paused > 0
        ? `${paused} of ${queue.length} tables paused`
        : depth > 0
          ? `the oldest due for ${formatSeconds(oldest)}`
          : settling + waiting > 0
            ? `${formatShort(settling)} settle, ${formatShort(waiting)} wait with ${formatBytes(waitingBytes)}`
            : 'nothing waits',
      oldest > 900 || paused > 0 ? 'warn' : '',
    )
    const live = fast.recent.filter(hour => hour.queue === 'live').at(-1)
    tiles.latency.set(
      formatMs(live?.p50_ms),
      live === undefined ? 'no live rows' : `p99 ${formatMs(live.p99_ms)}`,
    )
    const failed = queue.reduce((sum, q) => sum + q.failed, 0)
    const [latest] = fast.failures
    tiles.failures.set(
      formatShort(failed),
      latest === undefined ? 'none has been given up' : `the latest ${formatAgo(latest.failed_at, now)}`,
      failed > 0 ? 'bad' : 'good',
    )
    draw()
    byId('overview').setAttribute('aria-busy', 'false')
  }

  return {
    fast: showFast,
    /** @param {Slow} slow */
    slow: slow => {
      known = slow.hours
      const { savings } = slow
      warning.hidden = savings.verdict.pays !== false
      fill(warning, savings.verdict.text)
      if (savings.verdict.pays === null) tiles.saved.set('–', 'nothing is offloaded yet')
      else {
        const bytes = savings.saved_bytes_estimated
        tiles.saved.set(
          `${formatUsd(savings.saved_usd_per_month_estimated)} a month`,
          `after a rewrite about ${formatBytes(Math.abs(bytes))} ${savings.pays_bytes ? 'smaller' : 'larger'}`,
          savings.verdict.pays ? 'good' : 'bad',
        )
      }
      if (last !== null) showFast(last)
    },
  }
}
