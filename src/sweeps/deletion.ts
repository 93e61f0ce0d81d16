// Objects on their way out. An object leaves in two passes: it is deleted, and, when every request for it that may
// still be under way has ended, deleted again; only then its row goes. So a PUT that timed out and lands late, or a
// delete whose answer was lost, leaves nothing behind that is not on record.
import { isKeptSql } from '../catalogue/in-object.ts'
import { seesAllRowsSql } from '../db/all-rows.ts'
import { DeleteError, StoreError } from '../errors.ts'
import type { TenantId } from '../ids.ts'
import { isTenantKeySql } from '../store/keys.ts'
import type { Counts, SweepContext } from './context.ts'

interface Doomed {
  tenantId: string
  key: string
  uploadId: string | null
  /** Deleted before, and long enough ago. */
  settled: boolean
}

/** S3's limit for one DeleteObjects. */
const batchObjects = 1000

/** Deletes what is due in lighter.objects, of all tenants or of one, batch by batch. */
export async function deleteDueObjects(
  context: SweepContext,
  counts: Counts,
  tenantId: TenantId | null = null,
): Promise<void> {
  while (!context.signal.aborted) {
    const doomed = await dueObjects(context, tenantId)
    if (doomed.length === 0) return
    await context.mayDelete()
    for (const { key, uploadId } of doomed) {
      if (uploadId !== null) await abort(context, key, uploadId)
    }
    const kept = await deleteAll(context, doomed)
    const deleted = doomed.filter(d => !kept.has(d.key))
    await recordDeleted(context, deleted)
    await postpone(
      context,
      doomed.filter(d => kept.has(d.key)),
    )
    if (kept.size > 0) counts.objects_not_deleted = (counts.objects_not_deleted ?? 0) + kept.size
    const gone = deleted.filter(d => d.settled).length
    counts.objects_deleted = (counts.objects_deleted ?? 0) + deleted.length - gone
    counts.objects_forgotten = (counts.objects_forgotten ?? 0) + gone
    context.onProgress(counts)
  }
}

async function dueObjects(
  { pool, config, store }: SweepContext,
  tenantId: TenantId | null,
): Promise<Doomed[]> {
  const { rows } = await pool.query<Doomed>(
    `select tenant_id as "tenantId", r2_key as key, upload_id as "uploadId", first_deleted_at is not null as settled
       from lighter.objects o
      where state = 'deleting' and delete_after <= now() ${tenantId === null ? '' : 'and tenant_id = $3'}
        -- Nothing outside the tenant's prefix, whatever a row of the application says.
        and ${isTenantKeySql('$2::text', 'o.tenant_id', 'o.r2_key')}
        -- The last line of defence: whatever went wrong before, what somebody can read is not deleted.
        and ${seesAllRowsSql}
        and not ${isKeptSql('o')}
      order by delete_after
      limit $1`,
    [Math.min(batchObjects, config.batchSize), store.prefix, ...(tenantId === null ? [] : [tenantId])],
  )
  return rows
}

/** @returns the keys that the store keeps, because of a lock on them, say: they must not hold up all others */
async function deleteAll({ store, log }: SweepContext, doomed: Doomed[]): Promise<Set<string>> {
  try {
    await store.delete(doomed.map(d => d.key))
    return new Set()
  } catch (error) {
    if (!(error instanceof DeleteError)) throw error
    log.warn({ objects: error.failedKeys.length, error: error.message }, 'objects can not be deleted')
    return new Set(error.failedKeys)
  }
}

/** Tried again in an hour. */
async function postpone({ pool }: SweepContext, kept: Doomed[]): Promise<void> {
  if (kept.length === 0) return
  await pool.query(
    `update lighter.objects o set delete_after = now() + interval '1 hour'
       from unnest($1::uuid[], $2::text[]) k(tenant_id, r2_key)
      where o.tenant_id = k.tenant_id and o.r2_key = k.r2_key and o.state = 'deleting'`,
    [kept.map(k => k.tenantId), kept.map(k => k.key)],
  )
}

async function recordDeleted({ pool, config }: SweepContext, doomed: Doomed[]): Promise<void> {
  await pool.query(
    `with deleted as (
       select * from unnest($1::uuid[], $2::text[], $3::bool[]) d(tenant_id, r2_key, settled)
     ),
     forgotten as (
       delete from lighter.objects o using deleted d
        where o.tenant_id = d.tenant_id and o.r2_key = d.r2_key and o.state = 'deleting' and d.settled
     )
     update lighter.objects o
        set first_deleted_at = now(), upload_id = null, delete_after = now() + $4 * interval '1 ms'
       from deleted d
      where o.tenant_id = d.tenant_id and o.r2_key = d.r2_key and o.state = 'deleting' and not d.settled`,
    [doomed.map(d => d.tenantId), doomed.map(d => d.key), doomed.map(d => d.settled), config.settleMs],
  )
}

/** An upload that is not there any more was completed, or aborted before. */
async function abort({ store }: SweepContext, key: string, uploadId: string): Promise<void> {
  try {
    await store.abortMultipart(key, uploadId)
  } catch (error) {
    if (!(error instanceof StoreError && error.code === 'object_not_found')) throw error
  }
}
