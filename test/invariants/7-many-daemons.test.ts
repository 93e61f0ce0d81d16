// Invariant 7: many daemons do the same as one.
import { afterAll, beforeAll, expect, test } from 'vitest'
import {
  asJsonbText,
  createEnvironment,
  drained,
  hydratedMany,
  insertMessage,
  newConversation,
  type TestEnvironment,
} from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'
import { spawnDaemon } from '../support/spawn-daemon.ts'

let environment: TestEnvironment
beforeAll(async () => {
  environment = await createEnvironment()
})
afterAll(() => environment.close())

test('four daemons that start at once on one queue offload every row, and each row once', async () => {
  const conversations = await Promise.all(Array.from({ length: 6 }, () => newConversation(environment)))
  const written = new Map<string, string | null>()
  const write = async (n: number) => {
    const conversation = conversations[n % conversations.length]
    const metadata = `{"n": ${n}, "tool_interactions": [${n}, 1e400], "trace": "${'~'.repeat((n % 3) * 5000)}"}`
    const id = await insertMessage(environment, conversation?.conversationId ?? '', metadata)
    written.set(id, metadata)
  }
  const settings = { OFFLOAD_BATCH_ROWS: '50', LOG_LEVEL: 'silent' }
  const starting = Array.from({ length: 4 }, () => spawnDaemon(environment, { env: settings }))
  for (let n = 0; n < 1200; n += 12) await Promise.all(Array.from({ length: 12 }, (_, i) => write(n + i)))
  const daemons = await Promise.all(starting)
  await drained(environment)
  for (const daemon of daemons) daemon.kill('SIGTERM')
  expect(await Promise.all(daemons.map(d => d.ended))).toEqual(daemons.map(() => ({ code: 0, signal: null })))

  const ids = [...written.keys()]
  const texts = await hydratedMany(environment, ids)
  for (const [i, id] of ids.entries()) {
    expect(texts[i]).toBe(await asJsonbText(environment, written.get(id) ?? null))
  }
  const { rows } = await environment.admin.query(
    `select row_id from artifact_refs group by row_id, field having count(*) > 1`,
  )
  expect(rows, 'rows offloaded twice').toEqual([])
  const { rows: heavy } = await environment.admin.query(
    `select id from conversation_messages where metadata ? 'tool_interactions'`,
  )
  expect(heavy).toEqual([])
  expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
  expect(await strayArtifacts(environment)).toEqual([])
})
