// Rows that can not be offloaded, or not now: each is told of by itself, and no other row waits for it.
import { randomUUID } from 'node:crypto'
import { beforeEach, expect, test } from 'vitest'
import {
  drained,
  hydrated,
  hydratedMany,
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  until,
  useFreshEnvironment,
} from '../support/environment.ts'
import { value } from '../support/sql.ts'

const environment = useFreshEnvironment()
let conversationId: string
beforeEach(async () => {
  conversationId = (await newConversation(environment)).conversationId
})

const writeGood = async (rows: number): Promise<string[]> => {
  const ids: string[] = []
  for (let n = 0; n < rows; n++)
    ids.push(await insertMessage(environment, conversationId, `{"tool_interactions": [${n}]}`))
  return ids
}

/** All in one batch with the bad one, which is the only one to be given up. */
async function onlyFailure(good: string[], bad: string, reason: RegExp): Promise<void> {
  const daemon = await startDaemon(environment, { env: { OFFLOAD_MAX_ATTEMPTS: '1' } })
  await drained(environment, 100_000)
  await daemon.stop()
  const { rows } = await environment.admin.query('select row_id, last_error from lighter.failures')
  expect(rows).toEqual([{ row_id: bad, last_error: expect.stringMatching(reason) }])
  expect(await hydratedMany(environment, good)).toEqual(good.map((_, n) => `{"tool_interactions": [${n}]}`))
  expect(
    await value<number>(
      environment.admin,
      `select count(*)::int from conversation_messages where metadata ? 'tool_interactions_ref'`,
    ),
  ).toBe(good.length)
}

test('a row whose tenant can not be found is a dead letter that says so', async () => {
  const good = await writeGood(10)
  await environment.admin.query(
    'alter table conversation_messages drop constraint conversation_messages_conversation_id_fkey',
  )
  const bad = await insertMessage(environment, randomUUID(), '{"tool_interactions": ["whose"]}')
  await onlyFailure(good, bad, /^no tenant: tenant_id of the row's public.conversations is null or missing$/)
  expect(await rawMetadata(environment, bad)).toBe('{"tool_interactions": ["whose"]}')
})

// A short way to write 131,072 digits: 9,000 of them are 1.2 GB of text, in a document of 200 KB.
const longNumbers = (key: string) => `{"${key}": [${Array(9000).fill('1e131071').join(', ')}]}`
const numbersIn = (id: string, key: string) =>
  value<number>(
    environment.admin,
    `select jsonb_array_length(metadata -> '${key}') from conversation_messages where id = '${id}'`,
  )

test('a row of whose field Postgres itself can not make the text is written, and is a dead letter that says why', async () => {
  const good = await writeGood(3)
  const bad = await insertMessage(environment, conversationId, longNumbers('tool_interactions'))
  await onlyFailure(good, bad, /numbers that would be written out to \d+ bytes of text/)
  expect(await numbersIn(bad, 'tool_interactions')).toBe(9000)
})

test('a document that is long because of numbers alone stays in its row, and is no failure', async () => {
  const id = await insertMessage(environment, conversationId, longNumbers('trace'))
  const daemon = await startDaemon(environment, { env: { OFFLOAD_MAX_ATTEMPTS: '1' } })
  await drained(environment)
  await daemon.stop()
  expect((await environment.admin.query('select from lighter.failed_jobs')).rowCount).toBe(0)
  expect(await numbersIn(id, 'trace')).toBe(9000)
})

test('a row that changes each time just before its commit keeps its changes, and holds up no other', async () => {
  const busy = await insertMessage(environment, conversationId, '{"tool_interactions": ["busy"]}')
  const good = await writeGood(10)
  let changes = 0
  let restless = true
  const daemon = await startDaemon(environment, {
    env: { OFFLOAD_MAX_ATTEMPTS: '1' },
    signal: async point => {
      if (point !== 'before-commit' || !restless) return
      await environment.app.query(
        `update conversation_messages set metadata = jsonb_build_object('tool_interactions', jsonb_build_array($2::int)) where id = $1`,
        [busy, ++changes],
      )
    },
  })
  await until(
    async () =>
      changes >= 5 &&
      // Each change queues it beside what was tried before it.
      (await value<number>(environment.admin, 'select count(distinct row_id)::int from lighter.jobs')) === 1,
    'the others are done, and the busy one was tried five times',
  )
  expect(await hydratedMany(environment, good)).toEqual(good.map((_, n) => `{"tool_interactions": [${n}]}`))
  restless = false
  await drained(environment)
  await daemon.stop()
  expect(await hydrated(environment, busy)).toBe(`{"tool_interactions": [${changes}]}`)
  expect(await value<number>(environment.admin, 'select count(*)::int from lighter.failed_jobs')).toBe(0)
})
