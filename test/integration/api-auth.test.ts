// Who gets in, and as whom: tokens, service keys, and tenants that a client merely says.
import { randomBytes, randomUUID } from 'node:crypto'
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, afterEach, beforeAll, describe, expect, test, vi } from 'vitest'
import { loadConfig } from '../../src/config.ts'
import { ConfigError } from '../../src/errors.ts'
import { type Answer, startApi, type TestApi } from '../support/api.ts'
import { useEnvironment } from '../support/environment.ts'
import { forgeToken, hmac, inSeconds, newSigningKey, secretToken } from '../support/tokens.ts'

const environment = await useEnvironment()
const started: TestApi[] = []
const mine = randomUUID()
const theirs = randomUUID()

beforeAll(async () => {
  // One artifact each: the list tells as whom a request was taken.
  await environment.admin.query(
    `insert into artifact_refs (tenant_id, kind, r2_key)
     select t, 'agent_trace', 'tenants/' || t || '/agent_trace/1.json' from unnest($1::uuid[]) t`,
    [[mine, theirs]],
  )
})
afterEach(() => {
  vi.useRealTimers()
})
afterAll(async () => {
  await Promise.all(started.map(api => api.daemon.stop()))
})

async function start(env: Record<string, string>): Promise<TestApi> {
  const api = await startApi(environment, { worker: false, env: { API_RATE_LIMIT: '0', ...env } })
  started.push(api)
  return api
}

const bearer = (token: string) => ({ authorization: `Bearer ${token}` })

/** The list, asked for with these headers and nothing else. */
const list = (api: TestApi, headers: Record<string, string>, query = '') =>
  api.call(null, 'GET', `/api/storage/artifacts${query}`, { headers })

const tenantsIn = (answer: Answer) => answer.json.artifacts?.map((a: { tenant_id: string }) => a.tenant_id)

/** An error of ours, with its whole body known but for the id of the request. */
function expectError(answer: Answer, status: number, code: string): void {
  expect([answer.status, answer.json?.code]).toEqual([status, code])
  expect(answer.json).toMatchObject({
    status: 'error',
    message: expect.stringMatching(/./),
    request_id: expect.stringMatching(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/),
  })
  expect(answer.headers.get('cache-control')).toBe('no-store')
  if (status === 401) expect(answer.headers.get('www-authenticate')).toBe('Bearer')
}

