// Restore: what was offloaded goes back into its rows. It deletes nothing: once no row points to an artifact, the
// release sweep takes care of it. Rows without pointers are done, so a restore that was stopped goes on by itself.
import { setTimeout } from 'node:timers/promises'
import type pg from 'pg'
import { hydrateMany } from '../artifacts/hydrate.ts'
import { batchLimits, widestLimits } from '../artifacts/hydrate-limits.ts'
import { hydrateValues, readValueRows } from '../artifacts/values.ts'
import type { OffloadConfig } from '../config.ts'
import { isDatabaseOutage, isTransactionConflict, LighterError, messageOf, RowError } from '../errors.ts'
import { asTenantId } from '../ids.ts'
import { createPageSize } from '../page-size.ts'
import { fromSql, ident, tenantSql, versionSql } from '../source/expressions.ts'
import { isKeyedRowSql, partArrays, partList, partParameters, rowKeySql } from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { createPace } from '../sweeps/pace.ts'
import { findOffloaded, type OffloadedRow, weighRows } from './find.ts'
import type { RestoreScope } from './hold.ts'
import { findStored, type Place } from './stored.ts'
import { type RestoredRow, writeRestored } from './write.ts'

export interface RestoreContext {
  pool: pg.Pool
  store: ObjectStore
  config: OffloadConfig
  /** Rows a second at most. */
  rate: number
  /** Aborted: it ends after the batch that it is at. */
  signal: AbortSignal
  /** False once another process may restore the same table. */
  mayGoOn?: () => boolean
  onProgress: (counts: RestoreCounts) => void
  onFailure: (failure: RestoreFailure) => void
}

export interface RestoreCounts {
  /** Artifacts looked at, and then rows, in all passes over them. */
  artifacts: number
  seen: number
  restored: number
  /** Text written back, in bytes. */
  bytes: number
  /** Rows that stay offloaded: each was told to onFailure. */
  failed: number
}

export interface RestoreFailure {
  rowId: string
  code: string
  message: string
}

const maxBatchRows = 500
const maxPageRows = 5000
const artifactsPerPage = 2000
const rememberedFailures = 1_000_000
/** Passes over the rows: a second one finds what the application has copied behind the first one's back. */
const maxPasses = 3
/** How long a row that the application holds, or keeps changing, is asked for again after all others are done. */
const busyMs = 30_000
const storeTries = 6

/**
 * Restores the rows of the scope, which must be held (see hold.ts). Memory: the text of one batch, at most
 * `batchBytes` and its like again while it is put together, or that of one row that is longer.
 * @throws what the store or the database fails with; rows that were written stay written
 */
export async function restoreSource(
  context: RestoreContext,
  source: Source,
  scope: RestoreScope,
): Promise<RestoreCounts> {
  const counts: RestoreCounts = { artifacts: 0, seen: 0, restored: 0, bytes: 0, failed: 0 }
  const run: Run = {
    context,
    source,
    counts,
    pace: createPace(context.rate, context.signal),
    failed: new Set(),
  }
  if (scope.rowId === null) await restoreBusy(run, await passOverArtifacts(run, scope))
  for (let pass = 1; pass <= maxPasses && !stopped(context); pass++) {
    const before = counts.restored
    const busy = await passOverRows(run, scope)
    await restoreBusy(run, busy)
    // Nothing to do is what the last pass must find.
    if (counts.restored === before) break
  }
  return counts
}

interface Run {
  context: RestoreContext
  source: Source
  counts: RestoreCounts
  pace: (rows: number) => Promise<void>
  /** Ids of rows that failed, as long as they are not too many to be remembered. */
  failed: Set<string>
}

function stopped(context: RestoreContext): boolean {
  return context.signal.aborted || context.mayGoOn?.() === false
}

/**
 * Nearly all rows, in the order in which their payloads lie in the bucket. In the order of random keys each row would
 * cost a read of a frame of its own (13,462 rows of 60,000, on two cores: 440 rows/s that way, 1,000 this way).
 * @returns rows that were held by somebody all the time
 */
async function passOverArtifacts(run: Run, scope: RestoreScope): Promise<string[]> {
  const { context, source, counts } = run
  const busy: string[] = []
  for (let after: Place | null = null; ; ) {
    const page = await findStored(context.pool, source, scope.tenantId, after, artifactsPerPage)
    const weighed = await weighRows(context.pool, source, page.rowIds)
    const order = new Map(page.rowIds.map((id, i) => [id, i]))
    weighed.sort((a, b) => (order.get(a.rowId) ?? 0) - (order.get(b.rowId) ?? 0))
    // The row may be another tenant's by now.
    const mine = weighed.filter(row => scope.tenantId === null || row.tenantId === scope.tenantId)
    busy.push(...(await restoreRows(run, mine)))
    counts.artifacts += page.seen
    context.onProgress(counts)
    if (page.last === null || stopped(context)) return busy
    after = page.last
  }
}

