// Compaction: objects are written anew from what is alive in them. Packs of which too little is alive, or of which
// something has been dead for too long, so that deleted bytes really leave the bucket; and the small objects of one
// tenant, kind and day, folded into larger packs.
//
// Readers are never broken: the new place of the artifacts is committed first, and the old object stays for longer
// than the longest read.
import { defaultFetchOptions, fetchPayloads } from '../artifacts/fetch.ts'
import type { Artifact } from '../catalogue/lookup.ts'
import { maxPayloadBytes, type PackConfig } from '../config.ts'
import { seesAllRowsSql } from '../db/all-rows.ts'
import { inTransactionWithRetry } from '../db/pool.ts'
import { LighterError, messageOf } from '../errors.ts'
import { type ArtifactId, asTenantId, type TenantId } from '../ids.ts'
import { type BuiltObject, buildObjects, type PackItem } from '../offload/pack.ts'
import { registerObjects } from '../offload/register.ts'
import type { Counts, SweepContext } from './context.ts'
import { deleteDueObjects } from './deletion.ts'
import { createPace } from './pace.ts'

export interface OldObject {
  tenantId: TenantId
  key: string
  kind: string
  /** Of the artifacts alive in it, uncompressed. */
  liveBytes: number
  byteLength: number
}

/** Fewer small objects of one tenant, kind and day are not worth a PUT. */
const foldAtLeast = 8
/** An object is small if this many of it would fit into one pack. */
const smallFraction = 8
/** How far back days are looked at for objects to fold; what was not folded by then never is. */
const foldDays = 3
/** Longest time that a presigned URL of the store may be valid. */
const presignedMs = 7 * 86_400_000

export async function sweepCompaction(context: SweepContext): Promise<Counts> {
  const pack = context.offload
  const counts: Counts = {
    objects_rewritten: 0,
    objects_folded: 0,
    objects_written: 0,
    artifacts_moved: 0,
    bytes_freed: 0,
  }
  const pace = createPace(context.config.rate, context.signal)
  const work = async (old: OldObject[], count: string) => {
    if (context.dryRun) {
      counts[count] = (counts[count] ?? 0) + old.length
      return
    }
    try {
      const { rewritten, moved, written, writtenBytes } = await rewriteObjects(context, old)
      counts[count] = (counts[count] ?? 0) + rewritten.length
      const left = old.length - rewritten.length
      if (left > 0) counts.failed = (counts.failed ?? 0) + left
      counts.artifacts_moved = (counts.artifacts_moved ?? 0) + moved
      counts.objects_written = (counts.objects_written ?? 0) + written
      const bytes = rewritten.reduce((sum, o) => sum + o.byteLength, 0)
      counts.bytes_freed = (counts.bytes_freed ?? 0) + bytes - writtenBytes
      await pace(moved)
    } catch (error) {
      // One damaged object must not keep all others from being compacted; the verify sweep reports what it is.
      if (!(error instanceof LighterError) || error.retryable) throw error
      counts.failed = (counts.failed ?? 0) + old.length
      context.log.warn(
        { objects: old.map(o => o.key), error: messageOf(error) },
        'an object can not be compacted',
      )
    }
    context.onProgress(counts)
  }

  let after: OldObject | null = null
  while (!context.signal.aborted) {
    const due = await halfDead(context, after)
    for (const old of due) {
      if (context.signal.aborted) break
      await work([old], 'objects_rewritten')
    }
    after = due.at(-1) ?? null
    if (after === null) break
  }
  if (pack.packing) {
    for await (const group of smallObjects(context, pack)) {
      if (context.signal.aborted) break
      await work(group, 'objects_folded')
    }
  }
  if (!context.dryRun) await deleteDueObjects(context, counts)
  return counts
}

