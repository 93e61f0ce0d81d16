import { randomUUID } from 'node:crypto'
import type pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { claimInbox } from '../../src/offload/claim.ts'
import { loadSources } from '../../src/source/sources.ts'
import {
  createEnvironment,
  hydratedMany,
  insertMessage,
  newConversation,
  startDaemon,
  type TestEnvironment,
  until,
  useEnvironment,
} from '../support/environment.ts'
import { emptyQueue } from '../support/queue.ts'
import {
  asRole,
  backendPid,
  column,
  connect,
  errorOf,
  uniqueRole,
  untilBlocked,
  value,
} from '../support/sql.ts'

const environment = await useEnvironment()
let admin: pg.Pool

beforeAll(async () => {
  admin = environment.admin
  await admin.query('create schema things')
})

let tables = 0
/** A table of the test's own; `columns` is what stands between the parentheses. */
async function createTable(columns: string, name = `things.t${++tables}`): Promise<string> {
  await admin.query(`create table ${name} (${columns})`)
  return name
}

const attach = (args: string) => value<number>(admin, `select lighter.attach(${args})`)
/** Waits until the source has no jobs left. */
const worked = (source: number) =>
  until(
    async () =>
      (await value(admin, 'select count(*)::int from lighter.jobs where source_id = $1', [source])) === 0,
    'the jobs of the source are done',
  )
const plain = 'id uuid primary key default gen_random_uuid(), tenant_id uuid, metadata jsonb'
const heavy = '{"tool_interactions": [1]}'

async function sourceOf(table: string): Promise<Record<string, unknown> | undefined> {
  const { rows } = await admin.query('select * from lighter.sources where relation = $1::regclass', [table])
  return rows[0]
}

/** Everything that attach makes, for a table. */
async function traces(table: string): Promise<Record<string, unknown>> {
  const { rows } = await admin.query(
    `select (select count(*)::int from lighter.sources where relation = $1::regclass) as sources,
            (select count(*)::int from pg_trigger where tgrelid = $1::regclass and tgname like 'lighter%') as triggers,
            (select count(*)::int from pg_policy where polrelid = $1::regclass and polname = 'lighter_daemon') as policies,
            has_any_column_privilege('lighter_daemon', $1::regclass, 'select, insert, update, references')
              or has_table_privilege('lighter_daemon', $1::regclass, 'select, insert, update, delete, truncate, trigger') as rights`,
    [table],
  )
  return rows[0]
}

const nothing = { sources: 0, triggers: 0, policies: 0, rights: false }

