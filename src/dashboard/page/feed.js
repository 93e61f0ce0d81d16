// The figures as they come. A stream that breaks off is opened again; when that fails, we find out why.
import { get, RequestError } from './request.js'

/** @typedef {import('../report.ts').FastReport & {moments: import('../feed.ts').Moment[]}} Fast */
/** @typedef {import('../report.ts').SlowReport} Slow */

const againMs = 5000

/**
 * @param {object} on
 * @param {(fast: Fast) => void} on.fast
 * @param {(slow: Slow) => void} on.slow
 * @param {(state: 'live' | 'lost', message: string | null) => void} on.state
 */
export function watchFeed(on) {
  /** @type {EventSource | null} */
  let source = null

  const open = () => {
    source = new EventSource('dashboard/live')
    /** @param {string} name @param {(data: any) => void} take */
    const listen = (name, take) =>
      source?.addEventListener(name, event => take(JSON.parse(/** @type {MessageEvent} */ (event).data)))
    listen('fast', data => {
      on.state('live', null)
      on.fast(data)
    })
    listen('slow', on.slow)
    listen('trouble', data => on.state('lost', `${data.message} The figures below are the last that came.`))
    source.addEventListener('error', async () => {
      // The browser opens it again by itself.
      if (source?.readyState !== EventSource.CLOSED) return on.state('lost', null)
      source.close()
      const reason = await get('sources').then(
        () => 'Too many pages watch at once.',
        error => (error instanceof RequestError ? error.message : String(error)),
      )
      on.state('lost', `${reason} Trying again every ${againMs / 1000} s.`)
      setTimeout(open, againMs)
    })
  }
  open()
  // A page that is kept for the way back must not keep its place among the viewers.
  addEventListener('pagehide', () => source?.close())
  addEventListener('pageshow', event => {
    if (event.persisted) open()
  })
}
