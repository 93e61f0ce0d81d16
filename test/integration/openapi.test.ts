// docs/api.md and the OpenAPI document against the server: every example is run, every route is in all three.
import { execFile, execFileSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { promisify } from 'node:util'
import { Validator } from '@seriousme/openapi-schema-validator'
import { SignJWT } from 'jose'
import { pino } from 'pino'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { z } from 'zod'
import { createApi } from '../../src/api/server.ts'
import { createMetrics } from '../../src/telemetry/metrics.ts'
import { type Answer, startApi, type TestApi } from '../support/api.ts'
import { blocksOf, readDoc } from '../support/doc-blocks.ts'
import { useEnvironment } from '../support/environment.ts'

const markdown = readDoc('api.md')
const blocks = blocksOf(markdown)
const secret = randomUUID() + randomUUID()
const serviceKey = `service-${randomUUID()}`
const tenant = randomUUID()

// A type, not an interface: the validator wants an index signature.
type OpenApi = {
  openapi: string
  paths: Record<string, Record<string, Operation>>
}
interface Operation {
  security?: unknown[]
  requestBody?: unknown
  responses: Record<string, { content?: Record<string, { schema: Record<string, unknown> }> }>
}

const environment = await useEnvironment()
let api: TestApi
let document: OpenApi
let token: string

beforeAll(async () => {
  // As docs/api.md sets it up for Supabase, with the legacy secret.
  api = await startApi(environment, {
    worker: false,
    env: {
      AUTH_MODE: 'jwt',
      JWT_SECRET: secret,
      JWT_AUDIENCE: 'authenticated',
      JWT_TENANT_CLAIM: 'app_metadata.tenant_id',
      SERVICE_API_KEY: serviceKey,
      API_CORS_ORIGINS: 'https://app.example.com',
    },
  })
  token = await tokenOf(tenant)
  document = (await api.call(null, 'GET', '/docs/json')).json
})
afterAll(async () => {
  vi.unstubAllEnvs()
  await api.daemon.stop()
})

function tokenOf(of: string): Promise<string> {
  return new SignJWT({ app_metadata: { tenant_id: of }, user_metadata: { tenant_id: randomUUID() } })
    .setProtectedHeader({ alg: 'HS256' })
    .setAudience('authenticated')
    .setExpirationTime('5m')
    .sign(Buffer.from(secret))
}

const call = (method: string, path: string, options: Parameters<TestApi['call']>[3] = {}) =>
  api.call(null, method, path, {
    ...options,
    headers: { authorization: `Bearer ${token}`, ...options.headers },
  })

describe('the examples of docs/api.md', () => {
  const examples = blocks.flatMap((block, i) => {
    const answer = blocks[i + 1]
    return block.info === 'sh' && answer !== undefined ? [{ ...block, answer }] : []
  })

  test.skipIf(!hasCurl())('answer as they say they do', async () => {
    // The check of the store looks at the process's own environment.
    for (const name of ['R2_ENDPOINT', 'R2_BUCKET', 'R2_ACCESS_KEY_ID', 'R2_SECRET_ACCESS_KEY']) {
      vi.stubEnv(name, environment.env[name] ?? '')
    }
    expect(examples.length).toBeGreaterThan(15)
    let artifact = ''
    for (const { text, line, answer } of examples) {
      const { stdout } = await promisify(execFile)(
        'bash',
        ['-euo', 'pipefail', '-c', text.replace(/^API=.*$/m, '')],
        {
          env: {
            PATH: process.env.PATH,
            API: api.url,
            TOKEN: token,
            ARTIFACT: artifact,
            SERVICE_API_KEY: serviceKey,
          },
        },
      )
      const where = `docs/api.md:${line}\n${stdout}`
      if (answer.info === 'http') expectHeaders(stdout, answer.text, where)
      else if (answer.info === 'json') {
        expect(JSON.parse(normalised(stdout)), where).toEqual(JSON.parse(normalised(answer.text)))
        const parsed = JSON.parse(stdout)
        // Later examples read the first artifact that was stored.
        if (artifact === '' && parsed.artifact !== undefined) artifact = parsed.artifact.id
      } else expect(stdout, where).toBe(answer.text)
    }
    expect(artifact).not.toBe('')
  })

  test('show every route', () => {
    const shown = new Set(
      [...markdown.matchAll(/^\| \[`(GET|POST|DELETE) (\/[^`]*)`\]/gm)].map(
        ([, method, path]) => `${method} ${path}`,
      ),
    )
    const documented = new Set(
      Object.entries(document.paths).flatMap(([path, operations]) =>
        Object.keys(operations).map(method => `${method.toUpperCase()} ${path.replace(/\{(\w+)\}/g, ':$1')}`),
      ),
    )
    expect([...shown].sort()).toEqual([...documented].sort())
  })
})

describe('the OpenAPI document', () => {
  test('is valid, and 3.1', async () => {
    const validator = new Validator()
    const result = await validator.validate(structuredClone(document))
    expect(result.errors ?? []).toEqual([])
    expect(result.valid).toBe(true)
    expect(document.openapi).toBe('3.1.0')
    expect(validator.version).toBe('3.1')
  })

  test.each(['jwt', 'service', 'dev'])('is valid with AUTH_MODE=%s', async mode => {
    const config = environment.config({ AUTH_MODE: mode, JWT_SECRET: secret, SERVICE_API_KEY: serviceKey })
    const { server } = await createApi({
      config,
      pool: environment.worker,
      store: environment.store,
      log: pino({ level: 'silent' }),
      metrics: createMetrics(),
    })
    const answer = await server.inject('/docs/json')
    await server.close()
    const result = await new Validator().validate(answer.json())
    expect(result.errors ?? []).toEqual([])
  })

  test('has every route of the server but the page itself', async () => {
    const config = environment.config({ AUTH_MODE: 'dev' })
    const routes: string[] = []
    const { server } = await createApi({
      config,
      pool: environment.worker,
      store: environment.store,
      log: pino({ level: 'silent' }),
      metrics: createMetrics(),
    })
    await server.ready()
    // The tree of the router is the one list of what is really served.
    const pieces: string[] = []
    for (const line of server.printRoutes({ commonPrefix: false }).split('\n')) {
      const found = /^([│ ]*)[├└]── (\S+)(?: \(([A-Z, ]+)\))?$/.exec(line)
      if (found === null) continue
      const [, indent = '', piece = '', methods] = found
      const depth = indent.length / 4
      pieces.length = depth
      pieces[depth] = piece
      const path = pieces.join('').replace(/(?<=.)\/$/, '')
      for (const method of methods?.split(', ') ?? []) routes.push(`${method} ${path}`)
    }
    await server.close()
    const inDocument = Object.entries(document.paths).flatMap(([path, operations]) =>
      Object.keys(operations).map(method => `${method.toUpperCase()} ${path.replace(/\{(\w+)\}/g, ':$1')}`),
    )
    // HEAD comes with each GET; OPTIONS is answered by the CORS plug-in.
    const served = routes.filter(
      route => /^(GET|POST|PUT|PATCH|DELETE) /.test(route) && !/ \/(docs|dashboard)/.test(route),
    )
    expect([...new Set(served)].sort()).toEqual(inDocument.sort())
    expect(inDocument.length).toBeGreaterThan(10)
  })

  test('says which routes need no credentials, and the others do', async () => {
    for (const [path, operations] of Object.entries(document.paths)) {
      for (const [method, operation] of Object.entries(operations)) {
        const answer = await api.call(null, method.toUpperCase(), path.replace(/\{\w+\}/g, randomUUID()))
        const isOpen = JSON.stringify(operation.security) === '[]'
        if (path === '/metrics') expect(answer.status).toBe(401)
        else expect([path, method, answer.status === 401]).toEqual([path, method, !isOpen])
      }
    }
  })

  test('says of every route what success is, and of every POST what it takes', () => {
    const silent: string[] = []
    for (const [path, operations] of Object.entries(document.paths)) {
      for (const [method, operation] of Object.entries(operations)) {
        if (!Object.keys(operation.responses).some(status => status.startsWith('2')))
          silent.push(`${method} ${path}: no success`)
        if (method === 'post' && operation.requestBody === undefined)
          silent.push(`${method} ${path}: no body`)
      }
    }
    expect(silent).toEqual([])
  })

  test('describes what is really answered, of success and of failure', async () => {
    const stored = await call('POST', '/api/storage/artifacts', {
      json: '{"kind": "agent_trace", "entity_type": "run", "entity_id": null, "payload": [1.10]}',
      headers: { 'idempotency-key': 'described' },
    })
    const raw = await call('POST', '/api/storage/artifacts/raw?kind=attachment', {
      body: 'bytes',
      headers: { 'content-type': 'text/plain' },
    })
    const id = stored.json.artifact.id
    const path = '/api/storage/artifacts'
    const nowhere = `${path}/${randomUUID()}`
    const answers: [string, string, Answer][] = [
      [path, 'post', stored],
      [`${path}/raw`, 'post', raw],
      [path, 'post', await call('POST', path, { json: '{"kind": "blob", "payload": 1}' })],
      [path, 'post', await call('POST', path, { json: '{"kind": "blob", ' })],
      [
        path,
        'post',
        await call('POST', path, {
          json: '{"kind": "agent_trace", "payload": 2}',
          headers: { 'idempotency-key': 'described' },
        }),
      ],
      [path, 'post', await call('POST', path, { json: '{}', headers: { authorization: '' } })],
      [path, 'post', await call('POST', path, { json: `{"tenant_id": "${randomUUID()}"}` })],
      [path, 'post', await call('POST', path, { json: `"${'x'.repeat(9_000_000)}"` })],
      [path, 'get', await call('GET', path)],
      [path, 'get', await call('GET', `${path}?limit=0`)],
      [`${path}/{id}`, 'get', await call('GET', `${path}/${id}`)],
      [`${path}/{id}`, 'get', await call('GET', `${path}/${raw.json.artifact.id}`)],
      [`${path}/{id}`, 'get', await call('GET', nowhere)],
      [`${path}/{id}/url`, 'get', await call('GET', `${path}/${id}/url`)],
      [`${path}/{id}/url`, 'get', await call('GET', `${nowhere}/url`)],
      [`${path}/{id}`, 'delete', await call('DELETE', `${path}/${id}`)],
      [`${path}/{id}`, 'delete', await call('DELETE', `${path}/${id}`)],
      [`${path}/{id}`, 'get', await call('GET', `${path}/${id}`)],
      ['/api/storage/signed/{token}', 'get', await call('GET', '/api/storage/signed/nonsense')],
      [
        '/api/storage/hydrate',
        'post',
        await call('POST', '/api/storage/hydrate', { json: '{"metadata": [1]}' }),
      ],
      [
        '/api/storage/hydrate',
        'post',
        await call('POST', '/api/storage/hydrate', { json: '{"metadata": 1}' }),
      ],
      ['/api/storage/r2/check', 'get', await call('GET', '/api/storage/r2/check')],
      ['/healthz', 'get', await call('GET', '/healthz')],
      ['/readyz', 'get', await call('GET', '/readyz')],
      ['/metrics', 'get', await call('GET', '/metrics')],
    ]
    const seen = new Set<number>()
    const faults: string[] = []
    for (const [route, method, answer] of answers) {
      seen.add(answer.status)
      const where = `${method} ${route} ${answer.status}`
      const response = document.paths[route]?.[method]?.responses[answer.status]
      const schema = response?.content?.['application/json']?.schema
      if (schema === undefined) faults.push(`${where}: not documented`)
      else {
        const checked = z.fromJSONSchema(schema).safeParse(answer.json)
        if (!checked.success) faults.push(`${where}: ${checked.error.message}`)
      }
    }
    expect(faults).toEqual([])
    expect([...seen].sort()).toEqual([200, 201, 400, 401, 403, 404, 410, 413, 422])
  })
})

describe('the page at /docs', () => {
  test('is all from here, and its policy keeps it so', async () => {
    const page = await api.call(null, 'GET', '/docs')
    expect([page.status, page.headers.get('content-type')]).toEqual([200, 'text/html; charset=utf-8'])
    const sources = [...page.text.matchAll(/(?:src|href)="([^"]+)"/g)].map(([, source = '']) => source)
    expect(sources.length).toBeGreaterThan(4)
    for (const source of sources) {
      expect(source).toMatch(/^\/docs\//)
      expect((await api.call(null, 'GET', source)).status, source).toBe(200)
    }
    const start = await api.call(null, 'GET', '/docs/static/swagger-initializer.js')
    expect(start.text).toContain('validatorUrl: null')
  })

  test('has a Content-Security-Policy that names no foreign origin', async () => {
    const page = await api.call(null, 'GET', '/docs')
    const policy = page.headers.get('content-security-policy') ?? ''
    expect(policy).toMatch(/default-src 'self'/)
    expect(policy).toMatch(/object-src 'none'/)
    const allowed = policy
      .split(';')
      .flatMap(directive => directive.trim().split(/\s+/).slice(1))
      .filter(source => source !== '')
    expect(allowed.filter(source => !/^('.*'|data:)$/.test(source))).toEqual([])
    // Over plain HTTP, as the API speaks, it would make the page ask for its own scripts over HTTPS.
    expect(policy).not.toMatch(/upgrade-insecure-requests/)
  })
})

describe('every answer', () => {
  test.each([
    ['an unknown path', 'GET', '/nowhere', [404]],
    ['an unknown method', 'PUT', '/api/storage/artifacts', [404]],
    ['a path that is no URL', 'GET', '/api/storage/artifacts/%zz', [400]],
    ['a token that is too long', 'GET', `/api/storage/signed/${'a'.repeat(3000)}`, [404, 414]],
  ])('that is an error has the documented form: %s', async (_, method, path, statuses) => {
    const answer = await call(method, path)
    expect(statuses).toContain(answer.status)
    expect(answer.json).toMatchObject({ status: 'error', request_id: expect.any(String) })
    expect(markdown).toContain(`\`${answer.json.code}\``)
  })

  test.each(['/api/storage/artifacts', '/api/storage/r2/check'])(
    'with data of a tenant may not be kept by caches: %s',
    async path => {
      expect((await call('GET', path)).headers.get('cache-control')).toMatch(/no-store/)
    },
  )

  test('to HEAD says what GET would, of the raw form its length included', async () => {
    const stored = await call('POST', '/api/storage/artifacts', {
      json: '{"kind": "agent_trace", "payload": "twelve char"}',
    })
    for (const suffix of ['?raw=1', '']) {
      const path = `/api/storage/artifacts/${stored.json.artifact.id}${suffix}`
      const get = await call('GET', path)
      const head = await call('HEAD', path)
      expect(head.status).toBe(200)
      // How long the JSON form would be is not known before its payload was read.
      const names = ['content-type', 'etag', ...(suffix === '' ? [] : ['content-length'])]
      for (const name of names)
        expect([suffix, name, head.headers.get(name)]).toEqual([suffix, name, get.headers.get(name)])
    }
  })

  test('too many requests of a tenant are told when to come back, and no other tenant is', async () => {
    const limited = await startApi(environment, { worker: false, env: { API_RATE_LIMIT: '2' } })
    try {
      const [one, other] = [randomUUID(), randomUUID()]
      const answers = []
      for (let n = 0; n < 3; n++) answers.push(await limited.call(one, 'GET', '/api/storage/artifacts'))
      expect(answers.map(a => [a.status, a.headers.get('ratelimit-remaining')])).toEqual([
        [200, '1'],
        [200, '0'],
        [429, '0'],
      ])
      expect(answers[2]?.json).toMatchObject({ status: 'error', code: 'rate_limited' })
      expect(Number(answers[2]?.headers.get('retry-after'))).toBeGreaterThan(0)
      expect((await limited.call(other, 'GET', '/api/storage/artifacts')).status).toBe(200)
    } finally {
      await limited.daemon.stop()
    }
  })
})

test('what was stored with an entity is listed by it, whether or not its type was said', async () => {
  const entity = randomUUID()
  const stored = await call('POST', '/api/storage/artifacts', {
    json: `{"kind": "agent_trace", "entity_id": "${entity}", "payload": 1}`,
  })
  // Taken, or refused: but not taken and then never found.
  if (stored.status === 400) return
  const listed = await call('GET', `/api/storage/artifacts?entity_id=${entity}`)
  expect(listed.json.count).toBe(1)
})

test('of tokens signed with a project’s secret, those without a user of a tenant are refused', async () => {
  const signed = (claims: Record<string, unknown>, audience?: string) => {
    const jwt = new SignJWT(claims).setProtectedHeader({ alg: 'HS256' }).setExpirationTime('5m')
    return (audience === undefined ? jwt : jwt.setAudience(audience)).sign(Buffer.from(secret))
  }
  const user = { app_metadata: { tenant_id: tenant } }
  for (const [bearer, status, code] of [
    [await signed(user, 'authenticated'), 200, undefined],
    // The anon and service_role keys of a Supabase project.
    [await signed({ iss: 'supabase', role: 'anon' }), 401, 'unauthorized'],
    [await signed({ iss: 'supabase', role: 'service_role' }), 401, 'unauthorized'],
    [await signed(user), 401, 'unauthorized'],
    [
      await signed({ user_metadata: { tenant_id: tenant }, tenant_id: tenant }, 'authenticated'),
      403,
      'no_tenant',
    ],
    [serviceKey, 401, 'unauthorized'],
    [environment.env.R2_SECRET_ACCESS_KEY, 401, 'unauthorized'],
  ] as const) {
    const answer = await call('GET', '/api/storage/artifacts', {
      headers: { authorization: `Bearer ${bearer}` },
    })
    expect([answer.status, answer.json.code]).toEqual([status, code])
  }
})

test('a row that leads to another tenant’s object gives neither its bytes nor a URL of it', async () => {
  const other = await api.call(null, 'POST', '/api/storage/artifacts/raw?kind=attachment', {
    body: 'of another tenant',
    headers: { authorization: `Bearer ${await tokenOf(randomUUID())}`, 'content-type': 'text/plain' },
  })
  const id = randomUUID()
  // As an application may write it into a table that it shares with us.
  await environment.admin.query(
    `insert into artifact_refs (id, tenant_id, kind, r2_key, content_type) values ($1, $2, 'attachment', $3, 'text/plain')`,
    [id, tenant, other.json.artifact.r2_key],
  )
  for (const suffix of ['', '?raw=1', '/url']) {
    const answer = await call('GET', `/api/storage/artifacts/${id}${suffix}`)
    expect([suffix, answer.status, answer.json?.code]).toEqual([suffix, 502, 'artifact_foreign_key'])
  }
})

test('the log has no token, no key, no signed URL and no payload, whatever goes wrong', async () => {
  const lines: string[] = []
  const logged = await startApi(environment, {
    worker: false,
    log: line => lines.push(JSON.stringify(line)),
    env: {
      AUTH_MODE: 'jwt',
      JWT_SECRET: secret,
      JWT_AUDIENCE: 'authenticated',
      JWT_TENANT_CLAIM: 'app_metadata.tenant_id',
      SERVICE_API_KEY: serviceKey,
    },
  })
  try {
    const send = (method: string, path: string, options: Parameters<TestApi['call']>[3] = {}) =>
      logged.call(null, method, path, {
        ...options,
        headers: { authorization: `Bearer ${token}`, ...options.headers },
      })
    const text = 'Xpayload7'.repeat(100)
    const stored = await send('POST', '/api/storage/artifacts', {
      json: `{"kind": "agent_trace", "payload": "${text}"}`,
      headers: { 'idempotency-key': 'Xkey7' },
    })
    const path = `/api/storage/artifacts/${stored.json.artifact.id}`
    const { json } = await send('GET', `${path}/url`)
    expect(json.served_by).toBe('api')
    expect((await fetch(json.url)).status).toBe(200)
    await environment.store.put(stored.json.artifact.r2_key, Buffer.from('Xdamage7'), {
      contentType: 'application/json',
    })
    expect((await send('GET', path)).status).toBe(502)
    expect((await fetch(json.url)).status).toBe(502)
    await send('POST', '/api/storage/artifacts', { json: '{"kind": "Xkind7", "payload": "Xpayload7' })
    await send('GET', path, { headers: { authorization: `Bearer ${serviceKey}` } })
    await send('GET', '/metrics', { headers: { authorization: `Bearer ${serviceKey}` } })
    const log = lines.join('\n')
    expect(log).toContain('artifact_corrupt')
    expect(log).not.toMatch(/X[a-z]+7/)
    for (const hidden of [
      token,
      serviceKey,
      secret,
      json.url.split('/').at(-1),
      environment.env.R2_SECRET_ACCESS_KEY ?? '',
      'lighter-worker',
    ])
      expect(log).not.toContain(hidden)
  } finally {
    await logged.daemon.stop()
  }
})

function hasCurl(): boolean {
  try {
    execFileSync('curl', ['--version'], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

/** What differs from run to run, by its form. */
function normalised(text: string): string {
  return text
    .replace(/"next_cursor":\s*"[\w-]+"/g, '"next_cursor": "<cursor>"')
    .replace(/"https?:\/\/[^"\s]*\/tenants\//g, '"<store>/tenants/')
    .replace(/\?X-Amz-Algorithm=[^"\s]*/g, '?<signature>')
    .replace(/"r2_key":\s*"[^"]*?tenants\//g, '"r2_key": "tenants/')
    .replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z/g, '<time>')
    .replace(/\/\d{4}\/\d\d\/\d\d\//g, '/<day>/')
    .replace(/\b[0-9a-f]{64}\b/g, '<sha256>')
    .replace(/\b(?!0{8}-|5f0c1d5e|9b2d7c34)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b/g, '<uuid>')
}

/** The status line, every header that is shown, and the body if one is. */
function expectHeaders(answer: string, shown: string, where: string): void {
  const parse = (text: string) => {
    const [head = '', body = ''] = normalised(text.replaceAll('\r', '')).split('\n\n')
    const [status = '', ...lines] = head.trim().split('\n')
    const headers = new Map(
      lines.map(line => {
        const [name = '', ...rest] = line.split(': ')
        return [name.toLowerCase(), rest.join(': ')]
      }),
    )
    return { status, headers, body: body.trim() }
  }
  const expected = parse(shown)
  const actual = parse(answer)
  expect(actual.status, where).toBe(expected.status)
  for (const [name, value] of expected.headers) {
    expect([name, actual.headers.get(name)], where).toEqual([name, value])
  }
  expect(actual.body, where).toBe(expected.body)
}
