// Release: artifacts that no row points to any more, since the message was deleted or its pointer overwritten.
//
// Mark and sweep, not a trigger: the application may copy a row with its pointers, so that a row which goes does not
// tell that its artifacts may. One snapshot of all sources shows every pointer there is; what none of them leads to,
// over payloads that point on, is released. It stays readable for the grace period, and only if a second snapshot
// then finds it still unused does it get a tombstone: a pointer that somebody held in hand meanwhile is found again.
import type pg from 'pg'
import { LighterError } from '../errors.ts'
import { fieldRefKey, ident, literal, metadataRefKey } from '../offload/source-sql.ts'
import { loadSources, type Source } from '../offload/sources.ts'
import type { Counts, SweepContext } from './context.ts'
import { createPace } from './pace.ts'
import { onHoldSql } from './purge.ts'

/** Younger ones may have been committed since the snapshot, by a daemon whose clock is another. */
const minimumAge = '1 hour'

export async function sweepRelease(context: SweepContext): Promise<Counts> {
  const counts: Counts = { pointers: 0, unused: 0, released: 0, found_again: 0, tombstoned: 0 }
  const client = await context.pool.connect()
  try {
    await findUnused(context, client, counts)
    if (!context.signal.aborted) await settle(context, client, counts)
  } finally {
    // The temporary tables go with the session; another user of the pool must not find them.
    client.release(true)
  }
  return counts
}

/** Fills the temporary table `unused`. All in one snapshot. */
async function findUnused(context: SweepContext, client: pg.PoolClient, counts: Counts): Promise<void> {
  await client.query('begin isolation level repeatable read')
  await client.query('set local statement_timeout = 0')
  const sources = [...(await loadSources(client)).values()]
  // What can't be seen can't be told from what is not there.
  const hidden = sources.find(source => source.rowsHidden)
  if (hidden !== undefined) {
    throw new LighterError(
      'rows_hidden',
      `row-level security of ${hidden.tableSql} may hide rows from lighter_daemon: nothing is released`,
      {
        hint: 'Attach the table again, which adds a policy, and let restrictive policies except lighter_daemon.',
      },
    )
  }
  await client.query(`
    create temporary table marked (id uuid primary key);
    create temporary table unused (tenant_id uuid not null, id uuid primary key)`)
  for (const source of sources) {
    if (context.signal.aborted) break
    const { rowCount } = await markPointers(client, source, sources)
    counts.pointers = (counts.pointers ?? 0) + (rowCount ?? 0)
    context.onProgress(counts)
  }
  // A snapshot that was not looked at whole says nothing.
  if (context.signal.aborted) {
    await client.query('rollback')
    return
  }
  while ((await markReferredTo(client)) > 0) context.onProgress(counts)
  // Of sources that are attached: the rows of others can't be looked at, and may point to theirs.
  const { rowCount } = await client.query({
    text: `insert into unused
           select a.tenant_id, a.id from public.artifact_refs a
            where a.source_id = any ($1::int[]) and a.deleted_at is null and a.created_at < now() - $2::interval
              and not exists (select from marked m where m.id = a.id)`,
    values: [sources.map(s => s.id), minimumAge],
  })
  counts.unused = rowCount ?? 0
  await client.query('commit')
}

function markPointers(client: pg.PoolClient, source: Source, sources: Source[]): Promise<pg.QueryResult> {
  // A row may have been copied from another source, with that one's pointers.
  const names = new Set([
    metadataRefKey,
    ...sources.flatMap(s => (s.phase1Field === null ? [] : [fieldRefKey(s.phase1Field)])),
  ])
  const column = `m.${ident(source.jsonColumn)}`
  const list = [...names].map(literal)
  return client.query(`
    insert into marked
    select distinct lighter.as_uuid(${column} ->> n.name)
      from ${source.tableSql} m
     cross join unnest(array[${list.join(', ')}]) n(name)
     where ${column} ?| array[${list.join(', ')}]
       and lighter.as_uuid(${column} ->> n.name) is not null
        on conflict do nothing`)
}

