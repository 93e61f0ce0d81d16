// A publication for all tables has Postgres refuse to update or delete rows of a table without a replica identity.
import { expect, onTestFinished, test } from 'vitest'
import { lighterOk, settled } from '../support/black-box.ts'
import { insertMessage, newConversation, startDaemon, useEnvironment } from '../support/environment.ts'
import { column, value } from '../support/sql.ts'

const environment = await useEnvironment()

test('with a publication for all tables, restore, unpin, erase, sweeps and detach work to their end', async () => {
  await environment.admin.query('create publication everything for all tables')
  const { tenantId, conversationId } = await newConversation(environment)
  const daemon = await startDaemon(environment)
  onTestFinished(() => daemon.stop(0).then(() => undefined))
  const id = await insertMessage(environment, conversationId, '{"tool_interactions": [1]}')
  await settled(environment)
  await lighterOk(environment, ['restore', '--row', id])
  await lighterOk(environment, ['unpin', '--row', id])
  await lighterOk(environment, ['restore', '--tenant', tenantId])
  for (const sweep of ['release', 'retention', 'compaction', 'orphans', 'rollup', 'verify'])
    await lighterOk(environment, ['sweep', sweep])
  await lighterOk(environment, ['erase', '--tenant', tenantId, '--yes'])
  expect(await value(environment.admin, 'select count(*)::int from lighter.pins')).toBe(0)
  await environment.admin.query(`select lighter.detach('conversation_messages')`)
}, 120_000)

test('every table of ours has a primary key', async () => {
  expect(
    await column(
      environment.admin,
      `select c.oid::regclass::text from pg_class c
        where c.relkind in ('r', 'p') and c.relnamespace = 'lighter'::regnamespace
          and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)`,
    ),
  ).toEqual([])
})
