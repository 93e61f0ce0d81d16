// Rows as an application has them, hydrated: which have pointers, in what batches they are asked for, and how what
// comes back gets into them. How it is asked for is the transport's.

import { checkJson } from '../artifacts/json-check.ts'
import { hasPointerElements } from '../artifacts/pointer-elements.ts'
import { MalformedJsonError, splitObject, uuidOf } from '../artifacts/raw-json.ts'
import { LighterError } from '../errors.ts'
import type { HydrateFailure, HydrateManyOptions, HydrateOptions } from './client.ts'
import { HydrateError } from './errors.ts'

/**
 * Hydrates up to `maxBatchRows` metadata texts.
 * @returns for each its exact text, or the error that stands in its place
 * @throws {LighterError} none of them could be asked for; the reason of the signal
 */
export type HydrateTexts = (
  texts: string[],
  field: string,
  signal: AbortSignal | undefined,
) => Promise<(string | LighterError)[]>

/** As many as the API takes at once. */
const maxBatchRows = 200
/** Rows are short once offloaded. Of those that are not, a batch has no more than the API takes by default. */
const maxBatchChars = 2 * 1024 * 1024
/** The API refuses a body nested deeper than 500; two levels are the request's own. */
const maxDepth = 498

interface Pending {
  index: number
  text: string
  /** The row had text, and gets text. */
  asText: boolean
}

/** One row. @throws the row's error */
export async function hydrateRow<R extends object>(
  hydrateTexts: HydrateTexts,
  row: R,
  options: HydrateOptions = {},
): Promise<R> {
  const failures: HydrateFailure<R>[] = []
  const onError = (failure: HydrateFailure<R>) => failures.push(failure)
  const [hydrated] = await hydrateRows(hydrateTexts, [row], { ...options, onError })
  if (failures[0] !== undefined) throw failures[0].error
  return hydrated ?? row
}

/** @throws {HydrateError} a row failed and there is no `onError` */
export async function hydrateRows<R extends object>(
  hydrateTexts: HydrateTexts,
  rows: readonly R[],
  options: HydrateManyOptions<R> = {},
): Promise<R[]> {
  const { column = 'metadata', field = 'tool_interactions', signal } = options
  const { parse = JSON.parse, stringify = JSON.stringify } = options
  signal?.throwIfAborted()
  const results = [...rows]
  const failures: HydrateFailure<R>[] = []
  const fail = (index: number, error: LighterError) => {
    const row = rows[index]
    if (row !== undefined) failures.push({ index, row, error })
  }

  const pending: Pending[] = []
  rows.forEach((row, index) => {
    try {
      const value = (row as Record<string, unknown>)[column]
      const text = textWithPointers(value, field, stringify)
      if (text !== null) pending.push({ index, text, asText: typeof value === 'string' })
    } catch (error) {
      fail(index, asLighterError(error))
    }
  })

  const take = (item: Pending, result: string | LighterError) => {
    const row = rows[item.index]
    if (result instanceof LighterError) fail(item.index, result)
    else if (row !== undefined) {
      try {
        results[item.index] = { ...row, [column]: item.asText ? result : parse(result) }
      } catch (error) {
        fail(item.index, asLighterError(error))
      }
    }
  }
  // Once a request has failed as a whole the next will too: its retries are over.
  let outage: LighterError | null = null
  for (const batch of batchesOf(pending)) {
    if (outage === null) {
      try {
        const answered = await hydrateBatch(hydrateTexts, batch, field, signal)
        for (const [item, result] of answered) take(item, result)
        continue
      } catch (error) {
        if (!(error instanceof LighterError)) throw error
        outage = error
      }
    }
    for (const item of batch) fail(item.index, outage)
  }

  failures.sort((a, b) => a.index - b.index)
  if (failures.length > 0 && options.onError === undefined) throw new HydrateError(results, failures)
  for (const failure of failures) options.onError?.(failure)
  return results
}

/** The metadata as text to be hydrated; null when it has no pointer. @throws {MalformedJsonError} */
function textWithPointers(
  value: unknown,
  field: string,
  stringify: (value: unknown) => string,
): string | null {
  const names = ['artifact_metadata_ref', `${field}_ref`]
  if (typeof value === 'string') {
    // Cheap tests first: most rows have no pointer, and splitting a long text is work.
    if (/^\s*\[/.test(value)) return hasPointerElements(value) ? sendable(value) : null
    if (!/^\s*\{/.test(value) || !names.some(name => value.includes(JSON.stringify(name)))) return null
    const members = splitObject(value)
    if (names.every(name => uuidOf(members.get(name)) === null)) return null
    return sendable(value)
  }
  // Of an array each element may be a pointer to elements of it.
  const found = Array.isArray(value)
    ? value.some(element => hasPointer(element, ['artifact_metadata_ref']))
    : hasPointer(value, names)
  return found ? sendable(stringify(value)) : null
}

function hasPointer(value: unknown, names: string[]): boolean {
  if (typeof value !== 'object' || value === null) return false
  return names.some(
    name =>
      Object.hasOwn(value, name) && uuidOf(JSON.stringify((value as Record<string, unknown>)[name])) !== null,
  )
}

/** A text that can't reach into the request around it, and arrives as it is. @throws {MalformedJsonError} */
function sendable(text: string): string {
  checkJson(text, maxDepth)
  if (!text.isWellFormed()) throw new LighterError('malformed_json', 'it has half a surrogate pair')
  return text
}

function* batchesOf(pending: Pending[]): Generator<Pending[]> {
  let batch: Pending[] = []
  let chars = 0
  for (const item of pending) {
    if (batch.length === maxBatchRows || (batch.length > 0 && chars + item.text.length > maxBatchChars)) {
      yield batch
      batch = []
      chars = 0
    }
    batch.push(item)
    chars += item.text.length
  }
  if (batch.length > 0) yield batch
}

/** A batch whose payloads are more than one answer may bring is asked for again in parts. */
async function hydrateBatch(
  hydrateTexts: HydrateTexts,
  batch: Pending[],
  field: string,
  signal: AbortSignal | undefined,
): Promise<[Pending, string | LighterError][]> {
  const results = await hydrateTexts(
    batch.map(item => item.text),
    field,
    signal,
  )
  const answered: [Pending, string | LighterError][] = []
  const beyond: Pending[] = []
  batch.forEach((item, i) => {
    const result = results[i]
    if (result === undefined) throw new LighterError('bad_answer', 'fewer rows came back than were asked for')
    const tooMuch = result instanceof LighterError && result.code === 'artifact_too_large'
    if (tooMuch && batch.length > 1) beyond.push(item)
    else answered.push([item, result])
  })
  if (beyond.length === 0) return answered
  const half = Math.ceil(beyond.length / 2)
  // When some fitted, the others get an answer of their own; when none did, halves lead to single rows.
  const parts = beyond.length < batch.length ? [beyond] : [beyond.slice(0, half), beyond.slice(half)]
  for (const part of parts) {
    if (part.length > 0) answered.push(...(await hydrateBatch(hydrateTexts, part, field, signal)))
  }
  return answered
}

function asLighterError(error: unknown): LighterError {
  if (error instanceof LighterError) return error
  const code = error instanceof MalformedJsonError ? error.code : 'metadata_unreadable'
  return new LighterError(code, error instanceof Error ? error.message : String(error), { cause: error })
}
