// Which artifacts are read back: a random sample, or all of them page by page.
import type { Artifact } from '../catalogue/lookup.ts'
import { asArtifactId, frameOf, type TenantId } from '../ids.ts'
import { samplePercent } from '../offload/table-size.ts'
import type { SweepContext } from './context.ts'

/** `deletedAt` is always null: a tombstone does not keep a payload from being checked. */
export type Checkable = Artifact & { damagedAt: Date | null }

const columns = `a.id, a.tenant_id as "tenantId", a.kind, a.r2_key as key, a.content_type as "contentType",
  a.size_bytes::float8 as "sizeBytes", a.sha256, a.byte_offset::float8 as "byteOffset",
  a.byte_length::float8 as "byteLength", a.frame_offset::float8 as "frameOffset",
  a.content_encoding as "contentEncoding", null::timestamptz as "deletedAt", a.source_id as "sourceId", a.source_id is not null as "fromRow", a.damaged_at as "damagedAt"`

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
  const [frames, loose] = await Promise.all([
    samplePercent(pool, 'lighter.frames', config.verifySample),
    samplePercent(pool, 'lighter.loose_artifacts', config.verifySample),
  ])
  const { rows } = await pool.query<Checkable>(
    `select * from (
       select ${columns}
         from (select id from lighter.frames tablesample system ($1::float4)
               union all
               select id from lighter.loose_artifacts tablesample system ($3::float4)) s
         join public.artifact_refs a on a.frame_id = s.id
        where a.purged_at is null
        order by random()
        limit $2) sample
      order by "tenantId", key, "byteOffset"`,
    [frames, config.verifySample, loose],
  )
  return rows
}

/** About so many artifacts are in a frame. */
const artifactsPerFrame = 16

/** A page is shorter where payloads are long, so that it is over, and its place remembered, in good time. */
const maxPageBytes = 256 * 1024 * 1024

/** The next artifacts in the order of tenant and id. */
export async function nextArtifacts(
  { pool, config }: SweepContext,
  tenantId: TenantId | null,
  after: { tenantId: string; id: string },
): Promise<Checkable[]> {
  const { rows } = await pool.query<Checkable>(
    // Each frame of a page has an artifact, but for the one in whose middle the page before may have ended.
    `with page as (
       select tenant_id, id
         from (
           (select f.tenant_id, f.id from lighter.frames f
             where (f.tenant_id, f.id) >= ($1, $4) and f.artifacts + f.deleted_artifacts > 0
               ${tenantId === null ? '' : 'and f.tenant_id = $6'}
             order by f.tenant_id, f.id limit $5)
           union all
           (select l.tenant_id, l.id from lighter.loose_artifacts l
             where (l.tenant_id, l.id) > ($1, $2) and l.purged_at is null ${tenantId === null ? '' : 'and l.tenant_id = $6'}
             order by l.tenant_id, l.id limit $5)) of_either
        order by tenant_id, id limit $5
     )
     select ${columns}
       from page p
       join public.artifact_refs a on a.tenant_id = p.tenant_id and a.frame_id = p.id
      where (a.tenant_id, a.id) > ($1, $2) and a.purged_at is null
      order by a.tenant_id, a.id
      limit $3`,
    [
      after.tenantId,
      after.id,
      config.batchSize,
      frameOf(asArtifactId(after.id)),
      Math.max(2, Math.ceil(config.batchSize / artifactsPerFrame)),
      ...(tenantId === null ? [] : [tenantId]),
    ],
  )
  let bytes = 0
  const end = rows.findIndex((row, i) => {
    bytes += row.sizeBytes ?? 0
    return i > 0 && bytes > maxPageBytes
  })
  return end === -1 ? rows : rows.slice(0, end)
}
