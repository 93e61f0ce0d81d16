// The end of artifacts that have a tombstone: once the grace period is over they are purged, and an object in which
// nothing is left alive goes. What lives in the same pack stays where it is, until the pack is rewritten.
import {
  type Changed,
  changeArtifacts,
  dueSql,
  isPurgeableSql,
  purged,
  sumOf,
  type Together,
} from '../catalogue/change.ts'
import { keptInSql } from '../catalogue/in-object.ts'
import {
  beforeAllMarked,
  lastOfPageSql,
  type MarkedPosition,
  markedSql,
  positionValues,
} from '../catalogue/marked.ts'
import { seesAllRowsSql } from '../db/all-rows.ts'
import { inTransactionWithRetry, type Queryable } from '../db/pool.ts'
import type { TenantId } from '../ids.ts'
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
  for (let after = beforeAllMarked; !signal.aborted; ) {
    const { purged, bytes, objects, last } = await purgePage(context, after)
    counts.purged = (counts.purged ?? 0) + purged
    counts.purged_bytes = (counts.purged_bytes ?? 0) + bytes
    counts.objects_emptied = (counts.objects_emptied ?? 0) + objects
    context.onProgress(counts)
    if (last === null) return
    after = last
    await pace(purged)
  }
}

/**
 * One transaction: artifacts purged, their objects' account brought up to date, and those in which nothing is
 * alive on their way out. A compaction that moves the same artifacts has its locks the other way round: of a
 * deadlock the loser is run again.
 */
async function purgePage(
  context: SweepContext,
  after: MarkedPosition,
): Promise<{ purged: number; bytes: number; objects: number; last: MarkedPosition | null }> {
  const { pool, config } = context
  return inTransactionWithRetry(pool, async db => {
    const { rows } = await db.query<{ due: Together[]; last: MarkedPosition | null }>({
      text: `
        with ${markedSql('deleted_at', isPurgeableSql('$1'), 2, 'a.tenant_id, a.frame_id, a.ordinal, a.entity_type, a.entity_id')},
        due as (select * from marked a where not ${onHoldSql})
        select ${dueSql} as due, ${lastOfPageSql} as last`,
      values: [config.graceDays, ...positionValues(after), config.batchSize],
    })
    const { due = [], last = null } = rows[0] ?? {}
    const gone = await changeArtifacts(db, due, purged(config.graceDays))
    const { n, bytes } = sumOf(gone)
    const objects = n === 0 ? 0 : await countLive(db, await objectsOf(db, gone), config.deleteDelayMs)
    return { purged: n, bytes, objects, last }
  })
}

/** In which objects they are. By a statement of its own: a compaction may have moved them just before. */
export async function objectsOf(
  db: Queryable,
  gone: Changed[],
): Promise<{ tenantId: string; key: string }[]> {
  const { rows } = await db.query<{ tenantId: string; key: string }>({
    text: `select distinct a.tenant_id as "tenantId", a.r2_key as key
             from unnest($1::uuid[], $2::uuid[]) p(tenant_id, frame_id)
            cross join lateral (
              select f.tenant_id, f.r2_key from lighter.frames f where f.tenant_id = p.tenant_id and f.id = p.frame_id
              union all
              select l.tenant_id, l.r2_key from lighter.loose_artifacts l where l.tenant_id = p.tenant_id and l.id = p.frame_id) a`,
    values: [gone.map(p => p.tenantId), gone.map(p => p.frameId)],
  })
  return rows
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
      cross join lateral (
        (select f.kind, 'application/x-ndjson' as content_type, null as content_encoding, f.created_at
           from lighter.frames f where f.tenant_id = k.tenant_id and f.r2_key = k.r2_key limit 1)
        union all
        (select l.kind, l.content_type, l.content_encoding, l.created_at
           from lighter.loose_artifacts l where l.tenant_id = k.tenant_id and l.r2_key = k.r2_key limit 1)) a
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
        select o.tenant_id, o.r2_key, kept.n as artifacts, kept.bytes
          from locked o
         cross join lateral ${keptInSql('o')} kept
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

/** SQL: forgets the artifacts in `due` (tenant_id, frame_id, ordinal), and tells how many there were. */
export const forgetSql = `
  lighter.forget_artifacts(
    array(select tenant_id from due order by tenant_id, frame_id, ordinal),
    array(select frame_id from due order by tenant_id, frame_id, ordinal),
    array(select ordinal from due order by tenant_id, frame_id, ordinal))`

/** Forgets artifacts that were purged long ago and whose object is gone. */
export async function forgetTombstones(context: SweepContext, counts: Counts): Promise<void> {
  const { pool, config, signal } = context
  for (let after = beforeAllMarked; !signal.aborted && !context.dryRun; ) {
    const { rows } = await pool.query<{ forgotten: number; last: MarkedPosition | null }>(
      `with ${markedSql(
        'purged_at',
        'x.purged_at < now() - make_interval(days => $1)',
        2,
        'a.tenant_id, a.frame_id, a.ordinal, a.r2_key, a.frame_offset',
      )},
       due as materialized (
         select a.tenant_id, a.frame_id, a.ordinal
           from marked a
          where ${seesAllRowsSql}
            -- Its object is gone, or was written anew without it.
            and (a.frame_offset is null and a.ordinal is not null
                 or not exists (select from lighter.objects o where o.tenant_id = a.tenant_id and o.r2_key = a.r2_key))
       )
       select ${forgetSql} as forgotten, ${lastOfPageSql} as last`,
      [config.tombstoneDays, ...positionValues(after), config.batchSize],
    )
    const [page] = rows
    counts.forgotten = (counts.forgotten ?? 0) + (page?.forgotten ?? 0)
    context.onProgress(counts)
    if (page === undefined || page.last === null) break
    after = page.last
  }
  if (!context.dryRun) await forgetFrames(context, null)
}

/** Frames in which there is no artifact any more, of all tenants or of one. */
export async function forgetFrames(
  { pool, config, signal }: SweepContext,
  tenantId: TenantId | null,
): Promise<void> {
  while (!signal.aborted) {
    const { rows } = await pool.query<{ n: number }>('select lighter.forget_frames($1, $2) as n', [
      tenantId,
      config.batchSize,
    ])
    if ((rows[0]?.n ?? 0) < config.batchSize) return
  }
}
