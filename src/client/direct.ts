// The client over pg and the store, without the API. Every statement runs as lighter_tenant in the tenant's name, so
// row-level security decides what it sees; the pool's login needs to be a member of that role and nothing else.
import type { Readable } from 'node:stream'
import type pg from 'pg'
import { requireReadable, streamPayload } from '../artifacts/fetch.ts'
import { fetchCurrent } from '../artifacts/fetch-current.ts'
import { hydrateMany } from '../artifacts/hydrate.ts'
import { batchLimits, widestLimits } from '../artifacts/hydrate-limits.ts'
import { requireKind } from '../artifacts/kinds.ts'
import { createVerifiedObjects, streamRange, type VerifiedObjects } from '../artifacts/range.ts'
import type { Artifact } from '../catalogue/lookup.ts'
import { findArtifact, listArtifacts } from '../catalogue/record.ts'
import type { Codec } from '../config.ts'
import type { Queryable } from '../db/pool.ts'
import { tenantDatabase } from '../db/tenant.ts'
import { ArtifactError, isDatabaseOutage, LighterError, messageOf, sqlState } from '../errors.ts'
import { asArtifactId, asTenantId, type TenantId } from '../ids.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { abortable } from './abortable.ts'
import type { LighterClient } from './client.ts'
import { putDirectly } from './direct-put.ts'
import { artifactOf, payloadOf } from './payload.ts'
import { rangeOf, streamOf } from './payload-stream.ts'
import { putBodyOf } from './put-body.ts'
import { hydrateRow, hydrateRows } from './rows.ts'
import { hydrateValueRow, hydrateValueRows } from './values.ts'

export interface DirectClientOptions {
  /** Its login is a member of `lighter_tenant`: `grant lighter_tenant to <login>`. It stays the caller's to end. */
  pool: pg.Pool
  /** Of `openStore`; its token may read, and write for `put`. It stays the caller's to close. */
  store: ObjectStore
  /** Uuid. Row-level security holds every call to this tenant; whoever creates the client answers for it. */
  tenantId: string
  /** Kinds that `put` takes beside the documented ones (ARTIFACT_KINDS of the API). */
  kinds?: readonly string[] | undefined
  /** Compression of JSON that is put; default zstd. Other bytes are stored as they are. */
  codec?: Codec | undefined
  /** Longest payload that `put` takes, in bytes; default 256 MiB. */
  maxPutBytes?: number | undefined
}

const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i

/** Payloads of several rows that are hydrated together. */
const batchBytes = 64 * 1024 * 1024

