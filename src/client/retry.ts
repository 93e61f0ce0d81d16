// When a request is sent again, and after what time.
import { LighterHttpError } from './errors.ts'

const firstWaitMs = 200
const longestWaitMs = 10_000
/** A server that wants to be left alone for longer than this gets its wish from the caller, who is told at once. */
const longestRetryAfterMs = 60_000

/**
 * Runs `attempt` until it succeeds, fails for good, or has been repeated `retries` times.
 * @throws what the last attempt threw; the reason of the signal
 */
export async function withRetries<T>(
  policy: { retries: number; signal: AbortSignal | undefined },
  attempt: () => Promise<T>,
): Promise<T> {
  for (let failures = 0; ; failures++) {
    try {
      return await attempt()
    } catch (error) {
      if (!(error instanceof LighterHttpError) || !error.retryable || failures >= policy.retries) throw error
      const asked = error.retryAfterMs ?? 0
      if (asked > longestRetryAfterMs) throw error
      // Doubled each time, up to half of it left to chance: clients that failed together do not come back together.
      const backoff = Math.min(firstWaitMs * 2 ** failures, longestWaitMs) * (0.5 + Math.random() / 2)
      await wait(Math.max(asked, backoff), policy.signal)
    }
  }
}

function wait(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(signal.reason)
      return
    }
    const onAbort = () => {
      clearTimeout(timer)
      reject(signal?.reason)
    }
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', onAbort)
      resolve()
    }, ms)
    signal?.addEventListener('abort', onAbort, { once: true })
  })
}

/** Retry-After: seconds, or a date. */
export function retryAfterMs(header: string | null): number | undefined {
  if (header === null) return undefined
  if (/^\d+(\.\d+)?$/.test(header)) return Number(header) * 1000
  const at = Date.parse(header)
  return Number.isNaN(at) ? undefined : Math.max(at - Date.now(), 0)
}
