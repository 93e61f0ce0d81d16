// Requests that cost their sender little and the daemon much: they end soon, and others are served meanwhile.
import { randomUUID } from 'node:crypto'
import { afterAll, expect, test } from 'vitest'
import { createLighterClient, openStore } from '../../src/index.ts'
import { startApi } from '../support/api.ts'
import { useEnvironment } from '../support/environment.ts'
import { longestWaitDuring, storeByHand } from '../support/stored-artifacts.ts'

const environment = await useEnvironment()
const api = await startApi(environment)
afterAll(() => api.daemon.stop())

const MiB = 1024 * 1024
const hydrate = (tenantId: string, rows: string[]) =>
  api.call(tenantId, 'POST', '/api/storage/hydrate', { json: `{"metadata": [${rows.join(',')}]}` })
const pointerTo = (id: string) => `{"artifact_metadata_ref": "${id}", "own": 1}`

/** Payloads on top of each other, the last one given. @returns the id of the first */
async function chainOver(tenantId: string, base: string, length: number): Promise<string> {
  const ids = Array.from({ length }, () => randomUUID())
  await Promise.all(
    ids.map((id, n) => {
      const below = ids[n + 1]
      const text = below === undefined ? base : `{"artifact_metadata_ref": "${below}", "link${n}": ${n}}`
      return storeByHand(environment, tenantId, Buffer.from(text), {}, id)
    }),
  )
  return ids[0] ?? ''
}

const manyKeys = `{${Array.from({ length: 500_000 }, (_, n) => `"key${n}": ${n}`).join(', ')}}`

test('a chain of 195 pointers over 500,000 keys is laid together once', async () => {
  const tenantId = randomUUID()
  const first = await chainOver(tenantId, manyKeys, 195)
  const { result, waitMs } = await longestWaitDuring(api.url, hydrate(tenantId, [pointerTo(first)]))
  expect(result.json.errors).toEqual([])
  const [row] = result.json.metadata
  expect(Object.keys(row)).toHaveLength(500_000 + 194 + 1)
  expect([row.key0, row.key499999, row.link0, row.link193, row.own]).toEqual([0, 499_999, 0, 193, 1])
  expect(waitMs).toBeLessThan(10_000)
  // The same over pg and the store.
  const store = openStore(environment.config().store)
  const client = createLighterClient({ pool: environment.worker, store, tenantId })
  const direct = await client.hydrate({ metadata: pointerTo(first) }).finally(() => store.close())
  expect(JSON.parse(direct.metadata)).toEqual(row)
}, 120_000)

test('two hundred rows that point to one payload of 8 MiB are refused but for those that fit', async () => {
  const tenantId = randomUUID()
  const payload = Buffer.from(`{"text": "${'x'.repeat(8 * MiB)}", "artifact_metadata_ref": null}`)
  const { id } = await storeByHand(environment, tenantId, payload)
  const rows = Array.from({ length: 200 }, () => pointerTo(id))
  const { result, waitMs } = await longestWaitDuring(api.url, hydrate(tenantId, rows))
  const errors: { index: number; code: string }[] = result.json.errors
  expect(result.json.metadata.filter((row: object) => 'text' in row)).toHaveLength(3)
  expect(errors).toHaveLength(197)
  expect(new Set(errors.map(error => error.code))).toEqual(new Set(['artifact_too_large']))
  expect(waitMs).toBeLessThan(5000)
}, 60_000)

test('what a request may bring together does not refill while it is at work', async () => {
  const tenantId = randomUUID()
  const base = `{"text": "${'x'.repeat(9 * MiB)}"}`
  // Each is used up by the next, so that in the end only one of them would stand in the answer.
  const chains = await Promise.all(Array.from({ length: 5 }, () => chainOver(tenantId, base, 3)))
  const answer = await hydrate(tenantId, chains.map(pointerTo))
  expect(answer.json.errors.map((error: { code: string }) => error.code)).toEqual([
    'artifact_too_large',
    'artifact_too_large',
  ])
}, 60_000)

test('many small payloads have a limit too, since each costs a request to the store', async () => {
  const tenantId = randomUUID()
  const { id } = await storeByHand(environment, tenantId, Buffer.from('{"small": 1}'))
  // Rows of one object, as an application may write them.
  const ids = Array.from({ length: 9000 }, () => randomUUID())
  await environment.admin.query(
    `insert into artifact_refs (id, tenant_id, kind, r2_key, content_type, size_bytes, sha256)
     select i.id, a.tenant_id, a.kind, a.r2_key || '.' || i.id, a.content_type, a.size_bytes, a.sha256
       from artifact_refs a, unnest($1::uuid[]) i(id) where a.id = $2`,
    [ids, id],
  )
  let refused = 0
  // 200 rows of two pointers each, 45 levels deep, would be 9,000 objects.
  const rows = ids.slice(0, 200).map((base, n) => {
    return `{"artifact_metadata_ref": "${base}", "tool_interactions_ref": "${ids[200 + n]}"}`
  })
  const answer = await hydrate(tenantId, rows)
  refused += answer.json.errors.length
  expect(answer.status).toBe(200)
  expect(refused).toBe(200)
}, 60_000)
