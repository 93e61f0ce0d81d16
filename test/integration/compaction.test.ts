// Compaction: dead bytes leave the bucket, small packs become large ones, and no reader ever notices.
import { randomUUID } from 'node:crypto'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { fetchPayloads } from '../../src/artifacts/fetch.ts'
import { hydrateMany } from '../../src/artifacts/hydrate.ts'
import { readRows } from '../../src/artifacts/rows.ts'
import { lookupArtifacts } from '../../src/catalogue/lookup.ts'
import type { Daemon } from '../../src/daemon.ts'
import { asArtifactId, asTenantId } from '../../src/ids.ts'
import { loadSources } from '../../src/source/sources.ts'
import { sweepCompaction } from '../../src/sweeps/compaction.ts'
import {
  drained,
  insertMessage,
  newConversation,
  startDaemon,
  useFreshEnvironment,
} from '../support/environment.ts'
import { column } from '../support/sql.ts'
import { age, bucketKeys, runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()
let daemon: Daemon

beforeEach(async () => {
  daemon = await startDaemon(environment)
})
afterEach(async () => {
  await daemon.stop()
})

const metadata = (n: number) => `{"tool_interactions": [{"n": ${n}, "text": "${'lorem '.repeat(n % 50)}"}]}`

/** Offloaded together, so that they share packs. */
async function messages(count: number, tenantId: string = randomUUID()) {
  const { conversationId } = await newConversation(environment, tenantId)
  const { rows } = await environment.app.query<{ id: string }>(
    `insert into conversation_messages (conversation_id, role, content, metadata)
     select $1, 'assistant', '', m::jsonb from unnest($2::text[]) with ordinality u(m, o) order by o returning id`,
    [conversationId, Array.from({ length: count }, (_, n) => metadata(n))],
  )
  await drained(environment)
  return { tenantId, conversationId, ids: rows.map(row => row.id) }
}

async function expectAllHydrate(ids: string[]) {
  const source = [...(await loadSources(environment.worker)).values()][0]
  if (source === undefined) throw new Error('no source')
  const rows = await readRows(environment.worker, source, ids)
  const results = await hydrateMany({ db: environment.worker, store: environment.store }, [...rows.values()])
  const errors = results.filter(result => result.error !== null)
  expect(errors).toEqual([])
  expect(results).toHaveLength(ids.length)
}

/** By id, what is read of each artifact of the tenant that is not purged; an error where it can't be read. */
async function payloadsOf(tenantId: string): Promise<Map<string, string | Error>> {
  const ids = await column<string>(
    environment.admin,
    'select id from artifact_refs where tenant_id = $1 and purged_at is null',
    [tenantId],
  )
  const artifacts = await lookupArtifacts(environment.worker, asTenantId(tenantId), ids.map(asArtifactId))
  expect(artifacts.size).toBe(ids.length)
  const payloads = await fetchPayloads(environment.store, [...artifacts.values()])
  return new Map(
    [...payloads].map(([{ id }, payload]) => [id, payload instanceof Error ? payload : payload.toString()]),
  )
}

/** All that is in the bucket. Of packs that are not compressed. */
async function bucketText(): Promise<string> {
  const bodies = await Promise.all(
    (await bucketKeys(environment)).map(async key => (await environment.store.get(key)).body.toString()),
  )
  return bodies.join('')
}

async function purge(tenantId: string, share: number) {
  await environment.admin.query(
    `update artifact_refs set deleted_at = now() - interval '30 days', deleted_reason = 'deleted'
      where tenant_id = $1 and id in (
        select id from (select id, row_number() over (order by id) as n, count(*) over () as all
                          from artifact_refs where tenant_id = $1) x where n <= $2::float8 * x.all)`,
    [tenantId, share],
  )
  await runNow(environment, 'retention')
}

test('a pack of which little is alive is rewritten, and its dead bytes leave the bucket', async () => {
  const { tenantId, ids } = await messages(200)
  await purge(tenantId, 0.7)
  const before = await bucketKeys(environment)
  expect(
    (await runNow(environment, 'compaction', { dryRun: true })).counts.objects_rewritten,
  ).toBeGreaterThan(0)
  const { counts } = await runNow(environment, 'compaction')
  expect(counts.objects_rewritten).toBeGreaterThan(0)
  expect(counts.artifacts_moved).toBe(60)
  expect(counts.bytes_freed).toBeGreaterThan(0)
  // The old object stays for readers that know it.
  expect((await bucketKeys(environment)).filter(key => before.includes(key))).toEqual(before)
  const { rows } = await environment.admin.query<{ row_id: string }>(
    'select row_id from artifact_refs where tenant_id = $1 and purged_at is null',
    [tenantId],
  )
  await expectAllHydrate(rows.map(row => row.row_id))
  await age(environment, '2 hours')
  await runNow(environment, 'compaction')
  // Nor within the grace: a database restored to a moment in it has the artifacts where they were.
  expect((await bucketKeys(environment)).filter(key => before.includes(key))).toEqual(before)
  await age(environment, '7 days')
  await runNow(environment, 'compaction')
  const left = await bucketKeys(environment)
  expect(left.some(key => before.includes(key))).toBe(false)
  await expectAllHydrate(rows.map(row => row.row_id))
  expect(ids).toHaveLength(200)
  // Nothing is left to be done.
  expect((await runNow(environment, 'compaction')).counts).toMatchObject({
    objects_rewritten: 0,
    artifacts_moved: 0,
  })
})

test('a pack that is mostly alive waits until its bytes can be gone by the erasure deadline, and no longer', async () => {
  const { tenantId } = await messages(100)
  await purge(tenantId, 0.1)
  expect((await runNow(environment, 'compaction')).counts).toMatchObject({ objects_rewritten: 0 })
  await age(environment, '24 days')
  const { counts } = await runNow(environment, 'compaction')
  expect(counts.objects_rewritten).toBeGreaterThan(0)
  expect(counts.artifacts_moved).toBe(90)
})

test('small packs of one tenant, kind and day become one, and their artifacts keep their ids and payloads', async () => {
  const { conversationId, tenantId } = await newConversation(environment)
  const ids: string[] = []
  for (let n = 0; n < 12; n++) {
    ids.push(await insertMessage(environment, conversationId, metadata(n)))
    await drained(environment)
  }
  const before = await bucketKeys(environment)
  expect(before.length).toBe(12)
  expect(before.every(key => key.endsWith('.jsonl.zst'))).toBe(true)
  const payloads = await payloadsOf(tenantId)
  expect(payloads.size).toBe(12)
  expect((await runNow(environment, 'compaction')).counts).toMatchObject({ objects_folded: 0 })
  await age(environment, '2 hours')
  const { counts } = await runNow(environment, 'compaction')
  expect(counts).toMatchObject({ objects_folded: 12, objects_written: 1, artifacts_moved: 12 })
  expect(await payloadsOf(tenantId)).toEqual(payloads)
  await expectAllHydrate(ids)
  await age(environment, '8 days')
  await runNow(environment, 'orphans')
  expect((await bucketKeys(environment)).length).toBe(1)
  expect(await payloadsOf(tenantId)).toEqual(payloads)
  await expectAllHydrate(ids)
  const { rows } = await environment.admin.query(
    `select count(distinct r2_key)::int as packs from artifact_refs where tenant_id = $1`,
    [tenantId],
  )
  expect(rows).toEqual([{ packs: 1 }])
})

/** Each in a pack of its own. */
async function loneMessages(count: number) {
  const { conversationId } = await newConversation(environment)
  const ids: string[] = []
  for (let n = 0; n < count; n++) {
    ids.push(await insertMessage(environment, conversationId, metadata(n)))
    await drained(environment)
  }
  await age(environment, '2 hours')
  return ids
}

test.each([1, 7, 9])('small packs are folded with SWEEP_BATCH_SIZE=%d too', async batchSize => {
  const ids = await loneMessages(18)
  const { counts } = await runNow(environment, 'compaction', { config: { batchSize } })
  const packs = Math.floor(18 / Math.max(batchSize, 8))
  expect(counts).toMatchObject({ objects_folded: packs * Math.max(batchSize, 8), objects_written: packs })
  await expectAllHydrate(ids)
})

test('a small pack that is damaged is left out, and keeps no others from being folded', async () => {
  const ids = await loneMessages(12)
  const { rows } = await environment.admin.query<{ key: string; size: number; row: string }>(
    `select a.r2_key as key, o.byte_length::int as size, a.row_id as row
       from artifact_refs a join lighter.objects o using (tenant_id, r2_key) order by a.id limit 2`,
  )
  for (const { key, size } of rows)
    await environment.store.put(key, Buffer.alloc(size), { contentType: 'application/x-ndjson' })
  const { counts } = await runNow(environment, 'compaction')
  expect(counts).toMatchObject({ objects_folded: 10, objects_written: 1, artifacts_moved: 10, failed: 2 })
  const damaged = new Set(rows.map(row => row.row))
  await expectAllHydrate(ids.filter(id => !damaged.has(id)))
  const { rows: left } = await environment.admin.query(
    'select state from lighter.objects where r2_key = any ($1)',
    [rows.map(row => row.key)],
  )
  expect(left).toEqual([{ state: 'stored' }, { state: 'stored' }])
})

test('readers, deletions and a purge go on while packs are rewritten', async () => {
  const { tenantId, ids } = await messages(400)
  await purge(tenantId, 0.6)
  const { rows } = await environment.admin.query<{ row_id: string }>(
    'select row_id from artifact_refs where tenant_id = $1 and purged_at is null',
    [tenantId],
  )
  const alive = rows.map(row => row.row_id)
  let done = false
  const reading = (async () => {
    let reads = 0
    while (!done || reads === 0) {
      await expectAllHydrate(alive.slice(reads % 100, (reads % 100) + 60))
      reads++
    }
    return reads
  })()
  const dying = environment.admin.query(
    `update artifact_refs set deleted_at = now() - interval '30 days', deleted_reason = 'deleted'
      where tenant_id = $1 and row_id = any ($2)`,
    [tenantId, alive.slice(160)],
  )
  await Promise.all([
    dying.then(() => runNow(environment, 'retention', { config: { batchSize: 10 } })),
    runNow(environment, 'compaction', { config: { readerGraceMs: 60_000 } }),
  ]).catch(async error => {
    done = true
    await reading
    throw error
  })
  done = true
  expect(await reading).toBeGreaterThan(0)
  await age(environment, '2 hours')
  await runNow(environment, 'retention')
  await runNow(environment, 'compaction')
  await age(environment, '8 days')
  await runNow(environment, 'orphans')
  await age(environment, '2 hours')
  await runNow(environment, 'orphans')
  // The bucket is what lighter.objects says, and that is what artifacts use.
  const { rows: objects } = await environment.admin.query<{ key: string }>(
    'select r2_key as key from lighter.objects order by 1',
  )
  const { rows: used } = await environment.admin.query<{ key: string }>(
    'select distinct r2_key as key from artifact_refs where purged_at is null order by 1',
  )
  expect((await bucketKeys(environment)).sort()).toEqual(objects.map(o => o.key).sort())
  expect(used.map(u => u.key).sort()).toEqual(objects.map(o => o.key).sort())
  await expectAllHydrate(alive.slice(0, 160))
  expect(ids).toHaveLength(400)
})

test('a damaged pack is left as it is, and does not keep others from being rewritten', async () => {
  const one = await messages(50)
  const other = await messages(50)
  await purge(one.tenantId, 0.7)
  await purge(other.tenantId, 0.7)
  const { rows } = await environment.admin.query<{ key: string; size: number }>(
    `select r2_key as key, byte_length::int as size from lighter.objects where tenant_id = $1 and state = 'stored'`,
    [one.tenantId],
  )
  for (const { key, size } of rows) {
    await environment.store.put(key, Buffer.alloc(size), { contentType: 'application/x-ndjson' })
  }
  const { counts } = await runNow(environment, 'compaction')
  expect(counts.failed).toBeGreaterThan(0)
  expect(counts.artifacts_moved).toBe(15)
  const { rows: left } = await environment.admin.query(
    `select distinct state from lighter.objects where tenant_id = $1 and r2_key = any ($2)`,
    [one.tenantId, rows.map(row => row.key)],
  )
  expect(left).toEqual([{ state: 'stored' }])
  const { rows: alive } = await environment.admin.query<{ row_id: string }>(
    'select row_id from artifact_refs where tenant_id = $1 and purged_at is null',
    [other.tenantId],
  )
  await expectAllHydrate(alive.map(row => row.row_id))
})

test('a new pack whose artifacts were all purged while it was being written is not left behind', async () => {
  const { tenantId } = await messages(50)
  await purge(tenantId, 0.7)
  await runNow(environment, 'compaction', {
    sweep: context =>
      sweepCompaction({
        ...context,
        store: {
          ...context.store,
          put: async (...put) => {
            await environment.admin.query(
              'update artifact_refs set deleted_at = now(), purged_at = now() where tenant_id = $1 and purged_at is null',
              [tenantId],
            )
            return context.store.put(...put)
          },
        },
      }),
  })
  const { rows } = await environment.admin.query(
    `select count(*)::int as n from lighter.objects where tenant_id = $1 and live_artifacts = 0 and state = 'stored'`,
    [tenantId],
  )
  expect(rows).toEqual([{ n: 0 }])
})

test('artifacts that are deleted while their frame is written anew are gone, and no others; then their bytes go too', async () => {
  await daemon.stop()
  environment.env.OFFLOAD_CODEC = 'none'
  daemon = await startDaemon(environment)
  const { tenantId } = await messages(60)
  await purge(tenantId, 0.7)
  const before = await payloadsOf(tenantId)
  expect(before.size).toBe(18)
  const deleted = [...before.keys()].filter((_, n) => n % 3 === 0)
  const expected = new Map([...before].filter(([id]) => !deleted.includes(id)))
  let written = 0
  const { counts } = await runNow(environment, 'compaction', {
    sweep: context =>
      sweepCompaction({
        ...context,
        store: {
          ...context.store,
          put: async (...put) => {
            written++
            const { rowCount } = await environment.admin.query(
              'delete from artifact_refs where tenant_id = $1 and id = any ($2)',
              [tenantId, deleted],
            )
            expect(rowCount).toBe(written === 1 ? deleted.length : 0)
            return context.store.put(...put)
          },
        },
      }),
  })
  expect(written).toBeGreaterThan(0)
  // What is left of a pack may be so little that it is written once more at once.
  expect(counts).toMatchObject({ objects_written: written, artifacts_moved: written * expected.size })
  expect(await payloadsOf(tenantId)).toEqual(expected)
  // What was written with them is written once more without them, by the erasure deadline.
  await age(environment, '24 days')
  await runNow(environment, 'compaction')
  await age(environment, '8 days')
  await runNow(environment, 'orphans')
  expect(await payloadsOf(tenantId)).toEqual(expected)
  const text = await bucketText()
  for (const [id, payload] of before)
    expect([id, text.includes(String(payload))]).toEqual([id, expected.has(id)])
})

test('of what was purged nothing is in the new pack, which says so, and the rest hydrates', async () => {
  await daemon.stop()
  environment.env.OFFLOAD_CODEC = 'none'
  daemon = await startDaemon(environment)
  const { tenantId } = await messages(60)
  const all = await payloadsOf(tenantId)
  await purge(tenantId, 0.7)
  const alive = await payloadsOf(tenantId)
  expect(alive.size).toBe(18)
  const old = await bucketKeys(environment)
  await runNow(environment, 'compaction')
  const { rows } = await environment.admin.query<{ id: string; place: string | null; raw: number }>(
    `select a.id, a.frame_offset as place, f.places[a.ordinal + 1] as raw
       from artifact_refs a join lighter.frames f on f.id = a.frame_id where a.tenant_id = $1`,
    [tenantId],
  )
  expect(rows).toHaveLength(60)
  for (const { id, place, raw } of rows) {
    expect([id, place === null, raw === -1]).toEqual([id, !alive.has(id), !alive.has(id)])
  }
  expect(await payloadsOf(tenantId)).toEqual(alive)
  await environment.store.delete(old)
  expect(await payloadsOf(tenantId)).toEqual(alive)
  const text = await bucketText()
  for (const [id, payload] of all) expect([id, text.includes(String(payload))]).toEqual([id, alive.has(id)])
})
