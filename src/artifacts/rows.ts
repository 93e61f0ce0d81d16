// Rows of a source, as hydrating needs them.
import type { Queryable } from '../db/pool.ts'
import { asTenantId } from '../ids.ts'
import { fromSql, ident, tenantSql } from '../offload/source-sql.ts'
import type { Source } from '../offload/sources.ts'
import type { HydrateInput } from './hydrate.ts'

/** Reads rows by primary key; those that do not exist, or have no tenant, are not in the answer. */
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
  return new Map(
    rows.map(row => [
      row.rowId,
      { tenantId: asTenantId(row.tenantId), metadata: row.metadata, field: source.phase1Field },
    ]),
  )
}
