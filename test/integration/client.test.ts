// The client library over both of its transports, against a real daemon, database and store.
import { createHash, randomBytes, randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { fieldRefKey, metadataRefKey } from '../../src/artifacts/pointer-keys.ts'
import { createPortableSha256 } from '../../src/client/sha256.ts'
import {
  createLighterClient,
  HydrateError,
  type HydrateFailure,
  hydrate,
  type LighterClient,
  LighterError,
  LighterHttpError,
} from '../../src/index.ts'
import { startApi, type TestApi } from '../support/api.ts'
import {
  asJsonbText,
  drained,
  insertMessage,
  newConversation,
  rawMetadata,
  until,
  useEnvironment,
} from '../support/environment.ts'
import { startFaultyStore } from '../support/request-fault.ts'
import { startTcpProxy } from '../support/tcp-proxy.ts'

const MiB = 1024 * 1024
const environment = await useEnvironment()
let api: TestApi
/** A login with no rights but those of a member of lighter_tenant. */
let tenantPool: pg.Pool
let login: string

beforeAll(async () => {
  api = await startApi(environment, { env: { API_HYDRATE_LIMIT_BYTES: String(MiB), API_RATE_LIMIT: '0' } })
  login = `client_${randomBytes(6).toString('hex')}`
  await environment.admin.query(`create role ${login} login password 'secret' in role lighter_tenant`)
  const url = new URL(environment.urls.admin)
  url.username = login
  url.password = 'secret'
  tenantPool = new pg.Pool({ connectionString: url.href, max: 4 })
  tenantPool.on('error', () => undefined)
})
afterAll(async () => {
  await tenantPool.end()
  await api.daemon.stop()
  await environment.admin.query(`drop role ${login}`)
})

const overHttp = (tenantId: string, more = {}) => createLighterClient({ baseUrl: api.url, tenantId, ...more })
const direct = (tenantId: string) =>
  createLighterClient({ pool: tenantPool, store: environment.store, tenantId })

const transports: [string, (tenantId: string) => LighterClient][] = [
  ['over HTTP', overHttp],
  ['over pg and S3', direct],
]

const sha256 = (data: string | Uint8Array) => createHash('sha256').update(data).digest('hex')

async function read(stream: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const chunks: Uint8Array[] = []
  for await (const chunk of stream) chunks.push(chunk)
  return Buffer.concat(chunks)
}

async function errorOf(promise: Promise<unknown>): Promise<LighterError> {
  const error = await promise.then(
    () => new Error('it succeeded, an error was expected'),
    (reason: unknown) => reason,
  )
  if (!(error instanceof LighterError)) throw error
  return error
}

async function rejectsWithReason(promise: Promise<unknown>, signal: AbortSignal): Promise<void> {
  const reason = await promise.catch((error: unknown) => error)
  expect(signal.aborted).toBe(true)
  expect(reason).toBe(signal.reason)
}

/** Rows of one tenant, offloaded, as they stand in the table and as they were. */
async function offload(metadata: string[], tenantId: string = randomUUID()) {
  const { conversationId } = await newConversation(environment, tenantId)
  const ids: string[] = []
  for (const text of metadata) ids.push(await insertMessage(environment, conversationId, text))
  await drained(environment)
  const rows: { id: string; metadata: string }[] = []
  const originals: string[] = []
  for (const [i, id] of ids.entries()) {
    const raw = await rawMetadata(environment, id)
    rows.push({ id, metadata: raw ?? '' })
    originals.push((await asJsonbText(environment, metadata[i] ?? null)) ?? '')
  }
  return { tenantId, rows, originals }
}

const numbers =
  '{"big": 12345678901234567890.5, "huge": 1e400, "small": -0.10, "u": "\\u00e9\\ud83d\\ude00 \\\\"}'
const withTool = (i: number, more = '') => `{"model": "m", "tool_interactions": [${i}, ${numbers}]${more}}`
const large = `, "trace": "${'0123456789abcdef'.repeat(700)}"`

test('the pointers it looks for are those that the daemon leaves', () => {
  const rows = readFileSync(path.join(import.meta.dirname, '../../src/client/rows.ts'), 'utf8')
  expect(rows).toContain(`['${metadataRefKey}', \`${fieldRefKey('$' + '{field}')}\`]`)
})

describe.each(transports)('%s', (_name, clientOf) => {
  test('text is hydrated to the last digit, and objects by the parser that is given', async () => {
    const { tenantId, rows, originals } = await offload([withTool(1), withTool(2, large)])
    const client = clientOf(tenantId)
    expect(rows[0]?.metadata).toContain('tool_interactions_ref')
    expect(rows[1]?.metadata).toContain('artifact_metadata_ref')
    for (const [i, row] of rows.entries()) {
      const original = originals[i] ?? ''
      expect(await client.hydrate(row)).toEqual({ id: row.id, metadata: original })
      expect(await hydrate(client, row)).toEqual({ id: row.id, metadata: original })
      const parsed = { id: row.id, metadata: JSON.parse(row.metadata) as object }
      expect(await client.hydrate(parsed)).toEqual({ id: row.id, metadata: JSON.parse(original) })
      const seen: string[] = []
      const parse = (text: string) => {
        seen.push(text)
        return 'parsed'
      }
      expect((await client.hydrate(parsed, { parse })).metadata).toBe('parsed')
      expect(seen).toEqual([original])
      const named = await client.hydrate({ meta: row.metadata }, { column: 'meta' })
      expect(named).toEqual({ meta: original })
    }
  })

  test('many rows come back in their order, those without pointers as they are', async () => {
    const texts = Array.from({ length: 230 }, (_, i) => (i % 10 === 0 ? withTool(i, large) : withTool(i)))
    const { tenantId, rows, originals } = await offload(texts)
    const plain = { id: 'plain', metadata: '{"a":  1}' }
    const mixed = [plain, ...rows, { id: 'null', metadata: null }]
    const hydrated = await clientOf(tenantId).hydrateMany(mixed)
    expect(hydrated[0]).toBe(plain)
    expect(hydrated.at(-1)).toBe(mixed.at(-1))
    expect(hydrated.slice(1, -1).map(row => row.metadata)).toEqual(originals)
  })

  test("another tenant's pointer, a made-up one and a damaged payload are errors of their rows only", async () => {
    const other = await offload([withTool(1)])
    const damaged = await offload([withTool(2)])
    const { tenantId, rows, originals } = await offload([withTool(3)], damaged.tenantId)
    const { rows: objects } = await environment.admin.query<{ key: string; row_id: string }>(
      'select r2_key as key, row_id from artifact_refs where tenant_id = $1 and row_id = $2',
      [tenantId, damaged.rows[0]?.id],
    )
    const key = objects[0]?.key ?? ''
    const { body } = await environment.store.get(key)
    await environment.store.put(key, Buffer.alloc(body.length, 'x'), { contentType: 'application/json' })
    const wrong = [
      other.rows[0] ?? {},
      { metadata: { tool_interactions_ref: randomUUID() } },
      damaged.rows[0] ?? {},
      { metadata: '{"tool_interactions_ref": "0b0f8a5e-5d3b-4d4e-9d3c-1f7f3a2b1c0d", ]' },
    ]
    const mixed = [...wrong, rows[0] ?? {}]
    const client = clientOf(tenantId)
    const error = await errorOf(client.hydrateMany(mixed))
    if (!(error instanceof HydrateError)) throw error
    const codes = ['artifact_not_found', 'artifact_not_found', 'artifact_corrupt', 'malformed_json']
    expect(error.failures.map(failure => failure.error.code)).toEqual(codes)
    expect(error.rows.slice(0, 4)).toEqual(wrong)
    expect(error.rows[4]).toMatchObject({ metadata: originals[0] })
    const told: HydrateFailure[] = []
    const kept = await client.hydrateMany(mixed, { onError: failure => told.push(failure) })
    expect(kept).toEqual(error.rows)
    expect(told.map(({ index, row }) => [index, row])).toEqual(wrong.map((row, i) => [i, row]))
    expect(await errorOf(client.hydrate(wrong[2] ?? {}))).toMatchObject({ code: 'artifact_corrupt' })
  })

  test('rows whose payloads are more than one answer may bring come in several', async () => {
    const big = (i: number) => `{"tool_interactions": ["${String(i).repeat(700_000)}"]}`
    const { tenantId, rows, originals } = await offload([1, 2, 3, 4].map(big))
    const hydrated = await clientOf(tenantId).hydrateMany(rows)
    expect(hydrated.map(row => sha256(row.metadata))).toEqual(originals.map(sha256))
  })

  test('what is put is what is got', async () => {
    const tenantId = randomUUID()
    const client = clientOf(tenantId)
    const entityId = randomUUID()
    const facts = { kind: 'agent_trace', entityType: 'run', entityId }
    const artifact = await client.put({ ...facts, json: numbers })
    expect(artifact).toEqual({
      id: expect.stringMatching(/^[0-9a-f-]{36}$/),
      tenantId,
      ...facts,
      key: expect.stringContaining(`/tenants/${tenantId}/agent_trace/`),
      contentType: 'application/json',
      sizeBytes: Buffer.byteLength(numbers),
      sha256: sha256(numbers),
      createdAt: expect.any(Date),
    })
    const got = await client.get(artifact.id)
    expect(got.artifact).toEqual(artifact)
    expect(got.payload.text()).toBe(numbers)
    expect(got.payload.json(text => text.length)).toBe(numbers.length)

    const value = await client.put({ ...facts, payload: { a: ['x', null, 'é'] } })
    expect((await client.get(value.id)).payload.json()).toEqual({ a: ['x', null, 'é'] })
    const text = await client.put({ ...facts, payload: 'a string' })
    expect((await client.get(text.id)).payload.text()).toBe('"a string"')

    const bytes = randomBytes(5000)
    const shapes = [
      bytes,
      new Blob([bytes]),
      Readable.from([bytes.subarray(0, 7), bytes.subarray(7)]),
      new Blob([bytes]).stream(),
    ]
    for (const body of shapes) {
      const stored = await client.put({ kind: 'attachment', body })
      expect(stored).toMatchObject({ contentType: 'application/octet-stream', sha256: sha256(bytes) })
      const { payload } = await client.get(stored.id)
      expect(Buffer.from(payload.bytes).equals(bytes)).toBe(true)
      expect(() => payload.text()).toThrow(expect.objectContaining({ code: 'payload_not_text' }))
    }
    const csv = await client.put({ kind: 'attachment', body: 'a;b\n', contentType: 'text/csv' })
    expect(csv.contentType).toBe('text/csv')
    expect((await client.get(csv.id)).payload.text()).toBe('a;b\n')
    // Called JSON, and neither JSON nor UTF-8.
    const odd = await client.put({
      kind: 'attachment',
      body: new Uint8Array([0x22, 0xff, 0x22]),
      contentType: 'application/json',
    })
    expect([...(await client.get(odd.id)).payload.bytes]).toEqual([0x22, 0xff, 0x22])

    const long = JSON.stringify('é'.repeat(3 * MiB))
    const stored = await client.put({ ...facts, json: long })
    expect((await client.get(stored.id)).payload.text() === long).toBe(true)
  })

  test('what can not be stored is refused', async () => {
    const client = clientOf(randomUUID())
    const kind = 'agent_trace'
    for (const json of ['{"a": 1,}', '1, "kind": "attachment"', '', '"\ud800"'])
      expect(await errorOf(client.put({ kind, json }))).toMatchObject({ code: 'malformed_json' })
    expect(await errorOf(client.put({ kind: 'data', payload: 1 }))).toMatchObject({
      code: 'kind_not_allowed',
    })
    expect(await errorOf(client.put({ kind, payload: 1, entityId: 'x' }))).toMatchObject({
      code: 'invalid_request',
    })
    await expect(client.put({ kind, payload: undefined })).rejects.toThrow(TypeError)
    await expect(client.put({ kind, payload: () => 1 })).rejects.toThrow(TypeError)
    await expect(client.put({ kind, payload: 1, json: '1' } as never)).rejects.toThrow(TypeError)
    expect(await errorOf(client.get('x'))).toMatchObject({ code: 'invalid_request' })
    const broken = Object.assign(new Error('the source broke'), { code: 'ECONNRESET' })
    async function* source() {
      yield Buffer.alloc(MiB)
      throw broken
    }
    await expect(client.put({ kind: 'attachment', body: source() })).rejects.toBe(broken)
    // Refused before it is read to its end.
    async function* endless() {
      for (let i = 0; i < 1000; i++) yield Buffer.alloc(MiB)
    }
    expect(await errorOf(client.put({ kind: 'data', body: endless() }))).toMatchObject({
      code: 'kind_not_allowed',
    })
  })

  test('the same idempotency key stores once', async () => {
    const client = clientOf(randomUUID())
    const artifact = { kind: 'agent_trace', payload: { a: 1 }, idempotencyKey: 'once' }
    const first = await client.put(artifact)
    expect(await client.put(artifact)).toEqual(first)
    expect(await errorOf(client.put({ ...artifact, payload: 2 }))).toMatchObject({
      code: 'idempotency_mismatch',
    })
    expect((await client.list()).artifacts).toHaveLength(1)
  })

  test('12 MB go in and out as streams, whole and in parts', async () => {
    const client = clientOf(randomUUID())
    const bytes = randomBytes(12_000_000)
    const pieces = Array.from({ length: 12 }, (_, i) => bytes.subarray(i * 1_000_000, (i + 1) * 1_000_000))
    const { id, sizeBytes } = await client.put({ kind: 'attachment', body: Readable.from(pieces) })
    expect(sizeBytes).toBe(bytes.length)
    expect(sha256(await read(await client.stream(id)))).toBe(sha256(bytes))
    for (const [start, end] of [
      [0, 10],
      [5_000_000, 5_100_000],
      [11_999_999, undefined],
      [11_999_000, 99_000_000],
    ] as const) {
      const part = await read(await client.stream(id, { range: { start, end } }))
      expect(part.equals(bytes.subarray(start, end))).toBe(true)
    }
    expect(await errorOf(client.stream(id, { range: { start: 12_000_000 } }))).toMatchObject({
      code: 'range_not_satisfiable',
    })
    await expect(client.stream(id, { range: { start: 3, end: 3 } })).rejects.toThrow(TypeError)
    const whole = await new Response(await client.stream(id)).arrayBuffer()
    expect(sha256(new Uint8Array(whole))).toBe(sha256(bytes))
    const hash = createHash('sha256')
    await pipeline(await client.stream(id), hash)
    expect(hash.digest('hex')).toBe(sha256(bytes))
    expect(sha256(await read(Readable.from(await client.stream(id))))).toBe(sha256(bytes))
    // Left early, and aborted in the middle.
    for await (const chunk of await client.stream(id)) {
      expect(chunk.length).toBeGreaterThan(0)
      break
    }
    const controller = new AbortController()
    const reading = (async () => {
      for await (const _ of await client.stream(id, { signal: controller.signal })) controller.abort()
    })()
    await rejectsWithReason(reading, controller.signal)
  })

  test('damaged bytes are an error, never data', async () => {
    const client = clientOf(randomUUID())
    for (const size of [1000, 6 * MiB]) {
      const bytes = randomBytes(size)
      const { id, key } = await client.put({ kind: 'attachment', body: bytes })
      const damaged = Buffer.from(bytes)
      damaged[size >> 1] = (damaged[size >> 1] ?? 0) ^ 1
      await environment.store.put(key, damaged, { contentType: 'application/octet-stream' })
      const code = expect.stringMatching(/artifact_corrupt|answer_broken/)
      let got = 0
      const reading = (async () => {
        for await (const chunk of await client.stream(id)) got += chunk.length
      })()
      expect(await errorOf(reading)).toMatchObject({ code })
      expect(got).toBeLessThan(size)
      expect(await errorOf(client.get(id))).toMatchObject({ code })
      await environment.store.delete([key])
      expect(await errorOf(client.stream(id))).toMatchObject({ code: 'artifact_object_missing' })
    }
  })

  test("another tenant's artifact is not found", async () => {
    const { id } = await clientOf(randomUUID()).put({ kind: 'agent_trace', payload: 1 })
    const stranger = clientOf(randomUUID())
    const calls = [
      () => stranger.get(id),
      () => stranger.stream(id),
      () => stranger.delete(id, { force: true }),
      () => stranger.url(id),
    ]
    for (const call of calls) expect(await errorOf(call())).toMatchObject({ code: 'artifact_not_found' })
    expect((await stranger.list()).artifacts).toEqual([])
    expect(await errorOf(stranger.get(randomUUID()))).toMatchObject({ code: 'artifact_not_found' })
  })

  test('artifacts are listed page by page, and deleted', async () => {
    const { tenantId, rows } = await offload([withTool(1)])
    const client = clientOf(tenantId)
    const entityId = randomUUID()
    const put: string[] = []
    for (let i = 0; i < 5; i++)
      put.unshift((await client.put({ kind: 'agent_trace', payload: i, entityType: 'run', entityId })).id)
    const found: string[] = []
    for (let cursor: string | undefined, page = 0; page < 4; page++) {
      const { artifacts, nextCursor } = await client.list({
        kind: 'agent_trace',
        entityType: 'run',
        entityId,
        limit: 2,
        cursor,
      })
      found.push(...artifacts.map(artifact => artifact.id))
      if (nextCursor === null) break
      cursor = nextCursor
    }
    expect(found).toEqual(put)
    expect(await errorOf(client.list({ cursor: 'nonsense' }))).toMatchObject({ code: 'invalid_request' })

    const [id = ''] = put
    const { deletedAt } = await client.delete(id)
    expect(await client.delete(id)).toEqual({ deletedAt })
    expect(await errorOf(client.get(id))).toMatchObject({ code: 'artifact_deleted' })
    const ref: string = JSON.parse(rows[0]?.metadata ?? '').tool_interactions_ref
    expect(await errorOf(client.delete(ref))).toMatchObject({ code: 'artifact_in_use' })
    await client.delete(ref, { force: true })
    expect(await errorOf(client.hydrate(rows[0] ?? {}))).toMatchObject({ code: 'artifact_gone' })
  })

  test('a URL reads without credentials', async () => {
    const client = clientOf(randomUUID())
    const { id } = await client.put({ kind: 'attachment', body: 'bytes', contentType: 'text/plain' })
    const { url, expiresAt } = await client.url(id, { expiresInSeconds: 60 })
    expect(Math.abs(expiresAt.getTime() - Date.now() - 60_000)).toBeLessThan(10_000)
    const answer = await fetch(url)
    expect(answer.headers.get('content-type')).toContain('text/plain')
    expect(await answer.text()).toBe('bytes')
  })

  test('an aborted call rejects with the reason', async () => {
    const reason = new Error('not needed any more')
    const tenantId = randomUUID()
    const client = clientOf(tenantId)
    const aborted = AbortSignal.abort(reason)
    await expect(client.get(randomUUID(), { signal: aborted })).rejects.toBe(reason)
    await expect(client.hydrate({ metadata: null }, { signal: aborted })).rejects.toBe(reason)
    const controller = new AbortController()
    const hanging = client.put({
      kind: 'attachment',
      signal: controller.signal,
      body: (async function* () {
        yield Buffer.alloc(10)
        controller.abort(reason)
        await new Promise(() => undefined)
      })(),
    })
    await expect(hanging).rejects.toBe(reason)
    // What had been begun is given up, for the sweep to find.
    await until(async () => {
      const { rows } = await environment.admin.query(
        `select from lighter.objects where tenant_id = $1 and (state <> 'uploading' or lease_until > now())`,
        [tenantId],
      )
      return rows.length === 0
    }, 'the upload is given up')
    expect((await client.list()).artifacts).toEqual([])
  })
})

describe('over HTTP, when things go wrong', () => {
  /** The API by way of a proxy that fails as it is told. */
  async function faulty() {
    const proxy = await startFaultyStore(api.url)
    onTestFinished(() => proxy.close())
    return proxy
  }

  /** Answers of the proxy in turn; then everything gets through. */
  const inTurn =
    <T>(...faults: T[]) =>
    () =>
      faults.shift() ?? null

  test('requests are repeated after lost connections, lost answers and 503, and store nothing twice', async () => {
    const proxy = await faulty()
    const tenantId = randomUUID()
    const client = createLighterClient({ baseUrl: proxy.endpoint, tenantId })
    proxy.fault = inTurn<'drop' | 'drop-answer' | number>('drop', 'drop-answer', 503)
    const { id } = await client.put({ kind: 'agent_trace', payload: 1 })
    expect(proxy.requests).toHaveLength(4)
    expect((await client.list()).artifacts.map(artifact => artifact.id)).toEqual([id])
    proxy.fault = inTurn<'drop' | 'drop-answer' | number>('drop-answer')
    const raw = await client.put({ kind: 'attachment', body: 'raw' })
    expect((await client.list()).artifacts.map(artifact => artifact.id)).toEqual([raw.id, id])
    proxy.fault = inTurn<'drop' | 'drop-answer' | number>('drop-answer')
    expect(await client.delete(id)).toEqual({ deletedAt: expect.any(Date) })
    const { rows, originals } = await offload([withTool(1)], tenantId)
    proxy.fault = inTurn<'drop' | 'drop-answer' | number>(503, 'drop')
    expect(await client.hydrate(rows[0] ?? {})).toMatchObject({ metadata: originals[0] })
  })

  test('no more often than was asked for, and never what is refused for good', async () => {
    const proxy = await faulty()
    const client = createLighterClient({ baseUrl: proxy.endpoint, tenantId: randomUUID(), retries: 1 })
    proxy.fault = () => 503
    expect(await errorOf(client.list())).toMatchObject({ code: 'http_503', status: 503, retryable: true })
    expect(proxy.requests).toHaveLength(2)
    proxy.fault = () => 500
    expect(await errorOf(client.list())).toMatchObject({ code: 'http_500', retryable: false })
    expect(proxy.requests).toHaveLength(3)
    proxy.fault = () => null
    const error = await errorOf(client.get(randomUUID()))
    expect(error).toBeInstanceOf(LighterHttpError)
    expect(error).toMatchObject({
      status: 404,
      requestId: expect.stringMatching(/^[0-9a-f-]{36}$/),
      retryable: false,
    })
    expect(await errorOf(client.put({ kind: 'data', payload: 1 }))).toMatchObject({
      status: 400,
      field: 'kind',
    })
    expect(proxy.requests).toHaveLength(5)
    proxy.fault = () => 'drop'
    const stream = client.put({ kind: 'attachment', body: Readable.from([Buffer.from('x')]) })
    expect(await errorOf(stream)).toMatchObject({ code: 'network_error', status: 0, retryable: true })
    expect(proxy.requests).toHaveLength(6)
  })

  test('a failed request leaves its rows as they were, and the rest is not asked for', async () => {
    const proxy = await faulty()
    const client = createLighterClient({ baseUrl: proxy.endpoint, tenantId: randomUUID(), retries: 0 })
    proxy.fault = () => 503
    const rows = Array.from({ length: 450 }, () => ({ metadata: { tool_interactions_ref: randomUUID() } }))
    const told: string[] = []
    const kept = await client.hydrateMany([{ metadata: {} }, ...rows], {
      onError: ({ error }) => told.push(error.code),
    })
    expect(kept.slice(1)).toEqual(rows)
    expect(told).toEqual(rows.map(() => 'http_503'))
    expect(proxy.requests).toHaveLength(1)
  })

  test('Retry-After is honoured', async () => {
    let calls = 0
    const limited: typeof fetch = async (input, init) => {
      calls++
      return calls === 1
        ? new Response('{"code": "rate_limited", "message": "slow"}', {
            status: 429,
            headers: { 'retry-after': '1' },
          })
        : fetch(input, init)
    }
    const started = performance.now()
    await overHttp(randomUUID(), { fetch: limited }).list()
    expect(performance.now() - started).toBeGreaterThan(990)
    expect(calls).toBe(2)
    const forLong: typeof fetch = async () =>
      new Response('', { status: 429, headers: { 'retry-after': '3600' } })
    expect(await errorOf(overHttp(randomUUID(), { fetch: forLong }).list())).toMatchObject({
      retryAfterMs: 3_600_000,
    })
  })

  test('silence ends in a time-out, and a wait can be aborted', async () => {
    const proxy = await startTcpProxy(api.url)
    proxy.blackHole()
    const client = createLighterClient({
      baseUrl: `http://127.0.0.1:${proxy.port}`,
      tenantId: randomUUID(),
      timeoutMs: 100,
      retries: 1,
    })
    expect(await errorOf(client.list())).toMatchObject({ code: 'timeout', status: 0, retryable: true })
    expect(proxy.accepted()).toBeGreaterThanOrEqual(2)
    const patient = createLighterClient({ baseUrl: `http://127.0.0.1:${proxy.port}`, tenantId: randomUUID() })
    const signal = AbortSignal.timeout(50)
    await rejectsWithReason(patient.list({ signal }), signal)
    await proxy.refuse()
    const waiting = AbortSignal.timeout(100)
    await rejectsWithReason(patient.list({ signal: waiting }), waiting)
    expect(await errorOf(client.list())).toMatchObject({
      code: 'network_error',
      message: expect.stringContaining('ECONNREFUSED'),
    })
  })

  test('rows without pointers need no server at all', async () => {
    const client = createLighterClient({ baseUrl: 'http://127.0.0.1:1', retries: 0 })
    const rows: { metadata?: unknown }[] = [
      {},
      { metadata: null },
      { metadata: { tool_interactions: [1], tool_interactions_ref: 'not a uuid' } },
      { metadata: '{"tool_interactions": "tool_interactions_ref"}' },
      { metadata: 'no JSON, but "tool_interactions_ref"' },
      { metadata: ['artifact_metadata_ref'] },
    ]
    const hydrated = await client.hydrateMany(rows)
    for (const [i, row] of rows.entries()) expect(hydrated[i]).toBe(row)
  })

  test('bytes that change on the way are found out', async () => {
    const tenantId = randomUUID()
    const { id } = await overHttp(tenantId).put({ kind: 'attachment', body: randomBytes(300_000) })
    const flipping: typeof fetch = async (input, init) => {
      const answer = await fetch(input, init)
      const bytes = new Uint8Array(await answer.arrayBuffer())
      // In the middle, and still a character of base64.
      bytes[bytes.length >> 1] = bytes[bytes.length >> 1] === 65 ? 66 : 65
      return new Response(bytes, answer)
    }
    const client = overHttp(tenantId, { fetch: flipping })
    expect(await errorOf(client.get(id))).toMatchObject({ code: 'artifact_corrupt' })
    expect(await errorOf(read(await client.stream(id)))).toMatchObject({ code: 'artifact_corrupt' })
  })

  test('the token is asked for before every request', async () => {
    const seen: (string | null)[] = []
    const listening: typeof fetch = async (input, init) => {
      seen.push(new Headers(init?.headers).get('authorization'))
      return fetch(input, init)
    }
    let n = 0
    const client = overHttp(randomUUID(), { fetch: listening, token: async () => `t${++n}` })
    await client.list()
    await client.list()
    expect(seen).toEqual(['Bearer t1', 'Bearer t2'])
    const without = overHttp(randomUUID(), { token: () => Promise.reject(new Error('signed out')) })
    expect(await errorOf(without.list())).toMatchObject({ code: 'token_unavailable' })
  })

  test('options that can not be used are refused at once', () => {
    for (const options of [
      { baseUrl: 'localhost:4001' },
      { baseUrl: api.url, retries: -1 },
      { baseUrl: api.url, timeoutMs: Number.NaN },
    ])
      expect(() => createLighterClient(options)).toThrow(TypeError)
    expect(() => direct('me')).toThrow(TypeError)
  })
})

test('a login that is no member of lighter_tenant is told so', async () => {
  const client = createLighterClient({
    pool: environment.app,
    store: environment.store,
    tenantId: randomUUID(),
  })
  expect(await errorOf(client.list())).toMatchObject({
    code: 'database_refused',
    hint: expect.stringContaining('grant lighter_tenant'),
  })
})

test('a database that can not be reached is a retryable error', async () => {
  const pool = new pg.Pool({ connectionString: 'postgres://x@127.0.0.1:1/x' })
  onTestFinished(() => pool.end())
  const client = createLighterClient({ pool, store: environment.store, tenantId: randomUUID() })
  const row = { metadata: { tool_interactions_ref: randomUUID() } }
  expect(await errorOf(client.hydrate(row))).toMatchObject({ code: 'database_unavailable', retryable: true })
})

test('the portable SHA-256 is SHA-256', () => {
  for (const size of [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000, 100_003]) {
    const bytes = randomBytes(size)
    const hash = createPortableSha256()
    for (let at = 0, step = 1; at < size; at += step, step = (step * 7) % 97 || 1)
      hash.update(bytes.subarray(at, at + step))
    expect(hash.hex()).toBe(sha256(bytes))
  }
})

test('what browsers import has nothing of Node, pg or the AWS SDK in it', () => {
  const source = path.join(import.meta.dirname, '../../src')
  const seen = new Set<string>()
  const walk = (file: string) => {
    if (seen.has(file)) return
    seen.add(file)
    const imports = readFileSync(file, 'utf8').matchAll(
      /^(?:import|export) (?!type )[^;']*? from '([^']+)'$/gm,
    )
    for (const [, specifier = ''] of imports) {
      expect(specifier, file).toMatch(/^\.\.?\//)
      walk(path.resolve(path.dirname(file), specifier))
    }
  }
  walk(path.join(source, 'client/index.ts'))
  expect([...seen].map(file => path.relative(source, file))).toEqual(
    expect.arrayContaining(['client/http.ts', 'artifacts/raw-json.ts', 'errors.ts']),
  )
})
