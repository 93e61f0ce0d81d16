// BEFORE triggers of the application change documents behind our back, and reserved names hold what is no pointer.
import { randomUUID } from 'node:crypto'
import { expect, test } from 'vitest'
import { attach, createTable, hydratedByCli, lighter } from '../support/black-box.ts'
import { until, useDaemon, useEnvironment } from '../support/environment.ts'
import { value } from '../support/sql.ts'

const environment = await useEnvironment()
await useDaemon(environment, { env: { OFFLOAD_MAX_ATTEMPTS: '1' } })

const long = 'x'.repeat(9000)

async function newTable(name: string, trigger?: string): Promise<void> {
  await createTable(environment, name, '(id integer primary key, tenant_id uuid, note text, metadata jsonb)')
  if (trigger === undefined) return
  await environment.admin.query(`
    create function ${name}_change() returns trigger language plpgsql as $$ begin ${trigger} return new; end $$;
    create trigger change before update on ${name} for each row execute function ${name}_change()`)
}

const insert = (table: string, metadata: string) =>
  environment.app.query(`insert into ${table} values (1, $1, null, $2)`, [randomUUID(), metadata])

const text = (table: string) => value<string>(environment.admin, `select metadata::text from ${table}`)

const isOffloaded = (table: string) =>
  value<boolean>(
    environment.admin,
    `select metadata ?| array['tool_interactions_ref', 'artifact_metadata_ref'] and not metadata ? 'tool_interactions' from ${table}`,
  )

const failure = (table: string) =>
  value<string | null>(
    environment.admin,
    `select max(last_error) from lighter.failures where source = '${table}'`,
  )

test.each([
  ['the field that leaves first', 'merges_field', '{"tool_interactions": [1]}'],
  ['all the rest', 'merges_rest', `{"a": "${long}"}`],
])(
  'a row whose trigger merges the former document back in is no success, and stays as it was: %s',
  async (_, table, metadata) => {
    await newTable(table, 'new.metadata := old.metadata || new.metadata;')
    // So that it fires on our rewrite whatever the daemon may do.
    await environment.admin.query(`alter table ${table} enable always trigger change`)
    await attach(environment, table)
    await insert(table, metadata)
    await until(async () => (await failure(table)) !== null, 'it is a dead letter')
    expect(await failure(table)).toMatch(/put back what was taken/)
    expect(await text(table)).toBe(await value(environment.admin, `select '${metadata}'::jsonb::text`))
    expect(
      await value(
        environment.admin,
        `select count(*)::int from artifact_refs where row_id = '1' and source_id = (select id from lighter.sources where relation = '${table}'::regclass)`,
      ),
    ).toBe(0)
  },
)

test('a trigger that adds a little to the document is let be', async () => {
  await newTable('adds', `new.metadata := new.metadata || '{"seen": true}';`)
  await environment.admin.query('alter table adds enable always trigger change')
  await attach(environment, 'adds')
  await insert('adds', `{"tool_interactions": [1], "a": "${long}"}`)
  await until(() => isOffloaded('adds'), 'the row is offloaded')
  expect(JSON.parse(await hydratedByCli(environment, 'adds', '1'))).toEqual({
    tool_interactions: [1],
    a: long,
    seen: true,
  })
})

test('a document that a trigger sets while the column is not named in SET is queued and offloaded', async () => {
  await newTable(
    'computes',
    `new.metadata := jsonb_build_object('tool_interactions', jsonb_build_array(new.note));`,
  )
  await attach(environment, 'computes')
  await insert('computes', '{}')
  await environment.app.query(`update computes set note = 'changed'`)
  await until(() => isOffloaded('computes'), 'the row is offloaded')
  expect(await hydratedByCli(environment, 'computes', '1')).toBe('{"tool_interactions": ["changed"]}')
})

test('a trigger that comes later is named by doctor, and noticed after the table is attached again', async () => {
  await newTable('later')
  await attach(environment, 'later')
  await environment.admin.query(`
    create trigger change before update on later for each row execute function computes_change()`)
  const doctor = await lighter(environment, ['doctor'])
  expect(doctor.stdout).toMatch(/later\.metadata: a BEFORE trigger of the table may change the column/)
  await attach(environment, 'later')
  await insert('later', '{}')
  await environment.app.query(`update later set note = 'changed'`)
  await until(() => isOffloaded('later'), 'the row is offloaded')
})

test.each([
  ['a null pointer', '{"tool_interactions_ref": null, "tool_interactions": [1, 2]}'],
  ['a null count', '{"tool_interactions_count": null, "tool_interactions": {"a": 1}}'],
  ['a count of its own', '{"tool_interactions_count": 7, "tool_interactions": [1, 2]}'],
  ['text of its own', '{"tool_interactions_ref": "see below", "tool_interactions": [1, 2], "model": "m"}'],
])('a row with %s beside the field is offloaded whole, and reads as it was', async (_, metadata) => {
  await newTable('reserved')
  await attach(environment, 'reserved')
  await insert('reserved', metadata)
  await until(() => isOffloaded('reserved'), 'the row is offloaded')
  expect(await hydratedByCli(environment, 'reserved', '1')).toBe(
    await value(environment.admin, `select '${metadata}'::jsonb::text`),
  )
  expect((await lighter(environment, ['restore', '--table', 'reserved', '--all'])).code).toBe(0)
  expect(await text('reserved')).toBe(await value(environment.admin, `select '${metadata}'::jsonb::text`))
  await environment.admin.query(`select lighter.detach('reserved'); drop table reserved`)
})