describe('AUTH_MODE=jwt with a secret', () => {
  const secret = randomBytes(32).toString('hex')
  let api: TestApi
  beforeAll(async () => {
    api = await start({
      AUTH_MODE: 'jwt',
      JWT_SECRET: secret,
      JWT_ISSUER: 'https://issuer.example',
      JWT_AUDIENCE: 'authenticated',
    })
  })
  const good = { iss: 'https://issuer.example', aud: 'authenticated', tenant_id: mine }
  const token = (claims: Record<string, unknown> = {}) => secretToken(secret, { ...good, ...claims })

  test.each<[string, () => string]>([
    ['a plain one', () => token()],
    ['one of several audiences', () => token({ aud: ['other', 'authenticated'] })],
    ['a tenant in upper case', () => token({ tenant_id: mine.toUpperCase() })],
    ['expired less than the tolerance ago', () => token({ exp: inSeconds(-20) })],
    ['valid from within the tolerance on', () => token({ nbf: inSeconds(20) })],
  ])('a good token is taken: %s', async (_name, make) => {
    const answer = await list(api, bearer(make()))
    expect([answer.status, tenantsIn(answer)]).toEqual([200, [mine]])
  })

  test('the scheme is told apart from its case', async () => {
    expect((await list(api, { authorization: `bearer ${token()}` })).status).toBe(200)
  })

  const header = { alg: 'HS256', typ: 'JWT' }
  const claims = { ...good, exp: inSeconds(300) }
  const unsigned = () => Buffer.alloc(0)
  test.each<[string, () => string]>([
    ['alg none without a signature', () => forgeToken({ alg: 'none' }, claims, unsigned)],
    ['alg None', () => forgeToken({ alg: 'None' }, claims, unsigned)],
    ['alg none with a signature', () => forgeToken({ alg: 'none' }, claims, hmac(secret))],
    ['HS256 without a signature', () => forgeToken(header, claims, unsigned)],
    [
      'another algorithm of the same secret',
      () => forgeToken({ alg: 'HS512' }, claims, hmac(secret, 'sha512')),
    ],
    ['no algorithm', () => forgeToken({ typ: 'JWT' }, claims, hmac(secret))],
    ['an algorithm that is no string', () => forgeToken({ alg: ['HS256'] }, claims, hmac(secret))],
    ['another secret', () => secretToken(`${secret}0`, good)],
    ['an empty secret', () => secretToken('', good)],
    ['a signature cut short', () => token().slice(0, -4)],
    [
      'a payload exchanged under its signature',
      () => {
        const [head, , signature] = token().split('.')
        return `${head}.${Buffer.from(JSON.stringify({ ...claims, tenant_id: theirs })).toString('base64url')}.${signature}`
      },
    ],
    [
      'a critical extension nobody knows',
      () => forgeToken({ ...header, crit: ['x'], x: 1 }, claims, hmac(secret)),
    ],
    [
      'an unencoded payload',
      () => forgeToken({ ...header, crit: ['b64'], b64: false }, claims, hmac(secret)),
    ],
    ['the wrong audience', () => token({ aud: 'anon' })],
    ['an audience that only begins alike', () => token({ aud: 'authenticated2' })],
    ['no audience', () => token({ aud: undefined })],
    ['the wrong issuer', () => token({ iss: 'https://issuer.example.evil.example' })],
    ['no issuer', () => token({ iss: undefined })],
    ['expired', () => token({ exp: inSeconds(-60) })],
    ['no end', () => token({ exp: undefined })],
    ['an end that is no number', () => token({ exp: `${inSeconds(300)}` })],
    ['an end that is null', () => token({ exp: null })],
    ['not yet valid', () => token({ nbf: inSeconds(90) })],
    ['a payload that is an array', () => forgeToken(header, '[1]', hmac(secret))],
    ['a payload that is no JSON', () => forgeToken(header, 'nonsense', hmac(secret))],
    ['an empty payload', () => forgeToken(header, '', hmac(secret))],
    ['two dots', () => '..'],
    ['five parts', () => 'a.b.c.d.e'],
    ['garbage', () => 'garbage'],
    ['the secret itself', () => secret],
  ])('a bad token is refused: %s', async (_name, make) => {
    expectError(await list(api, bearer(make())), 401, 'unauthorized')
  })

  test('the holder is told when it has expired, and nothing of why else it is refused', async () => {
    expect((await list(api, bearer(token({ exp: inSeconds(-60) })))).json.message).toBe(
      'the token has expired',
    )
    const forged = [secretToken('x', good), forgeToken({ alg: 'none' }, claims, unsigned), 'garbage', '..']
    const messages = await Promise.all(forged.map(async each => (await list(api, bearer(each))).json.message))
    expect(new Set(messages)).toEqual(new Set(['the token is not valid']))
  })

  test.each<[string, Record<string, string>]>([
    ['none', {}],
    ['an empty one', { authorization: '' }],
    ['a scheme without a token', { authorization: 'Bearer' }],
    ['a token without a scheme', { authorization: 'TOKEN' }],
    ['another scheme', { authorization: 'Basic TOKEN' }],
    ['two tokens', { authorization: 'Bearer TOKEN TOKEN' }],
    ['a scheme that ends alike', { authorization: 'XBearer TOKEN' }],
    ['another header', { 'x-authorization': 'Bearer TOKEN' }],
    ['a cookie', { cookie: 'access_token=TOKEN' }],
    ['only a tenant, as in AUTH_MODE=dev', { 'x-tenant-id': mine }],
  ])('an Authorization header that is not one is refused: %s', async (_name, headers) => {
    const filled = Object.entries(headers).map(([name, value]) => [name, value.replaceAll('TOKEN', token())])
    expectError(await list(api, Object.fromEntries(filled)), 401, 'unauthorized')
  })

  test('a token in the URL is none', async () => {
    for (const name of ['access_token', 'token', 'jwt', 'authorization']) {
      expectError(await list(api, {}, `?${name}=${token()}`), 401, 'unauthorized')
    }
  })

  test.each<[string, unknown]>([
    ['missing', undefined],
    ['null', null],
    ['empty', ''],
    ['no uuid', 'tenant'],
    ['a number', 7],
    ['a list of tenants', [mine]],
    ['an object', { toString: mine }],
    ['a uuid and more', `${mine} `],
    ['a uuid on a line of its own', `${mine}\n`],
    ['SQL', `${mine}' or '1'='1`],
    ['braces, which Postgres would take', `{${mine}}`],
  ])('a tenant claim that is %s is refused', async (_name, tenant_id) => {
    expectError(await list(api, bearer(token({ tenant_id }))), 403, 'no_tenant')
  })

  test('a claim of the same name under the prototype is not the token’s', async () => {
    const polluted = `{"iss": "${good.iss}", "aud": "${good.aud}", "exp": ${inSeconds(300)}, "__proto__": {"tenant_id": "${mine}"}}`
    expectError(await list(api, bearer(forgeToken(header, polluted, hmac(secret)))), 403, 'no_tenant')
  })
})

