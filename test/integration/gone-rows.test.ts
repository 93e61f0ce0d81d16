// Rows that are not there when their jobs are worked on: gone for good, back in a moment, or only hidden.
import { afterEach, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import {
  asJsonbText,
  drained,
  hydrated,
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  useFreshEnvironment,
} from '../support/environment.ts'
import { runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()
let daemon: Daemon | null = null

afterEach(async () => {
  await daemon?.stop()
  daemon = null
})

const heavy = '{"tool_interactions": [{"n": 1}]}'
const count = async (sql: string) => (await environment.admin.query<{ n: number }>(sql)).rows[0]?.n
const jobs = () => count('select count(*)::int as n from lighter.jobs')
const gone = () => count('select count(*)::int as n from lighter.gone_rows')

/** Sweeps until all are decided (transactions of other databases of the server count too); returns how many are back. */
async function swept(): Promise<number> {
  let queued = 0
  await expect
    .poll(
      async () => {
        queued += (await runNow(environment, 'orphans')).counts.rows_queued_again ?? 0
        return gone()
      },
      { timeout: 20_000 },
    )
    .toBe(0)
  return queued
}

test('a row deleted before its offload is forgotten', async () => {
  const { conversationId } = await newConversation(environment)
  const id = await insertMessage(environment, conversationId, heavy)
  await environment.app.query('delete from conversation_messages where id = $1', [id])
  daemon = await startDaemon(environment)
  await drained(environment)
  expect(await gone()).toBe(1)
  expect(await swept()).toBe(0)
})

test('a row that a transaction under way writes again, having seen the job, is queued when that is over', async () => {
  const { conversationId } = await newConversation(environment)
  const id = await insertMessage(environment, conversationId, heavy)
  await environment.app.query('delete from conversation_messages where id = $1', [id])
  const writer = await environment.app.connect()
  try {
    await writer.query('begin')
    await writer.query(
      `insert into conversation_messages (id, conversation_id, role, content, metadata) values ($1, $2, 'assistant', '', $3)`,
      [id, conversationId, heavy],
    )
    daemon = await startDaemon(environment)
    await expect.poll(jobs, { timeout: 10_000 }).toBe(0)
    expect(await gone()).toBe(1)
    // Its transaction is still under way: too early to tell.
    expect((await runNow(environment, 'orphans')).counts).toMatchObject({ rows_queued_again: 0 })
    expect(await gone()).toBe(1)
    await writer.query('commit')
  } finally {
    writer.release()
  }
  expect(await rawMetadata(environment, id)).toBe(heavy)
  await swept()
  await drained(environment)
  expect(await rawMetadata(environment, id)).toContain('tool_interactions_ref')
  expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, heavy))
})

test('rows that row-level security hides from the daemon wait with the remedy, and are not gone', async () => {
  const { conversationId } = await newConversation(environment)
  await environment.admin.query(`
    alter table conversation_messages enable row level security;
    -- attach has made one, which somebody took away
    drop policy lighter_daemon on conversation_messages;
    create policy app on conversation_messages for all to example_app using (true) with check (true)`)
  const id = await insertMessage(environment, conversationId, heavy)
  daemon = await startDaemon(environment, { env: { OFFLOAD_MAX_ATTEMPTS: '1' } })
  await expect
    .poll(async () => (await environment.admin.query('select last_error from lighter.jobs')).rows, {
      timeout: 10_000,
    })
    .toEqual([{ last_error: expect.stringMatching(/row-level security.*hides.*attach/) }])
  await environment.admin.query(
    'create policy worker on conversation_messages for all to lighter_daemon using (true) with check (true)',
  )
  await expect
    .poll(() => rawMetadata(environment, id), { timeout: 15_000 })
    .toContain('tool_interactions_ref')
})
