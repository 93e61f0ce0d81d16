// Artifacts as no statement of an application can make them: older, or not what was stored.
import type pg from 'pg'
import { type ArtifactId, artifactInFrame, type FrameId, newFrameId } from '../../src/ids.ts'

/** Artifacts become older by so much: created_at of all that are in a frame with one of these. */
export async function ageArtifacts(
  db: pg.Pool | pg.ClientBase,
  interval: string,
  where = 'true',
): Promise<void> {
  await db.query(
    `update lighter.frames f set created_at = f.created_at - $1::interval
      where ${where === 'true'} or exists (select from public.artifact_refs a where a.tenant_id = f.tenant_id and a.frame_id = f.id and (${where}))`,
    [interval],
  )
  await db.query(
    `update lighter.loose_artifacts a set created_at = a.created_at - $1::interval where ${where}`,
    [interval],
  )
}

/**
 * Says of these artifacts that they have another hash than was stored, so that they can't be read back.
 * @returns their ids
 */
export async function spoilHashes(
  db: pg.Pool | pg.ClientBase,
  where: string,
  values: unknown[] = [],
): Promise<string[]> {
  const { rows } = await db.query<{ id: string; frame_id: string; ordinal: number | null }>(
    `select a.id, a.frame_id, a.ordinal from public.artifact_refs a where ${where}`,
    values,
  )
  for (const { id, frame_id: frame, ordinal } of rows) {
    if (ordinal === null) {
      await db.query(`update lighter.loose_artifacts set sha256 = repeat('0', 64) where id = $1`, [id])
    } else {
      await db.query(
        `update lighter.frames set hashes = overlay(hashes placing decode(repeat('0', 64), 'hex') from 32 * $2 + 1) where id = $1`,
        [frame, ordinal],
      )
    }
  }
  return rows.map(row => row.id)
}

/**
 * A frame as the offload writes it, but without an object behind it.
 * @returns its id, and those of its artifacts in the order of `payloads`
 */
export async function insertFrame(
  db: pg.Pool | pg.ClientBase,
  frame: {
    tenantId: string
    id?: FrameId
    kind?: string
    key?: string
    createdAt?: string
    entityType?: string | null
    sourceId?: number
    field?: string | null
    payloads: { size?: number; rowId?: string; entityId?: string | null; refersTo?: string; void?: boolean }[]
  },
): Promise<{ frame: FrameId; ids: ArtifactId[] }> {
  const { payloads, id = newFrameId() } = frame
  const entities = [...new Set(payloads.flatMap(p => p.entityId ?? []))]
  const places = payloads.map(p => (p.entityId ? entities.indexOf(p.entityId) + 1 : null))
  const pointers = payloads.flatMap((p, ordinal) => (p.refersTo ? [{ ordinal, id: p.refersTo }] : []))
  await db.query(
    `insert into lighter.frames (tenant_id, id, kind, created_at, r2_key, byte_offset, byte_length, content_encoding, source_id, field,
                                 entity_type, sizes, places, hashes, row_texts, entities, entity_places, refers_from, refers_to, voids)
     values ($1, $2, $3, coalesce($4::timestamptz, now()), $5, 0, 1000, 'zstd', $6, $7, $8, $9, array_fill(0, array[cardinality($9::int[])]),
             (select string_agg(sha256(convert_to(r, 'UTF8')), '' order by n) from unnest($10::text[]) with ordinality u(r, n)), $10, $11, $12, $13, $14, $15)`,
    [
      frame.tenantId,
      id,
      frame.kind ?? 'agent_trace',
      frame.createdAt ?? null,
      frame.key ?? `tenants/${frame.tenantId}/packs/${id}`,
      frame.sourceId ?? 1,
      frame.field ?? null,
      frame.entityType ?? null,
      payloads.map(p => p.size ?? 1),
      payloads.map((p, n) => p.rowId ?? `row ${n}`),
      entities,
      entities.length > 0 ? places : null,
      pointers.map(p => p.ordinal),
      pointers.map(p => p.id),
      payloads.flatMap((p, ordinal) => (p.void ? [ordinal] : [])),
    ],
  )
  return { frame: id, ids: payloads.map((_, ordinal) => artifactInFrame(id, ordinal)) }
}
