// Backfill: rows that were there before attach, or before the threshold was lowered, are enqueued for the daemons.
// Page by page over the primary key, each page a short read and a short write; it rewrites no row itself.
import type pg from 'pg'
import { RowError } from '../errors.ts'
import { createPageSize } from '../page-size.ts'
import type { Source } from '../source/sources.ts'
import { enqueueRows } from './enqueue.ts'
import { type BackfillFilter, findHeavy } from './page.ts'
import { openPosition, type Position, savePosition } from './position.ts'
import { createThrottle, type ThrottleOptions } from './throttle.ts'

export interface BackfillContext {
  pool: pg.Pool
  throttle: ThrottleOptions
  /** Aborted: it ends after the page that it is at. */
  signal: AbortSignal
  /** False once another process may be at the same table. */
  mayGoOn?: () => boolean
  /** Told of where it goes on, before the first page. */
  onStart?: (position: Position) => void
  onProgress: (counts: BackfillCounts) => void
  onWait?: (reason: string) => void
}

interface BackfillCounts {
  /** Rows looked at, those of an earlier run of the same pass included. */
  seen: number
  queued: number
}

export interface BackfillOutcome extends BackfillCounts {
  outcome: 'done' | 'stopped'
  /** Where it had begun: null at the first row. */
  resumedAfter: string | null
}

const firstPageRows = 500
const maxPageRows = 10_000

/**
 * Runs one pass, from where the last one of its kind was stopped. Of one source one at a time: the caller has
 * the lock.
 * @throws {RowError} `not_worked_on` the source is paused or detached
 */
export async function backfillSource(
  context: BackfillContext,
  source: Source,
  filter: BackfillFilter,
  olderThan: string | null,
  restart: boolean,
): Promise<BackfillOutcome> {
  const { pool, signal } = context
  const position = await openPosition(pool, source, filter, olderThan, restart)
  const resumedAfter = position.after
  context.onStart?.({ ...position })
  const counts: BackfillCounts = { seen: position.seen, queued: position.queued }
  const throttle = createThrottle(pool, context.throttle, signal, context.onWait ?? (() => undefined))
  // Not more at once than may be enqueued in a second, or wait at all.
  const most = Math.ceil(Math.min(maxPageRows, context.throttle.rate, context.throttle.maxQueue))
  const size = createPageSize(firstPageRows, most)
  const stopped = () => signal.aborted || context.mayGoOn?.() === false
  await throttle(0)
  while (!stopped()) {
    const limit = size.rows()
    const started = performance.now()
    const page = await findHeavy(pool, source, position.filter, position.after, limit, false)
    size.took(performance.now() - started)
    if (!page.isActive) throw notWorkedOn(source)
    const queued = await enqueueRows(
      pool,
      source.id,
      page.rows.map(row => row.rowId),
    )
    position.after = page.last ?? position.after
    position.seen += page.seen
    position.queued += queued
    const isLast = page.seen < limit
    await savePosition(pool, position, isLast)
    counts.seen = position.seen
    counts.queued = position.queued
    context.onProgress({ ...counts })
    if (isLast) return { outcome: 'done', ...counts, resumedAfter }
    await throttle(queued)
  }
  return { outcome: 'stopped', ...counts, resumedAfter }
}

function notWorkedOn(source: Source): RowError {
  return new RowError(
    'not_worked_on',
    `${source.tableSql} is paused, or detached: nobody would work on its jobs`,
    {
      hint: 'After a restore: lighter unpin --all. Paused by hand: update lighter.sources set paused = false;',
    },
  )
}

export interface BackfillEstimate {
  seen: number
  rows: number
  /** Text that would go. */
  bytes: number
  tenants: Map<string, { rows: number; bytes: number }>
}

/** What a whole pass would enqueue. Changes nothing, and needs no lock. */
export async function estimateBackfill(
  pool: pg.Pool,
  source: Source,
  filter: BackfillFilter,
  signal: AbortSignal,
  onProgress: (estimate: BackfillEstimate) => void,
): Promise<BackfillEstimate> {
  const estimate: BackfillEstimate = { seen: 0, rows: 0, bytes: 0, tenants: new Map() }
  const size = createPageSize(firstPageRows, maxPageRows)
  for (let after: string | null = null; !signal.aborted; ) {
    const limit = size.rows()
    const started = performance.now()
    const page = await findHeavy(pool, source, filter, after, limit, true)
    size.took(performance.now() - started)
    for (const row of page.rows) {
      const bytes = row.bytes ?? 0
      estimate.rows++
      estimate.bytes += bytes
      const ofTenant = estimate.tenants.get(row.tenantId) ?? { rows: 0, bytes: 0 }
      estimate.tenants.set(row.tenantId, { rows: ofTenant.rows + 1, bytes: ofTenant.bytes + bytes })
    }
    estimate.seen += page.seen
    onProgress(estimate)
    if (page.last === null || page.seen < limit) break
    after = page.last
  }
  return estimate
}
