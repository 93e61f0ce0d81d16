// Keeps a sweep from going through more artifacts a second than it may.
import { setTimeout } from 'node:timers/promises'

/** To be awaited after each batch with its size. Ends early, without an error, when the signal is aborted. */
export function createPace(perSecond: number, signal: AbortSignal): (items: number) => Promise<void> {
  let due = performance.now()
  return async items => {
    due = Math.max(due, performance.now()) + (items / perSecond) * 1000
    const waitMs = due - performance.now()
    // What is over within a tick is not worth one.
    if (waitMs > 5) await setTimeout(waitMs, undefined, { signal }).catch(() => undefined)
  }
}
