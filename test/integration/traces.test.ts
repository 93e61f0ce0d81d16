// Traces arrive at a collector, say what happened and nothing of the payloads; and a collector in trouble troubles nobody.
import { randomUUID } from 'node:crypto'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import { type Collector, type ReceivedSpan, startCollector } from '../support/collector.ts'
import {
  drained,
  insertMessage,
  newConversation,
  startDaemon,
  until,
  useEnvironment,
} from '../support/environment.ts'
import { startFaultyStore } from '../support/request-fault.ts'
import { byLabel, scrape, serviceKey } from '../support/scrape.ts'
import { spawnDaemon } from '../support/spawn-daemon.ts'

const environment = await useEnvironment()
let collector: Collector
let conversation: { tenantId: string; conversationId: string }
let daemon: Daemon | undefined
const warnings: string[] = []

beforeAll(async () => {
  conversation = await newConversation(environment)
})
beforeEach(async () => {
  collector = await startCollector()
  warnings.length = 0
})
afterEach(async () => {
  await daemon?.stop()
  daemon = undefined
  await collector.close()
})

async function start(env: Record<string, string> = {}): Promise<Daemon> {
  daemon = await startDaemon(environment, {
    api: true,
    env: {
      AUTH_MODE: 'service',
      SERVICE_API_KEY: serviceKey,
      OTEL_EXPORTER_OTLP_ENDPOINT: collector.url,
      OTEL_BSP_SCHEDULE_DELAY: '50',
      STREAM_THRESHOLD_BYTES: '65536',
      ...env,
    },
    log: line => {
      if (typeof line.level === 'number' && line.level >= 40) warnings.push(String(line.msg))
    },
  })
  return daemon
}

const secret = 'never in a span'
const small = JSON.stringify({ model: 'm', tool_interactions: [secret] })
const write = (metadata: string) => insertMessage(environment, conversation.conversationId, metadata)

const named = (name: string) => collector.spans.filter(span => span.name === name)
const childrenOf = (parent: ReceivedSpan) =>
  collector.spans.filter(span => span.parentSpanId === parent.spanId && span.traceId === parent.traceId)

async function batchWhere(condition: (batch: ReceivedSpan) => boolean): Promise<ReceivedSpan> {
  let found: ReceivedSpan | undefined
  await until(() => {
    found = named('batch').find(condition)
    return found !== undefined
  }, 'such a batch has arrived')
  if (found === undefined) throw new Error('no batch')
  return found
}

test('a batch, its steps in their order, and each object', async () => {
  await start({
    OTEL_SERVICE_NAME: 'lighter-test',
    OTEL_RESOURCE_ATTRIBUTES: 'deployment.environment=test%20one,team=a',
    OTEL_EXPORTER_OTLP_HEADERS: 'authorization=Bearer%20abc',
  })
  await write(small)
  await drained(environment)
  const batch = await batchWhere(span => span.attributes['lighter.offloaded_rows'] === 1)
  await until(() => childrenOf(batch).length === 6, 'all of its steps have arrived')
  expect(batch.parentSpanId).toBeUndefined()
  expect(batch.attributes).toMatchObject({
    'lighter.claimed_rows': 1,
    'lighter.artifacts': 1,
    'lighter.objects': 1,
    'lighter.failed_rows': 0,
    'lighter.payload_bytes': JSON.stringify([secret]).length,
  })
  const steps = childrenOf(batch).sort((a, b) => a.start - b.start)
  expect(steps.map(span => span.name)).toEqual(['claim', 'plan', 'pack', 'register', 'upload', 'commit'])
  for (const step of steps) {
    expect(step.start).toBeGreaterThanOrEqual(batch.start - 1)
    expect(step.end).toBeLessThanOrEqual(batch.end + 1)
    expect(step.end).toBeGreaterThanOrEqual(step.start)
    expect(step.status.code ?? 0).toBe(0)
  }
  const [upload] = steps.filter(step => step.name === 'upload')
  const [object] = upload === undefined ? [] : childrenOf(upload)
  expect(object).toMatchObject({
    name: 'object',
    attributes: {
      'lighter.kind': 'assistant_message_tool_interactions',
      'lighter.artifacts': 1,
      'lighter.object_bytes': batch.attributes['lighter.object_bytes'],
    },
  })
  expect(collector.resource).toMatchObject({
    'service.name': 'lighter-test',
    'deployment.environment': 'test one',
    team: 'a',
  })
  expect(collector.requests[0]).toMatchObject({
    path: '/v1/traces',
    headers: { authorization: 'Bearer abc', 'content-type': 'application/json' },
  })
  const everything = JSON.stringify(collector.spans)
  expect(everything).not.toContain(secret)
  expect(everything).not.toContain(conversation.tenantId)
})