describe('attach finds', () => {
  test.each(['uuid', 'bigint', 'integer'])('a key of type %s, and rows with it are offloaded', async type => {
    const generated = type === 'uuid' ? 'default gen_random_uuid()' : 'generated always as identity'
    const table = await createTable(
      `message_no ${type} ${generated}, tenant_id uuid, metadata jsonb, primary key (message_no) include (tenant_id)`,
    )
    const source = await attach(`'${table}'`)
    expect(await sourceOf(table)).toMatchObject({
      key_columns: '{message_no}',
      key_types: [type],
      tenant_column: 'tenant_id',
      parent_relations: '{}',
      entity_column: null,
      phase1_field: 'tool_interactions',
    })
    const id = await value<string>(
      admin,
      `insert into ${table} (tenant_id, metadata) values (gen_random_uuid(), $1) returning message_no::text`,
      [heavy],
    )
    const daemon = await startDaemon(environment)
    await worked(source)
    await daemon.stop()
    expect(await value(admin, `select metadata ?& array['tool_interactions_ref'] from ${table}`)).toBe(true)
    expect(
      await column(admin, 'select field from artifact_refs where row_id = $1 and source_id = $2', [
        id,
        source,
      ]),
    ).toEqual(['tool_interactions'])
    await admin.query(`select lighter.detach('${table}')`)
  })

  test('the tenant in a table referred to, and takes that table as the entity', async () => {
    const parent = await createTable('id uuid primary key, tenant_id uuid', 'things.threads')
    const table = await createTable(`id int primary key, thread_id uuid references ${parent}, metadata jsonb`)
    await attach(`'${table}'`)
    expect(await sourceOf(table)).toMatchObject({
      tenant_column: 'tenant_id',
      parent_relations: `{${parent}}`,
      parent_key_columns: '{id}',
      parent_columns: '{thread_id}',
      entity_type: 'thread',
      entity_column: 'thread_id',
    })
  })

  test('its own tenant column before that of a parent, and another one when it is named', async () => {
    const parent = await createTable('id uuid primary key, tenant_id uuid, workspace uuid')
    const both = await createTable(
      `id int primary key, tenant_id uuid, parent_id uuid references ${parent}, metadata jsonb`,
    )
    await attach(`'${both}'`)
    expect(await sourceOf(both)).toMatchObject({ tenant_column: 'tenant_id', parent_relations: '{}' })
    const named = await createTable(
      `id int primary key, tenant_id uuid, parent_id uuid references ${parent}, metadata jsonb`,
    )
    await attach(`'${named}', tenant_column => 'workspace'`)
    expect(await sourceOf(named)).toMatchObject({
      tenant_column: 'workspace',
      parent_relations: `{${parent}}`,
    })
  })

  test('the parent that tenant_path names, even where the column refers to two tables', async () => {
    const other = await createTable('id uuid primary key')
    const left = await createTable('id uuid primary key, tenant_id uuid')
    const right = await createTable('id uuid primary key, tenant_id uuid')
    const table = await createTable(
      `id int primary key, metadata jsonb, left_id uuid references ${left},
       right_id uuid references ${other} references ${right}`,
    )
    await attach(`'${table}', tenant_path => '{right_id}'`)
    expect(await sourceOf(table)).toMatchObject({
      parent_relations: `{${right}}`,
      parent_columns: '{right_id}',
    })
  })

  test('tables, columns and schemas whatever their names are, and rows of them are offloaded', async () => {
    const daemon = await startDaemon(environment)
    const field = `it's "odd" \\ %s $$`
    const schema = `"Odd $body$ %I 'Schema' ${++tables}"`
    await admin.query(`create schema ${schema}`)
    const table = `${schema}."My ""Messages"" $$; drop table x; --"`
    await admin.query(`create table ${table} (
      "the $body$ Key %s" uuid primary key, "Tenant Id" uuid, "Meta Data's" jsonb)`)
    const id = await value<number>(
      admin,
      `select lighter.attach($1::regclass, json_column => $2, tenant_column => 'Tenant Id', phase1_field => $3)`,
      [table, "Meta Data's", field],
    )
    const row = randomUUID()
    await admin.query(`insert into ${table} values ($1, gen_random_uuid(), $2)`, [
      row,
      JSON.stringify({ [field]: [1], kept: true }),
    ])
    expect(await column(admin, 'select row_id from lighter.jobs where source_id = $1', [id])).toEqual([row])
    await worked(id)
    expect(await value(admin, `select "Meta Data's" from ${table}`)).toEqual({
      kept: true,
      [`${field}_ref`]: expect.any(String),
      [`${field}_count`]: 1,
    })
    await daemon.stop()
    expect(await value(admin, `select lighter.detach($1::regclass, $2)`, [table, "Meta Data's"])).toBe(true)
    expect(await traces(table)).toEqual(nothing)
    expect(
      await value(admin, `select has_schema_privilege('lighter_daemon', $1::regnamespace, 'usage')`, [
        schema,
      ]),
    ).toBe(false)
  })

  test('a partitioned table, whose partitions enqueue and are rebuilt', async () => {
    const table = await createTable(plain, undefined)
    await admin.query(`drop table ${table}`)
    await admin.query(`create table ${table} (${plain}) partition by hash (id)`)
    for (const remainder of [0, 1]) {
      await admin.query(
        `create table ${table}_${remainder} partition of ${table} for values with (modulus 2, remainder ${remainder})`,
      )
    }
    const id = await attach(`'${table}', threshold_bytes => 2000`)
    expect(await attach(`'${table}', threshold_bytes => 2000`)).toBe(id)
    await admin.query(
      `insert into ${table} (tenant_id, metadata) select gen_random_uuid(), '${heavy}' from generate_series(1, 20)`,
    )
    expect(await value(admin, 'select count(*)::int from lighter.jobs where source_id = $1', [id])).toBe(20)
    const daemon = await startDaemon(environment)
    await worked(id)
    await daemon.stop()
    expect(
      await value(admin, `select count(*)::int from ${table} where metadata ? 'tool_interactions_ref'`),
    ).toBe(20)
    await admin.query(`select lighter.detach('${table}')`)
    expect(await traces(table)).toEqual(nothing)
  })
})

