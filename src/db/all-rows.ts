// What is hidden is not absent: whatever deletes, or refuses, proves first that row-level security hides nothing from
// it. The rule itself is SQL: sql/functions/15_hidden_rows.sql.
import { LighterError, sqlState } from '../errors.ts'
import type { Queryable } from './pool.ts'

/**
 * SQL: true, or an error. Put into the statement that decides, it is asked once, after that statement has its locks:
 * nobody can hide rows between the question and the decision.
 */
export const seesAllRowsSql = `(select lighter.require_all_rows('{}'))`

/** The same of the tables of a source as well. */
export const seesAllRowsOfSql = (sourceId: number): string =>
  `(select lighter.require_all_rows('{${sourceId}}'))`

/**
 * @param sourceIds sources of which the tables count too; null: all of them
 * @throws {LighterError} `rows_hidden`, with what to do
 */
export async function requireAllRows(db: Queryable, sourceIds: number[] | null): Promise<void> {
  try {
    await db.query({ text: 'select lighter.require_all_rows($1)', values: [sourceIds] })
  } catch (error) {
    if (sqlState(error) !== rowsHiddenState) throw error
    throw new LighterError('rows_hidden', error instanceof Error ? error.message : String(error), {
      cause: error,
      hint: hintOf(error),
    })
  }
}

/** As lighter.require_all_rows raises it. */
const rowsHiddenState = '55L01'

function hintOf(error: unknown): string | undefined {
  return typeof error === 'object' && error !== null && 'hint' in error && typeof error.hint === 'string'
    ? error.hint
    : undefined
}
