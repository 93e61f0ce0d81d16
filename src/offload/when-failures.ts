// A when_sql that fails on a row when it is asked: the row stays inline, and doctor names its source.
import type { Queryable } from '../db/pool.ts'
import { isNoRowsFault, messageOf, sqlState } from '../errors.ts'
import { mayLeaveSql, rowsSql } from '../source/expressions.ts'
import { isRowSql } from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'

/**
 * Asks the condition of one row, and puts on record how it fails.
 * @param rowId null: of any row
 * @returns what Postgres says; null when it does not fail, so that the trouble was another
 */
export async function noteWhenFailure(
  db: Queryable,
  source: Source,
  rowId: string | null,
): Promise<string | null> {
  if (source.whenFunction === null) return null
  const row = rowId === null ? 'limit 1' : `where ${isRowSql(source, '$1::text')}`
  try {
    await db.query({
      text: `select ${mayLeaveSql(source)} from ${rowsSql(source)} m ${row}`,
      values: rowId === null ? [] : [rowId],
    })
    return null
  } catch (error) {
    if (isNoRowsFault(error)) throw error
    // The table itself is gone, which others say.
    if (sqlState(error) === '42P01') return null
    const message = messageOf(error).slice(0, 2000)
    await db.query({
      text: `insert into lighter.when_failures (source_id, row_id, error)
             select s.id, $2, $3 from lighter.sources s where s.id = $1
                 on conflict (source_id) do update set row_id = excluded.row_id, error = excluded.error, failed_at = now()`,
      values: [source.id, rowId, message],
    })
    return message
  }
}