describe('attach refuses', () => {
  const cases: [string, string, string, { code: string; message: RegExp; hint?: RegExp }][] = [
    [
      'a table without a tenant',
      'id uuid primary key, metadata jsonb',
      '',
      {
        code: '42703',
        message: /cannot tell the tenant of a row of TABLE: .*"tenant_id"/,
        hint: /tenant_column => .*tenant_path =>/,
      },
    ],
    [
      'a tenant that is neither a uuid nor a name',
      'id uuid primary key, tenant_id numeric, metadata jsonb',
      '',
      { code: '42804', message: /tenant column TABLE\.tenant_id is of type numeric, not uuid, text/ },
    ],
    [
      'a tenant path with a column that is no foreign key',
      `${plain}, thread_id uuid`,
      `, tenant_path => '{thread_id}'`,
      {
        code: '42704',
        message: /TABLE\.thread_id is not a foreign key/,
        hint: /must lead to the table that has the tenant/,
      },
    ],
    [
      'a table without a unique index',
      'id uuid not null, tenant_id uuid, metadata jsonb',
      '',
      {
        code: '42P16',
        message: /TABLE has no key: neither/,
        hint: /alter table TABLE add column lighter_key uuid/,
      },
    ],
    [
      'a composite key with a column that may not be in one',
      'tenant_id uuid, id numeric, metadata jsonb, primary key (tenant_id, id)',
      '',
      { code: '42P16', message: /\(tenant_id, id\) cannot be it: id is of type numeric/ },
    ],
    [
      'a key of a type whose equal values have several texts',
      'id interval primary key, tenant_id uuid, metadata jsonb',
      '',
      { code: '42P16', message: /id is of type interval, whose values have no text form/ },
    ],
    [
      'a column that is missing',
      plain,
      `, json_column => 'payload'`,
      { code: '42703', message: /TABLE has no column "payload"/ },
    ],
    [
      'a column of a type that is none of ours',
      'id uuid primary key, tenant_id uuid, metadata xml',
      '',
      {
        code: '42804',
        message: /TABLE\.metadata is of type xml, not jsonb, json, text or bytea/,
        hint: /alter table TABLE alter column metadata type text using metadata::text;/,
      },
    ],
    [
      'a json column in mode document',
      'id uuid primary key, tenant_id uuid, metadata json',
      `, mode => 'document'`,
      {
        code: '42804',
        message: /TABLE\.metadata is of type json, and mode document needs jsonb/,
        hint: /alter table TABLE alter column metadata type jsonb using metadata::jsonb;/,
      },
    ],
    [
      'a generated column',
      `id uuid primary key, tenant_id uuid, body text, metadata jsonb generated always as (body::jsonb) stored`,
      '',
      { code: '42809', message: /TABLE\.metadata is generated/, hint: /generated from/ },
    ],
    [
      'an entity that is no uuid',
      `${plain}, room text`,
      `, entity_type => 'room', entity_column => 'room'`,
      { code: '42804', message: /entity column TABLE\.room is of type text, not uuid/ },
    ],
    [
      'a kind with a slash',
      plain,
      `, phase1_kind => 'a/b'`,
      { code: '22023', message: /kind is snake_case.*a\/b/ },
    ],
    ['an empty kind', plain, `, phase2_kind => ''`, { code: '22023', message: /kind is snake_case/ }],
    [
      'a kind with a line break',
      plain,
      `, phase2_kind => E'a\\nb'`,
      { code: '22023', message: /kind is snake_case/ },
    ],
    [
      'a kind that is too long',
      plain,
      `, phase1_kind => repeat('k', 64)`,
      { code: '22023', message: /63 characters/ },
    ],
    ...['artifact_metadata', 'artifact_metadata_ref', 'artifact_metadata_kind'].map(
      (field): [string, string, string, { code: string; message: RegExp }] => [
        `the field "${field}"`,
        plain,
        `, phase1_field => '${field}'`,
        { code: '22023', message: new RegExp(`phase1_field "${field}" is reserved`) },
      ],
    ),
    [
      'more envelope keys than the threshold has room for',
      plain,
      `, threshold_bytes => 1024, envelope_keys => array(select 'key_' || n from generate_series(1, 30) n)`,
      {
        code: '22023',
        message: /threshold of 1024 bytes leaves no room for 30 envelope keys/,
        hint: /fewer envelope_keys/,
      },
    ],
    [
      'a threshold out of range',
      plain,
      ', threshold_bytes => 1023',
      { code: '22023', message: /between 1024 and 1000000000, got 1023/ },
    ],
  ]
  test.each(cases)('%s', async (_, columns, args, expected) => {
    const table = await createTable(columns)
    const error = await errorOf(attach(`'${table}'${args}`))
    const named = (pattern: RegExp) => new RegExp(pattern.source.replaceAll('TABLE', table))
    expect(error.message).toMatch(named(expected.message))
    expect(error.code).toBe(expected.code)
    if (expected.hint) expect(error.hint).toMatch(named(expected.hint))
    expect(await traces(table)).toEqual(nothing)
  })

  test('two parents with the tenant, naming both and the remedy', async () => {
    const left = await createTable('id uuid primary key, tenant_id uuid')
    const right = await createTable('id uuid primary key, tenant_id uuid')
    const table = await createTable(
      `id int primary key, left_id uuid references ${left}, right_id uuid references ${right}, metadata jsonb`,
    )
    expect(await errorOf(attach(`'${table}'`))).toEqual({
      code: '42702',
      message: expect.stringMatching(`${table}.*: ${left} \\(over left_id\\), ${right} \\(over right_id\\)`),
      hint: expect.stringContaining('tenant_path =>'),
    })
    await attach(`'${table}', tenant_path => '{left_id}'`)
  })

  test.each(['view', 'materialized view'])('a %s, which has no rows of its own', async kind => {
    const table = await createTable(plain)
    await admin.query(`create ${kind} ${table}_v as select * from ${table}`)
    expect(await errorOf(attach(`'${table}_v'`))).toEqual({
      code: '42809',
      message: `${table}_v is not a table`,
      hint: expect.stringContaining('Attach the table'),
    })
  })

  test('a temporary table, and tables that are ours', async () => {
    const client = await connect(environment.urls.admin)
    try {
      await client.query(`create temporary table passing (${plain})`)
      expect(await errorOf(client.query(`select lighter.attach('passing')`))).toMatchObject({
        code: '42809',
        message: expect.stringContaining('temporary table'),
      })
    } finally {
      await client.end()
    }
    expect(await errorOf(attach(`'lighter.sweep_runs', json_column => 'counts'`))).toMatchObject({
      code: '42809',
      message: expect.stringContaining('lighter.sweep_runs'),
    })
  })

  test('nothing at all, and a table that does not exist', async () => {
    expect((await errorOf(attach('null'))).code).toBe('22004')
    expect((await errorOf(attach(`'no_such_table'`))).message).toContain('no_such_table')
  })

  test('anybody but the owner of schema lighter', async () => {
    const table = await createTable(plain)
    const stranger = uniqueRole('stranger')
    await admin.query(
      `create role ${stranger}; grant usage on schema lighter to ${stranger}; alter table ${table} owner to ${stranger}`,
    )
    try {
      for (const role of [stranger, 'lighter_daemon', 'lighter_tenant']) {
        const attempt = asRole(admin, role, db => db.query(`select lighter.attach('${table}')`))
        expect((await errorOf(attempt)).code, role).toBe('42501')
      }
    } finally {
      await admin.query(`drop table ${table}; drop owned by ${stranger}; drop role ${stranger}`)
    }
  })
})

