// What must hold at every instant, as questions to a database and a bucket.
import type pg from 'pg'
import type { TestEnvironment } from './environment.ts'

/** Objects in the bucket that lighter.objects does not know, and objects it says are stored that are not there. */
export async function bucketMismatches(
  environment: TestEnvironment,
): Promise<{ unregistered: string[]; missing: string[] }> {
  const listed = new Set<string>()
  for await (const { key } of environment.store.list(`${environment.store.prefix}tenants/`)) listed.add(key)
  const { rows } = await environment.admin.query<{ key: string; state: string }>(
    'select r2_key as key, state from lighter.objects',
  )
  const known = new Set(rows.map(row => row.key))
  return {
    unregistered: [...listed].filter(key => !known.has(key)),
    missing: rows.filter(row => row.state === 'stored' && !listed.has(row.key)).map(row => row.key),
  }
}

/** Artifacts whose object is not stored, or lies under another tenant's keys. */
export async function strayArtifacts(environment: TestEnvironment): Promise<unknown[]> {
  const { rows } = await environment.admin.query(
    `select a.id, a.tenant_id, a.r2_key, o.state
       from artifact_refs a left join lighter.objects o using (tenant_id, r2_key)
      where o.state is distinct from 'stored'
         or a.r2_key not like '%tenants/' || a.tenant_id || '/%'`,
  )
  return rows
}

/**
 * Frames whose exceptions are no state of theirs: an ordinal in two of them, out of its frame, that is no artifact, or out
 * of order, or an exception that says nothing; and frames whose sums are not those of their artifacts.
 */
export async function oddFrames(admin: pg.Pool): Promise<unknown[]> {
  const { rows } = await admin.query(
    `select f.id, x.ordinals, f.voids, f.artifacts
       from lighter.frames f
      cross join lateral (
        select count(*) as named, count(distinct o) as ordinals, min(o) as least, max(o) as most,
               bool_or(o = any (f.voids)) as void
          from lighter.frame_exceptions e cross join lateral unnest(e.ordinals) o
         where e.tenant_id = f.tenant_id and e.frame_id = f.id) n
      cross join lateral (
        select count(*) filter (where a.deleted_at is null) as live,
               coalesce(sum(a.size_bytes) filter (where a.deleted_at is null), 0) as bytes,
               count(*) filter (where a.deleted_at is not null and a.purged_at is null) as deleted,
               coalesce(sum(a.size_bytes) filter (where a.deleted_at is not null and a.purged_at is null), 0) as deleted_bytes
          from public.artifact_refs a where a.tenant_id = f.tenant_id and a.frame_id = f.id) s
       left join lighter.frame_exceptions x on x.tenant_id = f.tenant_id and x.frame_id = f.id
      where n.named <> n.ordinals or n.least < 0 or n.most >= cardinality(f.sizes) or n.void
         or x.ordinals <> array(select o from unnest(x.ordinals) o order by o)
         or x.frame_id is not null and num_nonnulls(x.expires_at, x.released_at, x.deleted_at, x.purged_at, x.damaged_at) = 0
         or (f.artifacts, f.payload_bytes, f.deleted_artifacts, f.deleted_bytes) <> (s.live, s.bytes, s.deleted, s.deleted_bytes)`,
  )
  return rows
}
