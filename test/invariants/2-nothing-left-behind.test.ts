// Invariant 2: no object without a row, and after the sweeps no object that no artifact uses. Shown with all
// sweeps at full rate among writers, readers, updates and deletes, while every row keeps hydrating to what was
// last written.
import { randomUUID } from 'node:crypto'
import { afterAll, beforeAll, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import type { SweepName } from '../../src/sweeps/names.ts'
import {
  asJsonbText,
  drained,
  hydrated,
  insertMessage,
  newConversation,
  startDaemon,
  useEnvironment,
} from '../support/environment.ts'
import { bucketMismatches, oddFrames } from '../support/invariants.ts'
import { age, bucketKeys, runNow } from '../support/sweep.ts'

const environment = await useEnvironment()
const daemons: Daemon[] = []

beforeAll(async () => {
  // Small batches make small packs, which the compaction folds again and again.
  for (let n = 0; n < 2; n++)
    daemons.push(
      await startDaemon(environment, { env: { OFFLOAD_BATCH_ROWS: '5', STREAM_THRESHOLD_BYTES: '65536' } }),
    )
})
afterAll(async () => {
  await Promise.all(daemons.map(daemon => daemon.stop()))
})

const seconds = 12
const random = (below: number) => Math.floor(Math.random() * below)
const heavy = () =>
  JSON.stringify({
    mark: randomUUID(),
    ...(random(3) > 0 && { tool_interactions: [{ text: 'lorem '.repeat(random(40)) }] }),
    ...(random(3) === 0 && { trace: 'ipsum '.repeat(1500 + random(random(20) === 0 ? 20_000 : 200)) }),
  })

/** What each row must hydrate to; a row whose write is under way has two answers. */
interface Model {
  allowed: Map<string, Set<string | null>>
}

async function writer(model: Model, conversationId: string, until: number): Promise<void> {
  const mine: string[] = []
  while (performance.now() < until) {
    const id = mine[random(mine.length)]
    const dice = random(10)
    if (id === undefined || dice < 5) {
      const metadata = heavy()
      const fresh = await insertMessage(environment, conversationId, metadata)
      model.allowed.set(fresh, new Set([await asJsonbText(environment, metadata)]))
      mine.push(fresh)
      continue
    }
    const before = model.allowed.get(id) ?? new Set()
    if (dice < 8) {
      const metadata = heavy()
      const after = await asJsonbText(environment, metadata)
      model.allowed.set(id, new Set([...before, after]))
      await environment.app.query('update conversation_messages set metadata = $2::jsonb where id = $1', [
        id,
        metadata,
      ])
      model.allowed.set(id, new Set([after]))
    } else {
      model.allowed.set(id, new Set([...before, null]))
      await environment.app.query('delete from conversation_messages where id = $1', [id])
      model.allowed.set(id, new Set([null]))
      mine.splice(mine.indexOf(id), 1)
    }
  }
}

/** `hydrated` of a row that is not there, or has just been changed under the reader, is tried again. */
async function reader(model: Model, until: number): Promise<{ reads: number; wrong: unknown[] }> {
  let reads = 0
  const wrong: unknown[] = []
  while (performance.now() < until) {
    const ids = [...model.allowed.keys()]
    const id = ids[random(ids.length)]
    if (id === undefined) {
      await new Promise(resolve => setTimeout(resolve, 10))
      continue
    }
    const before = model.allowed.get(id) ?? new Set()
    let found: string | null | Error
    try {
      found = await hydrated(environment, id)
    } catch (error) {
      found = error as Error
    }
    const after = model.allowed.get(id) ?? new Set()
    // Changed while it was read: says nothing.
    if (before !== after || before.size > 1) continue
    reads++
    if (before.has(null) ? found !== null && !(found instanceof Error) : !before.has(found as string))
      wrong.push({ id, expected: [...before], found: String(found) })
  }
  return { reads, wrong }
}

async function sweeper(name: SweepName, until: number, counts: Record<string, number>): Promise<void> {
  while (performance.now() < until) {
    const result = await runNow(environment, name, {
      config: {
        graceDays: 0,
        batchSize: 20,
        readerGraceMs: 3000,
        settleMs: 1000,
        compactLiveShare: 1,
        erasureDays: 0,
      },
    })
    for (const [count, n] of Object.entries(result.counts)) counts[count] = (counts[count] ?? 0) + n
    await new Promise(resolve => setTimeout(resolve, 50))
  }
}

test('all sweeps at full rate among writers and readers: every row is right, and nothing is left', async () => {
  const model: Model = { allowed: new Map() }
  const conversations = await Promise.all(Array.from({ length: 3 }, () => newConversation(environment)))
  const until = performance.now() + seconds * 1000
  const counts: Record<string, number> = {}
  const ageing = (async () => {
    while (performance.now() < until) {
      await new Promise(resolve => setTimeout(resolve, 700))
      // Old enough to be released and folded. Retention's ninety days are not reached.
      for (const table of ['lighter.frames', 'lighter.loose_artifacts']) {
        await environment.admin.query(
          `update ${table} set created_at = created_at - interval '2 hours'
            where id in (select id from ${table} where created_at > now() - interval '30 days' for update skip locked)`,
        )
      }
      for (const table of ['lighter.frame_exceptions', 'lighter.loose_artifacts']) {
        await environment.admin.query(
          `update ${table} set released_at = released_at - interval '2 hours'
            where ctid = any (array(select ctid from ${table} where released_at > now() - interval '30 days' for update skip locked))`,
        )
      }
      await environment.admin.query(
        `update lighter.objects set stored_at = stored_at - interval '2 hours'
          where r2_key in (select r2_key from lighter.objects
                            where state = 'stored' and stored_at > now() - interval '1 day' for update skip locked)`,
      )
    }
  })()
  const [readings] = await Promise.all([
    Promise.all(Array.from({ length: 3 }, () => reader(model, until))),
    ageing,
    ...conversations.map(({ conversationId }) => writer(model, conversationId, until)),
    ...(['orphans', 'retention', 'release', 'compaction'] as const).map(name => sweeper(name, until, counts)),
  ])
  expect(readings.flatMap(r => r.wrong)).toEqual([])
  expect(readings.reduce((sum, r) => sum + r.reads, 0)).toBeGreaterThan(100)
  for (const name of [
    'released',
    'tombstoned',
    'purged',
    'artifacts_moved',
    'objects_deleted',
    'objects_forgotten',
  ])
    expect([name, counts[name]]).toEqual([name, expect.any(Number)])
  expect(counts.artifacts_moved).toBeGreaterThan(0)
  expect(counts.objects_forgotten).toBeGreaterThan(0)

  await drained(environment)
  expect(await oddFrames(environment.admin)).toEqual([])
  for (const [id, allowed] of model.allowed) {
    const [expected] = allowed
    if (expected !== null) expect(await hydrated(environment, id)).toBe(expected)
  }
  // Everything that is not used goes: released, tombstoned, purged, deleted, deleted again, forgotten.
  for (let round = 0; round < 3; round++) {
    await age(environment, '2 hours')
    await environment.admin.query(`update artifact_refs set released_at = released_at - interval '2 hours'`)
    for (const name of ['release', 'retention', 'compaction', 'orphans'] as const) {
      await runNow(environment, name, { config: { graceDays: 0, compactLiveShare: 1, erasureDays: 0 } })
    }
  }
  await age(environment, '8 days')
  await runNow(environment, 'orphans')
  await age(environment, '2 hours')
  await runNow(environment, 'orphans')
  const { rows: used } = await environment.admin.query<{ key: string }>(
    'select distinct r2_key as key from artifact_refs where purged_at is null',
  )
  expect(await bucketKeys(environment)).toEqual(used.map(row => row.key).sort())
  expect(await oddFrames(environment.admin)).toEqual([])
  expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
  for (const [id, allowed] of model.allowed) {
    const [expected] = allowed
    if (expected !== null) expect(await hydrated(environment, id)).toBe(expected)
  }
}, 120_000)
