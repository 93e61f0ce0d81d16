// Packs are written anew from what is alive in them: each frame keeps its id and its ordinals, so that no pointer changes.
import { defaultFetchOptions, fetchPayloads } from '../artifacts/fetch.ts'
import { isKeptSql } from '../catalogue/in-object.ts'
import type { Artifact } from '../catalogue/lookup.ts'
import { maxPayloadBytes, type PackConfig } from '../config.ts'
import { seesAllRowsSql } from '../db/all-rows.ts'
import { arrayText } from '../db/array-text.ts'
import { inTransactionWithRetry, type Queryable } from '../db/pool.ts'
import { LighterError } from '../errors.ts'
import { artifactInFrame, type FrameId, type TenantId } from '../ids.ts'
import { packKey } from '../offload/pack.ts'
import { registerObjects } from '../offload/register.ts'
import { encodingOf } from '../store/codec.ts'
import { encodePayloads } from '../store/pack-format.ts'
import type { SweepContext } from './context.ts'

export interface OldObject {
  tenantId: TenantId
  key: string
  kind: string
  /** Of the artifacts alive in it, uncompressed. */
  liveBytes: number
  byteLength: number
}

/** A frame where it is, of which something is alive. */
interface OldFrame {
  tenantId: TenantId
  id: FrameId
  kind: string
  key: string
  byteOffset: number
  byteLength: number
  contentEncoding: string | null
  sizes: number[]
  places: number[]
  /** One after the other, in hex. */
  hashes: string
  /** Ordinals that are purged, or no artifacts. */
  dead: number[]
}

/** A frame in its new pack. */
interface NewFrame {
  old: OldFrame
  bytes: Buffer
  places: number[]
  byteOffset: number
}

interface NewPack {
  tenantId: TenantId
  kind: string
  key: string
  frames: NewFrame[]
  bytes: number
}

/**
 * Reads what is alive in the packs, writes it into new ones, and moves the frames there. Only one process may do
 * so at a time, the one that has the lock of the sweep `compaction`.
 *
 * Of many packs those in which something can't be read are left as they are.
 * @param atLeast fewer are not worth it
 * @throws {LighterError} one of the artifacts can't be read: then nothing was moved
 */
export async function rewriteObjects(
  context: SweepContext,
  objects: OldObject[],
  atLeast = 1,
): Promise<{
  rewritten: OldObject[]
  left: Map<string, LighterError>
  moved: number
  written: number
  writtenBytes: number
}> {
  const { pool, store, offload } = context
  const found = await liveFrames(pool, objects)
  const artifacts = found.flatMap(artifactsOf)
  const payloads = await fetchPayloads(store, artifacts, {
    ...defaultFetchOptions,
    budget: { bytes: Math.max(2 * offload.maxPackBytes, maxPayloadBytes) },
  })
  const byId = new Map([...payloads].map(([artifact, payload]) => [artifact.id, payload]))
  const left = new Map<string, LighterError>()
  const leaveOut = (key: string, error: LighterError) => {
    left.set(key, error)
    if (error.retryable || objects.length - left.size < atLeast) throw error
  }
  for (const { key } of objects) {
    if (found.some(frame => frame.key === key)) continue
    leaveOut(key, new LighterError('object_not_a_pack', `${key} is no pack, or nothing is alive in it`))
  }
  for (const { id, key } of artifacts) {
    const payload = byId.get(id)
    if (payload instanceof LighterError) leaveOut(key, payload)
  }
  const old = objects.filter(o => !left.has(o.key))
  const packs = layOut(
    found
      .filter(frame => !left.has(frame.key))
      .map(frame =>
        encodeAgain(
          frame,
          artifactsOf(frame).map(({ id }) => {
            const payload = byId.get(id)
            if (payload instanceof LighterError || payload === undefined)
              throw new Error(`artifact ${id} was not read`)
            return payload
          }),
          offload,
        ),
      ),
    offload,
    store.prefix,
  )
  await registerObjects(
    pool,
    packs.map(pack => ({
      tenantId: pack.tenantId,
      kind: pack.kind,
      key: pack.key,
      contentType: 'application/x-ndjson',
      contentEncoding: null,
      artifactCount: pack.frames.reduce((sum, frame) => sum + aliveIn(frame.old).length, 0),
      byteLength: pack.bytes,
      payloadBytes: pack.frames.reduce((sum, frame) => sum + aliveBytes(frame.old), 0),
    })),
    offload.leaseMs,
  )
  for (const pack of packs) {
    await store.put(pack.key, Buffer.concat(pack.frames.map(frame => frame.bytes)), {
      contentType: 'application/x-ndjson',
    })
  }
  const moved = await move(context, old, packs)
  return {
    rewritten: old,
    left,
    moved,
    written: packs.length,
    writtenBytes: packs.reduce((sum, pack) => sum + pack.bytes, 0),
  }
}

