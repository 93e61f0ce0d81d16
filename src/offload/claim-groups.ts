// Step 1 for rows that wait for others: which groups, each of one tenant and kind, are worth a PUT by now, and their rows.
import { randomUUID } from 'node:crypto'
import { arrayText } from '../db/array-text.ts'
import type { Queryable } from '../db/pool.ts'
import type { Source } from '../source/sources.ts'
import { type Lease, leaseOf, type Waited } from './lease.ts'

export interface Group {
  tenantId: string
  kind: string
  rows: number
  bytes: number
  /** One of its rows has waited for as long as it may. */
  isOverdue: boolean
  /** It goes however little there is of it. */
  isFree: boolean
}

/** What is taken of a group. */
export interface Share extends Pick<Group, 'tenantId' | 'kind'> {
  /** Rows at most. */
  most: number
  /** With fewer bytes it stays, unless it is as many rows as may be taken. */
  leastBytes: number
  /** Rows of entities of which more come stay for these, as long as so many bytes of others go; null: all go. */
  leastOfOthers: number | null
}

/** Groups that one look returns; the rest is found by the next one. */
const mostGroups = 1000
/** Rows that wait, of which one look makes groups: two seconds or so. */
const mostRows = 1_000_000

/** An entity of which a row came no longer ago than this, or is followed by another one so soon, goes on. */
const goesOnWithin = '10 minutes'

/** From which tenant on a look reads, in the order of the index. */
export interface From {
  tenantId: string
  /** Not that one itself. */
  after: boolean
}

export interface Look {
  groups: Group[]
  /** Where the next look goes on; null: it has seen all. */
  next: From | null
}

/** CTE `kinds`: what phase of which source has which kind, and how long it waits. Parameters 1 to 5. */
const kindsSql = `
  kinds as materialized (
    select * from unnest($1::int[], $2::int2[], $3::text[], $4::float8[], $5::int[]) k(source_id, phase, kind, max_wait_ms, alone_bytes))`

const kindsOf = (sources: Source[]) => {
  const kinds = sources.flatMap(source =>
    ([1, 2] as const).map(phase => ({
      id: source.id,
      phase,
      kind: phase === 1 ? source.phase1Kind : source.phase2Kind,
      // A row that is written all the time is taken in the end.
      maxWaitMs: Math.max(source.maxWaitMs, source.settleMs),
      aloneBytes: source.shipAloneBytes,
    })),
  )
  return {
    values: [
      arrayText(kinds.map(k => k.id)),
      arrayText(kinds.map(k => k.phase)),
      arrayText(kinds.map(k => k.kind)),
      arrayText(kinds.map(k => k.maxWaitMs)),
      arrayText(kinds.map(k => k.aloneBytes)),
    ],
    free: arrayText(sources.filter(s => s.maxWaitMs === 0).map(s => s.id)),
  }
}

/** Of a row `w` with its `k` of `kinds`. */
const isFlushedSql = `exists (select from lighter.flushes f
  where f.source_id = w.source_id and (f.tenant_id is null or f.tenant_id = w.tenant_id) and f.flushed_at >= w.enqueued_at)`
const isOverdueSql = `w.enqueued_at <= now() - k.max_wait_ms * interval '1 ms'`
const isSettledSql = 'w.available_at <= now()'

interface GroupRow extends Omit<Group, 'kind'> {
  /** Null: of sources that are not worked on. */
  kind: string | null
  isDue: boolean
  isLast: boolean
  /** Rows that the whole look has read. */
  seen: number
}

/**
 * Groups that have the target of a pack; those that have waited for as long as they may and have the least that is worth a
 * PUT; those with a row that is worth one by itself; and those that somebody wants to go. An index is read, an entry of each
 * row that waits, as far as `limit`: what is left out of the last tenant is for the next look.
 */
