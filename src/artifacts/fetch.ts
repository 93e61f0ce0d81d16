// Payloads out of the store, each checked against its sha256 before anyone sees it.
import { createHash, hash as hashOf } from 'node:crypto'
import { pipeline, Readable } from 'node:stream'
import pLimit from 'p-limit'
import type { Artifact } from '../catalogue/lookup.ts'
import { maxPayloadBytes } from '../config.ts'
import { ArtifactError, LighterError, messageOf, StoreError } from '../errors.ts'
import { decodeFrame, decodeStream, storedBytesAtMost } from '../store/codec.ts'
import { isTenantKey } from '../store/keys.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { frameTextBytes } from '../store/pack-format.ts'

export interface FetchOptions {
  /** Requests to the store at once. */
  concurrency: number
  /** A payload longer than this is refused (`artifact_too_large`): read it with `streamPayload`. */
  maxPayloadBytes: number
  /** Counts down the bytes that may still be brought together; what no longer fits is refused likewise. */
  budget?: ReadBudget
}

export interface ReadBudget {
  bytes: number
  /** What the smallest payload counts as: each costs a request, too. */
  leastBytes?: number
}

/** Longest payload that is streamed: as long as a raw upload can be. */
const longestStreamBytes = 5 * 1024 ** 3

export const defaultFetchOptions: FetchOptions = { concurrency: 16, maxPayloadBytes }

/** Frames of a pack that are read in one request: so long at most, with so much between them that nobody wants. */
const longestSpanBytes = 1024 * 1024
const longestGapBytes = 64 * 1024

/**
 * Fetches payloads, one ranged read for the frames of a pack that lie near each other.
 * @returns for each artifact its bytes, or the error that stands in their place
 */
export async function fetchPayloads(
  store: ObjectStore,
  artifacts: Artifact[],
  options: FetchOptions = defaultFetchOptions,
): Promise<Map<Artifact, Buffer | LighterError>> {
  const results = new Map<Artifact, Buffer | LighterError>()
  const limit = pLimit(options.concurrency)
  const places = Map.groupBy(artifacts, a => `${a.key}@${a.byteOffset ?? ''}`)
  const readable = await Promise.all(
    [...places.values()].map(group => limit(() => refuse(store, group, options, results))),
  )
  await Promise.all(
    spansOf(readable.filter(group => group.length > 0)).map(span =>
      limit(() => readSpan(store, span, options.maxPayloadBytes, results)),
    ),
  )
  return results
}

/** @returns those of the artifacts that may be read; the others have their errors in `results` */
async function refuse(
  store: ObjectStore,
  group: Artifact[],
  { maxPayloadBytes, budget }: FetchOptions,
  results: Map<Artifact, Buffer | LighterError>,
): Promise<Artifact[]> {
  const readable: Artifact[] = []
  for (const artifact of group) {
    const refusal =
      refusalOf(store, artifact, maxPayloadBytes) ??
      (await overBudget(store, artifact, budget).catch(error => readError(error, artifact)))
    if (refusal === null) readable.push(artifact)
    else results.set(artifact, refusal)
  }
  return readable
}

/** Artifacts by the frame that they are in, or one that is loose; of several frames all are of one pack, in their order. */
type Span = Artifact[][]

function spansOf(frames: Artifact[][]): Span[] {
  const spans: Span[] = []
  for (const ofKey of Map.groupBy(frames, ([first]) => first?.key).values()) {
    let start = 0
    let end = Number.NEGATIVE_INFINITY
    for (const frame of ofKey.sort((a, b) => offsetOf(a) - offsetOf(b))) {
      const offset = offsetOf(frame)
      const frameEnd = offset + (frame[0]?.byteLength ?? 0)
      if (offset >= end && offset - end <= longestGapBytes && frameEnd - start <= longestSpanBytes) {
        spans.at(-1)?.push(frame)
      } else {
        spans.push([frame])
        start = offset
      }
      end = frameEnd
    }
  }
  return spans
}

const offsetOf = ([first]: Artifact[]): number => first?.byteOffset ?? 0

async function readSpan(
  store: ObjectStore,
  span: Span,
  maxPayloadBytes: number,
  results: Map<Artifact, Buffer | LighterError>,
): Promise<void> {
  let bytes: Map<Artifact[], Buffer> | null = null
  try {
    if (span.length > 1) bytes = await readTogether(store, span)
  } catch (error) {
    for (const artifact of span.flat()) results.set(artifact, readError(error, artifact))
    return
  }
  for (const frame of span) {
    const [first] = frame
    if (first === undefined) continue
    try {
      const text = await readFrame(store, first, frame, maxPayloadBytes, bytes?.get(frame) ?? null)
      for (const artifact of frame) results.set(artifact, cutAndVerify(artifact, text))
    } catch (error) {
      const failure = readError(error, first)
      for (const artifact of frame) results.set(artifact, failure)
    }
  }
}

