// On many servers everybody may create functions in schema public. One of the name of a function of Postgres, with a type
// that fits better, must not run with the rights of the daemon.
import { afterAll, beforeAll, expect, test } from 'vitest'
import { lighter, lighterOk } from '../support/black-box.ts'
import { drained, startDaemon, useEnvironment } from '../support/environment.ts'
import { column, connect, uniqueRole, value } from '../support/sql.ts'

const environment = await useEnvironment()
const { admin } = environment
const mallory = uniqueRole('mallory')

beforeAll(async () => {
  await admin.query(`
    select lighter.set_defaults('0', '0');
    create role ${mallory} login password 'mallory';
    grant create on schema public to ${mallory}`)
  const url = new URL(environment.urls.admin)
  url.username = mallory
  url.password = 'mallory'
  const client = await connect(url.href)
  await client.query(`
    create table public.ran (who text, what text);
    grant all on public.ran to public;
    create function public.note(what text) returns void language plpgsql as $$
      begin
        if not current_setting('transaction_read_only')::boolean then insert into public.ran values (current_user, what); end if;
      end $$`)
  for (const [name, parameters, type, result] of [
    ['pg_column_size', 'jsonb', 'integer', '9000'],
    ['pg_column_size', 'varchar', 'integer', '9000'],
    ['pg_column_compression', 'jsonb', 'text', 'null'],
    ['pg_column_compression', 'varchar', 'text', 'null'],
    ['octet_length', 'varchar', 'integer', '9000'],
    ['concat_ws', 'text, xid, tid, oid, oid, text', 'text', `''`],
    ['format', 'text, varchar', 'text', `''`],
  ]) {
    await client.query(`
      create function public.${name}(${parameters}) returns ${type} language plpgsql as $$
        begin perform public.note('${name}'); return ${result}; end $$`)
  }
  await client.query(`
    create function public.is_same(varchar, varchar) returns boolean language plpgsql as $$
      begin perform public.note('='); return true; end $$;
    create operator public.= (leftarg = varchar, rightarg = varchar, function = public.is_same)`)
  await client.end()
})

afterAll(() => admin.query(`drop owned by ${mallory} cascade; drop role ${mallory}`))

test('what anybody has put into schema public is not run by the daemon, nor by commands', async () => {
  await admin.query(`
    create table accounts (code varchar primary key, tenant varchar);
    create table notes (id bigint primary key, code varchar references accounts, value varchar, metadata jsonb);
    insert into accounts values ('a', 'acme');
    select lighter.attach('notes', 'value', tenant_column => 'tenant', tenant_path => array['code']);
    select lighter.attach('notes', 'metadata', tenant_column => 'tenant', tenant_path => array['code'])`)
  const daemon = await startDaemon(environment)
  await admin.query(`insert into notes values (1, 'a', repeat('a b ', 5000), '{"tool_interactions": [1]}')`)
  await drained(environment)
  await daemon.stop()
  expect(
    await value(
      admin,
      `select count(*)::int from notes where length(value) = 56 and metadata ? 'tool_interactions_ref'`,
    ),
  ).toBe(1)
  await lighterOk(environment, ['sweep', 'release'])
  await lighter(environment, ['doctor'])
  await lighterOk(environment, ['hydrate', '--table', 'notes', '--column', 'value', '1'])
  await lighterOk(environment, ['status', 'notes', '--column', 'value', '1'])
  await lighterOk(environment, ['restore', '--all', '--table', 'notes'])
  await lighterOk(environment, ['backfill', '--table', 'notes', '--dry-run'])
  await lighterOk(environment, ['erase', '--tenant', 'acme', '--dry-run'])
  expect(await column(admin, `select distinct who || ' ' || what from public.ran`)).toEqual([])
  // The traps work.
  await admin.query(`select public.pg_column_size('{}'::jsonb)`)
  expect(await value(admin, 'select count(*)::int from public.ran')).toBe(1)
})