test('a large row is streamed in the trace of its batch; tenants are named where that is asked for', async () => {
  await start({ TRACES_TENANTS: 'on' })
  await write(`{"document": "${'d'.repeat(200_000)}"}`)
  await drained(environment)
  await until(() => named('large row').length === 1, 'the large row has arrived')
  const [row] = named('large row')
  if (row === undefined) throw new Error('no large row')
  const batch = await batchWhere(span => span.traceId === row.traceId)
  expect(row.parentSpanId).toBe(batch.spanId)
  await until(() => childrenOf(row).length === 2, 'its steps have arrived')
  const [stream, commit] = childrenOf(row).sort((a, b) => a.start - b.start)
  expect(commit?.name).toBe('commit')
  expect(stream).toMatchObject({
    name: 'stream',
    attributes: {
      'lighter.kind': 'assistant_message_metadata',
      'lighter.payload_bytes': 200_000 + '{"document": ""}'.length,
      'lighter.tenant_id': conversation.tenantId,
    },
  })
})

test('of many objects only some have a span', async () => {
  await start({ OFFLOAD_PACKING: 'off' })
  await environment.app.query(
    `insert into conversation_messages (conversation_id, role, content, metadata)
     select $1, 'assistant', '', $2 from generate_series(1, 80)`,
    [conversation.conversationId, small],
  )
  await drained(environment)
  await until(
    () => named('upload').some(span => Number(span.attributes['lighter.objects_without_span']) > 0),
    'a large upload has arrived',
  )
  const [upload] = named('upload').filter(span => Number(span.attributes['lighter.objects_without_span']) > 0)
  if (upload === undefined) throw new Error('no upload')
  await until(() => childrenOf(upload).length >= 50, 'its objects have arrived')
  expect(childrenOf(upload).length).toBe(50)
})

test('a failure is told on the span that failed', async () => {
  const store = await startFaultyStore(environment.env.R2_ENDPOINT ?? '')
  try {
    await start({ R2_ENDPOINT: store.endpoint })
    store.fault = method => (method === 'PUT' ? 403 : null)
    await write(small)
    await until(() => named('object').some(span => span.status.code === 2), 'a failed upload has arrived')
    store.fault = () => null
    await drained(environment)
  } finally {
    await store.close()
  }
  const failed = named('object').find(span => span.status.code === 2)
  expect(failed?.events[0]).toMatchObject({
    name: 'exception',
    attributes: { 'exception.type': 'store_access_denied' },
  })
  const batch = await batchWhere(span => span.attributes['lighter.outage'] === 'store_access_denied')
  // The batch did what it could: its rows are back in the queue.
  expect(batch.status.code ?? 0).toBe(0)
})

test('requests to the API, in the trace of who calls', async () => {
  const { address } = await start()
  const traceId = randomUUID().replaceAll('-', '')
  const answer = await fetch(`${address()}/api/storage/artifacts/${randomUUID()}?token=${secret}`, {
    headers: {
      authorization: `Bearer ${serviceKey}`,
      'x-tenant-id': conversation.tenantId,
      traceparent: `00-${traceId}-00f067aa0ba902b7-01`,
    },
  })
  expect(answer.status).toBe(404)
  for (const path of ['/healthz', '/metrics']) await fetch(`${address()}${path}`)
  await fetch(`${address()}/nowhere`, { headers: { traceparent: 'not one' } })
  await until(() => named('GET none').length === 1, 'the requests have arrived')
  await until(() => named('GET /api/storage/artifacts/:id').length === 1, 'the requests have arrived')
  const [request] = named('GET /api/storage/artifacts/:id')
  expect(request).toMatchObject({
    traceId,
    parentSpanId: '00f067aa0ba902b7',
    kind: 2,
    attributes: {
      'http.request.method': 'GET',
      'http.route': '/api/storage/artifacts/:id',
      'http.response.status_code': 404,
    },
  })
  expect(named('GET none')[0]?.traceId).not.toBe(traceId)
  expect(collector.spans.filter(span => /healthz|metrics/.test(span.name))).toEqual([])
  expect(JSON.stringify(collector.spans)).not.toMatch(new RegExp(`${secret}|${conversation.tenantId}`))
})