/** Packs of which something is dead: too much, or for too long. */
async function halfDead({ pool, config }: SweepContext, after: OldObject | null): Promise<OldObject[]> {
  const { rows } = await pool.query<OldObject>(
    `select o.tenant_id as "tenantId", o.r2_key as key, o.kind, coalesce(o.live_bytes, 0)::float8 as "liveBytes",
            coalesce(o.byte_length, 0)::float8 as "byteLength"
       from lighter.objects o
      where o.state = 'stored' and o.dead_since is not null and o.live_artifacts > 0
        and (o.tenant_id, o.r2_key) > ($1, $2)
        and (o.dead_since < now() - make_interval(days => $3)
             or o.live_bytes < $4::float8 * coalesce(o.payload_bytes,
                  (select sum(a.size_bytes) from public.artifact_refs a
                    where a.tenant_id = o.tenant_id and a.r2_key = o.r2_key)))
      order by o.tenant_id, o.r2_key
      limit $5`,
    [
      after?.tenantId ?? '00000000-0000-0000-0000-000000000000',
      after?.key ?? '',
      // The old object then stays for the grace period.
      Math.max(0, config.erasureDays - config.graceDays),
      config.compactLiveShare,
      config.batchSize,
    ],
  )
  return rows
}

/** Groups of small objects that fit into one pack together. Only what came off rows: others may hold several lines. */
async function* smallObjects({ pool, config }: SweepContext, pack: PackConfig): AsyncGenerator<OldObject[]> {
  const { rows } = await pool.query<OldObject & { day: string }>(
    `with small as (
       select o.tenant_id, o.r2_key, o.kind, (o.stored_at at time zone 'UTC')::date as day, o.stored_at,
              coalesce(o.live_bytes, o.payload_bytes)::float8 as live_bytes, o.byte_length::float8 as byte_length,
              count(*) over (partition by o.tenant_id, o.kind, (o.stored_at at time zone 'UTC')::date) as siblings
         from lighter.objects o
        where o.state = 'stored'
          and o.stored_at > now() - make_interval(days => $1) and o.stored_at < now() - interval '1 hour'
          and o.payload_bytes < $2 and o.artifact_count < $3
          and not exists (select from public.artifact_refs a
                           where a.tenant_id = o.tenant_id and a.r2_key = o.r2_key and a.source_id is null)
     )
     select s.tenant_id as "tenantId", s.r2_key as key, s.kind, s.day::text, s.live_bytes as "liveBytes",
            s.byte_length as "byteLength"
       from small s
      where s.siblings >= $4
      order by s.tenant_id, s.kind, s.day, s.stored_at
      limit $5`,
    [
      foldDays,
      Math.floor(pack.maxPackBytes / smallFraction),
      Math.max(Math.floor(pack.maxPackArtifacts / smallFraction), 2),
      foldAtLeast,
      Math.max(config.batchSize, foldAtLeast) * 100,
    ],
  )
  // Of a batch that is smaller than what is worth folding nothing would ever be.
  const most = Math.max(config.batchSize, foldAtLeast)
  let group: OldObject[] = []
  let bytes = 0
  let name = ''
  for (const row of rows) {
    const itsName = `${row.tenantId} ${row.kind} ${row.day}`
    if (itsName !== name || bytes + row.liveBytes > pack.maxPackBytes || group.length >= most) {
      if (group.length >= foldAtLeast) yield group
      group = []
      bytes = 0
      name = itsName
    }
    group.push(row)
    bytes += row.liveBytes
  }
  if (group.length >= foldAtLeast) yield group
}

/**
 * Reads what is alive in the objects, writes it into new ones, and moves the artifacts there. Only one process may do
 * so at a time, the one that has the lock of the sweep `compaction`.
 *
 * Of many objects those in which something can't be read are left as they are, as long as enough others are together.
 * @throws {LighterError} one of the artifacts can't be read: then nothing was moved
 */
