// Listing artifacts and reading their payloads.
import { isUtf8 } from 'node:buffer'
import { pipeline, Readable, Transform } from 'node:stream'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { ZodTypeProvider } from 'fastify-type-provider-zod'
import { z } from 'zod'
import { dispositionOf } from '../../artifacts/disposition.ts'
import { requireReadable, streamPayload } from '../../artifacts/fetch.ts'
import { fetchCurrent } from '../../artifacts/fetch-current.ts'
import { checkJson } from '../../artifacts/json-check.ts'
import { jsonGuard } from '../../artifacts/json-guard.ts'
import { streamRange } from '../../artifacts/range.ts'
import type { Artifact } from '../../catalogue/lookup.ts'
import { findArtifact, listArtifacts } from '../../catalogue/record.ts'
import { tenantDatabase } from '../../db/tenant.ts'
import { ArtifactError, LighterError } from '../../errors.ts'
import { type ArtifactId, asArtifactId, type TenantId } from '../../ids.ts'
import type { ApiContext } from '../context.ts'
import { ApiError, logError, notFound, toApiError } from '../errors.ts'
import type { Gate } from '../gate.ts'
import { heldUntilAnswered } from '../held.ts'
import {
  artifactJson,
  artifactParams,
  artifactSchema,
  commonErrors,
  entityId,
  entityType,
  errorSchema,
  kind,
  tenantId,
} from '../schemas.ts'
import { gone } from './artifacts-write.ts'
import { parseRange } from './byte-range.ts'

type Found = NonNullable<Awaited<ReturnType<typeof findArtifact>>>

const maxOffset = 800
const maxLimit = 200

const raw = z.enum(['0', '1', 'true', 'false']).default('0')
const isRaw = (value: string) => value === '1' || value === 'true'

