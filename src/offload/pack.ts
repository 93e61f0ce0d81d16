// Step 4: lay payloads out in objects. Pure: bytes in, bytes out.
//
// A pack is a JSON-lines file, compressed in frames of about 64 KiB of text: many artifacts share a frame,
// since alone they compress three times worse, and any one of them is a ranged read of one frame. A frame
// that stands alone can be concatenated, so the whole object is a plain .jsonl.zst (.jsonl.gz) as well.
import { hash } from 'node:crypto'
import { setImmediate } from 'node:timers/promises'
import type { Codec, PackConfig } from '../config.ts'
import {
  type ArtifactId,
  artifactInFrame,
  type FrameId,
  newArtifactId,
  newFrameId,
  type TenantId,
} from '../ids.ts'
import { encodeFrame, encodingOf, extensionOf } from '../store/codec.ts'
import { objectKey } from '../store/keys.ts'
import { encodePayloads, framePayloads, frameTextBytes } from '../store/pack-format.ts'

/** Where a payload came from. */
interface Origin {
  sourceId: number
  rowId: string
  /** The row's key is a uuid. */
  uuidKey: boolean
  field: string | null
  /** Media type of the payload, and the extension of an object that holds nothing else. */
  contentType: string
  extension: string
  entityType: string | null
  entityId: string | null
  refersTo: string[]
}

export interface PackItem {
  tenantId: TenantId
  kind: string
  /** The name under which `locations` has it; of a loose artifact its id too. */
  artifactId: ArtifactId
  bytes: Buffer
  origin: Origin
}

/** A row of `lighter.frames`. */
export interface Frame {
  id: FrameId
  tenantId: TenantId
  kind: string
  key: string
  byteOffset: number
  byteLength: number
  contentEncoding: string | null
  /** Of its payloads. */
  contentType: string
  payloads: FramePayload[]
}

interface FramePayload {
  origin: Origin
  sizeBytes: number
  /** Where it begins in the text of the frame. */
  place: number
  sha256: string
}

/** Where an artifact is: an object of its own, or a payload of a frame. */
export interface Location {
  /** Of a payload in a frame known only now: it names the frame. */
  artifactId: ArtifactId
  key: string
  frame: Frame | null
  ordinal: number
  contentEncoding: string | null
  contentType: string
  sizeBytes: number
  sha256: string
}

export interface BuiltObject {
  tenantId: TenantId
  /** Of most of what is in it. */
  kind: string
  /** Of the rest. */
  otherKinds?: string[]
  key: string
  /** Of the object; the artifacts in a pack have their own. */
  contentType: string
  /** Only of a loose object: sent as its Content-Encoding. A pack says it by its extension. */
  contentEncoding: string | null
  body: Buffer
  artifactCount: number
  payloadBytes: number
  locations: Map<ArtifactId, Location>
}

export const packContentType = 'application/x-ndjson'

/** Text that is compressed in one go, before other work of the process gets its turn: some milliseconds of zstd. */
const turnTextBytes = 1024 * 1024

/**
 * Groups payloads by tenant and kind and builds their objects. A pack never mixes tenants.
 *
 * Frames are compressed here and not in the thread pool: zstd takes 2 ms for a MiB of such text, and handing
 * each frame to a thread cost half as much again in CPU without being sooner done (measured on two cores).
 */
export async function buildObjects(
  items: PackItem[],
  config: PackConfig,
  prefix: string,
  now: Date,
): Promise<BuiltObject[]> {
  const objects: BuiltObject[] = []
  let turn = 0
  for (const group of Map.groupBy(items, item => `${item.tenantId}/${item.kind}`).values()) {
    // What is read together lies together, and the index of entities has each once.
    for (const part of splitGroup([...byEntity(group)], config)) {
      for (const pack of config.packing ? [part] : part.map(item => [item])) {
        const [only] = pack
        objects.push(
          config.packing || only === undefined
            ? buildPack(pack, config, prefix, now)
            : buildLoose(only, config, prefix, now),
        )
        turn += pack.reduce((sum, item) => sum + item.bytes.length, 0)
        if (turn < turnTextBytes) continue
        turn = 0
        await setImmediate()
      }
    }
  }
  return objects
}

/** Those of an entity one after the other, in the order in which they came. */
function* byEntity(group: PackItem[]): Generator<PackItem> {
  for (const ofEntity of Map.groupBy(group, item => item.origin.entityId).values()) yield* ofEntity
}

