// Wakes, drains the queue, sleeps again. One life: start(), stop(deadline).
import { setTimeout as delay } from 'node:timers/promises'
import type { Logger } from 'pino'
import { requireAllRows } from '../db/all-rows.ts'
import type { Queryable } from '../db/pool.ts'
import { isDatabaseOutage, messageOf } from '../errors.ts'
import { explainError } from '../explain-error.ts'
import type { BatchOutcome, BatchResult } from '../offload/batch-result.ts'
import { claimFairly, fairClaimRows } from '../offload/claim-fairly.ts'
import type { PipelineContext } from '../offload/context.ts'
import { runLargeRow } from '../offload/large-row.ts'
import { keepLease, type Lease } from '../offload/lease.ts'
import { notePartitions } from '../offload/missing-parts.ts'
import type { Work } from '../offload/observer.ts'
import { runBatch } from '../offload/pipeline.ts'
import { loadSources, type Source, waitsForOthers } from '../source/sources.ts'
import { createArrivals } from './arrivals.ts'
import type { CircuitBreaker } from './circuit-breaker.ts'
import { createClaims } from './claims.ts'
import type { Notice } from './notice.ts'

/**
 * Checks after falling asleep, before the poll interval takes over: a transaction that saw us awake but
 * commits after we fell asleep has not notified.
 */
const settleMs = [20, 200]
/** While triggers still take us for awake. */
const unnoticedMs = 50

/** Claimed at once while nothing is known of their size. */
const firstClaimRows = 250

const sourcesMaxAgeMs = 5000
/** So often new partitions are put on record. */
const partitionsMaxAgeMs = 60_000

/** With several tenants in a backlog the next look at its newest jobs comes sooner by this. */
const fairLooksOfMany = 2
/** Of a batch's bytes, what the batch of the newest jobs may have: it is to be done soon. */
const fairBatchShare = 1 / 4

export interface DrainLoopOptions {
  context: PipelineContext
  db: Queryable
  breaker: CircuitBreaker
  notice: Notice
  /** Whether a NOTIFY would be heard. */
  hears: () => boolean
  pollIntervalMs: number
  log: Logger
  onResult?: (result: BatchResult) => void
}

export interface DrainLoop {
  start(): void
  wake(): void
  /** Claims no more and waits for what is in flight. @returns false if `deadlineMs` passed first */
  stop(deadlineMs: number): Promise<boolean>
}

