// The dashboard's server side: who gets in, what is refused, what is told, and what happens when it is asked to retry.
import { randomUUID } from 'node:crypto'
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest'
import { appPage, loginPage } from '../../src/dashboard/pages.ts'
import { shownBytes } from '../../src/dashboard/payload.ts'
import { createSessions, sessionMs } from '../../src/dashboard/session.ts'
import { readDaemons } from '../../src/reports/daemons.ts'
import { startApi, type TestApi } from '../support/api.ts'
import { spoilHashes } from '../support/artifacts.ts'
import {
  ask,
  cookieOf,
  logIn,
  newAddress,
  openSession,
  openStream,
  sessionOf,
  setCookieOf,
  type TestSession,
} from '../support/dashboard.ts'
import {
  asJsonbText,
  drained,
  insertMessage,
  newConversation,
  rawMetadata,
  until,
  useEnvironment,
} from '../support/environment.ts'
import { mendFailingRows, writeFailingRows } from '../support/failing-rows.ts'
import { leaseRows } from '../support/queue.ts'
import { startFaultyStore } from '../support/request-fault.ts'
import { listRoutes } from '../support/routes.ts'

const key = `service-${randomUUID()}`
const otherKey = `service-${randomUUID()}`
const service = { AUTH_MODE: 'service', SERVICE_API_KEY: `${otherKey},${key}`, OFFLOAD_MAX_ATTEMPTS: '1' }
const behindProxy = { ...service, API_TRUST_PROXY: '1' }
const jwt = { AUTH_MODE: 'jwt', JWT_SECRET: randomUUID() + randomUUID() }
const noSession = { AUTH_MODE: 'dev' }

const environment = await useEnvironment()
let api: TestApi
let session: TestSession
const lines: Record<string, unknown>[] = []
const started: TestApi[] = []

beforeAll(async () => {
  api = await start(behindProxy, { worker: true, log: line => lines.push(line) })
  session = await openSession(api, key)
})
afterEach(() => {
  vi.useRealTimers()
})
afterAll(async () => {
  await Promise.all(started.map(each => each.daemon.stop()))
})

async function start(
  env: Record<string, string>,
  options: Omit<NonNullable<Parameters<typeof startApi>[1]>, 'env'> = {},
): Promise<TestApi> {
  const fresh = await startApi(environment, { worker: false, ...options, env })
  started.push(fresh)
  return fresh
}

const answered = async (promise: ReturnType<typeof ask>) => {
  const { status, json } = await promise
  return [status, json?.code]
}

/** An offloaded row with its artifact. */
async function offload(metadata: string) {
  const { tenantId, conversationId } = await newConversation(environment)
  const rowId = await insertMessage(environment, conversationId, metadata)
  await drained(environment)
  const { rows } = await environment.admin.query<{ id: string; source_id: number; r2_key: string }>(
    'select id, source_id, r2_key from artifact_refs where row_id = $1 order by field nulls last',
    [rowId],
  )
  const [artifact] = rows
  if (artifact === undefined) throw new Error('nothing was offloaded')
  return { tenantId, rowId, id: artifact.id, sourceId: artifact.source_id, objectKey: artifact.r2_key }
}

const open = [
  'GET /dashboard',
  'POST /dashboard/login',
  ...['app', 'charts', 'dom', 'failures', 'feed', 'format', 'json-text', 'lookup', 'overview', 'queue'].map(
    name => `GET /dashboard/assets/${name}.js`,
  ),
  ...[
    'request.js',
    'storage.js',
    'sweeps.js',
    'table.js',
    'theme.js',
    'uplot.js',
    'uplot.css',
    'style.css',
  ].map(name => `GET /dashboard/assets/${name}`),
  'GET /dashboard/assets/icon.svg',
]
const guarded = [
  'GET /dashboard/artifact',
  'GET /dashboard/live',
  'GET /dashboard/row',
  'GET /dashboard/sources',
  'POST /dashboard/download',
  'POST /dashboard/logout',
  'POST /dashboard/payload',
  'POST /dashboard/retry',
]
const parts = (route: string) => route.split(' ') as [string, string]

