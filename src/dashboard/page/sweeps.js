// What the sweeps did, and how they ended.
import { code, emptyState, h, openSection, panel } from './dom.js'
import { formatAgo, formatCount, formatSeconds, formatTime, spaced } from './format.js'
import { createTable } from './table.js'

/** @typedef {import('./feed.js').Slow} Slow */
/** @typedef {Slow['sweeps'][number]} Sweep */
/** @typedef {Sweep['runs'][number]} Run */

const purposes = /** @type {Record<string, string>} */ ({
  orphans: 'left behind by uploads that broke off',
  retention: 'past their retention, and out of the bucket',
  release: 'no row points to them any more',
  compaction: 'small and half-dead packs, written anew',
  verify: 'a sample, read back and checked',
  rollup: 'what these figures are read from',
  vacuum: 'attached tables with many dead rows',
})

/** @param {Run} run */
const moodOf = run => ({ done: 'good', running: 'quiet', failed: 'bad' })[run.outcome]

/** @param {Run} run */
function didWhat(run) {
  if (run.error !== null) return h('span', { class: 'error' }, run.error)
  const counts = Object.entries(run.counts ?? {}).filter(([, n]) => n !== 0)
  return counts.length === 0
    ? h('span', { class: 'note' }, 'nothing to do')
    : counts.map(([name, n]) => `${spaced(name)} ${formatCount(n)}`).join(', ')
}

export function createSweeps() {
  /** @type {import('./table.js').Column<Sweep & {now: number}>[]} */
  const columns = [
    {
      title: 'Sweep',
      head: true,
      cell: s => [s.sweep, h('span', { class: 'note block' }, purposes[s.sweep] ?? '')],
    },
    {
      title: 'Last run',
      cell: s => {
        const at = s.runs[0]?.started_at ?? ''
        return h('time', { datetime: at, title: formatTime(at) }, formatAgo(at, s.now))
      },
    },
    {
      title: 'Outcome',
      cell: s => {
        const [run] = s.runs
        return (
          run && [
            h('span', { class: `badge badge-${moodOf(run)}` }, run.outcome),
            run.dry_run && h('span', { class: 'badge badge-quiet' }, 'dry run'),
          ]
        )
      },
    },
    { title: 'Took', numeric: true, cell: s => formatSeconds(s.runs[0]?.seconds ?? null) },
    { title: 'What', class: 'wide', cell: s => s.runs[0] && didWhat(s.runs[0]) },
    {
      title: 'History',
      cell: s =>
        h(
          'ol',
          { class: 'history', reversed: true },
          s.runs
            .map(run =>
              h(
                'li',
                {
                  class: `run run-${moodOf(run)}`,
                  title: `${formatTime(run.started_at)}: ${run.outcome}, ${formatSeconds(run.seconds)}`,
                },
                h('span', { class: 'visually-hidden' }, `${formatTime(run.started_at)} ${run.outcome}`),
              ),
            )
            .reverse(),
        ),
    },
  ]
  const table = createTable({
    caption: 'Sweeps, the last run of each',
    key: s => s.sweep,
    version: s => ({ ...s, now: formatAgo(s.runs[0]?.started_at ?? '', s.now) }),
    empty: emptyState(
      'No sweep has run yet. They run by the clock of a daemon that works off the queue, or by hand: ',
      code('lighter sweep --help'),
      '.',
    ),
    columns,
  })
  openSection('sweeps', panel('Last runs', {}, table.element))

  return {
    /** @param {Slow} slow */
    slow: slow => {
      const now = Date.parse(slow.at)
      table.update(slow.sweeps.map(s => ({ ...s, now })))
    },
  }
}