describe('JWT_TENANT_CLAIM', () => {
  const secret = randomBytes(32).toString('hex')
  const claimed = async (claim: string, claims: Record<string, unknown> | string) => {
    const api = await start({ AUTH_MODE: 'jwt', JWT_SECRET: secret, JWT_TENANT_CLAIM: claim })
    const payload =
      typeof claims === 'string'
        ? claims
        : JSON.stringify({ exp: inSeconds(300), tenant_id: theirs, ...claims })
    return list(api, bearer(forgeToken({ alg: 'HS256' }, payload, hmac(secret))))
  }

  test('may be nested, and then a flat one of the same name counts for nothing', async () => {
    const answer = await claimed('app_metadata.tenant_id', { app_metadata: { tenant_id: mine } })
    expect([answer.status, tenantsIn(answer)]).toEqual([200, [mine]])
    for (const claims of [
      {},
      { app_metadata: mine },
      { app_metadata: [mine] },
      { app_metadata: null },
      { 'app_metadata.tenant_id': mine },
      { user_metadata: { tenant_id: mine } },
    ]) {
      expectError(await claimed('app_metadata.tenant_id', claims), 403, 'no_tenant')
    }
  })

  test('is not inherited: what somebody has put into the prototype of all objects is no tenant', async () => {
    // As a polluting library would leave it. Not enumerable, so that nothing else trips over it.
    Object.defineProperty(Object.prototype, 'inherited_tenant', { value: mine, configurable: true })
    try {
      expect(({} as Record<string, unknown>).inherited_tenant).toBe(mine)
      expectError(await claimed('inherited_tenant', {}), 403, 'no_tenant')
      expectError(await claimed('app_metadata.inherited_tenant', { app_metadata: {} }), 403, 'no_tenant')
    } finally {
      Reflect.deleteProperty(Object.prototype, 'inherited_tenant')
    }
  })

  test('__proto__ is a claim like any other where the token has it', async () => {
    const answer = await claimed('__proto__', `{"exp": ${inSeconds(300)}, "__proto__": "${mine}"}`)
    expect([answer.status, tenantsIn(answer)]).toEqual([200, [mine]])
  })
})

describe('API_TENANT_NAMESPACE', () => {
  const namespace = '6ba7b810-9dad-11d1-80b4-00c04fd430c8'
  afterAll(() =>
    environment.admin.query('delete from lighter.loose_artifacts where tenant_id <> all ($1::uuid[])', [
      [mine, theirs],
    ]),
  )
  const secret = randomBytes(32).toString('hex')
  const token = (tenant: unknown) =>
    bearer(
      forgeToken({ alg: 'HS256' }, JSON.stringify({ exp: inSeconds(300), tenant_id: tenant }), hmac(secret)),
    )
  const named = async (name: string): Promise<string> => {
    const { rows } = await environment.admin.query<{ id: string }>(
      `insert into artifact_refs (tenant_id, kind, r2_key)
       select t, 'agent_trace', 'tenants/' || t || '/agent_trace/' || gen_random_uuid() from lighter.tenant_of($1, $2) t
       returning tenant_id as id`,
      [namespace, name],
    )
    return rows[0]?.id ?? ''
  }

  test('set, tokens name tenants as the application does, whatever the name looks like', async () => {
    const api = await start({ AUTH_MODE: 'jwt', JWT_SECRET: secret, API_TENANT_NAMESPACE: namespace })
    for (const [claim, name] of [
      ['acme', 'acme'],
      [7, '7'],
      ['Ünïcode "quoted"', 'Ünïcode "quoted"'],
      [theirs, theirs],
    ] as const) {
      const tenant = await named(name)
      const answer = await list(api, token(claim))
      expect([answer.status, tenantsIn(answer)], name).toEqual([200, [tenant]])
      // Beside the token by its name or its uuid; another one is refused.
      expect((await list(api, token(claim), `?tenant_id=${encodeURIComponent(name)}`)).status).toBe(200)
      expect((await list(api, token(claim), `?tenant_id=${tenant}`)).status).toBe(200)
      expectError(await list(api, token(claim), `?tenant_id=${mine}`), 403, 'tenant_mismatch')
    }
    for (const claim of ['', null, 1.5, ['acme'], { name: 'acme' }, true, undefined, 'a\0b', '\ud800'])
      expectError(await list(api, token(claim)), 403, 'no_tenant')
  })

  test('set, a service names them in the header likewise', async () => {
    const key = randomBytes(32).toString('hex')
    const api = await start({ AUTH_MODE: 'service', SERVICE_API_KEY: key, API_TENANT_NAMESPACE: namespace })
    const tenant = await named('globex')
    const answer = await list(api, { ...bearer(key), 'x-tenant-id': 'globex' })
    expect([answer.status, tenantsIn(answer)]).toEqual([200, [tenant]])
    expectError(await list(api, bearer(key)), 400, 'tenant_required')
    // As UTF-8 or as Latin-1: nobody can tell.
    expectError(await list(api, { ...bearer(key), 'x-tenant-id': 'gl\u00f6bex' }), 400, 'tenant_required')
  })

  test('unset, a name is no tenant', async () => {
    const api = await start({ AUTH_MODE: 'jwt', JWT_SECRET: secret })
    expectError(await list(api, token('acme')), 403, 'no_tenant')
    expectError(await list(api, token(7)), 403, 'no_tenant')
  })
})

