// Which artifacts are read back: a random sample, or all of them page by page.
import type { Artifact } from '../catalogue/lookup.ts'
import type { TenantId } from '../ids.ts'
import { samplePercent } from '../offload/table-size.ts'
import type { SweepContext } from './context.ts'

/** `deletedAt` is always null: a tombstone does not keep a payload from being checked. */
export type Checkable = Artifact & { damagedAt: Date | null }

const columns = `a.id, a.tenant_id as "tenantId", a.kind, a.r2_key as key, a.content_type as "contentType",
  a.size_bytes::float8 as "sizeBytes", a.sha256, a.byte_offset::float8 as "byteOffset",
  a.byte_length::float8 as "byteLength", a.frame_offset::float8 as "frameOffset",
  a.content_encoding as "contentEncoding", null::timestamptz as "deletedAt", a.source_id is not null as "fromRow", a.damaged_at as "damagedAt"`

/**
 * A random sample of SWEEP_VERIFY_SAMPLE artifacts.
 *
 * `tablesample system` reads as many pages, chosen at random, as there are to be artifacts in the sample, and of what
 * is on them a random part is taken: at most so many page reads however large the table, and every artifact is about
 * as likely as any other. `bernoulli` would read all pages. Random probes into the primary key would be skewed: ids
 * begin with the time, so nearly all of a random uuid's range is empty, and its neighbour is always the same.
 */
export async function sampleArtifacts({
  pool,
  config,
}: Pick<SweepContext, 'pool' | 'config'>): Promise<Checkable[]> {
  if (config.verifySample === 0) return []
  const percent = await samplePercent(pool, 'public.artifact_refs', config.verifySample)
  const { rows } = await pool.query<Checkable>(
    `select * from (
       select ${columns}
         from public.artifact_refs a tablesample system ($1::float4)
        where a.purged_at is null
        order by random()
        limit $2) sample
      order by "tenantId", key, "byteOffset"`,
    [percent, config.verifySample],
  )
  return rows
}

/** A page is shorter where payloads are long, so that it is over, and its place remembered, in good time. */
const maxPageBytes = 256 * 1024 * 1024

/** The next artifacts in the order of tenant and id. */
export async function nextArtifacts(
  { pool, config }: SweepContext,
  tenantId: TenantId | null,
  after: { tenantId: string; id: string },
): Promise<Checkable[]> {
  const { rows } = await pool.query<Checkable>(
    `select ${columns}
       from public.artifact_refs a
      where (a.tenant_id, a.id) > ($1, $2) and a.purged_at is null ${tenantId === null ? '' : 'and a.tenant_id = $4'}
      order by a.tenant_id, a.id
      limit $3`,
    [after.tenantId, after.id, config.batchSize, ...(tenantId === null ? [] : [tenantId])],
  )
  let bytes = 0
  const end = rows.findIndex((row, i) => {
    bytes += row.sizeBytes ?? 0
    return i > 0 && bytes > maxPageBytes
  })
  return end === -1 ? rows : rows.slice(0, end)
}
