// Composes the daemon of its parts. start() and stop(); nothing else has a life.
import pLimit from 'p-limit'
import type { Logger } from 'pino'
import type { Config } from './config.ts'
import { requireCurrentSchema } from './db/migrate.ts'
import { createPool } from './db/pool.ts'
import { LighterError, messageOf, sqlState } from './errors.ts'
import type { BatchResult } from './offload/pipeline.ts'
import type { Signal } from './offload/signals.ts'
import { openStore } from './store/object-store.ts'
import { claimOwnership } from './store/ownership.ts'
import { openAwakeLock } from './wake/awake-lock.ts'
import { createDrainLoop } from './wake/drain-loop.ts'
import { createListener } from './wake/listener.ts'

export interface Daemon {
  /** Checks database, schema and bucket ownership, then works until stopped. @throws {LighterError} with advice */
  start(): Promise<void>
  /**
   * Claims no more, waits for what is in flight; false if the time was up first (leases then run out).
   * Called again, it answers what the first call does.
   */
  stop(deadlineMs?: number): Promise<boolean>
}

export interface DaemonOptions {
  config: Config
  log: Logger
  /** Told at the named points of the pipeline; for tests. */
  signal?: Signal
  onResult?: (result: BatchResult) => void
  /** Told of every request to the store, by S3's name for it. */
  onStoreRequest?: (operation: string) => void
}

export function createDaemon(options: DaemonOptions): Daemon {
  const { config, log, signal = () => undefined, onResult, onStoreRequest } = options
  const onIdleError = (error: Error) =>
    log.warn({ error: error.message }, 'an idle database connection was lost')
  const pool = createPool(config.databaseUrl, config.poolSize, onIdleError)
  const streamPool = createPool(config.databaseUrl, config.offload.streamConcurrency, onIdleError, {
    unlimited: true,
  })
  const store = openStore(config.store, onStoreRequest)
  const stopped = new AbortController()
  const awakeLock = openAwakeLock(config.listenDatabaseUrl, error =>
    log.debug(
      { error: messageOf(error) },
      'the advisory locks are not to be had: triggers do not notify, and jobs are found by polling',
    ),
  )
  const listener = createListener({
    url: config.listenDatabaseUrl,
    db: pool,
    onWake: () => loop.wake(),
    onChange: (listening, reason) => {
      if (listening) log.info('listening for notifications')
      else
        log.warn(
          { reason, pollIntervalMs: config.pollIntervalMs },
          'LISTEN does not work: jobs are found by polling. Behind a pooler in transaction mode, set LISTEN_DATABASE_URL to a direct connection',
        )
    },
  })
  const loop = createDrainLoop({
    context: {
      pool,
      streamPool,
      store,
      config: config.offload,
      uploadLimit: pLimit(config.offload.uploadConcurrency),
      streamLimit: pLimit(config.offload.streamConcurrency),
      signal,
      stopping: stopped.signal,
    },
    db: pool,
    awakeLock,
    mayHoldLock: () => listener.isListening(),
    pollIntervalMs: config.pollIntervalMs,
    log,
    ...(onResult && { onResult }),
  })

  let stopping: Promise<boolean> | undefined
  return {
    start: async () => {
      await requireCurrentSchema(pool)
      await claimOwnership(pool, store)
      if (config.thresholdBytes !== undefined) await applyThreshold(config.thresholdBytes)
      if (stopped.signal.aborted) return
      await listener.start()
      if (stopped.signal.aborted) return
      loop.start()
      log.info(
        { bucket: store.bucket, prefix: store.prefix, listening: listener.isListening() },
        'daemon started',
      )
    },
    stop: (deadlineMs = config.shutdownTimeoutMs) => {
      stopping ??= stopAll(deadlineMs)
      return stopping
    },
  }

  async function stopAll(deadlineMs: number): Promise<boolean> {
    stopped.abort()
    const finished = await loop.stop(deadlineMs)
    await listener.stop()
    await awakeLock.stop()
    // Without a deadline's mercy: a pool with a hung connection would never end.
    await Promise.race([
      Promise.all([pool.end(), streamPool.end()]),
      new Promise(resolve => setTimeout(resolve, 2000).unref()),
    ])
    store.close()
    return finished
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
