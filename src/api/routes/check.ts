// Whether the object store can be reached, in the words of the original system.
import type { FastifyInstance } from 'fastify'
import type { ZodTypeProvider } from 'fastify-type-provider-zod'
import { z } from 'zod'
import { StoreError } from '../../errors.ts'
import type { ObjectStore } from '../../store/object-store.ts'
import type { ApiContext } from '../context.ts'
import { commonErrors } from '../schemas.ts'

const variables = [
  'R2_ACCOUNT_ID',
  'R2_ACCESS_KEY_ID',
  'R2_SECRET_ACCESS_KEY',
  'R2_BUCKET',
  'R2_ENDPOINT',
] as const

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

/** @param env as in process.env; only whether a variable is set is looked at, or told */
export async function checkStore(
  env: Record<string, string | undefined>,
  store: Pick<ObjectStore, 'check'>,
): Promise<Answer> {
  const isSet = (name: string) => (env[name] ?? '') !== '' || (env[`${name}_FILE`] ?? '') !== ''
  const present = Object.fromEntries(variables.map(name => [name, isSet(name)]))
  const missing = variables.filter(
    name =>
      !isSet(name) &&
      // One of the two says where the store is.
      !(name === 'R2_ENDPOINT' || (name === 'R2_ACCOUNT_ID' && isSet('R2_ENDPOINT'))),
  )
  if (missing.length > 0)
    return { status: 'ok', r2: { ok: false, reason: 'missing_env', missing }, env: present }
  try {
    return { status: 'ok', r2: { ok: true, method: await store.check() }, env: present }
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

export function checkRoutes(app: FastifyInstance, context: ApiContext): void {
  app.withTypeProvider<ZodTypeProvider>().get(
    '/api/storage/r2/check',
    {
      schema: {
        tags: ['operations'],
        summary: 'Whether the object store can be reached',
        querystring: z.object({ tenant_id: z.string().max(100).optional() }),
        response: { 200: answer, ...commonErrors },
      },
    },
    () => checkStore(process.env, context.store),
  )
}