describe('AUTH_MODE=jwt with a key set at a URL', () => {
  let server: Server
  let url: string
  /** What the key server does with its next requests. */
  let answer: { status: number; body: string } | 'drop'
  let fetches = 0
  const [first, second, attacker] = [
    newSigningKey('first'),
    newSigningKey('second', 'RS256'),
    newSigningKey('first'),
  ]
  const keySet = (...keys: { jwk: object }[]) => ({
    status: 200,
    body: JSON.stringify({ keys: keys.map(key => key.jwk) }),
  })

  beforeAll(async () => {
    server = createServer((_request, response) => {
      fetches++
      if (answer === 'drop') response.destroy()
      else response.writeHead(answer.status, { 'content-type': 'application/json' }).end(answer.body)
    })
    await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/keys`
  })
  afterAll(() => {
    server.closeAllConnections()
    server.close()
  })
  const startWithKeys = () => start({ AUTH_MODE: 'jwt', JWT_JWKS_URL: url })

  test('while the keys can not be had no good token is called bad, and no bad one good', async () => {
    const api = await startWithKeys()
    for (const broken of [
      'drop' as const,
      { status: 500, body: '{}' },
      { status: 404, body: 'not found' },
      { status: 200, body: 'no JSON' },
      { status: 200, body: '{"keys": 7}' },
    ]) {
      answer = broken
      const refused = await list(api, bearer(first.token({ tenant_id: mine })))
      expectError(refused, 503, 'jwks_unavailable')
      expect(refused.headers.get('retry-after')).toMatch(/^\d+$/)
      expect(refused.text).not.toContain(new URL(url).port)
    }
    // What is no token at all needs no key to be refused.
    expectError(await list(api, bearer('garbage')), 401, 'unauthorized')
    expectError(await list(api, {}), 401, 'unauthorized')
    answer = keySet(first)
    expect((await list(api, bearer(first.token({ tenant_id: mine })))).status).toBe(200)
  })

  test('tokens of all its keys are taken, those of others are not', async () => {
    const api = await startWithKeys()
    answer = keySet(first, second)
    for (const key of [first, second]) {
      expect(tenantsIn(await list(api, bearer(key.token({ tenant_id: mine }))))).toEqual([mine])
    }
    const claims = { tenant_id: mine, exp: inSeconds(300) }
    const jku = url.replace('/keys', '/evil')
    const before = fetches
    for (const token of [
      attacker.token({ tenant_id: mine }),
      // Its own key beside it, in each way that a header may name one.
      attacker.token({ tenant_id: mine }, { jwk: attacker.jwk }),
      attacker.token({ tenant_id: mine }, { kid: undefined, jku }),
      attacker.token({ tenant_id: mine }, { x5u: jku }),
      attacker.token({ tenant_id: mine }, { kid: '../../first' }),
      attacker.token({ tenant_id: mine }, { kid: '__proto__' }),
      attacker.token({ tenant_id: mine }, { kid: 7 }),
      // The public key is public: as the secret of an HMAC everybody could sign with it.
      ...[second.publicPem, second.publicPem.trim(), JSON.stringify(second.jwk), second.jwk.n ?? ''].map(
        secret => forgeToken({ alg: 'HS256', kid: second.kid }, claims, hmac(secret)),
      ),
      forgeToken({ alg: 'none', kid: second.kid }, claims, () => Buffer.alloc(0)),
      forgeToken({ alg: 'ES256', kid: second.kid }, claims, second.sign),
      // A signature of noughts, which a careless check of an elliptic curve takes for anybody's.
      forgeToken({ alg: 'ES256', kid: first.kid }, claims, () => Buffer.alloc(64)),
    ]) {
      expectError(await list(api, bearer(token)), 401, 'unauthorized')
    }
    expect(fetches - before, 'fetches for forged tokens').toBe(0)
  })

  test('a new key is fetched when a token names it, but not over and over', async () => {
    const api = await startWithKeys()
    answer = keySet(first)
    expect((await list(api, bearer(first.token({ tenant_id: mine })))).status).toBe(200)
    answer = keySet(second)
    // Past the pause between two fetches.
    vi.setSystemTime(Date.now() + 31_000)
    expect((await list(api, bearer(second.token({ tenant_id: mine })))).status).toBe(200)
    expectError(await list(api, bearer(first.token({ tenant_id: mine }))), 401, 'unauthorized')
    const before = fetches
    const unknown = Array.from({ length: 30 }, (_, n) =>
      newSigningKey(`unknown ${n}`).token({ tenant_id: mine }),
    )
    for (const refused of await Promise.all(unknown.map(token => list(api, bearer(token))))) {
      expectError(refused, 401, 'unauthorized')
    }
    expect(fetches - before).toBe(0)
  })

  test('keys that were fetched do while the server is down', async () => {
    const api = await startWithKeys()
    answer = keySet(first)
    expect((await list(api, bearer(first.token({ tenant_id: mine })))).status).toBe(200)
    answer = 'drop'
    expect((await list(api, bearer(first.token({ tenant_id: mine })))).status).toBe(200)
    vi.setSystemTime(Date.now() + 31_000)
    expect((await list(api, bearer(first.token({ tenant_id: mine })))).status).toBe(200)
    // It may be the next key: who can say, without asking?
    expectError(await list(api, bearer(second.token({ tenant_id: mine }))), 503, 'jwks_unavailable')
  })
})

describe('AUTH_MODE=jwt with a key set in a file', () => {
  let dir: string
  beforeAll(async () => {
    dir = await mkdtemp(path.join(tmpdir(), 'pg-lighter-jwks-'))
  })
  afterAll(() => rm(dir, { recursive: true }))

  test('a replaced file is read again; one that can not be read refuses nobody as unauthorized', async () => {
    const file = path.join(dir, 'jwks.json')
    const replace = async (content: string) => {
      await writeFile(`${file}.new`, content)
      await rename(`${file}.new`, file)
    }
    const [old, next] = [newSigningKey('old'), newSigningKey('next', 'RS256')]
    const set = (key: { jwk: object }) => JSON.stringify({ keys: [key.jwk] })
    await replace(set(old))
    const api = await start({ AUTH_MODE: 'jwt', JWT_JWKS_FILE: file })
    const as = (key: typeof old) => list(api, bearer(key.token({ tenant_id: mine })))
    expect((await as(old)).status).toBe(200)
    expectError(await as(next), 401, 'unauthorized')
    const hs256 = forgeToken(
      { alg: 'HS256', kid: 'old' },
      { tenant_id: mine, exp: inSeconds(300) },
      hmac(old.publicPem),
    )
    expectError(await list(api, bearer(hs256)), 401, 'unauthorized')
    await replace(set(next))
    expect((await as(next)).status).toBe(200)
    expectError(await as(old), 401, 'unauthorized')
    for (const content of ['', 'no JSON', '[]', '{"keys": {}}']) {
      await replace(content)
      const refused = await as(next)
      expectError(refused, 503, 'jwks_unavailable')
      expect(refused.text).not.toContain(dir)
    }
    await rm(file)
    expectError(await as(next), 503, 'jwks_unavailable')
    await replace(set(old))
    expect((await as(old)).status).toBe(200)
  })
})

describe('AUTH_MODE=service', () => {
  const [old, next] = [randomBytes(24).toString('base64url'), randomBytes(32).toString('base64url')]
  let api: TestApi
  beforeAll(async () => {
    api = await start({ AUTH_MODE: 'service', SERVICE_API_KEY: `${old}, ${next}` })
  })

  test('either key speaks for the tenant that the header names', async () => {
    for (const key of [old, next]) {
      for (const tenant of [mine, theirs.toUpperCase()]) {
        const answer = await list(api, { ...bearer(key), 'x-tenant-id': tenant })
        expect([answer.status, tenantsIn(answer)]).toEqual([200, [tenant.toLowerCase()]])
      }
    }
  })

  test.each<[string, string]>([
    ['another key', `Bearer ${randomBytes(24).toString('base64url')}`],
    ['the beginning of a key', `Bearer ${old.slice(0, -1)}`],
    ['a key and more', `Bearer ${old}x`],
    ['a key in another case', `Bearer ${swapCase(old)}`],
    ['both keys', `Bearer ${old},${next}`],
    ['both keys as they are configured', `Bearer ${old}, ${next}`],
    ['an empty key', 'Bearer '],
    ['a comma', 'Bearer ,'],
    ['a key without a scheme', old],
    ['Basic', `Basic ${Buffer.from(`:${old}`).toString('base64')}`],
    ['a token signed with a key', `Bearer ${secretToken(old, { tenant_id: mine })}`],
    ['nothing', ''],
  ])('%s is refused, whatever tenant is named', async (_name, authorization) => {
    for (const tenant of [{ 'x-tenant-id': mine }, {}, { 'x-tenant-id': 'malformed' }]) {
      expectError(await list(api, { authorization, ...tenant }), 401, 'unauthorized')
      const { status } = await api.call(null, 'GET', '/metrics', { headers: { authorization, ...tenant } })
      expect(status).toBe(401)
    }
  })

  test.each<[string, Record<string, string>]>([
    ['none', {}],
    ['an empty one', { 'x-tenant-id': '' }],
    ['no uuid', { 'x-tenant-id': 'tenant' }],
    ['two', { 'x-tenant-id': `${mine}, ${theirs}` }],
    ['the same twice', { 'x-tenant-id': `${mine}, ${mine}` }],
    ['a uuid in braces', { 'x-tenant-id': `{${mine}}` }],
    ['a uuid without dashes', { 'x-tenant-id': mine.replaceAll('-', '') }],
    ['SQL', { 'x-tenant-id': `${mine}' or true --` }],
    ['a star', { 'x-tenant-id': '*' }],
    ['another header', { 'x-tenant': mine }],
  ])('a tenant is needed: %s', async (_name, headers) => {
    for (const query of ['', `?tenant_id=${mine}`]) {
      const answer = await list(api, { ...bearer(old), ...headers }, query)
      expectError(answer, 400, 'tenant_required')
      expect(answer.json.field).toBe('x-tenant-id')
    }
  })
})

