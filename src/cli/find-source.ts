// Which attached columns a command means.
import type { Queryable } from '../db/pool.ts'
import { RowError } from '../errors.ts'
import { describeMissing, findMissingParts } from '../offload/missing-parts.ts'
import { loadSources, type Source } from '../source/sources.ts'

const nameOf = (source: Source) => `${source.tableSql} (${source.jsonColumn})`

/** All of them, those of a table, or the one of a column. @throws {RowError} `not_attached` when there is none; `rows_hidden` */
export async function findSources(
  db: Queryable,
  table: string | undefined,
  column: string | undefined,
): Promise<Source[]> {
  const sources = [...(await loadSources(db)).values()]
  const matching = sources.filter(
    s =>
      (table === undefined || s.tableSql === table || s.tableSql.endsWith(`.${table}`)) &&
      (column === undefined || s.jsonColumn === column),
  )
  const hidden = matching.find(source => source.rowsHidden !== null)
  if (hidden !== undefined)
    throw new RowError(
      'rows_hidden',
      `row-level security hides rows of ${nameOf(hidden)}, or of its parent`,
      {
        hint: hidden.rowsHidden ?? undefined,
      },
    )
  if (matching.length > 0) return matching
  const stopped = (await findMissingParts(db)).find(m => m.stopsOffload)
  const wanted = [table, column].filter(name => name !== undefined).join('.')
  throw new RowError(
    'not_attached',
    `${wanted === '' ? 'no table' : wanted} is ${wanted === '' ? '' : 'not '}attached`,
    {
      hint:
        stopped !== undefined
          ? `Out of sight: ${describeMissing(stopped)}. ${stopped.advice}`
          : sources.length === 0
            ? 'Rows are read by what attach recorded: lighter attach <table> (again, if it was detached)'
            : `Attached: ${sources.map(nameOf).join(', ')}`,
    },
  )
}

/** The one that is meant. @throws {RowError} `not_attached`, or `table_ambiguous` when several could be */
export async function findSource(
  db: Queryable,
  table: string | undefined,
  column: string | undefined,
): Promise<Source> {
  const [only, ...others] = await findSources(db, table, column)
  if (only === undefined) throw new Error('findSources found nothing and did not say so')
  if (others.length > 0)
    throw new RowError('table_ambiguous', 'several columns are attached', {
      hint: `Pass --table or --column, for one of: ${[only, ...others].map(nameOf).join(', ')}`,
    })
  return only
}
