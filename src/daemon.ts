// Composes the daemon of its parts. start() and stop(); nothing else has a life.
import { setTimeout } from 'node:timers/promises'
import pLimit from 'p-limit'
import type { Logger } from 'pino'
import { type Api, createApi, storeRequests } from './api/server.ts'
import type { Config } from './config.ts'
import { clockSkewAdvice, clockSkewMs } from './db/clock.ts'
import { requireCurrentSchema } from './db/migrate.ts'
import { createPool } from './db/pool.ts'
import { requireTenantRole } from './db/tenant.ts'
import { LighterError, messageOf, sqlState } from './errors.ts'
import type { BatchResult } from './offload/batch-result.ts'
import { noNamedTenants } from './offload/name-tenants.ts'
import type { Signal } from './offload/signals.ts'
import { createTurns } from './offload/turns.ts'
import { missingStore } from './store/missing-store.ts'
import { openStore } from './store/object-store.ts'
import { claimOwnership } from './store/ownership.ts'
import { createSchedule } from './sweeps/schedule.ts'
import { createMetrics } from './telemetry/metrics.ts'
import { createObserver } from './telemetry/observer.ts'
import { openTracing, type Tracing } from './telemetry/tracing.ts'
import { version } from './version.ts'
import { createCircuitBreaker } from './wake/circuit-breaker.ts'
import { createDrainLoop } from './wake/drain-loop.ts'
import { createListener } from './wake/listener.ts'
import { openNotice } from './wake/notice.ts'
import { type DaemonState, openNamedSession, openPresence } from './wake/presence.ts'

export interface Daemon {
  /** Checks database, schema and bucket ownership, then works until stopped. @throws {LighterError} with advice */
  start(): Promise<void>
  /**
   * Claims no more, waits for what is in flight; false if the time was up first (leases then run out).
   * Called again, it answers what the first call does.
   */
  stop(deadlineMs?: number): Promise<boolean>
  /** Where the HTTP API listens; null when it does not. */
  address(): string | null
}

export interface DaemonOptions {
  config: Config
  log: Logger
  /** Told at the named points of the pipeline; for tests. */
  signal?: Signal
  onResult?: (result: BatchResult) => void
  /** Told of every request to the store, by S3's name for it. */
  onStoreRequest?: (operation: string) => void
  /** Whether it works off the queue (the default), and whether it serves the HTTP API (not unless asked to). */
  worker?: boolean
  api?: boolean
  /** Whether the API has the dashboard with it; as the configuration says, unless it is false. */
  dashboard?: boolean
}

/** A look into the database for a scrape has failed after this. */
const scrapeTimeoutMs = 5000
/** How long the end waits for the collector of traces. */
const flushMs = 3000