export function artifactReadRoutes(app: FastifyInstance, context: ApiContext): void {
  const typed = app.withTypeProvider<ZodTypeProvider>()

  typed.get(
    '/api/storage/artifacts',
    {
      schema: {
        tags: ['artifacts'],
        summary: 'List artifacts, newest first',
        querystring: z.object({
          kind: kind.optional(),
          entity_type: entityType.optional(),
          entity_id: entityId.optional(),
          limit: z.coerce
            .number()
            .int()
            .min(1)
            .default(50)
            .transform(limit => Math.min(limit, maxLimit))
            .describe(`Artifacts in the page; more than ${maxLimit} are taken as ${maxLimit}`),
          offset: z.coerce
            .number()
            .int()
            .min(0)
            .max(maxOffset, `at most ${maxOffset}: continue with the cursor`)
            .default(0),
          cursor: z.string().max(200).optional().describe('next_cursor of the page before'),
          tenant_id: tenantId,
        }),
        response: {
          200: z.object({
            status: z.literal('ok'),
            count: z.number().describe('Artifacts in this page'),
            limit: z.number().describe('The one that was applied'),
            offset: z.number(),
            artifacts: z.array(artifactSchema),
            next_cursor: z.string().nullable(),
          }),
          ...commonErrors,
        },
      },
    },
    async request => {
      const { query } = request
      const found = await listArtifacts(tenantDatabase(context.pool, request.tenantId), request.tenantId, {
        kind: query.kind ?? null,
        entityType: query.entity_type ?? null,
        entityId: query.entity_id ?? null,
        limit: query.limit,
        offset: query.offset,
        after: query.cursor === undefined ? null : readCursor(query.cursor),
      })
      const last = found.length === query.limit ? found.at(-1) : undefined
      return {
        status: 'ok' as const,
        count: found.length,
        limit: query.limit,
        offset: query.offset,
        artifacts: found.map(({ record }) => artifactJson(record)),
        next_cursor: last === undefined ? null : writeCursor(last.position),
      }
    },
  )

  typed.get(
    '/api/storage/artifacts/:id',
    {
      schema: {
        tags: ['artifacts'],
        summary: 'Read an artifact with its payload',
        description:
          'JSON payloads come as `payload`, others as `payload_base64`. With ?raw=1 the bytes alone, with their type, ETag (the sha256) and byte ranges.',
        params: artifactParams,
        querystring: z.object({
          raw,
          tenant_id: tenantId,
        }),
        response: {
          200: z.object({
            status: z.literal('ok'),
            artifact: artifactSchema,
            payload: z.any().optional(),
            payload_base64: z.string().optional(),
            content_type: z.string().nullable().optional(),
          }),
          ...commonErrors,
          206: z.any().describe('With ?raw=1 and a range: its bytes'),
          304: z.any().describe('With ?raw=1 and If-None-Match: unchanged'),
          404: errorSchema,
          410: errorSchema,
          413: errorSchema,
          416: errorSchema,
          502: errorSchema,
        },
      },
    },
    async (request, reply) => {
      const found = await requireArtifact(request.tenantId, asArtifactId(request.params.id))
      return isRaw(request.query.raw) ? sendRaw(request, reply, found) : sendAsJson(request, reply, found)
    },
  )

  typed.head(
    '/api/storage/artifacts/:id',
    {
      schema: {
        tags: ['artifacts'],
        summary: 'Whether there is an artifact; with ?raw=1 the headers of its payload',
        params: artifactParams,
        querystring: z.object({ raw, tenant_id: tenantId }),
      },
    },
    async (request, reply) => {
      const found = await requireArtifact(request.tenantId, asArtifactId(request.params.id))
      if (isRaw(request.query.raw)) return sendRaw(request, reply, found)
      // How long the other form would be is not known before the payload was read.
      return reply.type('application/json; charset=utf-8').send()
    },
  )

  typed.get(
    '/api/storage/artifacts/:id/url',
    {
      schema: {
        tags: ['artifacts'],
        summary: 'A URL that reads the payload without credentials',
        description:
          'Loose, uncompressed objects: a presigned URL of the object store. Others: a signed URL of this API.',
        params: artifactParams,
        querystring: z.object({
          expires_in: z.coerce.number().int().min(1).max(604_800).default(900).describe('Seconds'),
          tenant_id: tenantId,
        }),
        response: {
          200: z.object({
            status: z.literal('ok'),
            url: z.string(),
            expires_at: z.string(),
            served_by: z.enum(['store', 'api']),
          }),
          ...commonErrors,
          404: errorSchema,
          410: errorSchema,
        },
      },
    },
    async request => {
      const { artifact, record } = await requireArtifact(request.tenantId, asArtifactId(request.params.id))
      // Whoever has the URL reads without us: what we would not answer must not be signed either.
      requireReadable(context.store, artifact)
      const seconds = request.query.expires_in
      const byStore = artifact.byteOffset === null && artifact.contentEncoding === null
      const url = byStore
        ? await context.store.presign(artifact.key, seconds, {
            contentType: record.content_type ?? 'application/octet-stream',
            contentDisposition: dispositionOf(record.content_type, artifact.id),
          })
        : `${context.publicUrl()}/api/storage/signed/${await context.signer.sign(request.tenantId, artifact.id, seconds)}`
      return {
        status: 'ok' as const,
        url,
        expires_at: new Date(Date.now() + seconds * 1000).toISOString(),
        served_by: byStore ? ('store' as const) : ('api' as const),
      }
    },
  )

  typed.get(
    '/api/storage/signed/:token',
    {
      config: { open: true },
      schema: {
        tags: ['artifacts'],
        summary: 'Read a payload by signed URL',
        params: z.object({ token: z.string().max(2000) }),
        response: {
          200: z.any().describe('The bytes of the payload'),
          206: z.any().describe('The bytes of the range'),
          404: errorSchema,
          410: errorSchema,
          416: errorSchema,
          429: errorSchema,
          502: errorSchema,
          503: errorSchema,
        },
      },
    },
    async (request, reply) => {
      const claims = request.signed
      // A forged token, one that has expired and one of an artifact that is not there are answered alike.
      if (claims === null) throw notFound()
      return sendRaw(request, reply, await requireArtifact(claims.tenantId, claims.artifactId))
    },
  )

  async function requireArtifact(tenant: TenantId, id: ArtifactId): Promise<Found> {
    const found = await findArtifact(tenantDatabase(context.pool, tenant), tenant, id)
    if (found === null) throw notFound()
    if (found.artifact.deletedAt !== null) throw gone(found.artifact.deletedAt, found.deletedReason)
    if (found.artifact.sizeBytes !== null || found.artifact.contentEncoding !== null) return found
    requireReadable(context.store, found.artifact)
    // A row that the application wrote itself may not say how long it is; its object does.
    const object = await context.store.head(found.artifact.key)
    return object === null ? found : { ...found, artifact: { ...found.artifact, sizeBytes: object.size } }
  }

  const isLarge = (artifact: Artifact) =>
    artifact.sizeBytes === null || artifact.sizeBytes > context.offload.streamThresholdBytes

  /** A slot, until the answer has left. */
  const held = (reply: FastifyReply, gate: Gate, artifact: Artifact) =>
    heldUntilAnswered(reply, gate.enter(artifact.tenantId))

  /** The whole payload, its hash checked. */
  async function fetchOne(reply: FastifyReply, artifact: Artifact): Promise<Buffer> {
    await held(reply, context.gates.whole, artifact)
    const db = tenantDatabase(context.pool, artifact.tenantId)
    const payload = (await fetchCurrent(db, context.store, [artifact])).get(artifact)
    if (payload === undefined) throw new Error('the payload was not fetched')
    if (payload instanceof LighterError) throw payload
    return payload
  }

  async function sendAsJson(request: FastifyRequest, reply: FastifyReply, found: Found) {
    const { artifact, record } = found
    const head = `{"status":"ok","artifact":${JSON.stringify(artifactJson(record))},`
    const base64Head = `${head}"content_type":${JSON.stringify(record.content_type)},"payload_base64":"`
    reply.type('application/json; charset=utf-8').header('cache-control', 'private, no-store')
    // What came as JSON has a key that says so, whatever its content type.
    const saysJson =
      /^application\/([a-z0-9.+-]+\+)?json\b/i.test(record.content_type ?? '') ||
      artifact.key.endsWith('.json')
    // What came as JSON through the API is no longer than its bodies may be, and must be looked at as a whole.
    const asBody =
      saysJson &&
      !found.artifact.fromRow &&
      (artifact.sizeBytes ?? Number.POSITIVE_INFINITY) <= context.config.bodyLimitBytes
    if (!isLarge(artifact) || asBody) {
      const payload = await fetchOne(reply, artifact)
      // It may only be called so, whoever has put it there.
      if (saysJson && isJson(payload)) return reply.send(`${head}"payload":${payload}}`)
      return reply.send(`${base64Head}${payload.toString('base64')}"}`)
    }
    await held(reply, context.gates.streams, artifact)
    request.expectedBytes = (artifact.sizeBytes ?? 0) * 2
    const stream = await streamPayload(context.store, artifact)
    const body =
      saysJson && found.artifact.fromRow
        ? wrap(
            pipeline(stream, jsonGuard(artifact.id), () => undefined),
            `${head}"payload":`,
            '}',
          )
        : wrap(
            pipeline(stream, base64(), () => undefined),
            base64Head,
            '"}',
          )
    return reply.send(watched(request, body))
  }

  async function sendRaw(request: FastifyRequest, reply: FastifyReply, found: Found) {
    const { artifact, record } = found
    const etag = record.sha256 === null ? null : `"${record.sha256}"`
    const size = record.size_bytes
    reply
      .header('cache-control', 'private, max-age=31536000, immutable')
      // A cache of two users on one machine must not take one's answer for the other's.
      .header('vary', 'Authorization, X-Tenant-Id')
      .header('x-content-type-options', 'nosniff')
      .header('content-security-policy', "default-src 'none'; sandbox")
      .header('content-disposition', dispositionOf(record.content_type, artifact.id))
      .type(record.content_type ?? 'application/octet-stream')
    if (etag !== null) {
      reply.header('etag', etag)
      if (matches(request.headers['if-none-match'], etag)) return reply.code(304).send()
    }
    if (size !== null) reply.header('accept-ranges', 'bytes')
    const ifRange = request.headers['if-range']
    const range =
      size === null || (ifRange !== undefined && ifRange !== etag)
        ? null
        : parseRange(request.headers.range, size)
    if (range === 'unsatisfiable') {
      reply.header('content-range', `bytes */${size}`)
      throw new ApiError(416, 'range_not_satisfiable', `the payload has ${size} bytes`, { field: 'range' })
    }
    if (range !== null) {
      reply.code(206).header('content-range', `bytes ${range.start}-${range.end - 1}/${size}`)
    }
    const { start, end } = range ?? { start: 0, end: size ?? Number.POSITIVE_INFINITY }
    if (size !== null) reply.header('content-length', end - start)
    if (request.method === 'HEAD') return reply.send()
    // Never more than was said, and never less: a client would take it for the next answer, or wait for it.
    reply.raw.strictContentLength = true
    if (!isLarge(artifact)) return reply.send((await fetchOne(reply, artifact)).subarray(start, end))
    await held(reply, context.gates.streams, artifact)
    request.expectedBytes = artifact.sizeBytes ?? 0
    const body =
      range === null
        ? await streamPayload(context.store, artifact)
        : await streamRange(context.store, artifact, range, context.verified)
    return reply.send(watched(request, body))
  }

  /** A stream whose failure is logged and counted: its answer has begun, and can only be broken off. */
  function watched(request: FastifyRequest, body: Readable): Readable {
    body.once('error', error => {
      if (error instanceof ArtifactError) context.metrics.readError(error.code)
      logError(request, toApiError(error))
    })
    return body
  }
}

