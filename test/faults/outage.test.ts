// A store that is down for all: the circuit breaker opens, no job pays for it, and work goes on by itself.
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import { adoptOwnership } from '../../src/store/ownership.ts'
import { startApi } from '../support/api.ts'
import {
  drained,
  hydratedMany,
  insertMessage,
  newConversation,
  startDaemon,
  until,
  useFreshEnvironment,
} from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'
import { type Fault, type FaultyStore, startFaultyStore } from '../support/request-fault.ts'
import { spawnDaemon } from '../support/spawn-daemon.ts'
import { value } from '../support/sql.ts'

const environment = useFreshEnvironment()
let store: FaultyStore
let conversations: string[]
let daemons: Daemon[]
const settings = () => ({
  R2_ENDPOINT: store.endpoint,
  STREAM_THRESHOLD_BYTES: '65536',
  MULTIPART_PART_BYTES: String(5 * 1024 * 1024),
  OFFLOAD_CODEC: 'none',
  OFFLOAD_MAX_ATTEMPTS: '1',
  OFFLOAD_LEASE_MS: '1000',
})

/** Stopped when the test ends, however it ends. */
async function start(log?: (line: Record<string, unknown>) => void): Promise<Daemon> {
  const daemon = await startDaemon(environment, { env: settings(), ...(log && { log }) })
  daemons.push(daemon)
  return daemon
}

beforeEach(async () => {
  store = await startFaultyStore(environment.env.R2_ENDPOINT ?? '')
  conversations = []
  daemons = []
  for (let n = 0; n < 3; n++) conversations.push((await newConversation(environment)).conversationId)
})
afterEach(async () => {
  await Promise.all(daemons.map(daemon => daemon.stop()))
  await store.close()
})

const write = async (rows: number): Promise<Map<string, string>> => {
  const written = new Map<string, string>()
  for (let n = 0; n < rows; n++) {
    const metadata = `{"tool_interactions": [${n}]}`
    written.set(await insertMessage(environment, conversations[n % 3] ?? '', metadata), metadata)
  }
  return written
}

const expectExact = async (written: Map<string, string>) =>
  expect(await hydratedMany(environment, [...written.keys()])).toEqual([...written.values()])

const deadLetters = () => value<number>(environment.admin, 'select count(*)::int from lighter.failed_jobs')
const objectsSent = () =>
  store.requests.filter(r => r.method === 'PUT' && r.path.includes('/tenants/')).length
const probes = () => store.requests.filter(r => r.path.includes('pg-lighter-probe')).length

const kinds: [string, Fault][] = [
  ['keys that were rotated', 403],
  ['a token that has expired', { status: 400, code: 'ExpiredToken' }],
  ['a refusal that is told by no known name', { status: 400, code: 'InvalidArgument' }],
  ['a bucket that was removed', { status: 404, code: 'NoSuchBucket' }],
  ['a bucket that was removed, by a store that does not name it', { status: 404, code: 'NotFound' }],
  ['server errors', 500],
  ['connections that are cut', 'drop'],
]

test.for(kinds)(
  '%s: the circuit opens, nothing is claimed, no attempt is used up, and work goes on',
  async ([, fault]) => {
    const lines: Record<string, unknown>[] = []
    const daemon = await start(line => lines.push(line))
    const said = (text: string) => lines.filter(line => String(line.msg).includes(text)).length
    let written: Map<string, string>
    try {
      store.fault = () => fault
      written = await write(30)
      await until(() => said('the store fails') > 0, 'the circuit has opened')
      const sent = objectsSent()
      const registered = await value<number>(environment.admin, 'select count(*)::int from lighter.objects')
      const before = probes()
      await until(() => probes() >= before + 2, 'the store is asked again')
      expect(objectsSent(), 'nothing but probes is sent').toBe(sent)
      expect(await value<number>(environment.admin, 'select count(*)::int from lighter.objects')).toBe(
        registered,
      )
      expect(await value<number>(environment.admin, 'select max(attempts) from lighter.jobs')).toBe(0)
      await expectExact(written)
      store.fault = () => null
      await drained(environment)
    } finally {
      await daemon.stop()
    }
    expect(await deadLetters()).toBe(0)
    expect(said('the store fails'), 'told once').toBe(1)
    expect(said('the store is well again')).toBe(1)
    await expectExact(written)
    expect(await strayArtifacts(environment)).toEqual([])
    expect((await bucketMismatches(environment)).unregistered).toEqual([])
  },
)

