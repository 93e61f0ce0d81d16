// Rows that were given up, why, and the way to try them again.
import { announce, code, emptyState, fill, h, openSection, panel, setText } from './dom.js'
import { formatAgo, formatCount, formatTime } from './format.js'
import { post } from './request.js'
import { createTable } from './table.js'

/** @typedef {import('./feed.js').Fast} Fast */
/** @typedef {import('../report.ts').FailedRow} FailedRow */

/** @param {(sourceId: number, rowId: string) => void} lookUp */
export function createFailures(lookUp) {
  const outcome = h('p', { class: 'message', role: 'status', hidden: true })
  /** Not known yet. */
  let failed = -1

  /** @param {string} text @param {boolean} good */
  const say = (text, good) => {
    outcome.hidden = false
    outcome.className = `message ${good ? 'message-good' : 'message-bad'}`
    setText(outcome, text)
  }

  /**
   * @param {HTMLButtonElement} button
   * @param {object} what
   * @param {(retried: number) => string} told
   */
  const retry = async (button, what, told) => {
    // Not disabled: it would lose the focus.
    if (button.getAttribute('aria-disabled') === 'true') return
    button.setAttribute('aria-disabled', 'true')
    try {
      const { retried } = await post('retry', what)
      say(told(retried), true)
    } catch (error) {
      say(`Not retried. ${error instanceof Error ? error.message : error}`, false)
    } finally {
      button.removeAttribute('aria-disabled')
    }
  }

  /** @param {FailedRow} row */
  const retryButton = row =>
    row.source_id === null
      ? h('span', { class: 'note' }, 'not attached')
      : h(
          'button',
          {
            type: 'button',
            class: 'button button-small',
            'aria-label': `Retry row ${row.row_id}`,
            click: (/** @type {Event} */ event) =>
              retry(
                /** @type {HTMLButtonElement} */ (event.currentTarget),
                { source_id: row.source_id, row_id: row.row_id },
                retried =>
                  retried === 1
                    ? `Row ${row.row_id} is in the queue again. If it fails again it comes back here with its new error.`
                    : `Row ${row.row_id} was not among the dead letters any more; nothing was changed.`,
              ),
          },
          'Retry',
        )

  /** @type {import('./table.js').Column<FailedRow & {now: number}>[]} */
  const columns = [
    {
      title: 'Row',
      head: true,
      class: 'mono',
      cell: f => {
        const { source_id: id, row_id: row } = f
        return id === null
          ? row
          : h(
              'button',
              { type: 'button', class: 'link mono', title: 'Look it up', click: () => lookUp(id, row) },
              row,
            )
      },
    },
    { title: 'Table', class: 'whole', cell: f => f.source ?? '–' },
    { title: 'Error', class: 'error', cell: f => f.last_error },
    { title: 'Attempts', numeric: true, cell: f => formatCount(f.attempts) },
    {
      title: 'Given up',
      cell: f =>
        h('time', { datetime: f.failed_at, title: formatTime(f.failed_at) }, formatAgo(f.failed_at, f.now)),
    },
    { title: 'Action', cell: retryButton },
  ]
  const table = createTable({
    caption: 'Dead letters, the latest first',
    key: f => `${f.source_id} ${f.row_id}`,
    version: f => ({ ...f, now: formatAgo(f.failed_at, f.now) }),
    empty: emptyState(
      'No row has been given up. One that fails ',
      code('OFFLOAD_MAX_ATTEMPTS'),
      ' times comes here with its error; it stays in its table, whole.',
    ),
    columns,
  })

  const question = h('p', {})
  const dialog = h(
    'dialog',
    { 'aria-labelledby': 'retry-all-title' },
    h('h3', { id: 'retry-all-title' }, 'Retry all dead letters'),
    question,
    h(
      'form',
      { method: 'dialog', class: 'dialog-buttons' },
      h('button', { class: 'button', value: 'no' }, 'Leave them'),
      h('button', { class: 'button button-primary', value: 'yes' }, 'Retry all'),
    ),
  )
  const all = h(
    'button',
    {
      type: 'button',
      class: 'button',
      hidden: true,
      click: () => {
        setText(
          question,
          `${formatCount(failed)} ${failed === 1 ? 'row goes' : 'rows go'} back into the queue with their attempts forgotten. What is still wrong with them will fail again.`,
        )
        dialog.returnValue = 'no'
        dialog.showModal()
      },
    },
    'Retry all',
  )
  dialog.addEventListener('close', () => {
    if (dialog.returnValue !== 'yes') return
    retry(all, { all: true }, retried =>
      retried === 0
        ? 'There was nothing left to retry.'
        : `${formatCount(retried)} ${retried === 1 ? 'row is' : 'rows are'} in the queue again. Those that fail again come back here with their new errors.`,
    )
  })
  const more = h('p', { class: 'note' })
  openSection('failures', panel('Dead letters', { tools: all }, outcome, table.element, more), dialog)

  return {
    /** @param {Fast} fast */
    fast: fast => {
      const before = failed
      failed = fast.queue.reduce((sum, q) => sum + q.failed, 0)
      if (failed > before && before >= 0) announce(`${formatCount(failed)} rows have been given up.`)
      const now = Date.parse(fast.at)
      table.update(fast.failures.map(f => ({ ...f, now })))
      all.hidden = failed === 0
      fill(
        more,
        ...(failed > fast.failures.length
          ? [
              `The latest ${fast.failures.length} of ${formatCount(failed)} are shown; all are in `,
              code('lighter.failures'),
              '.',
            ]
          : []),
      )
    },
  }
}
