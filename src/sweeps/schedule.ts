// Runs the sweeps by the clock, in UTC. Every daemon tries; the lock lets one do it.
import cron, { type ScheduledTask } from 'node-cron'
import type pg from 'pg'
import type { Logger } from 'pino'
import type { OffloadConfig, SweepConfig } from '../config.ts'
import type { ConnectionUrl } from '../db/url.ts'
import { messageOf } from '../errors.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { sweeps } from './all.ts'
import type { Counts } from './context.ts'
import type { SweepName } from './names.ts'
import { runSweep, type SweepOutcome } from './run.ts'

export interface SweepSchedule {
  /** Those that are run. */
  names: SweepName[]
  start(): void
  /** Stops the sweeps that run after the batch they are at, and waits for them. */
  stop(): Promise<void>
}

/** Daemons' clocks may differ by this and still one run is made at each hour. */
const sameHourMs = 50_000

export function createSchedule(options: {
  pool: pg.Pool
  lockUrl: ConnectionUrl
  store: ObjectStore
  config: SweepConfig
  offload: OffloadConfig
  log: Logger
  onOutcome?: (
    name: SweepName,
    outcome: SweepOutcome['outcome'] | 'failed',
    seconds: number,
    counts: Counts,
  ) => void
}): SweepSchedule {
  const { config, log } = options
  const stopping = new AbortController()
  const running = new Set<Promise<void>>()
  const tasks: ScheduledTask[] = []

  const run = async (name: SweepName) => {
    if (stopping.signal.aborted) return
    const began = performance.now()
    const seconds = () => (performance.now() - began) / 1000
    try {
      const { outcome, counts } = await runSweep({
        ...options,
        name,
        sweep: sweeps[name],
        dryRun: false,
        signal: stopping.signal,
        unlessWithinMs: sameHourMs,
      })
      if (outcome !== 'busy') log.info({ sweep: name, outcome, ...counts }, 'sweep')
      options.onOutcome?.(name, outcome, seconds(), counts)
    } catch (error) {
      log.error(
        { sweep: name, error: messageOf(error) },
        'the sweep failed; it is tried again at its next time',
      )
      options.onOutcome?.(name, 'failed', seconds(), {})
    }
  }

  const planned = (Object.entries(config.schedules) as [SweepName, string | null][]).flatMap(
    ([name, expression]) => (expression === null ? [] : [{ name, expression }]),
  )
  return {
    names: planned.map(({ name }) => name),
    start: () => {
      for (const { name, expression } of planned) {
        const task = cron.schedule(
          expression,
          () => {
            const work = run(name).finally(() => running.delete(work))
            running.add(work)
            return work
          },
          { name, timezone: 'UTC', noOverlap: true },
        )
        tasks.push(task)
      }
    },
    stop: async () => {
      stopping.abort()
      await Promise.all(tasks.map(task => task.destroy()))
      await Promise.all(running)
    },
  }
}