export async function rewriteObjects(
  context: SweepContext,
  objects: OldObject[],
): Promise<{ rewritten: OldObject[]; moved: number; written: number; writtenBytes: number }> {
  const { pool, store, offload } = context
  const found = await liveArtifacts(context, objects)
  const payloads = await fetchPayloads(store, found.map(readable), {
    ...defaultFetchOptions,
    // What a pack can hold; rows of others may say that there is any amount in it.
    budget: { bytes: Math.max(2 * offload.maxPackBytes, maxPayloadBytes) },
  })
  const byId = new Map([...payloads].map(([artifact, payload]) => [artifact.id, payload]))
  const damaged = new Set<string>()
  for (const { id, key } of found) {
    const payload = byId.get(id)
    if (!(payload instanceof LighterError)) continue
    damaged.add(key)
    if (payload.retryable || objects.length - damaged.size < foldAtLeast) throw payload
  }
  const old = objects.filter(o => !damaged.has(o.key))
  const artifacts = found.filter(a => !damaged.has(a.key))
  const items: PackItem[] = artifacts.map(artifact => {
    const payload = byId.get(artifact.id)
    if (payload instanceof LighterError || payload === undefined)
      throw new Error(`artifact ${artifact.id} was not read`)
    return { tenantId: artifact.tenantId, kind: artifact.kind, artifactId: artifact.id, bytes: payload }
  })
  const built = await buildObjects(items, { ...offload, packing: true }, store.prefix, new Date())
  await registerObjects(
    pool,
    built.map(o => ({
      ...o,
      artifactCount: o.locations.size,
      byteLength: o.body.length,
      payloadBytes: [...o.locations.values()].reduce((sum, l) => sum + l.sizeBytes, 0),
    })),
    offload.leaseMs,
  )
  for (const object of built) {
    await store.put(object.key, object.body, {
      contentType: object.contentType,
      contentEncoding: object.contentEncoding ?? undefined,
    })
  }
  const moved = await move(context, old, built, new Map(artifacts.map(a => [a.id, a])))
  return {
    rewritten: old,
    moved,
    written: built.length,
    writtenBytes: built.reduce((sum, o) => sum + o.body.length, 0),
  }
}

/** Tombstoned ones are moved too, as long as they could be brought back; their bytes are read all the same. */
const readable = (artifact: Artifact): Artifact => ({ ...artifact, deletedAt: null })

async function liveArtifacts({ pool }: SweepContext, old: OldObject[]): Promise<Artifact[]> {
  const { rows } = await pool.query<Artifact>(
    `select a.id, a.tenant_id as "tenantId", a.kind, a.r2_key as key, a.content_type as "contentType",
            a.size_bytes::float8 as "sizeBytes", a.sha256, a.byte_offset::float8 as "byteOffset",
            a.byte_length::float8 as "byteLength", a.frame_offset::float8 as "frameOffset",
            a.content_encoding as "contentEncoding", a.deleted_at as "deletedAt", a.source_id is not null as "fromRow"
       from public.artifact_refs a
       join unnest($1::uuid[], $2::text[]) o(tenant_id, r2_key) using (tenant_id, r2_key)
      where a.purged_at is null
      order by a.created_at, a.id`,
    [old.map(o => o.tenantId), old.map(o => o.key)],
  )
  return rows.map(row => ({ ...row, tenantId: asTenantId(row.tenantId) }))
}

/**
 * One transaction: artifacts that still are where they were get their new place, the new objects are stored, the old
 * ones on their way out, not before every reader that knows them is done.
 */
