// One tenant, however it behaves, neither stops the worker nor keeps others waiting, nor makes the daemon grow.
import { randomBytes, randomUUID } from 'node:crypto'
import { connect, type Socket } from 'node:net'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { startApi, type TestApi } from '../support/api.ts'
import { drained, hydrated, insertMessage, newConversation, useEnvironment } from '../support/environment.ts'

const MiB = 1024 * 1024
const environment = await useEnvironment()
let api: TestApi
const bad = randomUUID()
const good = randomUUID()

beforeAll(async () => {
  api = await startApi(environment, { env: { API_HYDRATE_LIMIT_BYTES: String(16 * MiB) } })
})
afterAll(async () => {
  await api.daemon.stop(1000)
})

async function storeRaw(tenantId: string, bytes: Buffer, contentType = 'image/png'): Promise<string> {
  const answer = await api.call(tenantId, 'POST', '/api/storage/artifacts/raw?kind=attachment', {
    body: new Uint8Array(bytes),
    headers: { 'content-type': contentType },
  })
  expect(answer.status).toBe(201)
  return answer.json.artifact.id
}

/** A connection that has sent this much of a request, and does nothing more. */
function send(head: string): Promise<Socket> {
  const { hostname, port } = new URL(api.url)
  return new Promise((resolve, reject) => {
    const socket = connect(Number(port), hostname, () => {
      socket.pause()
      socket.write(head)
      resolve(socket)
    })
    socket.on('error', reject)
    onTestFinished(() => {
      socket.destroy()
    })
  })
}

const get = (tenantId: string, path: string) =>
  `GET ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\nx-tenant-id: ${tenantId}\r\n\r\n`

/** The tenant that behaves well: stores, reads, hydrates, and has its rows offloaded, all in good time. */
async function expectGoodService(): Promise<void> {
  const began = performance.now()
  const { conversationId, tenantId } = await newConversation(environment)
  const row = await insertMessage(environment, conversationId, '{"tool_interactions": [1.10]}')
  await drained(environment)
  expect(await hydrated(environment, row)).toBe('{"tool_interactions": [1.10]}')
  const id = await storeRaw(tenantId, randomBytes(1000))
  expect((await api.call(tenantId, 'GET', `/api/storage/artifacts/${id}?raw=1`)).bytes).toHaveLength(1000)
  const hydration = await api.call(tenantId, 'POST', '/api/storage/hydrate', { json: '{"metadata": [{}]}' })
  expect(hydration.status).toBe(200)
  expect((await api.call(null, 'GET', '/readyz')).status).toBe(200)
  expect(performance.now() - began).toBeLessThan(8000)
}

test('readers that do not read hold their own share only', async () => {
  const id = await storeRaw(bad, randomBytes(20 * MiB))
  const sockets = await Promise.all(
    Array.from({ length: 40 }, () => send(get(bad, `/api/storage/artifacts/${id}?raw=1`))),
  )
  await new Promise(resolve => setTimeout(resolve, 1000))
  await expectGoodService()
  for (const socket of sockets) socket.destroy()
  await expect
    .poll(async () => (await api.call(bad, 'GET', `/api/storage/artifacts/${id}?raw=1`)).status, {
      timeout: 10_000,
    })
    .toBe(200)
})

test('clients that leave at once leave nothing behind', async () => {
  const id = await storeRaw(bad, randomBytes(6 * MiB))
  for (const suffix of ['?raw=1', '']) {
    for (let round = 0; round < 3; round++) {
      const sockets = await Promise.all(
        Array.from({ length: 30 }, () => send(get(bad, `/api/storage/artifacts/${id}${suffix}`))),
      )
      await new Promise(resolve => setTimeout(resolve, round * 5))
      for (const socket of sockets) socket.destroy()
    }
    const began = performance.now()
    await expect
      .poll(async () => (await api.call(bad, 'GET', `/api/storage/artifacts/${id}?raw=1`)).status, {
        timeout: 8000,
      })
      .toBe(200)
    expect(performance.now() - began).toBeLessThan(8000)
  }
})

