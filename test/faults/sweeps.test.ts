// A process that moves, deletes or stores is killed at its requests to the store, before they are done and after. Every
// row reads as before, the next run finishes, and the bucket holds what is on record.
import { randomUUID } from 'node:crypto'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import {
  drained,
  hydrated,
  insertMessage,
  newConversation,
  startDaemon,
  useFreshEnvironment,
} from '../support/environment.ts'
import { bucketMismatches } from '../support/invariants.ts'
import { runCli, startCli } from '../support/process.ts'
import { type FaultyStore, startFaultyStore } from '../support/request-fault.ts'
import { age, bucketKeys, runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()
let daemon: Daemon
let faulty: FaultyStore

beforeEach(async () => {
  daemon = await startDaemon(environment)
  faulty = await startFaultyStore(environment.env.R2_ENDPOINT ?? '')
})
afterEach(async () => {
  await daemon.stop()
  await faulty.close()
})

/** The environment of a process that talks to the store by way of the faulty one. */
const env = () => ({ ...environment.env, R2_ENDPOINT: faulty.endpoint })

/** Kills the process at its first request that matches; `done`: once the store has done what was asked. */
async function killAt(args: string[], matches: (method: string, path: string) => boolean, done: boolean) {
  const running = startCli(args, { env: env() })
  let killed = false
  faulty.fault = (method, path) => {
    if (killed) return 'drop'
    if (!matches(method, path)) return null
    killed = true
    if (!done) running.signal('SIGKILL')
    return done ? 'drop-answer' : 'drop'
  }
  await expect.poll(() => killed, { timeout: 30_000, interval: 5 }).toBe(true)
  running.signal('SIGKILL')
  await running.ended
  faulty.fault = () => null
}

/** Twelve messages, each in an object of its own. */
async function messages() {
  const { conversationId } = await newConversation(environment)
  const ids: string[] = []
  for (let n = 0; n < 12; n++) {
    ids.push(await insertMessage(environment, conversationId, `{"tool_interactions": [{"n": ${n}}]}`))
    await drained(environment)
  }
  return ids
}

async function expectWhole(ids: string[]) {
  for (const [n, id] of ids.entries())
    expect(await hydrated(environment, id)).toBe(`{"tool_interactions": [{"n": ${n}}]}`)
}

/** Time passes, and what is to go goes. */
async function settle() {
  for (let round = 0; round < 3; round++) {
    await age(environment, '8 days')
    await runNow(environment, 'orphans')
  }
  expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
}

const isPack = (method: string, path: string) => method === 'PUT' && path.includes('/tenants/')
const isDeletion = (method: string, path: string) => method === 'POST' && path.includes('?delete')

test.each([
  ['before its new pack is stored', false],
  ['after its new pack is stored, and before the artifacts have moved', true],
])('a compaction killed %s', async (_, done) => {
  const ids = await messages()
  await age(environment, '2 hours')
  await killAt(['sweep', 'compaction'], isPack, done)
  await expectWhole(ids)
  const again = await runCli(['sweep', 'compaction', '--json'], { env: env() })
  expect(JSON.parse(again.stdout).counts).toMatchObject({ objects_folded: 12, artifacts_moved: 12 })
  await expectWhole(ids)
  await settle()
  await expectWhole(ids)
  expect(await bucketKeys(environment)).toHaveLength(1)
})

test.each([
  ['before the objects are deleted', false],
  ['after the objects are deleted, and before that is on record', true],
])('a sweep killed %s', async (_, done) => {
  const ids = await messages()
  const [gone, ...others] = ids
  await environment.admin.query(
    `update artifact_refs set deleted_at = now() - interval '8 days', deleted_reason = 'deleted' where row_id = $1`,
    [gone],
  )
  await runNow(environment, 'retention', { config: { deleteDelayMs: 60_000 } })
  await age(environment, '1 hour')
  await killAt(['sweep', 'orphans'], isDeletion, done)
  for (const [n, id] of others.entries())
    expect(await hydrated(environment, id)).toBe(`{"tool_interactions": [{"n": ${n + 1}}]}`)
  await settle()
  expect(await bucketKeys(environment)).toHaveLength(11)
})

test.each([
  ['before the payload is stored', false],
  ['after the payload is stored, and before it is an artifact', true],
])('a request to store, whose daemon is killed %s', async (_, done) => {
  const tenantId = randomUUID()
  const port = 20_000 + Math.floor(Math.random() * 20_000)
  const running = startCli(['start', '--no-worker'], {
    env: { ...env(), AUTH_MODE: 'dev', API_PORT: String(port), LOG_LEVEL: 'info' },
  })
  await running.says('the HTTP API listens')
  let reached = false
  faulty.fault = (method, path) => {
    if (!isPack(method, path)) return null
    reached = true
    if (!done) running.signal('SIGKILL')
    return done ? 'drop-answer' : 'drop'
  }
  const request = fetch(`http://127.0.0.1:${port}/api/storage/artifacts`, {
    method: 'POST',
    headers: { 'x-tenant-id': tenantId, 'content-type': 'application/json', 'idempotency-key': 'one' },
    body: '{"kind": "agent_trace", "payload": 1}',
  }).then(
    response => response.status,
    () => 'broken off',
  )
  await expect.poll(() => reached, { timeout: 10_000, interval: 5 }).toBe(true)
  if (done) await expect.poll(() => bucketKeys(environment), { timeout: 10_000 }).toHaveLength(1)
  running.signal('SIGKILL')
  expect(await request).toBe('broken off')
  faulty.fault = () => null
  const { rows } = await environment.admin.query('select from artifact_refs where tenant_id = $1', [tenantId])
  expect(rows).toEqual([])
  await settle()
  expect(await bucketKeys(environment)).toEqual([])
})
