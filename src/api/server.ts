// The HTTP API: composes its parts. What each route does is in the file of its group.
import { randomUUID } from 'node:crypto'
import type { Socket } from 'node:net'
import { Readable } from 'node:stream'
import cors from '@fastify/cors'
import rateLimit from '@fastify/rate-limit'
import swagger from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import Fastify, {
  type FastifyBaseLogger,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  LogController,
} from 'fastify'
import { jsonSchemaTransform, serializerCompiler, validatorCompiler } from 'fastify-type-provider-zod'
import type pg from 'pg'
import type { Logger } from 'pino'
import { createVerifiedObjects } from '../artifacts/range.ts'
import type { ApiConfig, Config } from '../config.ts'
import { dashboardRoutes } from '../dashboard/routes.ts'
import { ArtifactError, LighterError, messageOf } from '../errors.ts'
import type { TenantId } from '../ids.ts'
import type { ObjectStore } from '../store/object-store.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import type { Tracing } from '../telemetry/tracing.ts'
import { version } from '../version.ts'
import { createAuthenticator, namesTenant, requireSameTenant, tenantReader } from './auth.ts'
import { lingerOnClose, watchConnections } from './connections.ts'
import type { ApiContext } from './context.ts'
import { ApiError, logError, sendError, toApiError } from './errors.ts'
import { createFairPause } from './fair-pause.ts'
import { createByteBudget, createGate } from './gate.ts'
import { parseBody } from './json-body.ts'
import { inPieces, watchPace } from './pace.ts'
import { artifactReadRoutes } from './routes/artifacts-read.ts'
import { artifactWriteRoutes } from './routes/artifacts-write.ts'
import { checkRoutes } from './routes/check.ts'
import { healthRoutes } from './routes/health.ts'
import { hydrateRoutes, isDamage } from './routes/hydrate.ts'
import { createUrlSigner } from './signed-url.ts'

/** The page loads what this server has, and nothing else. */
const docsPolicy =
  "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self'; connect-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'"

/** Room for a JWT of usual size, and no more. */
const maxHeaderBytes = 16 * 1024
/** Headers must have arrived within this. */
const headersTimeoutMs = 20_000
/** An answer must have been taken after this, and the time its bytes need at the slowest rate that is waited for. */
const answerMs = 120_000
const slowestBytesPerSecond = 50_000

/** When closing, a connection without a request under way is ended after this. */
const longestSilenceMs = 1000

/** Asked every few seconds, and of no interest. */
const untraced = new Set(['/healthz', '/readyz', '/metrics'])

export interface Api {
  /** @throws when the address is taken */
  listen(): Promise<void>
  /** Takes no more requests and waits for those under way. */
  close(): Promise<void>
  /** Where it listens, such as http://127.0.0.1:4001; null before it does. */
  address(): string | null
  /** For tests, and for the OpenAPI document without a server. */
  server: FastifyInstance
}

