// Of what lies in the database: queue, dead letters, sweeps, damage. Every daemon tells the same, so take the maximum
// over daemons, not the sum. Looked up at a scrape, one look at a time, by a connection of its own.

import type pg from 'pg'
import type { Logger } from 'pino'
import { Gauge, type Registry } from 'prom-client'
import { messageOf } from '../errors.ts'
import type { SweepName } from '../sweeps/names.ts'
import { type Figures, readFigures } from './figures.ts'

/** Scrapes within this share one look that succeeded. */
const cacheMs = 10_000
/** A scrape waits no longer; what comes later is there for the next one. */
const waitMs = 2000
/** Figures that could not be renewed for so long are told no more. */
const staleMs = 60_000

export interface DatabaseMetrics {
  /** Where to look; until then there is nothing to tell. `sweeps` are those that this daemon runs by the clock. */
  watch(source: { pool: pg.Pool; sweeps: SweepName[]; log: Logger }): void
  /** Looks, unless that was done just now. Never throws. */
  refresh(): Promise<void>
}

export function createDatabaseMetrics(registers: Registry[]): DatabaseMetrics {
  const forgetters: (() => void)[] = []
  const gauge = (name: string, help: string, labelNames: string[] = []) => {
    const made = new Gauge({ name, help, labelNames, registers })
    // (Reset, one without labels is 0, and that is an assertion.)
    forgetters.push(() => (labelNames.length === 0 ? made.remove() : made.reset()))
    return made
  }
  const forget = () => {
    for (const each of forgetters) each()
  }
  const up = new Gauge({
    name: 'lighter_database_up',
    help: '1 when the last look into the database succeeded in time. While it is 0 the figures of queue, sweeps and damage are up to a minute old, then missing.',
    registers,
  })
  const jobs = gauge(
    'lighter_queue_jobs',
    'Rows in the queue whose turn it is, or that failed, by source (table). Those that settle or wait are not among them.',
    ['source'],
  )
  const due = gauge('lighter_queue_due_jobs', 'Those of them that could be claimed now.', ['source'])
  const leased = gauge('lighter_queue_in_flight_jobs', 'Those of them that are claimed.', ['source'])
  const retrying = gauge('lighter_queue_retrying_jobs', 'Those of them that have failed before.', ['source'])
  const oldest = gauge(
    'lighter_queue_oldest_job_age_seconds',
    'How long the oldest of them has been due; 0 without any.',
    ['source'],
  )
  const paused = gauge('lighter_queue_paused', '1 for each source that is paused: its jobs wait.', ['source'])
  const failed = gauge('lighter_queue_failed_jobs', 'Dead letters: rows that were given up.', ['source'])
  const settling = gauge(
    'lighter_queue_settling_rows',
    'Rows that were just written: they leave no sooner than settle_for after that.',
    ['source'],
  )
  const waiting = gauge(
    'lighter_queue_waiting_rows',
    'Rows that wait, inline and whole, until there is enough of their tenant and kind for an object. That is no lag.',
    ['source'],
  )
  const waitingBytes = gauge(
    'lighter_queue_waiting_bytes',
    'About how many bytes of text would leave those.',
    ['source'],
  )
  const oldestWaiting = gauge(
    'lighter_queue_oldest_waiting_age_seconds',
    'How long the oldest row that settles or waits has been known; 0 without any.',
    ['source'],
  )
  const departure = gauge(
    'lighter_queue_next_departure_seconds',
    'Seconds until max_wait of a row ends whose tenant has PACK_MIN_BYTES of its kind: the first of them. Below 0: it is overdue. Missing while no tenant has so much.',
    ['source'],
  )
  const overdue = gauge(
    'lighter_queue_overdue_seconds',
    'How long rows that wait have been overdue: their tenant has PACK_MIN_BYTES and max_wait is over. 0: none are. Paused sources do not count.',
  )
  const damaged = gauge(
    'lighter_damaged_artifacts',
    'Artifacts that are marked as damaged: see the view damaged_artifacts.',
  )
  const notify = gauge('lighter_notify_queue_usage_ratio', "How full Postgres's NOTIFY queue is, 0 to 1.")
  const horizon = gauge(
    'lighter_oldest_transaction_age_seconds',
    'Age of the oldest transaction that keeps rows of the queue from being vacuumed; without pg_read_all_stats only of our own login.',
  )
  const sweepStarted = gauge(
    'lighter_sweep_last_run_timestamp_seconds',
    'When a sweep that this daemon runs by the clock last began, here or elsewhere, in seconds since 1970.',
    ['sweep'],
  )
  const sweepSucceeded = gauge(
    'lighter_sweep_last_success_timestamp_seconds',
    'When it last ended without an error; before that, when pg-lighter was installed.',
    ['sweep'],
  )
  const sweepSeconds = gauge('lighter_sweep_last_duration_seconds', 'How long its last run took.', ['sweep'])
  const sweepOutcome = gauge('lighter_sweep_last_outcome', '1 for the outcome of its last run.', [
    'sweep',
    'outcome',
  ])
  const sweepCounts = gauge(
    'lighter_sweep_last_count',
    'What its last finished run has counted, by the names that the view sweep_history has.',
    ['sweep', 'count'],
  )

  const tell = (figures: Figures) => {
    forget()
    for (const queue of figures.queues) {
      const { source } = queue
      jobs.set({ source }, queue.depth)
      due.set({ source }, queue.due)
      leased.set({ source }, queue.inFlight)
      retrying.set({ source }, queue.retrying)
      oldest.set({ source }, queue.oldestSeconds)
      paused.set({ source }, queue.paused ? 1 : 0)
      failed.set({ source }, queue.failed)
      settling.set({ source }, queue.settling)
      waiting.set({ source }, queue.waiting)
      waitingBytes.set({ source }, queue.waitingBytes)
      oldestWaiting.set({ source }, queue.oldestWaitingSeconds)
      if (queue.departureSeconds !== null) departure.set({ source }, queue.departureSeconds)
    }
    overdue.set(figures.overdueSeconds)
    damaged.set(figures.damaged)
    notify.set(figures.notifyQueueUsage)
    horizon.set(figures.oldestTransactionSeconds)
    for (const run of figures.sweeps) {
      const { sweep } = run
      sweepSucceeded.set({ sweep }, run.succeededAt)
      if (run.startedAt === null) continue
      sweepStarted.set({ sweep }, run.startedAt)
      sweepSeconds.set({ sweep }, run.seconds)
      for (const outcome of ['done', 'failed', 'running'] as const)
        sweepOutcome.set({ sweep, outcome }, run.outcome === outcome ? 1 : 0)
      for (const [count, value] of Object.entries(run.counts)) sweepCounts.set({ sweep, count }, value)
    }
  }

  let source: Parameters<DatabaseMetrics['watch']>[0] | undefined
  let toldAt = Number.NEGATIVE_INFINITY
  let looking: Promise<void> | undefined
  let isUp = true
  const look = async ({ pool, sweeps, log }: NonNullable<typeof source>) => {
    try {
      tell(await readFigures(pool, sweeps))
      toldAt = performance.now()
      isUp = true
    } catch (error) {
      log[isUp ? 'warn' : 'debug'](
        { error: messageOf(error) },
        'the figures for /metrics can not be looked up in the database',
      )
      isUp = false
    }
  }
  forget()
  return {
    watch: given => {
      source = given
    },
    refresh: async () => {
      if (source === undefined) return
      if (performance.now() - toldAt > cacheMs) {
        looking ??= look(source).finally(() => {
          looking = undefined
        })
        const late = Promise.withResolvers<'late'>()
        const timer = setTimeout(() => late.resolve('late'), waitMs)
        const inTime = await Promise.race([looking, late.promise])
        clearTimeout(timer)
        up.set(inTime !== 'late' && isUp ? 1 : 0)
      }
      if (performance.now() - toldAt > staleMs) forget()
    },
  }
}
