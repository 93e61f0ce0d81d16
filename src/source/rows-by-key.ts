// SQL that writes the keys of rows, and finds rows by them. Row `m` is that of `fromSql`.
//
// Operators are named with their schema: for an enum or a domain anybody could make a `=` that fits better than
// Postgres's own, and it would run as the daemon.
import pg from 'pg'
import { arrayText } from '../db/array-text.ts'
import { keyForms } from './key-types.ts'
import { rowKeyParts } from './row-key.ts'
import type { KeyColumn, Source } from './sources.ts'

const columnSql = (alias: string, { name }: KeyColumn) => `${alias}.${pg.escapeIdentifier(name)}`

/** The text of a row's key, as the trigger writes it. */
export const rowKeySql = (source: Source): string => source.keySql

/** Columns of the key, to be ordered by. */
export const keyColumnsSql = (source: Source, alias = 'm'): string[] =>
  source.key.map(column => columnSql(alias, column))

/** The columns of the key as `k1, k2, …`, for a select list; `keyNames` are their names then. */
export const selectKeySql = (source: Source): string =>
  source.key.map((column, i) => `${columnSql('m', column)} as k${i + 1}`).join(', ')

export const keyNames = (source: Source, alias: string): string[] =>
  source.key.map((_, i) => `${alias}.k${i + 1}`)

/** True where row `m` has the key that is in `k1, k2, …` of another one. */
export const hasKeySql = (source: Source, alias: string): string =>
  source.key
    .map((column, i) => `${columnSql('m', column)} operator(pg_catalog.=) ${alias}.k${i + 1}`)
    .join(' and ')

/** True where row `m` comes after the key that a text spells, in the order of `keyColumnsSql`. */
export function isAfterSql(source: Source, rowId: string): string {
  const values = partsSql(source, rowId).map((part, i) => valueSql(source, part, i))
  return `(${keyColumnsSql(source).join(', ')}) operator(pg_catalog.>) (${values.join(', ')})`
}

/** True where row `m` is the one that `rowId` names: SQL of a key that the queue or `lighter.canonical_key` wrote. */
export function isRowSql(source: Source, rowId: string): string {
  return matchSql(
    source,
    partsSql(source, rowId).map((part, i) => valueSql(source, part, i)),
  )
}

/** The same of a text that somebody else may have written, and that may be no key. */
export function mayBeRowSql(source: Source, rowId: string): string {
  return matchSql(
    source,
    partsSql(source, rowId).map((part, i) => {
      const { form, type } = columnOf(source, i)
      return keyForms[form].fromTextSql(part, type)
    }),
  )
}

/**
 * For statements that look up many rows: the parts of each key come as arrays of their own, beside that of the keys. A key of
 * one column is its own part.
 */
export const partNames = (source: Source): string[] =>
  source.key.length === 1 ? [] : source.key.map((_, i) => `p${i + 1}`)

/** Values of those parameters; null for what is no key of the source, so that no row is found. */
export function partArrays(source: Source, rowIds: string[]): string[] {
  if (source.key.length === 1) return []
  const parts = rowIds.map(rowId => rowKeyParts(rowId, source.key.length))
  return source.key.map((_, i) => arrayText(parts.map(each => each?.[i] ?? null)))
}

/** `, $7::text[], $8::text[]` for them. @param first number of the first */
export const partParameters = (source: Source, first: number): string =>
  partNames(source)
    .map((_, i) => `, $${first + i}::text[]`)
    .join('')

/** Their names in `unnest(…) as c(row_id…)`. */
export const partList = (source: Source): string =>
  partNames(source)
    .map(name => `, ${name}`)
    .join('')

/** True where row `m` is the one whose key is in `row_id` and the part columns of another. */
export function isKeyedRowSql(source: Source, alias: string): string {
  const names = partNames(source)
  const parts = names.length === 0 ? [`${alias}.row_id`] : names.map(name => `${alias}.${name}`)
  return matchSql(
    source,
    parts.map((part, i) => valueSql(source, part, i)),
  )
}

const partsSql = (source: Source, rowId: string): string[] =>
  source.key.length === 1
    ? [rowId]
    : source.key.map((_, i) => `(lighter.row_key_parts(${rowId}, ${source.key.length}))[${i + 1}]`)

function columnOf(source: Source, i: number): KeyColumn {
  const column = source.key[i]
  if (column === undefined) throw new Error(`${source.tableSql} has no key column ${i + 1}`)
  return column
}

function valueSql(source: Source, part: string, i: number): string {
  const { form, type } = columnOf(source, i)
  return keyForms[form].valueSql(part, type)
}

const matchSql = (source: Source, values: string[]): string =>
  source.key.map((column, i) => `${columnSql('m', column)} operator(pg_catalog.=) ${values[i]}`).join(' and ')

/** The columns of the key, for messages. */
export const describeKey = (source: Source): string =>
  source.key.map(({ name, form }) => `${name} (${keyForms[form].label})`).join(', ')
