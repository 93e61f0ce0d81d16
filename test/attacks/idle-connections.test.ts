// Connections that do next to nothing: of a few tenants, or of nobody at all. Everybody else is served meanwhile.
import { randomBytes, randomUUID } from 'node:crypto'
import { connect, type Socket } from 'node:net'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { startApi, type TestApi } from '../support/api.ts'
import { until, useEnvironment } from '../support/environment.ts'
import { startCli } from '../support/process.ts'

const MiB = 1024 * 1024
const environment = await useEnvironment()
let api: TestApi

beforeAll(async () => {
  api = await startApi(environment, { worker: false })
})
afterAll(async () => {
  await api.daemon.stop(1000)
})

interface Client {
  socket: Socket
  received(): string
  closed(): boolean
}

/** A connection that has sent this much. It reads what comes only if it is told to. */
function open(text: string, reads: boolean, url = api.url): Promise<Client> {
  const { hostname, port } = new URL(url)
  const chunks: Buffer[] = []
  let closed = false
  return new Promise((resolve, reject) => {
    const socket = connect(Number(port), hostname, () => {
      socket.on('error', () => undefined)
      socket.write(text)
      resolve({ socket, received: () => Buffer.concat(chunks).toString('latin1'), closed: () => closed })
    })
    if (reads) socket.on('data', chunk => chunks.push(chunk))
    else socket.pause()
    socket.on('close', () => {
      closed = true
    })
    socket.once('error', reject)
    onTestFinished(() => {
      socket.destroy()
    })
  })
}

const post = (tenant: string, path: string, headers: string, body: string) =>
  `POST ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\nx-tenant-id: ${tenant}\r\n${headers}\r\n\r\n${body}`

const jsonPath = '/api/storage/artifacts'
const rawPath = '/api/storage/artifacts/raw?kind=attachment'

async function storeRaw(tenant: string, bytes: Buffer): Promise<string> {
  const answer = await api.call(tenant, 'POST', rawPath, {
    body: new Uint8Array(bytes),
    headers: { 'content-type': 'image/png' },
  })
  expect(answer.status).toBe(201)
  return answer.json.artifact.id
}

/** A tenant that nobody has heard of is served at once: stores, reads and hydrates. */
async function expectGoodService(): Promise<void> {
  const tenant = randomUUID()
  const stored = await api.call(tenant, 'POST', jsonPath, {
    json: `{"kind": "agent_trace", "payload": "${'x'.repeat(2 * MiB)}"}`,
  })
  expect([stored.status, stored.text.slice(0, 200)]).toEqual([201, expect.any(String)])
  const id = await storeRaw(tenant, randomBytes(5 * MiB))
  expect((await api.call(tenant, 'GET', `${jsonPath}/${id}?raw=1`)).bytes).toHaveLength(5 * MiB)
  const hydration = await api.call(tenant, 'POST', '/api/storage/hydrate', { json: '{"metadata": [{}]}' })
  expect(hydration.status).toBe(200)
}

const settled = (clients: Client[], what: string) =>
  until(() => clients.every(client => client.closed()), what, 40_000)

test('four slow JSON bodies each of two tenants take nothing from others, and are cut off', async () => {
  const tenants = [randomUUID(), randomUUID()]
  const clients = await Promise.all(
    tenants.flatMap(tenant =>
      Array.from({ length: 4 }, () =>
        open(
          post(tenant, jsonPath, `content-type: application/json\r\ncontent-length: ${8 * MiB}`, '{"kind"'),
          true,
        ),
      ),
    ),
  )
  await expectGoodService()
  // Not even from themselves: what has not arrived is not charged.
  for (const tenant of tenants)
    expect((await api.call(tenant, 'GET', `${jsonPath}?limit=1`)).status).toBe(200)
  await settled(clients, 'they are cut off')
  for (const client of clients) expect(client.received()).toMatch(/^HTTP\/1\.1 408 .*"request_timeout"/s)
}, 60_000)

test('bodies that all but arrived hold no more than their tenants may, and a newcomer has its own room', async () => {
  const tenants = Array.from({ length: 3 }, () => randomUUID())
  const body = `{"kind": "agent_trace", "payload": "${'x'.repeat(7 * MiB)}`
  const clients = await Promise.all(
    tenants.flatMap(tenant =>
      Array.from({ length: 4 }, () =>
        open(
          post(tenant, jsonPath, `content-type: application/json\r\ncontent-length: ${8 * MiB}`, body),
          true,
        ),
      ),
    ),
  )
  await until(
    () => clients.every(({ socket }) => socket.writableLength === 0 || socket.destroyed),
    'they came',
  )
  await expectGoodService()
  await settled(clients, 'they are cut off')
}, 60_000)

