// Keeps the queue out of a store that is down: while it is open nothing is claimed, so no job is touched, no row
// read and no object registered in vain. Now and then one probe asks the store, and then one row tries.
import type { Queryable } from '../db/pool.ts'
import { LighterError } from '../errors.ts'
import type { BatchResult } from '../offload/batch-result.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { requireOwner } from '../store/ownership.ts'

const firstPauseMs = 500
const maxPauseMs = 30_000

/**
 * closed: all is well · open: nothing is claimed before a probe has succeeded · half-open: one has, after a failure,
 * and a single row is to prove it
 */
export type CircuitState = 'closed' | 'open' | 'half-open'

export interface CircuitBreaker {
  state(): CircuitState
  /** Told of every batch; opens after one that failed by the store, closes when the row that tries does not. */
  report(result: BatchResult): void
  /** Before the next probe: longer each time, up to 30 s. */
  pauseMs(): number
  /** Whether one row may try now. */
  probe(): Promise<boolean>
}

/** @param onChange told of the state, and why it opened */
export function createCircuitBreaker(
  db: Queryable,
  store: ObjectStore,
  onChange: (state: CircuitState, reason: LighterError | null) => void,
): CircuitBreaker {
  // Not even at first is a job claimed on trust: a process that is killed while the store hangs, and started
  // again, and again, would use up the attempts of healthy rows.
  let state: CircuitState = 'open'
  let failures = 0
  let lastCode: string | undefined

  const change = (to: CircuitState, reason: LighterError | null = null) => {
    if (to === state && reason?.code === lastCode) return
    state = to
    lastCode = reason?.code
    onChange(to, reason)
  }

  return {
    state: () => state,
    report: ({ outage, objects }) => {
      if (outage !== null) {
        failures++
        change('open', outage)
        return
      }
      // A store that takes the probe and no object has the next pause begin where the last one ended.
      if (objects > 0) failures = 0
      if (state === 'half-open') change('closed')
    },
    pauseMs: () =>
      failures === 0
        ? 0
        : Math.min(firstPauseMs * 2 ** (failures - 1), maxPauseMs) * (0.75 + Math.random() / 4),
    probe: async () => {
      try {
        await store.proveWrites()
        // A bucket that was removed and made again is nobody's, or somebody else's.
        await requireOwner(db, store)
        if (failures > 0) change('half-open')
        else state = 'closed'
        return true
      } catch (error) {
        // That of the database is for the loop to wait for.
        if (!(error instanceof LighterError)) throw error
        failures++
        change('open', error)
        return false
      }
    },
  }
}
