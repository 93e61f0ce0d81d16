// What is in an object. Of frames their sums are read, not their artifacts; and each look is one into an index, for every
// object by itself: as a join all that there is would be read, for each batch.

/** SQL: something in object `o` (tenant_id, r2_key) is an artifact that is not purged. */
export const isKeptSql = (o: string): string => `coalesce(
  (select true from lighter.frames f
    where f.tenant_id = ${o}.tenant_id and f.r2_key = ${o}.r2_key and f.artifacts + f.deleted_artifacts > 0 limit 1),
  (select true from lighter.loose_artifacts l
    where l.tenant_id = ${o}.tenant_id and l.r2_key = ${o}.r2_key and l.purged_at is null limit 1),
  false)`

/** SQL: something says that it is in the object, artifact or not. */
export const isNamedSql = (tenant: string, key: string): string => `coalesce(
  (select true from lighter.frames f where f.tenant_id = ${tenant} and f.r2_key = ${key} limit 1),
  (select true from lighter.loose_artifacts l where l.tenant_id = ${tenant} and l.r2_key = ${key} limit 1),
  false)`

/** SQL, for `cross join lateral`: how many artifacts in object `o` are not purged (n), and their uncompressed bytes. */
export const keptInSql = (o: string): string => `(
  select coalesce(sum(k.n), 0)::int as n, least(coalesce(sum(k.bytes), 0), 9223372036854775807)::bigint as bytes
    from (select f.artifacts + f.deleted_artifacts as n, f.payload_bytes + f.deleted_bytes as bytes
            from lighter.frames f where f.tenant_id = ${o}.tenant_id and f.r2_key = ${o}.r2_key
           union all
          select 1, greatest(l.size_bytes, 0)
            from lighter.loose_artifacts l
           where l.tenant_id = ${o}.tenant_id and l.r2_key = ${o}.r2_key and l.purged_at is null) k)`
