// Erasure on request (a customer leaves, a person asks to be forgotten): everything of a tenant, or of one of its
// entities, goes at once, bytes included, and a proof is left. The application's own rows are not touched.
import { isNamedSql } from '../catalogue/in-object.ts'
import type { Queryable } from '../db/pool.ts'
import { tenantPrefix } from '../store/keys.ts'
import type { Counts, SweepContext } from '../sweeps/context.ts'
import { deleteDueObjects } from '../sweeps/deletion.ts'
import { forgetScope, hastenDeletion, purgeScope, rewriteShared, takeObjects } from './artifacts.ts'
import { type Proof, proveErased } from './proof.ts'
import { removeJobs } from './queue.ts'
import { beginErasure, endErasure, noteErasure } from './record.ts'
import { type EraseScope, refuseIfOnHold } from './scope.ts'

/**
 * Interrupted anywhere, the next run goes on. The caller holds the lock of the sweep `compaction`: one that is under
 * way may be about to write erased bytes into a new pack.
 * @returns null when it was stopped before its end
 * @throws {LighterError} `legal_hold`: nothing was done; {OwnershipError} the bucket is another's, likewise
 */
export async function erase(
  context: SweepContext,
  scope: EraseScope,
): Promise<{ counts: Counts; proof: Proof | null }> {
  const { pool, signal } = context
  await refuseIfOnHold(pool, scope)
  await context.mayDelete()
  const erasure = await beginErasure(pool, scope)
  const counts = erasure.counts
  const steps = [
    () => removeJobs(context, scope, counts),
    () => purgeScope(context, scope, counts),
    () =>
      scope.entity === null ? takeObjects(context, scope, counts) : rewriteShared(context, scope, counts),
    () => hastenDeletion(context, scope, counts),
    () => deleteDueObjects(context, counts, scope.tenantId),
    () => forgetScope(context, scope, counts),
    async () => {
      if (scope.entity !== null) return
      await forgetTenant(context, scope, counts)
      await deleteUnknown(context, scope, counts)
    },
  ]
  for (const step of steps) {
    await step()
    await noteErasure(pool, erasure.id, counts)
    if (signal.aborted) return { counts, proof: null }
  }
  const proof = await proveErased(context, scope, erasure.startedAt)
  await endErasure(pool, erasure.id, counts, proof)
  return { counts, proof }
}

/** What is kept of a tenant beside its artifacts. */
async function forgetTenant({ pool, config }: SweepContext, { tenantId }: EraseScope, counts: Counts) {
  for (;;) {
    const { rowCount } = await pool.query(
      `delete from lighter.idempotency_keys
        where (tenant_id, key) in (select tenant_id, key from lighter.idempotency_keys where tenant_id = $1 limit $2)`,
      [tenantId, config.batchSize],
    )
    counts.idempotency_keys = (counts.idempotency_keys ?? 0) + (rowCount ?? 0)
    if ((rowCount ?? 0) < config.batchSize) break
  }
  counts.settings = (counts.settings ?? 0) + (await removeSettings(pool, tenantId))
}

async function removeSettings(db: Queryable, tenantId: string): Promise<number> {
  const { rows } = await db.query<{ n: number }>({
    text: `with cursors as (delete from lighter.sweep_cursors where scope = $1::uuid::text returning 1),
                pins as (delete from lighter.pins where tenant_id = $1 returning 1),
                backfills as (delete from lighter.backfills where tenant_id = $1 returning 1),
                moved as (delete from lighter.moved_row_records where $1 in (tenant_id, artifact_tenant_id) returning 1)
           select (lighter.forget_tenant($1) + (select count(*) from cursors) + (select count(*) from pins)
                   + (select count(*) from backfills) + (select count(*) from moved))::int as n`,
    values: [tenantId],
  })
  return rows[0]?.n ?? 0
}

/**
 * What lies under the tenant's prefix and is not on record: written after the backup was taken from which this
 * database was restored, say. It goes on record, and then the way of all objects.
 */
async function deleteUnknown(context: SweepContext, { tenantId }: EraseScope, counts: Counts): Promise<void> {
  const { pool, store, config, signal } = context
  const register = async (keys: string[]) => {
    const { rowCount } = await pool.query(
      `insert into lighter.objects (tenant_id, r2_key, kind, state, content_type, artifact_count, delete_after)
       select $1, k.key, 'unknown', 'deleting', 'application/octet-stream', 1, now()
         from unnest($2::text[]) k(key)
        where not ${isNamedSql('$1', 'k.key')}
           on conflict (tenant_id, r2_key) do nothing`,
      [tenantId, keys],
    )
    counts.objects_unknown = (counts.objects_unknown ?? 0) + (rowCount ?? 0)
    context.onProgress(counts)
  }
  let keys: string[] = []
  for await (const { key } of store.list(tenantPrefix(store.prefix, tenantId))) {
    if (signal.aborted) return
    keys.push(key)
    if (keys.length < config.batchSize) continue
    await register(keys)
    keys = []
  }
  await register(keys)
  await deleteDueObjects(context, counts, tenantId)
}