describe('where it is served', () => {
  test.each<[string, Record<string, string>]>([
    ['AUTH_MODE is not set', { AUTH_MODE: '' }],
    ['DASHBOARD is off', { ...service, DASHBOARD: 'off' }],
  ])('not at all when %s', async (_why, env) => {
    const routes = await listRoutes(environment, env)
    expect(routes.filter(route => route.includes('/dashboard'))).toEqual([])
  })

  test('not at all with --no-dashboard, while the API is', async () => {
    const without = await start(service, { dashboard: false })
    expect(await answered(ask(without, 'GET', '/dashboard'))).toEqual([404, 'route_not_found'])
    expect((await ask(without, 'GET', '/healthz')).status).toBe(200)
  })

  test('these routes and no others', async () => {
    const routes = await listRoutes(environment, service)
    expect(routes.filter(route => route.includes('/dashboard'))).toEqual([...open, ...guarded].sort())
  })

  test('the OpenAPI document says nothing of it', async () => {
    const { json } = await ask(api, 'GET', '/docs/json')
    expect(Object.keys(json.paths).filter(path => path.includes('dashboard'))).toEqual([])
  })

  test('without a service key nobody gets in, and the page says what to set', async () => {
    const keyless = await start(jwt)
    const page = await ask(keyless, 'GET', '/dashboard')
    expect([page.status, page.text.includes('set SERVICE_API_KEY'), page.text.includes('<form')]).toEqual([
      403,
      true,
      false,
    ])
    expect((await logIn(keyless, '')).status).toBe(401)
    // Nor with a session as AUTH_MODE=dev gives to anybody.
    const { token } = await createSessions([], environment.env.R2_SECRET_ACCESS_KEY ?? '').beginOpen()
    const page2 = await ask(keyless, 'GET', '/dashboard', { headers: { cookie: `lighter_session=${token}` } })
    expect(page2.status).toBe(403)
    expect(
      await answered(
        ask(keyless, 'GET', '/dashboard/row', { headers: { cookie: `lighter_session=${token}` } }),
      ),
    ).toEqual([401, 'session_needed'])
  })

  test('with AUTH_MODE=dev anybody on this machine gets in, by a loopback name only', async () => {
    const dev = await start(noSession)
    const anybody = await sessionOf(dev, '')
    expect((await anybody.get('/dashboard/sources')).status).toBe(200)
    expect((await anybody.post('/dashboard/retry', { all: true })).json).toMatchObject({ retried: 0 })
    for (const [method, path] of [...open, ...guarded].map(parts)) {
      const answer = await ask(dev, method, path, {
        headers: { host: 'rebound.example', cookie: anybody.cookie, 'x-csrf-token': anybody.csrfToken },
      })
      expect([path, answer.status]).toEqual([path, 403])
    }
  })

  test('with AUTH_MODE=dev and a service key, that is asked for', async () => {
    const dev = await start({ ...noSession, SERVICE_API_KEY: key })
    expect((await ask(dev, 'GET', '/dashboard')).text).toContain('Service key')
    expect(await answered(ask(dev, 'GET', '/dashboard/row'))).toEqual([401, 'session_needed'])
    await openSession(dev, key)
  })
})

describe('signing in', () => {
  test('any of the keys begins a session, in a cookie that scripts and other sites can not use', async () => {
    for (const each of [key, otherKey, ` ${key} `]) {
      const answer = await logIn(api, each)
      expect([answer.status, answer.headers.get('location'), answer.text]).toEqual([303, '../dashboard', ''])
      expect(setCookieOf(answer)).toMatch(
        /^lighter_session=[\w.-]+; Path=\/dashboard; Expires=[^;]+ GMT; HttpOnly; SameSite=Strict$/,
      )
      const page = await ask(api, 'GET', '/dashboard', { headers: { cookie: cookieOf(answer) } })
      expect([page.status, page.text.includes('id="overview"')]).toEqual([200, true])
    }
  })

  test.each<[string, Record<string, string>, Record<string, string>, RegExp]>([
    [
      'API_PUBLIC_URL is https',
      { API_PUBLIC_URL: 'https://example.com' },
      { 'sec-fetch-site': 'same-origin' },
      /^__Secure-lighter_session=.*; Path=\/dashboard; .*HttpOnly; Secure; SameSite=Strict$/,
    ],
    [
      'a trusted proxy says so',
      { API_TRUST_PROXY: '1' },
      { 'x-forwarded-proto': 'https' },
      /^__Secure-lighter_session=.*; Secure;/,
    ],
    [
      'the proxy has it under a path',
      { API_PUBLIC_URL: 'https://example.com/lighter/' },
      { origin: 'https://example.com' },
      /; Path=\/lighter\/dashboard; .*Secure;/,
    ],
    ['nobody is trusted to say so', {}, { 'x-forwarded-proto': 'https' }, /^lighter_session=((?!Secure).)*$/],
  ])('the cookie when %s', async (_why, env, headers, expected) => {
    const behind = await start({ ...service, ...env })
    const answer = await logIn(behind, key, headers)
    expect(answer.status).toBe(303)
    expect(setCookieOf(answer)).toMatch(expected)
    const page = await ask(behind, 'GET', '/dashboard', { headers: { ...headers, cookie: cookieOf(answer) } })
    expect(page.text).toContain('id="overview"')
  })

  test('what is no key begins none, and the log tells of it without the key', async () => {
    lines.length = 0
    for (const wrong of ['', 'x', `${key}x`, key.slice(0, -1), `${key},${otherKey}`, 'k'.repeat(4000)]) {
      const fresh = await start(service, { log: line => lines.push(line) })
      const answer = await logIn(fresh, wrong)
      expect([answer.status, setCookieOf(answer)]).toEqual([401, ''])
      expect(answer.text).toContain('That is not a service key.')
    }
    expect(lines.filter(line => /key that is none/.test(String(line.msg)))).toHaveLength(6)
    expect(JSON.stringify(lines)).not.toContain(key.slice(0, -1))
  })

  test('a key in the URL is not looked at', async () => {
    const page = await ask(api, 'GET', `/dashboard?key=${key}`)
    expect([setCookieOf(page), page.text.includes('<form method="post"')]).toEqual(['', true])
    const posted = await ask(api, 'POST', `/dashboard/login?key=${key}`, {
      headers: { origin: api.url, 'content-type': 'application/x-www-form-urlencoded' },
      body: 'key=',
    })
    expect(posted.status).toBe(401)
  })

  test('a session that was brought along is not taken up: there is a new one each time', async () => {
    const first = cookieOf(await logIn(api, key))
    const second = cookieOf(await logIn(api, key, { cookie: first }))
    expect(second).not.toBe(first)
    expect(second).toContain('lighter_session=')
  })

  test('one address has ten tries a minute', async () => {
    const fresh = await start(service)
    for (let i = 0; i < 10; i++) expect((await logIn(fresh, 'wrong')).status).toBe(401)
    const answer = await logIn(fresh, key)
    expect([answer.status, setCookieOf(answer)]).toEqual([429, ''])
    expect(answer.headers.get('content-type')).toContain('text/html')
    expect(answer.headers.get('retry-after')).toMatch(/^\d+$/)
    // Who is in stays in.
    expect((await ask(fresh, 'GET', '/dashboard', { headers: { cookie: session.cookie } })).text).toContain(
      'id="overview"',
    )
  })

  test('it says only that it redirects to itself, whatever it is asked', async () => {
    const answer = await ask(
      api,
      'POST',
      '/dashboard/login?next=https://evil.example&return=//evil.example',
      {
        headers: {
          origin: api.url,
          'content-type': 'application/x-www-form-urlencoded',
          'x-forwarded-host': 'evil.example',
        },
        body: new URLSearchParams({ key, next: 'https://evil.example' }).toString(),
      },
    )
    expect([answer.status, answer.headers.get('location')]).toEqual([303, '../dashboard'])
  })

  test('signing out takes the cookie away', async () => {
    const mine = await openSession(api, key)
    const answer = await mine.post('/dashboard/logout')
    expect(setCookieOf(answer)).toMatch(
      /^lighter_session=; Max-Age=0; Path=\/dashboard; Expires=Thu, 01 Jan 1970/,
    )
  })
})

