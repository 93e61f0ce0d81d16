// Steps 3 to 5 for one large payload, which never is in memory whole: Postgres → hash → compress → parts,
// with back-pressure all the way. What is held: at most two parts and one being filled.
import { createHash } from 'node:crypto'
import { PassThrough } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type pg from 'pg'
import type { Codec } from '../config.ts'
import { RowError } from '../errors.ts'
import { newArtifactId, type TenantId } from '../ids.ts'
import { encodeStream, encodingOf } from '../store/codec.ts'
import { objectKey } from '../store/keys.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { copyOutText } from './copy-out.ts'
import type { Location } from './pack.ts'
import { recordUploadId, registerObjects } from './register.ts'
import type { Signal } from './signals.ts'

export interface StreamRequest {
  tenantId: TenantId
  kind: string
  /** Yields the payload as one row of one text column, or no row if the row has changed. */
  selectSql: string
}

export interface StreamOptions {
  codec: Codec
  partBytes: number
  /** Longest payload; only here is it known exactly for one that was planned by its binary form. */
  maxPayloadBytes: number
  leaseMs: number
  signal: Signal
  /** Told of the object as soon as it is registered, so that its lease is extended with the job's. */
  onRegister: (object: { tenantId: string; key: string }) => void
}

/**
 * Streams one payload into an object of its own.
 *
 * The object is registered before anything is sent, and the multipart upload before its first part: a crash or
 * failure leaves something that the orphan sweep finds by Postgres alone. (But for an upload that was opened and
 * whose id was lost at that very moment: it holds no part, and R2 drops it after seven days by its default rule.)
 * A payload that compresses to less than a part goes as one plain PUT (one class A operation, not three).
 * @throws {RowError} `row_changed`, `payload_too_large`; {StoreError}; nothing is committed in either case
 */
export async function streamPayload(
  pool: pg.Pool,
  streamPool: pg.Pool,
  store: ObjectStore,
  request: StreamRequest,
  options: StreamOptions,
): Promise<{ location: Location; objectBytes: number }> {
  const contentEncoding = encodingOf(options.codec)
  const contentType = 'application/json'
  const key = objectKey(store.prefix, request.tenantId, request.kind, new Date(), newArtifactId(), 'json')
  await registerObjects(
    pool,
    [
      {
        tenantId: request.tenantId,
        kind: request.kind,
        key,
        contentType,
        contentEncoding,
        artifactCount: 1,
        byteLength: null,
      },
    ],
    options.leaseMs,
  )
  options.onRegister({ tenantId: request.tenantId, key })
  await options.signal('after-register')

  const hash = createHash('sha256')
  let sizeBytes = 0
  async function* hashed(source: AsyncIterable<Buffer>) {
    for await (const chunk of source) {
      hash.update(chunk)
      sizeBytes += chunk.length
      if (sizeBytes > options.maxPayloadBytes) throw payloadTooLarge(sizeBytes, options.maxPayloadBytes)
      yield chunk
    }
  }
  const compressor = encodeStream(options.codec) ?? new PassThrough()
  const headers = { contentType, contentEncoding: contentEncoding ?? undefined }

  const client = await streamPool.connect()
  let complete = false
  try {
    // The role's time-outs are meant for queries; this one lasts as long as the store takes.
    await client.query('begin read only; set local statement_timeout = 0')
    const sending = sendParts(store, pool, request.tenantId, key, headers, compressor, options)
    // A failed upload must stop the reading, which otherwise waits for ever for room.
    const [read, sent] = await Promise.allSettled([
      pipeline(copyOutText(client, request.selectSql), hashed, compressor),
      sending.catch(error => {
        compressor.destroy()
        throw error
      }),
    ])
    // When reading failed first, the sender saw the same error; when sending did, the reader's is only an echo.
    if (sent.status === 'rejected') throw sent.reason
    if (read.status === 'rejected') throw read.reason
    await client.query('commit')
    complete = true
    return {
      location: {
        key,
        byteOffset: null,
        byteLength: null,
        frameOffset: null,
        contentEncoding,
        contentType,
        sizeBytes,
        sha256: hash.digest('hex'),
      },
      objectBytes: sent.value,
    }
  } finally {
    // Of a value not read to its end the rest is still on its way: that connection is of no more use.
    client.release(!complete)
  }
}

/** Of a stream that was given up the whole length is not known: more than `bytes`. */
export function payloadTooLarge(bytes: number, maxPayloadBytes: number): RowError {
  return new RowError(
    'payload_too_large',
    `a payload of ${bytes} bytes or more is over MAX_PAYLOAD_BYTES (${maxPayloadBytes}): it stays in the row`,
  )
}

/** Cuts a stream into parts of equal size (R2 insists, but for the last) and sends at most two at once. */
async function sendParts(
  store: ObjectStore,
  pool: pg.Pool,
  tenantId: string,
  key: string,
  headers: { contentType: string; contentEncoding: string | undefined },
  body: AsyncIterable<Buffer>,
  options: StreamOptions,
): Promise<number> {
  const partsInFlight = 2
  const etags: string[] = []
  const sending = new Set<Promise<void>>()
  let uploadId: string | undefined
  let partNumber = 0
  let total = 0
  let failed: unknown

  const sendPart = async (part: Buffer) => {
    if (uploadId === undefined) {
      uploadId = await store.createMultipart(key, headers)
      await recordUploadId(pool, tenantId, key, uploadId)
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
    if (number === 1) await options.signal('mid-multipart')
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
