// Rows of a source, as hydrating needs them.
import type { Queryable } from '../db/pool.ts'
import { RowError } from '../errors.ts'
import { asTenantId } from '../ids.ts'
import { fromSql, ident, tenantSql } from '../source/expressions.ts'
import type { Source } from '../source/sources.ts'
import type { HydrateInput } from './hydrate.ts'

/**
 * Reads rows by primary key; those that do not exist, or have no tenant, are not in the answer.
 * @throws {RowError} `key_not_unique`: which row is meant cannot be told
 */
export async function readRows(
  db: Queryable,
  source: Source,
  rowIds: string[],
): Promise<Map<string, HydrateInput>> {
  const { rows } = await db.query<{ rowId: string; tenantId: string; metadata: string | null }>({
    text: `select m.${ident(source.keyColumn)}::text as "rowId", ${tenantSql(source)} as "tenantId",
                  m.${ident(source.jsonColumn)}::text as metadata
             from ${fromSql(source)}
            where m.${ident(source.keyColumn)} = any ($1::${source.keyType}[])
              and ${tenantSql(source)} is not null`,
    values: [rowIds],
  })
  const twice = [...Map.groupBy(rows, row => row.rowId).values()].find(same => same.length > 1)?.[0]
  if (twice !== undefined) {
    throw new RowError(
      'key_not_unique',
      `${source.tableSql} has several rows ${twice.rowId}, or that row several tenants`,
      {
        hint: `Give ${source.tableSql} a valid unique index on ${source.keyColumn} again.`,
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
