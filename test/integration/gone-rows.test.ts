// Rows that are not there when their jobs are worked on: gone for good, back in a moment, or only hidden.
import { afterEach, describe, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import {
  asJsonbText,
  createSignals,
  drained,
  hydrated,
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  useFreshEnvironment,
} from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'
import { connect, value } from '../support/sql.ts'

const environment = useFreshEnvironment()
let daemon: Daemon | null = null

afterEach(async () => {
  await daemon?.stop()
  daemon = null
})

const heavy = '{"tool_interactions": [{"n": 1}]}'
const count = (table: string) => value<number>(environment.admin, `select count(*)::int from ${table}`)

async function expectOffloaded(id: string, text: string): Promise<void> {
  await drained(environment)
  expect(await rawMetadata(environment, id)).toContain('tool_interactions_ref')
  expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, text))
  expect(await strayArtifacts(environment)).toEqual([])
  expect(await count('lighter.failed_jobs')).toBe(0)
}

test('a row deleted before its offload is forgotten', async () => {
  const { conversationId } = await newConversation(environment)
  const id = await insertMessage(environment, conversationId, heavy)
  await environment.app.query('delete from conversation_messages where id = $1', [id])
  daemon = await startDaemon(environment)
  await drained(environment)
  for (const table of ['lighter.failed_jobs', 'lighter.objects', 'artifact_refs'])
    expect(await count(table)).toBe(0)
})

describe.each(['read committed', 'repeatable read', 'serializable'])('in %s', isolation => {
  /** Deletes the row, if it is there, and writes it again under its key. */
  const rewrite = (id: string, conversationId: string, text: string) => [
    { text: 'delete from conversation_messages where id = $1', values: [id] },
    {
      text: `insert into conversation_messages (id, conversation_id, role, content, metadata) values ($1, $2, 'assistant', '', $3)`,
      values: [id, conversationId, text],
    },
  ]

  test('a row that a transaction under way writes again, having seen it queued, is queued when that is over', async () => {
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, heavy)
    await environment.app.query('delete from conversation_messages where id = $1', [id])
    const writer = await connect(environment.urls.application)
    try {
      await writer.query(`begin isolation level ${isolation}`)
      for (const statement of rewrite(id, conversationId, heavy)) await writer.query(statement)
      daemon = await startDaemon(environment)
      await drained(environment)
      expect(await count('conversation_messages')).toBe(0)
      await writer.query('commit')
    } finally {
      await writer.end()
    }
    expect(await rawMetadata(environment, id)).toBe(heavy)
    await expectOffloaded(id, heavy)
  })

  // Whichever comes first, the commit of the daemon or that of the writer.
  test.each(['after-claim', 'after-plan', 'after-upload', 'before-commit', 'after-commit'] as const)(
    'a row that is deleted and written again while its offload is held %s ends offloaded as it was written last',
    async point => {
      const { conversationId } = await newConversation(environment)
      const signals = createSignals()
      daemon = await startDaemon(environment, { signal: signals.signal })
      for (const committed of ['while it is held', 'when it has gone on']) {
        const written = `{"tool_interactions": [{"again": "${committed}"}]}`
        const hold = signals.holdAt(point)
        const id = await insertMessage(environment, conversationId, heavy)
        const writer = await connect(environment.urls.application)
        try {
          await hold.reached
          await writer.query(`begin isolation level ${isolation}`)
          for (const statement of rewrite(id, conversationId, written)) await writer.query(statement)
          if (committed === 'while it is held') await writer.query('commit')
          hold.release()
          if (committed !== 'while it is held') {
            await expect
              .poll(() => value(environment.admin, 'select count(*)::int from lighter.leases'))
              .toBe(0)
            await writer.query('commit')
          }
        } finally {
          hold.release()
          await writer.end()
        }
        await expectOffloaded(id, written)
      }
      expect((await bucketMismatches(environment)).unregistered).toEqual([])
    },
  )
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
