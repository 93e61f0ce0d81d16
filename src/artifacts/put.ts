// A payload from a program, not from a row: registered, uploaded, committed, in that order and for the same
// reasons as those that the daemon takes off rows.
import { createHash } from 'node:crypto'
import { PassThrough } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type pg from 'pg'
import { type ArtifactRecord, artifactColumns } from '../catalogue/record.ts'
import type { Codec } from '../config.ts'
import type { Queryable } from '../db/pool.ts'
import { asTenant, tenantDatabase } from '../db/tenant.ts'
import { ArtifactError, sqlState } from '../errors.ts'
import { newArtifactId, type TenantId } from '../ids.ts'
import { encodeFrame, encodeStream, encodingOf } from '../store/codec.ts'
import { objectKey } from '../store/keys.ts'
import type { ObjectStore } from '../store/object-store.ts'

export interface NewArtifact {
  tenantId: TenantId
  kind: string
  entityType: string | null
  entityId: string | null
  contentType: string
  /** Its key then ends with .json: a reader gets it as JSON, whatever its content type. */
  isJson: boolean
  /** Bytes that are stored as they are, or a stream of them. */
  payload: Buffer | AsyncIterable<Buffer>
  /** Compression of the object; the payload that is read back is the same with each. */
  codec: Codec
  /** Taken by `api_begin_idempotent`; the commit notes the artifact under it. */
  idempotency: { key: string; attempt: string } | null
}

export interface PutOptions {
  partBytes: number
  /** How long the upload may stand still before the orphan sweep takes it; extended while it goes on. */
  leaseMs: number
  /** Longest payload. */
  maxBytes: number
}

/**
 * Stores one payload and returns its artifact.
 *
 * A crash at any moment leaves an object that the orphan sweep finds by its row, or an artifact: never one without
 * the other.
 * @throws {ArtifactError} `payload_too_large`, `object_swept`; {StoreError}; what the payload's stream throws
 */
export async function putArtifact(
  pool: pg.Pool,
  store: ObjectStore,
  artifact: NewArtifact,
  options: PutOptions,
): Promise<ArtifactRecord> {
  const db = tenantDatabase(pool, artifact.tenantId)
  const id = newArtifactId()
  const extension = artifact.isJson ? 'json' : 'bin'
  const key = objectKey(store.prefix, artifact.tenantId, artifact.kind, new Date(), id, extension)
  const upload = await prepare(artifact, options.maxBytes)
  await db.query(`select lighter.api_register_object($1, $2, $3, $4, $5, $6)`, [
    key,
    artifact.kind,
    artifact.contentType,
    upload.contentEncoding,
    upload.kind === 'whole' ? upload.body.length : null,
    options.leaseMs,
  ])
  const stopHeartbeat = keepLease(db, key, options.leaseMs)
  try {
    const headers = {
      contentType: artifact.contentType,
      contentEncoding: upload.contentEncoding ?? undefined,
    }
    let objectBytes: number
    if (upload.kind === 'whole') {
      await store.put(key, upload.body, headers)
      objectBytes = upload.body.length
    } else {
      const onUploadId = async (uploadId: string) => {
        const { rows } = await db.query<{ held: boolean }>(
          'select lighter.api_touch_object($1, $2, $3) as held',
          [key, uploadId, options.leaseMs],
        )
        if (rows[0]?.held !== true) throw objectSwept()
      }
      const sending = store.sendStream(key, headers, upload.compressed, {
        partBytes: options.partBytes,
        onUploadId,
      })
      // A failed upload must stop the reading, which otherwise waits for ever for room.
      const [read, sent] = await Promise.allSettled([
        upload.flow,
        sending.catch(error => {
          upload.compressed.destroy()
          throw error
        }),
      ])
      // Whichever failed first is the cause. A reader that was stopped only says that it was.
      if (read.status === 'rejected' && !isStopped(read.reason)) throw read.reason
      if (sent.status === 'rejected') throw sent.reason
      if (read.status === 'rejected') throw read.reason
      objectBytes = sent.value
    }
    const { sizeBytes, sha256 } = upload.measured()
    return await commit(pool, artifact, {
      id,
      key,
      contentEncoding: upload.contentEncoding,
      sizeBytes,
      sha256,
      objectBytes,
    })
  } catch (error) {
    // Nothing uses it: the sweep need not wait for its lease. Should this fail too, the lease runs out.
    stopHeartbeat()
    await db.query('select lighter.api_touch_object($1, null, 0)', [key]).catch(() => undefined)
    throw error
  } finally {
    stopHeartbeat()
  }
}