/** Cuts a group where a pack would pass its limit. */
function splitGroup(group: PackItem[], config: PackConfig): PackItem[][] {
  const parts: PackItem[][] = []
  let part: PackItem[] = []
  let bytes = 0
  for (const item of group) {
    if (part.length > 0 && bytes + item.bytes.length > config.maxPackBytes) {
      parts.push(part)
      part = []
      bytes = 0
    }
    part.push(item)
    bytes += item.bytes.length
  }
  parts.push(part)
  return parts
}

/** One artifact, one object; compressed only if that makes it smaller. */
function buildLoose(item: PackItem, config: PackConfig, prefix: string, now: Date): BuiltObject {
  const encoded = encodeFrame(config.codec, item.bytes)
  const smaller = encoded.length < item.bytes.length
  const contentEncoding = smaller ? encodingOf(config.codec) : null
  const body = smaller ? encoded : item.bytes
  const key = objectKey(prefix, item.tenantId, item.kind, now, newArtifactId(), item.origin.extension)
  const { contentType } = item.origin
  const location: Location = {
    artifactId: item.artifactId,
    key,
    frame: null,
    ordinal: 0,
    contentEncoding,
    contentType,
    sizeBytes: item.bytes.length,
    sha256: sha256Of(item.bytes),
  }
  return {
    tenantId: item.tenantId,
    kind: item.kind,
    key,
    contentType,
    contentEncoding,
    body,
    artifactCount: 1,
    payloadBytes: item.bytes.length,
    locations: new Map([[item.artifactId, location]]),
  }
}

/** Key of a new pack. */
export function packKey(prefix: string, tenantId: TenantId, kind: string, codec: Codec, now: Date): string {
  return objectKey(prefix, tenantId, kind, now, newArtifactId(), `jsonl${extensionOf(codec)}`)
}

function buildPack(items: PackItem[], config: PackConfig, prefix: string, now: Date): BuiltObject {
  const first = items[0]
  if (first === undefined) throw new Error('a pack needs an artifact')
  const { tenantId, kind } = first
  const key = packKey(prefix, tenantId, kind, config.codec, now)
  const locations = new Map<ArtifactId, Location>()
  const bodies: Buffer[] = []
  let byteOffset = 0
  for (const run of runsOf(items)) {
    const { bytes, places } = encodePayloads(
      run.map(item => item.bytes),
      config.codec,
    )
    const frame: Frame = {
      id: newFrameId(),
      tenantId,
      kind,
      key,
      byteOffset,
      byteLength: bytes.length,
      contentEncoding: encodingOf(config.codec),
      contentType: run[0]?.origin.contentType ?? '',
      payloads: run.map((item, ordinal) => ({
        origin: item.origin,
        sizeBytes: item.bytes.length,
        place: places[ordinal] ?? 0,
        sha256: sha256Of(item.bytes),
      })),
    }
    for (const [ordinal, { sizeBytes, sha256 }] of frame.payloads.entries()) {
      const item = run[ordinal]
      if (item === undefined) continue
      locations.set(item.artifactId, {
        artifactId: artifactInFrame(frame.id, ordinal),
        key,
        frame,
        ordinal,
        contentEncoding: frame.contentEncoding,
        contentType: frame.contentType,
        sizeBytes,
        sha256,
      })
    }
    bodies.push(bytes)
    byteOffset += bytes.length
  }
  return {
    tenantId,
    kind,
    key,
    contentType: packContentType,
    contentEncoding: null,
    body: Buffer.concat(bodies, byteOffset),
    artifactCount: items.length,
    payloadBytes: items.reduce((sum, item) => sum + item.bytes.length, 0),
    locations,
  }
}

/** What goes into a frame together: of one source and field. A payload longer than a frame gets a frame of its own. */
function* runsOf(items: PackItem[]): Generator<PackItem[]> {
  for (const alike of Map.groupBy(items, ({ origin }) =>
    JSON.stringify([origin.sourceId, origin.field, origin.entityType, origin.uuidKey]),
  ).values()) {
    let run: PackItem[] = []
    let textBytes = 0
    for (const item of alike) {
      if (
        run.length > 0 &&
        (textBytes + item.bytes.length + 1 > frameTextBytes || run.length === framePayloads)
      ) {
        yield run
        run = []
        textBytes = 0
      }
      run.push(item)
      textBytes += item.bytes.length + 1
    }
    yield run
  }
}

function sha256Of(bytes: Buffer): string {
  return hash('sha256', bytes)
}
