// Our trigger runs with the rights of the owner of schema lighter, in everybody's writes: nothing that the owner of an
// attached table defines may run in it.
import { randomUUID } from 'node:crypto'
import { expect, test } from 'vitest'
import { attach, createTable } from '../support/black-box.ts'
import { useEnvironment } from '../support/environment.ts'
import { value } from '../support/sql.ts'

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
