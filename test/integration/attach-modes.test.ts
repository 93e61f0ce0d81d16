// Attach chooses the mode by the column's type, and names at once all that stands in the way, each with what mends it.
import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import path from 'node:path'
import { promisify } from 'node:util'
import { describe, expect, test } from 'vitest'
import { lighterOk } from '../support/black-box.ts'
import { drained, useDaemon, useEnvironment } from '../support/environment.ts'
import { errorOf, value } from '../support/sql.ts'
import { hydratedValue, insertValue, newValueTable, rawValue, restoreTable } from '../support/value-tables.ts'

const environment = await useEnvironment()
await useDaemon(environment)
const { admin } = environment

/** A table whose columns are `columns`, beside a key and a tenant. */
async function newTable(columns: string): Promise<string> {
  const name = `a_${randomUUID().slice(0, 8)}`
  await admin.query(
    `create table public.${name} (id bigint primary key generated always as identity, tenant_id uuid not null, ${columns})`,
  )
  return name
}

interface Line {
  what: string
  name: string | null
  found: string
  hint: string | null
}

async function check(
  table: string,
  args: string,
): Promise<{ decided: Record<string, string>; obstacles: Line[] }> {
  const { rows } = await admin.query<Line>(`select * from lighter.check_attach('public.${table}', ${args})`)
  return {
    decided: Object.fromEntries(rows.filter(r => r.what === 'decided').map(r => [r.name, r.found])),
    obstacles: rows.filter(r => r.what === 'obstacle'),
  }
}

describe('the mode', () => {
  test.each([
    [
      'jsonb',
      '',
      {
        mode: 'document',
        column_type: 'jsonb',
        pointer_column: 'none',
        phase1_field: 'tool_interactions',
        phase2_kind: 'assistant_message_metadata',
      },
    ],
    [
      'json',
      '',
      {
        mode: 'stub',
        column_type: 'json',
        pointer_column: 'none',
        phase1_field: 'none',
        phase2_kind: 'column_value',
      },
    ],
    ['text', '', { mode: 'stub', column_type: 'text', envelope_keys: '[]' }],
    ['varchar(9000)', '', { mode: 'stub', column_type: 'text' }],
    [
      'bytea',
      ', create_pointer_column => true',
      { mode: 'whole', column_type: 'bytea', pointer_column: 'body_artifact_id' },
    ],
    [
      'text',
      `, pointer_column => 'body_id', create_pointer_column => true`,
      { mode: 'whole', pointer_column: 'body_id' },
    ],
    [
      'jsonb',
      `, mode => 'stub', phase2_kind => 'agent_trace'`,
      { mode: 'stub', column_type: 'jsonb', phase2_kind: 'agent_trace', phase1_field: 'none' },
    ],
    [
      'jsonb',
      `, mode => 'whole', create_pointer_column => true`,
      { mode: 'whole', pointer_column: 'body_artifact_id' },
    ],
  ])('of %s%s', async (type, args, decided) => {
    const table = await newTable(`body ${type}`)
    const found = await check(table, `'body' ${args}`)
    expect(found.obstacles).toEqual([])
    expect(found.decided).toMatchObject(decided)
    // Nothing was made by asking.
    expect(
      await value(
        admin,
        `select count(*)::int from pg_attribute where attrelid = 'public.${table}'::regclass and attnum > 0`,
      ),
    ).toBe(3)
  })
})

