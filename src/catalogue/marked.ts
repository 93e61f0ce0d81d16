// Pages of artifacts by a date of their state, oldest first, in the order of the dates' indexes: a sweep that passes by what
// it must leave alone does not come across it again.

export interface MarkedPosition {
  at: string
  tenantId: string
  frameId: string
  /** -1: a loose artifact. */
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
        (select x.tenant_id, x.frame_id, x.ordinal::int as ordinal, x.${column} as at from lighter.frame_exceptions x
          where ${where} and (x.${column}, x.tenant_id, x.frame_id, x.ordinal::int) > ${after}
          order by x.${column}, x.tenant_id, x.frame_id, x.ordinal::int limit ${limit})
        union all
        (select x.tenant_id, x.id, -1, x.${column} from lighter.loose_artifacts x
          where ${where} and (x.${column}, x.tenant_id, x.id, -1) > ${after}
          order by x.${column}, x.tenant_id, x.id limit ${limit})) of_either
       order by at, tenant_id, frame_id, ordinal
       limit ${limit}
    ),
    -- Each frame is opened once.
    marked as (
      select ${columns}
        from (select p.tenant_id, p.frame_id, array_agg(p.ordinal) as ordinals from page p group by p.tenant_id, p.frame_id) f
        join public.artifact_refs a on a.tenant_id = f.tenant_id and a.frame_id = f.frame_id
       where coalesce(a.ordinal, -1) = any (f.ordinals)
    )`
}

/** SQL: where the page ended, as JSON; null: there was none. */
export const lastOfPageSql = `(
  select json_build_object('at', at::text, 'tenantId', tenant_id, 'frameId', frame_id, 'ordinal', ordinal)
    from page order by at desc, tenant_id desc, frame_id desc, ordinal desc limit 1)`
