// Runs one sweep: alone, on record, stoppable.
import type pg from 'pg'
import type { Logger } from 'pino'
import type { OffloadConfig, SweepConfig } from '../config.ts'
import { requireAllRows } from '../db/all-rows.ts'
import type { ConnectionUrl } from '../db/url.ts'
import { messageOf } from '../errors.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { advanceEpoch, requireOwnership } from '../store/ownership.ts'
import type { Counts, Sweep } from './context.ts'
import { takeSweepLock } from './lock.ts'

export interface SweepRun {
  name: string
  sweep: Sweep
  pool: pg.Pool
  lockUrl: ConnectionUrl
  store: ObjectStore
  config: SweepConfig
  offload: OffloadConfig
  log: Logger
  dryRun: boolean
  signal: AbortSignal
  onProgress?: (counts: Counts) => void
  /** Not if there was a run that began within this: of several daemons one is the first at each hour. */
  unlessWithinMs?: number
}

export interface SweepOutcome {
  /** busy: another daemon is at it, or has just been · stopped: in the middle, the next run goes on from there */
  outcome: 'done' | 'stopped' | 'busy'
  counts: Counts
  /** Who is at it, when it is busy. */
  holder?: string
}

/** How often a long run says how far it is. */
const heartbeatMs = 5000
/** Sweeps that advance the epoch at each run. */
const advancing = new Set(['orphans', 'retention', 'compaction'])
/** Sweeps that decide by rows of the attached tables. */
const readsRows = new Set(['release'])
/** For so long what was found out about the owner object is believed. */
const ownershipMs = 30_000

/**
 * Runs a sweep and keeps its row in lighter.sweep_runs.
 * @throws what the sweep throws; its row then has the error
 */
export async function runSweep(run: SweepRun): Promise<SweepOutcome> {
  const { name, pool, store, log } = run
  const { lock, holder } = await takeSweepLock(run.lockUrl, name)
  if (lock === null) return { outcome: 'busy', counts: {}, holder }
  try {
    if (run.unlessWithinMs !== undefined && (await ranWithin(pool, name, run.unlessWithinMs)))
      return { outcome: 'busy', counts: {} }
    const id = await begin(pool, name, run.dryRun)
    let counts: Counts = {}
    let writtenAt = performance.now()
    // A lost lock stops the sweep as a signal does: another one may have begun.
    const lost = new AbortController()
    const signal = AbortSignal.any([run.signal, lost.signal])
    const watch = setInterval(() => {
      if (!lock.isHeld()) lost.abort()
    }, 100)
    let ownedAt = Number.NEGATIVE_INFINITY
    const mayDelete = async () => {
      if (ownedAt === Number.NEGATIVE_INFINITY) await lock.exclusively(() => advanceEpoch(pool, store))
      else if (performance.now() - ownedAt > ownershipMs) await requireOwnership(pool, store)
      else return
      ownedAt = performance.now()
    }
    try {
      await requireAllRows(pool, readsRows.has(name) ? null : [])
      // Not only when there is something to be deleted: of two databases that take themselves for the owner, the one
      // that has less to do must notice as well.
      if (!run.dryRun && advancing.has(name)) await mayDelete()
      counts = await run.sweep({
        pool,
        sessionUrl: run.lockUrl,
        store,
        config: run.config,
        offload: run.offload,
        log,
        dryRun: run.dryRun,
        signal,
        onProgress: now => {
          run.onProgress?.(now)
          counts = { ...now }
          if (performance.now() - writtenAt < heartbeatMs) return
          writtenAt = performance.now()
          heartbeat(pool, id, counts).catch(error =>
            log.debug({ error: messageOf(error) }, 'heartbeat failed'),
          )
        },
        mayDelete,
      })
      await end(pool, id, counts, null)
    } catch (error) {
      await end(pool, id, counts, messageOf(error)).catch(() => undefined)
      throw error
    } finally {
      clearInterval(watch)
    }
    return { outcome: signal.aborted ? 'stopped' : 'done', counts }
  } finally {
    await lock.release()
  }
}

async function ranWithin(pool: pg.Pool, name: string, ms: number): Promise<boolean> {
  const { rowCount } = await pool.query(
    `select from lighter.sweep_runs
      where sweep = $1 and not dry_run and error is null and started_at > now() - $2 * interval '1 ms' limit 1`,
    [name, ms],
  )
  return rowCount !== 0
}

/** A run that was left without an end died: it holds the lock no more. */
async function begin(pool: pg.Pool, name: string, dryRun: boolean): Promise<string> {
  await pool.query(
    `update lighter.sweep_runs set finished_at = coalesce(heartbeat_at, started_at), error = 'the process ended in the middle'
      where sweep = $1 and finished_at is null`,
    [name],
  )
  const { rows } = await pool.query<{ id: string }>(
    'insert into lighter.sweep_runs (sweep, dry_run, heartbeat_at) values ($1, $2, now()) returning id',
    [name, dryRun],
  )
  if (rows[0] === undefined) throw new Error('the run has no row')
  return rows[0].id
}

async function heartbeat(pool: pg.Pool, id: string, counts: Counts): Promise<void> {
  await pool.query('update lighter.sweep_runs set counts = $2, heartbeat_at = now() where id = $1', [
    id,
    JSON.stringify(counts),
  ])
}

async function end(pool: pg.Pool, id: string, counts: Counts, error: string | null): Promise<void> {
  await pool.query(
    'update lighter.sweep_runs set counts = $2, heartbeat_at = now(), finished_at = now(), error = $3 where id = $1',
    [id, JSON.stringify(counts), error?.slice(0, 2000) ?? null],
  )
}