test('uploads that stall hold their own share only', async () => {
  const head =
    `POST /api/storage/artifacts/raw?kind=attachment HTTP/1.1\r\nHost: 127.0.0.1\r\nx-tenant-id: ${bad}\r\n` +
    'content-type: text/plain\r\ncontent-length: 1000\r\n\r\nx'
  const sockets = await Promise.all(Array.from({ length: 40 }, () => send(head)))
  await new Promise(resolve => setTimeout(resolve, 500))
  await expectGoodService()
  for (const socket of sockets) socket.destroy()
})

test('JSON bodies that stall take nothing from anybody', async () => {
  const head =
    `POST /api/storage/artifacts HTTP/1.1\r\nHost: 127.0.0.1\r\nx-tenant-id: ${bad}\r\n` +
    `content-type: application/json\r\ncontent-length: ${7 * MiB}\r\n\r\n{"kind"`
  const sockets = await Promise.all(Array.from({ length: 40 }, () => send(head)))
  // What has not arrived is not charged.
  const json = `{"kind": "agent_trace", "payload": "${'x'.repeat(5 * MiB)}"}`
  await expect
    .poll(async () => (await api.call(bad, 'POST', '/api/storage/artifacts', { json })).status, {
      timeout: 10_000,
    })
    .toBe(201)
  await expectGoodService()
  for (const socket of sockets) socket.destroy()
})

test('one request can not have the same large payload hydrated two hundred times', async () => {
  const large = await storeRaw(good, Buffer.from(`{"text": "${'x'.repeat(3 * MiB)}"}`), 'application/json')
  const answer = await api.call(good, 'POST', '/api/storage/hydrate', {
    json: `{"metadata": [${Array.from({ length: 200 }, () => `{"artifact_metadata_ref": "${large}"}`).join(',')}]}`,
  })
  expect(answer.status).toBe(200)
  expect(answer.bytes.length).toBeLessThan(17 * MiB)
  expect(answer.json.errors.length).toBeGreaterThan(190)
  expect(new Set(answer.json.errors.map((e: { code: string }) => e.code))).toEqual(
    new Set(['artifact_too_large']),
  )
  expect(answer.json.metadata.filter((m: object) => 'text' in m)).toHaveLength(5)
})

test('a chain of pointers is followed so far and no further', async () => {
  let id: string | undefined
  for (let n = 0; n < 210; n++) {
    id = await storeRaw(
      good,
      Buffer.from(id === undefined ? '{"end": true}' : `{"artifact_metadata_ref": "${id}"}`),
      'application/json',
    )
  }
  const answer = await api.call(good, 'POST', '/api/storage/hydrate', {
    json: `{"metadata": [{"artifact_metadata_ref": "${id}"}]}`,
  })
  expect(answer.json.errors).toMatchObject([{ index: 0, code: 'pointer_chain_too_long' }])
})

test('garbage in the middle of an answer ends it, and is not answered into it', async () => {
  const bytes = randomBytes(30 * MiB)
  const id = await storeRaw(good, bytes)
  const socket = await send(get(good, `/api/storage/artifacts/${id}?raw=1`))
  await new Promise(resolve => setTimeout(resolve, 300))
  socket.write('this is not HTTP\r\n\r\n')
  await new Promise(resolve => setTimeout(resolve, 300))
  const chunks: Buffer[] = []
  socket.on('data', chunk => chunks.push(chunk))
  const closed = new Promise(resolve => socket.once('close', resolve))
  socket.resume()
  await closed
  const got = Buffer.concat(chunks)
  const body = got.subarray(got.indexOf('\r\n\r\n') + 4)
  expect(bytes.subarray(0, body.length).equals(body)).toBe(true)
})

test('a key that lies under another tenant is neither read nor signed', async () => {
  const id = await storeRaw(good, Buffer.from('secret of the good one'))
  const { rows } = await environment.admin.query('select r2_key from artifact_refs where id = $1', [id])
  const stray = randomUUID()
  await environment.admin.query(
    `insert into artifact_refs (id, tenant_id, kind, r2_key, content_type) values ($1, $2, 'attachment', $3, 'text/plain')`,
    [stray, bad, rows[0].r2_key],
  )
  for (const suffix of ['', '?raw=1', '/url']) {
    const answer = await api.call(bad, 'GET', `/api/storage/artifacts/${stray}${suffix}`)
    expect([answer.status, answer.json.code]).toEqual([502, 'artifact_foreign_key'])
  }
})