export async function createApi(parts: {
  config: Config
  pool: pg.Pool
  /** Its connections are the API's own: see `storeRequests`. */
  store: ObjectStore
  checkBucket?: () => Promise<string>
  circuit?: ApiContext['circuit']
  log: Logger
  metrics: Metrics
  tracing?: Tracing | null
}): Promise<Api> {
  const { config, log, metrics, tracing = null } = parts
  const { api } = config
  let address: string | null = null
  let closing = false
  const readTenant = tenantReader(api.tenantNamespace)
  const context: ApiContext = {
    ...parts,
    config: api,
    offload: config.offload,
    storeVariables: config.storeVariables,
    checkBucket: parts.checkBucket ?? (() => parts.store.check()),
    circuit: parts.circuit ?? (() => 'off'),
    authenticate: createAuthenticator(api),
    gates: createGates(api),
    signer: createUrlSigner(config.store.secretAccessKey),
    verified: createVerifiedObjects(),
    pause: createFairPause(),
    publicUrl: () => api.publicUrl ?? address ?? `http://${api.host}:${api.port}`,
  }

  const app: FastifyInstance = Fastify({
    loggerInstance: log as FastifyBaseLogger,
    // Logged below by the route's pattern: a URL may hold a signed token.
    logController: new LogController({ disableRequestLogging: true }),
    // Ours, never the client's: it is in our log, and must be one line of a known form.
    genReqId: () => randomUUID(),
    requestIdHeader: false,
    bodyLimit: api.bodyLimitBytes,
    requestTimeout: api.requestTimeoutMs,
    trustProxy: api.trustProxy > 0 && ((_address, hop) => hop < api.trustProxy),
    exposeHeadRoutes: false,
    keepAliveTimeout: 65_000,
    forceCloseConnections: 'idle',
    http: {
      maxHeaderSize: maxHeaderBytes,
      // (Of the two Node takes the longer one for both.)
      headersTimeout: Math.min(headersTimeoutMs, api.requestTimeoutMs),
      connectionsCheckingInterval: 5000,
    },
    // The router's own: parameters are ids and tokens.
    routerOptions: { maxParamLength: 2000 },
    // A request on a connection that is still open is answered; the answer closes it.
    return503OnClosing: false,
    clientErrorHandler,
    frameworkErrors: (error, request, reply) => sendError(request, reply, toApiError(error)),
  })
  app.setValidatorCompiler(validatorCompiler)
  app.setSerializerCompiler(serializerCompiler)
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/json', { parseAs: 'buffer' }, (request, body, done) => {
    try {
      done(null, parseBody(body as Buffer, request.routeOptions.config.rawMembers ?? []))
    } catch (error) {
      done(error as Error)
    }
  })

  app.server.maxConnections = api.maxConnections
  const connections = watchConnections(app.server)
  app.decorateRequest('tenantId', '' as TenantId)
  app.decorateRequest('expectedBytes', 0)
  app.decorateRequest('signed', null)
  app.decorateRequest('span', null)
  app.decorateRequest('lasting', false)
  app.setErrorHandler((error, request, reply) => {
    const found = toApiError(error)
    const { cause } = found
    if (cause instanceof ArtifactError && isDamage(cause.code)) metrics.readError(cause.code)
    logError(request, found)
    sendError(request, reply, found)
  })
  app.setNotFoundHandler((request, reply) => {
    sendError(request, reply, new ApiError(404, 'route_not_found', 'there is no such route'))
  })
  app.addHook('onRequest', (request, reply, done) => {
    // Slots, budgets, time limits and measurements all end with the answer.
    reply.raw.setMaxListeners(30)
    watchPace(request.raw, reply.raw, direction => {
      if (request.lasting) return
      // (It has no socket of its own while an earlier answer is on the connection.)
      const isAnswerable = direction === 'sending' && !reply.raw.headersSent && reply.raw.socket !== null
      if (!isAnswerable) request.raw.socket.destroy()
      else refuseBySocket(request.raw.socket, tooSlowToArrive)
    })
    done()
  })
  app.addHook('onSend', async (request, reply, payload) => {
    if (!request.lasting) endSlowReader(reply, sizeOf(reply, payload) ?? request.expectedBytes)
    // Refused before its body was read: the rest of it is of no use to anybody.
    if (reply.statusCode >= 400 && hasBody(request) && !request.raw.complete) {
      reply.header('connection', 'close')
      // Null where the body's stream was destroyed.
      if (reply.raw.socket !== null) lingerOnClose(reply.raw.socket)
      request.raw.unpipe().resume()
    }
    // What is the tenant's is nobody else's to keep; raw payloads say so themselves, in another way.
    if (!reply.hasHeader('cache-control')) reply.header('cache-control', 'private, no-store')
    if (closing) reply.header('connection', 'close')
    const parts = isInMemory(payload) ? inPieces(payload) : null
    if (parts === null) return payload
    if (request.method !== 'HEAD') reply.header('content-length', parts.length)
    return Readable.from(parts.pieces, { objectMode: false })
  })
  if (tracing !== null) {
    app.addHook('onRequest', (request, _reply, done) => {
      if (!untraced.has(request.routeOptions.url ?? ''))
        request.span = tracing.request(request.method, request.headers)
      done()
    })
  }
  app.addHook('onResponse', (request, reply, done) => {
    const route = request.routeOptions.url ?? 'none'
    request.span?.end({ route, status: reply.statusCode, tenantId: request.tenantId })
    metrics.request(route, request.method, reply.statusCode, reply.elapsedTime / 1000)
    request.log.debug(
      { method: request.method, route, status: reply.statusCode, ms: Math.round(reply.elapsedTime) },
      'request',
    )
    done()
  })

  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'pg-lighter',
        description: 'Artifacts of one tenant: store, list, read, hydrate. See docs/api.md.',
        version,
      },
      tags: [
        { name: 'artifacts', description: 'Payloads, one by one' },
        { name: 'hydrate', description: 'Rows as they were' },
        { name: 'operations', description: 'Health and metrics' },
      ],
      components: {
        securitySchemes: {
          bearer: { type: 'http', scheme: 'bearer', description: 'A JWT (AUTH_MODE=jwt) or a service key' },
          tenant: {
            type: 'apiKey',
            in: 'header',
            name: 'x-tenant-id',
            description: 'The tenant, with AUTH_MODE=service or dev',
          },
        },
      },
      security:
        api.auth.mode === 'jwt'
          ? [{ bearer: [] }]
          : api.auth.mode === 'dev'
            ? [{ tenant: [] }]
            : [{ bearer: [], tenant: [] }],
    },
    transform: input => {
      const { schema, ...rest } = jsonSchemaTransform(input)
      return { ...rest, schema: input.route.config?.open ? { ...schema, security: [] } : schema }
    },
  })
  if (api.corsOrigins.length > 0) {
    await app.register(cors, {
      origin: api.corsOrigins,
      methods: ['GET', 'HEAD', 'POST', 'DELETE'],
      allowedHeaders: [
        'authorization',
        'content-type',
        'idempotency-key',
        'if-none-match',
        'if-range',
        'range',
        'x-tenant-id',
      ],
      exposedHeaders: [
        'content-range',
        'etag',
        'ratelimit-limit',
        'ratelimit-remaining',
        'ratelimit-reset',
        'retry-after',
      ],
      maxAge: 3600,
    })
  }

  healthRoutes(app, context)
  await app.register(async scope => {
    await limitRate(scope, api)
    checkRoutes(scope, context)
  })
  if (api.auth.mode !== 'off') {
    await app.register(swaggerUi, { routePrefix: '/docs', staticCSP: docsPolicy })
    await app.register(async scope => {
      scope.addHook('onRequest', async request => {
        if (request.routeOptions.config.open) {
          // So that who has a signed URL counts against its tenant, and who makes one up against himself.
          request.signed = await context.signer.verify(memberText(request.params, 'token'))
          request.tenantId = request.signed?.tenantId ?? request.tenantId
          return
        }
        const said = memberOf(request.query, 'tenant_id')
        // With AUTH_MODE=dev a JSON body may be the first to name the tenant: it is looked at when it is there.
        if (api.auth.mode === 'dev' && hasJsonBody(request) && !namesTenant(request.headers, said)) return
        request.tenantId = await context.authenticate(request.headers, said)
        requireSameTenant(readTenant, request.tenantId, request.headers['x-tenant-id'])
        requireSameTenant(readTenant, request.tenantId, said)
      })
      scope.addHook('preValidation', async request => {
        if (request.routeOptions.config.open) return
        const said = memberOf(request.body, 'tenant_id')
        if (request.tenantId === '') request.tenantId = await context.authenticate(request.headers, said)
        requireSameTenant(readTenant, request.tenantId, said)
      })
      await limitRate(scope, api)
      const bodies = createByteBudget(api.bodyLimitBytes * 8, api.bodyLimitBytes * 4, api.bodyLimitBytes)
      scope.addHook('preParsing', async (request, reply, payload) => {
        // Raw bodies are streamed and not held.
        if (!hasJsonBody(request)) return payload
        return bodies.charge(request.tenantId, payload, listener => reply.raw.once('close', listener))
      })
      artifactWriteRoutes(scope, context)
      artifactReadRoutes(scope, context)
      hydrateRoutes(scope, context)
    })
    const { dashboard } = api
    if (dashboard !== null) {
      const { secretAccessKey: storeSecret } = config.store
      await app.register(scope => dashboardRoutes(scope, context, { ...dashboard, storeSecret }))
    }
  }

  return {
    server: app,
    listen: async () => {
      address = await app.listen({ host: api.host, port: api.port }).catch(error => {
        throw listenError(error, api.host, api.port)
      })
      log.info({ address, auth: api.auth.mode }, 'the HTTP API listens')
    },
    close: async () => {
      closing = true
      // A connection that was busy when the closing began is idle once its request is answered. One that has sent half
      // a request by now, or none, gets a moment.
      const began = performance.now()
      const timer = setInterval(() => {
        if (performance.now() - began > longestSilenceMs) connections.endIdle(0)
        else app.server.closeIdleConnections()
      }, 100)
      try {
        await app.close()
      } finally {
        clearInterval(timer)
      }
    },
    address: () => address,
  }
}

