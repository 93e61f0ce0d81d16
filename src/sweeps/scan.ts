// Scan: finds rows that came to satisfy their table's when_sql without a write, since time has passed, and rows of tables
// that have no trigger of ours. It looks through such a table in the order of its key, a part in each run, as a backfill does.
import { enqueueRows } from '../backfill/enqueue.ts'
import { type BackfillFilter, type BackfillPage, findHeavy, keyAfter } from '../backfill/page.ts'
import { queuedBackfill } from '../backfill/throttle.ts'
import { isSourceFault } from '../errors.ts'
import { isTrouble } from '../offload/narrow-down.ts'
import { noteWhenFailure } from '../offload/when-failures.ts'
import { createPageSize } from '../page-size.ts'
import { loadSources, type Source } from '../source/sources.ts'
import type { Counts, SweepContext } from './context.ts'
import { createPace } from './pace.ts'

/** Of one table in one run: rows that are looked at, and how long that may take. */
const mostRows = 100_000
const mostMs = 20_000
/** While so many rows of backfills and scans are queued, no more are looked for. */
const mostQueued = 10_000

const firstPageRows = 500
const maxPageRows = 2000

const everyRow: BackfillFilter = { tenantId: null, cutoff: null, ageColumn: null }

export async function sweepScan(context: SweepContext): Promise<Counts> {
  const counts: Counts = { tables: 0, rows_seen: 0, rows_queued: 0 }
  for (const source of (await loadSources(context.pool)).values()) {
    if (context.signal.aborted) break
    if (!source.isScanned || source.paused || source.rowsHidden !== null) continue
    counts.tables = (counts.tables ?? 0) + 1
    await scanSource(context, source, counts)
  }
  return counts
}

async function scanSource(context: SweepContext, source: Source, counts: Counts): Promise<void> {
  const { pool, signal, dryRun } = context
  const pace = createPace(context.config.rate, signal)
  const size = createPageSize(firstPageRows, maxPageRows)
  const began = performance.now()
  let byIndex = source.scansByIndex
  let after = await readPosition(context, source)
  /** Set after an error, until the row that it comes from is found. */
  let fewer: number | null = null
  for (let looked = 0; looked < mostRows && performance.now() - began < mostMs && !signal.aborted; ) {
    if ((await queuedBackfill(pool, mostQueued)) >= mostQueued) return
    const limit: number = fewer ?? size.rows()
    const started = performance.now()
    let page: BackfillPage
    try {
      page = await findHeavy(pool, source, everyRow, after, limit, false, byIndex)
    } catch (error) {
      if (isTrouble(error)) throw error
      // A row on which the condition fails is left out. An index leads to it, and not past it.
      byIndex = false
      if (limit > 1 && !isSourceFault(error)) {
        fewer = Math.floor(limit / 10) || 1
        continue
      }
      counts.failed = (counts.failed ?? 0) + 1
      const failing = isSourceFault(error) ? null : await keyAfter(pool, source, after)
      if (!dryRun) await noteWhenFailure(pool, source, failing)
      if (failing === null) return
      page = { rows: [], seen: 1, last: failing, isActive: true }
      fewer = null
    }
    size.took(performance.now() - started)
    if (!page.isActive) return
    const ids = page.rows.map(row => row.rowId)
    const queued = dryRun ? ids.length : await enqueueRows(pool, source.id, ids)
    counts.rows_seen = (counts.rows_seen ?? 0) + page.seen
    counts.rows_queued = (counts.rows_queued ?? 0) + queued
    looked += page.seen
    const isLast = page.last === null || page.seen < limit
    if (page.last !== null) after = page.last
    // After the rows are queued: at worst a page is looked at twice.
    if (!dryRun) await savePosition(context, source, isLast ? null : after, page.seen, queued)
    context.onProgress(counts)
    if (isLast) return
    await pace(page.seen)
  }
}

async function readPosition({ pool }: SweepContext, source: Source): Promise<string | null> {
  const { rows } = await pool.query<{ position: string | null }>(
    'select position from lighter.scans where source_id = $1',
    [source.id],
  )
  return rows[0]?.position ?? null
}

/** @param position null: all was looked through, and the next run begins again */
async function savePosition(
  { pool }: SweepContext,
  source: Source,
  position: string | null,
  seen: number,
  queued: number,
): Promise<void> {
  await pool.query(
    `insert into lighter.scans as s (source_id, position, rows_seen, rows_queued) values ($1, $2, $3, $4)
         on conflict (source_id) do update
        set position = excluded.position, updated_at = now(),
            rows_seen = excluded.rows_seen + case when s.position is null then 0 else s.rows_seen end,
            rows_queued = excluded.rows_queued + case when s.position is null then 0 else s.rows_queued end,
            started_at = case when s.position is null then now() else s.started_at end`,
    [source.id, position, seen, queued],
  )
}
