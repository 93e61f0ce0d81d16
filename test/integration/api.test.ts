// The HTTP API as an application uses it, against a real daemon, database and store.
import { createHash, randomBytes, randomUUID } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { freePort } from '../../src/embedded/ports.ts'
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
import { spawnDaemon } from '../support/spawn-daemon.ts'

const environment = await useEnvironment()
let api: TestApi
const tenant = randomUUID()

beforeAll(async () => {
  api = await startApi(environment, {
    env: { STREAM_THRESHOLD_BYTES: '65536', ARTIFACT_KINDS: 'invoice_scan' },
  })
})
afterAll(async () => {
  await api.daemon.stop()
})

const sha256 = (data: string | Buffer) => createHash('sha256').update(data).digest('hex')

async function store(payload: string, more = '', of = tenant) {
  const answer = await api.call(of, 'POST', '/api/storage/artifacts', {
    json: `{"kind": "agent_trace", "payload": ${payload}${more}}`,
  })
  expect(answer.text).toContain('"status":"ok"')
  return answer.json.artifact
}

async function storeRaw(body: Buffer, contentType: string, of = tenant) {
  const answer = await api.call(of, 'POST', '/api/storage/artifacts/raw?kind=attachment', {
    body: new Uint8Array(body),
    headers: { 'content-type': contentType },
  })
  expect(answer.status).toBe(201)
  return answer.json.artifact
}