const obstacles: [string, string, string, { found: RegExp; hint: RegExp }][] = [
  [
    'a mode that is none',
    'body text',
    `mode => 'both'`,
    { found: /mode must be document, stub or whole, got "both"/, hint: /^$/ },
  ],
  [
    'document of text',
    'body text',
    `mode => 'document'`,
    {
      found: /body is of type text, and mode document needs jsonb/,
      hint: /alter table public\.TABLE|alter column body type jsonb using body::jsonb;/,
    },
  ],
  [
    'stub of bytea',
    'body bytea',
    `mode => 'stub'`,
    { found: /body is of type bytea, where a stub/, hint: /--mode whole --create-pointer-column/ },
  ],
  [
    'bytea without a pointer column',
    'body bytea',
    '',
    {
      found: /mode whole of .*body needs a column/,
      hint: /create_pointer_column => true \(--create-pointer-column\)/,
    },
  ],
  [
    'a pointer column that is not there',
    'body text',
    `pointer_column => 'body_id'`,
    { found: /has no column "body_id"/, hint: /add column body_id uuid;/ },
  ],
  [
    'whole of a not null column',
    'body text not null',
    `create_pointer_column => true`,
    {
      found: /body is not null, and mode whole makes it null/,
      hint: /alter column body drop not null; or attach it in mode stub/,
    },
  ],
  [
    'whole of a not null domain',
    'body public.some_text',
    `create_pointer_column => true`,
    { found: /the domain of .* is not null/, hint: /mode stub/ },
  ],
  [
    'a pointer column of another type',
    'body text, body_id text',
    `pointer_column => 'body_id'`,
    { found: /body_id is of type text, not uuid/, hint: /another pointer_column/ },
  ],
  [
    'a pointer column that is not null',
    'body text, body_id uuid not null',
    `pointer_column => 'body_id'`,
    { found: /pointer column .*body_id is not null/, hint: /alter column body_id drop not null;/ },
  ],
  [
    'a pointer column with a default',
    'body text, body_id uuid default gen_random_uuid()',
    `pointer_column => 'body_id'`,
    { found: /body_id has a default/, hint: /alter column body_id drop default;/ },
  ],
  [
    'a generated pointer column',
    `body text, body_id uuid generated always as ('11111111-1111-4111-8111-111111111111'::uuid) stored`,
    `pointer_column => 'body_id'`,
    { found: /body_id is generated/, hint: /another pointer_column/ },
  ],
  [
    'a pointer column with a foreign key',
    'body text, body_id uuid references public.conversations',
    `pointer_column => 'body_id', tenant_column => 'tenant_id', entity_column => ''`,
    { found: /is part of the foreign key/, hint: /drop constraint/ },
  ],
  [
    'the tenant column as the pointer column',
    'body text',
    `pointer_column => 'tenant_id'`,
    { found: /tenant_id has another use already/, hint: /another pointer_column/ },
  ],
  [
    'a pointer column in mode stub',
    'body text, body_id uuid',
    `mode => 'stub', pointer_column => 'body_id'`,
    { found: /a pointer column is for mode whole, not stub/, hint: /mode => 'whole'/ },
  ],
  [
    'a field in mode stub',
    'body text',
    `phase1_field => 'tool_interactions'`,
    { found: /phase1_field and envelope_keys are for mode document/, hint: /mode => 'document'/ },
  ],
  [
    'a guard in mode stub',
    'body text',
    `guard => 'warn'`,
    { found: /guard is for mode document/, hint: /Leave guard out/ },
  ],
  [
    'a foreign key on the column',
    'body text references public.some_names (name)',
    '',
    { found: /body is part of a foreign key/, hint: /another column/ },
  ],
  [
    'whole, and a check that the column is not null',
    'body text check (body is not null)',
    `create_pointer_column => true`,
    { found: /the check constraint .* reads inside/, hint: /allow-dependents/ },
  ],
  [
    'stub, and an index',
    'body text unique',
    '',
    { found: /unique index .* reads inside/, hint: /allow-dependents/ },
  ],
  [
    'stub, and a check of a domain',
    'body public.long_text',
    '',
    { found: /check constraint .* of domain .*long_text reads inside/, hint: /allow-dependents/ },
  ],
  [
    'stub of jsonb, and a look at a key',
    `body jsonb check (body ? 'model')`,
    `mode => 'stub'`,
    { found: /the check constraint .* reads inside/, hint: /allow-dependents/ },
  ],
]

