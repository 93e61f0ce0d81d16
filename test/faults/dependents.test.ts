// What Postgres works out from the column (indexes, constraints, policies, ...) goes wrong once a value has left its
// row: attach and doctor name each, and refuse it unless what it reads stays.
import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { beforeEach, describe, expect, test } from 'vitest'
import { attach, createTable, lighter, lighterOk, settled } from '../support/black-box.ts'
import { startDaemon, useEnvironment } from '../support/environment.ts'

const environment = await useEnvironment()
let table = ''
let tables = 0

beforeEach(async () => {
  table = `events_${++tables}`
  await createTable(environment, table, '(id bigint primary key, tenant_id uuid, metadata jsonb, note text)')
})

const admin = (sql: string) => environment.admin.query(sql.replaceAll('TABLE', table))

async function obstacles(args = ''): Promise<{ what: string; found: string; hint: string | null }[]> {
  const { rows } = await environment.admin.query(
    `select what, found, hint from lighter.check_attach($1::regclass${args}) where what in ('obstacle', 'warning')`,
    [table],
  )
  return rows.map(row => ({ ...row, found: unqualified(row.found) }))
}

const unqualified = (text: string) => text.replaceAll('public.', '')

// What reads `vip`, which leaves the row.
const readers: [string, string, string][] = [
  [
    'a stored generated column',
    `alter table TABLE add vip text generated always as (metadata ->> 'vip') stored`,
    'the generated column TABLE.vip',
  ],
  [
    'a unique index',
    `create unique index TABLE_i on TABLE ((metadata ->> 'vip'))`,
    'the unique index TABLE_i',
  ],
  ['an expression index', `create index TABLE_i on TABLE ((metadata ->> 'vip'))`, 'the index TABLE_i'],
  ['a partial index', `create index TABLE_i on TABLE (note) where metadata ? 'vip'`, 'the index TABLE_i'],
  ['an index of the whole column', 'create index TABLE_i on TABLE using gin (metadata)', 'the index TABLE_i'],
  [
    'an index of a function of the row',
    `create function text_of(TABLE) returns text immutable language sql as 'select $1.metadata ->> ''vip''';
     create index TABLE_i on TABLE (text_of(TABLE))`,
    'the index TABLE_i',
  ],
  [
    'an exclusion constraint',
    `alter table TABLE add constraint TABLE_x exclude using hash ((metadata ->> 'vip') with =)`,
    'the exclusion constraint TABLE_x',
  ],
  [
    'a check constraint',
    `alter table TABLE add constraint has_vip check (metadata ? 'vip')`,
    'the check constraint has_vip of TABLE',
  ],
  [
    'a policy',
    `create policy readers on TABLE using (metadata ->> 'vip' = 'no')`,
    'the policy readers of TABLE',
  ],
  [
    'what a policy lets be written',
    `create policy writers on TABLE for insert with check (metadata ->> 'vip' = 'no')`,
    'the policy writers of TABLE',
  ],
  [
    'the policy of another table',
    `create table TABLE_b (id bigint);
     create policy readers on TABLE_b using (exists (select from TABLE e where e.id = TABLE_b.id and e.metadata ->> 'vip' = 'no'))`,
    'the policy readers of TABLE_b',
  ],
  [
    'the condition of a trigger',
    `create function TABLE_f() returns trigger language plpgsql as 'begin return new; end';
     create trigger on_vip before update of note on TABLE for each row when (old.metadata ->> 'vip' = 'yes') execute function TABLE_f()`,
    'the condition of trigger on_vip of TABLE',
  ],
  [
    'the row filter of a publication',
    `alter table TABLE replica identity full;
     create publication TABLE_p for table TABLE where ((metadata ->> 'vip') = 'yes')`,
    'the row filter of publication TABLE_p',
  ],
]

describe.each(readers)('%s that reads what leaves the row', (_, sql, name) => {
  test('is named and refused by attach, let pass where that was said, and named by doctor', async () => {
    const named = name.replaceAll('TABLE', table)
    await admin(sql.replaceAll('text_of', `text_of_${tables}`))
    expect(await obstacles()).toEqual([
      {
        what: 'obstacle',
        found: expect.stringContaining(`${named} reads inside ${table}.metadata`),
        hint: expect.stringMatching(/envelope_keys.*allow_dependents/),
      },
    ])
    await expect(attach(environment, table)).rejects.toThrow(
      named.split(' ').at(-1)?.replace(`${table}.`, ''),
    )
    await attach(environment, table, 'metadata', { allow_dependents: 'true' })
    expect(await obstacles()).toEqual([
      { what: 'warning', found: expect.stringContaining(named), hint: expect.stringContaining('accepted') },
    ])
  })
})