export async function dueGroups(
  db: Queryable,
  sources: Source[],
  { packTargetBytes, packMinBytes }: { packTargetBytes: number; packMinBytes: number },
  from: From | null = null,
  limit = mostRows,
): Promise<Look> {
  const { values, free } = kindsOf(sources)
  const { rows } = await db.query<GroupRow>({
    text: `
      with ${kindsSql},
      flushed as materialized (select f.source_id, f.tenant_id, f.flushed_at from lighter.flushes f),
      groups as (
        select w.tenant_id, w.kind, count(*) as entries, count(*) filter (where w.ripe) as rows,
               coalesce(sum(w.bytes) filter (where w.ripe), 0) as bytes, bool_or(w.overdue) as overdue, bool_or(w.free) as free
          from (select w.tenant_id, w.source_id, w.phase, w.bytes, k.kind, ${isOverdueSql} as overdue,
                       x.flushed or (w.source_id = any ($6::int[]) or w.bytes >= k.alone_bytes) and (${isSettledSql} or ${isOverdueSql}) as free,
                       ${isSettledSql} or ${isOverdueSql} or x.flushed as ripe
                  from (select o.tenant_id, o.source_id, o.phase, o.bytes, o.enqueued_at, o.available_at
                          from lighter.waiting o
                         where o.tenant_id >= $9 and (o.tenant_id <> $9 or not $10)
                         order by o.tenant_id limit $11) w
                  -- Of a source that is not worked on just now they are read, and are of no group.
                  left join kinds k on k.source_id = w.source_id and k.phase = w.phase
                  left join flushed one on one.source_id = w.source_id and one.tenant_id = w.tenant_id
                  left join flushed every on every.source_id = w.source_id and every.tenant_id is null
                 cross join lateral (select coalesce(greatest(one.flushed_at, every.flushed_at) >= w.enqueued_at, false) as flushed) x) w
         group by w.tenant_id, w.kind
      ),
      judged as (
        select g.*, g.kind is not null and (g.bytes >= $7 or g.overdue and g.bytes >= $8 or g.free) as due,
               row_number() over (order by g.tenant_id desc) = 1 as last, sum(g.entries) over () as seen
          from groups g
      )
      select tenant_id as "tenantId", kind, rows::int as rows, bytes::float8 as bytes, coalesce(overdue, false) as "isOverdue",
             coalesce(free, false) as "isFree", coalesce(due, false) as "isDue", last as "isLast", seen::int as seen
        from judged
       where due or last
       order by last desc, bytes desc
       limit ${mostGroups}`,
    values: [
      ...values,
      free,
      packTargetBytes,
      packMinBytes,
      from?.tenantId ?? '00000000-0000-0000-0000-000000000000',
      from?.after ?? false,
      limit,
    ],
  })
  const last = rows.find(row => row.isLast)
  const isOfOurs = (row: GroupRow): row is GroupRow & Group => row.kind !== null && row.rows > 0
  const due = rows.filter(isOfOurs).filter(row => row.isDue)
  if (last === undefined || last.seen < limit) return { groups: due, next: null }
  // It may have been cut off in the middle. One that takes up a whole look has enough, whatever a part of it has.
  const others = due.filter(row => row.tenantId !== last.tenantId)
  const isAlone = from !== null && !from.after && from.tenantId === last.tenantId
  return isAlone
    ? {
        groups: due.length === 0 && isOfOurs(last) ? [last] : due,
        next: { tenantId: last.tenantId, after: true },
      }
    : { groups: others, next: { tenantId: last.tenantId, after: false } }
}

interface WaitedRow {
  sourceId: number
  rowId: string
  enqueuedMs: number
  nowMs: number
  priority: number
  attempts: number
  conflicts: number
  tenantId: string
  phase: 1 | 2
  kind: string
  bytes: number
  xmin: string
  entityId: string | null
  mustGo: boolean
  isFree: boolean
}

/**
 * The rows of some groups, those that have waited longest first; those of an entity together, as far as that is known. What
 * another daemon is just taking is left out; a group of which too little is left stays.
 */
