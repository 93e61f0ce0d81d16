// What one request to hydrate may cost. No limit refills while the request is at work, whatever it has made and
// thrown away meanwhile.
import { constants } from 'node:buffer'
import { setImmediate } from 'node:timers/promises'
import { getHeapStatistics } from 'node:v8'
import { maxPayloadBytes } from '../config.ts'
import { ArtifactError } from '../errors.ts'
import type { ReadBudget } from './fetch.ts'
import type { Steps } from './steps.ts'

export interface HydrateLimits {
  /** Bytes of payloads that are read. */
  readBytes: number
  /** Characters that are put together. */
  outputChars: number
  /** Longest payload in bytes. */
  payloadBytes: number
  /** Longest chain of pointers. */
  chain: number
  /** Keys of one row that lie over a payload: they are held apart, the payload's own are not. */
  keys: number
}

/** What a key that is held apart takes of the heap, with its value: 300 bytes and more, and as much again for the rest. */
const heapBytesPerKey = 1024
/** A Map holds 16.7 million. Whoever runs out of heap is killed, and can't say at which row. */
const keysAtMost = Math.min(16_000_000, Math.floor(getHeapStatistics().heap_size_limit / heapBytesPerKey))

/** For programs that hydrate rows of their own: the longest text that JavaScript can hold, in and out. */
export const widestLimits: HydrateLimits = {
  readBytes: constants.MAX_STRING_LENGTH,
  outputChars: constants.MAX_STRING_LENGTH,
  payloadBytes: maxPayloadBytes,
  chain: 10_000,
  keys: keysAtMost,
}

/**
 * Texts of a batch are held four times over when they are written: as they are, escaped, joined, and sent. And of the heap's
 * limit more than half may be for what is young (192 of 320 MiB with --max-old-space-size=128).
 */
const batchBytesAtMost = Math.floor(getHeapStatistics().heap_size_limit / 32)

/** For several rows together, of which each can be asked for by itself when they do not fit. */
export const batchLimits = (bytes: number): HydrateLimits => ({
  ...widestLimits,
  readBytes: Math.min(bytes, batchBytesAtMost),
  outputChars: Math.min(bytes, batchBytesAtMost),
})

/** For whoever sends a request over the network. */
export const requestLimits = (bytes: number): HydrateLimits => ({
  readBytes: bytes,
  outputChars: bytes,
  payloadBytes: Math.min(bytes, maxPayloadBytes),
  chain: 200,
  keys: Math.min(1_000_000, keysAtMost),
})

/** A small payload costs a request to the store all the same: 8,192 of them fit into 32 MiB. */
const leastReadBytes = 4096
/** Work at one go. */
const pauseAfterMs = 10

export interface Work {
  readonly limits: HydrateLimits
  /** What may still be read; counted down by whoever reads. */
  readonly budget: ReadBudget
  /** Before a row is put together: what is refused must not have been made. @throws {ArtifactError} too much */
  output(chars: number): void
  /** Runs the steps, with pauses between them. */
  run<T>(steps: Steps<T>): Promise<T>
}

/**
 * @param pause resolves when this request may go on, after everything else that waits
 * @param signal aborted: nobody waits for the result any more
 */
export function startWork(
  limits: HydrateLimits,
  pause: () => Promise<unknown> = () => setImmediate(),
  signal?: AbortSignal,
): Work {
  let outputChars = limits.outputChars
  let since = performance.now()
  return {
    limits,
    budget: { bytes: limits.readBytes, leastBytes: leastReadBytes },
    output: chars => {
      if (chars > outputChars) throw tooMuch('the row does not fit into what may be answered at once')
      outputChars -= chars
    },
    run: async steps => {
      for (;;) {
        signal?.throwIfAborted()
        const step = steps.next()
        if (performance.now() - since > pauseAfterMs) {
          await pause()
          since = performance.now()
        }
        if (step.done === true) return step.value
      }
    },
  }
}

export function tooMuch(what: string): ArtifactError {
  return new ArtifactError('artifact_too_large', what, { hint: 'Ask for fewer rows at once.' })
}