describe('refuses', () => {
  test.each(obstacles)('%s', async (_, columns, args, { found, hint }) => {
    await admin.query(`
      do $$ begin
        create domain public.some_text as text not null; create domain public.long_text as text check (length(value) > 100);
        create table public.some_names (name text primary key);
      exception when duplicate_object then null; end $$`)
    const table = await newTable(columns)
    const more = args === '' ? '' : `, ${args}`
    const report = await check(table, `'body'${more}`)
    expect(report.obstacles).toHaveLength(1)
    expect(report.obstacles[0]?.found).toMatch(found)
    expect(report.obstacles[0]?.hint ?? '').toMatch(hint)
    const error = await errorOf(admin.query(`select lighter.attach('public.${table}', 'body'${more})`))
    expect(error.message).toMatch(found)
    expect(
      await value(
        admin,
        `select count(*)::int from lighter.sources where relation = 'public.${table}'::regclass`,
      ),
    ).toBe(0)
  })

  test('names several at once', async () => {
    const table = await newTable(
      `body bytea not null, body_id uuid not null default gen_random_uuid() references public.conversations`,
    )
    const { obstacles: all } = await check(
      table,
      `'body', pointer_column => 'body_id', guard => 'error', entity_column => ''`,
    )
    expect(all.map(line => line.found)).toEqual([
      expect.stringMatching(/guard is for mode document/),
      expect.stringMatching(/body is not null/),
      expect.stringMatching(/pointer column .* is not null/),
      expect.stringMatching(/has a default/),
      expect.stringMatching(/foreign key/),
    ])
  })

  test('a stub leaves a null a null: what only looks at that may stay', async () => {
    const table = await newTable(`body text check (body is not null)`)
    await admin.query(`create index on public.${table} (id) where body is null`)
    expect((await check(table, `'body'`)).obstacles).toEqual([])
  })

  test('a pointer column that another source uses', async () => {
    const table = await newTable('body text, other text, body_id uuid')
    await admin.query(`select lighter.attach('public.${table}', 'body', pointer_column => 'body_id')`)
    expect(
      (await check(table, `'other', pointer_column => 'body_id'`)).obstacles.map(line => line.found),
    ).toEqual([expect.stringMatching(/body_id has another use already/)])
  })
})

test('attaching again makes the triggers again, and changes no mode of offloaded rows', async () => {
  const table = await newValueTable(environment, 'text', 'whole')
  const id = await insertValue(environment, table, Buffer.from('x'.repeat(9000)))
  await drained(environment)
  await admin.query(`drop trigger lighter_clear_${table.sourceId} on public.${table.name}`)
  expect(await value(admin, `select lighter.attach('public.${table.name}', 'value')`)).toBe(table.sourceId)
  expect(
    await value(
      admin,
      `select count(*)::int from pg_trigger where tgrelid = 'public.${table.name}'::regclass`,
    ),
  ).toBe(3)
  for (const args of [`mode => 'stub'`, `pointer_column => 'another', create_pointer_column => true`])
    expect(
      await errorOf(admin.query(`select lighter.attach('public.${table.name}', 'value', ${args})`)),
    ).toMatchObject({
      code: '55006',
    })
  expect(await hydratedValue(environment, table, id)).toEqual(Buffer.from('x'.repeat(9000)))
})

test('another mode, while nothing is offloaded, takes the pointer column away that attach made', async () => {
  const table = await newTable('body text')
  const columns = `select string_agg(attname, ' ' order by attnum) from pg_attribute where attrelid = 'public.${table}'::regclass and attnum > 0 and not attisdropped`
  await admin.query(`select lighter.attach('public.${table}', 'body', create_pointer_column => true)`)
  await admin.query(
    `select lighter.attach('public.${table}', 'body', pointer_column => 'other', create_pointer_column => true)`,
  )
  expect(await value(admin, columns)).toBe('id tenant_id body other')
  await admin.query(`select lighter.attach('public.${table}', 'body', mode => 'stub')`)
  expect(await value(admin, columns)).toBe('id tenant_id body')
  expect(
    await value(admin, `select count(*)::int from pg_trigger where tgrelid = 'public.${table}'::regclass`),
  ).toBe(1)
})

test('a view that shows the pointer column keeps it from being dropped, and detach works', async () => {
  const table = await newTable('body text')
  await admin.query(`
    select lighter.attach('public.${table}', 'body', create_pointer_column => true);
    create view public.${table}_view as select * from public.${table}`)
  expect(await value(admin, `select lighter.detach('public.${table}', 'body')`)).toBe(true)
  expect(await value(admin, `select count(body_artifact_id)::int from public.${table}_view`)).toBe(0)
})

