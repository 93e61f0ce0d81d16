// Metadata as it was before offloading: pointers followed, payloads put back, as text from end to end.
import type { Queryable } from '../db/pool.ts'
import { ArtifactError, LighterError } from '../errors.ts'
import type { ArtifactId, TenantId } from '../ids.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { type ArrayRow, joinArray, openArray, readArrays } from './hydrate-arrays.ts'
import { type HydrateLimits, startWork, type Work, widestLimits } from './hydrate-limits.ts'
import { keysOfBase, keysOfField, type Layer, mergeSteps, type Opened, openSteps } from './layers.ts'
import { createPayloadTexts, type PayloadTexts } from './payload-texts.ts'

export interface HydrateContext {
  db: Queryable
  store: ObjectStore
  /** Requests to the store at once. */
  concurrency?: number
  /** A row that goes beyond one has `artifact_too_large` or `pointer_chain_too_long`. */
  limits?: HydrateLimits
  /** Called between two steps of the work: resolves when the next one may be made. */
  pause?: () => Promise<unknown>
  /** Aborted: nobody waits for the result any more. */
  signal?: AbortSignal
}

export interface HydrateInput {
  tenantId: TenantId
  /** The column's text (`metadata::text`), null for SQL null. */
  metadata: string | null
  /** The source's phase 1 field. */
  field: string | null
}

export type HydrateResult = { metadata: string | null; error: null } | { metadata: null; error: LighterError }

/**
 * Hydrates many rows: per level of pointers one lookup per tenant and one read per frame.
 *
 * `base = payload(artifact_metadata_ref)`, hydrated in turn; the row's own keys are laid over it, since the
 * application may have changed them; then the field comes from its pointer, unless the row has it inline
 * again. For a row that was not touched since, the result equals the original jsonb. In an array each pointer
 * element gives way to the elements of its payload. Pointers that are nested deeper are the application's own.
 * @returns results in the order of the inputs; a row that can't be hydrated has its error, never wrong data
 */
export async function hydrateMany(context: HydrateContext, inputs: HydrateInput[]): Promise<HydrateResult[]> {
  const work = startWork(context.limits ?? widestLimits, context.pause, context.signal)
  const texts = createPayloadTexts(context.db, context.store, work, context.concurrency ?? 16)
  const opened: (Row | ArrayRow)[] = []
  for (const input of inputs) opened.push(await openRow(input, work))
  const arrays = opened.filter(row => 'pieces' in row)
  await readArrays(arrays, texts)
  const rows = opened.filter(row => 'layers' in row)
  // Of what stands in an array, nothing is opened as one again.
  for (const array of arrays)
    for (const input of array.documents.values()) rows.push(await openLayers(input, work))
  for (;;) {
    const following = rows.filter(row => row.next !== null)
    if (following.length === 0) break
    context.signal?.throwIfAborted()
    await followLevel(following, texts, work)
  }
  const finished = new Map<HydrateInput, HydrateResult>()
  for (const row of rows) finished.set(row.input, await finish(row, work))
  const results: HydrateResult[] = []
  for (const row of opened) {
    if ('pieces' in row) results.push(await finishArray(row, finished, texts, work))
    else
      results.push(
        finished.get(row.input) ?? { metadata: null, error: failure(new Error('hydrate lost a row')) },
      )
  }
  return results
}

async function finishArray(
  row: ArrayRow,
  documents: Map<HydrateInput, HydrateResult>,
  texts: PayloadTexts,
  work: Work,
): Promise<HydrateResult> {
  try {
    return { metadata: await joinArray(row, documents, texts, work), error: null }
  } catch (error) {
    return { metadata: null, error: failure(error) }
  }
}

/** One row. @throws {ArtifactError} a pointer leads nowhere, to another tenant, or to damaged bytes */
export async function hydrate(context: HydrateContext, input: HydrateInput): Promise<string | null> {
  const [result] = await hydrateMany(context, [input])
  if (result === undefined) throw new Error('hydrateMany lost its input')
  if (result.error !== null) throw result.error
  return result.metadata
}

interface Row {
  input: HydrateInput
  /** The row itself, and what it leads to so far. */
  layers: Layer[]
  /** The last of them, while its pointers were not followed yet. */
  next: Layer | null
  /** Some layer has the field, so that the ones it lies under need not read theirs. */
  fieldKnown: boolean
  /** The pointers that were followed. A row may be offloaded again and again, each time on top of the last. */
  trail: Set<ArtifactId>
  error: LighterError | null
}

