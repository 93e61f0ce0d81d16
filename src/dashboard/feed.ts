// The figures, read once for all who watch, and only while somebody does.
import type pg from 'pg'
import type { Logger } from 'pino'
import { messageOf } from '../errors.ts'
import { type FastReport, readFast, readSlow, type SlowReport } from './report.ts'

const fastIntervalMs = 2000
const slowIntervalMs = 30_000
/** After a reading that took long the next one waits so many times as long: reports are never what loads a database. */
const restFactor = 20
/** Of a database that is so slow somebody must be able to see it. */
const longestFastRestMs = 15_000

/** What was the case at one reading, for the charts of the last minutes. */
export interface Moment {
  at: string
  rows_per_second: number
  depth: number
  oldest_seconds: number | null
}
/** Fifteen minutes. */
const keptMoments = 450

export type Message =
  | { event: 'fast'; data: FastReport & { moments: Moment[] } }
  | { event: 'slow'; data: SlowReport }
  | { event: 'trouble'; data: { message: string } }

export interface Feed {
  /** Told what is known at once, and of each reading from then on. @returns ends it */
  watch(watcher: (message: Message) => void): () => void
  stop(): void
}

export function createFeed(pool: pg.Pool, log: Logger): Feed {
  const watchers = new Set<(message: Message) => void>()
  const moments: Moment[] = []
  let last: { fast?: FastReport; slow?: SlowReport; trouble?: string } = {}
  let timer: NodeJS.Timeout | undefined
  let reading = false
  let fastDue = 0
  let slowDue = 0
  let stopped = false

  const tell = (message: Message) => {
    for (const watcher of watchers) watcher(message)
  }

  const read = async () => {
    if (reading || stopped) return
    reading = true
    try {
      const fast = await rested(
        readFast,
        fastIntervalMs,
        at => (fastDue = Math.min(at, performance.now() + longestFastRestMs)),
      )
      remember(moments, last.fast, fast)
      last = { ...(last.slow !== undefined && { slow: last.slow }), fast }
      tell({ event: 'fast', data: { ...fast, moments: moments.slice(-1) } })
      if (performance.now() >= slowDue) {
        last.slow = await rested(readSlow, slowIntervalMs, at => (slowDue = at))
        tell({ event: 'slow', data: last.slow })
      }
    } catch (error) {
      if (last.trouble === undefined) log.warn({ error: messageOf(error) }, 'the dashboard has no figures')
      last.trouble = 'The database does not answer.'
      tell({ event: 'trouble', data: { message: last.trouble } })
    }
    reading = false
    schedule()
  }

  /** One that fails rests, too. */
  const rested = async <T>(
    work: (pool: pg.Pool) => Promise<T>,
    intervalMs: number,
    setDue: (at: number) => void,
  ): Promise<T> => {
    const began = performance.now()
    try {
      return await work(pool)
    } finally {
      const now = performance.now()
      setDue(Math.max(began + intervalMs, now + (now - began) * restFactor))
    }
  }

  const schedule = () => {
    clearTimeout(timer)
    if (watchers.size > 0 && !stopped && !reading)
      timer = setTimeout(read, Math.max(0, fastDue - performance.now()))
  }

  return {
    watch: watcher => {
      const { fast, slow, trouble } = last
      if (slow !== undefined) watcher({ event: 'slow', data: slow })
      if (fast !== undefined) watcher({ event: 'fast', data: { ...fast, moments } })
      if (trouble !== undefined) watcher({ event: 'trouble', data: { message: trouble } })
      watchers.add(watcher)
      schedule()
      return () => {
        watchers.delete(watcher)
        schedule()
      }
    },
    stop: () => {
      stopped = true
      clearTimeout(timer)
      watchers.clear()
    },
  }
}

/** Rows since the reading before, hour by hour: the sum of two hours falls when one leaves it. */
function remember(moments: Moment[], before: FastReport | undefined, now: FastReport): void {
  const seconds = before === undefined ? 0 : (Date.parse(now.at) - Date.parse(before.at)) / 1000
  const key = (hour: { hour: string; queue: string }) => `${hour.hour} ${hour.queue}`
  const known = new Map(before?.recent.map(hour => [key(hour), hour.rows]))
  const rows = now.recent.reduce((sum, hour) => sum + Math.max(0, hour.rows - (known.get(key(hour)) ?? 0)), 0)
  moments.push({
    at: now.at,
    // After a while without watchers it would be a mean of that while.
    rows_per_second: seconds > 0 && seconds < 60 ? rows / seconds : 0,
    depth: now.queue.reduce((sum, queue) => sum + queue.depth, 0),
    oldest_seconds: now.queue.reduce<number | null>(
      (oldest, queue) =>
        queue.oldest_seconds === null ? oldest : Math.max(oldest ?? 0, queue.oldest_seconds),
      null,
    ),
  })
  if (moments.length > keptMoments) moments.splice(0, moments.length - keptMoments)
}