const swapCase = (text: string) =>
  text.replace(/[a-z]/gi, c => (c === c.toLowerCase() ? c.toUpperCase() : c.toLowerCase()))

describe('the configuration', () => {
  const base = {
    DATABASE_URL: 'postgresql://u:p@localhost/d',
    R2_ACCOUNT_ID: 'a',
    R2_ACCESS_KEY_ID: 'k',
    R2_SECRET_ACCESS_KEY: 's',
    R2_BUCKET: 'b',
  }
  const problemsOf = (env: Record<string, string>) => {
    try {
      loadConfig({ ...base, ...env })
    } catch (error) {
      if (error instanceof ConfigError) return error.problems.map(problem => problem.variable)
      throw error
    }
    return []
  }

  test('AUTH_MODE=dev is for a loopback address', () => {
    for (const API_HOST of ['127.0.0.1', '127.1.2.3', 'localhost', '::1']) {
      expect(problemsOf({ AUTH_MODE: 'dev', API_HOST }), API_HOST).toEqual([])
    }
    for (const API_HOST of [
      '0.0.0.0',
      '::',
      '10.0.0.1',
      '127.0.0.1.example.com',
      'localhost.example.com',
      '1127.0.0.1',
      '127.0.0.1 ',
      '::ffff:10.0.0.1',
      'example.com',
    ]) {
      expect(problemsOf({ AUTH_MODE: 'dev', API_HOST }), API_HOST).toEqual(['API_HOST'])
      expect(
        problemsOf({ AUTH_MODE: 'service', SERVICE_API_KEY: 'x'.repeat(32), API_HOST }),
        API_HOST,
      ).toEqual([])
    }
  })

  test('AUTH_MODE=dev is not for production', () => {
    expect(problemsOf({ AUTH_MODE: 'dev', NODE_ENV: 'production' })).toEqual(['AUTH_MODE'])
    expect(problemsOf({ AUTH_MODE: 'dev', NODE_ENV: 'development' })).toEqual([])
  })

  test('a mode without its key, or with two kinds of key, is refused', () => {
    const secret = { JWT_SECRET: 'x'.repeat(32) }
    const url = { JWT_JWKS_URL: 'https://example.com/keys' }
    const file = { JWT_JWKS_FILE: '/keys' }
    expect(problemsOf({ AUTH_MODE: 'service' })).toEqual(['SERVICE_API_KEY'])
    expect(problemsOf({ AUTH_MODE: 'jwt' })).toEqual(['JWT_SECRET'])
    for (const keys of [
      { ...secret, ...url },
      { ...secret, ...file },
      { ...url, ...file },
    ]) {
      expect(problemsOf({ AUTH_MODE: 'jwt', ...keys })).toEqual(['JWT_SECRET'])
    }
    for (const keys of [secret, url, file]) expect(problemsOf({ AUTH_MODE: 'jwt', ...keys })).toEqual([])
  })

  test('no algorithm takes a public key for a secret, and none is "none"', () => {
    const url = { AUTH_MODE: 'jwt', JWT_JWKS_URL: 'https://example.com/keys' }
    const secret = { AUTH_MODE: 'jwt', JWT_SECRET: 'x'.repeat(32) }
    for (const env of [
      { ...url, JWT_ALGORITHMS: 'HS256' },
      { ...url, JWT_ALGORITHMS: 'RS256,HS256' },
      { ...secret, JWT_ALGORITHMS: 'RS256' },
      { ...secret, JWT_ALGORITHMS: 'none' },
      { ...url, JWT_ALGORITHMS: 'RS256,none' },
    ]) {
      expect(problemsOf(env), env.JWT_ALGORITHMS).toEqual(['JWT_ALGORITHMS'])
    }
  })

  test('keys that could be guessed are refused', () => {
    for (const SERVICE_API_KEY of [
      'short',
      `${'x'.repeat(32)},short`,
      `${'x'.repeat(32)},`,
      'x'.repeat(31),
    ]) {
      expect(problemsOf({ AUTH_MODE: 'service', SERVICE_API_KEY })).toEqual(['SERVICE_API_KEY'])
    }
    expect(problemsOf({ AUTH_MODE: 'jwt', JWT_SECRET: 'x'.repeat(31) })).toEqual(['JWT_SECRET'])
  })

  test('nothing but a known mode is one', () => {
    for (const AUTH_MODE of ['off', 'none', 'DEV', 'jwt,dev'])
      expect(problemsOf({ AUTH_MODE })).toEqual(['AUTH_MODE'])
  })
})

