// One object from a stream of unknown length: a plain PUT if it fits a part, else a multipart upload.
import type { ObjectHeaders, ObjectStore } from './object-store.ts'

export interface SendOptions {
  /** Size of every part but the last; R2 insists that they are equal. */
  partBytes: number
  /** Must put the upload's id on record: the first part is sent only after it has resolved. */
  onUploadId: (uploadId: string) => Promise<void>
  /** Told when the first part is on its way. */
  onFirstPart?: () => void | Promise<void>
  /** Told when all parts have been taken, and the object is not there yet. */
  onAllParts?: () => void | Promise<void>
}

/** Parts under way at once; with the one being filled, what an upload holds in memory. */
const partsInFlight = 2

/**
 * Cuts the stream into parts and sends them, with back-pressure.
 * @returns the object's length in bytes
 * @throws what the stream, the store or `onUploadId` throws; the multipart upload is then aborted
 */
export async function sendParts(
  store: ObjectStore,
  key: string,
  headers: ObjectHeaders,
  body: AsyncIterable<Buffer>,
  options: SendOptions,
): Promise<number> {
  const etags: string[] = []
  const sending = new Set<Promise<void>>()
  let uploadId: string | undefined
  let partNumber = 0
  let total = 0
  let failed: unknown

  const sendPart = async (part: Buffer) => {
    if (uploadId === undefined) {
      uploadId = await store.createMultipart(key, headers)
      await options.onUploadId(uploadId)
    }
    const id = uploadId
    const number = ++partNumber
    while (sending.size >= partsInFlight) await Promise.race(sending)
    if (failed !== undefined) throw failed
    const task: Promise<void> = store.uploadPart(key, id, number, part).then(
      etag => {
        etags[number - 1] = etag
        sending.delete(task)
      },
      error => {
        failed ??= error
        sending.delete(task)
      },
    )
    sending.add(task)
    if (number === 1) await options.onFirstPart?.()
  }

  try {
    let part = Buffer.allocUnsafe(options.partBytes)
    let filled = 0
    for await (const chunk of body) {
      total += chunk.length
      let taken = 0
      while (taken < chunk.length) {
        // A full part is sent only when more follows: a single one is a plain PUT.
        if (filled === part.length) {
          await sendPart(part)
          part = Buffer.allocUnsafe(options.partBytes)
          filled = 0
        }
        const n = chunk.copy(part, filled, taken)
        filled += n
        taken += n
      }
    }
    const last = part.subarray(0, filled)
    if (uploadId === undefined) {
      await store.put(key, last, headers)
      return total
    }
    await sendPart(last)
    await Promise.all(sending)
    if (failed !== undefined) throw failed
    await options.onAllParts?.()
    await store.completeMultipart(key, uploadId, etags, total)
    return total
  } catch (error) {
    // Parts still under way must land before the abort, or they would outlive it.
    await Promise.all(sending)
    // Should the abort fail too, the object stays registered with its upload id, and the sweep aborts it.
    if (uploadId !== undefined) await store.abortMultipart(key, uploadId).catch(() => undefined)
    throw error
  }
}
