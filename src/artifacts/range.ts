// A part of a payload, which can't be checked by itself: the whole is, once, and then the part is asked for on
// condition that the object is still the one that was checked.
import type { Readable } from 'node:stream'
import { StoreError } from '../errors.ts'
import type { ArtifactId } from '../ids.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { streamPayload } from './fetch.ts'
import type { Artifact } from './lookup.ts'

/** ETags of objects whose payload had the right hash, of the artifacts that were last read. */
export interface VerifiedObjects {
  etags: Map<ArtifactId, string>
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
  const etag = verified.etags.get(artifact.id)
  if (etag !== undefined && artifact.deletedAt === null) {
    try {
      const part = { offset: range.start, length: range.end - range.start, etag }
      return (await store.getStream(artifact.key, part)).body
    } catch (error) {
      if (!(error instanceof StoreError)) throw error
      // Not the object that was checked, or none: whichever it is, reading all of it tells.
      verified.etags.delete(artifact.id)
    }
  }
  return streamPayload(store, artifact, {
    range,
    onVerified: found => {
      const [oldest] = verified.etags.keys()
      if (verified.etags.size >= verified.maxEntries && oldest !== undefined) verified.etags.delete(oldest)
      if (found !== '') verified.etags.set(artifact.id, found)
    },
  })
}
