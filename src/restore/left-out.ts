// What a restore does not reach: rows that still hold pointers when it is done, and why.

import type { Queryable } from '../db/pool.ts'
import { tableNameSql } from '../db/settings.ts'
import { findLostPointers } from '../doctor/lost-pointers.ts'
import { describeMissing, findMissingParts } from '../offload/missing-parts.ts'
import type { Source } from '../source/sources.ts'
import type { RestoreScope } from './hold.ts'

export interface LeftOut {
  what: string
  reason: string
  advice: string
}

const namedFormer = 100

/**
 * Parts of tables that can't be looked at, and tables that were detached with payloads in the bucket.
 * @param sourceIds null: of all tables, those that were detached too
 */
export async function findLeftOut(db: Queryable, sourceIds: number[] | null): Promise<LeftOut[]> {
  const missing = await findMissingParts(db)
  const ofSources = missing.filter(m => sourceIds === null || sourceIds.includes(m.sourceId))
  const parts = ofSources.map(m => ({
    what: describeMissing(m),
    reason: 'its rows can not be looked at',
    advice: m.advice,
  }))
  return sourceIds === null ? [...parts, ...(await findDetached(db))] : parts
}

const namedRows = 5
const countedRows = 1000

/** Rows with pointers inside arrays and nested objects: a restore puts a payload only where a pointer is followed. */
export async function findLostRows(
  db: Queryable,
  sources: Source[],
  scope: RestoreScope,
): Promise<LeftOut[]> {
  const leftOut: LeftOut[] = []
  for (const source of sources) {
    const { rowIds } = await findLostPointers(db, source, scope, countedRows)
    if (rowIds.length === 0) continue
    const count = rowIds.length === countedRows ? `${countedRows} rows or more` : `${rowIds.length} row(s)`
    const named = rowIds.slice(0, namedRows).join(', ') + (rowIds.length > namedRows ? ', …' : '')
    leftOut.push({
      what: `${source.tableSql}.${source.jsonColumn}, ${count}: ${named}`,
      reason: 'they hold pointers inside arrays or nested objects, where nothing follows them',
      advice:
        'Write the value in the place of each pointer. See "Pointers that nothing follows" in docs/troubleshooting.md.',
    })
  }
  return leftOut
}

/** Tables that were detached: their rows may have pointers, which nobody follows. */
async function findDetached(db: Queryable): Promise<LeftOut[]> {
  const { rows } = await db.query<{ table: string; column: string; artifacts: number }>({
    text: `
      select ${tableNameSql('f.relation')} as table, f.json_column as column, count(a.id)::float8 as artifacts
        from lighter.former_sources f
        join pg_class c on c.oid = f.relation
        join public.artifact_refs a on a.source_id = f.id and a.deleted_at is null
       where not f.rows_deleted
         and not exists (select from lighter.sources s where s.relation = f.relation and s.json_column = f.json_column)
       group by 1, 2
       order by 1, 2
       limit $1`,
    values: [namedFormer],
  })
  return rows.map(({ table, column, artifacts }) => ({
    what: `${table}.${column}`,
    reason: `the table was detached, and ${artifacts} payload(s) of its rows are in the bucket`,
    advice: `Attach it again, then restore: lighter attach ${table} --column ${column}`,
  }))
}