describe('storing', () => {
  test('a JSON payload is stored as the text it is, to the last digit', async () => {
    const payload =
      '{"n": 12345678901234567890.5, "e": 1e400,  "u": "\\u00e9", "a":[1.0, -0.0], "__proto__": 1}'
    const entity = randomUUID()
    const answer = await api.call(tenant, 'POST', '/api/storage/artifacts', {
      json: `{"payload": ${payload}, "kind": "agent_trace", "entity_type": "run", "entity_id": "${entity}"}`,
    })
    expect(answer.status).toBe(201)
    const { artifact } = answer.json
    expect(artifact).toEqual({
      id: expect.stringMatching(/^[0-9a-f-]{36}$/),
      tenant_id: tenant,
      kind: 'agent_trace',
      entity_type: 'run',
      entity_id: entity,
      r2_key: expect.stringContaining(`/tenants/${tenant}/agent_trace/`),
      content_type: 'application/json',
      size_bytes: Buffer.byteLength(payload),
      sha256: sha256(payload),
      created_at: expect.stringMatching(/^\d{4}-.*Z$/),
    })
    const read = await api.call(tenant, 'GET', `/api/storage/artifacts/${artifact.id}`)
    expect(read.status).toBe(200)
    expect(read.text).toContain(`"payload":${payload}}`)
    expect(read.json.artifact).toEqual(artifact)
    const raw = await api.call(tenant, 'GET', `/api/storage/artifacts/${artifact.id}?raw=1`)
    expect(raw.text).toBe(payload)
    const { rows } = await environment.admin.query(
      'select state, lease_until from lighter.objects where r2_key = $1',
      [artifact.r2_key],
    )
    expect(rows).toEqual([{ state: 'stored', lease_until: null }])
  })

  test.each(['null', '[]', '""', '0', 'true', '{"a": {"payload": 1}}'])('the payload %s', async payload => {
    const artifact = await store(payload)
    const read = await api.call(tenant, 'GET', `/api/storage/artifacts/${artifact.id}`)
    expect(read.text.endsWith(`"payload":${payload}}`)).toBe(true)
  })

  test.each([
    ['data', /says nothing/],
    ['my_kind', /ARTIFACT_KINDS/],
    ['Agent-Trace', /snake_case/],
    ["x'; drop table artifact_refs; --", /snake_case/],
  ])('the kind %s is refused with the reason', async (kind, reason) => {
    const answer = await api.call(tenant, 'POST', '/api/storage/artifacts', {
      json: JSON.stringify({ kind, payload: 1 }),
    })
    expect(answer.status).toBe(400)
    expect(answer.json).toMatchObject({ status: 'error', code: 'kind_not_allowed', field: 'kind' })
    expect(answer.json.message).toMatch(reason)
  })

  test('a kind that ARTIFACT_KINDS adds is taken', async () => {
    const answer = await api.call(tenant, 'POST', '/api/storage/artifacts', {
      json: '{"kind": "invoice_scan", "payload": 1}',
    })
    expect(answer.status).toBe(201)
  })

  test.each([
    ['{"kind": "agent_trace", "payload": {"a": 1,}}', 'malformed_json', 'body'],
    ['{"kind": "agent_trace"}', 'invalid_request', 'body.payload'],
    ['{"kind": 7, "payload": 1}', 'invalid_request', 'body.kind'],
    ['{"kind": "agent_trace", "payload": 1, "entity_id": "x"}', 'invalid_request', 'body.entity_id'],
    [
      '{"kind": "agent_trace", "payload": 1, "content_type": "no type"}',
      'invalid_request',
      'body.content_type',
    ],
    ['[1]', 'invalid_request', 'body'],
    ['', 'malformed_json', 'body'],
    [`{"kind": "agent_trace", "payload": ${'['.repeat(600)}${']'.repeat(600)}}`, 'malformed_json', 'body'],
  ])('the body %.60s is refused and names the field', async (json, code, field) => {
    const answer = await api.call(tenant, 'POST', '/api/storage/artifacts', { json })
    expect(answer.status).toBe(400)
    expect(answer.json).toMatchObject({ status: 'error', code, request_id: expect.any(String) })
    expect(answer.json.field).toBe(field)
  })

  test('bytes of any type are stored as they are, large ones in parts', async () => {
    const bytes = randomBytes(12_000_000)
    const artifact = await storeRaw(bytes, 'image/x-raw')
    expect(artifact).toMatchObject({
      size_bytes: bytes.length,
      sha256: sha256(bytes),
      content_type: 'image/x-raw',
    })
    const read = await api.call(tenant, 'GET', `/api/storage/artifacts/${artifact.id}?raw=1`)
    expect(read.headers.get('content-type')).toBe('image/x-raw')
    expect(read.bytes.equals(bytes)).toBe(true)
    const asJson = await api.call(tenant, 'GET', `/api/storage/artifacts/${artifact.id}`)
    expect(asJson.json.content_type).toBe('image/x-raw')
    expect(Buffer.from(asJson.json.payload_base64, 'base64').equals(bytes)).toBe(true)
  })

  test('what only claims to be JSON is not put into an answer as if it were', async () => {
    const artifact = await storeRaw(Buffer.from('1}, "status": "evil"'), 'application/json')
    const read = await api.call(tenant, 'GET', `/api/storage/artifacts/${artifact.id}`)
    expect(read.json.status).toBe('ok')
    expect(Buffer.from(read.json.payload_base64, 'base64').toString()).toBe('1}, "status": "evil"')
  })

  test.each(['multipart opened', 'part'])(
    'an upload whose %s the store refuses is told to come again',
    async step => {
      const faulty = await startFaultyStore(environment.env.R2_ENDPOINT ?? '')
      const troubled = await startApi(environment, { worker: false, env: { R2_ENDPOINT: faulty.endpoint } })
      try {
        faulty.fault = (method, target) =>
          target.includes(step === 'part' ? 'partNumber=' : 'uploads') && method !== 'DELETE' ? 503 : null
        let sent = 0
        const long = new ReadableStream({
          async pull(controller) {
            if (sent++ === 60) return controller.close()
            controller.enqueue(randomBytes(1_000_000))
            await new Promise(resolve => setTimeout(resolve, 10))
          },
        })
        const answer = await troubled.call(
          randomUUID(),
          'POST',
          '/api/storage/artifacts/raw?kind=attachment',
          {
            body: long,
            headers: { 'content-type': 'application/octet-stream' },
          },
        )
        expect([answer.status, answer.json.code]).toEqual([503, 'store_unavailable'])
        expect(answer.headers.get('retry-after')).toBe('5')
      } finally {
        // Its client has not ended its request.
        await troubled.daemon.stop(0)
        await faulty.close()
      }
    },
  )

  test('an upload that breaks off leaves no artifact, and an object that the sweep will find', async () => {
    const before = await environment.admin.query('select count(*)::int as n from artifact_refs')
    const broken = new ReadableStream({
      async start(controller) {
        controller.enqueue(randomBytes(9_000_000))
        await new Promise(resolve => setTimeout(resolve, 300))
        controller.error(new Error('gone'))
      },
    })
    await expect(
      api.call(tenant, 'POST', '/api/storage/artifacts/raw?kind=attachment', {
        body: broken,
        headers: { 'content-type': 'application/octet-stream' },
      }),
    ).rejects.toThrow()
    await expect
      .poll(
        async () => {
          const { rows } = await environment.admin.query(
            `select state, lease_until <= now() as orphan from lighter.objects where tenant_id = $1 and state = 'uploading'`,
            [tenant],
          )
          return rows
        },
        { timeout: 30_000 },
      )
      .toEqual([{ state: 'uploading', orphan: true }])
    const after = await environment.admin.query('select count(*)::int as n from artifact_refs')
    expect(after.rows).toEqual(before.rows)
  })
})