/** Of each tenant; of each address where a request speaks for none. */
async function limitRate(scope: FastifyInstance, api: ApiConfig): Promise<void> {
  if (api.rateLimit === 0) return
  await scope.register(rateLimit, {
    max: api.rateLimit,
    timeWindow: '1 minute',
    // After authentication, before the body is read.
    hook: 'preParsing',
    keyGenerator: (request: FastifyRequest) =>
      request.tenantId === '' ? `address ${request.ip}` : request.tenantId,
    cache: 20_000,
    enableDraftSpec: true,
  })
}

const hasBody = ({ headers }: FastifyRequest) =>
  headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0

const hasJsonBody = (request: FastifyRequest) => request.routeOptions.config.rawMembers !== undefined

/** Requests to the store that the API may have under way at once: as many connections its client needs. */
export function storeRequests(api: ApiConfig): number {
  const { uploadConcurrency, readConcurrency, fetchConcurrency } = api
  return uploadConcurrency * 3 + readConcurrency * 2 + hydrations(api) * fetchConcurrency + 8
}

const hydrations = (api: ApiConfig) => Math.max(2, Math.ceil(api.readConcurrency / 8))

function createGates(api: ApiConfig): ApiContext['gates'] {
  const share = (slots: number, part: number) => Math.max(1, Math.floor(slots / part))
  const { uploadConcurrency, readConcurrency } = api
  return {
    uploads: createGate(uploadConcurrency, share(uploadConcurrency, 2)),
    hydrations: createGate(hydrations(api), share(hydrations(api), 2)),
    whole: createGate(readConcurrency, share(readConcurrency, 4)),
    streams: createGate(readConcurrency, share(readConcurrency, 4)),
  }
}

