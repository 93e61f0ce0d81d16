// A key's column may be of a type that somebody else owns. What they define for it (casts, operators) must not run with
// our rights: in the trigger as our owner, in plan, commit, backfill, restore and sweeps as the daemon.
import { randomUUID } from 'node:crypto'
import type pg from 'pg'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { rowKey } from '../../src/source/row-key.ts'
import { lighter, lighterOk } from '../support/black-box.ts'
import { drained, startDaemon, useEnvironment } from '../support/environment.ts'
import { hydratedRows, offloadedKeys } from '../support/key-tables.ts'
import { column, connect, uniqueRole, value } from '../support/sql.ts'

const environment = await useEnvironment()
const { admin } = environment
const mallory = uniqueRole('mallory')
let client: pg.Client

beforeAll(async () => {
  await admin.query(`
    select lighter.set_defaults('0', '0');
    create role ${mallory} login password 'mallory';
    create schema evil authorization ${mallory};
    grant create on schema public to ${mallory}`)
  const url = new URL(environment.urls.admin)
  url.username = mallory
  url.password = 'mallory'
  client = await connect(url.href)
  await client.query(`
    create table evil.ran (who text, what text);
    grant usage on schema evil to public;
    grant insert on evil.ran to public;
    create type evil.mood as enum ('calm', 'wild');
    create domain evil.name as text;
    create function evil.note(what text) returns void language plpgsql as $$
      begin insert into evil.ran values (current_user, what); end $$;
    create function evil.to_text(evil.mood) returns text language plpgsql as $$
      begin perform evil.note('to text'); return 'stolen'; end $$;
    create function evil.to_json(evil.mood) returns json language plpgsql as $$
      begin perform evil.note('to json'); return '"stolen"'; end $$;
    create function evil.to_jsonb(evil.mood) returns jsonb language plpgsql as $$
      begin perform evil.note('to jsonb'); return '"stolen"'; end $$;
    create function evil.from_text(text) returns evil.mood language plpgsql as $$
      begin perform evil.note('from text'); return 'wild'; end $$;
    create cast (evil.mood as text) with function evil.to_text as assignment;
    create cast (evil.mood as json) with function evil.to_json;
    create cast (evil.mood as jsonb) with function evil.to_jsonb as assignment;
    create cast (text as evil.mood) with function evil.from_text as implicit`)
  for (const type of ['evil.mood', 'evil.name', 'text'])
    for (const [operator, other] of [
      ['=', 'evil.mood'],
      ['>', 'evil.mood'],
      ['=', 'evil.name'],
      ['>', 'evil.name'],
      ['=', 'text'],
      ['>', 'text'],
    ] as const) {
      if (type === 'text' && other === 'text') continue
      const name = `public.op_${type.replace('.', '_')}_${other.replace('.', '_')}_${operator === '=' ? 'eq' : 'gt'}`
      await client.query(`
        create function ${name}(${type}, ${other}) returns boolean language plpgsql as $$
          begin perform evil.note('operator'); return true; end $$;
        create operator public.${operator} (leftarg = ${type}, rightarg = ${other}, function = ${name})`)
    }
})

afterAll(async () => {
  await client.end()
  await admin.query(`drop owned by ${mallory} cascade; drop role ${mallory}`)
})

test('casts and operators of a key type are run by nobody of ours', async () => {
  const tenant = randomUUID()
  await admin.query(`
    create table notes (a evil.mood, b evil.name, tenant_id uuid, metadata jsonb, primary key (a, b));
    select lighter.attach('notes')`)
  const insert = (db: pg.Pool | pg.Client, mood: string, name: string) =>
    db.query(`insert into notes values ('${mood}', '${name}', '${tenant}', '{"tool_interactions": [1]}')`)
  await insert(admin, 'calm', 'a')
  await insert(admin, 'wild', 'a"b')
  const daemon = await startDaemon(environment)
  await drained(environment)
  const keys = [rowKey(['calm', 'a']), rowKey(['wild', 'a"b'])]
  expect(await offloadedKeys(environment, 'notes')).toEqual(keys)
  expect([...(await hydratedRows(environment, 'notes', keys)).values()].map(String)).toEqual(
    keys.map(() => '{"tool_interactions": [1]}'),
  )
  await daemon.stop()
  await lighterOk(environment, ['hydrate', '--table', 'notes', 'wild', 'a"b'])
  await lighterOk(environment, ['status', 'notes', '--key', '{"a": "calm", "b": "a"}'])
  await lighterOk(environment, ['restore', '--row', 'calm', 'a', '--table', 'notes'])
  await lighterOk(environment, ['unpin', '--all'])
  await lighterOk(environment, ['backfill', '--table', 'notes'])
  await lighterOk(environment, ['sweep', 'release'])
  await lighter(environment, ['doctor'])
  await admin.query(`select lighter.requeue('notes', array['["calm","a"]'])`)
  await lighterOk(environment, ['restore', '--table', 'notes'])
  expect(await value(admin, `select count(*)::int from notes where metadata ? 'tool_interactions'`)).toBe(2)
  expect(await column(admin, 'select who || what from evil.ran')).toEqual([])
  // The traps work.
  await admin.query(`select evil.to_text('calm')`)
  expect(await value(admin, 'select count(*)::int from evil.ran')).toBe(1)
})

test('an enum with an implicit cast is refused: which of its own operators is meant, Postgres cannot tell', async () => {
  await client.query(`
    create type evil.shade as enum ('dark');
    create cast (evil.shade as text) with inout as implicit`)
  await admin.query('create table shades (a evil.shade primary key, tenant_id uuid, metadata jsonb)')
  await expect(admin.query(`select lighter.attach('shades')`)).rejects.toThrow(
    'a is of the enum evil.shade, which has an implicit cast to another type',
  )
})
