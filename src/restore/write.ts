// One transaction that puts values back into their rows.
import type pg from 'pg'
import { arrayText } from '../db/array-text.ts'
import { inTransactionWithRetry } from '../db/pool.ts'
import { RowError } from '../errors.ts'
import { unqueueRows } from '../offload/unqueue.ts'
import { columnTypeOf } from '../source/column-types.ts'
import {
  asApplicationSql,
  endOfRewriteSql,
  ident,
  isVersionSql,
  passGuardSql,
  rowsSql,
} from '../source/expressions.ts'
import { valueModeOf } from '../source/modes.ts'
import { hasKeySql, isRowSql, keyNames, selectKeySql } from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'

export interface RestoredRow {
  rowId: string
  /** Which version it was whose pointers were followed, see `versionSql`. */
  version: string
  /** JSON text, cast in Postgres and nowhere else; of a column that holds values the value's bytes. */
  document: string | Buffer
}

/**
 * Writes those rows that still are the version that was read. Waits for none: a row that the application holds is
 * left for later, one that it has changed keeps the change.
 *
 * The table's triggers stay quiet as in the offload's rewrite. What is queued of the row, by ours all the same or since
 * before, goes: with the row locked nobody can be writing it, and what we wrote is not to be offloaded.
 * @returns versions of the rows that were written
 * @throws {RowError} `rewrite_undone`, and nothing is written: a trigger of the table made something else of a value
 */
export async function writeRestored(pool: pg.Pool, source: Source, rows: RestoredRow[]): Promise<string[]> {
  return inTransactionWithRetry(
    pool,
    async db => {
      const { rows: written } = await db.query<{ rowId: string; version: string; intact: boolean }>({
        text: writeSql(source, rows.length === 1),
        values:
          rows.length === 1
            ? [rows[0]?.rowId, rows[0]?.version, rows[0]?.document]
            : [
                arrayText(rows.map(row => row.rowId)),
                arrayText(rows.map(row => row.version)),
                arrayText(rows.map(row => textOf(source, row.document))),
              ],
      })
      await db.query(endOfRewriteSql)
      const undone = written.find(row => !row.intact)
      if (undone !== undefined) {
        throw new RowError(
          'rewrite_undone',
          `a trigger of ${source.tableSql} refused the restored value of row ${undone.rowId}, or changed it`,
          {
            hint: 'Let the trigger pass what lighter_daemon writes, or grant set on parameter session_replication_role to lighter_daemon.',
          },
        )
      }
      const ids = written.map(row => row.rowId)
      await unqueueRows(db, source.id, ids)
      return written.map(row => row.version)
    },
    `${source.quietRewrite ? 'set local session_replication_role = replica; ' : ''}${passGuardSql}`,
  )
}

const textOf = (source: Source, document: string | Buffer) =>
  typeof document === 'string' ? document : columnTypeOf(source).textOf(document)

/** A long document by itself: as an element of an array its quotes would be written twice over. */
function writeSql(source: Source, single: boolean): string {
  const column = ident(source.jsonColumn)
  const mode = valueModeOf(source)
  const { parameter, valueSql } = columnTypeOf(source)
  // Bytes as they are, where there is one value.
  const target = single ? parameter.valueSql('l.document') : valueSql('l.document')
  const wanted = single
    ? `select $1::text as row_id, $2::text as version, $3::${parameter.type} as document`
    : 'select * from unnest($1::text[], $2::text[], $3::text[]) as w(row_id, version, document)'
  return `
    with wanted as (select * from (${wanted}) w where ${asApplicationSql(source)}),
    locked as (
      select ${selectKeySql(source)}, m.ctid as place, m.tableoid as tbl, w.row_id, w.version, w.document
        from ${rowsSql(source)} m
        join wanted w on ${isRowSql(source, 'w.row_id')} and ${isVersionSql('m', 'w.version')}
         for no key update of m skip locked
    ),
    targets as materialized (
      select ${keyNames(source, 'l').join(', ')}, l.place, l.tbl, l.row_id, l.version, ${target} as target from locked l
    ),
    written as (
      update ${rowsSql(source)} m
         set ${mode === null ? `${column} = t.target` : mode.restoreSql(source, 't.target')}
        from targets t
       where ${hasKeySql(source, 't')} and m.ctid = t.place and m.tableoid = t.tbl
      returning t.row_id, t.version, ${mode === null ? `m.${column} = t.target` : mode.isRestoredSql(source, 't.target')} as intact
    )
    select row_id as "rowId", version, coalesce(intact, false) as intact from written
    union all
    select row_id, version, false from targets where version not in (select version from written)`
}