test('four slow uploads each of two tenants leave a slot to others, and are cut off', async () => {
  const clients = await Promise.all(
    [randomUUID(), randomUUID()].flatMap(tenant =>
      Array.from({ length: 4 }, () =>
        open(post(tenant, rawPath, 'content-type: text/plain\r\ncontent-length: 1000000', 'x'), true),
      ),
    ),
  )
  const dripping = setInterval(() => {
    for (const { socket } of clients) if (!socket.destroyed) socket.write('x')
  }, 200)
  onTestFinished(() => clearInterval(dripping))
  await expectGoodService()
  await settled(clients, 'they are cut off')
  for (const client of clients) expect(client.received()).toMatch(/^HTTP\/1\.1 408 /)
}, 60_000)

test('eight unread downloads each of four tenants leave a slot to others, and are cut off', async () => {
  const tenants = Array.from({ length: 4 }, () => randomUUID())
  const paths: string[] = []
  for (const tenant of tenants) {
    const path = `${jsonPath}/${await storeRaw(tenant, randomBytes(16 * MiB))}?raw=1`
    const get = `GET ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\nx-tenant-id: ${tenant}\r\n\r\n`
    for (let n = 0; n < 8; n++) await open(get, false)
    paths.push(path)
  }
  await expectGoodService()
  // Unread, a socket does not tell that its other end has gone. That its slot is free again does.
  const [tenant = '', path = ''] = [tenants[0], paths[0]]
  await until(
    async () => (await api.call(tenant, 'GET', path)).status === 200,
    'the slots of the first are free again',
    60_000,
  )
}, 300_000)

test('a slow client that keeps up a small rate is served to the end', async () => {
  const tenant = randomUUID()
  const bytes = 150_000
  const client = await open(
    post(tenant, rawPath, `content-type: text/plain\r\nconnection: close\r\ncontent-length: ${bytes}`, ''),
    true,
  )
  for (let sent = 0; sent < bytes; sent += 5000) {
    client.socket.write('x'.repeat(5000))
    await new Promise(resolve => setTimeout(resolve, 400))
  }
  await settled([client], 'it has its answer')
  expect(client.received()).toMatch(/^HTTP\/1\.1 201 /)
}, 60_000)

test.each([
  ['for no tenant', 'x-tenant-id: nobody\r\n', jsonPath, 400],
  ['that is too long', `x-tenant-id: ${randomUUID()}\r\n`, rawPath, 413],
])(
  'a POST %s is answered, and its connection closed, though its body never comes',
  async (_, header, path, status) => {
    const client = await open(
      `POST ${path} HTTP/1.1\r\nHost: 127.0.0.1\r\n${header}content-type: text/plain\r\ncontent-length: 900000000\r\n\r\nx`,
      true,
    )
    await until(() => client.closed(), 'the connection is closed', 5000)
    expect(client.received()).toMatch(new RegExp(`^HTTP/1\\.1 ${status} .*connection: close`, 'is'))
  },
)

test('a client that is refused in the middle of its body reads why', async () => {
  for (let n = 0; n < 20; n++) {
    const answer = await api.call(null, 'POST', jsonPath, {
      json: `{"kind": "agent_trace", "payload": "${'x'.repeat(6 * MiB)}"}`,
      headers: { 'x-tenant-id': 'nobody' },
    })
    expect(answer.json.code).toBe('tenant_required')
  }
})

test('silent connections do not take all places', async () => {
  const small = await startApi(environment, { worker: false, env: { API_MAX_CONNECTIONS: '10' } })
  onTestFinished(async () => {
    await small.daemon.stop(1000)
  })
  await Promise.all(Array.from({ length: 10 }, () => open('', true, small.url)))
  await until(
    () =>
      fetch(`${small.url}/healthz`, { signal: AbortSignal.timeout(2000) }).then(
        answer => answer.status === 200,
        () => false,
      ),
    'somebody else is served',
    8000,
  )
})

test('connections that never send a request, or half of one, do not delay the end', async () => {
  const daemon = startCli(['start', '--no-worker'], {
    env: { ...environment.env, AUTH_MODE: 'dev', LOG_LEVEL: 'info' },
  })
  await daemon.says('the HTTP API listens')
  const url = String(daemon.logged().find(line => typeof line.address === 'string')?.address)
  const kept = await open('GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n', true, url)
  await until(() => kept.received().includes('200 OK'), 'a connection is kept alive')
  await open('', true, url)
  await open('GET /healthz HTTP/1.1\r\nHost:', true, url)
  const began = performance.now()
  daemon.signal('SIGTERM')
  const { code } = await daemon.ended
  expect(code).toBe(0)
  expect(performance.now() - began).toBeLessThan(12_000)
})
