// Invariant 8: restore undoes everything. After it, and after detach, the tables are as if pg-lighter had never been.
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import {
  asJsonbText,
  drained,
  hydratedMany,
  startDaemon,
  until,
  useFreshEnvironment,
} from '../support/environment.ts'
import { oddValues } from '../support/json-values.ts'
import { offloadedRows, writeMessages } from '../support/messages.ts'
import { runCli, startCli } from '../support/process.ts'
import { column } from '../support/sql.ts'

const environment = useFreshEnvironment()
let daemon: Daemon
beforeEach(async () => {
  daemon = await startDaemon(environment)
})
afterEach(async () => {
  await daemon.stop()
})

const crmTables = `
  create schema crm;
  create table crm.conversations (id uuid primary key, tenant_id uuid not null);
  create table crm.conversation_messages (
    id uuid primary key default gen_random_uuid(),
    conversation_id uuid not null references crm.conversations on delete cascade,
    role text not null,
    content text not null,
    metadata jsonb,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
  );
  create table crm.events (
    id bigint primary key generated always as identity,
    tenant_id uuid not null,
    metadata jsonb check (octet_length(metadata::text) < 1000000),
    updated_at timestamptz not null default now()
  );
  create index on crm.events ((metadata ->> 'model'));
  create function crm.touch() returns trigger language plpgsql as $$
    begin new.updated_at := clock_timestamp(); return new; end $$;
  create trigger touch before update on crm.conversation_messages for each row execute function crm.touch();
  create trigger touch before update on crm.events for each row execute function crm.touch();
  alter table crm.conversation_messages enable row level security;
  create policy everyone on crm.conversation_messages for all to public using (true) with check (true);
  grant usage on schema crm to public;
  grant all on all tables in schema crm to public;
`

/** Every row, as text, and all that the catalogue says of the schema and its tables. */
async function dump(): Promise<Record<string, unknown[]>> {
  const of = (sql: string) => column(environment.admin, sql)
  const relations = `select c.oid from pg_class c where c.relnamespace = 'crm'::regnamespace`
  return {
    conversations: await of('select t::text from crm.conversations t order by id'),
    messages: await of('select t::text from crm.conversation_messages t order by id'),
    metadata: await of('select metadata::text from crm.conversation_messages order by id'),
    events: await of('select t::text from crm.events t order by id'),
    eventMetadata: await of('select metadata::text from crm.events order by id'),
    relations: await of(
      `select concat_ws('|', relname, relkind, relpersistence, reloptions, relrowsecurity, relforcerowsecurity, relowner)
         from pg_class where relnamespace = 'crm'::regnamespace and relkind <> 't' order by 1`,
    ),
    columns: await of(
      `select concat_ws('|', attrelid::regclass, attname, atttypid::regtype, attnotnull, attstorage, attcompression)
         from pg_attribute where attrelid in (${relations}) and attnum > 0 order by 1`,
    ),
    constraints: await of(
      `select conrelid::regclass || ' ' || pg_get_constraintdef(oid) from pg_constraint where conrelid in (${relations}) order by 1`,
    ),
    triggers: await of(
      `select concat_ws('|', pg_get_triggerdef(oid), tgenabled) from pg_trigger where tgrelid in (${relations}) and not tgisinternal order by 1`,
    ),
    policies: await of(`select p::text from pg_policies p where schemaname = 'crm' order by 1`),
    functions: await of(
      `select pg_get_functiondef(oid) from pg_proc where pronamespace = 'crm'::regnamespace order by 1`,
    ),
    grants: await of(
      `select concat_ws('|', c.oid::regclass, g.grantee::regrole, g.privilege_type, g.is_grantable)
         from pg_class c cross join lateral aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) g
        where c.relnamespace = 'crm'::regnamespace and c.relkind = 'r'
       union all
       select concat_ws('|', a.attrelid::regclass, a.attname, g.grantee::regrole, g.privilege_type)
         from pg_attribute a cross join lateral aclexplode(a.attacl) g where a.attrelid in (${relations})
       union all
       select concat_ws('|', 'schema', g.grantee::regrole, g.privilege_type)
         from pg_namespace n cross join lateral aclexplode(n.nspacl) g where n.nspname = 'crm'
        order by 1`,
    ),
  }
}

const cli = (...args: string[]) => runCli(args, { env: environment.env })