test.each([
  ['the default keys', ''],
  ['no keys', `, envelope_keys => '{}'`],
  ['many keys', `, envelope_keys => array(select 'key_' || n from generate_series(1, 100) n)`],
  [
    'names that JSON spells longer',
    `, phase1_field => repeat(E'\\x01', 100), envelope_keys => array[repeat('"', 50), 'é']`,
  ],
  ['a small threshold', `, threshold_bytes => 1024, envelope_keys => array['a', 'b']`],
  ['no phase 1', `, phase1_field => '', phase2_kind => repeat('k', 63)`],
])('the largest envelope with %s is not above the threshold', async (_, args) => {
  const table = await createTable(plain)
  const id = await attach(`'${table}'${args}`)
  const { rows } = await admin.query<{ bytes: number; threshold: number }>(
    `select octet_length((
              coalesce((select jsonb_object_agg(k, repeat('x', lighter.envelope_value_limit(s) - 2)) from unnest(s.envelope_keys) k), '{}')
              || case when s.phase1_field is null then '{}' else jsonb_build_object(
                   s.phase1_field || '_ref', gen_random_uuid(),
                   s.phase1_field || '_count', repeat('x', lighter.envelope_value_limit(s) - 2)) end
              || jsonb_build_object('artifact_metadata_ref', gen_random_uuid(), 'artifact_metadata_kind', s.phase2_kind)
            )::text) as bytes, lighter.effective_threshold(s) as threshold
       from lighter.sources s where s.id = $1`,
    [id],
  )
  expect(rows[0]?.bytes).toBeLessThanOrEqual(rows[0]?.threshold ?? 0)
  // Nor is it needlessly small: what is held back is the pointers and little more.
  expect(rows[0]?.bytes).toBeGreaterThan((rows[0]?.threshold ?? 0) / 3)
})

describe('attaching again', () => {
  test('with the same settings changes nothing, mends what was lost, and says so', async () => {
    const table = await createTable(plain)
    await admin.query(`alter table ${table} enable row level security`)
    const id = await attach(`'${table}'`)
    const before = await sourceOf(table)
    await admin.query(`
      drop trigger lighter_enqueue_${id} on ${table};
      drop policy lighter_daemon on ${table};
      revoke all on ${table} from lighter_daemon`)
    expect(await traces(table)).toEqual({ ...nothing, sources: 1 })
    const client = await connect(environment.urls.admin)
    const notices: string[] = []
    client.on('notice', notice => notices.push(notice.message ?? ''))
    expect(await value(client, `select lighter.attach('${table}')`)).toBe(id)
    await client.end()
    expect(notices).toEqual([expect.stringContaining(`${table}.metadata is already attached (source ${id})`)])
    expect(await traces(table)).toEqual({ sources: 1, triggers: 1, policies: 1, rights: true })
    expect(await sourceOf(table)).toEqual(before)
  })

  test('with other settings changes those, and names them; what is not said stays', async () => {
    const table = await createTable(plain)
    const id = await attach(`'${table}', phase1_kind => 'own', envelope_keys => array['a']`)
    const client = await connect(environment.urls.admin)
    const notices: string[] = []
    client.on('notice', notice => notices.push(notice.message ?? ''))
    expect(
      await value(
        client,
        `select lighter.attach('${table}', threshold_bytes => 9000, phase2_kind => 'other')`,
      ),
    ).toBe(id)
    await client.end()
    expect(notices).toEqual([
      expect.stringMatching(
        /changed: phase2_kind other instead of assistant_message_metadata, threshold_bytes 9000 instead of none$/,
      ),
    ])
    expect(await sourceOf(table)).toMatchObject({
      threshold_bytes: 9000,
      phase1_kind: 'own',
      phase2_kind: 'other',
      envelope_keys: ['a'],
    })
    // The trigger has the new threshold: it looks at what has a sixth of it in binary (1,333 bytes before, 1,500 now).
    await admin.query(`insert into ${table} (metadata) values (jsonb_build_object('x', repeat('x', 1400)))`)
    expect(await value(admin, 'select count(*)::int from lighter.jobs where source_id = $1', [id])).toBe(0)
    expect(await attach(`'${table}', threshold_bytes => 0`)).toBe(id)
    await admin.query(`update ${table} set metadata = metadata || '{"y": 1}'`)
    expect(await value(admin, 'select count(*)::int from lighter.jobs where source_id = $1', [id])).toBe(1)
  })

  test('with keys in another order, or named twice, is the same', async () => {
    const table = await createTable(plain)
    const id = await attach(`'${table}', envelope_keys => array['b', 'a']`)
    expect(await attach(`'${table}', envelope_keys => array['a', 'b', 'a']`)).toBe(id)
  })

  test('watches a second column of the table beside the first', async () => {
    const table = await createTable(`${plain}, state jsonb`)
    const first = await attach(`'${table}'`)
    const second = await attach(`'${table}', json_column => 'state', phase1_field => ''`)
    expect(second).not.toBe(first)
    await admin.query(
      `insert into ${table} (metadata, state) values ('${heavy}', to_jsonb(repeat('x', 9000)))`,
    )
    expect(
      await column(admin, 'select source_id from lighter.jobs where source_id = any ($1) order by 1', [
        [first, second],
      ]),
    ).toEqual([first, second])
    await admin.query(`select lighter.detach('${table}')`)
    // What the other column's source needs is still there.
    for (const [name, right, expected] of [
      ['state', 'update', true],
      ['state', 'select', true],
      ['metadata', 'update', false],
      ['metadata', 'select', false],
    ] as const) {
      expect(
        await value(admin, 'select has_column_privilege($1, $2, $3, $4)', [
          'lighter_daemon',
          table,
          name,
          right,
        ]),
        `${right} ${name}`,
      ).toBe(expected)
    }
  })
})