test('what is not sent yet is sent at the end', async () => {
  await start({ OTEL_BSP_SCHEDULE_DELAY: '60000' })
  await write(small)
  await drained(environment)
  expect(collector.spans).toEqual([])
  expect(await daemon?.stop()).toBe(true)
  expect(named('batch').some(span => span.attributes['lighter.offloaded_rows'] === 1)).toBe(true)
})

test.for([
  ['refuses connections', 'closed'],
  ['takes requests and never answers', 'silent'],
  ['answers with 400', 400],
  ['answers with 503', 503],
] as const)(
  'a collector that %s: offloading goes on, spans are bounded, the end comes in time',
  async ([, trouble]) => {
    await start({ OTEL_BSP_MAX_QUEUE_SIZE: '8', OTEL_EXPORTER_OTLP_TIMEOUT: '1000' })
    if (trouble === 'closed') await collector.close()
    else collector.trouble = trouble
    for (let i = 0; i < 8; i++) {
      await write(small)
      await drained(environment)
    }
    await until(async () => {
      const spans = byLabel(await scrape(daemon?.address() ?? null), 'lighter_trace_spans_total', 'outcome')
      // One that refuses at once keeps nobody waiting.
      const isLate = trouble !== 400
      return (!isLate || (spans.dropped ?? 0) > 0) && (spans.failed ?? 0) > 0 && (spans.exported ?? 0) === 0
    }, 'spans are lost, and counted')
    expect(warnings.filter(message => message.includes('collector'))).toHaveLength(1)
    const began = performance.now()
    expect(await daemon?.stop(20_000)).toBe(true)
    expect(performance.now() - began).toBeLessThan(15_000)
  },
)

test('the end does not wait for a collector that takes its time', async () => {
  await start({ OTEL_EXPORTER_OTLP_TIMEOUT: '60000' })
  collector.trouble = 'silent'
  await write(small)
  await drained(environment)
  const began = performance.now()
  expect(await daemon?.stop(20_000)).toBe(true)
  expect(performance.now() - began).toBeLessThan(30_000)
})

test('a collector that comes back is told what comes from then on', async () => {
  await start({ OTEL_EXPORTER_OTLP_TIMEOUT: '1000' })
  collector.trouble = 400
  await write(small)
  await until(() => warnings.some(message => message.includes('collector')), 'it says that spans are lost')
  collector.trouble = null
  await write(small)
  await until(() => named('commit').length > 0, 'spans arrive')
})

test.for([
  ['no endpoint', { OTEL_EXPORTER_OTLP_ENDPOINT: '' }],
  ['OTEL_SDK_DISABLED', { OTEL_SDK_DISABLED: 'true' }],
  ['OTEL_TRACES_SAMPLER=always_off', { OTEL_TRACES_SAMPLER: 'always_off' }],
] as [string, Record<string, string>][])('%s: nothing is sent', async ([, env]) => {
  await start(env)
  await write(small)
  await drained(environment)
  expect(await daemon?.stop()).toBe(true)
  expect(collector.requests).toEqual([])
})

test('what sends traces is loaded only where there is a collector', async () => {
  const dir = await mkdtemp(path.join(tmpdir(), 'pg-lighter-traces-'))
  const loadedBy = async (env: Record<string, string>) => {
    const file = path.join(dir, randomUUID())
    const hook = `import{registerHooks}from'node:module';import{appendFileSync}from'node:fs';registerHooks({load(url,context,next){appendFileSync(process.env.LOADED,url+'\\n');return next(url,context)}})`
    const child = await spawnDaemon(environment, {
      env: {
        ...env,
        LOADED: file,
        NODE_OPTIONS: `--import=data:text/javascript,${encodeURIComponent(hook)}`,
      },
    })
    child.kill('SIGKILL')
    await child.ended
    return readFile(file, 'utf8')
  }
  try {
    expect(await loadedBy({ OTEL_EXPORTER_OTLP_ENDPOINT: collector.url })).toContain(
      '@opentelemetry/sdk-trace',
    )
    const loaded = await loadedBy({})
    expect(loaded).toContain('src/daemon.ts')
    expect(loaded).not.toMatch(/@opentelemetry.(sdk-trace|exporter|otlp|core|resources)/)
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
})
