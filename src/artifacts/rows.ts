// Rows of a source, as hydrating needs them.
import type { Queryable } from '../db/pool.ts'
import { RowError } from '../errors.ts'
import { asTenantId } from '../ids.ts'
import { fromSql, ident, tenantSql } from '../source/expressions.ts'
import { isKeyedRowSql, partArrays, partList, partParameters, rowKeySql } from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'
import type { HydrateInput } from './hydrate.ts'

/**
 * Reads rows by their keys, as the queue writes them (`canonicalRowId`); those that do not exist, or have no tenant, are not in the answer.
 * @throws {RowError} `key_not_unique`: which row is meant cannot be told
 */
export async function readRows(
  db: Queryable,
  source: Source,
  rowIds: string[],
): Promise<Map<string, HydrateInput>> {
  const { rows } = await db.query<{ rowId: string; tenantId: string; metadata: string | null }>({
    text: `select r.*
             from unnest($1::text[]${partParameters(source, 2)}) w(row_id${partList(source)})
            cross join lateral (
              select ${rowKeySql(source)} as "rowId", ${tenantSql(source)} as "tenantId", m.${ident(source.jsonColumn)}::text as metadata
                from ${fromSql(source)}
               where ${isKeyedRowSql(source, 'w')}
              offset 0) r
            where r."tenantId" is not null`,
    values: [[...new Set(rowIds)], ...partArrays(source, [...new Set(rowIds)])],
  })
  const twice = [...Map.groupBy(rows, row => row.rowId).values()].find(same => same.length > 1)?.[0]
  if (twice !== undefined) {
    throw new RowError(
      'key_not_unique',
      `${source.tableSql} has several rows ${twice.rowId}, or that row several tenants`,
      {
        hint: `Give ${source.tableSql} a valid unique index on ${source.key.map(({ name }) => name).join(', ')} again.`,
      },
    )
  }
  return new Map(
    rows.map(row => [
      row.rowId,
      { tenantId: asTenantId(row.tenantId), metadata: row.metadata, field: source.phase1Field },
    ]),
  )
}
