// Objects, and answers of the store, that are far longer than anybody said: each read ends at a limit that was known
// before it began.
import { randomUUID } from 'node:crypto'
import { constants, createZstdCompress, zstdCompressSync } from 'node:zlib'
import { afterAll, beforeEach, expect, test } from 'vitest'
import { startApi } from '../support/api.ts'
import { lighter } from '../support/black-box.ts'
import { createEnvironment, useEnvironment } from '../support/environment.ts'
import { sendRaw } from '../support/raw-http.ts'
import { startFaultyStore } from '../support/request-fault.ts'
import { sha256Of, storeByHand, storeFrameByHand } from '../support/stored-artifacts.ts'

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
  faulty.requests.length = 0
})

const MiB = 1024 * 1024
const tenantId = randomUUID()
const zstd = { contentEncoding: 'zstd', contentType: 'text/plain' }
const read = (id: string) => api.call(tenantId, 'GET', `/api/storage/artifacts/${id}?raw=1`)

/** A few hundred KiB that unpack to so much. */
async function bomb(bytes: number): Promise<Buffer> {
  const zeros = Buffer.alloc(MiB)
  const packed: Buffer[] = []
  const compressor = createZstdCompress()
  const done = new Promise(resolve => compressor.once('end', resolve))
  compressor.on('data', chunk => packed.push(chunk))
  for (let n = 0; n < bytes / MiB; n++) compressor.write(zeros)
  compressor.end()
  await done
  return Buffer.concat(packed)
}

test('a bomb that is streamed ends where its row says that the payload ends', async () => {
  const size = 200_000
  const { id } = await storeByHand(environment, tenantId, await bomb(512 * MiB), {
    ...zstd,
    sizeBytes: size,
    sha256: sha256Of(Buffer.alloc(size)),
  })
  const text = await sendRaw(api.url, [
    `GET /api/storage/artifacts/${id}?raw=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nx-tenant-id: ${tenantId}\r\nconnection: close\r\n\r\n`,
  ])
  // Broken off, or not even begun.
  expect(text).toMatch(/^HTTP\/1.1 (200|502) /)
  expect(text.length - text.indexOf('\r\n\r\n') - 4).toBeLessThan(size)
})

test('an object that would make the reader remember 128 MiB is refused', async () => {
  const payload = Buffer.alloc(1000, 'x')
  const params = { [constants.ZSTD_c_windowLog]: 27, [constants.ZSTD_c_contentSizeFlag]: 0 }
  const packed = zstdCompressSync(Buffer.alloc(MiB, 'x'), { params })
  const { id } = await storeByHand(environment, tenantId, packed, {
    ...zstd,
    sizeBytes: payload.length,
    sha256: sha256Of(payload),
  })
  const answer = await read(id)
  expect([answer.status, answer.json.code]).toEqual([502, 'artifact_corrupt'])
})

test('a frame that is longer than what it may hold is not asked for', async () => {
  const { id, key } = await storeFrameByHand(environment, tenantId, Buffer.alloc(8 * MiB), {
    ...zstd,
    sizeBytes: 10,
  })
  const answer = await read(id)
  expect([answer.status, answer.json.code]).toEqual([502, 'artifact_corrupt'])
  expect(faulty.requests.filter(request => request.path.includes(key))).toEqual([])
})

test('a loose object that is longer than its row says is not read to its end', async () => {
  const { id, key } = await storeByHand(environment, tenantId, Buffer.from('"small"'))
  await environment.store.put(key, Buffer.alloc(64 * MiB, ' '), { contentType: 'application/json' })
  const answer = await api.call(tenantId, 'POST', '/api/storage/hydrate', {
    json: `{"metadata": [{"artifact_metadata_ref": "${id}"}]}`,
  })
  expect(answer.json.errors).toMatchObject([{ index: 0, code: 'artifact_corrupt' }])
})

test('an owner object that is longer than any of ours is damaged, and is not read', async () => {
  const own = await createEnvironment()
  const daemon = await startApi(own)
  await daemon.daemon.stop()
  const key = `${own.env.R2_PREFIX}pg-lighter-owner.json`
  const { body } = await own.store.get(key)
  const padded = Buffer.concat([body, Buffer.alloc(20 * MiB, ' ')])
  await own.store.put(key, padded, { contentType: 'application/json' })
  const { code, stdout, stderr } = await lighter(own, ['start'], {
    env: { AUTH_MODE: 'dev', LOG_LEVEL: 'info' },
  })
  await own.close()
  expect(code).toBe(1)
  expect(stdout + stderr).toContain('is not an owner object')
})

/** Bytes that go on, as long as somebody takes them. */
const endless = (status: number) => () => (outgoing: import('node:http').ServerResponse) => {
  outgoing.writeHead(status, { 'content-type': 'application/xml' })
  const chunk = Buffer.alloc(MiB, ' ')
  let sent = 0
  const more = () => {
    // Without a limit the reader would have it all.
    while (!outgoing.destroyed && sent++ < 300)
      if (!outgoing.write(chunk)) return void outgoing.once('drain', more)
    outgoing.end('<Error><Code>InternalError</Code></Error>')
  }
  outgoing.on('close', () => taken.push(sent))
  more()
}
const taken: number[] = []

test.each([
  ['a list', 200],
  ['an error', 403],
])('%s without an end is given up', async (_name, status) => {
  taken.length = 0
  faulty.fault = (method, path) =>
    method === 'GET' && path.includes('list-type=2') ? endless(status)() : null
  const answer = await lighter(environment, ['sweep', 'orphans', '--deep', '--dry-run'], { env })
  expect(answer.code).not.toBe(0)
  expect(answer.stdout + answer.stderr).toMatch(/store_bad_answer|is longer than/)
  // 16 MiB at most, and what lay in the buffers of the network.
  expect(Math.max(...taken)).toBeLessThan(100)
})
