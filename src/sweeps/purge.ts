// The end of artifacts that have a tombstone: once the grace period is over they are purged, and an object in which
// nothing is left alive goes. What lives in the same pack stays where it is, until the pack is rewritten.
import { seesAllRowsSql } from '../db/all-rows.ts'
import { inTransactionWithRetry, type Queryable } from '../db/pool.ts'
import type { Counts, SweepContext } from './context.ts'
import { createPace } from './pace.ts'

/** SQL: the artifact `a` must not be touched. An error where holds may be hidden. */
export const onHoldSql = `(
  not ${seesAllRowsSql}
  or exists (select from lighter.tenants t where t.tenant_id = a.tenant_id and t.legal_hold)
  or exists (select from lighter.legal_holds h
              where h.tenant_id = a.tenant_id and h.entity_type = a.entity_type and h.entity_id = a.entity_id))`

/** Purges all artifacts whose grace period is over. */
export async function purgeTombstones(context: SweepContext, counts: Counts): Promise<void> {
  const { config, signal } = context
  if (context.dryRun) {
    const { rows } = await context.pool.query<{ n: number; bytes: number }>(
      `select count(*)::int as n, coalesce(sum(a.size_bytes), 0)::float8 as bytes
         from public.artifact_refs a
        where a.deleted_at < now() - make_interval(days => $1) and a.purged_at is null and not ${onHoldSql}`,
      [config.graceDays],
    )
    counts.purged = rows[0]?.n ?? 0
    counts.purged_bytes = rows[0]?.bytes ?? 0
    return
  }
  const pace = createPace(config.rate, signal)
  while (!signal.aborted) {
    const { purged, bytes, objects } = await purgeBatch(context)
    counts.purged = (counts.purged ?? 0) + purged
    counts.purged_bytes = (counts.purged_bytes ?? 0) + bytes
    counts.objects_emptied = (counts.objects_emptied ?? 0) + objects
    context.onProgress(counts)
    if (purged < config.batchSize) return
    await pace(purged)
  }
}

/**
 * One transaction: artifacts purged, their objects' account brought up to date, and those in which nothing is
 * alive on their way out. A compaction that moves the same artifacts has its locks the other way round: of a
 * deadlock the loser is run again.
 */
async function purgeBatch(
  context: SweepContext,
): Promise<{ purged: number; bytes: number; objects: number }> {
  const { pool, config } = context
  return inTransactionWithRetry(pool, async db => {
    const { rows: purged } = await db.query<{ tenantId: string; key: string; bytes: number }>({
      text: `
        with due as (
          select a.tenant_id, a.id
            from public.artifact_refs a
           where a.deleted_at < now() - make_interval(days => $1) and a.purged_at is null and not ${onHoldSql}
           order by a.deleted_at
           limit $2
             for update of a skip locked
        )
        update public.artifact_refs a set purged_at = now()
          from due
         where a.tenant_id = due.tenant_id and a.id = due.id
        returning a.tenant_id as "tenantId", a.r2_key as key, coalesce(a.size_bytes, 0)::float8 as bytes`,
      values: [config.graceDays, config.batchSize],
    })
    if (purged.length === 0) return { purged: 0, bytes: 0, objects: 0 }
    const keys = [...new Map(purged.map(p => [`${p.tenantId} ${p.key}`, p])).values()]
    const objects = await countLive(db, keys, config.deleteDelayMs)
    return { purged: purged.length, bytes: purged.reduce((sum, p) => sum + p.bytes, 0), objects }
  })
}

/**
 * Brings the account of objects up to date of which artifacts were purged or moved away.
 * @param delayMs after which an object in which nothing is alive may go
 * @returns how many there were of these
 */
export async function countLive(
  db: Queryable,
  keys: { tenantId: string; key: string }[],
  delayMs: number,
): Promise<number> {
  const parameters = [keys.map(k => k.tenantId), keys.map(k => k.key)]
  // An object that the application stored itself, before us, is unknown until one has to delete it.
  await db.query(
    `insert into lighter.objects (tenant_id, r2_key, kind, state, content_type, content_encoding, artifact_count, stored_at)
     select distinct on (k.tenant_id, k.r2_key) k.tenant_id, k.r2_key, a.kind, 'stored',
            coalesce(a.content_type, 'application/octet-stream'), a.content_encoding, 1, a.created_at
       from unnest($1::uuid[], $2::text[]) k(tenant_id, r2_key)
       join public.artifact_refs a on a.tenant_id = k.tenant_id and a.r2_key = k.r2_key
         on conflict (tenant_id, r2_key) do nothing`,
    parameters,
  )
  const { rows } = await db.query<{ emptied: number }>({
    text: `
      with locked as materialized (
        select o.tenant_id, o.r2_key
          from lighter.objects o
          join unnest($1::uuid[], $2::text[]) k(tenant_id, r2_key) using (tenant_id, r2_key)
         where o.state = 'stored' and ${seesAllRowsSql}
         order by o.tenant_id, o.r2_key
           for update of o
      ),
      counted as (
        select l.tenant_id, l.r2_key, count(a.id)::int as artifacts,
                 -- (the application may have written any number)
                 least(greatest(sum(a.size_bytes), 0), 9223372036854775807)::bigint as bytes
          from locked l
          left join public.artifact_refs a
            on a.tenant_id = l.tenant_id and a.r2_key = l.r2_key and a.purged_at is null
         group by l.tenant_id, l.r2_key
      ),
      updated as (
        update lighter.objects o
           set live_artifacts = c.artifacts,
               live_bytes = c.bytes,
               dead_since = coalesce(o.dead_since, now()),
               state = case when c.artifacts = 0 then 'deleting' else o.state end,
               delete_after = case when c.artifacts = 0 then now() + $3 * interval '1 ms' end
          from counted c
         where o.tenant_id = c.tenant_id and o.r2_key = c.r2_key
        returning c.artifacts
      )
      select count(*) filter (where artifacts = 0)::int as emptied from updated`,
    values: [...parameters, delayMs],
  })
  return rows[0]?.emptied ?? 0
}

/** Forgets artifacts that were purged long ago and whose object is gone. */
export async function forgetTombstones(context: SweepContext, counts: Counts): Promise<void> {
  const { pool, config, signal } = context
  while (!signal.aborted && !context.dryRun) {
    const { rowCount } = await pool.query(
      `with old as (
         select a.tenant_id, a.id
           from public.artifact_refs a
          where a.purged_at < now() - make_interval(days => $1)
            and ${seesAllRowsSql}
            and not exists (select from lighter.objects o where o.tenant_id = a.tenant_id and o.r2_key = a.r2_key)
          order by a.purged_at
          limit $2
            for update of a skip locked
       )
       delete from public.artifact_refs a using old where a.tenant_id = old.tenant_id and a.id = old.id`,
      [config.tombstoneDays, config.batchSize],
    )
    counts.forgotten = (counts.forgotten ?? 0) + (rowCount ?? 0)
    context.onProgress(counts)
    if ((rowCount ?? 0) < config.batchSize) return
  }
}
