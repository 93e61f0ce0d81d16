// Arrays: pointers among their elements give way to the elements of their payloads.
import { LighterError } from '../errors.ts'
import type { HydrateInput, HydrateResult } from './hydrate.ts'
import type { Work } from './hydrate-limits.ts'
import type { PayloadTexts } from './payload-texts.ts'
import {
  boundSteps,
  type ElementPointer,
  elementsText,
  type Piece,
  pieceSteps,
  type Share,
} from './pointer-elements.ts'
import { rawKind } from './raw-json.ts'

export interface ArrayRow {
  input: HydrateInput
  pieces: Piece[]
  /** Elements whose payload is no array: a document's envelope, which the application has put into this one. */
  documents: Map<ElementPointer, HydrateInput>
  error: unknown
}

/** Null: no array, or one without pointers. @throws {MalformedJsonError} */
export async function openArray(input: HydrateInput, work: Work): Promise<ArrayRow | null> {
  const pieces = input.metadata === null ? null : await work.run(pieceSteps(input.metadata))
  return pieces === null ? null : { input, pieces, documents: new Map(), error: null }
}

const pointersOf = ({ pieces }: ArrayRow): ElementPointer[] =>
  pieces.filter(piece => typeof piece !== 'string')

/** Reads what the arrays need. Whatever a payload holds is not looked through again: no pointer is ever put into one. */
export async function readArrays(rows: ArrayRow[], texts: PayloadTexts): Promise<void> {
  const wanted = rows.flatMap(row => pointersOf(row).map(({ id }) => ({ tenantId: row.input.tenantId, id })))
  await texts.find(wanted)
  await texts.read(wanted)
  for (const row of rows) {
    try {
      for (const pointer of pointersOf(row)) {
        const kind = rawKind(await texts.text(row.input.tenantId, pointer.id))
        if (kind !== 'array') row.documents.set(pointer, { ...row.input, metadata: pointer.raw })
      }
    } catch (error) {
      row.error = error
    }
  }
}

/** @param hydrated of `documents` */
export async function joinArray(
  row: ArrayRow,
  hydrated: Map<HydrateInput, HydrateResult>,
  texts: PayloadTexts,
  work: Work,
): Promise<string> {
  if (row.error !== null) throw row.error
  const { tenantId } = row.input
  const bounds = await boundsOf(row, texts, work)
  const parts: string[] = []
  for (const piece of row.pieces) {
    if (typeof piece === 'string') {
      work.output(piece.length + 2)
      parts.push(piece)
      continue
    }
    const document = row.documents.get(piece)
    if (document !== undefined) {
      // It was counted when it was put together.
      const result = hydrated.get(document)
      if (result === undefined) throw new Error('hydrate lost an element')
      if (result.error instanceof LighterError) throw result.error
      parts.push(result.metadata ?? 'null')
      continue
    }
    const payload = await texts.text(tenantId, piece.id)
    const text = elementsText(piece, payload, bounds.get(piece.id) ?? new Map())
    work.output(text.length + 2)
    if (text !== '') parts.push(text)
  }
  return `[${parts.join(', ')}]`
}

/** Each payload is walked over once, however many pointers share it. */
async function boundsOf(
  row: ArrayRow,
  texts: PayloadTexts,
  work: Work,
): Promise<Map<string, Map<number, [number, number]>>> {
  const shares = new Map<ElementPointer['id'], Share[]>()
  for (const pointer of pointersOf(row)) {
    if (pointer.share === null || row.documents.has(pointer)) continue
    const known = shares.get(pointer.id)
    if (known === undefined) shares.set(pointer.id, [pointer.share])
    else known.push(pointer.share)
  }
  const bounds = new Map<string, Map<number, [number, number]>>()
  for (const [id, ofPayload] of shares) {
    bounds.set(id, await work.run(boundSteps(await texts.text(row.input.tenantId, id), ofPayload)))
  }
  return bounds
}
