// Keys of one column or many, of every type with a stable text: found, offloaded, read back and restored by it.
import { randomUUID } from 'node:crypto'
import { afterAll, describe, expect, test } from 'vitest'
import { canonicalRowId } from '../../src/source/canonical-key.ts'
import { rowKey } from '../../src/source/row-key.ts'
import { drained, startDaemon, until, useEnvironment } from '../support/environment.ts'
import { hydratedRows, offloadedKeys, sourceOf } from '../support/key-tables.ts'
import { column, connect, errorOf, value } from '../support/sql.ts'

const environment = await useEnvironment()
const { admin } = environment
const daemon = await startDaemon(environment)
afterAll(() => daemon.stop())
await admin.query(`
  select lighter.set_defaults('0', '0');
  create type mood as enum ('calm', 'so, so', '"quoted"', 'old');
  create domain account as uuid;
  create domain place as text check (value <> 'nowhere')`)

const document = '{"tool_interactions": [{"tool": "a"}, 1]}'
let tables = 0
const newName = () => `keyed_${++tables}`

/** @param columns of the key, with their types */
async function keyedTable(columns: string, key: string): Promise<string> {
  const table = newName()
  await admin.query(
    `create table ${table} (${columns}, tenant uuid not null default gen_random_uuid(), metadata jsonb, primary key (${key}))`,
  )
  await admin.query(`select lighter.attach('${table}', tenant_column => 'tenant')`)
  return table
}

const decided = (table: string) =>
  value<string[]>(
    admin,
    'select key_columns::text[] || key_types from lighter.sources where relation = $1::regclass',
    [table],
  )

