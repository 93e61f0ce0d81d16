// Many rows' metadata at once, hydrated.
import type { FastifyInstance, FastifyReply } from 'fastify'
import type { ZodTypeProvider } from 'fastify-type-provider-zod'
import { z } from 'zod'
import { hydrateMany } from '../../artifacts/hydrate.ts'
import { requestLimits } from '../../artifacts/hydrate-limits.ts'
import { rawKind, splitArray } from '../../artifacts/raw-json.ts'
import { tenantDatabase } from '../../db/tenant.ts'
import { ArtifactError } from '../../errors.ts'
import type { ApiContext } from '../context.ts'
import { ApiError, logError, toApiError } from '../errors.ts'
import { goneSignal, heldUntilAnswered } from '../held.ts'
import { RawJson } from '../json-body.ts'
import { commonErrors, errorSchema, tenantId } from '../schemas.ts'

const maxItems = 200

export function hydrateRoutes(app: FastifyInstance, context: ApiContext): void {
  const { config } = context
  app.withTypeProvider<ZodTypeProvider>().post(
    '/api/storage/hydrate',
    {
      bodyLimit: config.bodyLimitBytes,
      config: { rawMembers: ['metadata'] },
      schema: {
        tags: ['hydrate'],
        summary: 'Hydrate the metadata of up to 200 rows',
        description:
          "Pointers are followed within the tenant only. What can't be hydrated comes back as it was sent, with its index and the reason in `errors`.",
        body: z.object({
          metadata: z.any().describe('Array of metadata values as they are in the rows'),
          field: z
            .string()
            .min(1)
            .max(63)
            .nullish()
            .describe("The source's phase 1 field; default tool_interactions"),
          tenant_id: tenantId.nullable(),
        }),
        response: {
          200: z.object({
            status: z.literal('ok'),
            count: z.number(),
            metadata: z.array(z.any()).describe('In the order they were sent'),
            errors: z.array(z.object({ index: z.number(), code: z.string(), message: z.string() })),
          }),
          ...commonErrors,
          413: errorSchema,
        },
      },
    },
    async (request, reply) => {
      const { metadata, field } = request.body
      if (!(metadata instanceof RawJson) || rawKind(metadata.text) !== 'array') {
        throw new ApiError(400, 'invalid_request', 'body.metadata: must be an array', {
          field: 'body.metadata',
        })
      }
      const texts = splitArray(metadata.text, maxItems + 1)
      if (texts.length > maxItems) {
        throw new ApiError(400, 'invalid_request', `body.metadata: at most ${maxItems} at once`, {
          field: 'body.metadata',
        })
      }
      // Until the answer has left: it is held whole.
      await heldUntilAnswered(reply, context.gates.hydrations.enter(request.tenantId))
      const results = await hydrateMany(
        {
          db: tenantDatabase(context.pool, request.tenantId),
          store: context.store,
          concurrency: config.fetchConcurrency,
          limits: requestLimits(config.hydrateLimitBytes),
          pause: () => context.pause(request.tenantId),
          signal: goneSignal(reply),
        },
        texts.map(text => ({
          tenantId: request.tenantId,
          metadata: text,
          field: field ?? 'tool_interactions',
        })),
      )
      const errors: { index: number; code: string; message: string }[] = []
      const answered = results.map((result, index) => {
        if (result.error === null) return result.metadata ?? 'null'
        if (result.error instanceof ArtifactError && isDamage(result.error.code)) {
          context.metrics.readError(result.error.code)
        }
        const { code, message, status } = toApiError(result.error)
        if (status >= 500) logError(request, toApiError(result.error))
        errors.push({ index, code, message })
        return texts[index] ?? 'null'
      })
      // Text put together of texts: no serializer must touch it.
      return (reply as FastifyReply)
        .type('application/json; charset=utf-8')
        .header('cache-control', 'private, no-store')
        .send(
          `{"status":"ok","count":${answered.length},"metadata":[${answered.join(',')}],"errors":${JSON.stringify(errors)}}`,
        )
    },
  )
}

/** Of the stored bytes; that an artifact is gone, or was never there, is no damage. */
export function isDamage(code: string): boolean {
  return /^artifact_(corrupt|object_missing|foreign_key|encoding_unknown)$/.test(code)
}
