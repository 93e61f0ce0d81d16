// Charts by uPlot, each with its figures as a table for those who do not see it.
import { fill, h } from './dom.js'
import { formatTime } from './format.js'
import uPlot from './uplot.js'

/**
 * @typedef {object} Series
 * @property {string} label
 * @property {string} color name of a custom property
 * @property {(value: number) => string} format
 * @property {'bars' | 'line' | 'area'} draw
 * @property {string} [scale] of its own, drawn against the right side
 */

/** @typedef {(number | null)[]} Values */

const height = 176
/** Fewer than this make no time axis. */
const shortestSeconds = 60
const axisFont = '11px system-ui, sans-serif'
/** @type {Set<() => void>} */
const redraws = new Set()

/** After the scheme has changed: canvases have their colours painted in. */
export function redrawCharts() {
  for (const redraw of redraws) redraw()
}
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redrawCharts)

/**
 * @param {object} options
 * @param {string} options.title
 * @param {Series[]} options.series
 * @param {boolean} [options.log]
 * @param {(at: number) => string} [options.time]
 * @param {boolean} [options.utc] days are the server's, in UTC
 */
export function createChart({ title, series, log = false, time = formatTime, utc = false }) {
  const plot = h('div', { class: 'plot', role: 'img', 'aria-label': title })
  const tableHome = h('div')
  const details = h(
    'details',
    { class: 'figures', toggle: () => showTable() },
    h('summary', {}, 'Figures as a table'),
    tableHome,
  )
  const legend = h(
    'ul',
    { class: 'legend', 'aria-hidden': 'true' },
    series.map(s => {
      const value = h('b', {})
      return h('li', {}, h('i', { class: `swatch swatch${s.color}` }), `${s.label} `, value)
    }),
  )
  const values = [...legend.querySelectorAll('b')]
  const element = h('figure', { class: 'chart' }, plot, details)

  /** @type {number[]} */
  let xs = []
  /** @type {Values[]} */
  let ys = []
  /** @type {uPlot | null} */
  let drawn = null

  const draw = () => {
    drawn?.destroy()
    fill(plot)
    drawn = null
    if (xs.length < 2)
      return fill(plot, h('p', { class: 'empty' }, 'The chart begins with the next figures.'))
    if (plot.clientWidth === 0) return
    // Resolved for the scheme that is shown, which the text of the property is not.
    const color = (/** @type {string} */ name) => {
      plot.style.color = `var(${name})`
      return getComputedStyle(plot).color
    }
    const axis = {
      stroke: color('--muted'),
      font: axisFont,
      grid: { stroke: color('--line'), width: 1 },
      ticks: { show: false },
    }
    /** @param {number | null | undefined} v @param {Series} s */
    const formatted = (v, s) => (v === null || v === undefined ? '' : s.format(v))
    const barSeconds = series.some(s => s.draw === 'bars') ? (xs[1] ?? 0) - (xs[0] ?? 0) : 0
    const bars = uPlot.paths.bars?.({ size: [0.72, 40], align: 1 })
    const scales = [...new Set(series.map(s => s.scale ?? 'y'))]
    drawn = new uPlot(
      {
        width: plot.clientWidth,
        height,
        legend: { show: false },
        cursor: { y: false, points: { size: 7, width: 2, fill: color('--panel') } },
        ...(utc && { tzDate: ts => uPlot.tzDate(new Date(ts * 1000), 'Etc/UTC') }),
        scales: {
          // A bar begins at its time and is as wide as the time to the next.
          x: { range: (_u, min, max) => [Math.min(min, max - shortestSeconds), max + barSeconds] },
          ...Object.fromEntries(
            scales.map(name => [
              name,
              log
                ? { distr: /** @type {const} */ (3), range: (_u, min, max) => decades(min, max) }
                : { range: (_u, _min, max) => [0, Math.max(max * 1.08, 1)] },
            ]),
          ),
        },
        axes: [
          {
            ...axis,
            size: 28,
            space: 64,
            grid: { show: false },
            values: (/** @type {uPlot} */ _u, /** @type {number[]} */ splits, _axis, _space, incr) =>
              splits.map(at => tick(at, incr, utc)),
          },
          ...scales.map((name, i) => {
            const of = series.find(s => (s.scale ?? 'y') === name)
            return {
              ...axis,
              scale: name,
              side: i === 0 ? 3 : 1,
              ...(i > 0 && { grid: { show: false }, stroke: color(of?.color ?? '--muted') }),
              size: 58,
              ...(log && {
                splits: (
                  /** @type {uPlot} */ _u,
                  /** @type {number} */ _i,
                  /** @type {number} */ min,
                  /** @type {number} */ max,
                ) => steps(min, max),
              }),
              space: 26,
              values: (/** @type {uPlot} */ _u, /** @type {(number | null)[]} */ splits) =>
                splits.map(v => (of === undefined ? '' : formatted(v, of))),
            }
          }),
        ],
        series: [
          {},
          ...series.map(s => ({
            label: s.label,
            scale: s.scale ?? 'y',
            stroke: color(s.color),
            width: s.draw === 'bars' ? 0 : 1.5,
            ...(s.draw !== 'line' && { fill: color(s.draw === 'bars' ? s.color : `${s.color}-soft`) }),
            ...(s.draw === 'bars' && bars !== undefined && { paths: bars }),
            points: {
              fill: color('--panel'),
              show: s.draw === 'line' && ys.flat().filter(v => v !== null).length < 12,
            },
          })),
        ],
        hooks: {
          setCursor: [
            u => {
              const { idx } = u.cursor
              values.forEach((value, i) => {
                const s = series[i]
                const v = idx === null || idx === undefined ? null : ys[i]?.[idx]
                value.textContent = s === undefined ? '' : formatted(v, s)
              })
            },
          ],
        },
      },
      [xs, ...ys],
      plot,
    )
  }

  const showTable = () => {
    if (!details.open) return fill(tableHome)
    const rows = xs.map((x, i) => ({ x, values: ys.map(y => y[i] ?? null) }))
    fill(
      tableHome,
      h(
        'div',
        {
          class: 'scroller scroller-tall',
          role: 'region',
          'aria-label': `${title}, as a table`,
          tabindex: '0',
        },
        h(
          'table',
          {},
          h('caption', { class: 'visually-hidden' }, title),
          h(
            'thead',
            {},
            h(
              'tr',
              {},
              h('th', { scope: 'col' }, utc ? 'UTC' : 'Time'),
              series.map(s => h('th', { scope: 'col', class: 'numeric' }, s.label)),
            ),
          ),
          h(
            'tbody',
            {},
            rows
              .filter(row => row.values.some(v => v !== null && v !== 0))
              .reverse()
              .map(row =>
                h(
                  'tr',
                  {},
                  h('th', { scope: 'row' }, time(row.x * 1000)),
                  series.map((s, i) => {
                    const v = row.values[i]
                    return h('td', { class: 'numeric' }, v === null || v === undefined ? '–' : s.format(v))
                  }),
                ),
              ),
          ),
        ),
      ),
    )
  }

  redraws.add(draw)
  new ResizeObserver(() => {
    if (drawn === null) draw()
    else if (plot.clientWidth > 0 && drawn.width !== plot.clientWidth)
      drawn.setSize({ width: plot.clientWidth, height })
  }).observe(plot)

  return {
    element,
    /** For the head of its panel. */
    legend,
    /**
     * @param {number[]} x seconds
     * @param {Values[]} y
     * @param {string} summary what a person would say who looks at it
     */
    update: (x, y, summary) => {
      const same = x.length === xs.length && JSON.stringify([x, y]) === JSON.stringify([xs, ys])
      xs = x
      ys = y
      plot.setAttribute('aria-label', `${title}. ${summary}`)
      if (same) return
      if (drawn === null) draw()
      else drawn.setData([xs, ...ys])
      // A table that is being read stays as it is until it is opened again.
    },
  }
}