export function createDaemon(options: DaemonOptions): Daemon {
  const { config, log, signal = () => undefined, onStoreRequest } = options
  const { missing } = config.storeVariables
  // Without a store nothing can be offloaded. Rows stay as they are, and jobs wait.
  const worker = (options.worker ?? true) && missing.length === 0
  const { databaseUrl, listenDatabaseUrl } = config.renewed ?? config
  const metrics = createMetrics(config.metricsTenants)
  let tracing: Tracing | null = null
  const stopped = new AbortController()
  let queueState: DaemonState = worker ? 'starting' : missing.length > 0 ? 'paused' : 'api'
  let outage = false
  const showState = () => {
    if (!stopped.signal.aborted) presence.say(outage ? 'paused' : queueState)
  }
  const onResult = (result: BatchResult) => {
    queueState = 'awake'
    showState()
    options.onResult?.(result)
  }
  const onIdleError = (error: Error) =>
    log.warn({ error: error.message }, 'an idle database connection was lost')
  const pool = createPool(databaseUrl, config.poolSize, onIdleError)
  const streamPool = createPool(databaseUrl, config.offload.streamConcurrency, onIdleError, {
    unlimited: true,
  })
  const { uploadConcurrency, streamConcurrency } = config.offload
  const openFor = (concurrency: number) =>
    missing.length > 0
      ? missingStore(missing)
      : openStore({ ...config.store, concurrency }, onStoreRequest, metrics.store.answered)
  // Each stream has two parts under way beside the batches' uploads. To wait for a connection counts as connecting.
  const store = openFor(uploadConcurrency + 2 * streamConcurrency + 4)
  const notice = openNotice(listenDatabaseUrl, config.pollIntervalMs, error => {
    log.debug(
      { error: messageOf(error) },
      'cannot tell the triggers that this daemon sleeps: they do not notify, and jobs are found by polling',
    )
    // It goes the same way.
    listener.doubt()
  })
  const listener = createListener({
    url: listenDatabaseUrl,
    db: pool,
    onWake: () => loop.wake(),
    onChange: (listening, reason) => {
      if (listening) {
        notice.tryAgain()
        log.info({ reason }, 'listening for notifications')
      } else
        log.warn(
          { reason, pollIntervalMs: config.pollIntervalMs },
          'LISTEN does not work: jobs are found by polling. Behind a pooler in transaction mode, set LISTEN_DATABASE_URL to a direct connection',
        )
    },
  })
  const presence = openPresence(
    worker
      ? // Only where the listener has proved that it is a session of ours.
        { ...notice, name: async text => (listener.isListening() ? notice.name(text) : undefined) }
      : openNamedSession(listenDatabaseUrl),
    version,
  )
  const breaker = createCircuitBreaker(pool, store, (state, reason) => {
    metrics.offload.circuit(state)
    outage = state !== 'closed'
    showState()
    if (state === 'open')
      log.error(
        { error: reason?.message, hint: reason?.hint },
        'the store fails: nothing is claimed until it is well again; rows stay as they are, jobs wait',
      )
    else
      log.info({ state }, state === 'closed' ? 'the store is well again' : 'the store answers: one row tries')
  })
  const loop = createDrainLoop({
    context: {
      pool,
      streamPool,
      store,
      config: config.offload,
      uploadLimit: pLimit(config.offload.uploadConcurrency),
      turns: createTurns(config.offload.streamConcurrency),
      namedTenants: noNamedTenants(),
      signal,
      observer: createObserver(metrics.offload, () => tracing),
      stopping: stopped.signal,
    },
    db: pool,
    breaker,
    notice: {
      ...notice,
      awake: () => {
        queueState = 'awake'
        showState()
        return notice.awake()
      },
      asleep: hears => {
        queueState = 'asleep'
        showState()
        return notice.asleep(hears)
      },
    },
    hears: () => listener.isListening(),
    pollIntervalMs: config.pollIntervalMs,
    log,
    onResult,
  })
  // Without a limit on a statement's duration: a release looks at every row. And beside the pool of the pipeline.
  const sweepPool = createPool(databaseUrl, 3, onIdleError, { unlimited: true })
  const schedule = createSchedule({
    pool: sweepPool,
    lockUrl: listenDatabaseUrl,
    store,
    config: config.sweeps,
    offload: config.offload,
    log,
    onOutcome: (name, outcome, seconds, counts) => {
      metrics.sweep(name, outcome, seconds)
      metrics.damaged(counts.damaged ?? 0)
    },
  })
  // Connections of its own: a crowd of requests must not keep a commit waiting.
  const apiPool = options.api ? createPool(databaseUrl, config.poolSize, onIdleError) : null
  // Likewise to the store: readers who take their time must not hold what the worker needs.
  const apiStore = options.api ? openFor(storeRequests(config.api)) : null
  // Likewise for scrapes: one look at a time, and none that a busy pool keeps waiting.
  const metricsPool = createPool(databaseUrl, 1, onIdleError, { timeoutMs: scrapeTimeoutMs })
  const pools = { worker: pool, stream: streamPool, sweeps: sweepPool, api: apiPool, metrics: metricsPool }
  for (const [name, each] of Object.entries(pools)) if (each !== null) metrics.pools.watch(name, each)
  metrics.database.watch({ pool: metricsPool, sweeps: worker ? schedule.names : [], log })
  let api: Api | undefined

  let stopping: Promise<boolean> | undefined
  return {
    start: async () => {
      await requireCurrentSchema(pool)
      const skewMs = await clockSkewMs(pool)
      if (skewMs !== null)
        log.warn({ skewMs, hint: clockSkewAdvice }, "this machine's clock is not the database's")
      if (missing.length === 0) await claimOwnership(pool, store)
      else
        log.error(
          { missing },
          'variables of the object store are not set: nothing is offloaded, rows stay as they are, and payloads that were offloaded before can not be read',
        )
      tracing = await openTracing(config.tracing, log, metrics)
      if (stopped.signal.aborted) return
      showState()
      if (worker) {
        if (config.thresholdBytes !== undefined) await applyThreshold(config.thresholdBytes)
        await notePackSizes()
        if (stopped.signal.aborted) return
        await listener.start()
        presence.start()
        await breaker.probe()
        if (stopped.signal.aborted) return
        loop.start()
        schedule.start()
        log.info(
          { bucket: store.bucket, prefix: store.prefix, listening: listener.isListening() },
          'daemon started',
        )
      } else presence.start()
      if (apiPool !== null && apiStore !== null) {
        if (config.api.auth.mode !== 'off') await requireTenantRole(apiPool)
        api = await createApi({
          config:
            options.dashboard === false ? { ...config, api: { ...config.api, dashboard: null } } : config,
          pool: apiPool,
          store: apiStore,
          checkBucket: () => store.check(),
          circuit: worker ? breaker.state : () => 'off',
          log,
          metrics,
          tracing,
        })
        if (stopped.signal.aborted) return
        await api.listen()
      }
    },
    address: () => api?.address() ?? null,
    stop: (deadlineMs = config.shutdownTimeoutMs) => {
      stopping ??= stopAll(deadlineMs)
      return stopping
    },
  }

  async function stopAll(deadlineMs: number): Promise<boolean> {
    const until = performance.now() + deadlineMs
    stopped.abort()
    presence.say('stopping')
    const [finished, answered] = await Promise.all([
      loop.stop(deadlineMs),
      closeApi(deadlineMs),
      // A sweep is cut short after its batch; one that hangs in a request is left to its fate.
      Promise.race([schedule.stop(), setTimeout(deadlineMs, undefined, { ref: false })]),
    ])
    await tracing?.stop(Math.min(flushMs, Math.max(0, until - performance.now())))
    await listener.stop()
    await presence.stop()
    await notice.stop()
    // Without a deadline's mercy: a pool with a hung connection would never end.
    await Promise.race([
      Promise.all([pool.end(), streamPool.end(), sweepPool.end(), apiPool?.end(), metricsPool.end()]),
      setTimeout(2000, undefined, { ref: false }),
    ])
    store.close()
    apiStore?.close()
    metrics.stop()
    return finished && answered
  }

  /** Requests under way are answered, those that take too long are broken off; false if there were any. */
  async function closeApi(deadlineMs: number): Promise<boolean> {
    if (api === undefined) return true
    const timer = new AbortController()
    const late = setTimeout(deadlineMs, false, { ref: false, signal: timer.signal }).catch(() => false)
    const closed = api.close().then(() => true)
    const inTime = await Promise.race([closed, late])
    timer.abort()
    if (!inTime) {
      api.server.server.closeAllConnections()
      await closed
    }
    return inTime
  }

  /** For the reports, which tell when rows leave. */
  async function notePackSizes(): Promise<void> {
    const { packTargetBytes, packMinBytes } = config.offload
    try {
      await pool.query('select lighter.set_pack_sizes($1, $2)', [packTargetBytes, packMinBytes])
    } catch (error) {
      // Such as a server in recovery: the queue waits for it, and so do the reports.
      log.warn(
        { error: messageOf(error) },
        'the sizes of packs could not be noted: reports tell those of before',
      )
    }
  }

  async function applyThreshold(bytes: number): Promise<void> {
    try {
      const { rows } = await pool.query<{ rebuilt: number }>('select lighter.set_threshold($1) as rebuilt', [
        bytes,
      ])
      if ((rows[0]?.rebuilt ?? 0) > 0)
        log.info({ thresholdBytes: bytes, triggers: rows[0]?.rebuilt }, 'threshold changed')
    } catch (error) {
      if (sqlState(error) === '55P03') {
        log.warn(
          { thresholdBytes: bytes },
          'threshold not changed: a table stayed locked; it is tried again at the next start',
        )
        return
      }
      throw new LighterError(
        'threshold_refused',
        `AI_ARTIFACT_META_THRESHOLD_BYTES=${bytes} can not be applied: ${messageOf(error)}`,
        { cause: error },
      )
    }
  }
}
