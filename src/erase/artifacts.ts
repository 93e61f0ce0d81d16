// Artifacts of the scope, from readable to gone, and the objects that hold them. Each step works in batches and can
// be run again: an artifact keeps its row until its object is on its way out, so that none is lost sight of.
import { setTimeout } from 'node:timers/promises'
import { seesAllRowsSql } from '../db/all-rows.ts'
import { inTransactionWithRetry } from '../db/pool.ts'
import { LighterError, messageOf } from '../errors.ts'
import { isTenantKeySql } from '../store/keys.ts'
import { type OldObject, rewriteObjects } from '../sweeps/compaction.ts'
import type { Counts, SweepContext } from '../sweeps/context.ts'
import { createPace } from '../sweeps/pace.ts'
import { countLive, onHoldSql } from '../sweeps/purge.ts'
import { type EraseScope, inScope, refuseIfOnHold } from './scope.ts'

/**
 * Makes all of the scope's artifacts unreadable at once, without a period of grace; objects in which nothing else is
 * alive are on their way out. What lies outside the tenant's prefix is not ours to delete, and is left as it is.
 * @throws {LighterError} `legal_hold`: one was put on meanwhile
 */
export async function purgeScope(context: SweepContext, scope: EraseScope, counts: Counts): Promise<void> {
  const { config, signal } = context
  const pace = createPace(config.rate, signal)
  // In the order of their objects, from where the last batch ended: what was purged is not looked at again.
  for (let after = ''; !signal.aborted; ) {
    const { purged, bytes, last } = await purgeBatch(context, scope, after)
    counts.artifacts_purged = (counts.artifacts_purged ?? 0) + purged
    counts.payload_bytes = (counts.payload_bytes ?? 0) + bytes
    context.onProgress(counts)
    if (last === null) return
    after = last
    await pace(purged)
  }
}

async function purgeBatch(
  { pool, config, store }: SweepContext,
  scope: EraseScope,
  after: string,
): Promise<{ purged: number; bytes: number; last: string | null }> {
  const where = inScope(scope)
  return inTransactionWithRetry(pool, async db => {
    await refuseIfOnHold(db, scope)
    const { rows: purged } = await db.query<{ tenantId: string; key: string; bytes: number; last: string }>({
      text: `
        with due as (
          select a.tenant_id, a.id, a.r2_key
            from public.artifact_refs a
           where ${where.sql} and a.purged_at is null and a.r2_key >= $${where.next}
             and ${isTenantKeySql(`$${where.next + 1}::text`, 'a.tenant_id', 'a.r2_key')} and not ${onHoldSql}
           order by a.r2_key
           limit $${where.next + 2}
             for update of a
        )
        update public.artifact_refs a
           set purged_at = now(), deleted_at = coalesce(a.deleted_at, now()), deleted_reason = 'erased'
          from due
         where a.tenant_id = due.tenant_id and a.id = due.id
        returning a.tenant_id as "tenantId", a.r2_key as key, coalesce(a.size_bytes, 0)::float8 as bytes,
                  (select max(r2_key) from due) as last`,
      values: [...where.values, after, store.prefix, config.batchSize],
    })
    if (purged.length === 0) return { purged: 0, bytes: 0, last: null }
    await countLive(db, [...new Map(purged.map(p => [p.key, p])).values()], 0)
    return {
      purged: purged.length,
      bytes: purged.reduce((sum, p) => sum + p.bytes, 0),
      last: purged[0]?.last ?? null,
    }
  })
}

/**
 * Of a tenant: every object that no artifact keeps, also those that are being uploaded: their commit finds them taken,
 * and fails.
 */
export async function takeObjects(context: SweepContext, scope: EraseScope, counts: Counts): Promise<void> {
  const { pool, config, signal } = context
  for (let after = ''; !signal.aborted; ) {
    const { taken, last } = await inTransactionWithRetry(pool, async db => {
      // Locked first, judged in a second statement: only that one sees what a commit did that held the lock.
      const { rows } = await db.query<{ key: string }>({
        text: `select r2_key as key from lighter.objects
                where tenant_id = $1 and r2_key > $2 and state in ('uploading', 'stored')
                order by r2_key limit $3 for update`,
        values: [scope.tenantId, after, config.batchSize],
      })
      const keys = rows.map(row => row.key)
      const { rowCount } = await db.query({
        text: `update lighter.objects o
                  set state = 'deleting', delete_after = now(), lease_until = null, live_artifacts = 0, live_bytes = 0
                where o.tenant_id = $1 and o.r2_key = any ($2::text[]) and o.state in ('uploading', 'stored')
                  and ${seesAllRowsSql}
                  and not exists (select from public.artifact_refs a
                                   where a.tenant_id = o.tenant_id and a.r2_key = o.r2_key and a.purged_at is null)`,
        values: [scope.tenantId, keys],
      })
      return { taken: rowCount ?? 0, last: keys.at(-1) ?? null }
    })
    counts.objects_taken = (counts.objects_taken ?? 0) + taken
    context.onProgress(counts)
    if (last === null) return
    after = last
  }
}

/**
 * Of an entity: packs that hold something of it and something of others are written anew without it.
 * One that can't be, since what belongs to others in it is damaged, is left as it is, and counted.
 */
export async function rewriteShared(context: SweepContext, scope: EraseScope, counts: Counts): Promise<void> {
  for (let after = ''; !context.signal.aborted; ) {
    const shared = await nextShared(context, scope, after)
    for (const old of shared) {
      if (context.signal.aborted) return
      await rewriteOne(context, old, counts)
      context.onProgress(counts)
    }
    const last = shared.at(-1)
    if (last === undefined) return
    after = last.key
  }
}

