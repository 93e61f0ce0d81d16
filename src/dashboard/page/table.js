// Tables that are brought up to date row by row, so that what a person has focused or selected stays.
import { fill, h } from './dom.js'

/**
 * @template R
 * @typedef {object} Column
 * @property {string} title
 * @property {boolean} [numeric]
 * @property {boolean} [head] names the row
 * @property {string} [class]
 * @property {(row: R) => import('./dom.js').Child | import('./dom.js').Child[]} cell
 */

/**
 * @template R
 * @param {object} options
 * @param {string} options.caption
 * @param {Column<R>[]} options.columns
 * @param {(row: R) => string} options.key
 * @param {import('./dom.js').Child} options.empty shown when there is no row
 * @param {(row: R) => unknown} [options.version] what a row's cells are made of, if not all of it
 */
export function createTable({ caption, columns, key, empty, version = row => row }) {
  const body = h('tbody', { role: 'rowgroup' })
  const scroller = h(
    'div',
    { class: 'scroller', role: 'region', 'aria-label': caption },
    // The roles are said because the phone's layout, which is none of a table, would take them away.
    h(
      'table',
      { role: 'table', class: 'stacked' },
      h('caption', { class: 'visually-hidden' }, caption),
      h(
        'thead',
        { role: 'rowgroup' },
        h(
          'tr',
          { role: 'row' },
          columns.map(c =>
            h('th', { role: 'columnheader', scope: 'col', class: c.numeric && 'numeric' }, c.title),
          ),
        ),
      ),
      body,
    ),
  )
  const nothing = h('div', {}, empty)
  // Reached by the keyboard only where there is something to scroll to: the table may have grown, or the window shrunk.
  const sizes = new ResizeObserver(() => {
    if (scroller.scrollWidth > scroller.clientWidth) scroller.tabIndex = 0
    else scroller.removeAttribute('tabindex')
  })
  for (const sized of [scroller, ...scroller.children]) sizes.observe(sized)
  const element = h('div', {}, nothing)
  /** @type {Map<string, {version: string, row: HTMLTableRowElement}>} */
  let shown = new Map()

  /** @param {R[]} rows */
  const update = rows => {
    const next = new Map()
    for (const data of rows) {
      const id = key(data)
      const text = JSON.stringify(version(data))
      const known = shown.get(id)
      next.set(id, known?.version === text ? known : { version: text, row: rowOf(data) })
    }
    // Rows that stay are not moved out and in again: they would lose the focus.
    const wanted = [...next.values()].map(each => each.row)
    for (const child of [...body.children]) if (!wanted.some(row => row === child)) child.remove()
    wanted.forEach((row, i) => {
      if (body.children[i] !== row) body.insertBefore(row, body.children[i] ?? null)
    })
    shown = next
    const content = rows.length === 0 ? nothing : scroller
    if (element.firstChild !== content) fill(element, content)
  }

  /** @param {R} data */
  const rowOf = data =>
    h(
      'tr',
      { role: 'row' },
      columns.map(c => {
        const children = [c.cell(data)].flat()
        return c.head
          ? h('th', { role: 'rowheader', scope: 'row', class: classOf(c) }, children)
          : h('td', { role: 'cell', class: classOf(c), 'data-title': c.title }, children)
      }),
    )

  return { element, update }
}

/** @param {{numeric?: boolean, class?: string}} column */
const classOf = column => [column.numeric ? 'numeric' : '', column.class ?? ''].join(' ').trim() || null
