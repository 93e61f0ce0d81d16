// The store in trouble: nothing is lost, no row is blamed, and work goes on when it is well again.
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import type { BatchResult } from '../../src/offload/batch-result.ts'
import {
  asJsonbText,
  drained,
  hydrated,
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  until,
  useEnvironment,
} from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'
import { type FaultyStore, startFaultyStore } from '../support/request-fault.ts'

const environment = await useEnvironment()
let store: FaultyStore
let daemon: Daemon
let conversationId: string
const results: BatchResult[] = []

beforeAll(async () => {
  store = await startFaultyStore(environment.env.R2_ENDPOINT ?? '')
  daemon = await startDaemon(environment, {
    env: {
      R2_ENDPOINT: store.endpoint,
      STREAM_THRESHOLD_BYTES: '65536',
      MULTIPART_PART_BYTES: String(5 * 1024 * 1024),
      OFFLOAD_CODEC: 'none',
      OFFLOAD_MAX_ATTEMPTS: '2',
    },
    onResult: result => results.push(result),
  })
  conversationId = (await newConversation(environment)).conversationId
})
beforeEach(() => {
  store.fault = () => null
  results.length = 0
})
afterAll(async () => {
  await daemon.stop()
  await store.close()
})

const small = '{"model": "m", "tool_interactions": ["small"]}'
const large = `{"document": "${'large '.repeat(2_000_000)}"}`

/** Writes a row while the store has the fault, sees an attempt fail, lifts the fault, and waits for success. */
async function survives(fault: FaultyStore['fault'], metadata: string) {
  store.fault = fault
  const id = await insertMessage(environment, conversationId, metadata)
  await until(
    () => results.some(result => result.outage !== null || result.failed > 0),
    'an attempt has failed',
  )
  expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, metadata))
  store.fault = () => null
  await drained(environment)
  expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, metadata))
  expect(await rawMetadata(environment, id)).toContain('_ref')
  const { rowCount } = await environment.admin.query('select from lighter.failed_jobs')
  expect(rowCount, 'dead letters').toBe(0)
}

test.for([500, 503, 429, 403])('PUTs answered with %i', status =>
  survives(method => (method === 'PUT' ? status : null), small),
)

test('connections that are reset', () => survives(() => 'drop', small))

test('a PUT that succeeded, whose answer was lost, is simply done again', async () => {
  let lost = 0
  store.fault = method => (method === 'PUT' && lost++ === 0 ? 'drop-answer' : null)
  const id = await insertMessage(environment, conversationId, small)
  await drained(environment)
  expect(lost).toBeGreaterThan(1)
  expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, small))
})

test('a multipart upload whose second part fails is aborted', async () => {
  await survives((method, path) => (method === 'PUT' && path.includes('partNumber=2') ? 500 : null), large)
  expect(store.requests.some(r => r.method === 'DELETE' && r.path.includes('uploadId='))).toBe(true)
})

test('a multipart upload that can not be completed, nor aborted, leaves a record with its upload id', async () => {
  await survives((method, path) => (path.includes('uploadId=') && method !== 'PUT' ? 500 : null), large)
  const { rows } = await environment.admin.query(
    `select from lighter.objects where state = 'uploading' and upload_id is not null`,
  )
  expect(rows.length).toBeGreaterThan(0)
})

test('a completion that succeeded, whose answer was lost, counts as done', async () => {
  let lost = 0
  store.fault = (method, path) =>
    method === 'POST' && path.includes('uploadId=') && lost++ === 0 ? 'drop-answer' : null
  const id = await insertMessage(environment, conversationId, large)
  await drained(environment)
  expect(lost).toBeGreaterThan(1)
  expect(results.filter(result => result.outage !== null || result.failed > 0)).toEqual([])
  expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, large))
})

test('a large payload that the store never takes becomes a dead letter, and does not hold up small ones', async () => {
  store.fault = (method, path) => (method === 'PUT' && path.includes('partNumber=2') ? 503 : null)
  const bad = await insertMessage(environment, conversationId, large)
  await until(() => results.some(result => result.failed > 0), 'the large row has failed')
  const good = await insertMessage(environment, conversationId, small)
  await drained(environment)
  expect(await rawMetadata(environment, good)).toContain('_ref')
  const { rows } = await environment.admin.query('select row_id, last_error from lighter.failures')
  expect(rows).toEqual([{ row_id: bad, last_error: expect.stringContaining('503') }])
  await environment.admin.query('delete from lighter.failed_jobs')
})

test('a store that refuses one object for good makes one dead letter, and the other rows go on', async () => {
  const { conversationId: refused, tenantId } = await newConversation(environment)
  store.fault = (method, path) => (method === 'PUT' && path.includes(tenantId) ? 400 : null)
  const bad = await insertMessage(environment, refused, small)
  const good = await insertMessage(environment, conversationId, small)
  await drained(environment)
  const { rows } = await environment.admin.query('select row_id, attempts, last_error from lighter.failures')
  expect(rows).toEqual([{ row_id: bad, attempts: 2, last_error: expect.stringContaining('400') }])
  expect(await rawMetadata(environment, bad)).toBe(await asJsonbText(environment, small))
  expect(await rawMetadata(environment, good)).toContain('_ref')

  store.fault = () => null
  await environment.admin.query('select lighter.retry()')
  await drained(environment)
  expect(await rawMetadata(environment, bad)).toContain('_ref')
})

test('after all of this every artifact has its object and every object is known', async () => {
  expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
  expect(await strayArtifacts(environment)).toEqual([])
})
