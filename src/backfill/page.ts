// Existing rows that are to be offloaded, page by page in the order of the primary key.
import type { Queryable } from '../db/pool.ts'
import { bytesWithoutNumbersSql, hasLongNumbersSql } from '../offload/long-numbers.ts'
import { heavyBytesSql } from '../offload/value-size.ts'
import {
  documentSql,
  fieldSql,
  fromSql,
  ident,
  isFieldBlockedSql,
  mayLeaveSql,
  rowsSql,
  tenantSql,
} from '../source/expressions.ts'
import { isPinnedSql } from '../source/pins.ts'
import { isAfterSql, keyColumnsSql, keyNames, rowKeySql, selectKeySql } from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'

export interface BackfillFilter {
  tenantId: string | null
  /** Only rows whose `ageColumn` is before this. */
  cutoff: Date | null
  ageColumn: string | null
}

interface HeavyRow {
  rowId: string
  tenantId: string
  /** About what an offload takes off it; null unless asked for. */
  bytes: number | null
}

export interface BackfillPage {
  rows: HeavyRow[]
  /** All that were looked at. */
  seen: number
  last: string | null
  /** paused, or the table was detached: nobody would work on the jobs */
  isActive: boolean
}

/**
 * Looks at the next `limit` rows after `after`: one statement, which takes no lock on a row and waits for none.
 *
 * A row is taken if the plan would find something to offload in it (so it has a tenant, when_sql holds, and it is not pinned), and
 * it is neither queued nor among the dead letters.
 * @param measured also says how many bytes would go; else long values that tell by their stored size are not opened
 * @param byIndex only rows that may leave are looked at: for who knows that an index leads to them
 */
export async function findHeavy(
  db: Queryable,
  source: Source,
  filter: BackfillFilter,
  after: string | null,
  limit: number,
  measured: boolean,
  byIndex = false,
): Promise<BackfillPage> {
  const { rows } = await db.query<{
    rowId: string | null
    tenantId: string
    bytes: number | null
    seen: number | null
    isActive: boolean
  }>({
    text: pageSql(source, filter.ageColumn, measured, byIndex),
    values: [after, limit, filter.tenantId, ...(filter.ageColumn === null ? [] : [filter.cutoff])],
  })
  const end = rows.find(row => row.seen !== null)
  return {
    rows: rows.flatMap(row =>
      row.seen === null && row.rowId !== null
        ? [{ rowId: row.rowId, tenantId: row.tenantId, bytes: row.bytes }]
        : [],
    ),
    seen: end?.seen ?? 0,
    last: end?.rowId ?? null,
    isActive: end?.isActive === true,
  }
}

/** Key of the row after `after`; null: there is none. Nothing else of the row is looked at. */
export async function keyAfter(db: Queryable, source: Source, after: string | null): Promise<string | null> {
  const { rows } = await db.query<{ rowId: string }>({
    text: `select ${rowKeySql(source)} as "rowId" from ${rowsSql(source)} m
            where $1::text is null or ${isAfterSql(source, '$1::text')}
            order by ${keyColumnsSql(source).join(', ')} limit 1`,
    values: [after],
  })
  return rows[0]?.rowId ?? null
}