describe('without a session', () => {
  const secret = () => environment.env.R2_SECRET_ACCESS_KEY ?? ''
  test.each<[string, () => Promise<Record<string, string>>]>([
    ['nothing', async () => ({})],
    ['the service key as a bearer token', async () => ({ authorization: `Bearer ${key}` })],
    ['an empty cookie', async () => ({ cookie: 'lighter_session=' })],
    ['a cookie that is no token', async () => ({ cookie: `lighter_session=${key}` })],
    [
      'a token of another key',
      async () => ({
        cookie: `lighter_session=${(await createSessions(['k'.repeat(32)], secret()).begin('k'.repeat(32)))?.token}`,
      }),
    ],
    [
      'a token of the right key, of another installation',
      async () => ({ cookie: `lighter_session=${(await createSessions([key], 'other').begin(key))?.token}` }),
    ],
    [
      'a token of sessions without a key',
      async () => ({ cookie: `lighter_session=${(await createSessions([], secret()).beginOpen()).token}` }),
    ],
    [
      'a token that has expired',
      async () => {
        vi.useFakeTimers({ toFake: ['Date'], now: Date.now() - sessionMs - 60_000 })
        const begun = await createSessions([key], secret()).begin(key)
        vi.useRealTimers()
        return { cookie: `lighter_session=${begun?.token}` }
      },
    ],
    [
      'a token whose payload was changed',
      async () => {
        const [head, payload = '', signature] = session.cookie.split('.')
        const claims = JSON.parse(Buffer.from(payload, 'base64url').toString())
        const changed = Buffer.from(JSON.stringify({ ...claims, exp: claims.exp + 9 })).toString('base64url')
        return { cookie: `${head}.${changed}.${signature}` }
      },
    ],
  ])('all is refused: %s', async (_what, make) => {
    const headers = await make()
    for (const [method, path] of guarded.map(parts)) {
      const answer = await ask(api, method, path, { headers: { origin: api.url, ...headers } })
      expect([path, answer.status, answer.json.code]).toEqual([path, 401, 'session_needed'])
    }
    expect((await ask(api, 'GET', '/dashboard', { headers })).text).not.toContain('csrf-token')
  })

  test('a session ends with the key that began it', async () => {
    const rotated = await start({ ...service, SERVICE_API_KEY: otherKey })
    expect(
      await answered(ask(rotated, 'GET', '/dashboard/sources', { headers: { cookie: session.cookie } })),
    ).toEqual([401, 'session_needed'])
    // Of the other daemons it is good.
    const same = await start(service)
    expect(
      (await ask(same, 'GET', '/dashboard/sources', { headers: { cookie: session.cookie } })).status,
    ).toBe(200)
  })

  test('the session opens nothing but the dashboard', async () => {
    const headers = { cookie: session.cookie, 'x-tenant-id': randomUUID() }
    expect(await answered(ask(api, 'GET', '/api/storage/artifacts', { headers }))).toEqual([
      401,
      'unauthorized',
    ])
    expect(await answered(ask(api, 'GET', '/metrics', { headers }))).toEqual([401, 'unauthorized'])
  })
})

