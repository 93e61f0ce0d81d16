// The dashboard: pages, figures, and the few things that can be done there. Everything but the login and the assets
// needs a session; what changes something, or tells a payload, must also come from a page of ours, with its token.
import cookie from '@fastify/cookie'
import rateLimit from '@fastify/rate-limit'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { ZodTypeProvider } from 'fastify-type-provider-zod'
import { z } from 'zod'
import { requireLoopbackName } from '../api/auth.ts'
import type { ApiContext } from '../api/context.ts'
import { ApiError, logError, sendError, toApiError } from '../api/errors.ts'
import { heldUntilAnswered } from '../api/held.ts'
import { requireReadable } from '../artifacts/fetch.ts'
import { tableNameSql } from '../db/settings.ts'
import { sqlState } from '../errors.ts'
import { asTenantId, type TenantId } from '../ids.ts'
import { version } from '../version.ts'
import { assetRoutes } from './assets.ts'
import { createFeed } from './feed.ts'
import { createViewers } from './live.ts'
import { findSource, lookUpArtifact, lookUpRow, requireKey } from './lookup.ts'
import { appPage, loginPage } from './pages.ts'
import { requireArtifact, showArtifact, showRow } from './payload.ts'
import { securityHeaders } from './policy.ts'
import { requireSameOrigin } from './same-origin.ts'
import { createSessions, isCsrfTokenOf, type Session } from './session.ts'

declare module 'fastify' {
  interface FastifyRequest {
    /** Set on all routes of the dashboard that are not open. */
    session: Session | null
  }
  interface FastifyContextConfig {
    /** A person sees the answer as a page, its errors too. */
    page?: boolean
  }
}

/** Tries with a key, a minute from one address. */
const loginsAMinute = 10
/** Look-ups, payloads and retries, a minute in one session. */
const actionsAMinute = 120
const maxFormBytes = 4096
/** Long enough to click on it. */
const downloadSeconds = 300
/** All that has no tenant of its own shares this one's slots. */
const noTenant = asTenantId('00000000-0000-0000-0000-000000000000')

const uuid = z
  .string()
  .regex(/^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$/, 'must be a uuid')
  .transform(value => value.toLowerCase())
/** A key of texts is as long as an index entry lets it be, and its escapes are longer. */
const mostKeyCharacters = 20_000
const rowKey = { source_id: z.coerce.number().int().min(1), row_id: z.string().min(1).max(mostKeyCharacters) }
const artifactKey = { tenant_id: uuid, id: uuid }