async function liveFrames(db: Queryable, old: OldObject[]): Promise<OldFrame[]> {
  const { rows } = await db.query<OldFrame>({
    text: `
      select f.tenant_id as "tenantId", f.id, f.kind, f.r2_key as key, f.byte_offset::float8 as "byteOffset",
             f.byte_length::float8 as "byteLength", f.content_encoding as "contentEncoding", f.sizes, f.places,
             encode(f.hashes, 'hex') as hashes,
             array(select unnest(f.voids) union
                   select unnest(x.ordinals) from lighter.frame_exceptions x
                    where x.tenant_id = f.tenant_id and x.frame_id = f.id and x.purged_at is not null) as dead
        from lighter.frames f
        join unnest($1::uuid[], $2::text[]) o(tenant_id, r2_key) using (tenant_id, r2_key)
       where f.artifacts + f.deleted_artifacts > 0
       order by f.created_at, f.id`,
    values: [old.map(o => o.tenantId), old.map(o => o.key)],
  })
  return rows
}

function aliveIn(frame: OldFrame): number[] {
  const dead = new Set(frame.dead)
  return [...frame.sizes.keys()].filter(ordinal => !dead.has(ordinal))
}

const aliveBytes = (frame: OldFrame) =>
  aliveIn(frame).reduce((sum, ordinal) => sum + (frame.sizes[ordinal] ?? 0), 0)

/** Tombstoned ones are moved too, as long as they could be brought back; their bytes are read all the same. */
function artifactsOf(frame: OldFrame): Artifact[] {
  return aliveIn(frame).map(ordinal => ({
    id: artifactInFrame(frame.id, ordinal),
    tenantId: frame.tenantId,
    kind: frame.kind,
    key: frame.key,
    contentType: 'application/json',
    sizeBytes: frame.sizes[ordinal] ?? null,
    sha256: frame.hashes.slice(64 * ordinal, 64 * (ordinal + 1)),
    byteOffset: frame.byteOffset,
    byteLength: frame.byteLength,
    frameOffset: frame.places[ordinal] ?? null,
    contentEncoding: frame.contentEncoding,
    deletedAt: null,
    sourceId: null,
    fromRow: true,
  }))
}

/** The payloads that are alive, one after the other; the places of the others are empty. */
function encodeAgain(old: OldFrame, payloads: Buffer[], { codec }: PackConfig): Omit<NewFrame, 'byteOffset'> {
  const { bytes, places } = encodePayloads(payloads, codec)
  const all = old.sizes.map(() => -1)
  for (const [i, ordinal] of aliveIn(old).entries()) all[ordinal] = places[i] ?? -1
  return { old, bytes, places: all }
}

/** Frames of one tenant and kind, one after the other in packs that keep to their limit. */
function layOut(frames: Omit<NewFrame, 'byteOffset'>[], config: PackConfig, prefix: string): NewPack[] {
  const packs: NewPack[] = []
  for (const group of Map.groupBy(frames, ({ old }) => `${old.tenantId}/${old.kind}`).values()) {
    let pack: NewPack | null = null
    let payloadBytes = 0
    for (const frame of group) {
      const { tenantId, kind } = frame.old
      const bytes = aliveBytes(frame.old)
      if (pack === null || payloadBytes + bytes > config.maxPackBytes) {
        const key = packKey(prefix, tenantId, kind, config.codec, new Date())
        pack = { tenantId, kind, key, frames: [], bytes: 0 }
        packs.push(pack)
        payloadBytes = 0
      }
      pack.frames.push({ ...frame, byteOffset: pack.bytes })
      pack.bytes += frame.bytes.length
      payloadBytes += bytes
    }
  }
  return packs
}