describe('row-level security', () => {
  test('does not hide the rows of an attached table, or of its parent, from the daemon', async () => {
    const parent = await createTable('id uuid primary key, tenant_id uuid, metadata jsonb')
    const table = await createTable(
      `id uuid primary key, parent_id uuid references ${parent}, metadata jsonb`,
    )
    for (const name of [parent, table]) {
      await admin.query(
        `alter table ${name} enable row level security; alter table ${name} force row level security`,
      )
    }
    await attach(`'${table}'`)
    await admin.query(`insert into ${parent} values (gen_random_uuid(), gen_random_uuid(), '{}')`)
    await admin.query(`insert into ${table} select gen_random_uuid(), id, '{}' from ${parent}`)
    const rewrite = `update ${table} m set metadata = '{"by": "daemon"}' from ${parent} p where p.id = m.parent_id and p.tenant_id is not null`
    expect((await environment.worker.query(rewrite)).rowCount).toBe(1)

    // The parent's policy lets it be read, until the parent is attached itself.
    const rewriteParent = `update ${parent} set metadata = '{"by": "daemon"}'`
    expect((await errorOf(environment.worker.query(rewriteParent))).code).toBe('42501')
    await attach(`'${parent}'`)
    expect((await environment.worker.query(rewriteParent)).rowCount).toBe(1)

    await admin.query(`select lighter.detach('${parent}')`)
    expect((await environment.worker.query(rewrite)).rowCount).toBe(1)
    expect((await errorOf(environment.worker.query(rewriteParent))).code).toBe('42501')
    expect(
      await value(
        admin,
        `select polcmd::text from pg_policy where polrelid = '${parent}'::regclass and polname = 'lighter_daemon'`,
      ),
    ).toBe('r')
  })
})