describe('Idempotency-Key', () => {
  const send = (key: string, payload: string) =>
    api.call(tenant, 'POST', '/api/storage/artifacts', {
      json: `{"kind": "agent_trace", "payload": ${payload}}`,
      headers: { 'idempotency-key': key },
    })

  test("the same request again gets the first one's artifact; another one is refused", async () => {
    const key = randomUUID()
    const first = await send(key, '1')
    const second = await send(key, '1')
    expect(second.status).toBe(201)
    expect(second.json.artifact).toEqual(first.json.artifact)
    const other = await send(key, '2')
    expect([other.status, other.json.code]).toEqual([422, 'idempotency_mismatch'])
  })

  test("of many at once one stores, and another tenant's key is its own", async () => {
    const key = randomUUID()
    const answers = await Promise.all(Array.from({ length: 8 }, () => send(key, '{"a": 1}')))
    const ids = new Set(answers.filter(a => a.status === 201).map(a => a.json.artifact.id))
    expect(ids.size).toBe(1)
    for (const answer of answers) expect([201, 409]).toContain(answer.status)
    const other = await api.call(randomUUID(), 'POST', '/api/storage/artifacts', {
      json: '{"kind": "agent_trace", "payload": {"a": 1}}',
      headers: { 'idempotency-key': key },
    })
    expect(other.status).toBe(201)
    expect(ids.has(other.json.artifact.id)).toBe(false)
  })

  test('a request that failed can be repeated at once', async () => {
    const key = randomUUID()
    const refused = await send(key, '{"a": }')
    expect(refused.status).toBe(400)
    expect((await send(key, '3')).status).toBe(201)
  })
})

describe('an Idempotency-Key of a request that is under way', () => {
  const leaseMs = 1500
  const path = '/api/storage/artifacts/raw?kind=attachment'
  const whole = 'first second'
  const request = (key: string) => ({ headers: { 'idempotency-key': key, 'content-type': 'text/plain' } })

  /** A body whose second half comes when `more` resolves. */
  const slowly = (more: Promise<unknown>) =>
    new ReadableStream({
      start: async controller => {
        controller.enqueue(Buffer.from('first '))
        await more
        controller.enqueue(Buffer.from('second'))
        controller.close()
      },
    })

  const tell = (ms: number) => new Promise(resolve => setTimeout(resolve, ms))

  async function storedUnder(entity: string) {
    const { rows } = await environment.admin.query<{ id: string; sha256: string }>(
      'select id, sha256 from artifact_refs where entity_id = $1',
      [entity],
    )
    return rows
  }

  test('is held by it, however long it takes, and its artifact is the answer to the next', async () => {
    const slow = await startApi(environment, { env: { OFFLOAD_LEASE_MS: String(leaseMs) } })
    try {
      const [key, entity] = [randomUUID(), randomUUID()]
      const to = `${path}&entity_type=run&entity_id=${entity}`
      const more = tell(3 * leaseMs)
      const first = slow.call(tenant, 'POST', to, { body: slowly(more), ...request(key) })
      await tell(2 * leaseMs)
      const second = await slow.call(tenant, 'POST', to, { body: whole, ...request(key) })
      expect([second.status, second.json.code]).toEqual([409, 'idempotency_conflict'])
      const answer = await first
      expect(answer.status).toBe(201)
      const third = await slow.call(tenant, 'POST', to, { body: whole, ...request(key) })
      expect(third.json.artifact.id).toBe(answer.json.artifact.id)
      expect(await storedUnder(entity)).toHaveLength(1)
    } finally {
      await slow.daemon.stop()
    }
  })

  test('comes free after a lease when its daemon was killed; it is stored once', async () => {
    const port = await freePort()
    const daemon = await spawnDaemon(environment, {
      env: {
        AUTH_MODE: 'dev',
        WITH_API: 'on',
        API_PORT: String(port),
        OFFLOAD_LEASE_MS: String(leaseMs),
      },
    })
    const [key, entity] = [randomUUID(), randomUUID()]
    const to = `${path}&entity_type=run&entity_id=${entity}`
    const cut = fetch(`http://127.0.0.1:${port}${to}`, {
      method: 'POST',
      body: slowly(tell(60_000)),
      duplex: 'half',
      headers: { 'x-tenant-id': tenant, ...request(key).headers },
    } as RequestInit).catch((error: unknown) => error)
    await until(async () => {
      const { rows } = await environment.admin.query('select from lighter.idempotency_keys where key = $1', [
        key,
      ])
      return rows.length === 1
    }, 'the request has its key')
    daemon.kill('SIGKILL')
    await daemon.ended
    expect(await cut).toBeInstanceOf(Error)
    const killedAt = performance.now()
    let answer = await api.call(tenant, 'POST', to, { body: whole, ...request(key) })
    expect([answer.status, answer.json.code]).toEqual([409, 'idempotency_conflict'])
    await until(async () => {
      answer = await api.call(tenant, 'POST', to, { body: whole, ...request(key) })
      return answer.status !== 409
    }, 'the key is free')
    expect(answer.status).toBe(201)
    expect(performance.now() - killedAt).toBeLessThan(3 * leaseMs)
    expect(await storedUnder(entity)).toEqual([{ id: answer.json.artifact.id, sha256: sha256(whole) }])
  })
})

