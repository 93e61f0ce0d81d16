// Work that holds memory or connections, a bounded number of it at once, and a bounded number waiting.
import pLimit from 'p-limit'
import { ApiError } from './errors.ts'

export type Gate = <T>(work: () => Promise<T>) => Promise<T>

/** How many may wait for each that is at work. */
const waitingPerSlot = 4

/** @throws {ApiError} 503 `overloaded` from the gate, when too many wait already */
export function createGate(concurrency: number): Gate {
  const limit = pLimit(concurrency)
  return work => {
    if (limit.pendingCount >= concurrency * waitingPerSlot) {
      throw new ApiError(503, 'overloaded', 'too many uploads and hydrations at once: try again in a moment')
    }
    return limit(work)
  }
}