describe('a key', () => {
  const uuid = randomUUID()
  test.each<[string, string, [string, ...string[]][]]>([
    ['a uuid', 'k uuid', [[uuid]]],
    ['k account', 'k account', [[uuid]]],
    ['a smallint', 'k smallint', [['-32768'], ['7']]],
    ['an integer', 'k integer', [['2147483647']]],
    ['a bigint', 'k bigint', [['9223372036854775807'], ['-9223372036854775808']]],
    [
      'a text',
      'k text',
      [
        [''],
        [' '],
        ['a,b'],
        ['["a","b"]'],
        ['null'],
        ['quo"te\'s \\ back'],
        ['\u0001\t\n\u001f\u007f'],
        ['漢字 🚢 e\u0301'],
        ['x'.repeat(2500)],
      ],
    ],
    ['a varchar', 'k varchar(20)', [['NULL'], ['b ']]],
    ['a domain over text', 'k place', [['somewhere']]],
    ['a date', 'k date', [['2026-11-30'], ['0044-03-15 BC'], ['infinity'], ['-infinity'], ['10000-01-01']]],
    [
      'a timestamp',
      'k timestamp',
      [['2026-11-30T12:00:00.000001'], ['0044-03-15T01:02:03 BC'], ['infinity']],
    ],
    [
      'a timestamptz',
      'k timestamptz',
      [
        ['2026-11-30T12:00:00.5+00:00'],
        ['0044-03-15T01:02:03+00:00 BC'],
        ['infinity'],
        ['-infinity'],
        ['10000-01-01T00:00:00+00:00'],
      ],
    ],
    ['an enum', 'k mood', [['calm'], ['so, so'], ['"quoted"']]],
    [
      'a uuid and an integer',
      'a uuid, b integer',
      [
        [uuid, '1'],
        [uuid, '2'],
      ],
    ],
    [
      'a text and an integer',
      'a text, b integer',
      [
        ['t1', '7'],
        ['', '7'],
        ['","', '7'],
        ['\u001f\n"\\', '8'],
        ['ä 🚢', '9'],
      ],
    ],
    [
      'two texts',
      'a text, b text',
      [
        ['a', 'b'],
        ['a","b', ''],
        ['', 'a","b'],
        ['[', ']'],
      ],
    ],
    [
      'an id and a time',
      'a bigint, b timestamptz',
      [
        ['1', '2026-11-30T12:00:00+00:00'],
        ['1', 'infinity'],
      ],
    ],
    ['an enum, a date and a domain', 'a mood, b date, c account', [['so, so', '2026-01-01', uuid]]],
  ])(
    'of %s is written by the trigger as by lighter.row_key, offloaded, read and restored',
    async (_, columns, keys) => {
      const names = columns.split(', ').map(each => each.split(' ')[0] ?? '')
      const types = columns.split(', ').map(each => each.split(' ')[1] ?? '')
      const table = await keyedTable(columns, names.join(', '))
      const app = await connect(environment.urls.admin)
      // Whatever the writer has set.
      await app.query(
        `set datestyle = 'SQL, DMY'; set timezone = 'Asia/Kolkata'; set intervalstyle = 'sql_standard'`,
      )
      for (const parts of keys)
        await app
          .query({
            text: `set timezone = 'UTC'`,
          })
          .then(() =>
            app.query(
              `insert into ${table} (${names.join(', ')}, metadata) select ${types.map((type, i) => `($1::text[])[${i + 1}]::${type}`).join(', ')}, $2`,
              [parts, document],
            ),
          )
      await app.query(`set timezone = 'Asia/Kolkata'; update ${table} set metadata = metadata || '{"n": 1}'`)
      await app.end()
      await drained(environment)
      const wanted = keys.map(parts => rowKey(parts)).sort()
      expect((await offloadedKeys(environment, table)).sort()).toEqual(wanted)
      const read = await hydratedRows(environment, table, wanted)
      expect([...read.keys()].sort()).toEqual(wanted)
      for (const text of read.values())
        expect(JSON.parse(String(text))).toEqual({ ...JSON.parse(document), n: 1 })
      const source = await sourceOf(environment, table)
      for (const key of wanted) expect(await canonicalRowId(environment.worker, source, key)).toBe(key)
      const isUuid = await value<boolean>(
        admin,
        'select bool_and(row_uuids is not null and row_texts is null) from lighter.frames where source_id = $1',
        [source.id],
      )
      expect(isUuid).toBe(columns === 'k uuid' || columns === 'k account')
    },
  )

  test('that is spelt in another way is the same row', async () => {
    const table = await keyedTable('a uuid, b timestamptz', 'a, b')
    const source = await sourceOf(environment, table)
    expect(
      await canonicalRowId(
        environment.worker,
        source,
        rowKey([uuid.toUpperCase(), '2026-11-30 13:00:00+01']),
      ),
    ).toBe(rowKey([uuid, '2026-11-30T12:00:00+00:00']))
    for (const bad of [
      'x',
      '["a"]',
      `["${uuid}","never"]`,
      `["${uuid}", "infinity"]`,
      '[1,2]',
      '["\\u0000","a"]',
    ])
      expect(await errorOf(canonicalRowId(environment.worker, source, bad)), bad).toMatchObject({
        code: 'row_id_malformed',
        hint: expect.stringContaining('a (uuid), b (timestamp with time zone)'),
      })
  })
})

