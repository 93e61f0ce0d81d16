// A table that is changed after it was attached: its rows wait, whole and without blame, and all others go on.
import { randomUUID } from 'node:crypto'
import { beforeAll, expect, test } from 'vitest'
import { attach, createTable, lighter } from '../support/black-box.ts'
import {
  insertMessage,
  newConversation,
  rawMetadata,
  until,
  useDaemon,
  useEnvironment,
} from '../support/environment.ts'
import { connect, value } from '../support/sql.ts'

const environment = await useEnvironment()
let conversationId: string

beforeAll(async () => {
  conversationId = (await newConversation(environment)).conversationId
})
await useDaemon(environment)

const heavy = '{"tool_interactions": [{"name": "search"}]}'

async function newTable(name: string, keyType = 'integer'): Promise<void> {
  await createTable(
    environment,
    name,
    `(id ${keyType} primary key, tenant_id uuid, owner_id uuid, metadata jsonb)`,
  )
  await attach(environment, name, 'metadata', { entity_column: `'owner_id'`, entity_type: `'owner'` })
}

const insert = (table: string, id: number | string) =>
  environment.app.query(`insert into ${table} values ($1, $2, null, $3)`, [id, randomUUID(), heavy])

const othersGoOn = async () => {
  const id = await insertMessage(environment, conversationId, heavy)
  await until(
    async () => (await rawMetadata(environment, id))?.includes('tool_interactions_ref') === true,
    'a row of another table is offloaded',
  )
}

const failedRows = (table: string) =>
  value<string>(environment.admin, `select failed from lighter.queue_health where source = '${table}'`)

const attempts = (table: string) =>
  value<number>(
    environment.admin,
    `select coalesce(max(attempts), 0) from lighter.jobs j join lighter.sources s on s.id = j.source_id where s.relation = '${table}'::regclass`,
  )

const isOffloaded = (table: string, column: string) =>
  value<boolean>(
    environment.admin,
    `select bool_and(${column} ? 'tool_interactions_ref' and not ${column} ? 'tool_interactions') from ${table}`,
  )

test.each([
  [
    'a key of another type',
    'kind_of_key',
    'alter table kind_of_key alter id type text',
    /kind_of_key.*id: the column is of type text now/,
  ],
  [
    'a tenant of another type',
    'no_tenant',
    'alter table no_tenant alter tenant_id type text',
    /no_tenant.*tenant_id: the column is of type text now/,
  ],
])('%s stops its table with a clear reason, and uses up no attempts', async (_, table, change, reason) => {
  await newTable(table)
  await insert(table, 1)
  await until(() => isOffloaded(table, 'metadata'), 'the first row is offloaded')
  await environment.admin.query(change)
  await environment.app.query(`insert into ${table} values (2, $1, null, $2)`, [randomUUID(), heavy])

  await othersGoOn()
  expect(await failedRows(table)).toBe('0')
  expect(await attempts(table)).toBe(0)
  const doctor = await lighter(environment, ['doctor'])
  expect(doctor.code).not.toBe(0)
  expect(doctor.stdout).toMatch(reason)
  expect((await lighter(environment, ['stats'])).stdout).toContain('the column is of type text now')
  await environment.admin.query(`select lighter.detach('${table}')`)
})

test('keys above 2^31 of an integer key that became bigint are offloaded', async () => {
  await newTable('grown')
  await insert('grown', 1)
  await until(() => isOffloaded('grown', 'metadata'), 'the first row is offloaded')
  await environment.admin.query('alter table grown alter id type bigint')
  await insert('grown', 2 ** 31 + 1)
  await until(() => isOffloaded('grown', 'metadata'), 'both rows are offloaded')
  expect(await failedRows('grown')).toBe('0')
})

test('a right that was taken away uses up no attempts either', async () => {
  await newTable('forbidden')
  await environment.admin.query('revoke all on forbidden from lighter_daemon')
  await insert('forbidden', 1)
  await until(
    async () =>
      (await value(
        environment.admin,
        `select max(j.last_error) from lighter.jobs j join lighter.sources s on s.id = j.source_id where s.relation = 'forbidden'::regclass`,
      )) !== null,
    'it was tried',
  )
  await othersGoOn()
  expect(await attempts('forbidden')).toBe(0)
  expect(await failedRows('forbidden')).toBe('0')
})

test('a session that wrote before the key changed its type writes on', async () => {
  await newTable('cached')
  const client = await connect(environment.urls.application)
  try {
    const write = (id: number | string) =>
      client.query(`insert into cached values ('${id}', $1, null, $2)`, [randomUUID(), heavy])
    for (let id = 1; id <= 8; id++) await write(id)
    await environment.admin.query('alter table cached alter id type bigint')
    await write(2 ** 31 + 1)
    await environment.admin.query('alter table cached alter id type text')
    await write('not a number')
    expect(await value(environment.admin, 'select count(*)::int from cached')).toBe(10)
  } finally {
    await client.end()
  }
})
