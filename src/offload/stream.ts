// Steps 3 to 5 for one large payload, which never is in memory whole: Postgres → hash → compress → parts,
// with back-pressure all the way. What is held: at most two parts and one being filled.
import { createHash } from 'node:crypto'
import { PassThrough } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type pg from 'pg'
import type { Codec } from '../config.ts'
import { beginSql, lockTimeoutMs } from '../db/prepared.ts'
import { RowError } from '../errors.ts'
import { newArtifactId, type TenantId } from '../ids.ts'
import { encodeStream, encodingOf } from '../store/codec.ts'
import { objectKey } from '../store/keys.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { copyOut, rowChanged } from './copy-out.ts'
import type { Location } from './pack.ts'
import { idsOf } from './payload-pointers.ts'
import { recordUploadId, registerObjects } from './register.ts'
import type { Signal } from './signals.ts'
import { createTextSearch } from './text-search.ts'

export interface StreamRequest {
  tenantId: TenantId
  kind: string
  contentType: string
  /** Of the object's key. */
  extension: string
  /** Yields the payload as one row of one text or bytea column, or no row if the row has changed. */
  selectSql: string
  /** Only a payload with one of these in its text has pointers. */
  pointerNames: string[]
  /** Yields the ids of its pointers likewise, separated by commas. */
  pointersSql: string
}

export interface StreamOptions {
  codec: Codec
  partBytes: number
  /** Longest payload; only here is it known exactly for one that was planned by its binary form. */
  maxPayloadBytes: number
  /** What reading the row needs beside this payload: together they are as long as one payload may be. */
  rowBytes: number
  /** For reading it; 0: as long as the store takes. */
  timeoutMs: number
  leaseMs: number
  /** Of the row's batch. */
  leaseId: string
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
 * @throws {RowError} `row_changed`, `payload_too_large`, `row_too_large`; {StoreError}; nothing is committed in either case
 */
export async function streamPayload(
  pool: pg.Pool,
  streamPool: pg.Pool,
  store: ObjectStore,
  request: StreamRequest,
  options: StreamOptions,
): Promise<{ location: Omit<Location, 'artifactId'>; objectBytes: number; refersTo: string[] }> {
  const contentEncoding = encodingOf(options.codec)
  const { contentType } = request
  const key = objectKey(
    store.prefix,
    request.tenantId,
    request.kind,
    new Date(),
    newArtifactId(),
    request.extension,
  )
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
        payloadBytes: null,
      },
    ],
    options.leaseMs,
    options.leaseId,
  )
  options.onRegister({ tenantId: request.tenantId, key })
  await options.signal('after-register')

  const hash = createHash('sha256')
  let sizeBytes = 0
  const names = createTextSearch(request.pointerNames)
  async function* hashed(source: AsyncIterable<Buffer>) {
    for await (const chunk of source) {
      hash.update(chunk)
      names.look(chunk)
      sizeBytes += chunk.length
      if (sizeBytes > options.maxPayloadBytes) throw payloadTooLarge(sizeBytes, options.maxPayloadBytes)
      if (options.rowBytes + sizeBytes > options.maxPayloadBytes) {
        throw rowTooLarge(options.rowBytes + sizeBytes, options.maxPayloadBytes)
      }
      yield chunk
    }
  }
  const compressor = encodeStream(options.codec) ?? new PassThrough()
  const headers = { contentType, contentEncoding: contentEncoding ?? undefined }

  const client = await streamPool.connect()
  let complete = false
  try {
    // The role's time-outs are meant for queries; this one lasts as long as the store takes.
    await client.query(
      `${beginSql(client, 'isolation level read committed read only')}; set local statement_timeout = ${options.timeoutMs}; set local lock_timeout = ${lockTimeoutMs}`,
    )
    const sending = store.sendStream(key, headers, compressor, {
      partBytes: options.partBytes,
      onUploadId: uploadId => recordUploadId(pool, request.tenantId, key, uploadId),
      onFirstPart: () => options.signal('mid-multipart'),
      onAllParts: () => options.signal('before-complete'),
    })
    // A failed upload must stop the reading, which otherwise waits for ever for room.
    const [read, sent] = await Promise.allSettled([
      pipeline(copyOut(client, request.selectSql), hashed, compressor),
      sending.catch(error => {
        compressor.destroy()
        throw error
      }),
    ])
    // When reading failed first, the sender saw the same error; when sending did, the reader's is only an echo.
    if (sent.status === 'rejected') throw sent.reason
    if (read.status === 'rejected') throw read.reason
    const refersTo = names.found() ? await readPointers(client, request.pointersSql) : []
    await client.query('commit')
    complete = true
    return {
      location: {
        key,
        frame: null,
        ordinal: 0,
        contentEncoding,
        contentType,
        sizeBytes,
        sha256: hash.digest('hex'),
      },
      objectBytes: sent.value,
      refersTo,
    }
  } finally {
    // Of a value not read to its end the rest is still on its way: that connection is of no more use.
    client.release(!complete)
  }
}

async function readPointers(client: pg.ClientBase, pointersSql: string): Promise<string[]> {
  const { rows } = await client.query<{ ids: string | null }>(pointersSql)
  if (rows[0] === undefined) throw rowChanged()
  return idsOf(rows[0].ids)
}

/** Of a stream that was given up the whole length is not known: more than `bytes`. */
export function payloadTooLarge(bytes: number, maxPayloadBytes: number): RowError {
  return new RowError(
    'payload_too_large',
    `a payload of ${bytes} bytes or more is over MAX_PAYLOAD_BYTES (${maxPayloadBytes}): it stays in the row`,
  )
}

/** Each payload could be read back, and the row could not: it is put together of all of them. */
export function rowTooLarge(bytes: number, maxPayloadBytes: number): RowError {
  return new RowError(
    'row_too_large',
    `the row's payloads, with those that it points to already, are ${bytes} bytes or more together, over MAX_PAYLOAD_BYTES (${maxPayloadBytes}): what is inline stays in the row`,
  )
}
