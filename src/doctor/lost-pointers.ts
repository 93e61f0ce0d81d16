// Pointers where nothing follows them: the application copied an offloaded value into another document, inside an
// array or a nested object. Reading hands the pointer out as it stands, and restore leaves it.
import type { Queryable } from '../db/pool.ts'
import { samplePercent } from '../offload/table-size.ts'
import type { RestoreScope } from '../restore/hold.ts'
import { fromSql, ident, tenantSql } from '../source/expressions.ts'
import { pointersInPlaceSql, pointersOfRowSql } from '../source/modes.ts'
import { isRowSql, rowKeySql } from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'

/** Of each table so many pages are read: all of a table of 8 MB, else chosen at random. */
const samplePages = 1000
/** Longer documents are not looked into, in a sample. */
const sampledBytes = 1024 * 1024

export interface LostPointers {
  /** Keys of rows that have some; at most `limit`. */
  rowIds: string[]
  /** Every row was looked at. */
  all: boolean
}

/** In a sample of the table, within some seconds. */
export async function sampleLostPointers(
  db: Queryable,
  source: Source,
  limit: number,
): Promise<LostPointers> {
  const percent = await samplePercent(db, source.tableSql, samplePages)
  const document = `m.${ident(source.jsonColumn)}`
  const rowIds = await find(
    db,
    source,
    {
      sampleSql: 'tablesample system ($3::float4)',
      whereSql: `pg_column_size(${document}) <= ${sampledBytes}`,
    },
    [limit, null, percent],
  )
  return { rowIds, all: percent === 100 }
}

/** In all rows of the scope. Of a whole table it takes as long as reading that does. */
export async function findLostPointers(
  db: Queryable,
  source: Source,
  { tenantId, rowId }: RestoreScope,
  limit: number,
): Promise<LostPointers> {
  const ofRow = isRowSql(source, '$3::text')
  const rowIds = await find(db, source, { sampleSql: '', whereSql: rowId === null ? 'true' : ofRow }, [
    limit,
    tenantId,
    ...(rowId === null ? [] : [rowId]),
  ])
  return { rowIds, all: true }
}

async function find(
  db: Queryable,
  source: Source,
  { sampleSql, whereSql }: { sampleSql: string; whereSql: string },
  values: unknown[],
): Promise<string[]> {
  const tenant = tenantSql(source)
  const { rows } = await db.query<{ rowId: string }>({
    text: `
      select ${rowKeySql(source)} as "rowId"
        from ${fromSql(source, sampleSql)}
       where ${whereSql} and ($2::uuid is null or ${tenant} = $2)
         and exists (
           select from unnest(${pointersOfRowSql(source)}) pointer(id)
             join public.artifact_refs a on a.tenant_id = ${tenant} and a.frame_id = lighter.frame_of(pointer.id) and a.id = pointer.id and a.purged_at is null
            where not pointer.id = any (coalesce(${pointersInPlaceSql(source)}, '{}')))
       limit $1`,
    values,
  })
  return rows.map(row => row.rowId)
}