describe('requests of other pages', () => {
  const foreign: [string, Record<string, string>][] = [
    ['another site', { 'sec-fetch-site': 'cross-site', origin: 'https://evil.example' }],
    ['another port of this host', { 'sec-fetch-site': 'same-site', origin: 'http://127.0.0.1:3000' }],
    ['an old browser at another site', { origin: 'https://evil.example' }],
    ['a sandboxed frame', { origin: 'null' }],
    ['a person who typed it', { 'sec-fetch-site': 'none' }],
    ['nobody knows where', {}],
  ]

  test.each(foreign)('sign nobody in: from %s', async (_where, headers) => {
    const answer = await ask(api, 'POST', '/dashboard/login', {
      headers: { 'content-type': 'application/x-www-form-urlencoded', ...newAddress(), ...headers },
      body: new URLSearchParams({ key }).toString(),
    })
    expect([answer.status, setCookieOf(answer)]).toEqual([403, ''])
  })

  test.each(foreign)(
    'change and read nothing, though they bring cookie and token: from %s',
    async (_where, headers) => {
      for (const [, path] of guarded.map(parts).filter(([method]) => method === 'POST')) {
        const answer = await ask(api, 'POST', path, {
          headers: {
            'content-type': 'application/json',
            cookie: session.cookie,
            'x-csrf-token': session.csrfToken,
            ...headers,
          },
          body: '{"all": true}',
        })
        expect([path, answer.status, answer.json.code]).toEqual([path, 403, 'cross_origin'])
      }
    },
  )

  test('of this one need its token, not that of another session', async () => {
    const other = await openSession(api, otherKey)
    for (const [, path] of guarded.map(parts).filter(([method]) => method === 'POST')) {
      for (const token of ['', 'x', other.csrfToken, session.csrfToken.slice(0, -1)]) {
        const answer = await session.post(path, { all: true }, { 'x-csrf-token': token })
        expect([path, answer.status, answer.json.code]).toEqual([path, 403, 'cross_origin'])
      }
    }
  })

  test('may be allowed by API_CORS_ORIGINS for the API, and are not for this', async () => {
    const cors = await start({ ...service, API_CORS_ORIGINS: 'https://app.example.com' })
    const mine = await openSession(cors, key)
    const answer = await ask(cors, 'GET', '/dashboard/sources', {
      headers: { cookie: mine.cookie, origin: 'https://app.example.com' },
    })
    // Without this header no browser gives it to the page.
    expect(answer.headers.get('access-control-allow-credentials')).toBeNull()
    const preflight = await ask(cors, 'OPTIONS', '/dashboard/retry', {
      headers: {
        origin: 'https://app.example.com',
        'access-control-request-method': 'POST',
        'access-control-request-headers': 'x-csrf-token',
      },
    })
    expect(preflight.headers.get('access-control-allow-headers')).not.toContain('x-csrf-token')
  })
})

