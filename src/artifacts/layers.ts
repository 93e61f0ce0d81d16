// A row and the payloads that it leads to, as layers: each has its own keys, and under it lies what its pointer
// names. All layers are read first and laid over each other once, so that the work is the length of the texts, however
// many of them there are.
import { type ArtifactId, asArtifactId } from '../ids.ts'
import { tooMuch } from './hydrate-limits.ts'
import { notMergeable } from './pointer-elements.ts'
import {
  elementCountKey,
  elementFromKey,
  fieldCountKey,
  fieldRefKey,
  metadataKindKey,
  metadataRefKey,
} from './pointer-keys.ts'
import { MemberReader, rawKind, uuidOf, wholeValue } from './raw-json.ts'
import { type Steps, stepChars } from './steps.ts'

/** A text, and where its pointers lead. */
export interface Opened {
  text: string
  /** To what lies under it. */
  metadataRef: ArtifactId | null
  fieldRef: ArtifactId | null
  /** The field is there inline: it stands for itself, and a pointer beside it is stale. */
  hasField: boolean
}

/** One layer of one row. */
export interface Layer {
  opened: Opened
  /** Payload of the field, where this layer is the one that has it. */
  field: string | null
  /** Keys that are ours and go. */
  dropped: Set<string>
}

/** Looks for pointers. Memory: none but the answer. */
export function* openSteps(text: string, field: string | null): Steps<Opened> {
  const opened: Opened = { text, metadataRef: null, fieldRef: null, hasField: false }
  // Cheap tests first: most texts have no pointer, and walking over a long one is work.
  if (rawKind(text) !== 'object') return opened
  const refKey = field === null ? null : fieldRefKey(field)
  const mentionsField = refKey !== null && text.includes(JSON.stringify(refKey))
  if (!mentionsField && !text.includes(`"${metadataRefKey}"`)) return opened
  const reader = new MemberReader(text)
  let pausedAt = 0
  while (reader.next()) {
    // The last of several members of one key counts.
    if (reader.key === metadataRefKey) opened.metadataRef = artifactIdOf(reader.raw())
    else if (reader.key === refKey) opened.fieldRef = artifactIdOf(reader.raw())
    if (reader.key === field) opened.hasField = true
    if (reader.end - pausedAt > stepChars) {
      pausedAt = reader.end
      yield
    }
  }
  return opened
}

function artifactIdOf(raw: string): ArtifactId | null {
  const id = uuidOf(raw)
  return id === null ? null : asArtifactId(id)
}

export function keysOfBase(): string[] {
  return [metadataRefKey, metadataKindKey]
}

export function keysOfField(field: string): string[] {
  return [fieldRefKey(field), fieldCountKey(field)]
}

/**
 * What jsonb's `base || own || own …` gives for objects, from the last layer to the first.
 * @param layers the row first; none of them but the last has a pointer to a base that is not the next one
 * @param maxKeys of all layers but the last
 * @throws {ArtifactError} `pointer_not_mergeable`: something lies over a payload that is no object
 */
export function* mergeSteps(layers: Layer[], field: string | null, maxKeys: number): Steps<string> {
  const base = layers.at(-1)
  if (base === undefined) throw new Error('a row has at least one layer')
  const above = layers.slice(0, -1).reverse()
  if (rawKind(base.opened.text) !== 'object')
    return yield* requireNothingAbove(base.opened.text, above, field, maxKeys)
  const over = new Map<string, string>()
  for (const layer of above) yield* readMembers(layer, field, over, maxKeys)
  return yield* laidOver(base, over, field)
}

/** The layer's own members, in the order of its text, then its field. */
function* readMembers(
  layer: Layer,
  field: string | null,
  into: Map<string, string>,
  maxKeys: number,
): Steps<void> {
  const reader = new MemberReader(layer.opened.text)
  let pausedAt = 0
  while (reader.next()) {
    if (!layer.dropped.has(reader.key)) into.set(reader.key, reader.raw())
    if (into.size > maxKeys) throw tooMuch(`more than ${maxKeys} keys lie over the payload`)
    if (reader.end - pausedAt > stepChars) {
      pausedAt = reader.end
      yield
    }
  }
  if (field !== null && layer.field !== null) into.set(field, layer.field)
}

/**
 * The base is walked over once. What nobody replaces is taken in runs, as the text it is, if that is laid out as
 * Postgres does; it nearly always is.
 */
function* laidOver(base: Layer, over: Map<string, string>, field: string | null): Steps<string> {
  const { text } = base.opened
  const own = field === null || base.field === null ? [] : [[field, base.field] as const]
  if (over.size === 0 && base.dropped.size === 0 && own.length === 0) return text
  const parts: string[] = []
  const written = new Set<string>()
  const write = (key: string, raw: string) => {
    if (written.has(key)) return
    written.add(key)
    parts.push(`${JSON.stringify(key)}: ${raw}`)
  }
  let runStart = -1
  let runEnd = -1
  const endRun = () => {
    if (runStart >= 0) parts.push(text.slice(runStart, runEnd))
    runStart = -1
  }
  const reader = new MemberReader(text)
  let pausedAt = 0
  while (reader.next()) {
    const replaced = over.get(reader.key)
    if (replaced === undefined && !base.dropped.has(reader.key)) {
      const plain = reader.isPlain()
      if (!plain || !text.startsWith(', ', runEnd) || reader.start !== runEnd + 2) endRun()
      if (!plain) parts.push(`${JSON.stringify(reader.key)}: ${reader.raw()}`)
      else if (runStart < 0) runStart = reader.start
      runEnd = reader.end
    } else {
      endRun()
      if (replaced !== undefined) write(reader.key, replaced)
    }
    if (reader.end - pausedAt > stepChars) {
      pausedAt = reader.end
      yield
    }
  }
  endRun()
  for (const [key, raw] of own) write(key, over.get(key) ?? raw)
  for (const [key, raw] of over) write(key, raw)
  return `{${parts.join(', ')}}`
}

/** Keys can be laid over an object only; over anything else they would be lost, or change what it is. */
function* requireNothingAbove(
  base: string,
  above: Layer[],
  field: string | null,
  maxKeys: number,
): Steps<string> {
  for (const layer of above) {
    const own = new Map<string, string>()
    yield* readMembers(layer, field, own, maxKeys)
    // Of a pointer that stood in an array, and was taken out of it.
    own.delete(elementCountKey)
    own.delete(elementFromKey)
    if (own.size === 0) continue
    wholeValue(base)
    throw notMergeable(
      layer.opened.metadataRef,
      `the row has keys of its own (${[...own.keys()].slice(0, 5).join(', ')}), and the payload is no object`,
    )
  }
  return base
}