export function createDrainLoop(options: DrainLoopOptions): DrainLoop {
  const { context, db, breaker, log } = options
  const { config } = context
  const fairContext: PipelineContext = {
    ...context,
    config: {
      ...config,
      batchBytes: Math.max(config.batchBytes * fairBatchShare, config.streamThresholdBytes),
    },
  }
  const claims = createClaims(context.pool, config)
  const arrivals = createArrivals(db, log, config)
  const inFlight = new Set<Promise<void>>()
  const largeInFlight = new Set<Promise<void>>()
  /** One at most. */
  const fairlyInFlight = new Set<Promise<void>>()
  let stopping = false
  let woken = false
  let rouse: (() => void) | null = null
  let running: Promise<void> = Promise.resolve()
  let sources = new Map<number, Source>()
  let sourcesLoadedAt = Number.NEGATIVE_INFINITY
  let partitionsNotedAt = Number.NEGATIVE_INFINITY
  let databaseFailures = 0
  let bytesPerRow = 0
  /** The last claim took all it was allowed: there is more in the queue. */
  let full = true

  const wake = () => {
    woken = true
    claims.wake()
    rouse?.()
  }

  /** Returns early when woken. */
  const sleep = (ms: number) =>
    new Promise<void>(resolve => {
      if (woken || stopping) return resolve()
      const done = () => {
        clearTimeout(timer)
        rouse = null
        resolve()
      }
      const timer = setTimeout(done, ms)
      rouse = done
    })

  /**
   * Notified or not: what is notified meanwhile is found by the claim that follows. Only stop() ends it early.
   */
  const pause = async (ms: number) => {
    const until = performance.now() + ms
    for (let leftMs = ms; leftMs > 0 && !stopping; leftMs = until - performance.now()) {
      woken = false
      await sleep(leftMs)
    }
  }

  const activeSources = async () => {
    if (performance.now() - sourcesLoadedAt > sourcesMaxAgeMs) {
      // An empty queue, or no source, must be empty and not hidden.
      await requireAllRows(db, [])
      sources = await loadSources(db)
      sourcesLoadedAt = performance.now()
      if (sourcesLoadedAt - partitionsNotedAt > partitionsMaxAgeMs) {
        await notePartitions(db)
        partitionsNotedAt = sourcesLoadedAt
      }
    }
    return [...sources.values()].filter(s => !s.paused)
  }

  /**
   * As many jobs as a batch's bytes will probably hold, by the size of recent rows. What is claimed beyond that is
   * only put back, and a part of it rendered in vain.
   */
  const claimLimit = () => {
    if (breaker.state() === 'half-open') return 1
    return bytesPerRow === 0
      ? Math.min(config.batchRows, firstClaimRows)
      : Math.max(1, Math.min(config.batchRows, Math.ceil(config.batchBytes / bytesPerRow)))
  }

  const learnSize = ({ offloadedRows, payloadBytes }: BatchResult) => {
    if (offloadedRows === 0) return
    const size = payloadBytes / offloadedRows
    bytesPerRow = bytesPerRow === 0 ? size : bytesPerRow * 0.7 + size * 0.3
  }

  const report = (result: BatchResult, what: string) => {
    databaseFailures = 0
    breaker.report(result)
    // Perhaps since its source did.
    if (result.changed > 0) sourcesLoadedAt = Number.NEGATIVE_INFINITY
    if (result.rowError !== null || result.deadLetters > 0) {
      log.warn(
        { failed: result.failed, deadLetters: result.deadLetters, error: result.rowError },
        'rows could not be offloaded; see lighter.failures and lighter.jobs.last_error',
      )
    }
    if (result.leaseLost) {
      log.warn(
        'the lease of a batch ran out before its end; another daemon has its rows. Raise OFFLOAD_LEASE_MS if that happens often',
      )
    }
    const { rowError, outage, leaseLost, ...counts } = result
    for (const key of ['planMs', 'packMs', 'uploadMs', 'commitMs'] as const)
      counts[key] = Math.round(counts[key])
    log.info(counts, what)
    options.onResult?.(result)
  }

  const track = (set: Set<Promise<void>>, work: Promise<void>, what: string) => {
    const tracked: Promise<void> = work
      .catch(error => {
        // Its lease runs out, and its rows are claimed again.
        databaseFailures++
        sourcesLoadedAt = Number.NEGATIVE_INFINITY
        // What is cut off by our own stop is no trouble.
        const level = stopping ? 'debug' : 'error'
        log[level](
          { error: messageOf(error) },
          `${what} failed; its jobs come back when their lease runs out`,
        )
      })
      .finally(() => set.delete(tracked))
    set.add(tracked)
  }

  const startLarge = (rows: BatchOutcome['large'], work: Work) => {
    for (const row of rows) {
      track(
        largeInFlight,
        runLargeRow(context, row, work).then(result => report(result, 'large row')),
        'large row',
      )
    }
  }

  const startBatch = (lease: Lease, claimMs: number, batchContext: PipelineContext, what: string) =>
    runBatch(batchContext, sources, lease, claimMs).then(({ result, large, work }) => {
      learnSize(result)
      startLarge(large, work)
      report(result, what)
    })

  /** With no other batch in order beside it: whoever dies on it shall take few along. */
  const startSuspect = async (lease: Lease, claimMs: number) => {
    const stopHeartbeat = keepLease(context, lease, [])
    await Promise.all(inFlight)
    stopHeartbeat()
    track(inFlight, startBatch(lease, claimMs, context, 'suspect row'), 'suspect row')
    await Promise.all(inFlight)
  }

  /**
   * While there is a backlog, beside the batches in order and never behind them: see claimFairly. A backlog that is
   * gone before the first look costs nothing.
   */
  const workFairly = async () => {
    for (let tenants = 1; ; ) {
      await delay(config.fairLookMs / (tenants > 1 ? fairLooksOfMany : 1), undefined, {
        signal: context.stopping,
      }).catch(() => undefined)
      if (stopping || !full || breaker.state() !== 'closed') return
      const limit = Math.min(config.batchRows, fairClaimRows)
      const claimingSince = performance.now()
      const prompt = (await activeSources()).filter(source => !waitsForOthers(source))
      if (prompt.length === 0) return
      const claim = await claimFairly(db, prompt, limit, config.leaseMs)
      const claimMs = performance.now() - claimingSince
      tenants = claim.tenants
      if (claim.lease === null) continue
      await context.signal('after-claim')
      await startBatch(claim.lease, claimMs, fairContext, 'batch of the newest')
    }
  }

  const pauseForDatabase = async () => {
    const pauseMs = Math.min(500 * 2 ** (databaseFailures - 1), 30_000) * (0.75 + Math.random() / 4)
    log.warn(
      { pauseMs: Math.round(pauseMs), inARow: databaseFailures },
      'database in trouble: pausing before the next claim',
    )
    await pause(pauseMs)
  }

  const claim = async () => {
    const active = await activeSources()
    const limit = claimLimit()
    const claimingSince = performance.now()
    const claim =
      active.length === 0
        ? { leases: [], full: false }
        : await claims.next(active, limit, breaker.state() === 'half-open')
    full = claim.full
    return { leases: claim.leases, claimMs: performance.now() - claimingSince }
  }

  /** Claims and works until the queue has nothing due and nothing is in flight (large and newest rows apart). */
  const drain = async () => {
    full = true
    let foundAny = false
    const drainingSince = performance.now()
    while (!stopping) {
      if (breaker.state() === 'open') {
        await Promise.all(inFlight)
        await pause(breaker.pauseMs())
        if (stopping || !(await breaker.probe())) continue
      }
      if (databaseFailures > 0) {
        await Promise.all(inFlight)
        if (databaseFailures > 0) await pauseForDatabase()
      }
      // Each time: LISTEN may have been lost, or found again, under a load that never ends. Beside the claim: until it
      // is said, who writes notifies in vain, and nothing worse.
      const awake = options.hears() ? options.notice.awake() : undefined
      const { leases, claimMs } = await claim().finally(() => awake)
      if (leases.length === 0) {
        // A table may have been attached while we slept, and what woke us be its first row.
        if (!foundAny && sourcesLoadedAt < drainingSince) {
          sourcesLoadedAt = Number.NEGATIVE_INFINITY
          continue
        }
        if (inFlight.size === 0) return
        await Promise.race(inFlight)
        continue
      }
      foundAny = true
      await context.signal('after-claim')
      if (leases.some(lease => lease.isHalf)) await context.signal('after-split')
      for (const lease of leases) {
        if (!lease.suspect) track(inFlight, startBatch(lease, claimMs, context, 'batch'), 'batch')
      }
      for (const lease of leases) if (lease.suspect) await startSuspect(lease, claimMs)
      if (full && breaker.state() === 'closed' && fairlyInFlight.size === 0) {
        track(fairlyInFlight, workFairly(), 'batch of the newest')
      }
      await untilNextClaim()
    }
  }

  /**
   * A queue that did not fill a batch fills it while one is in flight: packs form by themselves. After trouble one
   * batch at a time.
   */
  const untilNextClaim = async () => {
    const alone = !full || breaker.state() !== 'closed' || databaseFailures > 0
    if (inFlight.size >= (alone ? 1 : config.batchesInFlight)) await Promise.race(inFlight)
  }

  const run = async () => {
    let failuresInARow = 0
    while (!stopping) {
      try {
        woken = false
        await drain()
        failuresInARow = 0
        for (let check = 0; !stopping; ) {
          // Each time: LISTEN may have been lost while we slept, and what is notified then is wasted.
          const isSaid = await options.notice.asleep(options.hears())
          await arrivals.look(await activeSources())
          const usualMs = settleMs[check] ?? options.pollIntervalMs
          await sleep(isSaid ? usualMs : Math.min(unnoticedMs, usualMs))
          // What was checked before and committed after is looked for once it is said.
          if (isSaid) check++
          if (woken || stopping || (await claims.hasDue(await activeSources()))) break
        }
      } catch (error) {
        if (stopping) break
        failuresInARow++
        const pauseMs = Math.min(250 * 2 ** (failuresInARow - 1), 15_000)
        log.error(
          { error: messageOf(error), hint: explainError(error).hint, pauseMs },
          isDatabaseOutage(error)
            ? 'the database can not be reached; trying again'
            : 'the queue can not be read; trying again',
        )
        await pause(pauseMs)
      }
    }
  }

  return {
    start: () => {
      running = run()
    },
    wake,
    stop: async deadlineMs => {
      stopping = true
      rouse?.()
      let timer: NodeJS.Timeout | undefined
      const late = new Promise<boolean>(resolve => {
        timer = setTimeout(() => resolve(false), deadlineMs)
      })
      const drained = (async () => {
        await running
        for (;;) {
          const working = [...inFlight, ...largeInFlight, ...fairlyInFlight]
          if (working.length === 0) return true
          await Promise.all(working)
        }
      })()
      const finished = await Promise.race([drained, late])
      clearTimeout(timer)
      return finished
    },
  }
}
