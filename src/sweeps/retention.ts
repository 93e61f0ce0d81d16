// Retention: artifacts past their policy get a tombstone, those whose grace period is over are purged, objects with
// nothing alive in them leave the bucket.
import { seesAllRowsSql } from '../db/all-rows.ts'
import type { Counts, SweepContext } from './context.ts'
import { deleteDueObjects } from './deletion.ts'
import { createPace } from './pace.ts'
import { forgetTombstones, onHoldSql, purgeTombstones } from './purge.ts'
import { accountVanished } from './vanished.ts'

/**
 * SQL: a live artifact's payload points to artifact `a`, which must live as long: a row that was offloaded again on
 * top of an old payload would else lose what was written today. Expiry goes from the newest down.
 */
const isReferredToSql = `exists (
  select from public.artifact_refs r
   where r.tenant_id = a.tenant_id and r.refers_to @> array[a.id] and r.refers_to <> '{}' and r.deleted_at is null)`

/** All artifacts of one tenant and kind, and the policy that holds for them. */
interface Group {
  tenantId: string
  kind: string
  policyId: number | null
  keepDays: number | null
  policy: string | null
  hold: boolean
}

/** What a dry run found to expire. */
export interface Expiring {
  tenant_id: string
  kind: string
  policy: string
  artifacts: number
  bytes: number
}

export async function sweepRetention(
  context: SweepContext,
  onExpiring: (found: Expiring) => void = () => undefined,
): Promise<Counts> {
  const counts: Counts = { groups: 0, expired: 0, expired_bytes: 0 }
  await expireByPolicy(context, counts, onExpiring)
  await expireByDate(context, counts)
  await purgeTombstones(context, counts)
  await accountVanished(context, counts)
  await forgetTombstones(context, counts)
  if (!context.dryRun) await deleteDueObjects(context, counts)
  return counts
}

async function expireByPolicy(
  context: SweepContext,
  counts: Counts,
  onExpiring: (found: Expiring) => void,
): Promise<void> {
  const { config, signal } = context
  const pace = createPace(config.rate, signal)
  let after: Group | null = null
  while (!signal.aborted) {
    const groups = await nextGroups(context, after)
    for (const group of groups) {
      if (signal.aborted) return
      counts.groups = (counts.groups ?? 0) + 1
      if (group.keepDays === null || group.hold) continue
      if (context.dryRun) {
        const found = await countExpiring(context, group)
        if (found.artifacts > 0) onExpiring(found)
        counts.expired = (counts.expired ?? 0) + found.artifacts
        counts.expired_bytes = (counts.expired_bytes ?? 0) + found.bytes
        continue
      }
      for (let from = '-infinity'; ; ) {
        const { artifacts, bytes, last } = await expireBatch(context, group, from)
        counts.expired = (counts.expired ?? 0) + artifacts
        counts.expired_bytes = (counts.expired_bytes ?? 0) + bytes
        context.onProgress(counts)
        if (artifacts < config.batchSize || last === null || signal.aborted) break
        from = last
        await pace(artifacts)
      }
    }
    after = groups.at(-1) ?? null
    if (after === null) return
  }
}

/**
 * The next groups with something alive in them, each found by one look into the index, however many artifacts it has.
 * Here and below `deleted_at is null` is also what makes the index do (artifact_refs_live): tombstones are not in it.
 */
async function nextGroups({ pool, config }: SweepContext, after: Group | null): Promise<Group[]> {
  const { rows } = await pool.query<Group>(
    `with recursive groups as (
       (select a.tenant_id, a.kind
          from public.artifact_refs a
         where (a.tenant_id, a.kind) > ($1, $2) and a.deleted_at is null
         order by a.tenant_id, a.kind
         limit 1)
       union all
       select n.tenant_id, n.kind
         from groups g
        cross join lateral (
          select a.tenant_id, a.kind
            from public.artifact_refs a
           where (a.tenant_id, a.kind) > (g.tenant_id, g.kind) and a.deleted_at is null
           order by a.tenant_id, a.kind
           limit 1) n
     ),
     page as (select * from groups limit $3)
     select g.tenant_id as "tenantId", g.kind, p.policy_id as "policyId", p.keep_days as "keepDays", p.policy,
            exists (select from lighter.tenants t where t.tenant_id = g.tenant_id and t.legal_hold) as hold
       from (select * from page where ${seesAllRowsSql}) g
       left join lateral lighter.retention_policy_of(g.tenant_id, g.kind) p on true
      order by g.tenant_id, g.kind`,
    [after?.tenantId ?? '00000000-0000-0000-0000-000000000000', after?.kind ?? '', config.batchSize],
  )
  return rows
}