describe('answers', () => {
  test('have a strict policy and are kept by nobody, whatever they are', async () => {
    for (const [method, path] of [...open, ...guarded].map(parts)) {
      if (path === '/dashboard/live') continue
      for (const headers of [{}, { cookie: session.cookie }] as Record<string, string>[]) {
        const answer = await ask(api, method, path, { headers })
        const policy = answer.headers.get('content-security-policy') ?? ''
        expect(policy.split('; ').slice(0, 8)).toEqual([
          "default-src 'none'",
          "script-src 'self'",
          "style-src 'self'",
          "img-src 'self' data:",
          "connect-src 'self'",
          "form-action 'self'",
          "frame-ancestors 'none'",
          "base-uri 'none'",
        ])
        expect(policy).not.toContain('unsafe')
        expect(answer.headers.get('x-frame-options')).toBe('DENY')
        expect(answer.headers.get('x-content-type-options')).toBe('nosniff')
        expect(answer.headers.get('cross-origin-opener-policy')).toBe('same-origin')
        expect([path, answer.headers.get('cache-control')]).toEqual([
          path,
          path.includes('/assets/') ? 'no-cache' : 'no-store',
        ])
      }
    }
  })

  test('of assets are not sent again while they are the same', async () => {
    const first = await ask(api, 'GET', '/dashboard/assets/app.js')
    expect(first.headers.get('content-type')).toBe('text/javascript; charset=utf-8')
    const again = await ask(api, 'GET', '/dashboard/assets/app.js', {
      headers: { 'if-none-match': first.headers.get('etag') ?? '' },
    })
    expect([again.status, again.text]).toEqual([304, ''])
  })

  test('lead to no other file', async () => {
    for (const name of ['../pages.ts', '%2e%2e/pages.ts', '..%2fpages.ts', 'tsconfig.json', 'uplot.d.ts', ''])
      expect((await ask(api, 'GET', `/dashboard/assets/${name}`)).status).toBe(404)
  })

  test('are pages without scripts, styles or handlers in them, and with all holes escaped', () => {
    const evil = `"><script>alert(1)</script><img src=x onerror='alert(2)'>&`
    const pages = [
      loginPage(evil),
      appPage(
        { id: '', csrfToken: evil, expiresAt: new Date() },
        { payloads: true, version: evil, open: false },
      ),
    ]
    for (const page of pages) {
      expect(page).not.toContain('<script>')
      expect(page).not.toContain('<img src=x')
      expect(page).toContain('&quot;&gt;&lt;script&gt;')
      expect(page).not.toMatch(/<style|\sstyle=|\son[a-z]+="/)
      for (const [script] of page.matchAll(/<script[^>]*>/g))
        expect(script).toMatch(/ src="dashboard\/assets\//)
    }
  })
})

describe('live figures', () => {
  test('come at once, large and small, and then again and again', async () => {
    const stream = await openStream(api, session)
    try {
      const [slow, fast] = await Promise.all([stream.next('slow'), stream.next('fast')])
      expect(Object.keys(slow).sort()).toEqual(
        [
          'at',
          'damaged',
          'days',
          'hours',
          'kinds',
          'packs',
          'retention_due',
          'savings',
          'sweeps',
          'tables',
          'tenant_count',
          'tenants',
        ].sort(),
      )
      expect(fast.queue).toMatchObject([{ source: 'conversation_messages', depth: 0 }])
      expect(slow.savings.verdict).toEqual({
        pays: null,
        text: 'Nothing is offloaded yet, so nothing is saved.',
      })
      const later = await stream.next('fast')
      expect(Date.parse(later.at)).toBeGreaterThan(Date.parse(fast.at))
    } finally {
      stream.close()
    }
  })

  test('tell of what was offloaded, in rows, bytes and latency', async () => {
    const stream = await openStream(api, session)
    try {
      const before = (await stream.next('fast')).totals
      const { tenantId } = await offload('{"tool_interactions": [{"n": 1}], "model": "m"}')
      for (;;) {
        const { totals, recent, moments } = await stream.next('fast')
        if (totals.artifacts === before.artifacts) continue
        expect(totals).toMatchObject({
          artifacts: before.artifacts + 1,
          payload_bytes: before.payload_bytes + 10,
        })
        expect(recent.at(-1)).toMatchObject({ queue: 'live', rows: expect.any(Number) })
        expect(moments.at(-1)).toMatchObject({ depth: 0, oldest_seconds: null })
        break
      }
      const fresh = await openStream(await start(service), session)
      const { tenants, kinds } = await fresh.next('slow')
      fresh.close()
      expect(tenants).toContainEqual(
        expect.objectContaining({
          tenant_id: tenantId,
          kinds: { assistant_message_tool_interactions: 10 },
        }),
      )
      expect(kinds).toMatchObject([{ kind: 'assistant_message_tool_interactions' }])
    } finally {
      stream.close()
    }
  })

  test('are read once for all who watch', async () => {
    const others = [await openSession(api, key), await openSession(api, otherKey)]
    const streams = await Promise.all([session, session, ...others].map(each => openStream(api, each)))
    try {
      for (const stream of streams) await stream.next('fast')
      const seen = await Promise.all(streams.map(async stream => (await stream.next('fast')).at))
      expect(new Set(seen).size).toBe(1)
    } finally {
      for (const stream of streams) stream.close()
    }
  })

  test('have four viewers of a session at most, and places come free again', async () => {
    const mine = await openSession(api, key)
    const streams = await Promise.all([1, 2, 3, 4].map(() => openStream(api, mine)))
    expect(streams.map(stream => stream.status)).toEqual([200, 200, 200, 200])
    expect(await answered(mine.get('/dashboard/live'))).toEqual([503, 'too_many_viewers'])
    for (const stream of streams) stream.close()
    await until(async () => {
      const again = await openStream(api, mine)
      again.close()
      return again.status === 200
    }, 'a place is free')
  })

  test('have fifty viewers in all', async () => {
    const fresh = await start(service)
    const streams = []
    for (let i = 0; i < 13; i++) {
      const mine = await openSession(await Promise.resolve(api), i % 2 === 0 ? key : otherKey).catch(
        () => session,
      )
      streams.push(...(await Promise.all([1, 2, 3, 4].map(() => openStream(fresh, mine)))))
    }
    expect(streams.filter(stream => stream.status === 200).length).toBeLessThanOrEqual(50)
    expect(streams.at(-1)?.status).toBe(503)
    for (const stream of streams) stream.close()
  })

  test('end when the daemon stops, which they do not hold up', async () => {
    const fresh = await start(service)
    const mine = await openSession(fresh, key)
    const stream = await openStream(fresh, mine)
    await stream.next('fast')
    // With its whole deadline left, so that nothing was broken off.
    expect(await fresh.daemon.stop(60_000)).toBe(true)
    await stream.ended
  })

  test('say that there are none when the database is gone, and go on when it is back', async () => {
    const fresh = await start(service)
    const stream = await openStream(fresh, await openSession(fresh, key))
    try {
      await stream.next('fast')
      await environment.admin.query('alter view lighter.queue_health rename to queue_health_away')
      expect(await stream.next('trouble')).toEqual({ message: 'The database does not answer.' })
      await environment.admin.query('alter view lighter.queue_health_away rename to queue_health')
      await stream.next('fast')
    } finally {
      stream.close()
    }
  })
})

describe('daemons', () => {
  const daemons = () => readDaemons(environment.worker)
  /** All daemons of these tests are in one process: told apart by when they began. */
  const states = async () => (await daemons()).map(daemon => daemon.state).sort()

  test('are seen with what they do, and not when they have stopped', async () => {
    await until(async () => (await states()).includes('asleep'), 'the worker sleeps')
    const before = (await daemons()).length
    const fresh = await start(service)
    await until(async () => (await daemons()).length === before + 1, 'it is seen')
    await until(
      async () => (await states()).filter(state => state === 'api').length > 0,
      'it says what it does',
    )
    expect((await daemons())[0]).toMatchObject({
      place: expect.stringMatching(new RegExp(`:${process.pid}$`)),
      version: expect.stringMatching(/^\d+\.\d+\.\d+/),
      silent: false,
      connected_at: expect.stringMatching(/^\d{4}-/),
    })
    await fresh.daemon.stop()
    await until(async () => (await daemons()).length === before, 'it is not seen any more')
  })

  test('pause while the store is in trouble, and say so', async () => {
    const faulty = await startFaultyStore(environment.env.R2_ENDPOINT ?? '')
    const worker = await start({ ...service, R2_ENDPOINT: faulty.endpoint }, { worker: true })
    // The other worker must not take the job.
    const [other] = started
    await other?.daemon.stop()
    try {
      const { conversationId } = await newConversation(environment)
      faulty.fault = method => (method === 'PUT' ? 503 : null)
      const id = await insertMessage(environment, conversationId, '{"tool_interactions": [1]}')
      await until(async () => (await states()).includes('paused'), 'it pauses')
      faulty.fault = () => null
      await until(
        async () => (await rawMetadata(environment, id))?.includes('_ref') === true,
        'it goes on',
        60_000,
      )
      await until(async () => !(await states()).includes('paused'), 'it says so')
    } finally {
      await worker.daemon.stop()
      await faulty.close()
      api = await start(behindProxy, { worker: true, log: line => lines.push(line) })
      session = await openSession(api, key)
    }
  })
})

describe('looking up', () => {
  const big = JSON.stringify({ tool_interactions: [{ secret: 'S'.repeat(100) }], trace: 'T'.repeat(9000) })

  test('a row that is queued: where it is, how often it failed, and why', async () => {
    const { rowId, sourceId } = await offload('{"tool_interactions": [1]}')
    const job = async () =>
      (await session.get(`/dashboard/row?source_id=${sourceId}&row_id=${rowId}`)).json.row.job
    await environment.admin.query(
      `insert into lighter.waiting (source_id, row_id, attempts, available_at, last_error) values ($1, $2, 2, now() + interval '1 hour', 'no answer')`,
      [sourceId, rowId],
    )
    expect(await job()).toMatchObject({ place: 'waiting', attempts: 2, last_error: 'no answer' })
    await environment.admin.query('delete from lighter.waiting')
    const { id } = await leaseRows(environment.admin, Number(sourceId), [rowId], { attempts: 3, error: 'x' })
    expect(await job()).toMatchObject({
      place: 'lease',
      attempts: 2,
      last_error: 'x',
      available_at: expect.stringMatching(/^\d{4}-/),
    })
    await environment.admin.query('delete from lighter.leases where id = $1', [id])
    expect(await job()).toBeNull()
  })

  test('a row: its pointers, and where and how what they point to is; nothing of the payload', async () => {
    const { rowId, sourceId, tenantId } = await offload(big)
    const answer = await session.get(`/dashboard/row?source_id=${sourceId}&row_id=${rowId.toUpperCase()}`)
    expect(answer.status).toBe(200)
    expect(answer.json.row).toMatchObject({
      source: 'public.conversation_messages',
      column: 'metadata',
      row_id: rowId,
      tenant_id: tenantId,
      job: null,
      dead_letter: null,
    })
    const pointers = new Map<string, Record<string, unknown>>(
      answer.json.row.pointers.map((p: { name: string; artifact: object }) => [p.name, p.artifact]),
    )
    expect([...pointers.keys()]).toEqual(['artifact_metadata_ref', 'tool_interactions_ref'])
    expect(pointers.get('tool_interactions_ref')).toMatchObject({
      tenant_id: tenantId,
      kind: 'assistant_message_tool_interactions',
      field: 'tool_interactions',
      row_id: rowId,
      state: 'live',
      r2_key: expect.stringContaining(`tenants/${tenantId}/`),
      object: { state: 'stored', artifacts: 1, live_artifacts: 1 },
      retention: 'standard plan, kept for ever',
    })
    expect(answer.text).not.toMatch(/SSSS|TTTT/)
  })

  test('an artifact, by its id alone and within a tenant', async () => {
    const { id, tenantId } = await offload(big)
    for (const query of [`id=${id}`, `id=${id.toUpperCase()}&tenant_id=${tenantId}`])
      expect((await session.get(`/dashboard/artifact?${query}`)).json.artifact).toMatchObject({
        id,
        tenant_id: tenantId,
      })
    expect(await answered(session.get(`/dashboard/artifact?id=${id}&tenant_id=${randomUUID()}`))).toEqual([
      404,
      'artifact_not_found',
    ])
  })

  test('what is deleted, damaged, or pointed to and not there', async () => {
    const { id, tenantId, rowId, sourceId } = await offload(big)
    const state = async () => (await session.get(`/dashboard/artifact?id=${id}`)).json.artifact
    await environment.admin.query(
      `update artifact_refs set damaged_at = now(), damage = 'sha256' where id = $1`,
      [id],
    )
    expect(await state()).toMatchObject({ state: 'damaged', damage: 'sha256' })
    await environment.admin.query(
      `update artifact_refs set deleted_at = now(), deleted_reason = 'deleted' where id = $1`,
      [id],
    )
    expect(await state()).toMatchObject({ state: 'deleted', deleted_reason: 'deleted' })
    expect(await answered(session.post('/dashboard/payload', { tenant_id: tenantId, id }))).toEqual([
      410,
      'artifact_gone',
    ])
    await environment.admin.query('delete from artifact_refs where id = $1', [id])
    const { pointers } = (await session.get(`/dashboard/row?source_id=${sourceId}&row_id=${rowId}`)).json.row
    expect(pointers.find((p: { artifact_id: string }) => p.artifact_id === id)).toMatchObject({
      artifact: null,
    })
  })

  test("a pointer to another tenant's artifact leads nowhere", async () => {
    const theirs = await offload(big)
    const { rowId, sourceId } = await offload(big)
    await environment.admin.query(
      `update conversation_messages set metadata = jsonb_build_object('tool_interactions_ref', $2::text) where id = $1`,
      [rowId, theirs.id],
    )
    const { pointers } = (await session.get(`/dashboard/row?source_id=${sourceId}&row_id=${rowId}`)).json.row
    expect(pointers).toEqual([{ name: 'tool_interactions_ref', artifact_id: theirs.id, artifact: null }])
    expect(
      await answered(session.post('/dashboard/payload', { source_id: sourceId, row_id: rowId })),
    ).toEqual([404, 'artifact_not_found'])
  })

  test.each<[string, number, string]>([
    ['row?source_id=1&row_id=x', 400, 'invalid_request'],
    [`row?source_id=1&row_id=${encodeURIComponent("' or 1=1 --")}`, 400, 'invalid_request'],
    [`row?source_id=1&row_id=${randomUUID()}`, 404, 'row_not_found'],
    [`row?source_id=99&row_id=${randomUUID()}`, 404, 'source_not_found'],
    ['row?source_id=1', 400, 'invalid_request'],
    [`row?source_id=1%3Bdrop&row_id=${randomUUID()}`, 400, 'invalid_request'],
    ['artifact?id=x', 400, 'invalid_request'],
    [`artifact?id=${randomUUID()}`, 404, 'artifact_not_found'],
    [`artifact?id=${randomUUID()}&tenant_id=x`, 400, 'invalid_request'],
  ])('%s is %d %s', async (path, status, code) => {
    expect(await answered(session.get(`/dashboard/${path}`))).toEqual([status, code])
  })
})

describe('payloads', () => {
  const exact =
    '{"tool_interactions": [12345678901234567890.5, 1e400, "<script>alert(1)</script>"], "n": 1.10}'

  test('are shown as they are stored, digit for digit, and the log says to whom and not what', async () => {
    const { id, tenantId, rowId, sourceId } = await offload(exact)
    lines.length = 0
    const artifact = await session.post('/dashboard/payload', { tenant_id: tenantId, id })
    expect(artifact.json.payload).toEqual({
      text: await asJsonbText(environment, '[12345678901234567890.5, 1e400, "<script>alert(1)</script>"]'),
      bytes: artifact.json.payload.text.length,
      truncated: false,
    })
    expect(artifact.headers.get('content-type')).toBe('application/json; charset=utf-8')
    const row = await session.post('/dashboard/payload', { source_id: sourceId, row_id: rowId })
    expect(row.json.payload.text).toBe(await asJsonbText(environment, exact))
    const asked = lines.filter(line => line.msg === 'a payload was asked for from the dashboard')
    expect(asked).toMatchObject([
      { tenant_id: tenantId, id, address: '127.0.0.1', session: expect.stringMatching(/^[0-9a-f-]{36}$/) },
      { source_id: sourceId, row_id: rowId },
    ])
    expect(JSON.stringify(lines)).not.toContain('alert(1)')
    expect(JSON.stringify(lines)).not.toContain('12345678901234567890')
  })

  test.each([
    ['held whole', 64 * 1024 * 1024],
    ['streamed', 65_536],
  ])('of great length are cut at a character, and downloaded whole: %s', async (_how, threshold) => {
    const fresh = await start({ ...service, STREAM_THRESHOLD_BYTES: String(threshold) })
    const mine = await openSession(fresh, key)
    const text = `"${'é'.repeat(shownBytes)}"`
    const { id, tenantId } = await offload(`{"tool_interactions": [${text}]}`)
    const { payload } = (await mine.post('/dashboard/payload', { tenant_id: tenantId, id })).json
    expect(payload).toMatchObject({ bytes: shownBytes * 2 + 4, truncated: true })
    expect(payload.text).toBe(`["${'é'.repeat((shownBytes - 2) / 2)}`)
    const { path } = (await mine.post('/dashboard/download', { tenant_id: tenantId, id })).json
    expect(path).toMatch(/^api\/storage\/signed\/[\w.-]+$/)
    const whole = await ask(fresh, 'GET', `/${path}`)
    expect(whole.text).toBe(`[${text}]`)
    expect(whole.headers.get('content-security-policy')).toBe("default-src 'none'; sandbox")
  })

  test('that are no text are not shown', async () => {
    const tenantId = randomUUID()
    for (const [bytes, text] of [
      [new Uint8Array([0xff, 0xfe, 1, 2]), null],
      [new TextEncoder().encode('a\0b'), null],
      [new TextEncoder().encode('<svg onload=alert(1)>'), '<svg onload=alert(1)>'],
    ] as const) {
      const stored = await api.call(tenantId, 'POST', '/api/storage/artifacts/raw?kind=attachment', {
        body: bytes,
        headers: { authorization: `Bearer ${key}`, 'content-type': 'image/svg+xml' },
      })
      const { id } = stored.json.artifact
      const { payload } = (await session.post('/dashboard/payload', { tenant_id: tenantId, id })).json
      expect(payload.text).toBe(text)
      const { path } = (await session.post('/dashboard/download', { tenant_id: tenantId, id })).json
      expect((await ask(api, 'GET', `/${path}`)).headers.get('content-disposition')).toBe(
        `attachment; filename="${id}"`,
      )
    }
  })

  test('that are damaged are an error and never shown', async () => {
    const { id, tenantId, rowId, sourceId } = await offload('{"tool_interactions": [{"DAMAGE": 1}]}')
    await spoilHashes(environment.admin, 'id = $1', [id])
    for (const what of [
      { tenant_id: tenantId, id },
      { source_id: sourceId, row_id: rowId },
    ]) {
      const answer = await session.post('/dashboard/payload', what)
      expect([answer.status, answer.json.code]).toEqual([502, 'artifact_corrupt'])
      expect(answer.text).not.toContain('DAMAGE')
    }
  })

  test("of one tenant are not to be had under another's name", async () => {
    const { id } = await offload(exact)
    for (const path of ['payload', 'download'])
      expect(await answered(session.post(`/dashboard/${path}`, { tenant_id: randomUUID(), id }))).toEqual([
        404,
        'artifact_not_found',
      ])
  })

  test('are not shown where the key does not read them elsewhere, unless that is said', async () => {
    const { id, tenantId, rowId, sourceId } = await offload(exact)
    for (const [env, expected] of [
      [{ ...jwt, SERVICE_API_KEY: key }, [403, 'payloads_not_allowed']],
      [{ ...service, DASHBOARD_PAYLOADS: 'off' }, [403, 'payloads_not_allowed']],
      [{ ...jwt, SERVICE_API_KEY: key, DASHBOARD_PAYLOADS: 'on' }, [200, undefined]],
    ] as const) {
      const fresh = await start(env)
      const mine = await openSession(fresh, key)
      expect(await answered(mine.post('/dashboard/payload', { tenant_id: tenantId, id }))).toEqual(expected)
      expect(await answered(mine.post('/dashboard/payload', { source_id: sourceId, row_id: rowId }))).toEqual(
        expected,
      )
      expect(await answered(mine.post('/dashboard/download', { tenant_id: tenantId, id }))).toEqual(expected)
      // Where it is and how it is may be known.
      expect((await mine.get(`/dashboard/artifact?id=${id}`)).status).toBe(200)
      const page = await mine.get('/dashboard')
      expect(page.text).toContain(`name="payloads" content="${expected[0] === 200 ? 'on' : 'off'}"`)
    }
  })
})

describe('retrying', () => {
  test('one, then all: they are in the queue again, and the answer says how many', async () => {
    const ids = await writeFailingRows(environment, 3)
    const stream = await openStream(api, session)
    const { failures } = await stream.next('fast')
    stream.close()
    const shown = failures.find((f: { row_id: string }) => f.row_id === ids[0])
    expect(shown).toMatchObject({
      source: 'conversation_messages',
      attempts: 1,
      last_error: expect.stringContaining('no tenant'),
    })
    await mendFailingRows(environment)
    lines.length = 0
    const one = { source_id: shown.source_id, row_id: ids[0] }
    expect((await session.post('/dashboard/retry', one)).json).toEqual({ status: 'ok', retried: 1 })
    await until(
      async () => (await rawMetadata(environment, ids[0] ?? ''))?.includes('_ref') === true,
      'it is offloaded',
    )
    expect(await rawMetadata(environment, ids[1] ?? '')).not.toContain('_ref')
    // It is none any more.
    expect((await session.post('/dashboard/retry', one)).json).toEqual({ status: 'ok', retried: 0 })
    expect((await session.post('/dashboard/retry', { all: true })).json).toEqual({ status: 'ok', retried: 2 })
    await drained(environment)
    for (const id of ids) expect(await rawMetadata(environment, id)).toContain('tool_interactions_ref')
    expect(lines.filter(line => line.msg === 'dead letters were retried from the dashboard')).toMatchObject([
      { row_id: ids[0], retried: 1 },
      { row_id: ids[0], retried: 0 },
      { row_id: null, retried: 2 },
    ])
  })

  test('while somebody holds the row is told as that, and changes nothing', async () => {
    const [id = ''] = await writeFailingRows(environment, 1)
    const holder = await environment.admin.connect()
    try {
      await holder.query('begin')
      await holder.query('select from lighter.failed_jobs where row_id = $1 for update', [id])
      expect(await answered(session.post('/dashboard/retry', { all: true }))).toEqual([409, 'retry_busy'])
    } finally {
      await holder.query('rollback')
      holder.release()
    }
    const { rows } = await environment.admin.query('select from lighter.failed_jobs where row_id = $1', [id])
    expect(rows).toHaveLength(1)
  })

  test.each([{}, { all: false }, { row_id: 'x' }, { source_id: 1 }, { source_id: 1, row_id: '' }])(
    'of %j is no request',
    async body => {
      expect(await answered(session.post('/dashboard/retry', body))).toEqual([400, 'invalid_request'])
    },
  )
})