function isJson(payload: Buffer): boolean {
  // What is not UTF-8 would be answered with other characters in its place.
  if (!isUtf8(payload)) return false
  try {
    checkJson(payload.toString('utf8'), Number.POSITIVE_INFINITY)
    return true
  } catch {
    return false
  }
}

/** Encodes whole groups of three bytes; the rest waits for the next chunk. */
function base64(): Transform {
  let rest: Buffer = Buffer.alloc(0)
  return new Transform({
    transform(chunk: Buffer, _encoding, done) {
      const bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk])
      const whole = bytes.length - (bytes.length % 3)
      rest = bytes.subarray(whole)
      done(null, bytes.toString('base64', 0, whole))
    },
    flush(done) {
      done(null, rest.toString('base64'))
    },
  })
}

function wrap(body: Readable, before: string, after: string): Readable {
  async function* wrapped() {
    yield Buffer.from(before)
    yield* body
    yield Buffer.from(after)
  }
  const whole = Readable.from(wrapped(), { objectMode: false })
  // As in streamPayload: a generator that was never begun ends nothing.
  whole.once('close', () => body.destroy())
  return whole
}

/** If-None-Match: a list of ETags, weak or not, or a star. */
function matches(header: string | undefined, etag: string): boolean {
  if (header === undefined) return false
  return header.split(',').some(each => each.trim() === '*' || each.trim().replace(/^W\//, '') === etag)
}

function writeCursor(position: { createdAt: string; id: string }): string {
  return Buffer.from(`${position.createdAt}/${position.id}`).toString('base64url')
}

function readCursor(cursor: string): { createdAt: string; id: string } {
  const [, createdAt, id] =
    /^(\d{4,6}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})?[+-]\d\d(?::\d\d){0,2})\/([0-9a-f-]{36})$/.exec(
      Buffer.from(cursor, 'base64url').toString('latin1'),
    ) ?? []
  if (createdAt === undefined || id === undefined) {
    throw new ApiError(400, 'invalid_request', 'querystring.cursor: is not a next_cursor of this API', {
      field: 'querystring.cursor',
    })
  }
  return { createdAt, id }
}
