// Pointers among the elements of an array. Each stands for elements of its artifact's payload, wherever in the array
// it is, so an application may append, prepend, insert or reorder without knowing. Which elements are pointers
// lighter.array_pointers says to the offload; both must agree.
import { ArtifactError } from '../errors.ts'
import { type ArtifactId, asArtifactId } from '../ids.ts'
import { elementCountKey, elementFromKey, metadataKindKey, metadataRefKey } from './pointer-keys.ts'
import { ElementReader, rawKind, splitObject, uuidOf } from './raw-json.ts'
import { atOnce, type Steps, stepChars } from './steps.ts'

export interface ElementPointer {
  id: ArtifactId
  /** The element as it stands in the array. */
  raw: string
  /** The elements of the payload that it stands for; null: all of them. */
  share: Share | null
  /** Keys that no pointer of ours has: somebody has written into it. */
  foreignKeys: string[]
}

export interface Share {
  from: number
  count: number
}

/** A run of elements as the text it is, or a pointer. */
export type Piece = string | ElementPointer

const pointerKeys = new Set([metadataRefKey, metadataKindKey, elementCountKey, elementFromKey])

/** An array's text in pieces; null when it is no array, or none of its elements is a pointer. */
export function* pieceSteps(text: string): Steps<Piece[] | null> {
  // Cheap tests first: most arrays have no pointer, and walking over a long one is work.
  if (rawKind(text) !== 'array' || !text.includes(`"${metadataRefKey}"`)) return null
  const pieces: Piece[] = []
  const reader = new ElementReader(text)
  let runStart = -1
  let runEnd = -1
  let found = false
  let pausedAt = 0
  const endRun = () => {
    if (runStart >= 0) pieces.push(text.slice(runStart, runEnd))
    runStart = -1
  }
  while (reader.next()) {
    const pointer = text[reader.start] === '{' ? pointerOf(reader.raw()) : null
    if (pointer === null) {
      if (runStart < 0) runStart = reader.start
      runEnd = reader.end
    } else {
      endRun()
      pieces.push(pointer)
      found = true
    }
    if (reader.end - pausedAt > stepChars) {
      pausedAt = reader.end
      yield
    }
  }
  endRun()
  return found ? pieces : null
}

export function hasPointerElements(text: string): boolean {
  return atOnce(pieceSteps(text)) !== null
}

function pointerOf(raw: string): ElementPointer | null {
  if (!raw.includes(`"${metadataRefKey}"`)) return null
  const members = splitObject(raw)
  const id = uuidOf(members.get(metadataRefKey))
  if (id === null) return null
  const from = wholeNumber(members.get(elementFromKey))
  const count = wholeNumber(members.get(elementCountKey))
  return {
    id: asArtifactId(id),
    raw,
    share: from === null || count === null ? null : { from, count },
    foreignKeys: [...members.keys()].filter(key => !pointerKeys.has(key)),
  }
}

function wholeNumber(raw: string | undefined): number | null {
  return raw !== undefined && /^\d{1,15}$/.test(raw) ? Number(raw) : null
}

/** Where elements of a payload begin and end, by their number: of those that a share begins or ends with. One walk. */
export function* boundSteps(payload: string, shares: Share[]): Steps<Map<number, [number, number]>> {
  const wanted = new Set(shares.flatMap(({ from, count }) => (count === 0 ? [] : [from, from + count - 1])))
  const bounds = new Map<number, [number, number]>()
  const reader = new ElementReader(payload)
  let pausedAt = 0
  for (let n = 0; bounds.size < wanted.size && reader.next(); n++) {
    if (wanted.has(n)) bounds.set(n, [reader.start, reader.end])
    if (reader.end - pausedAt > stepChars) {
      pausedAt = reader.end
      yield
    }
  }
  return bounds
}

/**
 * The elements that the pointer stands for, as text to be put between commas; '' when there is none.
 * @throws {ArtifactError} `pointer_not_mergeable`: the pointer was changed, and what was meant can't be told
 */
export function elementsText(
  { id, share, foreignKeys }: ElementPointer,
  payload: string,
  bounds: Map<number, [number, number]>,
): string {
  if (foreignKeys.length > 0) {
    const keys = foreignKeys.slice(0, 5).join(', ')
    throw notMergeable(id, `it stands for elements of an array, and has keys of its own: ${keys}`)
  }
  if (share === null) return payload.trim().slice(1, -1).trim()
  if (share.count === 0) return ''
  const start = bounds.get(share.from)?.[0]
  const end = bounds.get(share.from + share.count - 1)?.[1]
  if (start === undefined || end === undefined) {
    throw notMergeable(id, 'it names elements that its payload does not have')
  }
  return payload.slice(start, end)
}

export function notMergeable(id: ArtifactId | null, why: string): ArtifactError {
  return new ArtifactError(
    'pointer_not_mergeable',
    `the pointer to artifact ${id ?? 'of the row'} can not be followed: ${why}`,
    {
      hint: 'Put the pointer back as it was, or write the whole value again. GET /api/storage/artifacts/<id> returns the payload, which is unharmed.',
    },
  )
}
