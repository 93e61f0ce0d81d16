// Payloads as web streams, and the check at their end.
import { ArtifactError } from '../errors.ts'
import type { PayloadStream } from './client.ts'
import { createSha256 } from './sha256.ts'

/**
 * A stream that pulls from `chunks` no sooner than it is read.
 * @param cancel frees what is behind them when the reader leaves, also in the middle of a read
 */
export function streamOf(chunks: AsyncIterable<Uint8Array>, cancel: () => void): PayloadStream {
  const iterator = chunks[Symbol.asyncIterator]()
  const stream = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const next = await iterator.next()
        if (next.done === true) controller.close()
        else controller.enqueue(next.value)
      },
      cancel: async () => {
        cancel()
        // Whatever a broken-off read says: nobody listens any more.
        await iterator.return?.()?.catch(() => undefined)
      },
    },
    { highWaterMark: 0 },
  )
  return Symbol.asyncIterator in stream
    ? stream
    : Object.assign(stream, { [Symbol.asyncIterator]: () => iterator })
}

/** What the answer says of the payload; null: it does not. */
export interface ExpectedPayload {
  id: string
  sha256: string | null
  sizeBytes: number | null
}

/**
 * Passes on the bytes from `start` to `end`, of a payload that is read whole. The last piece is kept back until the
 * hash was right, and none is passed on that is beyond the payload's length.
 */
export async function* verified(
  chunks: AsyncIterable<Uint8Array>,
  payload: ExpectedPayload,
  start = 0,
  end = Number.POSITIVE_INFINITY,
): AsyncGenerator<Uint8Array> {
  const hash = createSha256()
  let size = 0
  let held: Uint8Array | null = null
  for await (const chunk of chunks) {
    hash.update(chunk)
    const wanted = chunk.subarray(Math.max(start - size, 0), Math.max(end - size, 0))
    size += chunk.length
    if (payload.sizeBytes !== null && size > payload.sizeBytes)
      throw wrongLength(payload.id, size, payload.sizeBytes)
    if (wanted.length === 0) continue
    if (held !== null) yield held
    held = wanted
  }
  const digest = hash.hex()
  if (payload.sizeBytes !== null && size !== payload.sizeBytes)
    throw wrongLength(payload.id, size, payload.sizeBytes)
  if (payload.sha256 !== null && digest !== payload.sha256) throw corrupt(payload.id, digest, payload.sha256)
  if (held !== null) yield held
}

/** A part can't be checked by itself, since the API has checked the whole that it is of; but it has a length. */
export async function* counted(
  chunks: AsyncIterable<Uint8Array>,
  part: { id: string; length: number },
): AsyncGenerator<Uint8Array> {
  let size = 0
  for await (const chunk of chunks) {
    size += chunk.length
    if (size > part.length) throw wrongLength(part.id, size, part.length)
    yield chunk
  }
  if (size !== part.length) throw wrongLength(part.id, size, part.length)
}

/** @throws {TypeError} not a range */
export function rangeOf(range: { start: number; end?: number | undefined } | undefined): {
  start: number
  end: number | undefined
} {
  const { start, end } = range ?? { start: 0, end: undefined }
  const valid = (value: number) => Number.isSafeInteger(value) && value >= 0
  if (!valid(start) || (end !== undefined && !(valid(end) && end > start))) {
    throw new TypeError('range: start must be a whole number of 0 or more, and end larger than it')
  }
  return { start, end }
}

/** @throws {ArtifactError} `artifact_corrupt` */
export function requireIntact(bytes: Uint8Array, payload: ExpectedPayload): void {
  if (payload.sizeBytes !== null && bytes.length !== payload.sizeBytes)
    throw wrongLength(payload.id, bytes.length, payload.sizeBytes)
  if (payload.sha256 === null) return
  const hash = createSha256()
  hash.update(bytes)
  const digest = hash.hex()
  if (digest !== payload.sha256) throw corrupt(payload.id, digest, payload.sha256)
}

function wrongLength(id: string, found: number, expected: number): ArtifactError {
  return new ArtifactError(
    'artifact_corrupt',
    `the payload of artifact ${id} arrived damaged: ${found} bytes instead of ${expected}`,
  )
}

function corrupt(id: string, found: string, expected: string): ArtifactError {
  return new ArtifactError(
    'artifact_corrupt',
    `the payload of artifact ${id} arrived damaged: sha256 ${found} instead of ${expected}`,
  )
}
