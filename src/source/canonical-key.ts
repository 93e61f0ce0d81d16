// Keys that somebody typed: another spelling of the same uuid, number or date is the same row.
import type { Queryable } from '../db/pool.ts'
import { RowError, sqlState } from '../errors.ts'
import { rowKey } from './row-key.ts'
import { describeKey } from './rows-by-key.ts'
import type { Source } from './sources.ts'

/** What Postgres says of a text that its type cannot read. */
const malformed = ['22P02', '22003', '22007', '22008', '22P05', '22021']

/** The key as the queue and the pins spell it. @throws {RowError} `row_id_malformed` */
export async function canonicalRowId(db: Queryable, source: Source, rowId: string): Promise<string> {
  try {
    const { rows } = await db.query<{ id: string | null }>('select lighter.canonical_key($1, $2) as id', [
      source.id,
      rowId,
    ])
    return rows[0]?.id ?? rowId
  } catch (error) {
    if (!malformed.includes(sqlState(error) ?? '')) throw error
    throw new RowError('row_id_malformed', `"${rowId}" is not the key of a row of ${source.tableSql}`, {
      cause: error,
      hint: `Its key: ${describeKey(source)}.${
        source.key.length === 1 ? '' : ` As JSON: ${rowKey(exampleParts(source))}`
      }`,
    })
  }
}

function exampleParts({ key }: Source): [string, ...string[]] {
  const [first, ...others] = key.map(({ name }) => `<${name}>`)
  return [first ?? '', ...others]
}