describe('attach', () => {
  test('takes the primary key, else the narrowest unique index that fits, or the one that is named', async () => {
    const table = newName()
    await admin.query(`
      create table ${table} (n numeric primary key, name text not null unique, a uuid not null, b integer not null, c integer,
        tenant_id uuid, metadata jsonb, unique (a, b), unique (c), unique (b) deferrable);
      create unique index on ${table} ((b + 1));
      create unique index on ${table} (b) where c > 0`)
    await admin.query(`select lighter.attach('${table}')`)
    expect(await decided(table)).toEqual(['name', 'text'])
    await admin.query(`select lighter.attach('${table}', key_columns => '{b,a}')`)
    expect(await decided(table)).toEqual(['a', 'b', 'uuid', 'integer'])
    // Attached again, it stays.
    await admin.query(`select lighter.attach('${table}')`)
    expect(await decided(table)).toEqual(['a', 'b', 'uuid', 'integer'])
    for (const [columns, reason] of [
      ['{n}', 'of type numeric'],
      ['{c}', 'may be null'],
      ['{b}', 'deferrable'],
      ['{a}', 'no unique index'],
    ])
      expect(
        await errorOf(admin.query(`select lighter.attach('${table}', key_columns => '${columns}')`)),
      ).toMatchObject({
        code: '42P16',
        message: expect.stringContaining(reason ?? ''),
        hint: expect.stringContaining('A key has columns of the types'),
      })
  })

  test.each([
    ['double precision', 'of type double precision'],
    ['real', 'of type real'],
    ['numeric', 'of type numeric'],
    ['interval', 'of type interval'],
    ['bytea', 'of type bytea'],
    ['char(3)', 'of type character'],
    ['citext', 'of type public.citext'],
    ['text collate blind', 'nondeterministic'],
    ['jsonb', 'of type jsonb'],
    ['time', 'of type time'],
  ])('refuses a key of %s, and says what to add', async (type, reason) => {
    await admin.query(`create extension if not exists citext;
      create collation if not exists blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`)
    const table = newName()
    await admin.query(`create table ${table} (id ${type} primary key, tenant_id uuid, metadata jsonb)`)
    expect(await errorOf(admin.query(`select lighter.attach('${table}')`))).toMatchObject({
      message: expect.stringContaining(reason),
      hint: expect.stringContaining(`alter table public.${table} add column`),
    })
    const remedy = (await errorOf(admin.query(`select lighter.attach('${table}')`))).hint?.split(';')[0] ?? ''
    await admin.query(remedy)
    await admin.query(`select lighter.attach('${table}')`)
    expect(await decided(table)).toEqual(['lighter_key', 'uuid'])
  })

  test('a key that is deferrable is refused, and its remedy makes it one', async () => {
    const table = newName()
    await admin.query(
      `create table ${table} (id uuid primary key deferrable, tenant_id uuid, metadata jsonb)`,
    )
    const { message, hint } = await errorOf(admin.query(`select lighter.attach('${table}')`))
    expect(message).toMatch('deferrable')
    await admin.query(hint?.split(';')[0] ?? '')
    await admin.query(`select lighter.attach('${table}')`)
    expect(await decided(table)).toEqual(['id', 'uuid'])
  })

  test('two columns of a table have one key', async () => {
    const table = newName()
    await admin.query(
      `create table ${table} (id uuid primary key, n integer not null unique, tenant_id uuid, metadata jsonb, other jsonb)`,
    )
    await admin.query(`select lighter.attach('${table}', key_columns => '{n}')`)
    expect(
      await errorOf(admin.query(`select lighter.attach('${table}', 'other', key_columns => '{id}')`)),
    ).toMatchObject({
      message: expect.stringContaining('known by (n) for column metadata, and would be by (id)'),
    })
    await admin.query(`select lighter.attach('${table}', 'other')`)
    expect(
      await column(
        admin,
        `select distinct key_columns::text from lighter.sources where relation = '${table}'::regclass`,
      ),
    ).toEqual(['{n}'])
  })
})

