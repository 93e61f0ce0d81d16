// How heavy a value is that leaves as a whole: the steps before the plan have hints, the plan its exact length.
import { columnTypes } from '../source/column-types.ts'
import type { Source } from '../source/sources.ts'
import { bytesWithoutNumbersSql, hasLongNumbersSql, textBytesBoundSql } from './long-numbers.ts'

/** SQL: the length of the value's text, or of its bytes. Only that of JSON takes a copy of it. */
function lengthSql({ columnType }: Source, value: string): string {
  return columnType === 'json' || columnType === 'jsonb'
    ? `octet_length(${value}::text)`
    : `octet_length(${value})`
}

/**
 * SQL: the bytes of a value that is over the threshold, else null. As of a document, long numbers alone do not make a jsonb
 * value heavy, and one with them is not rendered.
 */
export function heavyBytesSql(source: Source, value: string): string {
  return `(${bytesSql(source, value)})::float8`
}

function bytesSql(source: Source, value: string): string {
  const threshold = source.thresholdBytes
  if (source.columnType !== 'jsonb') {
    // It is no longer than what is stored of it, where that is not compressed.
    const length = `(select length from (select ${lengthSql(source, value)} as length offset 0) l where length > ${threshold})`
    return source.columnType === 'json'
      ? `case when pg_column_size(${value}) > ${threshold} or pg_column_compression(${value}) is not null then ${length} end`
      : length
  }
  return `case when pg_column_size(${value}) <= ${Math.floor(threshold / 6)} and pg_column_compression(${value}) is null then null
    when ${hasLongNumbersSql(value)} then case when ${bytesWithoutNumbersSql(value)} > ${threshold} then ${textBytesBoundSql(value)} end
    else (select length from (select octet_length(${value}::text) as length offset 0) l where length > ${threshold}) end`
}

/** SQL: whether the text of a value has numbers that are far longer than what is stored of them. */
export const hasLongNumbersInSql = ({ columnType }: Source, value: string): string =>
  columnTypes[columnType] === columnTypes.jsonb ? `coalesce(${hasLongNumbersSql(value)}, false)` : 'false'
