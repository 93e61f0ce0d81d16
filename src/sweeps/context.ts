// What all sweeps share.
import type pg from 'pg'
import type { Logger } from 'pino'
import type { OffloadConfig, SweepConfig } from '../config.ts'
import type { ConnectionUrl } from '../db/url.ts'
import type { ObjectStore } from '../store/object-store.ts'

/** What a sweep has done so far, by names of its own: the same in progress, history and --json. */
export type Counts = Record<string, number>

export interface SweepContext {
  pool: pg.Pool
  /** Reaches a server session: directly, or through a pooler in session mode. */
  sessionUrl: ConnectionUrl
  store: ObjectStore
  config: SweepConfig
  /** How objects are built, and what an upload's lease is. */
  offload: OffloadConfig
  log: Logger
  /** Finds out what would be done and does none of it. */
  dryRun: boolean
  /** Aborted: the sweep ends after the batch that it is at; the next run goes on from there. */
  signal: AbortSignal
  /** Told after each batch. */
  onProgress: (counts: Counts) => void
  /**
   * To be awaited before objects are deleted: proves, by advancing the epoch, that this database owns the prefix.
   * Cheap after the first time.
   */
  mayDelete: () => Promise<void>
}

/** A sweep: works batch by batch, and returns what it has done. */
export type Sweep = (context: SweepContext) => Promise<Counts>
