// Storing over pg and the store; under an idempotency key at most once, as the API does it and with the same keys.
import { createHash } from 'node:crypto'
import type pg from 'pg'
import { putOnce } from '../artifacts/put-once.ts'
import type { ArtifactRecord } from '../catalogue/record.ts'
import type { Codec } from '../config.ts'
import type { TenantId } from '../ids.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { abortable } from './abortable.ts'
import type { NewArtifact } from './client.ts'
import type { PutBody } from './put-body.ts'

const partBytes = 8 * 1024 * 1024
/** How long an upload may stand still before the orphan sweep takes it. */
const leaseMs = 60_000

export async function putDirectly(
  pool: pg.Pool,
  store: ObjectStore,
  tenantId: TenantId,
  artifact: NewArtifact,
  body: PutBody,
  options: { codec: Codec; maxBytes: number; onSourceError: (error: unknown) => void },
): Promise<ArtifactRecord> {
  const { kind, signal } = artifact
  const facts = {
    tenantId,
    kind,
    entityType: artifact.entityType ?? null,
    entityId: artifact.entityId?.toLowerCase() ?? null,
    contentType: body.contentType,
    isJson: body.shape === 'json' || body.contentType === 'application/json',
  }
  const payload = payloadOf(body, signal, options.onSourceError)
  // Of a stream the hash is not known beforehand.
  const content = Buffer.isBuffer(payload) ? createHash('sha256').update(payload).digest('hex') : ''
  const key = artifact.idempotencyKey
  return putOnce(
    pool,
    store,
    // Bytes stay as they are: they can be read in ranges, and by presigned URL.
    { ...facts, payload, codec: body.shape === 'json' ? options.codec : 'none' },
    { partBytes, leaseMs, maxBytes: options.maxBytes },
    key === undefined ? null : { key, content },
  )
}

function payloadOf(
  body: PutBody,
  signal: AbortSignal | undefined,
  onSourceError: (error: unknown) => void,
): Buffer | AsyncIterable<Buffer> {
  if (body.shape === 'json') return Buffer.from(body.text)
  if (body.shape === 'stream') return buffersOf(body.chunks, signal, onSourceError)
  const { buffer, byteOffset, length } = body.bytes
  return Buffer.from(buffer, byteOffset, length)
}

/** Ends with the signal's reason, even when the source hangs: else the upload would wait for it, its lease kept. */
async function* buffersOf(
  chunks: AsyncIterable<Uint8Array>,
  signal: AbortSignal | undefined,
  onSourceError: (error: unknown) => void,
): AsyncGenerator<Buffer> {
  const iterator = chunks[Symbol.asyncIterator]()
  let ended = false
  try {
    for (;;) {
      const { done, value } = await abortable(signal, () => iterator.next()).catch(error => {
        onSourceError(error)
        throw error
      })
      if (done) {
        ended = true
        return
      }
      yield Buffer.from(value.buffer, value.byteOffset, value.length)
    }
  } finally {
    // A source that hangs never answers.
    if (!ended) iterator.return?.().catch(() => undefined)
  }
}
