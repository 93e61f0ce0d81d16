// What every step of an offload is given.
import type { LimitFunction } from 'p-limit'
import type pg from 'pg'
import type { OffloadConfig } from '../config.ts'
import type { ObjectStore } from '../store/object-store.ts'
import type { NamedTenants } from './name-tenants.ts'
import type { Observer } from './observer.ts'
import type { Signal } from './signals.ts'
import type { Turns } from './turns.ts'

export interface PipelineContext {
  pool: pg.Pool
  /** For the long reads of large payloads, beside the pool so that they never keep a commit waiting. */
  streamPool: pg.Pool
  store: ObjectStore
  config: OffloadConfig
  /** Requests to the store at once, shared by all batches. */
  uploadLimit: LimitFunction
  /** Large rows, shared by all batches. */
  turns: Turns
  /** Tenants whose names are on record. */
  namedTenants: NamedTenants
  signal: Signal
  observer: Observer
  /** Aborted when the daemon is to stop: what has not begun goes back into the queue. */
  stopping: AbortSignal
}
