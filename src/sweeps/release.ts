// Release: artifacts that no row points to any more, since the message was deleted or its pointer overwritten.
//
// Mark and sweep, not a trigger: the application may copy a row with its pointers, so that a row which goes does not
// tell that its artifacts may. One snapshot of all sources shows every pointer there is; what none of them leads to,
// over payloads that point on, is released. It stays readable for the grace period, and only if a second snapshot
// then finds it still unused does it get a tombstone: a pointer that somebody held in hand meanwhile is found again.
import type pg from 'pg'
import { fetchPayloads } from '../artifacts/fetch.ts'
import { lookupArtifacts } from '../catalogue/lookup.ts'
import { dueColumns, markSql } from '../catalogue/mark.ts'
import {
  beforeAllMarked,
  lastOfPageSql,
  type MarkedPosition,
  markedSql,
  positionValues,
} from '../catalogue/marked.ts'
import { requireAllRows } from '../db/all-rows.ts'
import { retryConflicts } from '../db/pool.ts'
import { beginSql, connectSession } from '../db/prepared.ts'
import { SteadyClient } from '../db/settings.ts'
import type { ArtifactId, TenantId } from '../ids.ts'
import { findMissingParts, type MissingPart, notePartitions, partsMissing } from '../offload/missing-parts.ts'
import { fromTreeSql, ident, pointersInSql, tenantSql } from '../source/expressions.ts'
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
    `${beginSql(client, 'isolation level repeatable read')}; set local statement_timeout = 0`,
  )
  const sources = [...(await loadSources(client)).values()]
  // What can't be seen can't be told from what is not there.
  await requireAllRows(client, null)
  await client.query(`
    -- with the tenant on whose behalf the pointer is followed
    create temporary table marked (
      id uuid not null, tenant_id uuid not null, frame_id uuid generated always as (lighter.frame_of(id)) stored, primary key (id, tenant_id));
    create temporary table unused (
      tenant_id uuid not null, id uuid not null, frame_id uuid not null, ordinal smallint, primary key (tenant_id, id))`)
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
  while ((await markReferredTo(client)) > 0) context.onProgress(counts)
  counts.moved = await findMovedRows(client, sources)
  for (const source of counts.moved === 0 ? [] : sources) await markMoved(client, source)
  while ((await markReferredTo(client)) > 0) context.onProgress(counts)
  await findUnknown(client)
  // By another session, whose snapshot is new: the tables were locked one by one, and a partition that was detached
  // before its table's turn came has not been looked at.
  const missing = await findMissingParts(context.pool)
  if (missing.length > 0) {
    await client.query('commit')
    return missing
  }
  // Of sources that are attached, or were and are again: the rows of others can't be looked at, and may point to theirs.
  const { rowCount } = await client.query({
    text: `insert into unused
           select a.tenant_id, a.id, a.frame_id, a.ordinal from public.artifact_refs a
            where (a.source_id = any ($1::int[])
                   or a.source_id in (select f.id from lighter.former_sources f where f.rows_deleted))
              and a.deleted_at is null and a.created_at < now() - $2::interval
              and not ${isMarkedSql}
              and not exists (select from unknown k where k.tenant_id = a.tenant_id)`,
    values: [sources.flatMap(s => [s.id, ...s.formerIds]), minimumAge],
  })
  counts.unused = rowCount ?? 0
  // All tables are locked by now: what is seen is what was seen.
  await requireAllRows(client, null)
  await client.query('commit')
  return []
}

function markPointers(client: pg.ClientBase, source: Source): Promise<pg.QueryResult> {
  return client.query(`
    insert into marked (id, tenant_id)
    select distinct ptr.id, coalesce(${tenantSql(source)}, ${noTenantSql})
      from ${fromTreeSql(source)}
     cross join lateral unnest(${pointersInSql(source, `m.${ident(source.jsonColumn)}`)}) ptr(id)
        on conflict do nothing`)
}

/**
 * SQL: artifact `a` is pointed to by a row of its own tenant. What rows of another tenant name does not count: they
 * can't read it, and must not be able to keep it. A row without a tenant is nobody's, and counts for all.
 */