/** The bytes of each frame. Null: of an object that is missing, or has not all of them, each tells for itself. */
async function readTogether(store: ObjectStore, span: Span): Promise<Map<Artifact[], Buffer> | null> {
  const [[first] = []] = span
  const last = span.at(-1)?.[0]
  if (first === undefined || last === undefined) return null
  const start = first.byteOffset ?? 0
  const length = (last.byteOffset ?? 0) + (last.byteLength ?? 0) - start
  const { body } = await store.get(first.key, { offset: start, length }).catch(error => {
    if (error instanceof StoreError && !error.retryable) return { body: null }
    throw error
  })
  if (body?.length !== length) return null
  return new Map(
    span.map(frame => {
      const offset = offsetOf(frame) - start
      return [frame, body.subarray(offset, offset + (frame[0]?.byteLength ?? 0))]
    }),
  )
}

export interface StreamOptions {
  /** Bytes of the payload to be yielded, `end` excluded; the others are read, for the hash, and dropped. */
  range?: { start: number; end: number }
  /** Told, once the hash was right, of the ETag of the object that holds nothing but this payload as it is. */
  onVerified?: (etag: string) => void
}

/**
 * One payload as a stream, for what is too long to be held. The hash is known only at the end: the last piece is
 * kept back until it was right. A consumer that got all the bytes got the right ones; of a damaged payload the
 * stream errors (`artifact_corrupt`) before its end.
 * @throws {ArtifactError} as `fetchPayloads`
 */
export async function streamPayload(
  store: ObjectStore,
  artifact: Artifact,
  options: StreamOptions = {},
): Promise<Readable> {
  requireReadable(store, artifact)
  const { start, end } = options.range ?? { start: 0, end: Number.POSITIVE_INFINITY }
  if (artifact.byteOffset !== null) {
    const frame = await readFrame(store, artifact, [artifact], maxPayloadBytes).catch(error => {
      throw readError(error, artifact)
    })
    const bytes = cutAndVerify(artifact, frame)
    if (bytes instanceof LighterError) throw bytes
    return Readable.from([bytes.subarray(start, end)])
  }
  const maxBytes = streamBytesAtMost(artifact)
  const decoder = decodeStream(artifact.contentEncoding)
  const { body, etag } = await store
    .getStream(artifact.key, { maxBytes: storedBytesAtMost(artifact.contentEncoding, maxBytes) })
    .catch(error => {
      throw readError(error, artifact)
    })
  // Errors reach the consumer through whichever of the two it reads.
  const chunks = decoder === null ? body : pipeline(body, decoder, () => undefined)
  const onVerified = () => {
    if (decoder === null) options.onVerified?.(etag)
  }
  const payload = Readable.from(verified(artifact, maxBytes, chunks, start, end, onVerified), {
    objectMode: false,
  })
  // A generator that was never begun ends without its `finally`: whoever gives up before the first byte must free
  // the socket all the same.
  payload.once('close', () => {
    decoder?.destroy()
    body.destroy()
  })
  return payload
}

async function* verified(
  artifact: Artifact,
  maxBytes: number,
  chunks: AsyncIterable<Buffer>,
  start: number,
  end: number,
  onVerified: () => void,
): AsyncGenerator<Buffer> {
  const hash = createHash('sha256')
  let size = 0
  let held: Buffer | null = null
  try {
    for await (const chunk of chunks) {
      hash.update(chunk)
      const wanted = chunk.subarray(Math.max(start - size, 0), Math.max(end - size, 0))
      size += chunk.length
      // Whoever asked was told how long it is, and would take more for something else.
      if (size > maxBytes) throw corrupt(artifact, `it is longer than ${maxBytes} bytes`)
      if (wanted.length === 0) continue
      if (held !== null) yield held
      held = wanted
    }
  } catch (error) {
    throw isDecodeError(error) ? corrupt(artifact, messageOf(error)) : readError(error, artifact)
  }
  const digest = hash.digest('hex')
  if (
    (artifact.sizeBytes !== null && size !== artifact.sizeBytes) ||
    (artifact.sha256 !== null && digest !== artifact.sha256)
  ) {
    throw corrupt(artifact, `sha256 ${digest}, ${size} bytes`)
  }
  onVerified()
  if (held !== null) yield held
}

/** Of zlib and zstd, whose codes begin so; those of the network do not. */
function isDecodeError(error: unknown): boolean {
  return error instanceof Error && 'code' in error && /^(Z_|ZSTD_|ERR_ZLIB)/i.test(String(error.code))
}

/** @throws {ArtifactError} when reading it would be refused whatever the store has */
export function requireReadable(store: ObjectStore, artifact: Artifact): void {
  const refusal = refusalOf(store, artifact, Number.POSITIVE_INFINITY)
  if (refusal !== null) throw refusal
}

