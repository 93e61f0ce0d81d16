// Release: artifacts that no row points to any more, since the message was deleted or its pointer overwritten.
//
// Mark and sweep, not a trigger: the application may copy a row with its pointers, so that a row which goes does not
// tell that its artifacts may. One snapshot of all sources shows every pointer there is; what none of them leads to,
// over payloads that point on, is released. It stays readable for the grace period, and only if a second snapshot
// then finds it still unused does it get a tombstone: a pointer that somebody held in hand meanwhile is found again.
import type pg from 'pg'
import { fetchPayloads } from '../artifacts/fetch.ts'
import { pointersInPayload } from '../artifacts/pointers-in-payload.ts'
import {
  type Change,
  changeArtifacts,
  dueSql,
  foundAgain,
  isUnusedSql,
  released,
  sumOf,
  type Together,
  tombstoned,
} from '../catalogue/change.ts'
import { lookupArtifacts } from '../catalogue/lookup.ts'
import {
  beforeAllMarked,
  lastOfPageSql,
  type MarkedPosition,
  markedSql,
  positionValues,
} from '../catalogue/marked.ts'
import { requireAllRows } from '../db/all-rows.ts'
import { inTransactionWithRetry } from '../db/pool.ts'
import { beginSql, connectSession } from '../db/prepared.ts'
import { SteadyClient } from '../db/settings.ts'
import type { ArtifactId, TenantId } from '../ids.ts'
import { findMissingParts, type MissingPart, notePartitions, partsMissing } from '../offload/missing-parts.ts'
import { fromTreeSql, tenantSql } from '../source/expressions.ts'
import { pointersOfRowSql } from '../source/modes.ts'
import { mayBeRowSql } from '../source/rows-by-key.ts'
import { loadSources, type Source } from '../source/sources.ts'
import { openSession, within } from '../wake/session.ts'
import type { Counts, SweepContext } from './context.ts'
import { findMovedRows, noTenantSql, recordMovedRows } from './moved-rows.ts'
import { createPace } from './pace.ts'
import { onHoldSql } from './purge.ts'

/** Younger ones may have been committed since the snapshot, by a daemon whose clock is another. */
const minimumAge = '1 hour'

/** Payloads that one run reads to learn what they point to; at once; and their bytes. */
const learnAtMost = 10_000
const learnAtOnce = 100
const learnBytes = 64 * 1024 * 1024

export async function sweepRelease(context: SweepContext): Promise<Counts> {
  const counts: Counts = { pointers: 0, moved: 0, unused: 0, released: 0, found_again: 0, tombstoned: 0 }
  // A session of its own, for its temporary tables, and without a limit on a statement's time.
  const { config, cut } = openSession(context.sessionUrl, 'pg-lighter release')
  const client = new SteadyClient(config)
  client.on('error', () => undefined)
  try {
    await connectSession(client)
    await notePartitions(client)
    const missing = await findUnused(context, client, counts)
    if (!context.signal.aborted && !context.dryRun) await recordMovedRows(client)
    if (missing.length > 0) {
      counts.out_of_sight = missing.length
      if (!context.signal.aborted && !context.dryRun) await bringBackMarked(context, client, counts)
      context.onProgress(counts)
      throw partsMissing(missing)
    }
    if (!context.signal.aborted) await settle(context, client, counts)
    if (!context.signal.aborted && !context.dryRun) await learnPointers(context, client, counts)
  } finally {
    await within(1000, 'closing', client.end()).catch(() => undefined)
    cut()
  }
  return counts
}

/**
 * Fills the temporary table `unused`. All in one snapshot.
 * @returns what could not be looked at: if anything, no artifact is known to be unused
 */
