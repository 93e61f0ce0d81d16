// The plan of a source whose values leave as a whole (modes stub and whole). There is one payload, of phase 2: exactly the
// bytes of the column. What the row is to hold is told by the artifact's id.
import { pointersInPayload } from '../artifacts/pointers-in-payload.ts'
import { seesAllRowsOfSql } from '../db/all-rows.ts'
import { columnTypeOf } from '../source/column-types.ts'
import { entitySql, fromSql, ident, mayLeaveSql, tenantSql, versionSql } from '../source/expressions.ts'
import { isPinnedSql } from '../source/pins.ts'
import { isKeyedRowSql, partList, partParameters } from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'
import { hasLongNumbersInSql, heavyBytesSql } from './value-size.ts'

/** Of values that are rendered at all: one with eight times the threshold in binary form is over it in text (plan.ts). */
const hugeBytesSql = (source: Source) => `greatest($2::int8, ${8 * source.thresholdBytes + 1024})`

/**
 * Answers rows as `planSql` does, the value as `rest`. A value over `$2` bytes is streamed, and only measured here.
 * Parameters: keys of rows; bytes from which a value is streamed; bytes of the batch; the longest payload; the token of its
 * artifact; the parts of keys of several columns.
 */
export function planValuesSql(source: Source): string {
  const { textSql } = columnTypeOf(source)
  // A long jsonb value is not rendered for its length: the binary form tells that it is to be streamed.
  const isHuge =
    source.columnType === 'jsonb'
      ? `pg_column_size(o.value) > ${hugeBytesSql(source)} and pg_column_size(o.value) <= $4`
      : '$4::int8 is null'
  const opened = source.columnType === 'jsonb' ? `(f.stored #> '{}')` : 'f.stored'
  return `
    with claimed as (
      select c.*
        from unnest($1::text[]${partParameters(source, 6)}) with ordinality as c(row_id${partList(source)}, ord)
       where ${seesAllRowsOfSql(source.id)}
    ),
    found as (
      select c.ord, c.row_id, r.*,
             coalesce(sum(pg_column_size(r.stored))
                        over (order by c.ord rows between unbounded preceding and 1 preceding), 0) as stored_before
        from claimed c
       cross join lateral (
         select ${versionSql('m')} as version, ${tenantSql(source)} as tenant_id,
                ${entitySql(source)} as entity_id,
                m.${ident(source.jsonColumn)} as stored, ${mayLeaveSql(source)} as may_leave
           from ${fromSql(source)}
          where ${isKeyedRowSql(source, 'c')}
         offset 0) r
    ),
    opened as (
      select f.ord, f.version, f.tenant_id, f.entity_id,
             case when f.may_leave and not ${isPinnedSql(source, 'f.row_id', 'f.tenant_id')} then ${opened} end as value
        from found f
       where f.stored_before < $3
      offset 0
    ),
    weighed as (
      select o.*, case when ${isHuge} then pg_column_size(o.value) else ${heavyBytesSql(source, 'o.value')} end as bytes,
             ${hasLongNumbersInSql(source, 'o.value')} as long_numbers, ${isHuge} as huge
        from opened o
      offset 0
    ),
    cut as (
      select w.*, w.bytes is not null and not w.huge and not w.long_numbers and w.bytes <= $2 and w.tenant_id is not null as is_sent
        from weighed w
      offset 0
    ),
    decided as (
      select s.*, s.total > $3 and s.total > s.weight as over_budget
        from (select c.*, sum(c.weight) over (rows unbounded preceding) as total
                from (select x.*, case when x.is_sent then x.bytes else 0 end as weight from cut x) c) s
    )
    select d.ord::int as ord, d.version, d.tenant_id as "tenantId", d.entity_id as "entityId",
           null::float8 as "fieldBytes", d.bytes::float8 as "restBytes", d.over_budget as deferred, null::text as "fieldText",
           case when d.is_sent and not d.over_budget then ${textSql('d.value')} end as "restText",
           case when d.bytes is not null then $5::text end as target,
           null::text as "pointerIds", null::text as "pointerState", 0::float8 as "heldBytes", false as "lostPointer",
           d.long_numbers as "longNumbers"
      from decided d
    union all
    select f.ord::int, f.version, f.tenant_id, f.entity_id, null, null, true, null, null, null, null, null, 0, false, false
      from found f
     where f.stored_before >= $3`
}

/** Artifacts that the value itself points to: they must live as long as it does. */
export function pointersInValue(source: Source, bytes: Buffer | null): string[] {
  return bytes === null || !columnTypeOf(source).isText ? [] : pointersInPayload(bytes, source.pointerColumns)
}