async function rewriteOne(context: SweepContext, old: OldObject, counts: Counts): Promise<void> {
  try {
    const { moved } = await rewriteObjects(context, [old])
    counts.packs_rewritten = (counts.packs_rewritten ?? 0) + 1
    counts.artifacts_moved = (counts.artifacts_moved ?? 0) + moved
  } catch (error) {
    if (!(error instanceof LighterError) || error.retryable) throw error
    counts.packs_not_rewritten = (counts.packs_not_rewritten ?? 0) + 1
    context.log.warn({ object: old.key, error: messageOf(error) }, 'a pack can not be written anew')
  }
}

/** Stored objects with bytes of the scope in them, each once. */
async function nextShared(
  { pool, config }: SweepContext,
  scope: EraseScope,
  after: string,
): Promise<OldObject[]> {
  const where = inScope(scope)
  const { rows } = await pool.query<OldObject>(
    `select o.tenant_id as "tenantId", o.r2_key as key, o.kind, coalesce(o.live_bytes, 0)::float8 as "liveBytes",
            coalesce(o.byte_length, 0)::float8 as "byteLength"
       from lighter.objects o
      where o.tenant_id = $1 and o.state = 'stored' and o.r2_key > $${where.next}
        and o.r2_key in (select a.r2_key from public.artifact_refs a where ${where.sql} and a.purged_at is not null)
      order by o.r2_key
      limit $${where.next + 1}`,
    [...where.values, after, config.batchSize],
  )
  return rows
}

/**
 * A reader that looked a pack up just before it was written anew has this long to begin reading it; one that comes
 * later looks it up again (src/artifacts/fetch-current.ts), unless it has a URL.
 */
const readerMs = 5000

/** An artifact is committed with its object; between the two the database may have come to another machine's clock. */
const clockSkew = '1 hour'

/**
 * What is on its way out and may hold bytes of the scope goes now, though it would stay for its readers, and for who
 * restores the database to an earlier moment. Of an entity: packs that name it, and those out of which it may have
 * been moved before, of which nothing tells any more what was in them: of its kinds, and no older than it is. What
 * can't hold anything of it keeps its time. And uploads of which nothing was heard for too long.
 */
export async function hastenDeletion(
  context: SweepContext,
  scope: EraseScope,
  counts: Counts,
): Promise<void> {
  const { pool, signal } = context
  const where = inScope(scope)
  const staying = `o.tenant_id = $1 and o.state = 'deleting' and o.first_deleted_at is null and o.delete_after > now()
    and ${
      scope.entity === null
        ? 'true'
        : `exists (select from public.artifact_refs a
                    where ${where.sql}
                      and (a.r2_key = o.r2_key
                           or a.kind = o.kind and coalesce(o.stored_at, o.created_at) > a.created_at - interval '${clockSkew}'))`
    }`
  if (scope.entity !== null) {
    const { rowCount } = await pool.query(
      `select from lighter.objects o where ${staying} limit 1`,
      where.values,
    )
    if (rowCount !== 0) await setTimeout(readerMs, undefined, { signal }).catch(() => undefined)
  }
  const { rowCount } = await pool.query(
    `update lighter.objects o set delete_after = now() where ${staying}`,
    where.values,
  )
  counts.objects_hastened = (counts.objects_hastened ?? 0) + (rowCount ?? 0)
  await pool.query(
    `update lighter.objects o set state = 'deleting', delete_after = now(), lease_until = null
      where o.tenant_id = $1 and o.state = 'uploading' and o.lease_until < now()`,
    [scope.tenantId],
  )
}

/** Rows of artifacts whose object is on its way out, or gone; with what remembers them. */
export async function forgetScope(context: SweepContext, scope: EraseScope, counts: Counts): Promise<void> {
  const { pool, config, store, signal } = context
  const where = inScope(scope)
  const pace = createPace(config.rate, signal)
  for (let after = ''; !signal.aborted; ) {
    const { rows } = await pool.query<{ n: number; last: string | null; keys: number }>(
      `with due as (
         select a.tenant_id, a.id, a.r2_key
           from public.artifact_refs a
          where ${where.sql} and a.purged_at is not null and a.r2_key >= $${where.next}
            and ${isTenantKeySql(`$${where.next + 2}::text`, 'a.tenant_id', 'a.r2_key')} and ${seesAllRowsSql}
            and not exists (select from lighter.objects o
                             where o.tenant_id = a.tenant_id and o.r2_key = a.r2_key and o.state = 'stored')
          order by a.r2_key
          limit $${where.next + 1}
            for update of a
       ),
       keys as (
         delete from lighter.idempotency_keys k using due
          where k.tenant_id = due.tenant_id and k.artifact_id = due.id
         returning 1
       ),
       gone as (
         delete from public.artifact_refs a using due where a.tenant_id = due.tenant_id and a.id = due.id
         returning 1
       )
       select (select count(*)::int from gone) as n, (select count(*)::int from keys) as keys,
              (select max(r2_key) from due) as last`,
      [...where.values, after, config.batchSize, store.prefix],
    )
    const [batch] = rows
    counts.artifacts_erased = (counts.artifacts_erased ?? 0) + (batch?.n ?? 0)
    counts.idempotency_keys = (counts.idempotency_keys ?? 0) + (batch?.keys ?? 0)
    context.onProgress(counts)
    if (batch === undefined || batch.last === null) return
    after = batch.last
    await pace(batch.n)
  }
}
