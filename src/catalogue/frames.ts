// Frames on their way into lighter.frames: a row for each, with the arrays of its payloads.
import { arrayText } from '../db/array-text.ts'
import type { Frame, Location } from '../offload/pack.ts'

export interface CommittedFrame {
  frame: Frame
  /** Ordinals whose rows changed before the commit: their bytes are in the pack, and are no artifacts. */
  voids: number[]
}

/** The frames in which something is committed. */
export function committedFrames(locations: Location[]): CommittedFrame[] {
  const committed = new Map<Frame, Set<number>>()
  for (const { frame, ordinal } of locations) {
    if (frame === null) continue
    const ordinals = committed.get(frame)
    if (ordinals === undefined) committed.set(frame, new Set([ordinal]))
    else ordinals.add(ordinal)
  }
  return [...committed].map(([frame, ordinals]) => ({
    frame,
    voids: [...frame.payloads.keys()].filter(ordinal => !ordinals.has(ordinal)),
  }))
}

/**
 * An array for each column, in the order of the statement in `commit.ts`: tenant_id, id, kind, r2_key, byte_offset,
 * byte_length, content_encoding, source_id, field, entity_type, sizes, places, hashes, row_uuids, row_texts, entities,
 * entity_places, refers_from, refers_to, voids. What is an array itself is in the text form of one.
 */
export function frameColumns(frames: CommittedFrame[]): string[] {
  const rows = frames.map(({ frame, voids }) => {
    const { payloads } = frame
    const origin = payloads[0]?.origin
    if (origin === undefined) throw new Error(`frame ${frame.id} has no payload`)
    const rowIds = arrayText(payloads.map(p => p.origin.rowId))
    const entities = [...new Set(payloads.flatMap(p => p.origin.entityId ?? []))]
    const places = new Map(entities.map((entity, i) => [entity, i + 1]))
    const pointers = payloads.flatMap((p, ordinal) => p.origin.refersTo.map(id => ({ ordinal, id })))
    return [
      frame.tenantId,
      frame.id,
      frame.kind,
      frame.key,
      frame.byteOffset,
      frame.byteLength,
      frame.contentEncoding,
      origin.sourceId,
      origin.field,
      origin.entityType,
      arrayText(payloads.map(p => p.sizeBytes)),
      arrayText(payloads.map(p => p.place)),
      arrayText(payloads.map(p => `\\x${p.sha256}`)),
      origin.uuidKey ? rowIds : null,
      origin.uuidKey ? null : rowIds,
      arrayText(entities),
      entities.length === 0
        ? null
        : arrayText(payloads.map(p => places.get(p.origin.entityId ?? '') ?? null)),
      arrayText(pointers.map(p => p.ordinal)),
      arrayText(pointers.map(p => p.id)),
      arrayText(voids),
    ]
  })
  return Array.from({ length: columnCount }, (_, column) => arrayText(rows.map(row => row[column] ?? null)))
}

const columnCount = 20