const isMarkedSql = `exists (select from marked m where m.id = a.id and m.tenant_id in (a.tenant_id, ${noTenantSql}))`

/**
 * A row that was moved to another tenant keeps the payload that came off that very row: it can be moved back, or be
 * restored there. Others can't name an artifact into this, since the artifact names the row.
 */
async function markMoved(client: pg.ClientBase, source: Source): Promise<void> {
  await client.query({
    text: `
      insert into marked (id, tenant_id)
      select distinct a.id, a.tenant_id
        from public.artifact_refs a
        join ${fromTreeSql(source)} on ${rowOfArtifactSql(source)}
       where a.source_id = any ($1::int[]) and a.row_id is not null
         and exists (select from strayed s where s.id = a.id)
         and a.id = any (${pointersInSql(source, `m.${ident(source.jsonColumn)}`)})
          on conflict do nothing`,
    values: [[source.id, ...source.formerIds]],
  })
}

/** SQL: row `m` of the source is the one that artifact `a` was taken off. Whoever else writes there may have written any row_id. */
function rowOfArtifactSql(source: Source): string {
  const key = `m.${ident(source.keyColumn)}`
  if (source.keyType === 'uuid') return `${key} = lighter.as_uuid(a.row_id)`
  return `${key} = case when a.row_id ~ '^-?[0-9]{1,18}$' then a.row_id::bigint end`
}