/** @param {number | null} min @param {number | null} max @returns {[number, number]} whole powers of ten around them */
function decades(min, max) {
  const low = Math.max(min ?? 1, 0.1)
  const high = Math.max(max ?? 10, low)
  return [
    10 ** Math.floor(Math.log10(low)),
    10 ** Math.max(Math.ceil(Math.log10(high)), Math.floor(Math.log10(low)) + 1),
  ]
}

/** @type {Intl.DateTimeFormatOptions} */
const dayMonth = { day: 'numeric', month: 'short' }

/**
 * @param {number} at seconds
 * @param {number} incr from one tick to the next
 * @param {boolean} utc
 */
function tick(at, incr, utc) {
  const shift = utc ? 0 : new Date(at * 1000).getTimezoneOffset() * 60
  const time = new Date((at - shift) * 1000)
  const clock = time.toISOString().slice(11, 19)
  if (incr >= 86_400 || clock === '00:00:00')
    return time.toLocaleDateString('en-GB', { ...dayMonth, timeZone: 'UTC' })
  return incr >= 60 ? clock.slice(0, 5) : clock
}

/** @param {number} min @param {number} max powers of ten, and of few of them some between */
function steps(min, max) {
  const first = Math.round(Math.log10(min))
  const count = Math.round(Math.log10(max)) - first
  const between = count > 2 ? [1] : [1, 2, 5]
  return [...Array(count).keys()].flatMap(i => between.map(n => n * 10 ** (first + i))).concat(max)
}
