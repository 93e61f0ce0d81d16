// What an erasure would take, and what it leaves unreadable.
import type { Queryable } from '../db/pool.ts'
import { fromSql, tenantSql } from '../source/expressions.ts'
import { pointersOfRowSql } from '../source/modes.ts'
import { loadSources, type Source } from '../source/sources.ts'
import { isTenantKeySql } from '../store/keys.ts'
import { type EraseScope, inScope } from './scope.ts'

export interface Survey {
  artifacts: number
  payload_bytes: number
  /** Payloads in packs that are no artifacts, since their rows changed before the commit, or somebody deleted them. */
  payloads_of_no_artifact: number
  /** Objects that hold nothing else, also those whose rows somebody deleted; and those that are shared with other entities and are written anew. */
  objects: number
  objects_shared: number
  /** Rows of the application's tables that point to these artifacts: they stay, and hydrate no more. */
  rows_pointing: number
  /** Artifacts whose object is not under the tenant's prefix: they are not touched. */
  outside_prefix: number
}

/** Looks at every row of the tenant in the attached tables. */
export async function surveyErasure(db: Queryable, prefix: string, scope: EraseScope): Promise<Survey> {
  const where = inScope(scope)
  const { rows } = await db.query<Omit<Survey, 'rows_pointing' | 'objects'> & { keys: number }>({
    text: `
      with mine as (
        select a.tenant_id, a.r2_key, count(*) as artifacts, sum(a.size_bytes) as bytes
          from public.artifact_refs a
         where ${where.sql}
         group by a.tenant_id, a.r2_key
      )
      select coalesce(sum(m.artifacts), 0)::float8 as artifacts,
             coalesce(sum(m.bytes), 0)::float8 as payload_bytes,
             count(*)::float8
               + ${
                 scope.entity === null
                   ? `(select count(*) from lighter.objects o
                       where o.tenant_id = $1 and o.first_deleted_at is null
                         and not exists (select from mine where mine.r2_key = o.r2_key))`
                   : '0'
               } as keys,
             count(*) filter (where ${
               scope.entity === null
                 ? 'false'
                 : `exists (
               select from public.artifact_refs a
                where a.tenant_id = m.tenant_id and a.r2_key = m.r2_key and a.purged_at is null
                  and not coalesce(${where.sql}, false))`
             })::float8 as objects_shared,
             (select count(*)
                from lighter.frames f
               cross join lateral unnest(f.places${scope.entity === null ? ') with ordinality p(place, n)' : ', f.entity_places) with ordinality p(place, entity, n)'}
               where f.tenant_id = $1 and f.voids <> '{}' and p.place >= 0 and (p.n - 1)::smallint = any (f.voids)
                 ${scope.entity === null ? '' : 'and f.entity_type = $2 and f.entities @> array[$3::uuid] and f.entities[p.entity] = $3::uuid'}
             )::float8 as payloads_of_no_artifact,
             coalesce(sum(m.artifacts) filter (where not ${isTenantKeySql(`$${where.next}::text`, 'm.tenant_id', 'm.r2_key')}), 0)::float8 as outside_prefix
        from mine m`,
    values: [...where.values, prefix],
  })
  const [found] = rows
  if (found === undefined) throw new Error('the survey answered no row')
  const { keys, ...rest } = found
  let rowsPointing = 0
  for (const source of (await loadSources(db)).values())
    rowsPointing += await countPointing(db, source, scope)
  return { ...rest, objects: keys - rest.objects_shared, rows_pointing: rowsPointing }
}

async function countPointing(db: Queryable, source: Source, scope: EraseScope): Promise<number> {
  const where = inScope(scope)
  const { rows } = await db.query<{ n: number }>({
    text: `
      select count(*)::float8 as n
        from ${fromSql(source)}
       where ${tenantSql(source)} = $1
         and exists (
           select from unnest(${pointersOfRowSql(source)}) ptr(id)
             join public.artifact_refs a on a.frame_id = lighter.frame_of(ptr.id) and a.id = ptr.id
            where ${where.sql})`,
    values: where.values,
  })
  return rows[0]?.n ?? 0
}
