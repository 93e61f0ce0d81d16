// Retention: artifacts past their policy get a tombstone, those whose grace period is over are purged, objects with
// nothing alive in them leave the bucket.
import type pg from 'pg'
import {
  type Change,
  changeArtifacts,
  dueSql,
  expiredByDate,
  expiredByPolicy,
  isOverSql,
  sumOf,
  type Together,
} from '../catalogue/change.ts'
import {
  beforeAllMarked,
  inFrameSql,
  lastOfPageSql,
  type MarkedPosition,
  markedSql,
  positionValues,
} from '../catalogue/marked.ts'
import { seesAllRowsSql } from '../db/all-rows.ts'
import { inTransactionWithRetry } from '../db/pool.ts'
import type { Counts, SweepContext } from './context.ts'
import { deleteDueObjects } from './deletion.ts'
import { createPace } from './pace.ts'
import { forgetTombstones, onHoldSql, purgeTombstones } from './purge.ts'
import { accountVanished } from './vanished.ts'

/**
 * SQL: what the payloads of live artifacts point to (tenant_id, id). It must live as long: a row that was offloaded again
 * on top of an old payload would else lose what was written today. Expiry goes from the newest down.
 * @param where SQL, of the row `r`: a frame, or a loose artifact
 */
const referencesSql = (where: string) => `
  select r.tenant_id, u.id
    from lighter.frames r cross join lateral unnest(r.refers_from, r.refers_to) u(ordinal, id)
   where r.refers_to <> '{}' and ${where} and u.ordinal <> all (r.voids)
     and not exists (select from lighter.frame_exceptions x
                      where x.tenant_id = r.tenant_id and x.frame_id = r.id and u.ordinal = any (x.ordinals) and x.deleted_at is not null)
  union all
  select r.tenant_id, u.id
    from lighter.loose_artifacts r cross join lateral unnest(r.refers_to) u(id)
   where r.refers_to <> '{}' and r.deleted_at is null and ${where}`

/** SQL: a common table expression, what points into the frames of `page` (tenant_id, frame_id): one look for each. */
const referredSql = `
  referred as materialized (
    select u.tenant_id, u.id
      from (select distinct tenant_id, frame_id from page) p
     cross join lateral (
       select coalesce(
         (select array(select encode(overlay(uuid_send(f.id) placing int2send(n::int2) from 15), 'hex')::uuid
                         from generate_series(0, cardinality(f.sizes) - 1) n)
            from lighter.frames f where f.tenant_id = p.tenant_id and f.id = p.frame_id),
         array[p.frame_id]) as ids) w
     cross join lateral (${referencesSql('r.refers_to && w.ids')} offset 0) u
     where u.tenant_id = p.tenant_id and u.id = any (w.ids)
  )`

/** SQL: a live artifact points to artifact `a`, of the frames of `page`. */
const isReferredSql = '(a.tenant_id, a.id) in (select tenant_id, id from referred)'

/** SQL: the same, of an artifact by itself: slower, and whatever their number nothing is held for all of them. */
const isReferredToSql = `exists (
  select from (${referencesSql('r.refers_to @> array[a.id]')} offset 0) u where u.tenant_id = a.tenant_id and u.id = a.id)`

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
      for (const table of tables) {
        for (let from = beginning; !signal.aborted; ) {
          const { artifacts, bytes, last } = await expirePage(context, group, table, from)
          counts.expired = (counts.expired ?? 0) + artifacts
          counts.expired_bytes = (counts.expired_bytes ?? 0) + bytes
          context.onProgress(counts)
          if (last === null) break
          from = last
          await pace(artifacts)
        }
      }
    }
    after = groups.at(-1) ?? null
    if (after === null) return
  }
}

/**
 * The next groups with something alive in them, each found by one look into either index, however many artifacts it has
 * (frames_live, loose_artifacts_live: tombstones are not in them).
 */
