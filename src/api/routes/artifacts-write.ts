// Storing and deleting artifacts.
import { createHash } from 'node:crypto'
import { Readable } from 'node:stream'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { ZodTypeProvider } from 'fastify-type-provider-zod'
import { z } from 'zod'
import { requireKind } from '../../artifacts/kinds.ts'
import type { NewArtifact } from '../../artifacts/put.ts'
import { putOnce } from '../../artifacts/put-once.ts'
import { type ArtifactRecord, findArtifact } from '../../catalogue/record.ts'
import { tenantDatabase } from '../../db/tenant.ts'
import { asArtifactId } from '../../ids.ts'
import type { ApiContext } from '../context.ts'
import { ApiError, notFound } from '../errors.ts'
import { RawJson } from '../json-body.ts'
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

const stored = z.object({ status: z.literal('ok'), artifact: artifactSchema })

const contentType = z
  .string()
  .max(255)
  .regex(
    /^[A-Za-z0-9!#$&^_.+-]+\/[A-Za-z0-9!#$&^_.+-]+( *; *[A-Za-z0-9_-]+=("[ !#-[\]-~]*"|[A-Za-z0-9_.:+-]+))*$/,
    'must be a media type such as text/csv',
  )

const headers = z.object({
  'idempotency-key': z
    .string()
    .regex(/^[\x21-\x7e]{1,255}$/, 'must be 1 to 255 visible ASCII characters')
    .optional()
    .describe("The same request sent again under it within 24 hours gets the first one's artifact"),
})

export function artifactWriteRoutes(app: FastifyInstance, context: ApiContext): void {
  const { config, offload } = context
  const options = {
    partBytes: offload.partBytes,
    leaseMs: offload.leaseMs,
    maxBytes: config.rawLimitBytes,
  }

  const typed = app.withTypeProvider<ZodTypeProvider>()
  typed.post(
    '/api/storage/artifacts',
    {
      bodyLimit: config.bodyLimitBytes,
      config: { rawMembers: ['payload'] },
      schema: {
        tags: ['artifacts'],
        summary: 'Store a JSON payload',
        description: "The payload's exact text is stored: no number and no key changes.",
        headers,
        body: z.object({
          kind,
          entity_type: entityType.nullish(),
          entity_id: entityId.nullish(),
          payload: z.any().describe('Any JSON value'),
          content_type: contentType.nullish().describe('Of the payload; default application/json'),
          tenant_id: tenantId.nullable(),
        }),
        response: { 201: stored, ...commonErrors, 409: errorSchema, 413: errorSchema, 422: errorSchema },
      },
    },
    async (request, reply) => {
      const { body } = request
      requireKind(body.kind, config.kinds)
      if (!(body.payload instanceof RawJson)) {
        throw new ApiError(400, 'invalid_request', 'body.payload: is missing', { field: 'body.payload' })
      }
      const payload = Buffer.from(body.payload.text)
      const artifact = {
        tenantId: request.tenantId,
        kind: body.kind,
        entityType: body.entity_type ?? null,
        entityId: body.entity_id ?? null,
        contentType: body.content_type ?? 'application/json',
        payload,
        isJson: true,
        codec: offload.codec,
      }
      const record = await store(request, artifact, createHash('sha256').update(payload).digest('hex'))
      return reply.code(201).send({ status: 'ok', artifact: artifactJson(record) })
    },
  )

  // Bodies of this scope are streams, whatever their type says.
  app.register(async scope => {
    scope.removeAllContentTypeParsers()
    scope.addContentTypeParser('*', (_request, payload, done) => done(null, payload))
    scope.withTypeProvider<ZodTypeProvider>().post(
      '/api/storage/artifacts/raw',
      {
        bodyLimit: config.rawLimitBytes,
        schema: {
          tags: ['artifacts'],
          summary: 'Store any bytes',
          description: 'The body is streamed into the object store as it is, with its Content-Type.',
          consumes: ['application/octet-stream'],
          headers: headers.extend({ 'content-type': contentType.default('application/octet-stream') }),
          querystring: z.object({
            kind,
            entity_type: entityType.optional(),
            entity_id: entityId.optional(),
            tenant_id: tenantId,
          }),
          body: z.any().describe('The bytes'),
          response: { 201: stored, ...commonErrors, 409: errorSchema, 413: errorSchema, 422: errorSchema },
        },
      },
      async (request, reply) => {
        const { query } = request
        requireKind(query.kind, config.kinds)
        // Refused before any of it is read; one that does not say how long it is, where it passes the limit.
        if (Number(request.headers['content-length'] ?? 0) > config.rawLimitBytes) {
          throw new ApiError(
            413,
            'payload_too_large',
            `the payload is longer than ${config.rawLimitBytes} bytes`,
          )
        }
        const artifact = {
          tenantId: request.tenantId,
          kind: query.kind,
          entityType: query.entity_type ?? null,
          entityId: query.entity_id ?? null,
          contentType: request.headers['content-type'],
          payload: request.body instanceof Readable ? arriving(request.body) : Buffer.alloc(0),
          isJson: request.headers['content-type'] === 'application/json',
          // As it is: it can be read in ranges, and by presigned URL.
          codec: 'none' as const,
        }
        // Of a stream the hash is not known beforehand: the replay of one is read and compared.
        const record = await store(request, artifact, '')
        return reply.code(201).send({ status: 'ok', artifact: artifactJson(record) })
      },
    )
  })

  typed.delete(
    '/api/storage/artifacts/:id',
    {
      schema: {
        tags: ['artifacts'],
        summary: 'Delete an artifact',
        description:
          "It can't be read from then on; its bytes go later. One that a row points to is deleted only with ?force=true: the row can't be hydrated without it.",
        params: artifactParams,
        querystring: z.object({
          force: z.enum(['true', 'false']).default('false'),
          tenant_id: tenantId,
        }),
        response: {
          200: z.object({ status: z.literal('ok'), id: z.string(), deleted_at: z.string() }),
          ...commonErrors,
          404: errorSchema,
          409: errorSchema,
          410: errorSchema,
        },
      },
    },
    async request => {
      const db = tenantDatabase(context.pool, request.tenantId)
      const id = asArtifactId(request.params.id)
      const found = await findArtifact(db, request.tenantId, id)
      if (found === null) throw notFound()
      if (found.artifact.deletedAt !== null) throw gone(found.artifact.deletedAt, found.deletedReason)
      if (found.artifact.fromRow && request.query.force !== 'true') {
        throw new ApiError(
          409,
          'artifact_in_use',
          'the artifact was taken off a row, which can not be hydrated without it: delete the row, or repeat with ?force=true',
        )
      }
      const { rows } = await db.query<{ at: Date | null }>('select lighter.api_delete_artifact($1) as at', [
        id,
      ])
      const at = rows[0]?.at
      // Somebody else was faster: it is as gone as it was to be.
      return { status: 'ok' as const, id, deleted_at: (at ?? new Date()).toISOString() }
    },
  )

  /** Stores the artifact; under an Idempotency-Key at most once. */
  async function store(
    request: FastifyRequest<{ Headers: z.infer<typeof headers> }>,
    artifact: Omit<NewArtifact, 'idempotency'>,
    content: string,
  ): Promise<ArtifactRecord> {
    const key = request.headers['idempotency-key']
    const leave = await context.gates.uploads.enter(request.tenantId)
    try {
      return await putOnce(
        context.pool,
        context.store,
        artifact,
        options,
        key === undefined ? null : { key, content },
      )
    } finally {
      leave()
    }
  }
}

/** A body that breaks off is its client's doing, not an outage of whatever it was on its way to. */
async function* arriving(body: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  try {
    yield* body
  } catch (error) {
    throw new ApiError(400, 'upload_aborted', 'the body broke off', { cause: error })
  }
}

/** For its own tenant only: to all others it is not found. */
export function gone(deletedAt: Date, reason: string | null): ApiError {
  const at = { deleted_at: deletedAt.toISOString() }
  if (reason === null || reason === 'deleted') {
    return new ApiError(410, 'artifact_deleted', 'the artifact was deleted', {
      facts: { ...at, reason: 'deleted' },
    })
  }
  return new ApiError(410, 'artifact_expired', `the artifact is gone: ${reason}`, {
    facts: { ...at, reason },
  })
}