/** Why an artifact can't be read before anything is asked of the store. */
function refusalOf(store: ObjectStore, artifact: Artifact, maxPayloadBytes: number): ArtifactError | null {
  if (artifact.deletedAt !== null)
    return new ArtifactError(
      'artifact_gone',
      `artifact ${artifact.id} was deleted at ${artifact.deletedAt.toISOString()}`,
    )
  // Defence in depth: whatever the row says, bytes under another tenant's prefix are never returned.
  if (!isTenantKey(store.prefix, artifact.tenantId, artifact.key)) {
    return new ArtifactError(
      'artifact_foreign_key',
      `artifact ${artifact.id} points outside its tenant's prefix`,
    )
  }
  if ((artifact.sizeBytes ?? 0) > maxPayloadBytes) {
    return new ArtifactError(
      'artifact_too_large',
      `artifact ${artifact.id} is ${artifact.sizeBytes} bytes, the limit is ${maxPayloadBytes}`,
      {
        hint: 'Stream it instead.',
      },
    )
  }
  return null
}

async function overBudget(
  store: ObjectStore,
  artifact: Artifact,
  budget: ReadBudget | undefined,
): Promise<ArtifactError | null> {
  if (budget === undefined) return null
  // A row that the application wrote itself may not say.
  const size = artifact.sizeBytes ?? (await store.head(artifact.key))?.size ?? 0
  const bytes = Math.max(size, budget.leastBytes ?? 0)
  if (bytes > budget.bytes) {
    return new ArtifactError(
      'artifact_too_large',
      `artifact ${artifact.id} of ${bytes} bytes does not fit into what may still be read at once: ${budget.bytes} bytes`,
      { hint: 'Ask for fewer at once, or stream it.' },
    )
  }
  budget.bytes -= bytes
  return null
}

/**
 * The decompressed frame (or whole loose object) that holds the artifacts.
 * @param read its bytes in the pack, where they were read with those of others
 */
async function readFrame(
  store: ObjectStore,
  first: Artifact,
  all: Artifact[],
  maxPayloadBytes: number,
  read: Buffer | null = null,
): Promise<Buffer> {
  const { byteOffset, byteLength } = first
  if (byteOffset === null || byteLength === null) {
    const maxBytes = payloadBytesAtMost(first, maxPayloadBytes)
    const maxStored = storedBytesAtMost(first.contentEncoding, maxBytes)
    const { body } = await store.get(first.key, undefined, maxStored)
    return decodeFrame(first.contentEncoding, body, maxBytes)
  }
  // A frame holds one payload and its line end, or several and 64 KiB at most; anything longer is not ours.
  const maxBytes = Math.max(frameTextBytes, ...all.map(a => payloadBytesAtMost(a, maxPayloadBytes) + 1))
  if (byteLength > storedBytesAtMost(first.contentEncoding, maxBytes))
    throw corrupt(first, `a frame of ${byteLength} bytes can hold no more than ${maxBytes}`)
  const body = read ?? (await store.get(first.key, { offset: byteOffset, length: byteLength })).body
  if (body.length !== byteLength) throw corrupt(first, `${body.length} bytes instead of ${byteLength}`)
  return decodeFrame(first.contentEncoding, body, maxBytes)
}

/** What the row says is believed of bytes as they are; those that have to be made have a limit in any case. */
function streamBytesAtMost({ sizeBytes, contentEncoding }: Artifact): number {
  if (contentEncoding === null) return sizeBytes ?? longestStreamBytes
  return Math.min(sizeBytes ?? maxPayloadBytes, longestStreamBytes)
}

/** What the row says; a row that the application wrote itself may not say it. */
function payloadBytesAtMost(artifact: Artifact, otherwise: number): number {
  return Math.min(artifact.sizeBytes ?? otherwise, otherwise)
}

function cutAndVerify(artifact: Artifact, frame: Buffer): Buffer | ArtifactError {
  const offset = artifact.frameOffset ?? 0
  const bytes =
    artifact.byteOffset === null ? frame : frame.subarray(offset, offset + (artifact.sizeBytes ?? 0))
  if (artifact.sizeBytes !== null && bytes.length !== artifact.sizeBytes) {
    return corrupt(artifact, `${bytes.length} bytes instead of ${artifact.sizeBytes}`)
  }
  if (artifact.sha256 !== null) {
    const digest = hashOf('sha256', bytes)
    if (digest !== artifact.sha256) return corrupt(artifact, `sha256 ${digest} instead of ${artifact.sha256}`)
  }
  return bytes
}

function corrupt(artifact: Artifact, what: string): ArtifactError {
  return new ArtifactError(
    'artifact_corrupt',
    `artifact ${artifact.id} in ${artifact.key} is damaged: ${what}`,
  )
}

function readError(error: unknown, artifact: Artifact): LighterError {
  if (
    error instanceof StoreError &&
    (error.code === 'object_not_found' || error.code === 'range_not_satisfiable')
  ) {
    return new ArtifactError(
      'artifact_object_missing',
      `the object of artifact ${artifact.id} is missing or cut short: ${artifact.key}`,
      { cause: error },
    )
  }
  if (error instanceof StoreError && error.code === 'object_too_large')
    return corrupt(artifact, `it is longer than its row says: ${error.message}`)
  if (error instanceof LighterError) return error
  return new StoreError('store_unavailable', messageOf(error), { cause: error, retryable: true })
}