async function findUnused(
  context: SweepContext,
  client: pg.ClientBase,
  counts: Counts,
): Promise<MissingPart[]> {
  await client.query(
    `${beginSql(client, 'isolation level repeatable read')}; set local statement_timeout = 0; set local enable_seqscan = on`,
  )
  const sources = [...(await loadSources(client)).values()]
  // What can't be seen can't be told from what is not there.
  await requireAllRows(client, null)
  await client.query(`
    -- with the tenant on whose behalf the pointer is followed
    create temporary table pointed_to (
      id uuid not null, tenant_id uuid not null, frame_id uuid generated always as (lighter.frame_of(id)) stored,
      round int not null default 0, primary key (id, tenant_id));
    -- Of a frame many, or a loose one.
    create temporary table unused (
      place bigint generated always as identity primary key, tenant_id uuid not null, frame_id uuid not null, ordinals smallint[],
      unique (tenant_id, frame_id))`)
  for (const source of sources) {
    if (context.signal.aborted) break
    const { rowCount } = await markPointers(client, source)
    counts.pointers = (counts.pointers ?? 0) + (rowCount ?? 0)
    context.onProgress(counts)
  }
  // A snapshot that was not looked at whole says nothing.
  if (context.signal.aborted) {
    await client.query('rollback')
    return []
  }
  // What it holds is known to the planner from here on.
  await client.query('analyze pointed_to')
  let round = 0
  while ((await markReferredTo(client, round)) > 0) round++
  counts.moved = await findMovedRows(client, sources)
  for (const source of counts.moved === 0 ? [] : sources) await markMoved(client, source, round)
  while ((await markReferredTo(client, round)) > 0) round++
  await findUnknown(client)
  // By another session, whose snapshot is new: the tables were locked one by one, and a partition that was detached
  // before its table's turn came has not been looked at.
  const missing = await findMissingParts(context.pool)
  if (missing.length > 0) {
    await client.query('commit')
    return missing
  }
  // Of sources that are attached, or were and are again: the rows of others can't be looked at, and may point to theirs.
  const { rows } = await client.query<{ n: number }>({
    text: `with unused_now as materialized (
             select a.tenant_id, a.frame_id, a.ordinal from public.artifact_refs a
              where (a.source_id = any ($1::int[])
                     or a.source_id in (select f.id from lighter.former_sources f where f.rows_deleted))
                and a.deleted_at is null and a.created_at < now() - $2::interval
                and not ${isMarkedSql}
                and not exists (select from unknown k where k.tenant_id = a.tenant_id)
           ),
           kept as (
             insert into unused (tenant_id, frame_id, ordinals)
             select u.tenant_id, u.frame_id, array_agg(u.ordinal order by u.ordinal) filter (where u.ordinal is not null)
               from unused_now u group by u.tenant_id, u.frame_id order by u.tenant_id, u.frame_id
           )
           select count(*)::int as n from unused_now`,
    values: [sources.flatMap(s => [s.id, ...s.formerIds]), minimumAge],
  })
  counts.unused = rows[0]?.n ?? 0
  await client.query('analyze unused')
  // All tables are locked by now: what is seen is what was seen.
  await requireAllRows(client, null)
  await client.query('commit')
  return []
}

function markPointers(client: pg.ClientBase, source: Source): Promise<pg.QueryResult> {
  return client.query(`
    insert into pointed_to (id, tenant_id)
    select distinct ptr.id, coalesce(${tenantSql(source)}, ${noTenantSql})
      from ${fromTreeSql(source)}
     cross join lateral unnest(${pointersOfRowSql(source)}) ptr(id)
        on conflict do nothing`)
}

/**
 * SQL: artifact `a` is pointed to by a row of its own tenant. What rows of another tenant name does not count: they
 * can't read it, and must not be able to keep it. A row without a tenant is nobody's, and counts for all.
 */
const isMarkedSql = `exists (select from pointed_to m where m.id = a.id and m.tenant_id in (a.tenant_id, ${noTenantSql}))`

/**
 * A row that was moved to another tenant keeps the payload that came off that very row: it can be moved back, or be
 * restored there. Others can't name an artifact into this, since the artifact names the row.
 */
async function markMoved(client: pg.ClientBase, source: Source, round: number): Promise<void> {
  await client.query({
    text: `
      insert into pointed_to (id, tenant_id, round)
      select distinct a.id, a.tenant_id, $2::int
        from public.artifact_refs a
        join ${fromTreeSql(source)} on ${rowOfArtifactSql(source)}
       where a.source_id = any ($1::int[]) and a.row_id is not null
         and exists (select from strayed s where s.id = a.id)
         and a.id = any (${pointersOfRowSql(source)})
          on conflict do nothing`,
    values: [[source.id, ...source.formerIds], round],
  })
}

