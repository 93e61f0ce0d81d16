// How fast it goes and how long it will take, for commands that go through a table.
import { formatCount } from './output.ts'

export interface TimeLeft {
  /** What is done of the whole; null where that is not known. */
  share(done: number): number | null
  /** Rate since it began, and the time left where the total is known. */
  describe(done: number): string
}

/** @param before rows that an earlier run had done: they say nothing about this one's rate */
export function createTimeLeft(total: number | null, before = 0, what = 'rows'): TimeLeft {
  const started = performance.now()
  return {
    share: done => (total === null || total === 0 ? null : done / total),
    describe: done => {
      const perSecond = ((done - before) * 1000) / Math.max(performance.now() - started, 1)
      const rate = `${formatCount(done)}${total === null ? '' : ` of about ${formatCount(Math.max(total, done))}`} ${what}, ${formatCount(Math.round(perSecond))}/s`
      if (total === null || perSecond === 0 || done >= total) return rate
      return `${rate}, ${formatDuration((total - done) / perSecond)} left`
    },
  }
}

function formatDuration(seconds: number): string {
  if (seconds < 90) return `${Math.ceil(seconds)} s`
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`
  return `${(seconds / 3600).toFixed(1)} h`
}
