// Payloads out of the store, each checked against its sha256 before anyone sees it.
import { createHash, hash as hashOf } from 'node:crypto'
import { pipeline, type Readable, Transform } from 'node:stream'
import pLimit from 'p-limit'
import { maxPayloadBytes } from '../config.ts'
import { ArtifactError, LighterError, messageOf, StoreError } from '../errors.ts'
import { frameTextBytes } from '../offload/pack.ts'
import { decodeFrame, decodeStream } from '../store/codec.ts'
import type { ObjectStore } from '../store/object-store.ts'
import type { Artifact } from './lookup.ts'

export interface FetchOptions {
  /** Requests to the store at once. */
  concurrency: number
  /** A payload longer than this is refused (`artifact_too_large`): read it with `streamPayload`. */
  maxPayloadBytes: number
}

export const defaultFetchOptions: FetchOptions = { concurrency: 16, maxPayloadBytes }

/**
 * Fetches payloads, one ranged read per frame however many of the artifacts are in it.
 * @returns for each artifact its bytes, or the error that stands in their place
 */
export async function fetchPayloads(
  store: ObjectStore,
  artifacts: Artifact[],
  options: FetchOptions = defaultFetchOptions,
): Promise<Map<Artifact, Buffer | LighterError>> {
  const results = new Map<Artifact, Buffer | LighterError>()
  const limit = pLimit(options.concurrency)
  const frames = Map.groupBy(artifacts, a => `${a.key}@${a.byteOffset ?? ''}`)
  await Promise.all(
    [...frames.values()].map(group =>
      limit(async () => {
        const readable: Artifact[] = []
        for (const artifact of group) {
          const refusal = refusalOf(artifact, options.maxPayloadBytes)
          if (refusal === null) readable.push(artifact)
          else results.set(artifact, refusal)
        }
        const [first] = readable
        if (first === undefined) return
        try {
          const frame = await readFrame(store, first, readable, options.maxPayloadBytes)
          for (const artifact of readable) results.set(artifact, cutAndVerify(artifact, frame))
        } catch (error) {
          const failure = readError(error, first)
          for (const artifact of readable) results.set(artifact, failure)
        }
      }),
    ),
  )
  return results
}

/**
 * One payload as a stream, for what is too long to be held. The hash is known only at the end: the stream
 * errors there if it is wrong, so a consumer must not trust what it got before it has ended.
 * @throws {ArtifactError} as `fetchPayloads`
 */
export async function streamPayload(store: ObjectStore, artifact: Artifact): Promise<Readable> {
  const refusal = refusalOf(artifact, Number.POSITIVE_INFINITY)
  if (refusal !== null) throw refusal
  if (artifact.byteOffset !== null) {
    const { Readable } = await import('node:stream')
    const frame = await readFrame(store, artifact, [artifact], Number.POSITIVE_INFINITY).catch(error => {
      throw readError(error, artifact)
    })
    const bytes = cutAndVerify(artifact, frame)
    if (bytes instanceof LighterError) throw bytes
    return Readable.from([bytes])
  }
  const body = await store.getStream(artifact.key).catch(error => {
    throw readError(error, artifact)
  })
  const hash = createHash('sha256')
  let size = 0
  const verify = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      hash.update(chunk)
      size += chunk.length
      done(null, chunk)
    },
    flush(done) {
      const digest = hash.digest('hex')
      const wrong =
        (artifact.sizeBytes !== null && size !== artifact.sizeBytes) ||
        (artifact.sha256 !== null && digest !== artifact.sha256)
      done(wrong ? corrupt(artifact, `sha256 ${digest}, ${size} bytes`) : null)
    },
  })
  const decoder = decodeStream(artifact.contentEncoding)
  const onEnd = () => undefined // an error reaches the consumer through `verify`
  return decoder === null ? pipeline(body, verify, onEnd) : pipeline(body, decoder, verify, onEnd)
}

/** Why an artifact can't be read before anything is asked of the store. */
function refusalOf(artifact: Artifact, maxPayloadBytes: number): ArtifactError | null {
  if (artifact.deletedAt !== null)
    return new ArtifactError(
      'artifact_gone',
      `artifact ${artifact.id} was deleted at ${artifact.deletedAt.toISOString()}`,
    )
  // Defence in depth: whatever the row says, bytes under another tenant's prefix are never returned.
  if (!`/${artifact.key}`.includes(`/tenants/${artifact.tenantId}/`)) {
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

/** The decompressed frame (or whole loose object) that holds the artifacts. */
async function readFrame(
  store: ObjectStore,
  first: Artifact,
  all: Artifact[],
  maxPayloadBytes: number,
): Promise<Buffer> {
  const { byteOffset, byteLength } = first
  const { body } =
    byteOffset === null || byteLength === null
      ? await store.get(first.key, undefined, maxPayloadBytes)
      : await store.get(first.key, { offset: byteOffset, length: byteLength })
  if (byteLength !== null && body.length !== byteLength)
    throw corrupt(first, `${body.length} bytes instead of ${byteLength}`)
  // A frame ends with its last payload or at 64 KiB, whichever is more; anything longer is not ours.
  const needed = all.map(a =>
    a.sizeBytes === null ? maxPayloadBytes : (a.frameOffset ?? 0) + a.sizeBytes + 1,
  )
  return decodeFrame(
    first.contentEncoding,
    body,
    Math.max(frameTextBytes, ...needed.map(n => Math.min(n, 2 ** 31 - 1))),
  )
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
  if (error instanceof LighterError) return error
  return new StoreError('store_unavailable', messageOf(error), { cause: error, retryable: true })
}