test('the state is on show: /readyz, /metrics', async () => {
  const api = await startApi(environment, { env: settings() })
  daemons.push(api.daemon)
  const circuit = async () => (await api.call(null, 'GET', '/readyz')).json.circuit
  const gauge = async () =>
    /^lighter_store_circuit_open (\d)$/m.exec((await api.call(null, 'GET', '/metrics')).text)?.[1]
  expect(await circuit()).toBe('closed')
  expect(await gauge()).toBe('0')
  store.fault = method => (method === 'PUT' ? 403 : null)
  await write(1)
  await until(async () => (await gauge()) === '1', 'the gauge says that it is open')
  await until(async () => (await circuit()) === 'open', '/readyz says that it is open')
  store.fault = () => null
  await drained(environment)
  expect(await gauge()).toBe('0')
  await api.daemon.stop()
})

test('an outage that begins within a large upload is no fault of its row', async () => {
  const daemon = await start()
  let down = false
  store.fault = (method, path) => {
    if (method === 'PUT' && path.includes('partNumber=2')) down = true
    return down ? 503 : null
  }
  const large = `{"document": "${'large '.repeat(2_000_000)}"}`
  const id = await insertMessage(environment, conversations[0] ?? '', large)
  await until(() => down, 'the store goes down between two parts')
  await until(
    async () =>
      (await value<number>(
        environment.admin,
        `select count(*)::int from lighter.jobs where row_id = '${id}' and last_error is not null and attempts = 0`,
      )) === 1,
    'the row is back in the queue, not blamed',
  )
  store.fault = () => null
  await drained(environment)
  await daemon.stop()
  expect(await deadLetters()).toBe(0)
})

test('daemons killed again and again while the store hangs use up no attempts', async () => {
  await (await start()).stop()
  const written = await write(20)
  store.fault = method => (method === 'PUT' ? 'hang' : null)
  for (let n = 0; n < 5; n++) {
    const before = probes()
    const daemon = await spawnDaemon(environment, { env: settings(), untilStarted: false })
    await until(() => probes() > before, 'it asks whether the store takes anything')
    daemon.kill('SIGKILL')
    await daemon.ended
  }
  expect(await value<number>(environment.admin, 'select max(attempts) from lighter.jobs')).toBe(0)
  store.fault = () => null
  const daemon = await start()
  await drained(environment)
  await daemon.stop()
  expect(await deadLetters()).toBe(0)
  await expectExact(written)
})

test('a store that fails for one tenant only is used for all others', async () => {
  const bad = await newConversation(environment)
  const lines: string[] = []
  const daemon = await start(line => lines.push(String(line.msg)))
  const hold = await environment.app.connect()
  await hold.query('begin')
  const badId = await insertMessage(environment, bad.conversationId, '{"tool_interactions": ["bad"]}', hold)
  const ids: string[] = []
  for (const conversation of conversations) {
    ids.push(await insertMessage(environment, conversation, '{"tool_interactions": ["good"]}', hold))
  }
  store.fault = (method, path) => (method === 'PUT' && path.includes(bad.tenantId) ? 503 : null)
  // One batch of four tenants.
  await hold.query('commit')
  hold.release()
  await until(
    async () => (await value<number>(environment.admin, 'select count(*)::int from lighter.jobs')) === 1,
    'the others are offloaded',
  )
  expect(lines.some(line => line.includes('the store fails'))).toBe(false)
  const { rows } = await environment.admin.query('select row_id, attempts from lighter.jobs')
  expect(rows).toEqual([{ row_id: badId, attempts: expect.any(Number) }])
  store.fault = () => null
  await drained(environment)
  await daemon.stop()
  expect(await deadLetters()).toBe(0)
})

test('a bucket that was removed and made anew is not written to before somebody has said that it is the right one', async () => {
  const lines: Record<string, unknown>[] = []
  const daemon = await start(line => lines.push(line))
  const lost = [...(await write(3)).keys()]
  await drained(environment)
  store.fault = () => ({ status: 404, code: 'NoSuchBucket' })
  const written = await write(10)
  await until(
    () => lines.some(line => String(line.msg).includes('the store fails')),
    'the circuit has opened',
  )
  const keys: string[] = []
  for await (const { key } of environment.store.list(environment.store.prefix)) keys.push(key)
  await environment.store.delete(keys)
  store.fault = () => null
  await until(
    () =>
      lines.some(
        line =>
          String(line.error).includes('has no owner object') && String(line.hint).includes('lighter adopt'),
      ),
    'it says what is missing, and what to do',
  )
  const listed: string[] = []
  for await (const { key } of environment.store.list(environment.store.prefix)) listed.push(key)
  expect(listed, 'nothing is written').toEqual([])

  await adoptOwnership(environment.worker, environment.store)
  await drained(environment)
  await daemon.stop()
  await expectExact(written)
  expect(await deadLetters()).toBe(0)
  for (const gone of await hydratedMany(environment, lost)) {
    expect(gone).toMatchObject({ code: 'artifact_object_missing' })
  }
})