test('attach, backfill, restore --all and detach leave rows, triggers, policies and grants as they were', async () => {
  const { admin, app } = environment
  await admin.query(crmTables)
  await writeMessages(environment, { messages: 1500, tenants: 4, seed: 8, schema: 'crm' })
  await app.query(
    `insert into crm.events (tenant_id, metadata)
     select (select tenant_id from crm.conversations order by id limit 1),
            metadata from crm.conversation_messages where metadata ? 'tool_interactions' or octet_length(metadata::text) > 8000`,
  )
  for (const [, json] of oddValues) {
    await app.query(
      `insert into crm.events (tenant_id, metadata)
       values (gen_random_uuid(), jsonb_build_object('tool_interactions', $1::jsonb, 'trace', repeat('~', 9000))),
              (gen_random_uuid(), jsonb_build_object('other', $1::jsonb, 'trace', repeat('~', 9000)))`,
      [json],
    )
  }
  const before = await dump()

  expect(await cli('attach', 'crm.conversation_messages')).toMatchObject({ code: 0 })
  // Its check is on the document's size, which an offload only lessens.
  expect(await cli('attach', 'crm.events', '--allow-dependents')).toMatchObject({ code: 0 })
  expect(await cli('backfill')).toMatchObject({ code: 0 })
  await drained(environment)
  const gone = await dump()
  expect(gone.metadata).not.toEqual(before.metadata)
  expect(gone.eventMetadata?.filter(m => String(m).includes('~'))).toEqual([])

  const restored = await cli('restore', '--all', '--json')
  expect(JSON.parse(restored.stdout)).toMatchObject({ outcome: 'done', failed: 0, failures: [] })
  expect(restored.code).toBe(0)
  for (const table of ['crm.conversation_messages', 'crm.events']) {
    expect(await cli('detach', table)).toMatchObject({ code: 0 })
  }
  expect(await dump()).toEqual(before)
  expect(
    await column(
      admin,
      `select count(*)::int from (select source_id from lighter.jobs union all select source_id from lighter.pins) q`,
    ),
  ).toEqual([0])
})

test('rows that the application writes while they are restored are what it wrote, and stay inline', async () => {
  const messages = await writeMessages(environment, { messages: 900, tenants: 2, seed: 4 })
  await drained(environment)
  const ids = messages.map(m => m.id)
  const tenantId = messages[0]?.tenantId ?? ''
  const expected = await hydratedMany(environment, ids)
  const wanted = new Map(ids.map((id, i) => [id, String(expected[i])]))
  expect(await offloadedRows(environment, undefined, tenantId)).toBeGreaterThan(50)

  let writing = true
  let writes = 0
  // Each writer has rows of its own, so that what was written last is known.
  const writer = async (own: string[]) => {
    for (let i = 0; writing; i++) {
      const id = own[i % own.length] ?? ''
      const patch = JSON.stringify({
        round: i,
        ...(i % 3 === 0 && { tool_interactions: [{ again: i }] }),
        ...(i % 5 === 0 && { trace: `${i}`.repeat(9000) }),
      })
      const { rows } = await environment.app.query<{ text: string }>(
        `update conversation_messages set metadata = coalesce(metadata, '{}') || $2::jsonb where id = $1 returning metadata::text as text`,
        [id, patch],
      )
      const was = await asJsonbText(environment, wanted.get(id) ?? null)
      const { rows: merged } = await environment.admin.query<{ text: string }>(
        `select (coalesce($1::jsonb, '{}') || $2::jsonb)::text as text`,
        [was === 'null' ? null : was, patch],
      )
      expect(rows).toHaveLength(1)
      wanted.set(id, merged[0]?.text ?? '')
      writes++
    }
  }
  const objects = ids.filter(id => wanted.get(id)?.startsWith('{'))
  const writers = [0, 1, 2].map(n => writer(objects.filter((_, i) => i % 12 === n)))
  const restored = await cli('restore', '--tenant', tenantId, '--rate', '200', '--json')
  writing = false
  await Promise.all(writers)
  expect(writes).toBeGreaterThan(20)
  expect(JSON.parse(restored.stdout)).toMatchObject({ outcome: 'done', failed: 0 })
  await drained(environment)

  expect(await offloadedRows(environment, undefined, tenantId)).toBe(0)
  const after = await hydratedMany(environment, ids)
  for (const [i, id] of ids.entries()) {
    expect(await asJsonbText(environment, String(after[i])), id).toBe(
      await asJsonbText(environment, wanted.get(id) ?? null),
    )
  }
  // The other tenant's rows are offloaded, those written meanwhile too.
  expect(await offloadedRows(environment)).toBeGreaterThan(10)
}, 120_000)

test('a restore that is killed in the middle has lost nothing, and another one goes on', async () => {
  const messages = await writeMessages(environment, { messages: 1200, tenants: 3, seed: 5 })
  const ids = messages.map(m => m.id)
  const written = await column(
    environment.admin,
    'select metadata::text from conversation_messages order by id',
  )
  await drained(environment)
  const atFirst = await offloadedRows(environment)
  const expected = await hydratedMany(environment, ids)

  for (let kills = 0; kills < 2; kills++) {
    const already = await offloadedRows(environment)
    const restore = startCli(['restore', '--all', '--rate', '60'], {
      env: { ...environment.env, OFFLOAD_BATCH_BYTES: '65536', STREAM_THRESHOLD_BYTES: '65536' },
    })
    await until(async () => (await offloadedRows(environment)) < already, 'some rows are restored')
    restore.signal('SIGKILL')
    await restore.ended
    const left = await offloadedRows(environment)
    expect(left).toBeGreaterThan(0)
    expect(left).toBeLessThan(atFirst)
    expect(await hydratedMany(environment, ids)).toEqual(expected)
  }

  const restored = await cli('restore', '--all')
  expect(restored).toMatchObject({ code: 0 })
  expect(await offloadedRows(environment)).toBe(0)
  expect(
    await column(environment.admin, 'select metadata::text from conversation_messages order by id'),
  ).toEqual(written)
})