/**
 * All rows that have pointers, in the order of their keys: those that the artifacts do not tell of, since the
 * application has copied them.
 * @returns rows that were held by somebody all the time
 */
async function passOverRows(run: Run, scope: RestoreScope): Promise<string[]> {
  const { context, source, counts } = run
  const size = createPageSize(200, maxPageRows)
  const busy: string[] = []
  for (let after: string | null = null; ; ) {
    const limit = size.rows()
    const started = performance.now()
    const page = await findOffloaded(context.pool, source, scope, after, limit)
    size.took(performance.now() - started)
    busy.push(...(await restoreRows(run, page.rows)))
    counts.seen += page.seen
    context.onProgress(counts)
    if (page.last === null || page.seen < limit || stopped(context)) return busy
    after = page.last
  }
}

async function restoreRows(run: Run, rows: OffloadedRow[]): Promise<string[]> {
  const { context, counts } = run
  const busy: string[] = []
  // Those that have failed would only fail again.
  const fresh = rows.filter(row => !run.failed.has(row.rowId))
  // Not more at once than a second's worth.
  const atOnce = Math.ceil(Math.min(maxBatchRows, context.rate))
  for (const batch of batchesOf(fresh, { ...context.config, rows: atOnce })) {
    if (stopped(context)) break
    busy.push(...(await restoreBatch(run, batch)))
    context.onProgress(counts)
    await run.pace(batch.length)
  }
  return busy
}

/** Rows whose payloads fit into memory together; a long one is alone. */
export function batchesOf(
  rows: OffloadedRow[],
  limits: { rows: number; batchBytes: number; streamThresholdBytes: number },
): OffloadedRow[][] {
  const batches: OffloadedRow[][] = []
  let batch: OffloadedRow[] = []
  let bytes = 0
  const close = () => {
    if (batch.length > 0) batches.push(batch)
    batch = []
    bytes = 0
  }
  for (const row of rows) {
    if (row.bytes > limits.streamThresholdBytes) {
      batches.push([row])
      continue
    }
    if (batch.length === limits.rows || bytes + row.bytes > limits.batchBytes) close()
    batch.push(row)
    bytes += row.bytes
  }
  close()
  return batches
}

async function restoreBusy(run: Run, rowIds: string[]): Promise<void> {
  const { context } = run
  const deadline = performance.now() + busyMs
  let waiting = rowIds
  while (waiting.length > 0 && !stopped(context)) {
    if (performance.now() > deadline) {
      for (const rowId of waiting)
        fail(run, rowId, new RowError('row_busy', 'the application held or changed the row all the time'))
      return
    }
    await setTimeout(500, undefined, { signal: context.signal }).catch(() => undefined)
    const again: string[] = []
    // By themselves: what they weigh now is not known.
    for (const rowId of waiting) {
      if (stopped(context)) return
      again.push(...(await restoreBatch(run, [{ rowId, tenantId: null, bytes: 0, unreadable: 0 }])))
    }
    context.onProgress(run.counts)
    waiting = again
  }
}

/** Restores one batch, whatever becomes of each row. @returns rows that are held by somebody */
async function restoreBatch(run: Run, batch: OffloadedRow[]): Promise<string[]> {
  let waiting = batch.map(row => row.rowId)
  for (let attempt = 0; ; attempt++) {
    waiting = await restoreOnce(run, waiting)
    if (waiting.length === 0 || attempt === 4 || stopped(run.context)) return waiting
    await setTimeout(25 * 2 ** attempt)
  }
}

/** Reads, hydrates and writes; what fails together is done one by one. @returns rows that changed, or are locked */
async function restoreOnce(run: Run, rowIds: string[]): Promise<string[]> {
  const { context, source, counts } = run
  const alone = rowIds.length === 1
  const oneByOne = async (ids: string[]): Promise<string[]> => {
    const busy: string[] = []
    for (const id of ids) busy.push(...(await restoreOnce(run, [id])))
    return busy
  }
  const { ready, tooLong } = await hydrateRows(run, rowIds)
  const busy = await oneByOne(tooLong)
  if (ready.length === 0) return busy
  try {
    const written = new Set(await writeRestored(context.pool, source, ready))
    for (const row of ready) {
      if (!written.has(row.version)) busy.push(row.rowId)
      else {
        counts.restored++
        counts.bytes += Buffer.byteLength(row.document)
      }
    }
    return busy
  } catch (error) {
    if (isDatabaseOutage(error) || isTransactionConflict(error)) throw error
    if (alone) fail(run, rowIds[0] ?? '', error)
    else busy.push(...(await oneByOne(ready.map(row => row.rowId))))
    return busy
  }
}