describe('detach', () => {
  test('takes trigger, functions, jobs, dead letters, policy and rights away, and nothing else', async () => {
    const table = await createTable(plain)
    await admin.query(`
      alter table ${table} enable row level security;
      create policy mine on ${table} using (true);
      create function ${table}_own() returns trigger language plpgsql as 'begin return null; end';
      create trigger own after insert on ${table} for each row execute function ${table}_own()`)
    const id = await attach(`'${table}'`)
    await admin.query(`insert into ${table} (metadata) values ('${heavy}')`)
    await admin.query(
      `insert into lighter.failed_jobs (source_id, row_id, attempts, enqueued_at, last_error) values ($1, 'x', 1, now(), 'x')`,
      [id],
    )
    await admin.query(`insert into lighter.waiting (source_id, row_id) values ($1, 'x'), (0, 'x')`, [id])
    const lease = randomUUID()
    await admin.query(
      `insert into lighter.leases (id, until, source_ids, row_ids, enqueued_at)
       values ($2, now() + interval '1 hour', array[$1::int, 0, $1], array['x', 'y', 'z'], array_fill(now(), array[3]))`,
      [id, lease],
    )
    expect(
      await column(admin, 'select place from lighter.jobs where source_id = $1 order by place', [id]),
    ).toEqual(['inbox', 'lease', 'lease', 'waiting'])
    expect(await traces(table)).toEqual({ sources: 1, triggers: 1, policies: 1, rights: true })
    expect(await value(admin, `select lighter.detach('${table}')`)).toBe(true)
    // Those of others stay, also in a batch of both.
    expect(
      await column(admin, `select place || ' ' || row_id from lighter.jobs where source_id = 0 order by 1`),
    ).toEqual(['lease y', 'waiting x'])
    expect(await value(admin, 'select id from lighter.leases')).toBe(lease)
    await emptyQueue(environment)
    expect(await traces(table)).toEqual(nothing)
    expect(
      await value(
        admin,
        `select (select count(*) from lighter.jobs where source_id = $1) + (select count(*) from lighter.failed_jobs where source_id = $1)
              + (select count(*) from pg_proc where proname in ('enqueue_' || $1::int, 'heavy_' || $1::int))`,
        [id],
      ),
    ).toBe('0')
    expect(
      await column(admin, `select polname::text from pg_policy where polrelid = '${table}'::regclass`),
    ).toEqual(['mine'])
    expect(await value(admin, `select metadata from ${table}`)).toEqual(JSON.parse(heavy))
    expect(
      await column(
        admin,
        `select tgname::text from pg_trigger where tgrelid = '${table}'::regclass and not tgisinternal`,
      ),
    ).toEqual(['own'])
  })

  test('of what is not attached does nothing and says so', async () => {
    const table = await createTable(plain)
    const client = await connect(environment.urls.admin)
    try {
      const notices: string[] = []
      client.on('notice', notice => notices.push(notice.message ?? ''))
      expect(await value(client, `select lighter.detach('${table}')`)).toBe(false)
      expect(notices).toEqual([`${table}.metadata is not attached`])
    } finally {
      await client.end()
    }
  })

  test("of one of two sources that share a parent keeps the parent's grant, of the other takes it", async () => {
    const parent = await createTable('id uuid primary key, tenant_id uuid')
    await admin.query(`alter table ${parent} enable row level security`)
    const child = () => createTable(`id int primary key, parent_id uuid references ${parent}, metadata jsonb`)
    const [one, two] = [await child(), await child()]
    await attach(`'${one}'`)
    await attach(`'${two}'`)
    const read = () => environment.worker.query(`select tenant_id from ${parent}`)
    await admin.query(`select lighter.detach('${one}')`)
    await read()
    expect(await traces(parent)).toMatchObject({ policies: 1, rights: true })
    await admin.query(`select lighter.detach('${two}')`)
    expect((await errorOf(read())).code).toBe('42501')
    expect(await traces(parent)).toEqual(nothing)
  })

  test('of a table that was dropped works by its number', async () => {
    const table = await createTable(plain)
    const id = await attach(`'${table}'`)
    const oid = await value<string>(admin, `select '${table}'::regclass::oid::text`)
    await admin.query(`drop table ${table}`)
    expect((await loadSources(environment.worker)).has(id)).toBe(false)
    expect(await value(admin, 'select source from lighter.queue_health where source_id = $1', [id])).toBe(oid)
    expect(await value(admin, `select lighter.detach('${oid}')`)).toBe(true)
    expect(await column(admin, 'select id from lighter.sources where id = $1', [id])).toEqual([])
  })

  test('and attaching leave the lock_timeout of the transaction as it was', async () => {
    const table = await createTable(plain)
    const client = await connect(environment.urls.admin)
    try {
      await client.query(`begin; set local lock_timeout = '77ms'`)
      await client.query(`select lighter.attach('${table}')`)
      await client.query(`select lighter.set_threshold(8001)`)
      await client.query(`select lighter.detach('${table}')`)
      expect(await value(client, 'show lock_timeout')).toBe('77ms')
    } finally {
      await client.end()
    }
  })

  test('and attaching give up after lock_timeout_ms on a table that is locked, having changed nothing', async () => {
    const table = await createTable(plain)
    const holder = await connect(environment.urls.admin)
    try {
      await holder.query(`begin; insert into ${table} (metadata) values ('{}')`)
      expect((await errorOf(attach(`'${table}', lock_timeout_ms => 50`))).code).toBe('55P03')
      expect(await traces(table)).toEqual(nothing)
      await holder.query('commit')
      await attach(`'${table}'`)
      await holder.query(`begin; insert into ${table} (metadata) values ('{}')`)
      expect(
        (await errorOf(admin.query(`select lighter.detach('${table}', lock_timeout_ms => 50)`))).code,
      ).toBe('55P03')
      expect(await traces(table)).toEqual({ sources: 1, triggers: 1, policies: 1, rights: true })
    } finally {
      await holder.end()
    }
  })
})