const isInMemory = (payload: unknown): payload is string | Buffer =>
  typeof payload === 'string' || Buffer.isBuffer(payload)

function sizeOf(reply: FastifyReply, payload: unknown): number | null {
  const length = reply.getHeader('content-length')
  if (length !== undefined) return Number(length)
  return typeof payload === 'string' || Buffer.isBuffer(payload) ? payload.length : null
}

/** A client that takes its answer byte by byte holds what others wait for. */
function endSlowReader(reply: FastifyReply, bytes: number): void {
  const timer = setTimeout(() => reply.raw.destroy(), answerMs + (bytes / slowestBytesPerSecond) * 1000)
  timer.unref()
  reply.raw.once('close', () => clearTimeout(timer))
}

/** Names the setting that is to be changed; other errors stay what they are. */
function listenError(error: unknown, host: string, port: number): unknown {
  const advice: Record<string, string> = {
    EADDRINUSE: 'Another process listens there: stop it, or set API_PORT to another port.',
    EACCES: 'This user may not listen there: set API_PORT to a port above 1023.',
    EADDRNOTAVAIL: 'This machine has no such address: set API_HOST to one of its own.',
    ENOTFOUND: 'API_HOST is not the name of this machine: set it to one of its addresses.',
  }
  const hint = advice[memberText(error, 'code')]
  if (hint === undefined) return error
  return new LighterError(
    'api_address',
    `cannot listen on API_HOST=${host}, API_PORT=${port}: ${messageOf(error)}`,
    {
      cause: error,
      hint,
    },
  )
}

function memberText(value: unknown, name: string): string {
  const found = memberOf(value, name)
  return typeof found === 'string' ? found : ''
}

function memberOf(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null && Object.hasOwn(value, name)
    ? (value as Record<string, unknown>)[name]
    : undefined
}

/** What is not even a request: no reply object exists, the answer is written by hand. */
function clientErrorHandler(this: FastifyInstance, error: Error & { code?: string }, socket: Socket): void {
  if (error.code === 'ECONNRESET' || socket.destroyed || !socket.writable) return
  // In the middle of an answer: what was written now would be taken for a part of it.
  const { _httpMessage: answer } = socket as { _httpMessage?: { headersSent: boolean } | null }
  if (answer?.headersSent) {
    socket.destroy()
    return
  }
  refuseBySocket(
    socket,
    error.code === 'HPE_HEADER_OVERFLOW'
      ? [
          '431 Request Header Fields Too Large',
          'headers_too_large',
          `the headers are longer than ${maxHeaderBytes} bytes`,
        ]
      : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? tooSlowToArrive
        : ['400 Bad Request', 'invalid_request', 'the request is not HTTP'],
  )
}

type Refusal = [status: string, code: string, message: string]

const tooSlowToArrive: Refusal = [
  '408 Request Timeout',
  'request_timeout',
  'the request took too long to arrive',
]

/** Answers past the server, and ends the connection. */
function refuseBySocket(socket: Socket, [status, code, message]: Refusal): void {
  const body = JSON.stringify({ status: 'error', code, message, request_id: randomUUID() })
  socket.end(
    `HTTP/1.1 ${status}\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`,
    () => socket.destroy(),
  )
}
