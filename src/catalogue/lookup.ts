// Artifacts by id, always within one tenant.
import type { Queryable } from '../db/pool.ts'
import type { ArtifactId, TenantId } from '../ids.ts'

/** A row of artifact_refs, as far as reading needs it. */
export interface Artifact {
  id: ArtifactId
  tenantId: TenantId
  kind: string
  key: string
  contentType: string | null
  /** Of the payload, uncompressed. Null, like `sha256`, only in rows that the application wrote itself. */
  sizeBytes: number | null
  sha256: string | null
  byteOffset: number | null
  byteLength: number | null
  frameOffset: number | null
  contentEncoding: string | null
  deletedAt: Date | null
  /** lighter.sources.id of the column that it came off. */
  sourceId: number | null
  /** It came off a row: what it is called it is. What others have stored as JSON may only be called so. */
  fromRow: boolean
}

/**
 * The artifacts among `ids` that belong to the tenant, in one statement; the others are simply not there,
 * whether they exist elsewhere or not.
 */
export async function lookupArtifacts(
  db: Queryable,
  tenantId: TenantId,
  ids: ArtifactId[],
): Promise<Map<ArtifactId, Artifact>> {
  if (ids.length === 0) return new Map()
  const { rows } = await db.query<Artifact>({
    text: `
      select a.id, a.tenant_id as "tenantId", kind, r2_key as key, content_type as "contentType",
             size_bytes::float8 as "sizeBytes", sha256, byte_offset::float8 as "byteOffset",
             byte_length::float8 as "byteLength", frame_offset::float8 as "frameOffset",
             content_encoding as "contentEncoding", deleted_at as "deletedAt", source_id as "sourceId", source_id is not null as "fromRow"
        from lighter.artifacts_get($1, $2::uuid[]) a`,
    values: [tenantId, ids],
  })
  return new Map(rows.map(row => [row.id, row]))
}