test('on a partitioned table, whose partitions have their columns in other places', async () => {
  const name = `p_${randomUUID().slice(0, 8)}`
  await admin.query(`
    create table public.${name} (id bigint, tenant_id uuid not null, value text, primary key (id)) partition by range (id);
    create table public.${name}_1 (dropped int, value text, tenant_id uuid not null, id bigint not null);
    alter table public.${name}_1 drop column dropped;
    alter table public.${name} attach partition public.${name}_1 for values from (0) to (100);
    create table public.${name}_2 partition of public.${name} for values from (100) to (200);
    grant all on public.${name} to public`)
  const { rows } = await admin.query<{ id: number }>(
    `select lighter.attach('public.${name}', 'value', mode => 'whole', create_pointer_column => true) as id`,
  )
  const table = { name, type: 'text' as const, mode: 'whole' as const, sourceId: rows[0]?.id ?? 0 }
  const text = 'p'.repeat(9000)
  await environment.app.query(
    `insert into public.${name} select n, gen_random_uuid(), $1 from unnest(array[1, 150]) n`,
    [text],
  )
  await drained(environment)
  for (const id of ['1', '150']) {
    expect((await rawValue(environment, table, id)).pointer).not.toBe(null)
    expect((await hydratedValue(environment, table, id))?.toString()).toBe(text)
  }
  await environment.app.query(`update public.${name} set id = id + 99 where id = 1`)
  expect((await hydratedValue(environment, table, '100'))?.toString()).toBe(text)
  await environment.app.query(`update public.${name} set value = 'written' where id = 100`)
  expect(await rawValue(environment, table, '100')).toEqual({ bytes: Buffer.from('written'), pointer: null })
  await restoreTable(environment, table)
  await admin.query(`select lighter.detach('public.${name}', 'value')`)
  expect(
    await value(admin, `select string_agg(length(value)::text, ',' order by id) from public.${name}`),
  ).toBe('7,9000')
})

test('on the command line: attach, hydrate, restore and detach', async () => {
  const table = await newTable('recording bytea, note text')
  const attached = JSON.parse(
    await lighterOk(environment, [
      'attach',
      `public.${table}`,
      '--column',
      'recording',
      '--mode',
      'whole',
      '--create-pointer-column',
      '--pointer-column',
      'stored_as',
      '--kind',
      'attachment',
      '--json',
    ]),
  )
  expect(attached.decided).toMatchObject({
    mode: 'whole',
    pointer_column: 'stored_as',
    phase2_kind: 'attachment',
  })
  await lighterOk(environment, ['attach', `public.${table}`, '--column', 'note'])
  const bytes = Buffer.from(Array.from({ length: 10_240 }, (_, n) => n % 256))
  const note = ` ${'é'.repeat(9000)}\n`
  await admin.query(
    `insert into public.${table} (tenant_id, recording, note) values (gen_random_uuid(), $1, $2)`,
    [bytes, note],
  )
  await drained(environment)
  expect(
    await lighterOk(environment, ['hydrate', '1', '--table', `public.${table}`, '--column', 'note']),
  ).toBe(note)
  const status = await lighterOk(environment, ['status', `public.${table}`, '1', '--column', 'recording'])
  expect(status).toMatch(/offloaded/)
  // Exact bytes, and nothing else.
  const main = path.join(import.meta.dirname, '../../src/cli/main.ts')
  const printed = await promisify(execFile)(
    process.execPath,
    [main, 'hydrate', '1', '--table', `public.${table}`, '--column', 'recording'],
    { env: { ...environment.env, PATH: process.env.PATH }, encoding: 'buffer' },
  )
  expect(printed.stdout).toEqual(bytes)
  await lighterOk(environment, ['restore', '--all', '--table', `public.${table}`])
  expect(
    await value(admin, `select recording = $1 and note = $2 and stored_as is null from public.${table}`, [
      bytes,
      note,
    ]),
  ).toBe(true)
  await lighterOk(environment, ['detach', `public.${table}`, '--column', 'recording'])
  await lighterOk(environment, ['detach', `public.${table}`, '--column', 'note'])
  expect(
    await value(
      admin,
      `select count(*)::int from pg_attribute where attrelid = 'public.${table}'::regclass and attname = 'stored_as'`,
    ),
  ).toBe(0)
})