export async function claimGroups(
  db: Queryable,
  sources: Source[],
  shares: Share[],
  leaseMs: number,
): Promise<Lease | null> {
  const id = randomUUID()
  const { values, free } = kindsOf(sources)
  const { rows } = await db.query<WaitedRow>({
    text: `
      with lazy as materialized (select set_config('synchronous_commit', 'off', true)),
      ${kindsSql},
      shares as materialized (
        select * from unnest($6::uuid[], $7::text[], $9::int[], $10::float8[], $13::float8[])
                        with ordinality g(tenant_id, kind, most, least_bytes, least_of_others, ord)
      ),
      -- Of each source and phase that has the kind, as many as may be taken at most, in the order of the index: a tenant may
      -- have a million.
      found as materialized (
        select g.ord, g.most, g.least_bytes, g.least_of_others, w.*
          from shares g
         cross join lateral (
           select o.*, k.kind from kinds k
            cross join lateral (
              select w.source_id, w.row_id, w.phase, w.entity_id, w.bytes, w.enqueued_at, ${isOverdueSql} or ${isFlushedSql} as must_go,
                     ${isFlushedSql} or w.source_id = any ($8::int[]) as free, w.bytes >= k.alone_bytes as alone
                from lighter.waiting w
               cross join lazy
               where w.tenant_id = g.tenant_id and w.source_id = k.source_id and w.phase = k.phase
                 and (${isSettledSql} or ${isOverdueSql} or ${isFlushedSql})
               order by w.enqueued_at limit g.most for update of w skip locked) o
            where k.kind = g.kind
            order by o.enqueued_at limit g.most) w
      ),
      -- A conversation that goes on would lie in two packs, and take a request for each when it is read.
      going_on as materialized (
        select distinct c.ord, c.source_id, c.phase, later.entity_id
          from (select f.ord, f.source_id, f.phase, f.most, g.tenant_id, max(f.enqueued_at) as last_at
                  from found f join shares g using (ord)
                 where f.least_of_others is not null
                 group by f.ord, f.source_id, f.phase, f.most, g.tenant_id) c
         cross join lateral (
           select w.enqueued_at as at from lighter.waiting w
            where w.tenant_id = c.tenant_id and w.source_id = c.source_id and w.phase = c.phase
            order by w.enqueued_at desc limit 1) newest
         cross join lateral (
           select w.entity_id from lighter.waiting w
            where w.tenant_id = c.tenant_id and w.source_id = c.source_id and w.phase = c.phase
              and w.enqueued_at > least(c.last_at, newest.at - interval '${goesOnWithin}')
              and w.enqueued_at <= c.last_at + interval '${goesOnWithin}'
            order by w.enqueued_at limit 2 * c.most) later
         where later.entity_id is not null
      ),
      weighed as (
        select f.*, s.stays, sum(f.bytes) over (partition by f.ord) as total,
               coalesce(sum(f.bytes) filter (where not s.stays) over (partition by f.ord), 0) as of_others
          from found f
         cross join lateral (
           select not (f.must_go or f.alone) and exists (
             select from going_on e
              where e.ord = f.ord and e.source_id = f.source_id and e.phase = f.phase and e.entity_id = f.entity_id) as stays) s
      ),
      due as materialized (
        select w.* from weighed w
          join (select ord from found group by ord, most, least_bytes
                having sum(bytes) >= least_bytes or count(*) >= most or bool_or(free or alone)) enough using (ord)
         -- Where nearly all goes on, nothing would ever leave.
         where not w.stays or w.of_others < greatest(w.total / 2, w.least_of_others)
      ),
      taken as materialized (
        delete from lighter.waiting w using due d where w.source_id = d.source_id and w.row_id = d.row_id
        returning d.ord, d.kind, d.must_go, d.free, w.source_id, w.row_id, w.priority, w.enqueued_at, w.attempts, w.conflicts,
                  w.last_error, w.tenant_id, w.phase, w.bytes, w.row_xmin, w.entity_id
      ),
      jobs as materialized (select * from taken order by ord, enqueued_at),
      lease as (
        insert into lighter.leases (id, until, source_ids, row_ids, enqueued_at, priorities, attempts, conflicts, errors)
        select $11, now() + $12 * interval '1 ms', array_agg(source_id), array_agg(row_id), array_agg(enqueued_at),
               array_agg(priority), array_agg(attempts), array_agg(conflicts), array_agg(last_error)
          from jobs having count(*) > 0
      )
      select source_id as "sourceId", row_id as "rowId", extract(epoch from enqueued_at)::float8 * 1000 as "enqueuedMs",
             extract(epoch from now())::float8 * 1000 as "nowMs", priority, attempts + 1 as attempts, conflicts,
             tenant_id as "tenantId", phase, kind, bytes, row_xmin::text as xmin, entity_id as "entityId", must_go as "mustGo", free as "isFree"
        from jobs`,
    values: [
      ...values,
      arrayText(shares.map(share => share.tenantId)),
      arrayText(shares.map(share => share.kind)),
      free,
      arrayText(shares.map(share => share.most)),
      arrayText(shares.map(share => share.leastBytes)),
      id,
      leaseMs,
      arrayText(shares.map(share => share.leastOfOthers)),
    ],
  })
  if (rows.length === 0) return null
  return leaseOf(
    id,
    rows.map(row => {
      const { tenantId, phase, kind, bytes, xmin, entityId, mustGo, isFree, nowMs, ...job } = row
      const waited: Waited = { tenantId, phase, kind, bytes, xmin, entityId, mustGo, isFree }
      return { ...job, dueMs: nowMs, error: null, writtenBy: null, waited }
    }),
  )
}
