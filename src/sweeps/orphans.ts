// Orphans: objects registered for an upload that was never committed. Postgres alone tells which; the bucket is
// listed only by the deep sweep. And rows that were orphaned of their jobs.

import { seesAllRowsSql } from '../db/all-rows.ts'
import { messageOf } from '../errors.ts'
import { ident, rowsSql } from '../source/expressions.ts'
import { loadSources, type Source } from '../source/sources.ts'
import type { Counts, SweepContext } from './context.ts'
import { deleteDueObjects } from './deletion.ts'

/** Takes what is left uploading past its lease, and deletes all objects that are due. */
export async function sweepOrphans(context: SweepContext): Promise<Counts> {
  const counts: Counts = { orphans: 0, objects_deleted: 0, objects_forgotten: 0, rows_queued_again: 0 }
  if (context.dryRun) {
    const { rows } = await context.pool.query<{ orphans: number; due: number; settled: number }>(
      `select count(*) filter (where state = 'uploading' and lease_until < now())::int as orphans,
              count(*) filter (where state = 'deleting' and delete_after <= now() and first_deleted_at is null)::int as due,
              count(*) filter (where state = 'deleting' and delete_after <= now() and first_deleted_at is not null)::int as settled
         from lighter.objects where state in ('uploading', 'deleting')`,
    )
    counts.orphans = rows[0]?.orphans ?? 0
    counts.objects_deleted = (rows[0]?.due ?? 0) + counts.orphans
    counts.objects_forgotten = rows[0]?.settled ?? 0
    return counts
  }
  while (!context.signal.aborted) {
    const taken = await takeOrphans(context)
    counts.orphans = (counts.orphans ?? 0) + taken
    context.onProgress(counts)
    if (taken < context.config.batchSize) break
  }
  await deleteDueObjects(context, counts)
  if (!context.signal.aborted) await queueReturnedRows(context, counts)
  return counts
}

/**
 * In a transaction of its own, before anything is deleted: whoever comes late to commit such an object finds it
 * taken, and fails. What a commit has locked at this moment is skipped: it is no orphan.
 */
async function takeOrphans({ pool, config }: SweepContext): Promise<number> {
  const { rowCount } = await pool.query(
    `with orphans as (
       select tenant_id, r2_key from lighter.objects
        where state = 'uploading' and lease_until < now() and ${seesAllRowsSql}
        order by lease_until
        limit $1
          for update skip locked
     )
     update lighter.objects o
        set state = 'deleting', delete_after = now() + $2 * interval '1 ms', lease_until = null
       from orphans d
      where o.tenant_id = d.tenant_id and o.r2_key = d.r2_key and o.state = 'uploading'`,
    [config.batchSize, config.deleteDelayMs],
  )
  return rowCount ?? 0
}

/**
 * Rows that were gone when their jobs ended, and are back, written by a transaction that had seen the job and added
 * none. Looked for when every transaction that may have seen it is over.
 */
async function queueReturnedRows(context: SweepContext, counts: Counts): Promise<void> {
  const { pool, config, log } = context
  await pool.query(
    'update lighter.gone_rows set marker = pg_snapshot_xmax(pg_current_snapshot()) where marker is null',
  )
  for (const source of (await loadSources(pool)).values()) {
    try {
      for (;;) {
        const { looked, queued } = await queueBatch(context, source)
        counts.rows_queued_again = (counts.rows_queued_again ?? 0) + queued
        if (looked < config.batchSize) break
      }
    } catch (error) {
      // One table that can't be read is no reason to leave the others.
      log.warn(
        { table: source.tableSql, error: messageOf(error) },
        'rows that came back can not be looked for',
      )
    }
  }
  await pool.query(
    `delete from lighter.gone_rows g
      where ${seesAllRowsSql} and not exists (select from lighter.sources s where s.id = g.source_id)`,
  )
}

async function queueBatch(
  { pool, config }: SweepContext,
  source: Source,
): Promise<{ looked: number; queued: number }> {
  const { rows } = await pool.query<{ looked: number; queued: number }>(
    `with over as (
       delete from lighter.gone_rows g
        where (g.source_id, g.row_id) in (
          select x.source_id, x.row_id from lighter.gone_rows x
           where x.source_id = $1 and (select lighter.require_all_rows(array[$1])) and x.marker <= pg_snapshot_xmin(pg_current_snapshot())
           limit $2 for update skip locked)
       returning g.row_id
     ),
     queued as (
       insert into lighter.jobs (source_id, row_id)
       select $1, o.row_id from over o
         join ${rowsSql(source)} m on m.${ident(source.keyColumn)} = o.row_id::${source.keyType}
           on conflict do nothing
       returning 1
     )
     select (select count(*)::int from over) as looked, (select count(*)::int from queued) as queued`,
    [source.id, config.batchSize],
  )
  return rows[0] ?? { looked: 0, queued: 0 }
}
