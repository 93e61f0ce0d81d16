// An artifact as the world outside sees it: the documented columns of artifact_refs, under their names.
import type { Queryable } from '../db/pool.ts'
import type { ArtifactId, TenantId } from '../ids.ts'
import type { Artifact } from './lookup.ts'

export interface ArtifactRecord {
  id: string
  tenant_id: string
  kind: string
  entity_type: string | null
  entity_id: string | null
  r2_key: string
  content_type: string | null
  /** Of the payload, uncompressed. */
  size_bytes: number | null
  sha256: string | null
  created_at: Date
}

/** The columns of a select for it, from a row of artifact_refs. */
export const artifactColumns =
  'id, tenant_id, kind, entity_type, entity_id, r2_key, content_type, size_bytes::float8 as size_bytes, sha256, created_at'

interface FoundArtifact {
  record: ArtifactRecord
  /** What reading its payload needs. */
  artifact: Artifact
  /** Why it has a tombstone; null when it has none, or it is not known. */
  deletedReason: string | null
}

/** One artifact of the tenant, tombstoned ones included; null when there is none or it is another tenant's. */
export async function findArtifact(
  db: Queryable,
  tenantId: TenantId,
  id: ArtifactId,
): Promise<FoundArtifact | null> {
  const { rows } = await db.query<
    ArtifactRecord & {
      byte_offset: number | null
      byte_length: number | null
      frame_offset: number | null
      content_encoding: string | null
      source_id: number | null
      deleted_at: Date | null
      deleted_reason: string | null
    }
  >({
    text: `select ${artifactColumns}, byte_offset::float8 as byte_offset, byte_length::float8 as byte_length,
                  frame_offset::float8 as frame_offset, content_encoding, source_id, deleted_at, deleted_reason
             from lighter.artifact_get($1, $2)`,
    values: [tenantId, id],
  })
  const [row] = rows
  if (row === undefined) return null
  const {
    byte_offset: byteOffset,
    byte_length: byteLength,
    frame_offset: frameOffset,
    content_encoding: contentEncoding,
    source_id: sourceId,
    deleted_at: deletedAt,
    deleted_reason: deletedReason,
    ...record
  } = row
  return {
    record,
    artifact: {
      id,
      tenantId,
      kind: row.kind,
      key: row.r2_key,
      contentType: row.content_type,
      sizeBytes: row.size_bytes,
      sha256: row.sha256,
      byteOffset,
      byteLength,
      frameOffset,
      contentEncoding,
      deletedAt,
      sourceId,
      fromRow: sourceId !== null,
    },
    deletedReason,
  }
}

export interface ListFilter {
  kind: string | null
  entityType: string | null
  entityId: string | null
  limit: number
  /** Rows to leave out at the beginning. */
  offset: number
  /** The last row of the page before. */
  after: { createdAt: string; id: string } | null
}

/** Live artifacts of the tenant, newest first. `position` of the last one continues the list exactly. */
export async function listArtifacts(
  db: Queryable,
  tenantId: TenantId,
  filter: ListFilter,
): Promise<{ record: ArtifactRecord; position: { createdAt: string; id: string } }[]> {
  const { rows } = await db.query<ArtifactRecord & { position: string }>({
    // A JavaScript date has milliseconds, a timestamp microseconds: as text it loses none.
    text: `select ${artifactColumns}, created_at::text as position
             from lighter.artifact_list($1, $2, $3, $4, $5, $6, $7)
            order by created_at desc, id desc offset $8`,
    values: [
      tenantId,
      filter.kind,
      filter.entityType,
      filter.entityId,
      filter.limit + filter.offset,
      filter.after?.createdAt ?? null,
      filter.after?.id ?? null,
      filter.offset,
    ],
  })
  return rows.map(({ position, ...record }) => ({
    record,
    position: { createdAt: position, id: record.id },
  }))
}