/** @throws {TypeError} an option can't be used */
export function createDirectClient(options: DirectClientOptions): LighterClient {
  const { pool, store } = options
  if (!uuid.test(options.tenantId))
    throw new TypeError(`tenantId: a uuid was expected, not ${options.tenantId}`)
  const tenantId = asTenantId(options.tenantId.toLowerCase())
  const db = tenantDatabase(pool, tenantId)
  const checked = createVerifiedObjects()

  const hydrateTexts = async (texts: string[], field: string, signal: AbortSignal | undefined) => {
    const inputs = texts.map(metadata => ({ tenantId, metadata, field }))
    // A row by itself may be as long as a text can be; several are asked for again in parts.
    const limits = inputs.length > 1 ? batchLimits(batchBytes) : widestLimits
    const results = await run(signal, () =>
      hydrateMany({ db, store, limits, ...(signal && { signal }) }, inputs),
    )
    return results.map(result => result.error ?? result.metadata ?? 'null')
  }

  const client: LighterClient = {
    hydrate: (row, hydrateOptions) =>
      hydrateOptions?.kind === undefined
        ? hydrateRow(hydrateTexts, row, hydrateOptions)
        : hydrateValueRow(client.get, row, hydrateOptions),
    hydrateMany: (rows, hydrateOptions) =>
      hydrateOptions?.kind === undefined
        ? hydrateRows(hydrateTexts, rows, hydrateOptions)
        : hydrateValueRows(client.get, rows, hydrateOptions),

    put: async artifact => {
      requireKind(artifact.kind, options.kinds ?? [])
      if (artifact.entityId !== undefined) requireUuid(artifact.entityId, 'entityId')
      const body = await putBodyOf(artifact)
      let sourceError: { error: unknown } | null = null
      const onSourceError = (error: unknown) => {
        sourceError = { error }
      }
      const stored = await run(artifact.signal, () =>
        putDirectly(pool, store, tenantId, artifact, body, {
          codec: options.codec ?? 'zstd',
          maxBytes: options.maxPutBytes ?? 256 * 1024 * 1024,
          onSourceError,
        }),
      ).catch(error => {
        // Whoever's stream broke gets its own error back.
        throw sourceError === null ? error : (sourceError as { error: unknown }).error
      })
      return artifactOf(stored)
    },

    get: (id, { signal } = {}) =>
      run(signal, async () => {
        const { artifact, record } = await requireArtifact(db, tenantId, id)
        const bytes = (await fetchCurrent(db, store, [artifact])).get(artifact)
        if (bytes === undefined) throw new Error('the payload was not fetched')
        if (bytes instanceof LighterError) throw bytes
        return { artifact: artifactOf(record), payload: payloadOf(bytes) }
      }),

    stream: async (id, { range, signal } = {}) => {
      const { start, end } = rangeOf(range)
      const readable = await run(signal, async () => {
        const { artifact } = await requireArtifact(db, tenantId, id)
        const opened = await openRange(store, artifact, start, end, checked)
        // Nobody waits for it any more; unread it would keep its socket.
        if (signal?.aborted) opened.destroy()
        return opened
      })
      return streamOf(endedBy(signal, readable), () => readable.destroy())
    },

    list: ({ kind, entityType, entityId, limit = 50, cursor, signal } = {}) =>
      run(signal, async () => {
        if (entityId !== undefined) requireUuid(entityId, 'entityId')
        if (!Number.isInteger(limit) || limit < 1 || limit > 200)
          throw new LighterError('invalid_request', 'limit: must be a whole number from 1 to 200')
        const found = await listArtifacts(db, tenantId, {
          kind: kind ?? null,
          entityType: entityType ?? null,
          entityId: entityId ?? null,
          limit,
          offset: 0,
          after: cursor === undefined ? null : readCursor(cursor),
        })
        const last = found.length === limit ? found.at(-1) : undefined
        return {
          artifacts: found.map(({ record }) => artifactOf(record)),
          nextCursor: last === undefined ? null : writeCursor(last.position),
        }
      }),

    delete: (id, { force, signal } = {}) =>
      run(signal, async () => {
        const { artifact } = await findOne(db, tenantId, id)
        if (artifact.deletedAt !== null) return { deletedAt: artifact.deletedAt }
        if (artifact.fromRow && force !== true) {
          throw new ArtifactError(
            'artifact_in_use',
            'the artifact was taken off a row, which can not be hydrated without it',
            { hint: 'Delete the row, or pass force: true.' },
          )
        }
        const { rows } = await db.query<{ at: Date | null }>('select lighter.api_delete_artifact($1) as at', [
          artifact.id,
        ])
        // Null: somebody else was faster.
        return { deletedAt: rows[0]?.at ?? new Date() }
      }),

    url: (id, { expiresInSeconds = 900, signal } = {}) =>
      run(signal, async () => {
        if (!Number.isInteger(expiresInSeconds) || expiresInSeconds < 1 || expiresInSeconds > 604_800)
          throw new LighterError(
            'invalid_request',
            'expiresInSeconds: must be a whole number from 1 to 604800',
          )
        const { artifact, record } = await requireArtifact(db, tenantId, id)
        requireReadable(store, artifact)
        if (artifact.byteOffset !== null || artifact.contentEncoding !== null) {
          throw new ArtifactError(
            'url_not_available',
            'the payload is compressed or in a pack, and the store can not hand it out by itself',
            { hint: 'Ask a client over HTTP: the API signs a URL of its own for it.' },
          )
        }
        const url = await store.presign(artifact.key, expiresInSeconds, {
          contentType: record.content_type ?? 'application/octet-stream',
          contentDisposition: `attachment; filename="${artifact.id}"`,
        })
        return { url, expiresAt: new Date(Date.now() + expiresInSeconds * 1000) }
      }),
  }
  return client
}

