// Storing an artifact at most once under an idempotency key, for whoever may have to send a request again.
import { createHash } from 'node:crypto'
import type pg from 'pg'
import { type ArtifactRecord, findArtifact } from '../catalogue/record.ts'
import { tenantDatabase } from '../db/tenant.ts'
import { ArtifactError } from '../errors.ts'
import { asArtifactId } from '../ids.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { type NewArtifact, type PutOptions, putArtifact } from './put.ts'

export interface Idempotency {
  /** 1 to 255 bytes. Keys are the tenant's own, and are forgotten after 24 hours. */
  key: string
  /** What tells one artifact from another beside kind, entity and type: the payload's hash where it is known. */
  content: string
}

/**
 * As `putArtifact`; with a key the same artifact put again is not stored again, but returned.
 * @throws {ArtifactError} also `idempotency_mismatch`: the key was used for another artifact,
 *   `idempotency_conflict`: the first request is still under way
 */
export async function putOnce(
  pool: pg.Pool,
  store: ObjectStore,
  artifact: Omit<NewArtifact, 'idempotency'>,
  options: PutOptions,
  idempotency: Idempotency | null,
): Promise<ArtifactRecord> {
  if (idempotency === null) return putArtifact(pool, store, { ...artifact, idempotency: null }, options)
  const { key, content } = idempotency
  const { tenantId, kind, entityType, entityId, contentType } = artifact
  const fingerprint = createHash('sha256')
    .update(JSON.stringify([kind, entityType, entityId, contentType, content]))
    .digest('hex')
  const db = tenantDatabase(pool, tenantId)
  const { rows } = await db.query<{ outcome: string; artifact: string | null; attempt: string | null }>(
    'select outcome, artifact, attempt from lighter.api_begin_idempotent($1, $2, $3)',
    [key, fingerprint, options.leaseMs],
  )
  const [begun] = rows
  if (begun?.outcome === 'mismatch') {
    throw mismatch()
  }
  if (begun?.outcome === 'done' && begun.artifact !== null) {
    const found = await findArtifact(db, tenantId, asArtifactId(begun.artifact))
    if (found === null) throw new ArtifactError('artifact_not_found', 'there is no such artifact')
    if (found.artifact.deletedAt !== null) {
      throw new ArtifactError('artifact_gone', 'the artifact that was stored under this key was deleted')
    }
    // Of a stream nothing was known beforehand: whether it is the same one it now has to tell.
    const { payload } = artifact
    if (!Buffer.isBuffer(payload) && (await hashOf(payload, options.maxBytes)) !== found.record.sha256)
      throw mismatch()
    return found.record
  }
  if (begun?.outcome !== 'new' || begun.attempt === null) {
    throw new ArtifactError('idempotency_conflict', 'a request with this idempotency key is under way', {
      retryable: true,
    })
  }
  const { attempt } = begun
  // One whose process dies is free again after a lease. A lease that was lost is no harm: the commit finds that out.
  const extending = setInterval(() => {
    db.query('select lighter.api_extend_idempotent($1, $2, $3)', [key, attempt, options.leaseMs]).catch(
      () => undefined,
    )
  }, options.leaseMs / 3)
  try {
    return await putArtifact(pool, store, { ...artifact, idempotency: { key, attempt } }, options)
  } catch (error) {
    // Given back at once; should this fail, the key comes free when its time is up.
    await db.query('select lighter.api_end_idempotent($1, $2)', [key, attempt]).catch(() => undefined)
    throw error
  } finally {
    clearInterval(extending)
  }
}

function mismatch(): ArtifactError {
  return new ArtifactError('idempotency_mismatch', 'this idempotency key was used for another artifact')
}

async function hashOf(chunks: AsyncIterable<Buffer>, maxBytes: number): Promise<string> {
  const hash = createHash('sha256')
  let bytes = 0
  for await (const chunk of chunks) {
    bytes += chunk.length
    if (bytes > maxBytes)
      throw new ArtifactError('payload_too_large', `the payload is longer than ${maxBytes} bytes`)
    hash.update(chunk)
  }
  return hash.digest('hex')
}