describe('set_threshold', () => {
  let own: TestEnvironment
  let id: number
  beforeAll(async () => {
    own = await createEnvironment()
    id = await value(
      own.admin,
      `select id from lighter.sources where relation = 'conversation_messages'::regclass`,
    )
  })
  afterAll(() => own.close())

  /** The trigger of a table, and what its condition asks. */
  const definition = (table = 'conversation_messages') =>
    value<string>(
      own.admin,
      `select pg_get_triggerdef(t.oid) || ';' || pg_get_functiondef(('lighter.heavy_' || s.id || '(jsonb)')::regprocedure)
         from pg_trigger t join lighter.sources s on s.relation = t.tgrelid and t.tgname = 'lighter_enqueue_' || s.id
        where t.tgrelid = $1::regclass`,
      [table],
    )

  test("rebuilds the triggers of sources that follow it, at the daemon's word, and no others", async () => {
    await own.admin.query(
      `create table fixed (${plain}); select lighter.attach('fixed', threshold_bytes => 5000)`,
    )
    const fixed = await definition('fixed')
    // A source whose table is gone is in nobody's way.
    await own.admin.query(`create table gone (${plain}); select lighter.attach('gone'); drop table gone`)
    expect(await value(own.worker, 'select lighter.set_threshold(2000)')).toBe(1)
    // A value of a sixth of the threshold in binary can be over it as text.
    expect(await definition()).toContain('pg_column_size(doc) operator(pg_catalog.>) 333 or')
    expect(await definition('fixed')).toBe(fixed)
    expect(await value(own.worker, 'select lighter.set_threshold(2000)')).toBe(0)
    const source = (await loadSources(own.worker)).get(id)
    expect(source?.thresholdBytes).toBe(2000)
    // The trigger's functions are still the owner's, not the daemon's.
    expect(
      await column(
        own.admin,
        `select pg_get_userbyid(proowner) = current_user from pg_proc where proname in ('enqueue_${id}', 'heavy_${id}')`,
      ),
    ).toEqual([true, true])
  })

  test.each([
    [null, 2000],
    [1023, 2000],
    [1_000_000_001, 2000],
    [-1, 2000],
    [9000, 0],
    [9000, -1],
    [9000, 60_001],
    [9000, null],
  ])('refuses %s bytes with a lock time-out of %s ms', async (bytes, lockTimeoutMs) => {
    const before = await definition()
    const error = await errorOf(
      own.worker.query('select lighter.set_threshold($1, $2)', [bytes, lockTimeoutMs]),
    )
    expect(error).toMatchObject({ code: '22023', message: expect.stringContaining('must be between') })
    expect(await definition()).toBe(before)
  })

  test('refuses a threshold with no room for the envelope of some source, and changes nothing', async () => {
    await own.admin.query(`create table wide (${plain});
      select lighter.attach('wide', envelope_keys => array(select 'key_' || n from generate_series(1, 20) n))`)
    const before = await definition()
    const error = await errorOf(own.worker.query('select lighter.set_threshold(1024)'))
    expect(error).toMatchObject({ code: '22023', hint: expect.stringContaining('envelope_keys') })
    expect(await definition()).toBe(before)
    await own.admin.query(`select lighter.detach('wide')`)
  })

  test('needs no lock of a table, and holds for the next row of a session that is in the middle of a transaction', async () => {
    const [holder, writer] = [await connect(own.urls.admin), await connect(own.urls.application)]
    const { conversationId } = await newConversation(own)
    const write = () => insertMessage(own, conversationId, `{"text": "${'x'.repeat(900)}"}`, writer)
    try {
      await own.worker.query('select lighter.set_threshold(8000)')
      await writer.query('begin')
      await write()
      const before = await definition()
      expect(await value(own.worker, 'select lighter.set_threshold(3000, 50)')).toBe(1)
      expect(await definition()).not.toBe(before)
      const second = await write()
      await writer.query('commit')
      expect(await column(own.admin, 'select row_id from lighter.jobs')).toEqual([second])
      await holder.query('begin; lock table conversation_messages in access exclusive mode')
      expect(await value(own.worker, 'select lighter.set_threshold(8000, 50)')).toBe(1)
      await holder.query('rollback')
      expect(await definition()).toContain('1333 or')
      await write()
      expect(await column(own.admin, 'select row_id from lighter.jobs')).toEqual([second])
    } finally {
      await Promise.all([holder.end(), writer.end()])
      await emptyQueue(own)
    }
  })

  test('gives up while somebody else attaches, and changes nothing', async () => {
    const before = await definition()
    const settings = await value(own.admin, 'select threshold_bytes from lighter.settings')
    const other = await connect(own.urls.admin)
    try {
      await other.query(`begin; create table slow (${plain}); select lighter.attach('slow')`)
      expect((await errorOf(own.worker.query('select lighter.set_threshold(3000, 50)'))).code).toBe('55P03')
    } finally {
      await other.end()
    }
    expect(await definition()).toBe(before)
    expect(await value(own.admin, 'select threshold_bytes from lighter.settings')).toBe(settings)
  })

  test.each([
    `lighter.attach('conversation_messages')`,
    `lighter.detach('conversation_messages')`,
    'lighter.build_triggers()',
    '(select lighter.build_heavy(s) from lighter.sources s limit 1)',
    `lighter.own_function('lighter.heavy_1(jsonb)')`,
    '(select lighter.build_trigger(s) from lighter.sources s limit 1)',
    '(select lighter.grant_source(s) from lighter.sources s limit 1)',
    'lighter.enqueue_1()',
  ])("is all that the daemon's login may change: %s is refused", async call => {
    expect((await errorOf(own.worker.query(`select ${call}`))).code).toBe('42501')
  })

  test('waits for an attach that ends soon, so that one is no reason to fail', async () => {
    const [holder, waiter] = [await connect(own.urls.admin), await connect(own.urls.daemon)]
    try {
      await holder.query(`begin; create table quick (${plain}); select lighter.attach('quick')`)
      const pid = await backendPid(waiter)
      const change = value(waiter, 'select lighter.set_threshold(4000, 30000)')
      await untilBlocked(own.admin, pid)
      await holder.query('rollback')
      expect(await change).toBe(1)
    } finally {
      await Promise.all([holder.end(), waiter.end()])
    }
  })
})

