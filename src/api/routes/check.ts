// Whether the object store can be reached, in the words of the original system.
import type { FastifyInstance } from 'fastify'
import type { ZodTypeProvider } from 'fastify-type-provider-zod'
import { z } from 'zod'
import type { StoreVariables } from '../../config.ts'
import { StoreError } from '../../errors.ts'
import type { ApiContext } from '../context.ts'
import { cached, inTime } from '../look.ts'
import { errorSchema } from '../schemas.ts'

const answer = z.object({
  status: z.literal('ok'),
  r2: z.union([
    z.object({ ok: z.literal(true), method: z.string() }),
    z.object({ ok: z.literal(false), reason: z.literal('missing_env'), missing: z.array(z.string()) }),
    z.object({ ok: z.literal(false), reason: z.string(), error: z.string() }),
  ]),
  env: z.record(z.string(), z.boolean()).describe('Which variables are set'),
})

type Answer = z.infer<typeof answer>

export async function checkStore(
  { missing, present }: StoreVariables,
  check: () => Promise<string>,
): Promise<Answer> {
  if (missing.length > 0)
    return { status: 'ok', r2: { ok: false, reason: 'missing_env', missing }, env: present }
  try {
    return { status: 'ok', r2: { ok: true, method: await check() }, env: present }
  } catch (error) {
    const code = error instanceof StoreError ? error.code : 'store_unavailable'
    return {
      status: 'ok',
      r2: { ok: false, reason: code, error: sentences[code] ?? 'the store refused' },
      env: present,
    }
  }
}

/** What may be told of it outside: no host, no key, no request. */
const sentences: Record<string, string> = {
  bucket_not_found: 'the bucket does not exist',
  store_access_denied: 'the credentials were refused',
  store_unavailable: 'the store can not be reached',
}

/** The store is asked no more often than this, however often we are. */
const answerMs = 5000

/** Without credentials, as the original had it: what is answered is of no tenant, and costs the store next to nothing. */
export function checkRoutes(app: FastifyInstance, context: ApiContext): void {
  const look = cached(answerMs, () => checkStore(context.storeVariables, () => inTime(context.checkBucket())))
  app.withTypeProvider<ZodTypeProvider>().get(
    '/api/storage/r2/check',
    {
      config: { open: true },
      schema: {
        tags: ['operations'],
        summary: 'Whether the object store can be reached',
        response: { 200: answer, 429: errorSchema },
      },
    },
    look,
  )
}
