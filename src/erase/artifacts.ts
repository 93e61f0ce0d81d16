// Artifacts of the scope, from readable to gone, and the objects that hold them. Each step works in batches and can
// be run again: an artifact keeps its row until its object is on its way out, so that none is lost sight of.
import { setTimeout } from 'node:timers/promises'
import { changeArtifacts, dueSql, erased, sumOf, type Together } from '../catalogue/change.ts'
import { isKeptSql } from '../catalogue/in-object.ts'
import { seesAllRowsSql } from '../db/all-rows.ts'
import { inTransactionWithRetry, type Queryable } from '../db/pool.ts'
import { LighterError, messageOf } from '../errors.ts'
import type { TenantId } from '../ids.ts'
import { isTenantKeySql } from '../store/keys.ts'
import type { Counts, SweepContext } from '../sweeps/context.ts'
import { createPace } from '../sweeps/pace.ts'
import { countLive, forgetFrames, forgetSql, objectsOf, onHoldSql } from '../sweeps/purge.ts'
import { type OldObject, rewriteObjects } from '../sweeps/rewrite.ts'
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
    const { rows } = await db.query<{ due: Together[]; last: string | null }>({
      text: `
        with due as (
          select a.tenant_id, a.frame_id, a.ordinal, a.r2_key
            from public.artifact_refs a
           where ${where.sql} and a.purged_at is null and a.r2_key >= $${where.next}
             and ${isTenantKeySql(`$${where.next + 1}::text`, 'a.tenant_id', 'a.r2_key')} and not ${onHoldSql}
           order by a.r2_key
           limit $${where.next + 2}
        )
        select ${dueSql} as due, (select max(r2_key) from due) as last`,
      values: [...where.values, after, store.prefix, config.batchSize],
    })
    const { due = [], last = null } = rows[0] ?? {}
    const gone = await changeArtifacts(db, due, erased, 'wait')
    const { n, bytes } = sumOf(gone)
    if (n > 0) await countLive(db, await objectsOf(db, gone), 0)
    return { purged: n, bytes, last }
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
      return { taken: await takeUnused(db, scope.tenantId, keys), last: keys.at(-1) ?? null }
    })
    counts.objects_taken = (counts.objects_taken ?? 0) + taken
    context.onProgress(counts)
    if (last === null) return
    after = last
  }
}

/** Of these objects, whose locks we hold, those that no artifact keeps. */
async function takeUnused(db: Queryable, tenantId: TenantId, keys: string[]): Promise<number> {
  const { rowCount } = await db.query({
    text: `update lighter.objects o
              set state = 'deleting', delete_after = now(), lease_until = null, live_artifacts = 0, live_bytes = 0
            where o.tenant_id = $1 and o.r2_key = any ($2::text[]) and o.state in ('uploading', 'stored')
              and ${seesAllRowsSql}
              and not ${isKeptSql('o')}`,
    values: [tenantId, keys],
  })
  return rowCount ?? 0
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
      const taken = await takeIfUnused(context, old)
      if (taken === 0) await rewriteOne(context, old, counts)
      else counts.objects_taken = (counts.objects_taken ?? 0) + taken
      context.onProgress(counts)
    }
    const last = shared.at(-1)
    if (last === undefined) return
    after = last.key
  }
}