/** @param end undefined: to the last byte */
async function openRange(
  store: ObjectStore,
  artifact: Artifact,
  start: number,
  end: number | undefined,
  checked: VerifiedObjects,
): Promise<Readable> {
  const { sizeBytes } = artifact
  if (start === 0 && end === undefined) return streamPayload(store, artifact)
  if (sizeBytes === null)
    return streamPayload(store, artifact, { range: { start, end: end ?? Number.POSITIVE_INFINITY } })
  if (start >= sizeBytes)
    throw new ArtifactError('range_not_satisfiable', `the payload has ${sizeBytes} bytes`)
  return streamRange(store, artifact, { start, end: Math.min(end ?? sizeBytes, sizeBytes) }, checked)
}

type Found = NonNullable<Awaited<ReturnType<typeof findArtifact>>>

/** The artifact, tombstoned or not. */
async function findOne(db: Queryable, tenantId: TenantId, id: string): Promise<Found> {
  requireUuid(id, 'id')
  const found = await findArtifact(db, tenantId, asArtifactId(id.toLowerCase()))
  if (found === null) throw new ArtifactError('artifact_not_found', 'there is no such artifact')
  return found
}

async function requireArtifact(db: Queryable, tenantId: TenantId, id: string): Promise<Found> {
  const found = await findOne(db, tenantId, id)
  if (found.artifact.deletedAt === null) return found
  if (found.deletedReason === null || found.deletedReason === 'deleted')
    throw new ArtifactError('artifact_deleted', 'the artifact was deleted')
  throw new ArtifactError('artifact_expired', `the artifact is gone: ${found.deletedReason}`)
}

/** Errors of the driver become ours. */
async function run<T>(signal: AbortSignal | undefined, work: () => Promise<T>): Promise<T> {
  try {
    return await abortable(signal, work)
  } catch (error) {
    if (error instanceof LighterError) throw error
    if (isDatabaseOutage(error)) {
      throw new LighterError('database_unavailable', `the database can not be reached: ${messageOf(error)}`, {
        cause: error,
        retryable: true,
      })
    }
    const state = sqlState(error)
    if (state === undefined) throw error
    throw new LighterError('database_refused', `the database refused (${state}): ${messageOf(error)}`, {
      cause: error,
      hint:
        state === '42501'
          ? "The pool's login must be a member of lighter_tenant: grant lighter_tenant to <login>;"
          : 'Is the schema migrated? See lighter doctor.',
    })
  }
}

/** Ends with the signal's reason as soon as it is aborted. */
async function* endedBy(signal: AbortSignal | undefined, readable: Readable): AsyncGenerator<Uint8Array> {
  const onAbort = () => readable.destroy()
  signal?.addEventListener('abort', onAbort, { once: true })
  try {
    signal?.throwIfAborted()
    yield* readable
  } catch (error) {
    signal?.throwIfAborted()
    throw error
  } finally {
    signal?.removeEventListener('abort', onAbort)
    readable.destroy()
  }
}

function requireUuid(value: string, name: string): void {
  if (!uuid.test(value)) throw new LighterError('invalid_request', `${name}: must be a uuid`)
}

function writeCursor(position: { createdAt: string; id: string }): string {
  return Buffer.from(`${position.createdAt}/${position.id}`).toString('base64url')
}

function readCursor(cursor: string): { createdAt: string; id: string } {
  const [createdAt, id] = Buffer.from(cursor, 'base64url').toString('latin1').split('/')
  if (createdAt === undefined || id === undefined || !/^[\d :.+-]{1,40}$/.test(createdAt) || !uuid.test(id))
    throw new LighterError('invalid_request', 'cursor: is not a nextCursor of this client')
  return { createdAt, id }
}