describe('reading', () => {
  test('ETag, 304, ranges and headers of the raw form', async () => {
    const bytes = randomBytes(200_000)
    for (const artifact of [await storeRaw(bytes, 'text/html'), await storeRaw(bytes, 'image/png')]) {
      const path = `/api/storage/artifacts/${artifact.id}?raw=1`
      const whole = await api.call(tenant, 'GET', path)
      expect(whole.headers.get('etag')).toBe(`"${sha256(bytes)}"`)
      expect(whole.headers.get('cache-control')).toMatch(/private.*immutable/)
      expect(whole.headers.get('x-content-type-options')).toBe('nosniff')
      expect(whole.headers.get('content-disposition')).toMatch(
        artifact.content_type === 'text/html' ? /^attachment/ : /^inline/,
      )
      const again = await api.call(tenant, 'GET', path, {
        headers: { 'if-none-match': `"x", "${sha256(bytes)}"` },
      })
      expect([again.status, again.bytes.length]).toEqual([304, 0])
      // Twice: the first checks the whole, the second asks the store for the range alone.
      for (const range of [
        'bytes=0-9',
        'bytes=100000-100099',
        'bytes=100000-100099',
        'bytes=-5',
        'bytes=199990-',
      ]) {
        const part = await api.call(tenant, 'GET', path, { headers: { range } })
        const [, from, to] = /^bytes=(\d*)-(\d*)$/.exec(range) ?? []
        const expected =
          from === ''
            ? bytes.subarray(-Number(to))
            : bytes.subarray(Number(from), to === '' ? undefined : Number(to) + 1)
        expect(part.status).toBe(206)
        expect(part.bytes.equals(expected)).toBe(true)
      }
      const beyond = await api.call(tenant, 'GET', path, { headers: { range: 'bytes=200000-' } })
      expect([beyond.status, beyond.headers.get('content-range')]).toEqual([416, 'bytes */200000'])
      const stale = await api.call(tenant, 'GET', path, {
        headers: { range: 'bytes=0-9', 'if-range': '"old"' },
      })
      expect([stale.status, stale.bytes.length]).toEqual([200, 200_000])
    }
  })

  test('a payload that the daemon took off a row, whole and in its pack', async () => {
    const { conversationId, tenantId } = await newConversation(environment)
    const small = '{"tool_interactions": [{"n": 1.10}]}'
    const large = JSON.stringify({ trace: Array.from({ length: 9000 }, (_, n) => `step ${n}`) })
    const ids = await Promise.all(
      [small, small, large].map(metadata => insertMessage(environment, conversationId, metadata)),
    )
    await drained(environment)
    const listed = await api.call(
      tenantId,
      'GET',
      `/api/storage/artifacts?entity_type=conversation&entity_id=${conversationId}`,
    )
    expect(listed.json.count).toBe(3)
    for (const artifact of listed.json.artifacts) {
      const expected =
        artifact.kind === 'assistant_message_metadata'
          ? await asJsonbText(environment, large)
          : '[{"n": 1.10}]'
      const read = await api.call(tenantId, 'GET', `/api/storage/artifacts/${artifact.id}`)
      expect(read.text.endsWith(`"payload":${expected}}`)).toBe(true)
      const raw = await api.call(tenantId, 'GET', `/api/storage/artifacts/${artifact.id}?raw=1`)
      expect(raw.text).toBe(expected)
    }
    const metadata = await Promise.all(ids.map(id => rawMetadata(environment, id)))
    const hydrated = await api.call(tenantId, 'POST', '/api/storage/hydrate', {
      json: `{"metadata": [${metadata.join(', ')}, {"plain": 1.10}, null, 7]}`,
    })
    const originals = await Promise.all([small, small, large].map(each => asJsonbText(environment, each)))
    expect(hydrated.text).toBe(
      `{"status":"ok","count":6,"metadata":[${originals.join(',')},{"plain": 1.10},null,7],"errors":[]}`,
    )
    // Another tenant's pointers are not followed, and said to be nothing.
    const foreign = await api.call(tenant, 'POST', '/api/storage/hydrate', {
      json: `{"metadata": [{"ok": true}, ${metadata[0]}, {"tool_interactions_ref": "${randomUUID()}"}]}`,
    })
    expect(foreign.json.metadata[1]).toEqual(JSON.parse(metadata[0] ?? ''))
    expect(foreign.json.errors).toEqual([
      { index: 1, code: 'artifact_not_found', message: 'Artifact not found' },
      { index: 2, code: 'artifact_not_found', message: 'Artifact not found' },
    ])
    // One that came off a row is deleted only when that is asked for.
    const path = `/api/storage/artifacts/${listed.json.artifacts[0].id}`
    const inUse = await api.call(tenantId, 'DELETE', path)
    expect([inUse.status, inUse.json.code]).toEqual([409, 'artifact_in_use'])
    expect((await api.call(tenantId, 'DELETE', `${path}?force=true`)).status).toBe(200)
  })

  test('lists page by page, nothing twice and nothing left out', async () => {
    const of = randomUUID()
    await environment.admin.query(
      `insert into artifact_refs (tenant_id, kind, r2_key, created_at)
       select $1::uuid, (array['agent_trace', 'attachment', 'workflow_state'])[1 + n % 3], 'tenants/' || $1::uuid || '/' || n,
              now() - (n / 10) * interval '1 second'
         from generate_series(1, 95) n`,
      [of],
    )
    for (const filter of ['', '&kind=attachment']) {
      const seen: string[] = []
      let cursor = ''
      for (;;) {
        const { json } = await api.call(of, 'GET', `/api/storage/artifacts?limit=20${filter}${cursor}`)
        seen.push(...json.artifacts.map((a: { id: string }) => a.id))
        if (json.next_cursor === null) break
        cursor = `&cursor=${encodeURIComponent(json.next_cursor)}`
      }
      const { rows } = await environment.admin.query(
        `select id from artifact_refs where tenant_id = $1 and ($2 = '' or kind = 'attachment')
          order by created_at desc, id desc`,
        [of, filter],
      )
      expect(seen).toEqual(rows.map(row => row.id))
      const { json } = await api.call(of, 'GET', `/api/storage/artifacts?limit=7&offset=10${filter}`)
      expect(json.artifacts.map((a: { id: string }) => a.id)).toEqual(seen.slice(10, 17))
    }
    const bad = await api.call(of, 'GET', '/api/storage/artifacts?limit=0')
    expect([bad.status, bad.json.field]).toEqual([400, 'querystring.limit'])
  })

  test('URLs work without credentials until they expire', async () => {
    const loose = await storeRaw(Buffer.from('loose bytes'), 'text/plain')
    const packed = await store(JSON.stringify({ text: 'x'.repeat(2000) }))
    for (const [artifact, by, body] of [
      [loose, 'store', 'loose bytes'],
      [packed, 'api', JSON.stringify({ text: 'x'.repeat(2000) })],
    ]) {
      const { json } = await api.call(tenant, 'GET', `/api/storage/artifacts/${artifact.id}/url?expires_in=2`)
      expect(json.served_by).toBe(by)
      const response = await fetch(json.url)
      expect(response.status).toBe(200)
      expect(await response.text()).toBe(body)
      await expect.poll(async () => (await fetch(json.url)).status, { timeout: 5000 }).not.toBe(200)
    }
  })

  test('a deleted artifact is gone for its tenant, and was never there for others', async () => {
    const artifact = await store('{"secret": 1}')
    const path = `/api/storage/artifacts/${artifact.id}`
    expect((await api.call(tenant, 'DELETE', path)).json).toEqual({
      status: 'ok',
      id: artifact.id,
      deleted_at: expect.any(String),
    })
    for (const [method, suffix] of [
      ['GET', ''],
      ['GET', '?raw=1'],
      ['GET', '/url'],
      ['DELETE', ''],
    ] as const) {
      const answer = await api.call(tenant, method, `${path}${suffix}`)
      expect([answer.status, answer.json.code, answer.json.reason]).toEqual([
        410,
        'artifact_deleted',
        'deleted',
      ])
      expect((await api.call(randomUUID(), method, `${path}${suffix}`)).status).toBe(404)
    }
    const hydrated = await api.call(tenant, 'POST', '/api/storage/hydrate', {
      json: `{"metadata": [{"tool_interactions_ref": "${artifact.id}"}]}`,
    })
    expect(hydrated.json.errors).toMatchObject([{ index: 0, code: 'artifact_gone' }])
    await environment.admin.query(
      `update artifact_refs set deleted_reason = 'expired: standard plan, 90 days' where id = $1`,
      [artifact.id],
    )
    const expired = await api.call(tenant, 'GET', path)
    expect([expired.status, expired.json.code]).toEqual([410, 'artifact_expired'])
  })

  test('a damaged or missing object is an error, never data', async () => {
    const damaged = await storeRaw(randomBytes(1000), 'text/plain')
    await environment.store.put(damaged.r2_key, randomBytes(1000), { contentType: 'text/plain' })
    const large = await storeRaw(randomBytes(3_000_000), 'text/plain')
    await environment.store.put(large.r2_key, randomBytes(3_000_000), { contentType: 'text/plain' })
    const missing = await storeRaw(randomBytes(1000), 'text/plain')
    await environment.store.delete([missing.r2_key])
    for (const suffix of ['', '?raw=1']) {
      const one = await api.call(tenant, 'GET', `/api/storage/artifacts/${damaged.id}${suffix}`)
      expect([one.status, one.json.code]).toEqual([502, 'artifact_corrupt'])
      const two = await api.call(tenant, 'GET', `/api/storage/artifacts/${missing.id}${suffix}`)
      expect([two.status, two.json.code]).toEqual([502, 'artifact_object_missing'])
      // Its answer has begun before the hash is known: it is broken off.
      await expect(api.call(tenant, 'GET', `/api/storage/artifacts/${large.id}${suffix}`)).rejects.toThrow()
    }
    const metrics = await api.call(null, 'GET', '/metrics')
    expect(metrics.text).toMatch(/lighter_artifact_read_errors_total\{code="artifact_corrupt"\} [3-9]/)
    expect(metrics.text).toMatch(/lighter_artifact_read_errors_total\{code="artifact_object_missing"\} 2/)
  })
})

