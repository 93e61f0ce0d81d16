// Looks at a database or a bucket on behalf of whoever asks, without credentials: few, and short.

/** A look that takes longer has failed. */
const longestMs = 5000

/** @throws {Error} no answer in time; what the promise throws */
export async function inTime<T>(promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer within ${longestMs} ms`)), longestMs)
  })
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

/** One look at a time, whose result stands for `ms`. */
export function cached<T>(ms: number, look: () => Promise<T>): () => Promise<T> {
  let current: { value: Promise<T>; until: number } | undefined
  return () => {
    if (current === undefined || performance.now() > current.until) {
      current = { value: look(), until: performance.now() + ms }
    }
    return current.value
  }
}