interface Committed {
  id: string
  key: string
  contentEncoding: string | null
  sizeBytes: number
  sha256: string
  objectBytes: number
}

async function commit(pool: pg.Pool, artifact: NewArtifact, stored: Committed): Promise<ArtifactRecord> {
  try {
    return await asTenant(pool, artifact.tenantId, async db => {
      const { rows } = await db.query<ArtifactRecord>({
        text: `select ${artifactColumns} from lighter.api_store_artifact($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`,
        values: [
          stored.id,
          stored.key,
          artifact.kind,
          artifact.entityType,
          artifact.entityId,
          artifact.contentType,
          stored.contentEncoding,
          stored.sizeBytes,
          stored.sha256,
          stored.objectBytes,
          artifact.idempotency?.key ?? null,
          artifact.idempotency?.attempt ?? null,
        ],
      })
      if (rows[0] === undefined) throw new Error('the artifact was not stored')
      return rows[0]
    })
  } catch (error) {
    if (sqlState(error) === '55000') {
      throw objectSwept(error)
    }
    if (sqlState(error) === '55P03') {
      throw new ArtifactError('idempotency_conflict', 'another request with this key was faster', {
        cause: error,
        retryable: true,
      })
    }
    throw error
  }
}

function objectSwept(cause?: unknown): ArtifactError {
  return new ArtifactError('object_swept', 'the upload took longer than its lease', {
    cause,
    retryable: true,
    hint: 'Send it again; raise OFFLOAD_LEASE_MS if this happens often.',
  })
}

type Upload = {
  contentEncoding: string | null
  /** Of the payload; known when all of it has been read. */
  measured: () => { sizeBytes: number; sha256: string }
} & ({ kind: 'whole'; body: Buffer } | { kind: 'stream'; compressed: PassThroughLike; flow: Promise<void> })

type PassThroughLike = NonNullable<ReturnType<typeof encodeStream>> | PassThrough

async function prepare(artifact: NewArtifact, maxBytes: number): Promise<Upload> {
  const { payload, codec } = artifact
  const hash = createHash('sha256')
  let sizeBytes = 0
  const measure = (chunk: Buffer) => {
    hash.update(chunk)
    sizeBytes += chunk.length
    if (sizeBytes > maxBytes) {
      throw new ArtifactError('payload_too_large', `the payload is longer than ${maxBytes} bytes`)
    }
  }
  let sha256: string | undefined
  const measured = () => {
    sha256 ??= hash.digest('hex')
    return { sizeBytes, sha256 }
  }
  if (Buffer.isBuffer(payload)) {
    measure(payload)
    const encoded = encodeFrame(codec, payload)
    // Compressed only if that makes it smaller.
    return encoded.length < payload.length
      ? { kind: 'whole', body: encoded, contentEncoding: encodingOf(codec), measured }
      : { kind: 'whole', body: payload, contentEncoding: null, measured }
  }
  const compressed = encodeStream(codec) ?? new PassThrough()
  async function* hashed() {
    for await (const chunk of payload as AsyncIterable<Buffer>) {
      measure(chunk)
      yield chunk
    }
  }
  const flow = pipeline(hashed(), compressed)
  // Looked at only after the upload has been registered; until then a failure must not go unheard.
  flow.catch(() => undefined)
  return { kind: 'stream', compressed, flow, contentEncoding: encodingOf(codec), measured }
}

/** What a stream says of itself when its other end was destroyed, or nobody reads it any more. */
function isStopped(error: unknown): boolean {
  return (
    error instanceof Error &&
    'code' in error &&
    (error.code === 'ERR_STREAM_PREMATURE_CLOSE' || error.code === 'ABORT_ERR')
  )
}

/** Extends the lease of the object three times per lease for as long as the upload goes on. */
function keepLease(db: Queryable, key: string, leaseMs: number): () => void {
  const timer = setInterval(() => {
    // A lost lease is no harm: the commit finds the object gone and fails.
    db.query('select lighter.api_touch_object($1, null, $2)', [key, leaseMs]).catch(() => undefined)
  }, leaseMs / 3)
  return () => clearInterval(timer)
}
