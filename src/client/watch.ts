// Time-outs of one attempt: they count silence, not duration, so a large payload on a slow line is no failure.

export interface Watch {
  /** Aborted by the caller's signal, by the time-out, and by `abort`. */
  readonly signal: AbortSignal
  /** Something must happen within `ms` from now. */
  expect(ms: number): void
  /** Nothing is being waited for. */
  pause(): void
  /** True once nothing happened in time. */
  expired(): boolean
  /** Nobody is interested any more. */
  abort(): void
}

export function startWatch(callerSignal: AbortSignal | undefined): Watch {
  const own = new AbortController()
  let expired = false
  let timer: ReturnType<typeof setTimeout> | undefined
  const pause = () => clearTimeout(timer)
  return {
    signal: callerSignal === undefined ? own.signal : AbortSignal.any([callerSignal, own.signal]),
    expect: ms => {
      pause()
      timer = setTimeout(() => {
        expired = true
        own.abort()
      }, ms)
    },
    pause,
    expired: () => expired,
    abort: () => {
      pause()
      own.abort()
    },
  }
}