/** A pack of which somebody deleted every artifact, which no sweep has noticed yet: there is nothing to write anew. */
async function takeIfUnused({ pool }: SweepContext, { tenantId, key }: OldObject): Promise<number> {
  return inTransactionWithRetry(pool, async db => {
    await db.query('select from lighter.objects where tenant_id = $1 and r2_key = $2 for update', [
      tenantId,
      key,
    ])
    return takeUnused(db, tenantId, [key])
  })
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

/**
 * SQL: frame `f` has bytes of the entity that are no artifact, and were never one, or that somebody deleted. Values as
 * `inScope` has them.
 */
const voidOfEntitySql = `f.tenant_id = $1 and f.entity_type = $2 and f.entities @> array[$3::uuid]
  and exists (select from unnest(f.entity_places, f.places) with ordinality p(entity, place, n)
               where f.entities[p.entity] = $3::uuid and p.place >= 0 and (p.n - 1)::smallint = any (f.voids))`

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
        and (o.r2_key in (select a.r2_key from public.artifact_refs a
                           where ${where.sql} and a.purged_at is not null and (a.ordinal is null or a.frame_offset is not null))
             ${scope.entity === null ? '' : `or o.r2_key in (select f.r2_key from lighter.frames f where ${voidOfEntitySql})`})
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
    and (${
      scope.entity === null
        ? 'true'
        : `exists (select from public.artifact_refs a
                    where ${where.sql}
                      and (a.r2_key = o.r2_key
                           or (a.kind = o.kind or a.kind = any (o.other_kinds)) and coalesce(o.stored_at, o.created_at) > a.created_at - interval '${clockSkew}'))
           -- Also by what is no artifact (any more): its frame names it.
           or exists (select from lighter.frames f
                       where f.tenant_id = $1 and f.entity_type = $2 and f.entities @> array[$3::uuid]
                         and (f.r2_key = o.r2_key
                              or (f.kind = o.kind or f.kind = any (o.other_kinds)) and coalesce(o.stored_at, o.created_at) > f.created_at - interval '${clockSkew}'))`
    })`
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
      `with due as materialized (
         select a.tenant_id, a.id, a.frame_id, a.ordinal, a.r2_key
           from public.artifact_refs a
          where ${where.sql} and a.purged_at is not null and a.r2_key >= $${where.next}
            and ${isTenantKeySql(`$${where.next + 2}::text`, 'a.tenant_id', 'a.r2_key')} and ${seesAllRowsSql}
            and (a.ordinal is not null and a.frame_offset is null
                 or not exists (select from lighter.objects o
                                 where o.tenant_id = a.tenant_id and o.r2_key = a.r2_key and o.state = 'stored'))
          order by a.r2_key
          limit $${where.next + 1}
       ),
       keys as (
         delete from lighter.idempotency_keys k using due
          where k.tenant_id = due.tenant_id and k.artifact_id = due.id
         returning 1
       ),
       gone as materialized (select ${forgetSql} as n)
       select (select n from gone) as n, (select count(*)::int from keys) as keys,
              (select max(r2_key) from due) as last`,
      [...where.values, after, config.batchSize, store.prefix],
    )
    const [batch] = rows
    counts.artifacts_erased = (counts.artifacts_erased ?? 0) + (batch?.n ?? 0)
    counts.idempotency_keys = (counts.idempotency_keys ?? 0) + (batch?.keys ?? 0)
    context.onProgress(counts)
    if (batch === undefined || batch.last === null) break
    after = batch.last
    await pace(batch.n)
  }
  if (scope.entity !== null) await forgetVoids(context, scope)
  await forgetFrames(context, scope.tenantId)
}

/** What is known of bytes of the entity that were in packs and no artifacts. */
async function forgetVoids({ pool, config, signal }: SweepContext, scope: EraseScope): Promise<void> {
  const where = inScope(scope)
  while (!signal.aborted) {
    const { rows } = await pool.query<{ n: number }>(
      `with due as materialized (
         select f.tenant_id, f.id as frame_id, (p.n - 1)::smallint as ordinal
           from lighter.frames f
          cross join lateral unnest(f.entity_places, f.places) with ordinality p(entity, place, n)
          where f.tenant_id = $1 and f.entity_type = $2 and f.entities @> array[$3::uuid]
            and f.entities[p.entity] = $3::uuid and (p.n - 1)::smallint = any (f.voids) and ${seesAllRowsSql}
            and (p.place = -1
                 or not exists (select from lighter.objects o
                                 where o.tenant_id = f.tenant_id and o.r2_key = f.r2_key and o.state <> 'deleting'))
          limit $${where.next}
       )
       select (select count(*)::int from due) as n, ${forgetSql} as forgotten`,
      [...where.values, config.batchSize],
    )
    if ((rows[0]?.n ?? 0) < config.batchSize) return
  }
}
