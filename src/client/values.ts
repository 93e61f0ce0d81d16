// Rows with a column of mode stub or whole: the value is one artifact, which is asked for by itself.
import { stubKey } from '../artifacts/pointer-keys.ts'
import { stubIdIn } from '../artifacts/stub.ts'
import { LighterError } from '../errors.ts'
import type { HydrateFailure, HydrateManyOptions, HydrateOptions, LighterClient } from './client.ts'
import { HydrateError } from './errors.ts'

type Get = LighterClient['get']

/** Requests at once. */
const concurrency = 8

const id = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/

/** One row. @throws the row's error */
export async function hydrateValueRow<R extends object>(
  get: Get,
  row: R,
  options: HydrateOptions,
): Promise<R> {
  const failures: HydrateFailure<R>[] = []
  const onError = (failure: HydrateFailure<R>) => failures.push(failure)
  const [hydrated] = await hydrateValueRows(get, [row], { ...options, onError })
  if (failures[0] !== undefined) throw failures[0].error
  return hydrated ?? row
}

/** @throws {HydrateError} a row failed and there is no `onError` */
export async function hydrateValueRows<R extends object>(
  get: Get,
  rows: readonly R[],
  options: HydrateManyOptions<R>,
): Promise<R[]> {
  options.signal?.throwIfAborted()
  const results = [...rows]
  const failures: HydrateFailure<R>[] = []
  const left = rows.entries()
  const work = async () => {
    for (const [index, row] of left) {
      try {
        results[index] = await hydrateOne(get, row, options)
      } catch (error) {
        if (!(error instanceof LighterError)) throw error
        failures.push({ index, row, error })
      }
    }
  }
  await Promise.all(Array.from({ length: Math.min(concurrency, rows.length) }, work))
  failures.sort((a, b) => a.index - b.index)
  if (failures.length > 0 && options.onError === undefined) throw new HydrateError(results, failures)
  for (const failure of failures) options.onError?.(failure)
  return results
}

async function hydrateOne<R extends object>(get: Get, row: R, options: HydrateOptions): Promise<R> {
  const { column = 'metadata', pointerColumn, kind, signal, parse = JSON.parse } = options
  const values = row as Record<string, unknown>
  const value = values[column]
  const pointer =
    pointerColumn === undefined ? stubOf(value) : value === null ? pointerOf(values[pointerColumn]) : null
  if (pointer === null) return row
  const found = await get(pointer, { signal }).catch(error => {
    // A text that looks like a stub and names nothing is the application's own.
    if (pointerColumn === undefined && error instanceof LighterError && error.code === 'artifact_not_found')
      return null
    throw error
  })
  if (found === null) return row
  const { artifact, payload } = found
  if (artifact.kind !== kind) {
    if (pointerColumn === undefined) return row
    throw new LighterError(
      'artifact_not_found',
      `the row points to artifact ${pointer}, which is not of the kind ${kind}`,
    )
  }
  const type = artifact.contentType ?? ''
  const hydrated = /^application\/json\b/.test(type)
    ? typeof value === 'string'
      ? payload.text()
      : parse(payload.text())
    : /^text\//.test(type)
      ? payload.text()
      : payload.bytes
  return { ...row, [column]: hydrated }
}

/** Of a row whose JSON is an object as of one whose JSON, or text, is text. */
function stubOf(value: unknown): string | null {
  if (typeof value === 'string') return stubIdIn(value)
  if (typeof value !== 'object' || value === null || Object.keys(value).length !== 1) return null
  return pointerOf((value as Record<string, unknown>)[stubKey])
}

const pointerOf = (value: unknown) => (typeof value === 'string' && id.test(value) ? value : null)