/** SQL: row `m` of the source is the one that artifact `a` was taken off. Whoever else writes there may have written any row_id. */
function rowOfArtifactSql(source: Source): string {
  return mayBeRowSql(source, 'a.row_id')
}

/** SQL: its ordinal, of the id of an artifact in a frame. */
const ordinalSql = (id: string) => `get_byte(uuid_send(${id}), 14) * 256 + get_byte(uuid_send(${id}), 15)`

/** One step along payloads that point to others, from those that were new in `round`. @returns how many are new now */
async function markReferredTo(client: pg.ClientBase, round: number): Promise<number> {
  const { rowCount } = await client.query({
    text: `
      insert into pointed_to (id, tenant_id, round)
      select distinct n.id, n.tenant_id, $1::int + 1
        from (select r.id, m.tenant_id
                from pointed_to m
                join lighter.frames f on f.id = m.frame_id and f.refers_to <> '{}'
               cross join lateral unnest(f.refers_from, f.refers_to) r(ordinal, id)
               where m.round = $1::int and r.ordinal = ${ordinalSql('m.id')} and r.ordinal <> all (f.voids)
              union all
              select r.id, m.tenant_id
                from pointed_to m
                join lighter.loose_artifacts l on l.id = m.id and l.refers_to <> '{}'
               cross join lateral unnest(l.refers_to) r(id)
               where m.round = $1::int) n
          on conflict do nothing`,
    values: [round],
  })
  return rowCount ?? 0
}

/**
 * Of what is in use: artifacts of which it was never noted what their payloads point to, since something else than
 * our offload stored them, or an older version. Nothing of their tenants is released until that is known.
 */
async function findUnknown(client: pg.ClientBase): Promise<void> {
  await client.query(`
    create temporary table unknown as
    select distinct a.tenant_id, a.id
      from lighter.loose_artifacts a
     where ${isMarkedSql}
       and a.refers_to is null and a.field is null and a.purged_at is null
       and (a.source_id is not null or coalesce(a.content_type, 'application/json') ~* 'json')`)
}

/** Reads payloads of which it is not known what they point to, and notes it, so that the next run knows. */
async function learnPointers(context: SweepContext, client: pg.ClientBase, counts: Counts): Promise<void> {
  const { pool, store, signal } = context
  const { rows } = await client.query<{ tenantId: TenantId; id: ArtifactId }>({
    text: 'select tenant_id as "tenantId", id from unknown order by tenant_id, id limit $1',
    values: [learnAtMost],
  })
  for (const [tenantId, ofTenant] of Map.groupBy(rows, row => row.tenantId)) {
    for (let at = 0; at < ofTenant.length && !signal.aborted; at += learnAtOnce) {
      const ids = ofTenant.slice(at, at + learnAtOnce).map(row => row.id)
      const artifacts = [...(await lookupArtifacts(pool, tenantId, ids)).values()]
      const payloads = await fetchPayloads(
        store,
        artifacts.map(artifact => ({ ...artifact, deletedAt: null })),
        { concurrency: 4, maxPayloadBytes: learnBytes, budget: { bytes: learnBytes } },
      )
      const known = [...payloads].flatMap(([artifact, payload]) =>
        // One that can't be read stays unknown; the verify sweep says what it is.
        payload instanceof Error ? [] : [{ id: artifact.id, refs: pointersInPayload(payload) }],
      )
      await pool.query(
        // Only of loose ones it may be unknown.
        `update lighter.loose_artifacts a set refers_to = string_to_array(k.refs, ',')::uuid[]
           from unnest($2::uuid[], $3::text[]) k(id, refs)
          where a.tenant_id = $1 and a.id = k.id and a.refers_to is null`,
        [tenantId, known.map(k => k.id), known.map(k => k.refs.join(','))],
      )
      counts.learned = (counts.learned ?? 0) + known.length
      context.onProgress(counts)
    }
  }
}

/** SQL: artifact `a` is in the temporary table `unused`. */
const isInUnusedSql = `exists (
  select from unused u
   where u.tenant_id = a.tenant_id and u.frame_id = a.frame_id and (u.ordinals is null or a.ordinal = any (u.ordinals)))`

