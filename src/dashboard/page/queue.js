// What waits, and who works on it.
import { createChart } from './charts.js'
import { code, emptyState, h, openSection, panel } from './dom.js'
import {
  formatAgo,
  formatBytes,
  formatClock,
  formatCount,
  formatSeconds,
  formatShort,
  formatTime,
} from './format.js'
import { createTable } from './table.js'

/** @typedef {import('./feed.js').Fast} Fast */
/** @typedef {import('../../reports/daemons.ts').DaemonReport} Daemon */

const keptMoments = 450

const states = {
  starting: ['Starting', 'It has not looked at the queue yet.', 'quiet'],
  awake: ['Awake', 'It works off the queue.', 'good'],
  asleep: ['Asleep', 'The queue is empty; a write or the next poll wakes it.', 'quiet'],
  paused: ['Paused', 'The store is in trouble: nothing is claimed until a try succeeds.', 'bad'],
  api: ['API only', 'It serves requests and leaves the queue to others.', 'quiet'],
  stopping: ['Stopping', 'It finishes what is under way.', 'warn'],
}

/** @param {Daemon} daemon */
function stateOf(daemon) {
  const [label = '', meaning = '', mood = ''] = states[daemon.state]
  return daemon.silent
    ? h('span', { class: 'badge badge-bad', title: 'It hangs, or its machine is gone.' }, 'Not heard')
    : h('span', { class: `badge badge-${mood}`, title: meaning }, label)
}

export function createQueue() {
  const chart = createChart({
    title: 'The queue in the last minutes',
    time: formatClock,
    series: [
      { label: 'Jobs in the queue', color: '--accent', draw: 'area', format: formatShort },
      { label: 'Rows a second', color: '--second', draw: 'line', scale: 'rate', format: formatShort },
    ],
  })
  /** @type {import('./table.js').Column<Fast['queue'][number]>[]} */
  const queueColumns = [
    {
      title: 'Table',
      head: true,
      cell: q => [q.source, q.paused && h('span', { class: 'badge badge-warn' }, 'Paused')],
    },
    { title: 'Queued', numeric: true, cell: q => `${q.exact ? '' : '≈ '}${formatCount(q.depth)}` },
    { title: 'Due', numeric: true, cell: q => formatCount(q.due) },
    { title: 'In flight', numeric: true, cell: q => formatCount(q.in_flight) },
    { title: 'Retrying', numeric: true, cell: q => formatCount(q.retrying) },
    { title: 'Given up', numeric: true, cell: q => formatCount(q.failed) },
    { title: 'Oldest', numeric: true, cell: q => formatSeconds(q.oldest_seconds) },
    { title: 'Settling', numeric: true, cell: q => formatCount(q.settling) },
    {
      title: 'Waiting',
      numeric: true,
      cell: q =>
        h(
          'span',
          { title: 'They wait, whole, until there is enough of their tenant and kind for an object.' },
          `${formatCount(q.waiting)} (${formatBytes(q.waiting_bytes)})`,
        ),
    },
    {
      title: 'Next leave',
      numeric: true,
      cell: q =>
        q.next_departure === null
          ? '–'
          : h(
              'time',
              {
                datetime: q.next_departure,
                title: 'At the latest, if their tenant has PACK_MIN_BYTES by then.',
              },
              formatTime(q.next_departure),
            ),
    },
  ]
  const queues = createTable({
    caption: 'Queue by table',
    key: q => q.source,
    empty: emptyState(
      'No table is attached. ',
      code('lighter attach public.conversation_messages'),
      ' begins.',
    ),
    columns: queueColumns,
  })
  /** @type {import('./table.js').Column<Daemon & {now: number}>[]} */
  const daemonColumns = [
    { title: 'Daemon', head: true, class: 'mono', cell: d => d.place },
    { title: 'State', cell: d => stateOf(d) },
    {
      title: 'Since',
      cell: d => h('time', { datetime: d.since, title: formatTime(d.since) }, formatAgo(d.since, d.now)),
    },
    {
      title: 'Connected',
      cell: d =>
        d.connected_at === null
          ? '–'
          : h(
              'time',
              { datetime: d.connected_at, title: formatTime(d.connected_at) },
              formatAgo(d.connected_at, d.now),
            ),
    },
    { title: 'Version', cell: d => d.version },
  ]
  const daemons = createTable({
    caption: 'Daemons',
    key: d => d.place,
    empty: emptyState(
      'The database sees no daemon. Start one with ',
      code('lighter start'),
      '. (One that reaches Postgres only through a pooler in transaction mode is not seen: set ',
      code('LISTEN_DATABASE_URL'),
      '.)',
    ),
    version: d => ({ ...d, silent_seconds: null }),
    columns: daemonColumns,
  })
  /** @type {Fast['moments']} */
  let moments = []

  openSection(
    'queue',
    h(
      'div',
      { class: 'columns' },
      panel('Last minutes', { note: 'while somebody watches', tools: chart.legend }, chart.element),
      h(
        'div',
        { class: 'stack' },
        panel('Daemons', {}, daemons.element),
        panel('By table', {}, queues.element),
      ),
    ),
  )

  return {
    /** @param {Fast} fast */
    fast: fast => {
      const last = moments.at(-1)?.at ?? ''
      moments = [...moments, ...fast.moments.filter(m => m.at > last)].slice(-keptMoments)
      const newest = moments.at(-1)
      chart.update(
        moments.map(m => Date.parse(m.at) / 1000),
        [moments.map(m => m.depth), moments.map(m => m.rows_per_second)],
        `${formatCount(newest?.depth ?? 0)} jobs, ${formatShort(newest?.rows_per_second ?? 0)} rows a second.`,
      )
      queues.update(fast.queue)
      // Whole minutes, so that a row changes when what it says does.
      const now = Math.floor(Date.parse(fast.at) / 10_000) * 10_000
      daemons.update(fast.daemons.map(d => ({ ...d, now })))
    },
  }
}
