// Step 3: lay payloads out in objects. Pure: bytes in, bytes out.
//
// A pack is a JSON-lines file, compressed in frames of about 64 KiB of text: many artifacts share a frame,
// since alone they compress three times worse, and any one of them is a ranged read of one frame. A frame
// that stands alone can be concatenated, so the whole object is a plain .jsonl.zst (.jsonl.gz) as well.
import { hash } from 'node:crypto'
import { setImmediate } from 'node:timers/promises'
import type { Codec, PackConfig } from '../config.ts'
import { type ArtifactId, newArtifactId, type TenantId } from '../ids.ts'
import { encodeFrame, encodingOf } from '../store/codec.ts'
import { objectKey } from '../store/keys.ts'

/** Text of one frame. 16 KiB compresses a third worse, 256 KiB doubles what one read must fetch. */
export const frameTextBytes = 64 * 1024

export interface PackItem {
  tenantId: TenantId
  kind: string
  artifactId: ArtifactId
  bytes: Buffer
}

/** Where an artifact is in its object, as `artifact_refs` has it. */
export interface Location {
  key: string
  byteOffset: number | null
  byteLength: number | null
  frameOffset: number | null
  contentEncoding: string | null
  contentType: string
  sizeBytes: number
  sha256: string
}

export interface BuiltObject {
  tenantId: TenantId
  kind: string
  key: string
  /** Of the object; the artifacts in a pack are application/json each. */
  contentType: string
  /** Only of a loose object: sent as its Content-Encoding. A pack says it by its extension. */
  contentEncoding: string | null
  body: Buffer
  locations: Map<ArtifactId, Location>
}

const extensions: Record<Codec, string> = { zstd: '.zst', gzip: '.gz', none: '' }

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
    for (const part of splitGroup(group, config)) {
      const together = part.length > 1 && config.packing
      for (const pack of together ? [part] : part.map(item => [item])) {
        const [only] = pack
        objects.push(
          together || only === undefined
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

/** Cuts a group where a pack would pass its limits. */
function splitGroup(group: PackItem[], config: PackConfig): PackItem[][] {
  const parts: PackItem[][] = []
  let part: PackItem[] = []
  let bytes = 0
  for (const item of group) {
    if (
      part.length > 0 &&
      (bytes + item.bytes.length > config.maxPackBytes || part.length >= config.maxPackArtifacts)
    ) {
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
  const key = objectKey(prefix, item.tenantId, item.kind, now, newArtifactId(), 'json')
  const contentType = 'application/json'
  const location: Location = {
    key,
    byteOffset: null,
    byteLength: null,
    frameOffset: null,
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
    locations: new Map([[item.artifactId, location]]),
  }
}

const newline = Buffer.from('\n')

function buildPack(items: PackItem[], config: PackConfig, prefix: string, now: Date): BuiltObject {
  const first = items[0]
  if (first === undefined) throw new Error('a pack needs an artifact')
  const key = objectKey(
    prefix,
    first.tenantId,
    first.kind,
    now,
    newArtifactId(),
    `jsonl${extensions[config.codec]}`,
  )
  const locations = new Map<ArtifactId, Location>()
  const frames: Buffer[] = []
  let objectOffset = 0
  let lines: Buffer[] = []
  let waiting: { item: PackItem; frameOffset: number }[] = []
  let textBytes = 0

  const closeFrame = () => {
    if (waiting.length === 0) return
    const frame = encodeFrame(config.codec, Buffer.concat(lines, textBytes))
    for (const { item, frameOffset } of waiting) {
      locations.set(item.artifactId, {
        key,
        byteOffset: objectOffset,
        byteLength: frame.length,
        frameOffset,
        contentEncoding: encodingOf(config.codec),
        contentType: 'application/json',
        sizeBytes: item.bytes.length,
        sha256: sha256Of(item.bytes),
      })
    }
    frames.push(frame)
    objectOffset += frame.length
    lines = []
    waiting = []
    textBytes = 0
  }

  for (const item of items) {
    // A payload longer than a frame gets a frame of its own.
    if (textBytes + item.bytes.length + 1 > frameTextBytes) closeFrame()
    waiting.push({ item, frameOffset: textBytes })
    lines.push(item.bytes, newline)
    textBytes += item.bytes.length + 1
  }
  closeFrame()
  return {
    tenantId: first.tenantId,
    kind: first.kind,
    key,
    contentType: 'application/x-ndjson',
    contentEncoding: null,
    body: Buffer.concat(frames, objectOffset),
    locations,
  }
}

function sha256Of(bytes: Buffer): string {
  return hash('sha256', bytes)
}
