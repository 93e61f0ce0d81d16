// How a command names a row: one argument for each column of its key, or --key with the columns by name.
import { Option } from 'commander'
import type { Queryable } from '../db/pool.ts'
import { RowError } from '../errors.ts'
import { canonicalRowId } from '../source/canonical-key.ts'
import { rowKey } from '../source/row-key.ts'
import { describeKey } from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'

export interface KeyOption {
  key?: string
}

export const keyOption = (): Option =>
  new Option('--key <json>', 'key of the row by its columns: {"tenant_id": "t1", "id": 7}')

/**
 * @param parts what was given for each column of the key, in its order; or its text form
 * @param json columns by name; in the place of `parts`
 * @returns the key as the queue and the pins spell it
 * @throws {RowError} `row_id_malformed`
 */
export async function readKey(
  db: Queryable,
  source: Source,
  parts: string[],
  json: string | undefined,
): Promise<string> {
  if (json !== undefined && parts.length > 0)
    throw malformed(source, 'both --key and arguments name a row', 'Pass one of them.')
  const named = json === undefined ? parts : partsOfJson(source, json)
  const [first, ...others] = named
  if (first === undefined) throw malformed(source, 'no key of a row was given')
  // The text form, as the queue, the API and the dashboard show it.
  if (others.length === 0) return canonicalRowId(db, source, first)
  if (named.length !== source.key.length)
    throw malformed(source, `${named.length} values were given for a key of ${source.key.length} column(s)`)
  return canonicalRowId(db, source, rowKey([first, ...others]))
}

function partsOfJson(source: Source, json: string): string[] {
  let value: unknown
  try {
    // A number as it is written: it may have more digits than JavaScript keeps.
    value = JSON.parse(json, (_, each: unknown, context?: { source?: string }) =>
      typeof each === 'number' ? (context?.source ?? String(each)) : each,
    )
  } catch (cause) {
    throw malformed(source, '--key is not JSON', undefined, cause)
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw malformed(source, '--key is not a JSON object')
  const given = new Map<string, unknown>(Object.entries(value))
  const parts = source.key.map(({ name }) => {
    const part = given.get(name)
    if (typeof part !== 'string') throw malformed(source, `--key has no text or number for "${name}"`)
    given.delete(name)
    return part
  })
  const [unknown] = given.keys()
  if (unknown !== undefined) throw malformed(source, `--key has "${unknown}", which is no column of the key`)
  return parts
}

function malformed(source: Source, message: string, hint?: string, cause?: unknown): RowError {
  return new RowError('row_id_malformed', message, {
    cause,
    hint: hint ?? `The key of ${source.tableSql}: ${describeKey(source)}.`,
  })
}

/** As a shell reads it back. */
export const shellWord = (text: string): string =>
  /^[\w./:@+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`