describe('a key under change', () => {
  const insert = (table: string, key: string) =>
    admin.query(`insert into ${table} values (${key}, gen_random_uuid(), '${document}')`)
  const queued = () => column<string>(admin, 'select row_id from lighter.jobs order by 1')
  const reasons = (table: string) =>
    column<string>(
      admin,
      `select part || ' ' || name || ': ' || reason from lighter.missing_parts p join lighter.sources s on s.id = p.source_id where s.relation = '${table}'::regclass`,
    )

  test('columns that are renamed are followed; retyped ones keep their rows inline, until they are as before', async () => {
    const table = await keyedTable('a text, b integer', 'a, b')
    await admin.query(`alter table ${table} rename a to renamed`)
    await insert(table, `'x', 1`)
    expect(await queued()).toEqual([])
    await admin.query(`select lighter.attach('${table}')`)
    await admin.query(`alter table ${table} alter b type bigint`)
    await insert(table, `'x', 3000000000`)
    await drained(environment)
    expect(await offloadedKeys(environment, table)).toEqual(['["x","3000000000"]'])
    expect(await reasons(table)).toEqual([])
    await admin.query(`alter table ${table} alter b type text`)
    await insert(table, `'x', '2'`)
    expect(await queued()).toEqual([])
    expect(await reasons(table)).toEqual(['key column b: the column is of type text now'])
    await admin.query(`alter table ${table} alter b type bigint using b::bigint`)
    await insert(table, `'y', 2`)
    await drained(environment)
    expect(await offloadedKeys(environment, table)).toEqual(['["x","3000000000"]', '["y","2"]'])
    await admin.query(`alter table ${table} drop b cascade`)
    await admin.query(`insert into ${table} values ('z', gen_random_uuid(), '${document}')`)
    expect(await queued()).toEqual([])
    expect(await reasons(table)).toEqual(['key column b: the column does not exist any more'])
    await admin.query(
      `drop table ${table}; select lighter.forget_missing(id) from lighter.sources where relation_name = '${table}'`,
    )
  })

  test('a key that became null, after its index was dropped, is queued as nothing else', async () => {
    const table = await keyedTable('a text, b integer', 'a, b')
    await admin.query(`
      alter table ${table} drop constraint ${table}_pkey;
      alter table ${table} alter b drop not null;
      alter table ${table} alter a drop not null`)
    await insert(table, `null, 1`)
    await insert(table, `'', null`)
    expect(await queued()).toEqual([])
    await insert(table, `'', 1`)
    await drained(environment)
    expect(await offloadedKeys(environment, table)).toEqual(['["","1"]'])
    const problems = await column<string>(
      admin,
      `select o.problem from lighter.sources s, lighter.source_obstacles(lighter.with_current_names(s)) o where s.relation = '${table}'::regclass and o.is_fatal`,
    )
    expect(problems).toEqual([expect.stringContaining(`no valid unique index keeps public.${table} (a, b)`)])
    // Two rows of one key are touched by nobody.
    await admin.query(
      `insert into ${table} select '', 1, gen_random_uuid(), '${document}' from generate_series(1, 2)`,
    )
    await until(
      () =>
        value<boolean>(
          admin,
          `select exists (select from lighter.waiting where last_error like 'several rows have this key%')`,
        ),
      'the row is returned',
    )
    expect(
      await value(admin, `select count(*)::int from ${table} where metadata ? 'tool_interactions'`),
    ).toBe(4)
    await admin.query(`delete from lighter.failed_jobs; delete from lighter.waiting`)
  })

  test('of an enum whose value was renamed: the row is found by its new name, the old one is no row', async () => {
    const table = await keyedTable('a mood, b integer', 'a, b')
    await insert(table, `'old', 1`)
    await drained(environment)
    await admin.query(`alter type mood rename value 'old' to 'new, and "better"'`)
    const key = rowKey(['new, and "better"', '1'])
    expect([...(await hydratedRows(environment, table, [key, rowKey(['old', '1'])])).keys()]).toEqual([key])
    await admin.query(
      `insert into lighter.inbox (source_id, row_id) select id, '["old","1"]' from lighter.sources where relation = '${table}'::regclass`,
    )
    await admin.query(`update ${table} set metadata = '${document}'`)
    await drained(environment)
    expect(await offloadedKeys(environment, table)).toEqual([key, '["old","1"]'].sort())
    expect(await value(admin, `select count(*)::int from lighter.failed_jobs`)).toBe(0)
    await admin.query(`alter type mood rename value 'new, and "better"' to 'old'`)
  })
})