describe('operations', () => {
  test('health, readiness and the check of the store', async () => {
    expect((await api.call(null, 'GET', '/healthz')).json).toEqual({ status: 'ok' })
    expect((await api.call(null, 'GET', '/readyz')).json).toEqual({
      status: 'ok',
      database: 'ok',
      bucket: 'ok',
      queue: 'ok',
      circuit: 'closed',
    })
    const check = await api.call(null, 'GET', '/api/storage/r2/check')
    expect(check.status).toBe(200)
    expect(check.json).toMatchObject({ status: 'ok', r2: { ok: true, method: 'HeadBucket' } })
  })

  test('without AUTH_MODE only health and the check of the store are served', async () => {
    const closed = await startApi(environment, { worker: false, env: { AUTH_MODE: '' } })
    expect((await closed.call(null, 'GET', '/healthz')).status).toBe(200)
    expect((await closed.call(null, 'GET', '/api/storage/r2/check')).status).toBe(200)
    expect((await closed.call(tenant, 'GET', '/api/storage/artifacts')).status).toBe(404)
    expect((await closed.call(null, 'GET', '/metrics')).status).toBe(403)
    expect((await closed.call(null, 'GET', '/docs/json')).status).toBe(404)
    expect(await closed.daemon.stop()).toBe(true)
  })

  test('requests under way are answered when the daemon stops', async () => {
    const stopping = await startApi(environment, { worker: false })
    const slow = new ReadableStream({
      async start(controller) {
        for (let n = 0; n < 5; n++) {
          controller.enqueue(Buffer.alloc(1000, n))
          await new Promise(resolve => setTimeout(resolve, 200))
        }
        controller.close()
      },
    })
    const upload = stopping.call(tenant, 'POST', '/api/storage/artifacts/raw?kind=attachment', {
      body: slow,
      headers: { 'content-type': 'text/plain' },
    })
    await new Promise(resolve => setTimeout(resolve, 300))
    const stopped = stopping.daemon.stop()
    expect((await upload).status).toBe(201)
    expect(await stopped).toBe(true)
  })
})
