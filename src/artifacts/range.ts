// A part of a payload, which can't be checked by itself: the whole is, once, and then the part is asked for on
// condition that the object is still the one that was checked.
import { Readable } from 'node:stream'
import type { Artifact } from '../catalogue/lookup.ts'
import { StoreError } from '../errors.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { requireReadable, streamPayload } from './fetch.ts'

/** ETags of objects whose payload had the right hash, of the artifacts that were last read, as their rows were then. */
export interface VerifiedObjects {
  etags: Map<string, string>
  maxEntries: number
}

export const createVerifiedObjects = (maxEntries = 10_000): VerifiedObjects => ({
  etags: new Map(),
  maxEntries,
})

/**
 * Bytes `start` to `end` (excluded) of a payload. The first time the whole object is read and checked, the rest of
 * it dropped; later only the range.
 * @throws as `streamPayload`
 */
export async function streamRange(
  store: ObjectStore,
  artifact: Artifact,
  range: { start: number; end: number },
  verified: VerifiedObjects,
): Promise<Readable> {
  requireReadable(store, artifact)
  const name = `${artifact.id} ${artifact.sha256} ${artifact.key}`
  const etag = verified.etags.get(name)
  if (etag !== undefined) {
    try {
      const part = { offset: range.start, length: range.end - range.start, etag }
      return exactly(await store.getStream(artifact.key, { maxBytes: part.length, part }), part.length)
    } catch (error) {
      if (!(error instanceof StoreError)) throw error
      // Not the object that was checked, or none: whichever it is, reading all of it tells.
      verified.etags.delete(name)
    }
  }
  return streamPayload(store, artifact, {
    range,
    onVerified: found => {
      const [oldest] = verified.etags.keys()
      if (verified.etags.size >= verified.maxEntries && oldest !== undefined) verified.etags.delete(oldest)
      if (found !== '') verified.etags.set(name, found)
    },
  })
}

/** A part that ends too soon is an error; of one that is too long the store's client has seen to that. */
function exactly({ body }: { body: Readable }, length: number): Readable {
  async function* counted() {
    let bytes = 0
    for await (const chunk of body as AsyncIterable<Buffer>) {
      bytes += chunk.length
      yield chunk
    }
    if (bytes !== length)
      throw new StoreError('store_bad_answer', `${bytes} bytes came instead of ${length}`, {
        retryable: true,
      })
  }
  const part = Readable.from(counted(), { objectMode: false })
  // As in streamPayload: a generator that was never begun ends nothing.
  part.once('close', () => body.destroy())
  return part
}