describe('a tenant that is said beside the credentials', () => {
  const secret = randomBytes(32).toString('hex')
  const key = randomBytes(32).toString('hex')
  const modes: [string, Record<string, string>, Record<string, string>][] = [
    ['jwt', { JWT_SECRET: secret }, bearer(secretToken(secret, { tenant_id: mine, exp: inSeconds(3600) }))],
    ['service', { SERVICE_API_KEY: key }, { ...bearer(key), 'x-tenant-id': mine }],
    ['dev', {}, { 'x-tenant-id': mine }],
  ]

  describe.each(modes)('AUTH_MODE=%s', (mode, env, credentials) => {
    let api: TestApi
    beforeAll(async () => {
      api = await start({ AUTH_MODE: mode, ...env })
    })
    const store = (tenantId: string, headers: Record<string, string> = {}) =>
      api.call(null, 'POST', '/api/storage/artifacts', {
        json: `{"kind": "agent_trace", "payload": 1, "tenant_id": ${tenantId}}`,
        headers: { ...credentials, ...headers },
      })

    test('must be the same one, in any case, or none', async () => {
      for (const query of [
        '',
        `?tenant_id=${mine}`,
        `?tenant_id=${mine.toUpperCase()}`,
        '?tenant_id=',
        `?tenant_id=${mine.replaceAll('-', '%2D')}`,
      ]) {
        expect(tenantsIn(await list(api, credentials, query)), query).toContain(mine)
      }
      for (const body of [`"${mine}"`, `"${mine.toUpperCase()}"`, 'null']) {
        expect((await store(body)).json.artifact?.tenant_id, body).toBe(mine)
      }
    })

    test.each([
      `tenant_id=${theirs}`,
      `tenant_id=${mine}&tenant_id=${theirs}`,
      `tenant_id=${theirs}&tenant_id=${mine}`,
      `tenant_id=${mine}&tenant_id=${mine}`,
      `tenant_id=${mine},${theirs}`,
      `tenant_id=${mine}%00`,
      `tenant_id=${mine}%20`,
      'tenant_id=*',
      `tenant%5Fid=${theirs}`,
    ])('the query %s is refused on every route', async query => {
      const id = randomUUID()
      for (const [method, at] of [
        ['GET', `/api/storage/artifacts?${query}`],
        ['GET', `/api/storage/artifacts/${id}?${query}`],
        ['HEAD', `/api/storage/artifacts/${id}?${query}`],
        ['GET', `/api/storage/artifacts/${id}/url?${query}`],
        ['DELETE', `/api/storage/artifacts/${id}?${query}`],
        ['POST', `/api/storage/artifacts?${query}`],
        ['POST', `/api/storage/artifacts/raw?kind=attachment&${query}`],
        ['POST', `/api/storage/hydrate?${query}`],
      ] as const) {
        const answer = await api.call(null, method, at, {
          headers: credentials,
          ...(method === 'POST' && { json: '{"kind": "agent_trace", "payload": 1, "metadata": []}' }),
        })
        if (method === 'HEAD') expect(answer.status).toBe(403)
        else expectError(answer, 403, 'tenant_mismatch')
      }
    })

    test.each([
      `"${theirs}"`,
      `"${mine} "`,
      `["${mine}"]`,
      `["${mine}", "${theirs}"]`,
      `{"tenant_id": "${mine}"}`,
      '7',
      'true',
      'false',
      '[]',
      '{}',
      // Of two the last is the one that counts.
      `"${mine}", "tenant_id": "${theirs}"`,
      `"${mine}", "tenant\\u005fid": "${theirs}"`,
    ])('the body’s %s is refused', async body => {
      expectError(await store(body), 403, 'tenant_mismatch')
      for (const [method, at] of [
        ['POST', '/api/storage/hydrate'],
        ['DELETE', `/api/storage/artifacts/${randomUUID()}`],
      ] as const) {
        const answer = await api.call(null, method, at, {
          json: `{"metadata": [], "tenant_id": ${body}}`,
          headers: credentials,
        })
        expectError(answer, 403, 'tenant_mismatch')
      }
    })

    test('nothing was stored for anybody else', async () => {
      const { rows } = await environment.admin.query(
        'select distinct tenant_id as t from artifact_refs union select tenant_id from lighter.objects',
      )
      expect(rows.map(row => row.t).sort()).toEqual([mine, theirs].sort())
    })
  })

  test('x-tenant-id must be the token’s, once', async () => {
    const api = await start({ AUTH_MODE: 'jwt', JWT_SECRET: secret })
    const credentials = bearer(secretToken(secret, { tenant_id: mine }))
    for (const same of [mine, mine.toUpperCase(), '']) {
      const answer = await list(api, { ...credentials, 'x-tenant-id': same })
      expect([answer.status, tenantsIn(answer)?.[0]]).toEqual([200, mine])
    }
    for (const other of [theirs, `${mine}, ${theirs}`, `${mine}, ${mine}`, 'x', 'null', 'undefined']) {
      expectError(await list(api, { ...credentials, 'x-tenant-id': other }), 403, 'tenant_mismatch')
    }
  })
})