test.each([
  ['an index', `create unique index TABLE_i on TABLE ((metadata ->> 'lead_id'), tenant_id)`],
  ['a path', `create index TABLE_i on TABLE ((metadata #>> '{usage,total}'))`],
  ['a step', `create index TABLE_i on TABLE (((metadata -> 'usage' ->> 'total')::int))`],
  ['a subscript', `create index TABLE_i on TABLE ((metadata['usage']['total']))`],
  [
    'a constraint',
    `alter table TABLE add check (jsonb_typeof(metadata) = 'object' and not metadata ? 'reason')`,
  ],
  [
    'a policy',
    `create policy p on TABLE using (note = 'metadata ->> vip' or metadata ->> 'lead_id' is not null)`,
  ],
  ['an index of rows without a document', 'create index TABLE_i on TABLE (note) where metadata is not null'],
  [
    'a trigger that asks whether it changed',
    `create function TABLE_f() returns trigger language plpgsql as 'begin return new; end';
     create trigger on_change before update on TABLE for each row when (old.metadata is distinct from new.metadata) execute function TABLE_f()`,
  ],
  [
    'a trigger of inserts, which sees the whole',
    `create function TABLE_f() returns trigger language plpgsql as 'begin return new; end';
     create trigger on_insert before insert on TABLE for each row when (new.metadata ->> 'vip' = 'yes') execute function TABLE_f()`,
  ],
  ['an index of another column', 'create index TABLE_i on TABLE (note) include (metadata)'],
])('%s that reads keys that stay is no obstacle', async (_, sql) => {
  await admin(sql)
  expect(await obstacles()).toEqual([])
  await attach(environment, table)
})

test('a key that is told to stay may be read, another one may not', async () => {
  await admin(`create unique index TABLE_i on TABLE ((metadata ->> 'vip'))`)
  expect(await obstacles(`, envelope_keys => array['model', 'vip']`)).toEqual([])
  expect(await obstacles(`, envelope_keys => array['vip_2', 'vi']`)).toHaveLength(1)
  await attach(environment, table, 'metadata', { envelope_keys: `array['model', 'vip']` })
  // Nor may it be taken from those that stay later on.
  await expect(attach(environment, table, 'metadata', { envelope_keys: `array['model']` })).rejects.toThrow(
    `the unique index public.${table}_i reads inside`,
  )
})

test('a unique index on a key that stays refuses duplicates as before, and a restore succeeds', async () => {
  await admin(`create unique index TABLE_i on TABLE ((metadata ->> 'lead_id'))`)
  await attach(environment, table)
  const document = JSON.stringify({ lead_id: 'a', rest: 'x'.repeat(9000) })
  const insert = (id: number) =>
    environment.admin.query(`insert into ${table} values ($1, $2, $3)`, [id, randomUUID(), document])
  const daemon = await startDaemon(environment)
  await insert(1)
  await settled(environment)
  await daemon.stop()
  await expect(insert(2)).rejects.toThrow(/duplicate key/)
  await lighterOk(environment, ['restore', '--all', '--table', table])
  const { rows } = await environment.admin.query(`select metadata = $1::jsonb as same from ${table}`, [
    document,
  ])
  expect(rows).toEqual([{ same: true }])
})

test('an index, a constraint and a policy of one partition are found', async () => {
  await environment.admin.query(`
    create table parts_${tables} (id bigint primary key, tenant_id uuid, metadata jsonb) partition by range (id);
    create table part_${tables} partition of parts_${tables} for values from (0) to (10);
    create index part_${tables}_i on part_${tables} ((metadata ->> 'vip'));
    alter table part_${tables} add constraint part_check check (metadata ->> 'vip' <> 'x');
    create policy part_policy on part_${tables} using (metadata ->> 'vip' = 'no');
    create index parts_${tables}_i on parts_${tables} ((metadata ->> 'score'))`)
  table = `parts_${tables}`
  expect((await obstacles()).map(line => line.found.split(' reads')[0])).toEqual([
    `the check constraint part_check of part_${tables}`,
    `the index part_${tables}_i`,
    `the index parts_${tables}_i`,
    `the policy part_policy of part_${tables}`,
  ])
})

test('views and functions that read the column are named, and no obstacle', async () => {
  await admin(`create view TABLE_v as select id, metadata ->> 'vip' as vip from TABLE;
    create materialized view TABLE_m as select metadata from TABLE;
    create function TABLE_r() returns setof jsonb language sql begin atomic select metadata from TABLE; end`)
  expect(await obstacles()).toEqual([
    {
      what: 'warning',
      found: expect.stringContaining(`function ${table}_r(), materialized view ${table}_m, view ${table}_v`),
      hint: expect.stringContaining('hydrate'),
    },
  ])
  await attach(environment, table)
})

test('doctor fails for what was added after the attach, and is well again when it is gone', async () => {
  await attach(environment, table)
  await admin(`create policy late on TABLE using (metadata ->> 'vip' = 'no')`)
  const doctor = async () => unqualified((await lighter(environment, ['doctor'])).stdout)
  expect(await doctor()).toContain(`the policy late of ${table} reads inside ${table}.metadata`)
  await admin('drop policy late on TABLE')
  expect(await doctor()).not.toContain('policy late')
})

test('odd names of columns and keys are told apart', async () => {
  const odd = `it's "the" Meta.data $1`
  const column = pg.escapeIdentifier(odd)
  await admin(`alter table TABLE rename metadata to ${column}`)
  await admin(`create index TABLE_i on TABLE ((${column} ->> 'ke''y.*'))`)
  const found = (keys: string) =>
    obstacles(`, json_column => ${pg.escapeLiteral(odd)}, envelope_keys => ${keys}`)
  expect(await found(`array['ke''y.*']`)).toEqual([])
  expect(await found(`array['ke''yxx']`)).toHaveLength(1)
})