async function openRow(input: HydrateInput, work: Work): Promise<Row | ArrayRow> {
  try {
    const array = await openArray(input, work)
    if (array !== null) return array
  } catch (error) {
    const row = newRow(input)
    fail(row, error)
    return row
  }
  return openLayers(input, work)
}

async function openLayers(input: HydrateInput, work: Work): Promise<Row> {
  const row = newRow(input)
  if (input.metadata === null) return row
  try {
    addLayer(row, await work.run(openSteps(input.metadata, input.field)))
  } catch (error) {
    fail(row, error)
  }
  return row
}

function newRow(input: HydrateInput): Row {
  return { input, layers: [], next: null, fieldKnown: false, trail: new Set(), error: null }
}

function addLayer(row: Row, opened: Opened): void {
  const layer: Layer = { opened, field: null, dropped: new Set() }
  row.layers.push(layer)
  row.next = opened.metadataRef === null && opened.fieldRef === null ? null : layer
}

/** All rows go on together, so that a chain costs a round for each of its links, not for each row. */
async function followLevel(rows: Row[], texts: PayloadTexts, work: Work): Promise<void> {
  const pointers = rows.flatMap(row => pointersOf(row, false))
  await texts.find(pointers)
  await texts.read(rows.flatMap(row => pointersOf(row, true)))
  for (const row of rows) {
    try {
      await followRow(row, texts, work)
    } catch (error) {
      fail(row, error)
    }
  }
}

/** @param needed only those whose payload is needed */
function pointersOf(row: Row, needed: boolean): { tenantId: TenantId; id: ArtifactId }[] {
  const opened = row.next?.opened
  if (opened === undefined) return []
  const { metadataRef, fieldRef } = opened
  const field = needed && !needsField(row, opened) ? null : fieldRef
  const { tenantId } = row.input
  return [metadataRef, field].flatMap(id => (id === null ? [] : [{ tenantId, id }]))
}

const needsField = (row: Row, opened: Opened) => !opened.hasField && !row.fieldKnown

async function followRow(row: Row, texts: PayloadTexts, work: Work): Promise<void> {
  const { next: layer } = row
  const { tenantId, field } = row.input
  if (layer === null) return
  row.next = null
  const { metadataRef, fieldRef, hasField } = layer.opened
  if (field !== null && fieldRef !== null) {
    if (needsField(row, layer.opened)) layer.field = await texts.text(tenantId, fieldRef)
    // Inline, beside something under our names that is no pointer: then that is the application's own data.
    if (!hasField || texts.has(tenantId, fieldRef))
      for (const key of keysOfField(field)) layer.dropped.add(key)
  }
  row.fieldKnown ||= fieldRef !== null || hasField
  if (metadataRef === null) return
  for (const key of keysOfBase()) layer.dropped.add(key)
  if (row.trail.has(metadataRef))
    throw new ArtifactError('pointer_cycle', `artifact ${metadataRef} leads back to itself`)
  row.trail.add(metadataRef)
  const { chain } = work.limits
  if (row.trail.size > chain)
    throw new ArtifactError('pointer_chain_too_long', `the pointer chain is longer than ${chain} payloads`)
  addLayer(row, await texts.open(tenantId, metadataRef, field))
}

async function finish(row: Row, work: Work): Promise<HydrateResult> {
  if (row.error !== null) return { metadata: null, error: row.error }
  const [first, ...others] = row.layers
  if (first === undefined) return { metadata: null, error: null }
  // No pointer was followed.
  if (others.length === 0 && first.dropped.size === 0) return { metadata: first.opened.text, error: null }
  try {
    let chars = 0
    for (const layer of row.layers) chars += layer.opened.text.length + (layer.field?.length ?? 0)
    work.output(chars)
    return {
      metadata: await work.run(mergeSteps(row.layers, row.input.field, work.limits.keys)),
      error: null,
    }
  } catch (error) {
    fail(row, error)
    return { metadata: null, error: row.error ?? failure(error) }
  } finally {
    row.layers = []
  }
}

function fail(row: Row, error: unknown): void {
  row.error = failure(error)
  row.next = null
  row.layers = []
}

function failure(error: unknown): LighterError {
  if (error instanceof LighterError) return error
  return new ArtifactError('hydrate_failed', error instanceof Error ? error.message : String(error), {
    cause: error,
  })
}