/**
 * One transaction: frames that still are where they were get their new place, the new packs are stored, the old
 * ones on their way out, not before every reader that knows them is done.
 */
async function move(context: SweepContext, old: OldObject[], packs: NewPack[]): Promise<number> {
  const { pool, config, offload } = context
  // Also for who restores the database to a moment within the grace period, which has the artifacts where they were.
  const keptMs = Math.max(config.readerGraceMs, config.graceDays * 86_400_000)
  const moves = packs.flatMap(pack => pack.frames.map(frame => ({ pack, frame })))
  return inTransactionWithRetry(pool, async db => {
    // Old and new in one order, as the purge takes them.
    await db.query({
      text: `select from lighter.objects o
               join unnest($1::uuid[], $2::text[]) k(tenant_id, r2_key) using (tenant_id, r2_key)
              order by o.tenant_id, o.r2_key for update of o`,
      values: [[...old, ...packs].map(o => o.tenantId), [...old, ...packs].map(o => o.key)],
    })
    // Then the frames, as whoever changes an artifact of one. What they did until now is seen by the next statement.
    await db.query({
      text: `select from lighter.frames f join unnest($1::uuid[], $2::uuid[]) k(tenant_id, id) using (tenant_id, id)
              order by f.tenant_id, f.id for update of f`,
      values: [moves.map(m => m.frame.old.tenantId), moves.map(m => m.frame.old.id)],
    })
    const { rows: moved } = await db.query<{ key: string; n: number; bytes: number }>({
      text: `
        with moved as (
          update lighter.frames f
             set r2_key = n.r2_key, byte_offset = n.byte_offset, byte_length = n.byte_length,
                 content_encoding = n.content_encoding, places = n.places::int[]
            from unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::text[], $6::bigint[], $7::bigint[], $8::text[], $9::text[], $10::text[])
                   as n(tenant_id, id, old_key, old_offset, r2_key, byte_offset, byte_length, content_encoding, places, dead)
           where f.tenant_id = n.tenant_id and f.id = n.id and f.r2_key = n.old_key and f.byte_offset = n.old_offset
             -- What was left out is dead still.
             and not exists (
               select from unnest(n.dead::int2[]) d(ordinal)
                where d.ordinal <> all (f.voids)
                  and not exists (select from lighter.frame_exceptions x
                                   where x.tenant_id = f.tenant_id and x.frame_id = f.id and d.ordinal = any (x.ordinals)
                                     and x.purged_at is not null))
          returning f.r2_key, f.artifacts + f.deleted_artifacts as artifacts, f.payload_bytes + f.deleted_bytes as bytes
        )
        select r2_key as key, sum(artifacts)::int as n, sum(bytes)::float8 as bytes from moved group by r2_key`,
      values: [
        moves.map(m => m.frame.old.tenantId),
        moves.map(m => m.frame.old.id),
        moves.map(m => m.frame.old.key),
        moves.map(m => m.frame.old.byteOffset),
        moves.map(m => m.pack.key),
        moves.map(m => m.frame.byteOffset),
        moves.map(m => m.frame.bytes.length),
        moves.map(() => encodingOf(offload.codec)),
        moves.map(m => arrayText(m.frame.places)),
        moves.map(m => arrayText(m.frame.old.dead)),
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
        packs.map(o => o.tenantId),
        packs.map(o => o.key),
        packs.map(o => movedInto.get(o.key)?.n ?? 0),
        packs.map(o => movedInto.get(o.key)?.bytes ?? 0),
        config.deleteDelayMs,
      ],
    })
    if (stored !== packs.length) {
      throw new LighterError('object_swept', 'a rewritten object was taken for an orphan before its commit', {
        retryable: true,
      })
    }
    await db.query({
      text: `
        update lighter.objects o
           set state = 'deleting', live_artifacts = 0, live_bytes = 0, delete_after = now() + $3 * interval '1 ms'
          from unnest($1::uuid[], $2::text[]) k(tenant_id, r2_key)
         where o.tenant_id = k.tenant_id and o.r2_key = k.r2_key and o.state = 'stored' and ${seesAllRowsSql}
           and not ${isKeptSql('o')}`,
      values: [old.map(o => o.tenantId), old.map(o => o.key), keptMs],
    })
    return moved.reduce((sum, m) => sum + m.n, 0)
  })
}
