// Pages of artifacts by a date of their state, oldest first, in the order of the dates' indexes: a sweep that passes by what
// it must leave alone does not come across it again. Of a frame all artifacts of one state are in one page.

export interface MarkedPosition {
  at: string
  tenantId: string
  frameId: string
  /** The first of an exception; -1: a loose artifact. */
  ordinal: number
}

export const beforeAllMarked: MarkedPosition = {
  at: '-infinity',
  tenantId: '00000000-0000-0000-0000-000000000000',
  frameId: '00000000-0000-0000-0000-000000000000',
  ordinal: -2,
}

export const positionValues = (position: MarkedPosition): unknown[] => [
  position.at,
  position.tenantId,
  position.frameId,
  position.ordinal,
]

/**
 * SQL, for `cross join lateral`: the artifacts of a frame, or the one that is loose. One look for each, whatever the
 * planner takes the number of them for: it knows little of what is in arrays.
 */
export const inFrameSql = (tenant: string, frame: string): string => `(
  select * from public.artifact_refs r where r.tenant_id = ${tenant} and r.frame_id = ${frame} offset 0)`

/**
 * SQL: common table expressions `page`, the next artifacts behind a position, and `marked`, with them the columns of
 * public.artifact_refs as far as `columns` says.
 * @param where SQL, of the row `x`: a loose artifact, or an exception; it has a date in `column`
 * @param first number of the first of the four parameters of `positionValues`; behind them stands the length of a page
 */
export function markedSql(column: string, where: string, first: number, columns: string): string {
  const after = `($${first}::timestamptz, $${first + 1}::uuid, $${first + 2}::uuid, $${first + 3}::int)`
  const limit = `$${first + 4}::int`
  return `
    page as materialized (
      select * from (
        (select x.tenant_id, x.frame_id, x.ordinal::int as ordinal, x.ordinals, x.${column} as at from lighter.frame_exceptions x
          where ${where} and (x.${column}, x.tenant_id, x.frame_id, x.ordinal::int) > ${after}
          order by x.${column}, x.tenant_id, x.frame_id, x.ordinal::int limit ${limit})
        union all
        (select x.tenant_id, x.id, -1, null, x.${column} from lighter.loose_artifacts x
          where ${where} and (x.${column}, x.tenant_id, x.id, -1) > ${after}
          order by x.${column}, x.tenant_id, x.id limit ${limit})) of_either
       order by at, tenant_id, frame_id, ordinal
       limit ${limit}
    ),
    marked as (
      select ${columns}
        from page p
       cross join lateral ${inFrameSql('p.tenant_id', 'p.frame_id')} a
       where a.ordinal is null or a.ordinal = any (p.ordinals)
    )`
}

/** SQL: where the page ended, as JSON; null: there was none. */
export const lastOfPageSql = `(
  select json_build_object('at', at::text, 'tenantId', tenant_id, 'frameId', frame_id, 'ordinal', ordinal)
    from page order by at desc, tenant_id desc, frame_id desc, ordinal desc limit 1)`
