// A batch of which some rows fail is committed in parts: one frame, in more than one transaction.
import { expect, test } from 'vitest'
import { createPool } from '../../src/db/pool.ts'
import { commitBatch } from '../../src/offload/commit.ts'
import { packBatch } from '../../src/offload/pack-batch.ts'
import { newTokens, planRows } from '../../src/offload/plan.ts'
import { registerObjects } from '../../src/offload/register.ts'
import { loadSources } from '../../src/source/sources.ts'
import {
  asJsonbText,
  hydrated,
  insertMessage,
  newConversation,
  rawMetadata,
  useEnvironment,
} from '../support/environment.ts'
import { leaseRows } from '../support/queue.ts'

const environment = await useEnvironment()
const metadata = (n: number) => `{"tool_interactions": [{"n": ${n}}], "text": "${'x'.repeat(9000)}"}`

/** Two rows whose payloads are in the bucket, in frames that they share, and what commits one of them. */
async function uploadedTogether() {
  const { conversationId } = await newConversation(environment)
  const ids = [
    await insertMessage(environment, conversationId, metadata(1)),
    await insertMessage(environment, conversationId, metadata(2)),
  ]
  const pool = createPool(environment.urls.daemon, 2, () => undefined)
  const [source] = (await loadSources(pool)).values()
  if (source === undefined) throw new Error('nothing is attached')
  const { offload } = environment.config()
  const { id: leaseId, jobs } = await leaseRows(pool, source.id, ids)
  const limits = {
    budgetBytes: offload.batchBytes,
    streamThresholdBytes: offload.streamThresholdBytes,
    maxPayloadBytes: offload.maxPayloadBytes,
  }
  const tokens = newTokens()
  const rows = await planRows(pool, source, jobs, limits, tokens)
  const { built } = await packBatch(rows, offload, environment.store.prefix, tokens)
  await registerObjects(
    pool,
    built.map(o => ({ ...o, byteLength: o.body.length })),
    60_000,
    leaseId,
  )
  for (const { key, body, contentType } of built) await environment.store.put(key, body, { contentType })
  const locations = new Map(built.flatMap(o => [...o.locations]))
  const objects = built.map(o => ({ tenantId: o.tenantId, key: o.key, byteLength: o.body.length }))
  const commit = (n: number) => commitBatch(pool, rows.slice(n, n + 1), locations, objects, 8)
  return { ids, pool, commit, keys: objects.map(o => o.key) }
}

test('what a later part commits is an artifact like what the first one did', async () => {
  const { ids, pool, commit, keys } = await uploadedTogether()
  const artifacts = async () => {
    const { rows } = await pool.query<{ n: number }>(
      'select count(*)::int as n from public.artifact_refs where r2_key = any ($1)',
      [keys],
    )
    return rows[0]?.n
  }
  await commit(0)
  expect(await artifacts()).toBe(2)
  await commit(1)
  expect(await artifacts()).toBe(4)
  for (const [n, id] of ids.entries())
    expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, metadata(n + 1)))
  await pool.end()
})

test('a frame that was moved in between takes no more: the bytes of its voids were left behind', async () => {
  const { ids, pool, commit, keys } = await uploadedTogether()
  await commit(0)
  await environment.admin.query(
    `update lighter.frames set r2_key = r2_key || '-moved', places[2] = -1 where r2_key = any ($1)`,
    [keys],
  )
  await expect(commit(1)).rejects.toMatchObject({ code: 'object_swept', retryable: true })
  expect(await rawMetadata(environment, ids[1] ?? '')).toBe(await asJsonbText(environment, metadata(2)))
  const { rows } = await pool.query(
    `select distinct voids::text as voids from lighter.frames where r2_key like any (select k || '-moved' from unnest($1::text[]) k)`,
    [keys],
  )
  expect(rows).toEqual([{ voids: '{1}' }])
  await pool.end()
})
