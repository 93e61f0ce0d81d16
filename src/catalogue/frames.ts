// Frames on their way into lighter.frames: a row for each, with the arrays of its payloads.
import { arrayText } from '../db/array-text.ts'
import type { Columns } from '../db/parameters.ts'
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

/** What is an array itself is in the text form of one. */
export const frameColumns: Columns<CommittedFrame> = {
  tenant_id: ['uuid', ({ frame }) => frame.tenantId],
  id: ['uuid', ({ frame }) => frame.id],
  kind: ['text', ({ frame }) => frame.kind],
  r2_key: ['text', ({ frame }) => frame.key],
  byte_offset: ['bigint', ({ frame }) => frame.byteOffset],
  byte_length: ['bigint', ({ frame }) => frame.byteLength],
  content_encoding: ['text', ({ frame }) => frame.contentEncoding],
  source_id: ['int', ({ frame }) => originOf(frame).sourceId],
  field: ['text', ({ frame }) => originOf(frame).field],
  // Of nearly all, and then nothing is stored.
  content_type: [
    'text',
    ({ frame }) => (frame.contentType === 'application/json' ? null : frame.contentType),
  ],
  entity_type: ['text', ({ frame }) => originOf(frame).entityType],
  sizes: ['text', ({ frame }) => arrayText(frame.payloads.map(p => p.sizeBytes))],
  places: ['text', ({ frame }) => arrayText(frame.payloads.map(p => p.place))],
  hashes: ['text', ({ frame }) => `\\x${frame.payloads.map(p => p.sha256).join('')}`],
  row_uuids: ['text', ({ frame }) => (originOf(frame).uuidKey ? rowIdsOf(frame) : null)],
  row_texts: ['text', ({ frame }) => (originOf(frame).uuidKey ? null : rowIdsOf(frame))],
  entities: ['text', ({ frame }) => arrayText(entitiesOf(frame))],
  entity_places: ['text', ({ frame }) => entityPlacesOf(frame)],
  refers_from: ['text', ({ frame }) => arrayText(pointersOf(frame).map(p => p.ordinal))],
  refers_to: ['text', ({ frame }) => arrayText(pointersOf(frame).map(p => p.id))],
  voids: ['text', ({ voids }) => arrayText(voids)],
}

/** All payloads of a frame are of one source and field. */
function originOf(frame: Frame) {
  const origin = frame.payloads[0]?.origin
  if (origin === undefined) throw new Error(`frame ${frame.id} has no payload`)
  return origin
}

const rowIdsOf = ({ payloads }: Frame) => arrayText(payloads.map(p => p.origin.rowId))

const entitiesOf = ({ payloads }: Frame) => [...new Set(payloads.flatMap(p => p.origin.entityId ?? []))]

/** Of each payload, which of the entities it has, from 1. */
function entityPlacesOf(frame: Frame): string | null {
  const entities = entitiesOf(frame)
  if (entities.length === 0) return null
  const places = new Map(entities.map((entity, i) => [entity, i + 1]))
  return arrayText(frame.payloads.map(p => places.get(p.origin.entityId ?? '') ?? null))
}

const pointersOf = ({ payloads }: Frame) =>
  payloads.flatMap((p, ordinal) => p.origin.refersTo.map(id => ({ ordinal, id })))