async function countExpiring({ pool }: SweepContext, group: Group): Promise<Expiring> {
  const { rows } = await pool.query<{ artifacts: number; bytes: number }>(
    `select count(*)::int as artifacts, coalesce(sum(a.size_bytes), 0)::float8 as bytes
       from public.artifact_refs a
      where a.tenant_id = $1 and a.kind = $2 and a.created_at < now() - make_interval(days => $3)
        and a.deleted_at is null and not ${onHoldSql} and not ${isReferredToSql}
        -- counted with those that have a date of their own
        and not coalesce(a.expires_at < now(), false)`,
    [group.tenantId, group.kind, group.keepDays],
  )
  return {
    tenant_id: group.tenantId,
    kind: group.kind,
    policy: group.policy ?? '',
    artifacts: rows[0]?.artifacts ?? 0,
    bytes: rows[0]?.bytes ?? 0,
  }
}

interface Expired {
  artifacts: number
  bytes: number
  /** Where the next batch begins; null when nothing was found. */
  last: string | null
}

/**
 * @param from of the batches before: what they left behind, dead versions and what must stay, is not walked past again
 */
async function expireBatch({ pool, config }: SweepContext, group: Group, from: string): Promise<Expired> {
  const { rows } = await pool.query<Expired>(
    `with due as (
       select a.tenant_id, a.id, a.created_at
         from public.artifact_refs a
        where a.tenant_id = $1 and a.kind = $2 and a.created_at < now() - make_interval(days => $3)
          and a.created_at >= $6::timestamptz
          and a.deleted_at is null and not ${onHoldSql} and not ${isReferredToSql}
        order by a.created_at
        limit $4
          for update of a skip locked
     ),
     expired as (
       update public.artifact_refs a set deleted_at = now(), deleted_reason = $5
         from due
        where a.tenant_id = due.tenant_id and a.id = due.id
       returning a.size_bytes
     )
     select count(*)::int as artifacts, coalesce(sum(size_bytes), 0)::float8 as bytes,
            (select max(created_at)::text from due) as last
       from expired`,
    [group.tenantId, group.kind, group.keepDays, config.batchSize, `expired: ${group.policy}`, from],
  )
  return rows[0] ?? { artifacts: 0, bytes: 0, last: null }
}

/** Those that have a date of their own. */
async function expireByDate(context: SweepContext, counts: Counts): Promise<void> {
  const { pool, config, signal } = context
  if (context.dryRun) {
    const { rows } = await pool.query<{ n: number; bytes: number }>(
      `select count(*)::int as n, coalesce(sum(a.size_bytes), 0)::float8 as bytes
         from public.artifact_refs a where a.expires_at < now() and a.deleted_at is null and not ${onHoldSql} and not ${isReferredToSql}`,
    )
    counts.expired = (counts.expired ?? 0) + (rows[0]?.n ?? 0)
    counts.expired_bytes = (counts.expired_bytes ?? 0) + (rows[0]?.bytes ?? 0)
    return
  }
  const pace = createPace(config.rate, signal)
  for (let from = '-infinity'; !signal.aborted; ) {
    const { rows } = await pool.query<Expired>(
      `with due as (
         select a.tenant_id, a.id, a.expires_at from public.artifact_refs a
          where a.expires_at < now() and a.expires_at >= $2::timestamptz and a.deleted_at is null
            and not ${onHoldSql} and not ${isReferredToSql}
          order by a.expires_at limit $1 for update of a skip locked
       ),
       expired as (
         update public.artifact_refs a set deleted_at = now(), deleted_reason = 'expired: its own date'
           from due where a.tenant_id = due.tenant_id and a.id = due.id
         returning a.size_bytes
       )
       select count(*)::int as artifacts, coalesce(sum(size_bytes), 0)::float8 as bytes,
              (select max(expires_at)::text from due) as last
         from expired`,
      [config.batchSize, from],
    )
    const { artifacts, bytes, last } = rows[0] ?? { artifacts: 0, bytes: 0, last: null }
    counts.expired = (counts.expired ?? 0) + artifacts
    counts.expired_bytes = (counts.expired_bytes ?? 0) + bytes
    context.onProgress(counts)
    if (artifacts < config.batchSize || last === null) return
    from = last
    await pace(artifacts)
  }
}