/** As `hydrateRows`, of a column that holds values. */
async function hydrateRowsWithValues(
  run: Run,
  rowIds: string[],
): Promise<{ ready: RestoredRow[]; tooLong: string[] }> {
  const { context, source } = run
  const alone = rowIds.length === 1
  for (let attempt = 1; ; attempt++) {
    const rows = (await readValueRows(context.pool, source, rowIds)).filter(row => row.pointer !== null)
    const limits = alone ? widestLimits : batchLimits(2 * context.config.batchBytes)
    const withTenant = rows.flatMap(row =>
      row.tenantId === null ? [] : [{ ...row, tenantId: row.tenantId }],
    )
    const results = await hydrateValues(
      { db: context.pool, store: context.store, concurrency: context.config.uploadConcurrency, limits },
      source,
      withTenant,
    )
    const outage = results.find(result => result.error?.retryable)?.error
    if (outage) {
      if (attempt === storeTries || stopped(context)) throw outage
      await setTimeout(250 * 2 ** attempt, undefined, { signal: context.signal }).catch(() => undefined)
      continue
    }
    for (const row of rows.filter(r => r.tenantId === null)) {
      fail(run, row.rowId, new RowError('no_tenant', 'the row has no tenant, so its pointers lead nowhere'))
    }
    const ready: RestoredRow[] = []
    const tooLong: string[] = []
    results.forEach((result, i) => {
      const row = withTenant[i]
      if (row === undefined) return
      if (result.error !== null) {
        if (!alone && result.error.code === 'artifact_too_large') tooLong.push(row.rowId)
        else fail(run, row.rowId, result.error)
      } else if (result.isOffloaded && result.bytes !== null) {
        ready.push({ rowId: row.rowId, version: row.version, document: result.bytes })
      }
    })
    return { ready, tooLong }
  }
}

interface StoredRow {
  rowId: string
  version: string
  tenantId: string | null
  metadata: string | null
}

/**
 * The rows as they were before, those of them that have pointers; the others are done, or gone.
 * Of several rows together, ones that do not fit into memory with the rest are handed back.
 */
async function hydrateRows(run: Run, rowIds: string[]): Promise<{ ready: RestoredRow[]; tooLong: string[] }> {
  const { context, source } = run
  if (source.mode !== 'document') return hydrateRowsWithValues(run, rowIds)
  const alone = rowIds.length === 1
  for (let attempt = 1; ; attempt++) {
    const rows = await readStored(context.pool, source, rowIds)
    // Estimates may be wrong: by what a row that has changed since points to, or artifacts of unknown length.
    const limits = alone ? widestLimits : batchLimits(2 * context.config.batchBytes)
    const withTenant = rows.flatMap(row =>
      row.tenantId === null ? [] : [{ ...row, tenantId: row.tenantId }],
    )
    const results = await hydrateMany(
      { db: context.pool, store: context.store, concurrency: context.config.uploadConcurrency, limits },
      withTenant.map(row => ({
        tenantId: asTenantId(row.tenantId),
        metadata: row.metadata,
        field: source.phase1Field,
      })),
    )
    const outage = results.find(result => result.error?.retryable)?.error
    if (outage) {
      // The store is at fault, not the rows.
      if (attempt === storeTries || stopped(context)) throw outage
      await setTimeout(250 * 2 ** attempt, undefined, { signal: context.signal }).catch(() => undefined)
      continue
    }
    const ready: RestoredRow[] = []
    const tooLong: string[] = []
    for (const row of rows.filter(r => r.tenantId === null)) {
      fail(run, row.rowId, new RowError('no_tenant', 'the row has no tenant, so its pointers lead nowhere'))
    }
    results.forEach((result, i) => {
      const row = withTenant[i]
      if (row === undefined) return
      if (result.error !== null) {
        if (!alone && result.error.code === 'artifact_too_large') tooLong.push(row.rowId)
        else fail(run, row.rowId, result.error)
      } else if (result.metadata !== null && result.metadata !== row.metadata) {
        ready.push({ rowId: row.rowId, version: row.version, document: result.metadata })
      }
    })
    return { ready, tooLong }
  }
}

async function readStored(pool: pg.Pool, source: Source, rowIds: string[]): Promise<StoredRow[]> {
  const { rows } = await pool.query<StoredRow>({
    // Look-ups of keys: nothing that holds documents is hashed.
    text: `select r.*
             from unnest($1::text[]${partParameters(source, 2)}) w(row_id${partList(source)})
            cross join lateral (
              select ${rowKeySql(source)} as "rowId", ${versionSql('m')} as version, ${tenantSql(source)} as "tenantId",
                     m.${ident(source.jsonColumn)}::text as metadata
                from ${fromSql(source)}
               where ${isKeyedRowSql(source, 'w')}
              offset 0) r`,
    values: [rowIds, ...partArrays(source, rowIds)],
  })
  return rows
}

function fail(run: Run, rowId: string, error: unknown): void {
  run.counts.failed++
  if (run.failed.size < rememberedFailures) run.failed.add(rowId)
  run.context.onFailure({
    rowId,
    code: error instanceof LighterError ? error.code : 'write_failed',
    message: messageOf(error),
  })
}