export async function dashboardRoutes(
  app: FastifyInstance,
  context: ApiContext,
  options: { payloads: boolean; storeSecret: string },
): Promise<void> {
  const { config, log } = context
  /** Only with AUTH_MODE=dev and no service key set. */
  const isOpen = config.auth.mode === 'dev' && config.serviceKeys.length === 0
  const sessions = createSessions(config.serviceKeys, options.storeSecret, { isOpen })
  const feed = createFeed(context.pool, log)
  const viewers = createViewers(feed)

  await app.register(cookie)
  await app.register(rateLimit, { global: false, cache: 10_000 })
  app.decorateRequest('session', null)
  app.addContentTypeParser(
    'application/x-www-form-urlencoded',
    { parseAs: 'string', bodyLimit: maxFormBytes },
    (_request, body, done) => done(null, Object.fromEntries(new URLSearchParams(String(body)))),
  )
  app.setErrorHandler((error, request, reply) => {
    const found = toApiError(error)
    logError(request, found)
    if (!request.routeOptions.config.page) return sendError(request, reply, found)
    return reply
      .code(found.status)
      .type('text/html; charset=utf-8')
      .send(loginPage(sentenceOf(found), found.status === 403 ? 'nothing' : 'form'))
  })

  app.addHook('onRequest', async (request, reply) => {
    reply.headers(securityHeaders)
    if (config.auth.mode === 'dev') requireLoopbackName(request.headers)
    request.session = await sessions.open(request.cookies[cookieName(request)] ?? '')
    if (request.routeOptions.config.open) return
    if (request.session === null) {
      throw new ApiError(401, 'session_needed', 'sign in at /dashboard: there is no session, or it has ended')
    }
    if (request.method === 'GET') return
    requireSameOrigin(request.headers, config.publicUrl)
    if (!isCsrfTokenOf(request.session, request.headers['x-csrf-token'])) {
      throw new ApiError(403, 'cross_origin', 'the token of the page is missing: load it again')
    }
  })
  // The server waits for its answers when it stops, and these have no end of their own.
  app.addHook('preClose', async () => {
    viewers.end()
    feed.stop()
  })

  await assetRoutes(app)
  const typed = app.withTypeProvider<ZodTypeProvider>()
  const hidden = { hide: true }
  const limited = {
    rateLimit: {
      max: actionsAMinute,
      timeWindow: '1 minute',
      keyGenerator: (request: FastifyRequest) => request.session?.id ?? request.ip,
    },
  }

  app.get('/dashboard', { config: { open: true, page: true }, schema: hidden }, async (request, reply) => {
    reply.type('text/html; charset=utf-8')
    if (!isOpen && config.serviceKeys.length === 0) {
      throw new ApiError(
        403,
        'service_key_needed',
        'the dashboard is for those who have the service key: set SERVICE_API_KEY',
      )
    }
    let { session } = request
    if (session === null && isOpen) session = await begin(request, reply, await sessions.beginOpen())
    if (session === null) return loginPage(null)
    return appPage(session, { payloads: options.payloads, version, open: isOpen })
  })

  app.post(
    '/dashboard/login',
    {
      config: { open: true, page: true, rateLimit: { max: loginsAMinute, timeWindow: '1 minute' } },
      schema: hidden,
    },
    async (request, reply) => {
      requireSameOrigin(request.headers, config.publicUrl)
      const key = z.object({ key: z.string() }).safeParse(request.body).data?.key.trim() ?? ''
      const begun = await sessions.begin(key)
      if (begun === null) {
        log.warn({ address: request.ip }, 'a key that is none was given to the dashboard')
        return reply.code(401).type('text/html; charset=utf-8').send(loginPage('That is not a service key.'))
      }
      const session = await begin(request, reply, begun)
      log.info({ address: request.ip, session: session.id }, 'signed in to the dashboard')
      return reply.redirect('../dashboard', 303)
    },
  )

  app.post('/dashboard/logout', { schema: hidden }, async (request, reply) => {
    reply.clearCookie(cookieName(request), cookieOptions(request))
    log.info({ address: request.ip, session: request.session?.id }, 'signed out of the dashboard')
    return reply.send({ status: 'ok' })
  })

  app.get('/dashboard/live', { schema: hidden }, async (request, reply) => {
    request.lasting = true
    return (
      reply
        .type('text/event-stream; charset=utf-8')
        // nginx would hold events back until it has enough of them.
        .header('x-accel-buffering', 'no')
        .send(viewers.open(sessionOf(request)))
    )
  })

  typed.get(
    '/dashboard/artifact',
    {
      config: limited,
      schema: { ...hidden, querystring: z.object({ id: uuid, tenant_id: uuid.optional() }) },
    },
    async ({ query }) => ({
      status: 'ok',
      artifact: await lookUpArtifact(context.pool, query.id, query.tenant_id ?? null),
    }),
  )

  typed.get(
    '/dashboard/row',
    { config: limited, schema: { ...hidden, querystring: z.object(rowKey) } },
    async ({ query }) => ({
      status: 'ok',
      row: await lookUpRow(context.pool, query.source_id, query.row_id),
    }),
  )

  app.get('/dashboard/sources', { config: limited, schema: hidden }, async () => {
    const { rows } = await context.pool.query<{ id: number; source: string; column: string }>(
      `select id, ${tableNameSql('relation')} as source, json_column as "column" from lighter.sources order by 2, 3`,
    )
    return { status: 'ok', sources: rows }
  })

  typed.post(
    '/dashboard/payload',
    {
      config: limited,
      schema: { ...hidden, body: z.union([z.object(artifactKey), z.object(rowKey)]) },
    },
    async (request, reply) => {
      const { body } = request
      requirePayloads(request, body)
      if ('row_id' in body) {
        const source = await findSource(context.pool, body.source_id)
        const key = await requireKey(context.pool, source, body.row_id)
        await heldUntilAnswered(reply, context.gates.hydrations.enter(noTenant))
        return { status: 'ok', payload: await showRow(context, source, key) }
      }
      const tenantId: TenantId = asTenantId(body.tenant_id)
      const artifact = await requireArtifact(context, tenantId, body.id)
      const isLarge = artifact.sizeBytes === null || artifact.sizeBytes > context.offload.streamThresholdBytes
      const gate = isLarge ? context.gates.streams : context.gates.whole
      await heldUntilAnswered(reply, gate.enter(tenantId))
      return {
        status: 'ok',
        payload: await showArtifact(context.store, context.verified, artifact, isLarge),
      }
    },
  )

  typed.post(
    '/dashboard/download',
    { config: limited, schema: { ...hidden, body: z.object(artifactKey) } },
    async request => {
      const { tenant_id, id } = request.body
      requirePayloads(request, request.body)
      const artifact = await requireArtifact(context, asTenantId(tenant_id), id)
      requireReadable(context.store, artifact)
      const token = await context.signer.sign(artifact.tenantId, artifact.id, downloadSeconds)
      // Of this API, never of the store: the page asks nobody else.
      return { status: 'ok', path: `api/storage/signed/${token}` }
    },
  )

  typed.post(
    '/dashboard/retry',
    {
      config: limited,
      schema: { ...hidden, body: z.union([z.object(rowKey), z.object({ all: z.literal(true) })]) },
    },
    async request => {
      const { body } = request
      const [sourceId, rowId] = 'all' in body ? [null, null] : [body.source_id, body.row_id]
      const { rows } = await context.pool
        .query<{ retried: number }>(
          sourceId === null
            ? 'select lighter.retry()::int as retried'
            : {
                text: `select coalesce(sum(lighter.retry(s.relation, $2)), 0)::int as retried
                         from lighter.sources s where s.id = $1`,
                values: [sourceId, rowId],
              },
        )
        .catch(error => {
          if (sqlState(error) !== '55P03') throw error
          throw new ApiError(
            409,
            'retry_busy',
            'a transaction that writes one of the rows is still open: nothing was brought back, try again',
            { cause: error },
          )
        })
      const retried = rows[0]?.retried ?? 0
      log.info(
        { session: sessionOf(request).id, address: request.ip, source_id: sourceId, row_id: rowId, retried },
        'dead letters were retried from the dashboard',
      )
      return { status: 'ok', retried }
    },
  )

  /** Said before it is read: who asked for it is known also when the answer fails. */
  function requirePayloads(request: FastifyRequest, what: Record<string, unknown>): void {
    if (!options.payloads) {
      throw new ApiError(
        403,
        'payloads_not_allowed',
        'this dashboard shows no payloads: DASHBOARD_PAYLOADS=on lets it',
      )
    }
    log.info(
      { session: sessionOf(request).id, address: request.ip, ...what },
      'a payload was asked for from the dashboard',
    )
  }

  async function begin(
    request: FastifyRequest,
    reply: FastifyReply,
    { token, session }: { token: string; session: Session },
  ): Promise<Session> {
    reply.setCookie(cookieName(request), token, { ...cookieOptions(request), expires: session.expiresAt })
    return session
  }

  /** A browser takes a name that begins so from HTTPS only, so that nobody between can plant one. */
  function cookieName(request: FastifyRequest): string {
    return isSecure(request) ? '__Secure-lighter_session' : 'lighter_session'
  }

  function cookieOptions(request: FastifyRequest) {
    const prefix = config.publicUrl === undefined ? '' : new URL(config.publicUrl).pathname.replace(/\/$/, '')
    return {
      path: `${prefix}/dashboard`,
      httpOnly: true,
      sameSite: 'strict',
      secure: isSecure(request),
    } as const
  }

  /** As the browser sees it; behind a proxy, as that says (API_TRUST_PROXY), or API_PUBLIC_URL. */
  function isSecure(request: FastifyRequest): boolean {
    return request.protocol === 'https' || config.publicUrl?.startsWith('https:') === true
  }
}

function sessionOf(request: FastifyRequest): Session {
  if (request.session === null) throw new Error('a route without a session')
  return request.session
}

const sentenceOf = ({ message }: ApiError) => `${message.charAt(0).toUpperCase()}${message.slice(1)}.`