function pageSql(source: Source, ageColumn: string | null, measured: boolean, byIndex: boolean): string {
  return `
    with found as materialized (
      select ${selectKeySql(source)}, ${rowKeySql(source)} as row_id, ${tenantSql(source)} as tenant_id, m.${ident(source.jsonColumn)} as stored,
             ${ageColumn === null ? 'true' : `m.${ident(ageColumn)} < $4::timestamptz`} as is_old${source.whenColumns
               .map(
                 (name, i) => `,
             m.${ident(name)} as when_${i}`,
               )
               .join('')}
        from ${fromSql(source)}
       where ($1::text is null or ${isAfterSql(source, '$1::text')})${byIndex ? ` and ${mayLeaveSql(source)}` : ''}
       order by ${keyColumnsSql(source).join(', ')}
       -- with ties: a key may not be unique any more
       fetch first ($2) rows with ties
    ),
    -- Not in the step before, which may look at rows behind the page.
    page as materialized (
      select f.*, ${mayLeaveSql(source, (_, i) => `f.when_${i}`)} as may_leave from found f
    ),
    candidates as (
      select ${keyNames(source, 'p').join(', ')}, p.row_id, p.tenant_id, p.stored
        from page p
       where p.stored is not null and p.is_old and p.may_leave and p.tenant_id is not null and ($3::uuid is null or p.tenant_id = $3)
         and octet_length(p.row_id) <= lighter.longest_key()
         and not ${isPinnedSql(source, 'p.row_id', 'p.tenant_id')}
         and not exists (select from lighter.waiting w where w.source_id = ${source.id} and w.row_id = p.row_id)
         and not exists (select from lighter.failed_jobs f where f.source_id = ${source.id} and f.row_id = p.row_id)
      offset 0
    ),
    ${
      source.mode === 'document'
        ? heavyDocumentsSql(source, measured)
        : `heavy as (
      select w.*
        from (select ${keyNames(source, 'c').join(', ')}, c.row_id, c.tenant_id, ${heavyBytesSql(source, 'c.stored')} as bytes from candidates c offset 0) w
       where w.bytes is not null
    )`
    }
    select "rowId", "tenantId", bytes, seen, "isActive"
      from (
        select ${keyNames(source, 'h').join(', ')}, h.row_id as "rowId", h.tenant_id as "tenantId", h.bytes, null::int as seen, true as "isActive" from heavy h
        union all
        select ${source.key.map(() => 'null').join(', ')}, (select p.row_id from page p order by ${keyNames(
          source,
          'p',
        )
          .map(name => `${name} desc`)
          .join(', ')} limit 1), null, null,
               (select count(*)::int from page),
               exists (select from lighter.sources s where s.id = ${source.id} and not s.paused)) found
     order by ${keyNames(source, 'found').join(', ')}`
}

function heavyDocumentsSql(source: Source, measured: boolean): string {
  // As stored, compressed or not, a value is no longer than its binary form, and one with eight times the threshold in
  // binary form is over it in text (see plan.ts). That costs no look at the value itself. The other way round a
  // short form tells nothing: the number 1e100000 takes a few bytes. (If numbers alone make it so, the plan leaves the row
  // as it is, as it does one that is opened here.)
  const surely = `pg_column_size(c.stored) > ${8 * source.thresholdBytes + 1024}`
  // As the plan decides it: see long-numbers.ts. Of a measured row it tells about how much would go.
  const bytes = `case when o.long then pg_column_size(o.doc) else octet_length(o.doc::text) end`
  const fieldBytes = `case when o.long then pg_column_size(o.field) else octet_length(o.field::text) end`
  const isBlocked = `coalesce(${isFieldBlockedSql(source, 'o.doc', 'o.field')}, false)`
  const isHeavy = `case when o.long then ${bytesWithoutNumbersSql('o.doc')} else octet_length(o.doc::text) end > ${source.thresholdBytes}`
  return `opened as (
      select ${keyNames(source, 'c').join(', ')}, c.row_id, c.tenant_id, ${surely} as surely, pg_column_size(c.stored) as stored_bytes,
             case when ${measured ? 'true' : `not ${surely}`} then ${documentSql('c.stored')} end as doc
        from candidates c
      offset 0
    ),
    fields as (
      select o.*, ${fieldSql(source, 'o.doc', 'o.tenant_id')} as field, coalesce(${hasLongNumbersSql('o.doc')}, false) as long from opened o offset 0
    ),
    heavy as (
      select ${keyNames(source, 'o').join(', ')}, o.row_id, o.tenant_id,
             ${measured ? `case when ${isBlocked} or ${isHeavy} then ${bytes} else ${fieldBytes} end` : 'null::int'} as bytes
        from fields o
       where case when o.field is not null then true when o.doc is null then o.surely else ${isBlocked} or ${isHeavy} end
    )`
}
