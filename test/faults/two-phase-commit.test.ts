// An application may commit in two phases: nothing of ours in its transaction may forbid that.
import { expect, test } from 'vitest'
import { hydrated, insertMessage, newConversation, startDaemon, until } from '../support/environment.ts'
import { environmentOnOwnServer, startOwnPostgres } from '../support/own-server.ts'
import { connect, value } from '../support/sql.ts'

const heavy = '{"tool_interactions": [{"name": "search"}]}'

test('a heavy write while the daemon sleeps can be prepared, and is offloaded once it is committed', async () => {
  const postgres = await startOwnPostgres({ max_prepared_transactions: '5' })
  const { environment } = await environmentOnOwnServer(postgres)
  let idle = false
  const daemon = await startDaemon(environment, {
    env: { POLL_INTERVAL_MS: '1000' },
    onResult: () => {
      idle = true
    },
  })
  const client = await connect(environment.urls.application)
  try {
    const { conversationId } = await newConversation(environment)
    const offloaded = (id: string) =>
      value<boolean>(
        environment.admin,
        `select coalesce(bool_and(metadata ? 'tool_interactions_ref'), false) from conversation_messages where id = '${id}'`,
      )
    const first = await insertMessage(environment, conversationId, heavy)
    await until(() => offloaded(first), 'the first row is offloaded')
    await until(async () => idle, 'the batch is over')
    await until(
      async () =>
        (await value<number>(
          environment.admin,
          `select count(*)::int from lighter.daemon_status where state = 'asleep'`,
        ).catch(() => 1)) > 0,
      'the daemon sleeps',
    )

    await client.query('begin')
    const second = await insertMessage(environment, conversationId, heavy, client)
    await client.query(`prepare transaction 'two phases'`)
    // What came later is not kept waiting by it.
    const third = await insertMessage(environment, conversationId, heavy)
    await until(() => offloaded(third), 'a later row is offloaded')
    await client.query(`commit prepared 'two phases'`)
    await until(() => offloaded(second), 'the row is offloaded')
    expect(await hydrated(environment, second)).toBe('{"tool_interactions": [{"name": "search"}]}')
  } finally {
    await client.end()
    await daemon.stop()
    await environment.close()
  }
})