/** One step along payloads that point to others. @returns how many were new */
async function markReferredTo(client: pg.ClientBase): Promise<number> {
  const { rowCount } = await client.query(`
    insert into marked (id, tenant_id)
    select distinct r.id, m.tenant_id
      from marked m
      join public.artifact_refs a on a.frame_id = m.frame_id and a.id = m.id and a.frame_refers_to <> '{}'
     cross join lateral unnest(a.refers_to) as r(id)
        on conflict do nothing`)
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
        payload instanceof Error ? [] : [{ id: artifact.id, refs: pointersIn(payload) }],
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

/** Every uuid in the payload under a name that may be a pointer's, at any depth; or, of escaped names, any name. */
function pointersIn(payload: Buffer): string[] {
  const text = payload.toString('utf8')
  const member = text.includes('\\u')
    ? /:\s*"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"/gi
    : /_ref"\s*:\s*"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"/gi
  return [...new Set(Array.from(text.matchAll(member), ([, id = '']) => id.toLowerCase()))]
}

/** Brings `released_at` up to date, and puts tombstones on what has been unused for the whole grace period. */
async function settle(context: SweepContext, client: pg.ClientBase, counts: Counts): Promise<void> {
  const { config } = context
  if (context.dryRun) {
    const { rows } = await client.query<{ released: number; tombstoned: number; again: number }>({
      text: `select (select count(*)::int from unused u join public.artifact_refs a using (tenant_id, frame_id, id)
                      where a.released_at is null) as released,
                    (select count(*)::int from unused u join public.artifact_refs a using (tenant_id, frame_id, id)
                      where a.released_at < now() - make_interval(days => $1) + interval '1 hour'
                        and not ${onHoldSql}) as tombstoned,
                    (select count(*)::int from public.artifact_refs a
                      where a.released_at is not null and a.deleted_at is null
                        and not exists (select from unused u where u.tenant_id = a.tenant_id and u.id = a.id)) as again`,
      values: [config.graceDays],
    })
    counts.released = rows[0]?.released ?? 0
    counts.tombstoned = rows[0]?.tombstoned ?? 0
    counts.found_again = rows[0]?.again ?? 0
    return
  }
  await bringBackMarked(context, client, counts)
  const work = inBatches(context, counts)
  await work('found_again', async () => {
    const { rowCount } = await client.query({
      text: `with batch as (
               select a.tenant_id, a.id, a.frame_id from public.artifact_refs a
                where a.released_at is not null and a.deleted_at is null
                  and not exists (select from unused u where u.tenant_id = a.tenant_id and u.id = a.id)
                limit $1
             )
             update public.artifact_refs a set released_at = null from batch b
              where a.tenant_id = b.tenant_id and a.frame_id = b.frame_id and a.id = b.id`,
      values: [config.batchSize],
    })
    return rowCount ?? 0
  })
  await tombstoneUnused(context, client, counts)
  // Taken off the list as they are worked off, so that none is looked at twice.
  await work('released', async () => {
    const { rows } = await client.query<{ taken: number; released: number }>({
      text: `with taken as (
               delete from unused u where (u.tenant_id, u.id) in (select tenant_id, id from unused limit $1)
               returning u.tenant_id, u.id, u.frame_id, u.ordinal
             ),
             due as (
               select t.tenant_id, t.id, t.frame_id, t.ordinal, null::text as r2_key, null::bigint as size_bytes
                 from taken t
                where t.ordinal is null
                   or not exists (select from lighter.frame_exceptions x
                                   where x.tenant_id = t.tenant_id and x.frame_id = t.frame_id and x.ordinal = t.ordinal
                                     and (x.released_at is not null or x.deleted_at is not null))
             ),
             ${markSql('released', { released_at: 'now()' }, 'x.released_at is null and x.deleted_at is null', 'write')}
             select (select count(*)::int from taken) as taken, (select count(*)::int from released) as released`,
      values: [config.batchSize],
    })
    // Those that were known already are not news.
    counts.released = (counts.released ?? 0) + (rows[0]?.released ?? 0) - (rows[0]?.taken ?? 0)
    return rows[0]?.taken ?? 0
  })
}

/** What has been unused for the whole grace period. */
async function tombstoneUnused(
  { config, signal, onProgress }: SweepContext,
  client: pg.ClientBase,
  counts: Counts,
): Promise<void> {
  const pace = createPace(config.rate, signal)
  // (a run of a week later comes a moment too early, else)
  const isDue = `x.released_at < now() - make_interval(days => $1) + interval '1 hour' and x.deleted_at is null`
  for (let after = beforeAllMarked; !signal.aborted; ) {
    const { rows } = await retryConflicts(() =>
      client.query<{ n: number; last: MarkedPosition | null }>({
        text: `with ${markedSql('released_at', isDue, 2, `${dueColumns}, a.entity_type, a.entity_id`)},
             due as (
               select * from marked a
                where exists (select from unused u where u.tenant_id = a.tenant_id and u.id = a.id) and not ${onHoldSql}
             ),
             ${markSql(
               'tombstoned',
               { deleted_at: 'now()', deleted_reason: `'released: no row points to it'` },
               'x.released_at is not null and x.deleted_at is null',
               'change',
             )}
             select count(*)::int as n, ${lastOfPageSql} as last from tombstoned`,
        values: [config.graceDays, ...positionValues(after), config.batchSize],
      }),
    )
    const { n, last } = rows[0] ?? { n: 0, last: null }
    counts.tombstoned = (counts.tombstoned ?? 0) + n
    onProgress(counts)
    if (last === null) return
    after = last
    await pace(n)
  }
}

/** Calls `batch` until it finds fewer than a batch. */
function inBatches({ config, signal, onProgress }: SweepContext, counts: Counts) {
  const pace = createPace(config.rate, signal)
  return async (name: string, batch: () => Promise<number>) => {
    for (;;) {
      if (signal.aborted) return
      const n = await retryConflicts(batch)
      counts[name] = (counts[name] ?? 0) + n
      onProgress(counts)
      if (n < config.batchSize) return
      await pace(n)
    }
  }
}

/** What has a tombstone of ours, and a pointer to it: as long as it is not purged, the pointer that came back is right. */
async function bringBackMarked(context: SweepContext, client: pg.ClientBase, counts: Counts): Promise<void> {
  const { config } = context
  await inBatches(context, counts)('found_again', async () => {
    const { rowCount } = await client.query({
      text: `with batch as (
               select a.tenant_id, a.id, a.frame_id from public.artifact_refs a
                where a.deleted_at is not null and a.purged_at is null and a.deleted_reason like 'released:%'
                  and ${isMarkedSql}
                limit $1
             )
             update public.artifact_refs a set released_at = null, deleted_at = null, deleted_reason = null from batch b
              where a.tenant_id = b.tenant_id and a.frame_id = b.frame_id and a.id = b.id`,
      values: [config.batchSize],
    })
    return rowCount ?? 0
  })
}