/** One step along payloads that point to others. @returns how many were new */
async function markReferredTo(client: pg.PoolClient): Promise<number> {
  const { rowCount } = await client.query(`
    insert into marked
    select distinct r.id
      from marked m
      join public.artifact_refs a on a.id = m.id
     cross join lateral (
       select unnest(a.refers_to) as id
       union all
       -- Stored before it was noted what payloads point to: all of the row's may be needed.
       select b.id from public.artifact_refs b
        where a.refers_to is null and a.field is null and a.source_id is not null
          and b.tenant_id = a.tenant_id and b.source_id = a.source_id and b.row_id = a.row_id
          and b.entity_type is not distinct from a.entity_type and b.entity_id is not distinct from a.entity_id
     ) r
        on conflict do nothing`)
  return rowCount ?? 0
}

/** Brings `released_at` up to date, and puts tombstones on what has been unused for the whole grace period. */
async function settle(context: SweepContext, client: pg.PoolClient, counts: Counts): Promise<void> {
  const { config, signal } = context
  if (context.dryRun) {
    const { rows } = await client.query<{ released: number; tombstoned: number; again: number }>({
      text: `select (select count(*)::int from unused u join public.artifact_refs a using (tenant_id, id)
                      where a.released_at is null) as released,
                    (select count(*)::int from unused u join public.artifact_refs a using (tenant_id, id)
                      where a.released_at < now() - make_interval(days => $1) + interval '1 hour'
                        and not ${onHoldSql}) as tombstoned,
                    (select count(*)::int from public.artifact_refs a
                      where a.released_at is not null and a.deleted_at is null
                        and not exists (select from unused u where u.id = a.id)) as again`,
      values: [config.graceDays],
    })
    counts.released = rows[0]?.released ?? 0
    counts.tombstoned = rows[0]?.tombstoned ?? 0
    counts.found_again = rows[0]?.again ?? 0
    return
  }
  const pace = createPace(config.rate, signal)
  const work = async (name: string, batch: () => Promise<number>) => {
    for (;;) {
      if (signal.aborted) return
      const n = await batch()
      counts[name] = (counts[name] ?? 0) + n
      context.onProgress(counts)
      if (n < config.batchSize) return
      await pace(n)
    }
  }
  await work('found_again', async () => {
    const { rowCount } = await client.query({
      text: `with batch as (
               select a.tenant_id, a.id from public.artifact_refs a
                where a.released_at is not null and a.deleted_at is null
                  and not exists (select from unused u where u.id = a.id)
                limit $1 for update of a skip locked
             )
             update public.artifact_refs a set released_at = null from batch b
              where a.tenant_id = b.tenant_id and a.id = b.id`,
      values: [config.batchSize],
    })
    return rowCount ?? 0
  })
  await work('tombstoned', async () => {
    const { rowCount } = await client.query({
      text: `with batch as (
               select a.tenant_id, a.id from public.artifact_refs a
                -- (a run of a week later comes a moment too early, else)
                where a.released_at < now() - make_interval(days => $2) + interval '1 hour' and a.deleted_at is null
                  and exists (select from unused u where u.id = a.id)
                  and not ${onHoldSql}
                order by a.released_at
                limit $1 for update of a skip locked
             )
             update public.artifact_refs a set deleted_at = now(), deleted_reason = 'released: no row points to it'
               from batch b
              where a.tenant_id = b.tenant_id and a.id = b.id`,
      values: [config.batchSize, config.graceDays],
    })
    return rowCount ?? 0
  })
  // Taken off the list as they are worked off, so that none is looked at twice.
  await work('released', async () => {
    const { rows } = await client.query<{ taken: number; released: number }>({
      text: `with taken as (
               delete from unused u where u.id in (select id from unused limit $1) returning u.tenant_id, u.id
             ),
             released as (
               update public.artifact_refs a set released_at = now() from taken t
                where a.tenant_id = t.tenant_id and a.id = t.id and a.released_at is null and a.deleted_at is null
               returning 1
             )
             select (select count(*)::int from taken) as taken, (select count(*)::int from released) as released`,
      values: [config.batchSize],
    })
    // Those that were known already are not news.
    counts.released = (counts.released ?? 0) + (rows[0]?.released ?? 0) - (rows[0]?.taken ?? 0)
    return rows[0]?.taken ?? 0
  })
}
