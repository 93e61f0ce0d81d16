// For orchestrators and Prometheus.
import type { FastifyInstance } from 'fastify'
import type { ZodTypeProvider } from 'fastify-type-provider-zod'
import { z } from 'zod'
import { requireAllRows } from '../../db/all-rows.ts'
import { LighterError, messageOf } from '../../errors.ts'
import { requireServiceKey } from '../auth.ts'
import type { ApiContext } from '../context.ts'
import { ApiError } from '../errors.ts'
import { cached, inTime } from '../look.ts'
import { errorSchema } from '../schemas.ts'

const readiness = z.object({
  status: z.enum(['ok', 'unavailable']),
  database: z
    .enum(['ok', 'rows_hidden', 'unavailable'])
    .describe('rows_hidden: row-level security hides rows of our tables from the daemon; see lighter doctor'),
  bucket: z.enum(['ok', 'unavailable']),
  queue: z
    .enum(['ok', 'behind', 'unknown'])
    .describe('behind: a row has been due for longer than 15 minutes'),
  circuit: z
    .enum(['closed', 'open', 'half-open', 'off'])
    .describe(
      'open: the store fails the worker, which claims nothing; off: there is no worker in this process',
    ),
})

type Readiness = z.infer<typeof readiness>

/** How long an answer stands: each look at the bucket is a request that is paid for. */
const readinessMs = 5000
const behindSeconds = 15 * 60

export function healthRoutes(app: FastifyInstance, context: ApiContext): void {
  const typed = app.withTypeProvider<ZodTypeProvider>()
  typed.get(
    '/healthz',
    {
      config: { open: true },
      schema: {
        tags: ['operations'],
        summary: 'The process is alive',
        response: { 200: z.object({ status: z.literal('ok') }) },
      },
    },
    () => ({ status: 'ok' as const }),
  )

  const ready = cached(readinessMs, () => check(context))
  typed.get(
    '/readyz',
    {
      config: { open: true },
      schema: {
        tags: ['operations'],
        summary: 'Database and bucket can be reached',
        response: { 200: readiness, 503: readiness },
      },
    },
    async (_request, reply) => {
      const result = await ready()
      return reply.code(result.status === 'ok' ? 200 : 503).send(result)
    },
  )

  app.get(
    '/metrics',
    {
      config: { open: true },
      schema: {
        tags: ['operations'],
        summary: 'Prometheus metrics',
        description: 'Needs a service key as Bearer token, but for AUTH_MODE=dev.',
        response: { 200: z.string(), 401: errorSchema, 403: errorSchema },
      },
    },
    async (request, reply) => {
      const { auth, serviceKeys } = context.config
      if (serviceKeys.length > 0) requireServiceKey(request.headers, serviceKeys)
      else if (auth.mode !== 'dev')
        throw new ApiError(
          403,
          'service_key_needed',
          'metrics are served when SERVICE_API_KEY is set, to those who have it',
        )
      const { metrics } = context
      return reply.type(metrics.registry.contentType).send(await metrics.expose())
    },
  )
}

/**
 * How late the queue's first rows are, as lighter.queue_health has it, by a few looks at indexes: this is asked all the time,
 * and a long queue must not make it slow. Rows that settle, or wait for others, are not late.
 */
const lateSql = `
  with timing as materialized (
    select s.id, coalesce(s.settle_for, d.settle_for) as settle_for,
           coalesce(s.settle_for, d.settle_for) > '0' or coalesce(s.max_wait, d.max_wait) > '0' as waits
      from lighter.sources s cross join lighter.settings d
  )
  select extract(epoch from now() - least(
           (select i.enqueued_at + t.settle_for
              from (select x.source_id, x.enqueued_at from lighter.inbox x order by x.id limit 1) i join timing t on t.id = i.source_id),
           (select case when t.waits then w.available_at else w.enqueued_at end
              from (select x.source_id, x.available_at, x.enqueued_at from lighter.waiting x
                     where x.tenant_id is null and x.available_at <= now() order by x.priority, x.available_at limit 1) w
              join timing t on t.id = w.source_id),
           (select min(case when t.waits then l.until else j.enqueued_at end)
              from lighter.leases l cross join lateral unnest(l.source_ids, l.enqueued_at) j(source_id, enqueued_at)
              join timing t on t.id = j.source_id
             where l.until is null or l.until < now())))::float8 as seconds`

async function check(context: ApiContext): Promise<Readiness> {
  const [queue, bucket] = await Promise.all([
    inTime(
      requireAllRows(context.pool, []).then(() => context.pool.query<{ seconds: number | null }>(lateSql)),
    ).then(
      ({ rows }) => ((rows[0]?.seconds ?? 0) > behindSeconds ? ('behind' as const) : ('ok' as const)),
      (error: unknown) => {
        const hidden = error instanceof LighterError && error.code === 'rows_hidden'
        context.log.warn(
          { error: messageOf(error) },
          hidden
            ? 'not ready: rows are hidden from the daemon'
            : 'not ready: the database can not be reached',
        )
        return hidden ? ('hidden' as const) : ('unknown' as const)
      },
    ),
    inTime(context.checkBucket()).then(
      () => 'ok' as const,
      (error: unknown) => {
        context.log.warn({ error: messageOf(error) }, 'not ready: the bucket can not be reached')
        return 'unavailable' as const
      },
    ),
  ])
  const database = queue === 'unknown' ? 'unavailable' : queue === 'hidden' ? 'rows_hidden' : 'ok'
  // A long queue is no reason to take the API out of service.
  return {
    status: database === 'ok' && bucket === 'ok' ? 'ok' : 'unavailable',
    database,
    bucket,
    queue: queue === 'hidden' ? 'unknown' : queue,
    circuit: context.circuit(),
  }
}