async function move(
  context: SweepContext,
  old: OldObject[],
  built: BuiltObject[],
  from: Map<ArtifactId, Artifact>,
): Promise<number> {
  const { pool, config } = context
  // Also for who restores the database to a moment within the grace period, which has the artifacts where they were.
  const keptMs = Math.max(config.readerGraceMs, config.graceDays * 86_400_000)
  const moves = built.flatMap(o =>
    [...o.locations].map(([id, location]) => ({ id, location, was: from.get(id) })),
  )
  return inTransactionWithRetry(pool, async db => {
    // Old and new in one order, as the purge takes them.
    await db.query({
      text: `select from lighter.objects o
               join unnest($1::uuid[], $2::text[]) k(tenant_id, r2_key) using (tenant_id, r2_key)
              order by o.tenant_id, o.r2_key for update of o`,
      values: [[...old, ...built].map(o => o.tenantId), [...old, ...built].map(o => o.key)],
    })
    const { rows: moved } = await db.query<{ key: string; n: number; bytes: number }>({
      text: `
        with moved as (
          update public.artifact_refs a
             set r2_key = n.r2_key, byte_offset = n.byte_offset, byte_length = n.byte_length,
                 frame_offset = n.frame_offset, content_encoding = n.content_encoding
            from unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[], $9::text[])
                   as n(tenant_id, id, old_key, old_offset, r2_key, byte_offset, byte_length, frame_offset, content_encoding)
           where a.tenant_id = n.tenant_id and a.id = n.id
             and a.r2_key = n.old_key and a.byte_offset is not distinct from n.old_offset and a.purged_at is null
          returning a.r2_key, a.size_bytes
        )
        select r2_key as key, count(*)::int as n, sum(size_bytes)::float8 as bytes from moved group by r2_key`,
      values: [
        moves.map(m => m.was?.tenantId),
        moves.map(m => m.id),
        moves.map(m => m.was?.key),
        moves.map(m => m.was?.byteOffset),
        moves.map(m => m.location.key),
        moves.map(m => m.location.byteOffset),
        moves.map(m => m.location.byteLength),
        moves.map(m => m.location.frameOffset),
        moves.map(m => m.location.contentEncoding),
      ],
    })
    const movedInto = new Map(moved.map(m => [m.key, m]))
    const { rowCount: stored } = await db.query({
      text: `
        update lighter.objects o
           -- One whose artifacts have all gone meanwhile was written for nothing.
           set state = case when n.live = 0 then 'deleting' else 'stored' end,
               delete_after = case when n.live = 0 then now() + $5 * interval '1 ms' end,
               stored_at = now(), lease_until = null,
               live_artifacts = case when n.live < o.artifact_count then n.live end,
               live_bytes = case when n.live < o.artifact_count then n.bytes end,
               dead_since = case when n.live < o.artifact_count then now() end
          from unnest($1::uuid[], $2::text[], $3::int[], $4::bigint[]) n(tenant_id, r2_key, live, bytes)
         where o.tenant_id = n.tenant_id and o.r2_key = n.r2_key and o.state = 'uploading'`,
      values: [
        built.map(o => o.tenantId),
        built.map(o => o.key),
        built.map(o => movedInto.get(o.key)?.n ?? 0),
        built.map(o => movedInto.get(o.key)?.bytes ?? 0),
        config.deleteDelayMs,
      ],
    })
    if (stored !== built.length) {
      throw new LighterError('object_swept', 'a rewritten object was taken for an orphan before its commit', {
        retryable: true,
      })
    }
    await db.query({
      text: `
        update lighter.objects o
           set state = 'deleting', live_artifacts = 0, live_bytes = 0,
               -- A presigned URL of a plain object may be valid for a week.
               delete_after = now() + interval '1 ms'
                 * case when o.content_encoding is null and o.artifact_count = 1 then $4::float8 else $3::float8 end
          from unnest($1::uuid[], $2::text[]) k(tenant_id, r2_key)
         where o.tenant_id = k.tenant_id and o.r2_key = k.r2_key and o.state = 'stored' and ${seesAllRowsSql}
           and not exists (select from public.artifact_refs a
                            where a.tenant_id = o.tenant_id and a.r2_key = o.r2_key and a.purged_at is null)`,
      values: [old.map(o => o.tenantId), old.map(o => o.key), keptMs, Math.max(keptMs, presignedMs)],
    })
    return moved.reduce((sum, m) => sum + m.n, 0)
  })
}