describe('dead letters and second looks', () => {
  let table: string
  let id: number
  const fail = (rowId: string, source = id) =>
    admin.query(
      `insert into lighter.failed_jobs (source_id, row_id, attempts, enqueued_at, last_error) values ($1, $2, 8, now() - interval '1 day', 'store said no')`,
      [source, rowId],
    )
  const jobs = async (source = id) =>
    (
      await admin.query(
        'select row_id, priority, attempts from lighter.jobs where source_id = $1 order by row_id',
        [source],
      )
    ).rows
  const failed = (source = id) =>
    column(admin, 'select row_id from lighter.failed_jobs where source_id = $1 order by 1', [source])
  const fresh = { priority: 0, attempts: 0 }

  beforeAll(async () => {
    table = await createTable('id int primary key, tenant_id uuid, metadata jsonb')
    id = await attach(`'${table}'`)
  })

  test('retry brings one row back, then those of a table, then all, with attempts forgotten', async () => {
    const other = await createTable(plain)
    const otherId = await attach(`'${other}'`)
    const otherRow = randomUUID()
    for (const row of ['1', '2', '3']) await fail(row)
    await fail(otherRow, otherId)
    const retry = (args: string, values: unknown[] = []) =>
      value<string>(environment.worker, `select lighter.retry(${args})`, values)
    expect(await retry('$1, $2', [table, '2'])).toBe('1')
    expect(await jobs()).toEqual([{ row_id: '2', ...fresh }])
    expect(await failed()).toEqual(['1', '3'])
    expect(await retry('$1, $2', [table, '99'])).toBe('0')
    expect(await retry('$1', [table])).toBe('2')
    expect(await failed()).toEqual([])
    expect(await failed(otherId)).toEqual([otherRow])
    expect(await retry('')).toBe('1')
    expect(await jobs(otherId)).toEqual([{ row_id: otherRow, ...fresh }])
    await emptyQueue(environment)
  })

  test('retry of a row that waits again forgets its attempts, too, and the letter goes', async () => {
    await fail('1')
    await admin.query(
      `insert into lighter.waiting (source_id, row_id, attempts, priority, available_at) values ($1, '1', 3, 10, now() + interval '1 hour')`,
      [id],
    )
    expect(await value(environment.worker, `select lighter.retry('${table}')`)).toBe('1')
    expect(await jobs()).toEqual([{ row_id: '1', ...fresh }])
    expect(await value(admin, 'select available_at <= now() from lighter.waiting')).toBe(true)
    expect(await failed()).toEqual([])
    await emptyQueue(environment)
  })

  test('requeue enqueues rows as a write to each would, with keys as the trigger writes them', async () => {
    const requeue = (args: string) =>
      value<string>(environment.worker, `select lighter.requeue('${table}', ${args})`)
    expect(await requeue(`array['7', ' 07', '8', null]`)).toBe('2')
    expect(await requeue(`array['8', '9']`)).toBe('2')
    expect(await requeue(`array[]::text[]`)).toBe('0')
    expect(await jobs()).toEqual(['7', '8', '8', '9'].map(row => ({ row_id: row, ...fresh })))
    const { lease } = await claimInbox(environment.worker, [id], 100, 60_000)
    expect(lease?.jobs.map(job => job.rowId)).toEqual(['7', '8', '9'])
    await emptyQueue(environment)
  })

  test('requeue refuses what is no key of the table, which would fail every batch it is in', async () => {
    const error = await errorOf(
      environment.worker.query(`select lighter.requeue('${table}', array['1', 'one'])`),
    )
    expect(error).toMatchObject({ code: '22P02', message: expect.stringContaining('"one"') })
    expect(await jobs()).toEqual([])
  })

  test('neither knows a table that is not attached, or a column', async () => {
    const stranger = await createTable(plain)
    for (const call of [
      `lighter.retry('${stranger}')`,
      `lighter.requeue('${stranger}', array['${randomUUID()}'])`,
    ]) {
      expect(await errorOf(environment.worker.query(`select ${call}`)), call).toEqual({
        code: '42704',
        message: expect.stringMatching(`${stranger}.* is not attached`),
        hint: expect.stringContaining('lighter.sources'),
      })
    }
    const wrongColumn = environment.worker.query(`select lighter.requeue('${table}', array['1'], 'state')`)
    expect((await errorOf(wrongColumn)).message).toBe(`${table}.state is not attached`)
  })

  test('a row that was requeued, though it has nothing to offload, costs one look', async () => {
    const conversation = randomUUID()
    await environment.app.query('insert into conversations (id, tenant_id) values ($1, $1)', [conversation])
    const message = await value<string>(
      environment.app,
      `insert into conversation_messages (conversation_id, role, content, metadata) values ($1, 'user', '', '{"a": 1}') returning id`,
      [conversation],
    )
    expect(
      await value(environment.worker, `select lighter.requeue('conversation_messages', array[upper($1)])`, [
        message,
      ]),
    ).toBe('1')
    const daemon = await startDaemon(environment)
    await worked(
      await value(admin, `select id from lighter.sources where relation = 'conversation_messages'::regclass`),
    )
    await daemon.stop()
    expect(await hydratedMany(environment, [message])).toEqual(['{"a": 1}'])
    expect(await column(admin, 'select id from artifact_refs where row_id = $1', [message])).toEqual([])
  })
})