async function nextGroups({ pool, config }: SweepContext, after: Group | null): Promise<Group[]> {
  const { rows } = await pool.query<Group>(
    `with recursive groups as (
       (${nextGroupSql('$1::uuid', '$2::text')})
       union all
       select n.tenant_id, n.kind
         from groups g
        cross join lateral (${nextGroupSql('g.tenant_id', 'g.kind')}) n
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

const nextGroupSql = (tenant: string, kind: string) => `
  select * from (
    (select f.tenant_id, f.kind from lighter.frames f
      where (f.tenant_id, f.kind) > (${tenant}, ${kind}) and f.artifacts > 0
      order by f.tenant_id, f.kind limit 1)
    union all
    (select l.tenant_id, l.kind from lighter.loose_artifacts l
      where (l.tenant_id, l.kind) > (${tenant}, ${kind}) and l.deleted_at is null
      order by l.tenant_id, l.kind limit 1)) of_either
   order by tenant_id, kind limit 1`

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

/** Where a page ended, in the order of creation. */
interface Position {
  createdAt: string
  id: string
}

const beginning: Position = { createdAt: '-infinity', id: '00000000-0000-0000-0000-000000000000' }

interface Expired<P> {
  artifacts: number
  bytes: number
  /** Null when there was nothing more. */
  last: P | null
}

/** A frame is as much work as so many artifacts. */
const artifactsPerFrame = 4

/** Where artifacts are, what tells that one of them may be alive, and how many of its rows are a batch. */
const tables = [
  {
    name: 'lighter.frames',
    live: 'x.artifacts > 0',
    rows: (batchSize: number) => Math.max(1, Math.ceil(batchSize / artifactsPerFrame)),
  },
  { name: 'lighter.loose_artifacts', live: 'x.deleted_at is null', rows: (batchSize: number) => batchSize },
]

/** @param from where the page before ended: what it left behind, and must stay, is not walked past again */
async function expirePage(
  { pool, config }: SweepContext,
  group: Group,
  table: (typeof tables)[number],
  from: Position,
): Promise<Expired<Position>> {
  return expire(
    pool,
    expiredByPolicy(group.policy ?? ''),
    `with page as materialized (
       select x.tenant_id, x.id as frame_id, x.created_at from ${table.name} x
        where x.tenant_id = $1 and x.kind = $2 and x.created_at < now() - make_interval(days => $3) and ${table.live}
          and (x.created_at, x.id) > ($4::timestamptz, $5::uuid)
        order by x.created_at, x.id
        limit $6
     ),
     ${referredSql},
     due as (
       select a.tenant_id, a.frame_id, a.ordinal
         from page p cross join lateral ${inFrameSql('p.tenant_id', 'p.frame_id')} a
        where a.kind = $2 and a.deleted_at is null and not ${onHoldSql} and not ${isReferredSql}
     )
     select ${dueSql} as due,
            (select json_build_object('createdAt', created_at::text, 'id', frame_id)
               from page order by created_at desc, frame_id desc limit 1) as last`,
    [group.tenantId, group.kind, group.keepDays, from.createdAt, from.id, table.rows(config.batchSize)],
  )
}

/** @param find SQL: what is `due`, and the `last` of its page */
function expire<P>(pool: pg.Pool, change: Change, find: string, values: unknown[]): Promise<Expired<P>> {
  return inTransactionWithRetry(pool, async db => {
    const { rows } = await db.query<{ due: Together[]; last: P | null }>({ text: find, values })
    const { due = [], last = null } = rows[0] ?? {}
    const { n, bytes } = sumOf(await changeArtifacts(db, due, change))
    return { artifacts: n, bytes, last }
  })
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
  for (let after = beforeAllMarked; !signal.aborted; ) {
    const { artifacts, bytes, last } = await expire<MarkedPosition>(
      pool,
      expiredByDate,
      `with ${markedSql('expires_at', isOverSql, 1, 'a.tenant_id, a.id, a.frame_id, a.ordinal, a.entity_type, a.entity_id')},
       ${referredSql},
       due as (select * from marked a where not ${onHoldSql} and not ${isReferredSql})
       select ${dueSql} as due, ${lastOfPageSql} as last`,
      [...positionValues(after), config.batchSize],
    )
    counts.expired = (counts.expired ?? 0) + artifacts
    counts.expired_bytes = (counts.expired_bytes ?? 0) + bytes
    context.onProgress(counts)
    if (last === null) return
    after = last
    await pace(artifacts)
  }
}