describe('API_RATE_LIMIT', () => {
  const secret = randomBytes(32).toString('hex')
  let api: TestApi
  beforeAll(async () => {
    api = await start({ AUTH_MODE: 'jwt', JWT_SECRET: secret, API_RATE_LIMIT: '3' })
  })
  const as = (tenant_id: string) => bearer(secretToken(secret, { tenant_id }))
  const limits = ({ headers }: Answer) =>
    ['ratelimit-limit', 'ratelimit-remaining'].map(name => headers.get(name))

  test('counts down in every answer and ends in 429, for one tenant alone', async () => {
    const tenant = randomUUID()
    const answers = [
      await list(api, as(tenant)),
      await api.call(null, 'GET', `/api/storage/artifacts/${randomUUID()}`, { headers: as(tenant) }),
      await list(api, as(tenant), '?limit=0'),
    ]
    expect(answers.map(answer => answer.status)).toEqual([200, 404, 400])
    expect(answers.map(limits)).toEqual([
      ['3', '2'],
      ['3', '1'],
      ['3', '0'],
    ])
    for (const [method, at] of [
      ['GET', '/api/storage/artifacts'],
      ['GET', `/api/storage/artifacts/${randomUUID()}`],
      ['DELETE', `/api/storage/artifacts/${randomUUID()}`],
      ['POST', '/api/storage/artifacts'],
      ['POST', '/api/storage/artifacts/raw?kind=attachment'],
      ['POST', '/api/storage/hydrate'],
    ] as const) {
      const refused = await api.call(null, method, at, {
        headers: as(tenant),
        ...(method === 'POST' && { json: '{}' }),
      })
      expectError(refused, 429, 'rate_limited')
      expect(limits(refused)).toEqual(['3', '0'])
      for (const name of ['ratelimit-reset', 'retry-after']) {
        const seconds = Number(refused.headers.get(name))
        expect(seconds).toBeGreaterThan(0)
        expect(seconds).toBeLessThanOrEqual(60)
      }
    }
    const other = await list(api, as(randomUUID()))
    expect([other.status, limits(other)]).toEqual([200, ['3', '2']])
  })

  test('is not escaped by other spellings, addresses or routes', async () => {
    const tenant = randomUUID()
    for (let n = 0; n < 3; n++) await list(api, as(tenant))
    for (const [headers, query] of [
      [as(tenant.toUpperCase()), ''],
      [{ ...as(tenant), 'x-forwarded-for': '203.0.113.9', 'x-real-ip': '203.0.113.9' }, ''],
      [{ ...as(tenant), 'x-tenant-id': tenant.toUpperCase() }, `?tenant_id=${tenant.toUpperCase()}`],
      [bearer(secretToken(secret, { tenant_id: tenant, jti: randomUUID() })), ''],
    ] as const) {
      expectError(await list(api, headers, query), 429, 'rate_limited')
    }
    const head = await api.call(null, 'HEAD', `/api/storage/artifacts/${randomUUID()}`, {
      headers: as(tenant),
    })
    expect(head.status).toBe(429)
  })

  test('is not used up by those who only say that they are the tenant', async () => {
    const tenant = randomUUID()
    for (let n = 0; n < 5; n++) {
      await list(api, { 'x-tenant-id': tenant })
      await list(api, { ...bearer(secretToken('wrong', { tenant_id: tenant })) })
      await list(api, { ...as(randomUUID()), 'x-tenant-id': tenant }, `?tenant_id=${tenant}`)
    }
    const answer = await list(api, as(tenant))
    expect([answer.status, limits(answer)]).toEqual([200, ['3', '2']])
  })

  test('of signed URLs is by address, and leaves every tenant’s alone', async () => {
    const statuses: number[] = []
    for (let n = 0; n < 4; n++) {
      statuses.push((await api.call(null, 'GET', '/api/storage/signed/forged', { headers: as(mine) })).status)
    }
    expect(statuses).toEqual([404, 404, 404, 429])
    const answer = await list(api, as(mine))
    expect([answer.status, limits(answer)]).toEqual([200, ['3', '2']])
  })

  test('does not stand in the way of health', async () => {
    for (let n = 0; n < 10; n++) expect((await api.call(null, 'GET', '/healthz')).status).toBe(200)
  })
})