/** Brings `released_at` up to date, and puts tombstones on what has been unused for the whole grace period. */
async function settle(context: SweepContext, client: pg.ClientBase, counts: Counts): Promise<void> {
  if (context.dryRun) {
    const { rows } = await client.query<{ released: number; tombstoned: number; again: number }>({
      text: `select (select count(*)::int from public.artifact_refs a where a.released_at is null and ${isInUnusedSql}) as released,
                    (select count(*)::int from public.artifact_refs a
                      where a.released_at < now() - make_interval(days => $1) + interval '1 hour'
                        and ${isInUnusedSql} and not ${onHoldSql}) as tombstoned,
                    (select count(*)::int from public.artifact_refs a
                      where a.released_at is not null and a.deleted_at is null and not ${isInUnusedSql}) as again`,
      values: [context.config.graceDays],
    })
    counts.released = rows[0]?.released ?? 0
    counts.tombstoned = rows[0]?.tombstoned ?? 0
    counts.found_again = rows[0]?.again ?? 0
    return
  }
  await bringBackMarked(context, client, counts)
  await changeMarked(context, client, counts, 'found_again', {
    column: 'released_at',
    where: 'x.released_at is not null and x.deleted_at is null',
    which: `not ${isInUnusedSql}`,
    change: foundAgain,
  })
  await changeMarked(context, client, counts, 'tombstoned', {
    column: 'released_at',
    where: isUnusedSql('$6'),
    which: `${isInUnusedSql} and not ${onHoldSql}`,
    change: tombstoned(context.config.graceDays),
    values: [context.config.graceDays],
  })
  await releaseUnused(context, client, counts)
}

/** What has a tombstone of ours, and a pointer to it: as long as it is not purged, the pointer that came back is right. */
async function bringBackMarked(context: SweepContext, client: pg.ClientBase, counts: Counts): Promise<void> {
  await changeMarked(context, client, counts, 'found_again', {
    column: 'deleted_at',
    where: `x.deleted_at is not null and x.purged_at is null and x.deleted_reason like 'released:%'`,
    which: isMarkedSql,
    change: foundAgain,
  })
}

/** Changes all artifacts that have a date in `column`, and of which `where` (of the row `x`) and `which` (of the artifact `a`) hold. */
async function changeMarked(
  { config, pool, signal, onProgress }: SweepContext,
  client: pg.ClientBase,
  counts: Counts,
  count: string,
  what: { column: string; where: string; which: string; change: Change; values?: unknown[] },
): Promise<void> {
  const pace = createPace(config.rate, signal)
  for (let after = beforeAllMarked; !signal.aborted; ) {
    const { rows } = await client.query<{ due: Together[]; last: MarkedPosition | null }>({
      text: `with ${markedSql(what.column, what.where, 1, 'a.tenant_id, a.id, a.frame_id, a.ordinal, a.entity_type, a.entity_id')},
             due as (select * from marked a where ${what.which})
             select ${dueSql} as due, ${lastOfPageSql} as last`,
      values: [...positionValues(after), config.batchSize, ...(what.values ?? [])],
    })
    const { due = [], last = null } = rows[0] ?? {}
    const { n } = sumOf(await inTransactionWithRetry(pool, db => changeArtifacts(db, due, what.change)))
    counts[count] = (counts[count] ?? 0) + n
    onProgress(counts)
    if (last === null) return
    after = last
    await pace(n)
  }
}

/** Those that were known already are not news. */
async function releaseUnused(
  { config, pool, signal, onProgress }: SweepContext,
  client: pg.ClientBase,
  counts: Counts,
): Promise<void> {
  const pace = createPace(config.rate, signal)
  for (let after = '0'; !signal.aborted; ) {
    const { rows } = await client.query<Together & { place: string }>({
      text: `select u.place::text, u.tenant_id as "tenantId", u.frame_id as "frameId", u.ordinals
               from unused u where u.place > $1 order by u.place limit $2`,
      values: [after, config.batchSize],
    })
    const { n } = sumOf(await inTransactionWithRetry(pool, db => changeArtifacts(db, rows, released)))
    counts.released = (counts.released ?? 0) + n
    onProgress(counts)
    const last = rows.at(-1)
    if (last === undefined) return
    after = last.place
    await pace(n)
  }
}
