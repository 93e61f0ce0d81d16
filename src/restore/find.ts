// Rows with pointers, page by page in the order of the primary key.
import type { Queryable } from '../db/pool.ts'
import { asTenantId, type TenantId } from '../ids.ts'
import { documentSql, fromSql, ident, tenantSql } from '../source/expressions.ts'
import { readPointersSql } from '../source/modes.ts'
import {
  isAfterSql,
  isKeyedRowSql,
  keyColumnsSql,
  keyNames,
  partArrays,
  partList,
  partParameters,
  rowKeySql,
  selectKeySql,
} from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'
import type { RestoreScope } from './hold.ts'

export interface OffloadedRow {
  rowId: string
  tenantId: TenantId | null
  /** What its pointers lead to weighs so many bytes, so far as is known; what these point to in turn is counted too. */
  bytes: number
  /** Artifacts that it needs and that are not there, or can't be read any more. */
  unreadable: number
}

export interface Page {
  /** Those with pointers, in order. */
  rows: OffloadedRow[]
  /** All that were looked at. */
  seen: number
  /** Key of the last one; null when there was none. */
  last: string | null
}

/**
 * Looks at the next `limit` rows after `after`, in a statement that takes no lock and returns no payload.
 *
 * A row counts by what stands under our names, not by what artifact_refs has of it: the application may have copied
 * it, pointers and all.
 */
export async function findOffloaded(
  db: Queryable,
  source: Source,
  scope: RestoreScope,
  after: string | null,
  limit: number,
): Promise<Page> {
  return find(
    db,
    source,
    [after, limit, scope.tenantId, scope.keepOwn === true],
    scope.rowId === null ? null : [scope.rowId],
  )
}

/** As `findOffloaded`, of these rows. */
export async function weighRows(db: Queryable, source: Source, rowIds: string[]): Promise<OffloadedRow[]> {
  return (await find(db, source, [null, rowIds.length, null, false], rowIds)).rows
}

async function find(
  db: Queryable,
  source: Source,
  values: unknown[],
  rowIds: string[] | null,
): Promise<Page> {
  const { rows } = await db.query<{
    rowId: string
    tenantId: string | null
    bytes: number | null
    unreadable: number | null
    seen: number | null
  }>({
    text: findSql(source, rowIds),
    values: rowIds === null ? values : [...values, rowIds, ...partArrays(source, rowIds)],
  })
  const end = rows.find(row => row.seen !== null)
  return {
    seen: end?.seen ?? 0,
    last: end?.rowId ?? null,
    rows: rows
      .filter(row => row.seen === null)
      .map(row => ({
        rowId: row.rowId,
        tenantId: row.tenantId === null ? null : asTenantId(row.tenantId),
        bytes: row.bytes ?? 0,
        unreadable: row.unreadable ?? 0,
      })),
  }
}

function findSql(source: Source, rowIds: string[] | null): string {
  const isDocument = source.mode === 'document'
  const order = (alias: string) => keyNames(source, alias).join(', ')
  const stored = isDocument ? `m.${ident(source.jsonColumn)}` : readPointersSql(source)
  const columns = `${selectKeySql(source)}, ${rowKeySql(source)} as row_id, ${tenantSql(source)} as tenant_id, ${stored} as stored`
  const isNext = `($1::text is null or ${isAfterSql(source, '$1::text')})`
  const page =
    rowIds === null
      ? `select ${columns} from ${fromSql(source)} where ${isNext} order by ${keyColumnsSql(source).join(', ')}`
      : `select r.* from unnest($5::text[]${partParameters(source, 6)}) w(row_id${partList(source)})
          cross join lateral (select ${columns} from ${fromSql(source)} where ${isKeyedRowSql(source, 'w')} and ${isNext} offset 0) r
          order by ${order('r')}`
  return `
    with recursive page as materialized (
      ${page}
       -- with ties: a key may not be unique any more
       fetch first ($2) rows with ties
    ),
    opened as (
      select ${order('p')}, p.row_id, p.tenant_id, ${isDocument ? documentSql('p.stored') : 'p.stored'} as doc
        from page p
       where p.stored is not null and ($3::uuid is null or p.tenant_id = $3)
      offset 0
    ),
    pointed as materialized (
      select ${order('o')}, o.row_id, o.tenant_id, ${isDocument ? readPointersSql(source, 'o.doc') : 'o.doc'} as ids
        from opened o
      offset 0
    ),
    -- Each artifact once a row, so that a circle ends.
    needed (row_id, tenant_id, id) as (
      select p.row_id, p.tenant_id, i.id
        from pointed p cross join lateral unnest(p.ids) i(id)
       union
      select n.row_id, n.tenant_id, r.id
        from needed n
        join public.artifact_refs a on a.tenant_id = n.tenant_id and a.frame_id = lighter.frame_of(n.id) and a.id = n.id
       cross join lateral unnest(a.refers_to) r(id)
       -- A value is read as it is, whatever it points to.
       where ${isDocument}
    ),
    weighed as (
      select n.row_id, sum(a.size_bytes)::float8 as bytes,
             count(*) filter (where a.id is null or a.deleted_at is not null or a.damaged_at is not null)::int as unreadable
        from needed n
        left join public.artifact_refs a on a.tenant_id = n.tenant_id and a.frame_id = lighter.frame_of(n.id) and a.id = n.id
       group by n.row_id
      -- What is not there may have been ours, and must be told.
      having not $4::boolean or bool_or(a.id is null or a.source_id is not null)
    )
    select "rowId", "tenantId", bytes, unreadable, seen
      from (
        select ${order('p')}, w.row_id as "rowId", p.tenant_id as "tenantId", w.bytes, w.unreadable, null::int as seen
          from weighed w join pointed p using (row_id)
        union all
        (select ${order('p')}, p.row_id, null, null, null, (select count(*)::int from page)
           from page p order by ${keyNames(source, 'p')
             .map(name => `${name} desc`)
             .join(', ')} limit 1)) found
     order by ${order('found')}, seen nulls first`
}
