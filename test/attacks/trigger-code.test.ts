// Our trigger runs with the rights of the owner of schema lighter, in everybody's writes: nothing that the owner of an
// attached table defines may run in it.
import { randomUUID } from 'node:crypto'
import { expect, test } from 'vitest'
import { attach, createTable } from '../support/black-box.ts'
import { useEnvironment } from '../support/environment.ts'
import { asRole, column, uniqueRole, value } from '../support/sql.ts'

const environment = await useEnvironment()

test.each([
  ['a cast to text', 'create cast (evil as text) with function evil_text(evil)'],
  ['an assignment cast to text', 'create cast (evil as text) with function evil_text(evil) as assignment'],
  ['an implicit cast to text', 'create cast (evil as text) with function evil_text(evil) as implicit'],
])("%s of the key's new type does not run, and the write succeeds", async (_, cast) => {
  await createTable(environment, 'victim', '(id integer primary key, tenant_id uuid, metadata jsonb)')
  await attach(environment, 'victim')
  await environment.admin.query(`
    create table caught (who text);
    grant insert on caught to public;
    create type evil as (n integer);
    create function evil_text(e evil) returns text language plpgsql as
      $$ begin insert into caught values (current_user); return (e).n::text; end $$;
    ${cast};
    alter table victim drop constraint victim_pkey;
    alter table victim alter id type evil using row(id)::evil`)
  await environment.app.query(`insert into victim values (row(7), $1, '{"tool_interactions": [1]}')`, [
    randomUUID(),
  ])
  expect(await value(environment.admin, 'select count(*)::int from caught')).toBe(0)
  expect(await value(environment.admin, 'select count(*)::int from victim')).toBe(1)
  await environment.admin.query(
    `select lighter.detach('victim'); drop table victim, caught; drop type evil cascade`,
  )
})

test('what a writer has put before pg_catalog is not called by what the trigger asks, nor does it hide a row', async () => {
  await createTable(environment, 'shadowed', '(id integer primary key, tenant_id uuid, metadata jsonb)')
  await attach(environment, 'shadowed')
  const role = uniqueRole('shadow')
  await environment.admin.query(`
    create role ${role};
    create schema ${role} authorization ${role};
    grant insert, update on shadowed to ${role};
    create table ${role}.caught (what text);
    grant insert, delete, select on ${role}.caught to public`)
  const body = (what: string, result: string) =>
    `language plpgsql as $$ begin insert into ${role}.caught values ('${what}'); return ${result}; end $$`
  try {
    await asRole(environment.admin, role, async db => {
      await db.query(`
        create function ${role}.pg_column_size(doc jsonb) returns integer ${body('size', '0')};
        create function ${role}.pg_column_compression(doc jsonb) returns text ${body('compression', 'null')};
        create function ${role}.never(a integer, b integer) returns boolean ${body('comparison', 'false')};
        create function ${role}.has_not(a jsonb, b text) returns boolean ${body('key', 'false')};
        create operator ${role}.> (function = ${role}.never, leftarg = integer, rightarg = integer);
        create operator ${role}.? (function = ${role}.has_not, leftarg = jsonb, rightarg = text)`)
    })
    await asRole(environment.admin, role, async db => {
      await db.query(`set local search_path = ${role}, pg_catalog, public`)
      // So it would be for who does not name what is meant.
      expect(
        await value(
          db,
          `select pg_column_size('{"a": 1}'::jsonb) + (2 > 1)::int + ('{"a": 1}'::jsonb ? 'a')::int`,
        ),
      ).toBe(0)
      await db.query(`delete from ${role}.caught`)
      await db.query(`insert into shadowed values (1, $1, '{"tool_interactions": [1]}')`, [randomUUID()])
      await db.query(`insert into shadowed values (2, $1, $2)`, [
        randomUUID(),
        JSON.stringify({ text: 'x'.repeat(9000) }),
      ])
      await db.query(`insert into shadowed values (3, $1, '{"small": true}')`, [randomUUID()])
    })
    expect(await column(environment.admin, 'select row_id from lighter.inbox order by row_id')).toEqual([
      '1',
      '2',
    ])
    expect(await column(environment.admin, `select what from ${role}.caught`)).toEqual([])
  } finally {
    await environment.admin.query(
      `select lighter.detach('shadowed'); drop table shadowed; drop schema ${role} cascade; drop role ${role}`,
    )
  }
})
