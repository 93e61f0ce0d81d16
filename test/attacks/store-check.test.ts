// GET /api/storage/r2/check needs no credentials: whoever asks learns little, and can't make us ask the store for ever.
import { expect, onTestFinished, test } from 'vitest'
import { startApi, type TestApi } from '../support/api.ts'
import { useEnvironment } from '../support/environment.ts'
import { startFaultyStore } from '../support/request-fault.ts'

const environment = await useEnvironment()
const path = '/api/storage/r2/check'

async function start(env: Record<string, string>): Promise<TestApi> {
  const api = await startApi(environment, { worker: false, env })
  onTestFinished(async () => {
    await api.daemon.stop()
  })
  return api
}

const variables = {
  R2_ACCOUNT_ID: false,
  R2_ACCESS_KEY_ID: true,
  R2_SECRET_ACCESS_KEY: true,
  R2_BUCKET: true,
  R2_ENDPOINT: true,
}

test.each([
  ['nobody said who may call', { AUTH_MODE: '' }],
  ['tokens are needed', { AUTH_MODE: 'jwt', JWT_SECRET: 's'.repeat(32) }],
  ['a service key is needed', { AUTH_MODE: 'service', SERVICE_API_KEY: 'k'.repeat(32) }],
  ['this is a development machine', { AUTH_MODE: 'dev' }],
])('it is answered without credentials where %s', async (_, env) => {
  const api = await start(env)
  for (const query of ['', '?tenant_id=x', `?tenant_id=${'x'.repeat(500)}&a=b`]) {
    const answer = await api.call(null, 'GET', `${path}${query}`)
    expect([query, answer.status]).toEqual([query, 200])
    expect(answer.json).toEqual({ status: 'ok', r2: { ok: true, method: 'HeadBucket' }, env: variables })
  }
  const withRubbish = await api.call(null, 'GET', path, { headers: { authorization: 'Bearer rubbish' } })
  expect(withRubbish.status).toBe(200)
})

test('a thousand questions cost the store one or two requests', async () => {
  const store = await startFaultyStore(environment.env.R2_ENDPOINT ?? '')
  onTestFinished(() => store.close())
  const api = await start({ AUTH_MODE: 'jwt', JWT_SECRET: 's'.repeat(32), R2_ENDPOINT: store.endpoint })
  const before = store.requests.length
  for (let n = 0; n < 20; n++)
    await Promise.all(Array.from({ length: 50 }, () => api.call(null, 'GET', path)))
  expect(store.requests.length - before).toBeLessThanOrEqual(3)
})

test('one address may ask so often a minute, and no longer takes what others have', async () => {
  const api = await start({
    AUTH_MODE: 'service',
    SERVICE_API_KEY: 'k'.repeat(32),
    API_RATE_LIMIT: '5',
    API_TRUST_PROXY: '1',
  })
  const ask = async (address: string) =>
    (await api.call(null, 'GET', path, { headers: { 'x-forwarded-for': address } })).status
  const statuses = []
  for (let n = 0; n < 7; n++) statuses.push(await ask('192.0.2.1'))
  expect(statuses).toEqual([200, 200, 200, 200, 200, 429, 429])
  expect(await ask('192.0.2.2')).toBe(200)
})

test.each([
  ['refuses', 403, 'store_access_denied'],
  ['drops its connections', 'drop', 'store_unavailable'],
] as const)(
  'of a store that %s it tells the reason, and no host, bucket or key',
  async (_, fault, reason) => {
    const store = await startFaultyStore(environment.env.R2_ENDPOINT ?? '')
    onTestFinished(() => store.close())
    const api = await start({ AUTH_MODE: 'dev', R2_ENDPOINT: store.endpoint })
    store.fault = () => fault
    const answer = await api.call(null, 'GET', path)
    expect(answer.status).toBe(200)
    expect(answer.json).toEqual({
      status: 'ok',
      r2: { ok: false, reason, error: expect.any(String) },
      env: variables,
    })
    for (const hidden of [store.endpoint, new URL(store.endpoint).port, environment.env.R2_PREFIX ?? ''])
      expect(answer.text).not.toContain(hidden)
  },
)

test('a store that hangs is told within seconds', async () => {
  const store = await startFaultyStore(environment.env.R2_ENDPOINT ?? '')
  onTestFinished(() => store.close())
  const api = await start({ AUTH_MODE: 'dev', R2_ENDPOINT: store.endpoint })
  store.fault = () => 'hang'
  const began = performance.now()
  const answer = await api.call(null, 'GET', path)
  expect(answer.json.r2).toMatchObject({ ok: false, reason: 'store_unavailable' })
  expect(performance.now() - began).toBeLessThan(15_000)
})
