// Orphans: objects registered for an upload that was never committed. Postgres alone tells which; the bucket is
// listed only by the deep sweep.

import { seesAllRowsSql } from '../db/all-rows.ts'
import type { Counts, SweepContext } from './context.ts'
import { deleteDueObjects } from './deletion.ts'

/** Takes what is left uploading past its lease, and deletes all objects that are due. */
export async function sweepOrphans(context: SweepContext): Promise<Counts> {
  const counts: Counts = { orphans: 0, objects_deleted: 0, objects_forgotten: 0 }
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
