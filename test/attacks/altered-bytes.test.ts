// Whoever can write the bucket, or stands in for it, puts other bytes where a payload was: they are an error, and never
// an answer that looks whole.
import { randomBytes, randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { createLighterClient, openStore } from '../../src/index.ts'
import { startApi } from '../support/api.ts'
import { lighter } from '../support/black-box.ts'
import { useEnvironment } from '../support/environment.ts'
import { sendRaw } from '../support/raw-http.ts'
import { startFaultyStore } from '../support/request-fault.ts'
import { storeByHand } from '../support/stored-artifacts.ts'

const environment = await useEnvironment()
const faulty = await startFaultyStore(environment.env.R2_ENDPOINT ?? '')
const env = { R2_ENDPOINT: faulty.endpoint, STREAM_THRESHOLD_BYTES: '65536' }
const api = await startApi(environment, { env })
afterAll(async () => {
  await api.daemon.stop()
  await faulty.close()
})
beforeEach(() => {
  faulty.fault = () => null
})

const size = 300_000
const tenantId = randomUUID()
const png = { contentType: 'image/png' }

/** An object whose store answers other bytes than were put, without saying how many there are. */
async function lying(bytes: Buffer): Promise<{ id: string; key: string }> {
  const stored = await storeByHand(environment, tenantId, randomBytes(size), png)
  faulty.fault = (method, path) =>
    method === 'GET' && path.includes(stored.id)
      ? outgoing => {
          outgoing.writeHead(200, { 'content-type': 'image/png', etag: '"as it was"' })
          outgoing.end(bytes)
        }
      : null
  return stored
}

/** Two requests on one connection, and all that came. */
async function onTheWire(id: string, headers = ''): Promise<{ head: string; body: Buffer }> {
  const get = (last: string) =>
    `GET /api/storage/artifacts/${id}?raw=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nx-tenant-id: ${tenantId}\r\n${headers}${last}\r\n`
  const text = await sendRaw(api.url, [get(''), get('connection: close\r\n')], 60_000)
  const end = text.indexOf('\r\n\r\n')
  return { head: text.slice(0, end), body: Buffer.from(text.slice(end + 4), 'latin1') }
}

test('a replaced object that is longer is refused before the answer begins', async () => {
  const { id, key } = await storeByHand(environment, tenantId, randomBytes(size), png)
  await environment.store.put(key, randomBytes(size + 1), png)
  for (const suffix of ['?raw=1', '']) {
    const answer = await api.call(tenantId, 'GET', `/api/storage/artifacts/${id}${suffix}`)
    expect([answer.status, answer.json?.code]).toEqual([502, 'artifact_corrupt'])
  }
})

describe.each([
  ['longer', size + 1],
  ['much longer', 40 * size],
  ['shorter', size - 1],
  ['other bytes', size],
])('a payload that the store answers %s', (_name, length) => {
  test('breaks the connection, and no byte is passed on that is beyond its length', async () => {
    const { id } = await lying(randomBytes(length))
    const { head, body } = await onTheWire(id)
    // Noticed before the answer began, or less than was said: no client takes it for the whole. And nothing after it.
    expect(head).toMatch(/^HTTP\/1.1 (200|502) /)
    if (head.includes(' 200 ')) expect(head.toLowerCase()).toContain(`content-length: ${size}`)
    expect(body.length).toBeLessThan(size)
  })

  test('breaks the connection of a range', async () => {
    const { id } = await lying(randomBytes(length))
    const { head, body } = await onTheWire(id, `range: bytes=${size - 100}-\r\n`)
    expect(head).toMatch(/^HTTP\/1.1 (206|502) /)
    if (head.includes(' 206 ')) expect(body.length).toBeLessThan(100)
  })

  test('is an error in the client over pg and S3', async () => {
    const { id } = await lying(randomBytes(length))
    const store = openStore(environment.config(env).store)
    onTestFinished(() => store.close())
    const client = createLighterClient({ pool: environment.worker, store, tenantId })
    const read = async () => {
      let bytes = 0
      for await (const chunk of await client.stream(id)) {
        bytes += chunk.length
        expect(bytes).toBeLessThan(size)
      }
    }
    await expect(read()).rejects.toMatchObject({ code: 'artifact_corrupt' })
    await expect(client.get(id)).rejects.toMatchObject({ code: 'artifact_corrupt' })
  })
})

test('a part is answered only as the part that was asked for, of the object that was checked', async () => {
  const bytes = randomBytes(size)
  const { id } = await storeByHand(environment, tenantId, bytes, png)
  const part = () =>
    api.call(tenantId, 'GET', `/api/storage/artifacts/${id}?raw=1`, { headers: { range: 'bytes=1000-1999' } })
  expect((await part()).bytes).toEqual(bytes.subarray(1000, 2000))
  expect((await part()).bytes).toEqual(bytes.subarray(1000, 2000))
  // A store that knows neither ranges nor conditions, and has something else there.
  let asked = 0
  faulty.fault = (method, path) =>
    method === 'GET' && path.includes(id) && asked++ === 0
      ? outgoing => {
          outgoing.writeHead(200, { 'content-length': 1000, etag: '"another"' })
          outgoing.end(randomBytes(1000))
        }
      : null
  expect((await part()).bytes).toEqual(bytes.subarray(1000, 2000))
  expect(asked).toBeGreaterThan(1)
})

test('an export says that the payload is damaged, and has none of its bytes', async () => {
  const other = randomUUID()
  const { id, key } = await storeByHand(environment, other, randomBytes(size), png)
  await environment.store.put(key, randomBytes(size + 1), png)
  const to = `s3://${environment.env.R2_BUCKET}/${environment.database}-export/`
  const { stdout } = await lighter(environment, ['export', '--tenant', other, '--to', to, '--json'])
  expect(JSON.parse(stdout).counts).toMatchObject({ artifacts: 0, damaged: 1 })
  const manifest = await environment.store.get(`${environment.database}-export/manifest.json`)
  expect(JSON.parse(manifest.body.toString()).damaged).toMatchObject([
    { id, damage: expect.stringContaining('artifact_corrupt') },
  ])
})

describe('a client over HTTP', () => {
  /** A server, or what is before it, that answers this. */
  async function clientOf(headers: Record<string, string>, status: number, body: Buffer) {
    const server = createServer((_incoming, outgoing) => {
      outgoing.writeHead(status, headers)
      outgoing.end(body)
    })
    server.listen(0, '127.0.0.1')
    await new Promise(resolve => server.once('listening', resolve))
    onTestFinished(() => void server.close())
    const { port } = server.address() as AddressInfo
    return createLighterClient({ baseUrl: `http://127.0.0.1:${port}`, tenantId, retries: 0 })
  }
  const read = async (stream: AsyncIterable<Uint8Array>) => {
    let bytes = 0
    for await (const chunk of stream) bytes += chunk.length
    return bytes
  }

  test.each([
    ['too long', 'bytes 10-19/100', 11],
    ['too short', 'bytes 10-19/100', 9],
    ['of another place', 'bytes 11-20/100', 10],
    ['of no place', 'nothing', 10],
  ])('refuses a part that is %s', async (_name, range, length) => {
    const client = await clientOf({ 'content-range': range }, 206, Buffer.alloc(length))
    const part = async () => read(await client.stream(randomUUID(), { range: { start: 10, end: 20 } }))
    await expect(part()).rejects.toMatchObject({ code: expect.stringMatching(/artifact_corrupt|bad_answer/) })
  })

  test('refuses a payload that is longer than its artifact says, also without a hash', async () => {
    const artifact = { id: randomUUID(), size_bytes: 3, sha256: null, created_at: '2026-01-01T00:00:00Z' }
    const body = JSON.stringify({ status: 'ok', artifact, payload: [1, 2, 3] })
    const client = await clientOf({ 'content-type': 'application/json' }, 200, Buffer.from(body))
    await expect(client.get(artifact.id)).rejects.toMatchObject({ code: 'artifact_corrupt' })
  })
})