describe('CORS', () => {
  const allowed = 'https://app.example.com'
  const preflight = (api: TestApi, origin: string, method = 'POST') =>
    api.call(null, 'OPTIONS', '/api/storage/artifacts', {
      headers: {
        origin,
        'access-control-request-method': method,
        'access-control-request-headers': 'authorization,content-type',
      },
    })
  const corsHeaders = ({ headers }: Answer) =>
    [...headers.keys()].filter(name => name.startsWith('access-control-'))

  test('is off unless origins are listed', async () => {
    const api = await start({ AUTH_MODE: 'dev' })
    const asked = await preflight(api, allowed)
    expectError(asked, 404, 'route_not_found')
    const answer = await list(api, { 'x-tenant-id': mine, origin: allowed })
    expect(answer.status).toBe(200)
    expect([...corsHeaders(asked), ...corsHeaders(answer)]).toEqual([])
  })

  test('is for the listed origins, and never with credentials of the browser', async () => {
    const api = await start({ AUTH_MODE: 'dev', API_CORS_ORIGINS: `${allowed},http://localhost:3000` })
    for (const origin of [allowed, 'http://localhost:3000']) {
      const asked = await preflight(api, origin)
      expect(asked.status).toBe(204)
      expect(asked.headers.get('access-control-allow-origin')).toBe(origin)
      expect(asked.headers.get('access-control-allow-credentials')).toBeNull()
      expect(asked.headers.get('vary')).toMatch(/origin/i)
      const answer = await list(api, { 'x-tenant-id': mine, origin })
      expect(answer.headers.get('access-control-allow-origin')).toBe(origin)
      expect(answer.headers.get('vary')).toMatch(/origin/i)
      // A page must be able to read why it was refused.
      const refused = await list(api, { origin })
      expectError(refused, 400, 'tenant_required')
      expect(refused.headers.get('access-control-allow-origin')).toBe(origin)
    }
    for (const origin of [
      'https://evil.example',
      'null',
      `${allowed}.evil.example`,
      'http://app.example.com',
      `${allowed}:8443`,
      'https://xapp.example.com',
      allowed.toUpperCase(),
      `${allowed}, https://evil.example`,
    ]) {
      const asked = await preflight(api, origin)
      const answer = await list(api, { 'x-tenant-id': mine, origin })
      for (const each of [asked, answer]) {
        expect(each.headers.get('access-control-allow-origin'), origin).toBeNull()
      }
    }
  })

  test('a wildcard is not an origin', () => {
    expect(() => environment.config({ AUTH_MODE: 'dev', API_CORS_ORIGINS: '*' })).toThrow(ConfigError)
  })
})
