// Clients of the original system ask as they always did, and find what they always found.
import { randomUUID } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { startApi, type TestApi } from '../support/api.ts'
import { useEnvironment } from '../support/environment.ts'

const environment = await useEnvironment()
const serviceKey = 'k'.repeat(32)
const tenant = randomUUID()
const started: TestApi[] = []
let api: TestApi

async function start(env: Record<string, string>): Promise<TestApi> {
  const one = await startApi(environment, { worker: false, env })
  started.push(one)
  return one
}

beforeAll(async () => {
  api = await start({ AUTH_MODE: 'dev' })
})
afterAll(() => Promise.all(started.map(one => one.daemon.stop())))

const path = '/api/storage/artifacts'
const store = (more: string, tenantId: string | null = tenant) =>
  api.call(tenantId, 'POST', path, { json: `{"kind": "agent_trace", ${more}}` })

describe('with AUTH_MODE=dev a tenant that is named', () => {
  test('in the query alone is believed, on every route', async () => {
    const stored = await api.call(null, 'POST', `${path}?tenant_id=${tenant}`, {
      json: '{"kind": "agent_trace", "payload": [1]}',
    })
    expect([stored.status, stored.json.artifact.tenant_id]).toEqual([201, tenant])
    const { id } = stored.json.artifact
    for (const [method, at, status] of [
      ['GET', `${path}?tenant_id=${tenant.toUpperCase()}`, 200],
      ['GET', `${path}/${id}?tenant_id=${tenant}`, 200],
      ['GET', `${path}/${id}?tenant_id=${randomUUID()}`, 404],
      ['GET', `${path}/${id}/url?tenant_id=${tenant}`, 200],
      ['DELETE', `${path}/${id}?tenant_id=${tenant}`, 200],
    ] as const)
      expect([method, at, (await api.call(null, method, at)).status]).toEqual([method, at, status])
  })

  test('in the JSON body alone is believed', async () => {
    const answer = await store(`"payload": 1, "tenant_id": "${tenant}"`, null)
    expect([answer.status, answer.json.artifact.tenant_id]).toEqual([201, tenant])
    const hydration = await api.call(null, 'POST', '/api/storage/hydrate', {
      json: `{"metadata": [{}], "tenant_id": "${tenant}"}`,
    })
    expect(hydration.status).toBe(200)
  })

  test('twice must be the same', async () => {
    const other = randomUUID()
    for (const answer of [
      await api.call(tenant, 'GET', `${path}?tenant_id=${other}`),
      await api.call(null, 'POST', `${path}?tenant_id=${other}`, {
        json: `{"kind": "agent_trace", "payload": 1, "tenant_id": "${tenant}"}`,
      }),
    ])
      expect([answer.status, answer.json.code]).toEqual([403, 'tenant_mismatch'])
  })

  test('nowhere, or badly, is asked for', async () => {
    for (const query of ['', '?tenant_id=', '?tenant_id=7', `?tenant_id=${tenant}&tenant_id=${tenant}`])
      for (const answer of [
        await api.call(null, 'GET', `${path}${query}`),
        await api.call(null, 'POST', `${path}${query}`, { json: '{"kind": "agent_trace", "payload": 1}' }),
      ])
        expect([query, answer.status, answer.json.code]).toEqual([query, 400, 'tenant_required'])
  })
})

test('a tenant in query or body is not believed with a service key or a token', async () => {
  const service = await start({ AUTH_MODE: 'service', SERVICE_API_KEY: serviceKey })
  const jwt = await start({ AUTH_MODE: 'jwt', JWT_SECRET: 's'.repeat(32) })
  const headers = { authorization: `Bearer ${serviceKey}` }
  const json = `{"kind": "agent_trace", "payload": 1, "tenant_id": "${tenant}"}`
  const answers = [
    await service.call(null, 'GET', `${path}?tenant_id=${tenant}`, { headers }),
    await service.call(null, 'POST', path, { json, headers }),
    await jwt.call(null, 'GET', `${path}?tenant_id=${tenant}`),
    await jwt.call(null, 'POST', path, { json }),
  ]
  expect(answers.map(answer => [answer.status, answer.json.code])).toEqual([
    [400, 'tenant_required'],
    [400, 'tenant_required'],
    [401, 'unauthorized'],
    [401, 'unauthorized'],
  ])
})

test('a limit over 200 gets 200, and the answer says limit and offset', async () => {
  const of = randomUUID()
  await environment.admin.query(
    `insert into artifact_refs (tenant_id, kind, r2_key, created_at)
     select $1::uuid, 'agent_trace', 'tenants/' || $1::uuid || '/' || n, now() - n * interval '1 s' from generate_series(1, 205) n`,
    [of],
  )
  const first = await api.call(of, 'GET', `${path}?limit=1000`)
  expect(first.json).toMatchObject({ status: 'ok', limit: 200, offset: 0, count: 200 })
  expect(first.json.next_cursor).not.toBeNull()
  const rest = await api.call(of, 'GET', `${path}?limit=201&offset=200`)
  expect(rest.json).toMatchObject({ limit: 200, offset: 200, count: 5, next_cursor: null })
})

test('an artifact that is not there is "Artifact not found"', async () => {
  const answer = await api.call(tenant, 'GET', `${path}/${randomUUID()}`)
  expect([answer.status, answer.json.message]).toEqual([404, 'Artifact not found'])
})

describe('a JSON payload of any content type', () => {
  test.each([
    ['text/markdown', '"# Title"'],
    ['application/x-ndjson', '[{"n": 1.10}, null]'],
    ['text/html; charset=utf-8', `{"html": "${'<p>'.repeat(2000)}"}`],
  ])('%s is stored, and read as JSON and as its bytes', async (contentType, payload) => {
    const stored = await store(`"payload": ${payload}, "content_type": "${contentType}"`)
    expect([stored.status, stored.json.artifact.content_type]).toEqual([201, contentType])
    const at = `${path}/${stored.json.artifact.id}`
    const read = await api.call(tenant, 'GET', at)
    expect(read.text.endsWith(`"payload":${payload}}`)).toBe(true)
    const raw = await api.call(tenant, 'GET', `${at}?raw=1`)
    expect([raw.headers.get('content-type'), raw.text]).toEqual([contentType, payload])
    // Nothing of it runs in a browser.
    expect(raw.headers.get('x-content-type-options')).toBe('nosniff')
    expect(raw.headers.get('content-security-policy')).toContain('sandbox')
  })

  test('bytes that only look like JSON stay bytes', async () => {
    const stored = await api.call(tenant, 'POST', `${path}/raw?kind=attachment`, {
      body: '[1]',
      headers: { 'content-type': 'text/plain' },
    })
    const read = await api.call(tenant, 'GET', `${path}/${stored.json.artifact.id}`)
    expect(read.json).toMatchObject({ payload_base64: Buffer.from('[1]').toString('base64') })
  })
})
