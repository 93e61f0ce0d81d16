// `lighter estimate`: what it says, of which tables, and that it writes nothing.
import pg from 'pg'
import { beforeAll, describe, expect, test } from 'vitest'
import { loadAdminDatabaseUrl } from '../../src/config.ts'
import { defaultInlineRatio, defaultPrices } from '../../src/reports/prices.ts'
import { useEnvironment } from '../support/environment.ts'
import { estimatedTables } from '../support/estimated-tables.ts'
import { startOwnPostgres } from '../support/own-server.ts'
import { runCli } from '../support/process.ts'
import { startReplica } from '../support/replica.ts'
import { column, connect, uniqueRole, value } from '../support/sql.ts'

const bare = await useEnvironment({ empty: true })
const installed = await useEnvironment()
const reader = uniqueRole('reader')

/** Of what stands in the way of attach, one of each. */
const refused = `
  create table app.no_key (tenant_id uuid, metadata jsonb);
  create table app.two_keys (a int, b int, tenant_id uuid, metadata jsonb, primary key (a, b));
  create table app.text_key (id text primary key, tenant_id uuid, metadata jsonb);
  create table app.as_text (id uuid primary key, tenant_id uuid, metadata text);
  create table app.no_tenant (id uuid primary key, metadata jsonb);
  create table app.text_tenant (id uuid primary key, tenant_id text, metadata jsonb);
  create table app.as_bytes (id uuid primary key, tenant_id uuid, metadata bytea not null);
  create table app.as_number (id uuid primary key, tenant_id uuid, metadata numeric);
  create table app.float_key (id float8 primary key, tenant_id uuid, metadata jsonb);
  create table app.generated (id uuid primary key, tenant_id uuid, raw jsonb, metadata jsonb generated always as (raw || '{}') stored);
  create table app.indexed (id uuid primary key, tenant_id uuid, metadata jsonb, check (metadata ? 'a'));
  create index on app.indexed ((metadata ->> 'deep'));
  create index on app.indexed ((metadata ->> 'model'));
  create index on app.indexed using gin (metadata);
  create view app.seen as select id, metadata from app.indexed;
  create table app.mother (id uuid primary key, tenant_id uuid, metadata jsonb);
  create table app.child () inherits (app.mother);
  create table app.left_parent (id uuid primary key, tenant_id uuid);
  create table app.right_parent (id uuid primary key, tenant_id uuid);
  create table app.two_parents (id uuid primary key, l uuid references app.left_parent, r uuid references app.right_parent, metadata jsonb);
  create table app.empty (id uuid primary key, tenant_id uuid, metadata jsonb, created_at timestamptz);
  create table app.parts (id bigint, tenant_id uuid, metadata jsonb, created_at timestamptz, primary key (id)) partition by range (id);
  create table app.parts_1 partition of app.parts for values from (0) to (500);
  create table app.parts_2 partition of app.parts for values from (500) to (5000);
  insert into app.parts select n, gen_random_uuid(), jsonb_build_object('model', 'm', 'tool_interactions', jsonb_build_array(repeat(md5(n::text), 60))), now() from generate_series(1, 1500) n;
`
const comparedTables = [
  'as_bytes',
  'as_number',
  'float_key',
  'no_key',
  'two_keys',
  'text_key',
  'as_text',
  'no_tenant',
  'text_tenant',
  'generated',
  'indexed',
  'mother',
  'two_parents',
  'empty',
  'parts',
]

/** Of the login that may only read. */
const readerEnv = () => {
  const url = new URL(loadAdminDatabaseUrl({ DATABASE_URL: bare.urls.admin }))
  url.username = reader
  url.password = 'reader'
  return { DATABASE_URL: url.href }
}

const estimated = async (args: string[], env: Record<string, string> = readerEnv()) => {
  const finished = await runCli(['estimate', ...args], { env })
  return { ...finished, json: () => JSON.parse(finished.stdout) }
}

beforeAll(async () => {
  await bare.admin.query(
    `create role ${reader} login password 'reader'; alter role ${reader} set default_transaction_read_only = on`,
  )
  for (const { admin } of [bare, installed]) {
    await admin.query(`create schema app; ${refused}`)
    await admin.query('create schema zoo')
    for (const zoo of estimatedTables) {
      await admin.query(zoo.create)
      await zoo.fill(admin)
    }
  }
  await bare.admin.query(`
    grant usage on schema app, zoo to ${reader};
    grant select on all tables in schema app to ${reader};
    grant select on all tables in schema zoo to ${reader};
    revoke temporary on database ${bare.database} from public`)
}, 60_000)

describe('before anything is installed', () => {
  test('a login that may only read gets the whole answer, and nothing is written', async () => {
    const before = await written()
    const { code, stdout, stderr } = await estimated(['zoo.agent_runs', '--column', 'trace'])
    expect(stderr).toBe('')
    expect(code).toBe(0)
    expect(stdout).toMatch(
      /^Offloading zoo\.agent_runs\.trace pays: the database gets about .* smaller by it; the bill saves about \$/,
    )
    expect(stdout).toMatch(
      /500 of 500 rows leave: 22\.4 MB of text in 500 artifacts of 3 tenants \(counted\)/,
    )
    expect(stdout).toContain('PUTs a month')
    expect(stdout).toContain('Sure: the whole table was read')
    expect(stdout).toContain('nothing stands in the way of: lighter attach zoo.agent_runs --column trace')
    expect(await written()).toEqual(before)
  })

  test('a table of which it does not pay is told so first', async () => {
    const { stdout } = await estimated(['zoo.clicks'])
    expect(stdout).toMatch(
      /^Offloading zoo\.clicks\.metadata does not pay: the database gets about .* larger by it; the bill costs about \$\S+ more a month\./,
    )
    expect((await estimated(['zoo.clicks', '--json'])).json()).toMatchObject({
      pays: false,
      can_attach: true,
      advice: { '--min-bytes': { is_default: false } },
    })
  })

  test.each(comparedTables)('what stands in the way of attaching app.%s is what attach says', async name => {
    const [{ rows: said }, told] = await Promise.all([
      installed.admin.query<{ what: string; found: string; hint: string | null }>(
        `select what, found, hint from lighter.check_attach($1::text::regclass)`,
        [`app.${name}`],
      ),
      estimated([`app.${name}`, '--json']),
    ])
    const of = (what: string) =>
      said.filter(line => line.what === what).map(({ found, hint }) => ({ found, hint }))
    expect(told.stderr).toBe('')
    expect(told.json().obstacles).toEqual(of('obstacle'))
    expect(told.json().warnings).toEqual(of('warning'))
    expect(told.code).toBe(of('obstacle').length > 0 ? 1 : 0)
  })

  test('partitions are taken together', async () => {
    const { json } = await estimated(['app.parts', '--json'])
    const total = await value<number>(
      bare.admin,
      `select sum(pg_total_relation_size(relid))::int from pg_partition_tree('app.parts')`,
    )
    expect(json().as_attached).toMatchObject({
      rows: 1500,
      leaving: { rows: 1500 },
      database: { table_bytes_now: total },
    })
  })

  test('an empty table has no estimate, and says why', async () => {
    const { stdout, code } = await estimated(['app.empty'])
    expect(stdout).toContain('no estimate, since no row was found')
    expect(stdout).toContain('The table is empty.')
    expect(code).toBe(0)
  })

  test.each([
    [
      'a view',
      ['app.seen'],
      'error: app.seen is a view: nothing can be taken off it',
      'Estimate the table that it reads from.',
    ],
    [
      'a table that is not there',
      ['app.gone'],
      'error: there is no table app.gone',
      'Name it with its schema',
    ],
    [
      'a column that is not there',
      ['zoo.clicks', '--column', 'meta'],
      'error: --column: zoo.clicks has no column "meta"',
      'Name one of: id, tenant_id, metadata, created_at',
    ],
    [
      'a time column that is none',
      ['zoo.clicks', '--time-column', 'id'],
      'error: --time-column: zoo.clicks has no column "id" with a date or time',
      'Name one of: created_at',
    ],
  ])('%s is refused, with the field and the remedy', async (_, args, message, hint) => {
    const { stderr, code, stdout } = await estimated(args)
    expect(stdout).toBe('')
    expect(stderr).toContain(message)
    expect(stderr).toContain(`hint: ${hint}`)
    expect(code).toBe(1)
  })

  test('a table that it may not read', async () => {
    await bare.admin.query('create table app.secret (id uuid primary key, tenant_id uuid, metadata jsonb)')
    const { stderr } = await estimated(['app.secret'])
    expect(stderr).toContain('error: this login may not read app.secret')
    expect(stderr).toContain('hint: grant select on app.secret to <login>;')
  })

  test('a table that somebody has locked does not keep it waiting', async () => {
    const other = await connect(bare.urls.admin)
    await other.query('begin; lock table zoo.clicks in access exclusive mode')
    try {
      const { stderr } = await estimated(['zoo.clicks', '--lock-timeout', '0.2'])
      expect(stderr).toContain('another session has locked zoo.clicks against readers')
    } finally {
      await other.end()
    }
  })

  test('the prices, the rate and the tenants can be given', async () => {
    const args = [
      'zoo.tasks',
      '--json',
      '--rows-per-second',
      '2',
      '--tenants',
      '1000',
      '--database-price',
      '1',
      '--put-price',
      '9',
      '--kept-days',
      '30',
    ]
    const given = (await estimated(args)).json()
    expect(given).toMatchObject({
      rows_per_second: 2,
      prices: {
        database_gb_month: 1,
        class_a_million: 9,
        bucket_gb_month: defaultPrices.bucketGbMonth,
        from: 'options',
      },
      as_attached: {
        tenants: { total: 1000, basis: 'given' },
        usd_per_month: { rows_kept: 2 * 30 * 86_400 },
      },
    })
    expect(given.as_attached.usd_per_month.puts).toBeCloseTo((given.as_attached.puts_per_month * 9) / 1e6, 3)
  })
})

describe('a sample', () => {
  beforeAll(async () => {
    await bare.admin.query(`
      create table app.large (id bigint generated always as identity primary key, tenant_id uuid not null, metadata jsonb not null, created_at timestamptz not null);
      insert into app.large (tenant_id, metadata, created_at)
      select md5((n % 50)::text)::uuid, jsonb_build_object('model', 'm', 'tool_interactions', jsonb_build_array(repeat(md5(n::text), 5 + n % 30))),
             timestamptz '2026-01-01' + n * interval '1 second' from generate_series(1, 30000) n;
      grant select on app.large to ${reader}`)
  })

  test('of some pages says how sure it is, and is as sure as it says', async () => {
    const whole = (await estimated(['app.large', '--json', '--sample-pages', '100000'])).json()
    const part = (await estimated(['app.large', '--json', '--sample-pages', '200'])).json()
    expect(part.sample.pages).toBeLessThan(part.sample.of_pages / 2)
    const { interval_95: interval } = part.sample
    // Twice the interval: one in twenty is beyond it.
    for (const [is, was, most] of [
      [part.as_attached.leaving.rows, whole.as_attached.leaving.rows, interval.rows],
      [
        part.as_attached.leaving.payload_bytes,
        whole.as_attached.leaving.payload_bytes,
        interval.payload_bytes,
      ],
      [
        part.as_attached.database.table_bytes_after,
        whole.as_attached.database.table_bytes_after,
        interval.table_after,
      ],
    ])
      expect(Math.abs(is / was - 1)).toBeLessThan(2 * most + 0.01)
    expect(interval.payload_bytes).toBeLessThan(0.2)
  })

  test('that misses the one huge row says what it does not explain; one that meets it does not multiply it', async () => {
    await bare.admin.query(`
      insert into app.large (tenant_id, metadata, created_at)
      select md5('1')::uuid, jsonb_build_object('model', 'm', 'scan', (select string_agg(encode(sha256(n::text::bytea), 'base64'), '') from generate_series(1, 200000) n)), now()`)
    const missed = (await estimated(['app.large', '--json', '--sample-pages', '20'])).json()
    expect(missed.caveats.join('\n')).toMatch(
      /The sample does not explain \d+\.\d MB of the table's TOAST: .* If they are values of metadata, that much more leaves\./,
    )
    await bare.admin.query('analyze app.large')
    // Read with it.
    const met = (await estimated(['app.large', '--json', '--sample-pages', '100000'])).json()
    expect(met.as_attached.leaving.payload_bytes).toBeLessThan(
      missed.as_attached.leaving.payload_bytes + 25e6,
    )
    expect(met.sample.share).toBe(1)
    expect(met.sample.opened).toBeLessThan(30_001)
  })

  test('is bounded in time', async () => {
    const { stderr } = await estimated(['app.large', '--timeout', '0.001', '--sample-pages', '100000'])
    expect(stderr).toMatch(
      /error: (not even one sample of app\.large was read|canceling statement due to statement timeout)/,
    )
  })
})

test('the default prices are those of lighter.prices, which count where they may be read', async () => {
  const { rows } = await installed.admin.query(
    `select r2_gb_month::float8 as "bucketGbMonth", r2_class_a_million::float8 as "classAMillion", database_gb_month::float8 as "databaseGbMonth",
            inline_ratio::float8 as ratio from lighter.prices`,
  )
  expect(rows).toEqual([{ ...defaultPrices, ratio: defaultInlineRatio }])
  await installed.admin.query('update lighter.prices set database_gb_month = 0.5')
  const { json } = await estimated(['zoo.tasks', '--json'], installed.env)
  expect(json().prices).toMatchObject({ database_gb_month: 0.5, from: 'lighter.prices' })
})

test('an attached table can be estimated, by the settings of its database', async () => {
  await installed.admin.query(`select lighter.set_threshold(30000); select lighter.attach('zoo.tasks')`)
  const there = (await estimated(['zoo.tasks', '--json'], installed.env)).json()
  const here = (await estimated(['zoo.tasks', '--json'])).json()
  expect([there.obstacles, there.warnings]).toEqual([[], []])
  expect(there.as_attached.leaving.artifacts).toBeLessThan(here.as_attached.leaving.artifacts)
})

describe('in schema public, where others may make functions', () => {
  // As anybody may on a server that was upgraded: each fits its argument better than Postgres's own.
  const foreign = `
    create function public.pg_column_size(jsonb) returns integer language plpgsql as 'begin raise exception ''somebody else runs here''; end';
    create function public.pg_column_size(uuid) returns integer language plpgsql as 'begin raise exception ''somebody else runs here''; end';
    create function public.octet_length(character varying) returns integer language plpgsql as 'begin raise exception ''somebody else runs here''; end';
    create function public.pg_relation_size(oid) returns bigint language plpgsql as 'begin raise exception ''somebody else runs here''; end';
    create function public.jsonb_typeof(jsonb, text) returns text language sql as 'select ''x''';`
  beforeAll(async () => {
    await bare.admin.query(`
      ${foreign}
      create table public.things (id uuid primary key default gen_random_uuid(), tenant_id uuid, metadata jsonb, created_at timestamptz default now());
      insert into public.things (tenant_id, metadata) select gen_random_uuid(), jsonb_build_object('tool_interactions', jsonb_build_array(repeat(md5(n::text), 60))) from generate_series(1, 500) n;`)
  })

  test('none of them is run, and a table needs no schema before its name', async () => {
    const env = { DATABASE_URL: bare.urls.admin }
    const found = await estimated(['things', '--json'], env)
    expect(found.stderr).toBe('')
    expect(found.json()).toMatchObject({ table: 'public.things', sample: { rows: 500 } })
    const reclaimed = await runCli(['reclaim', 'things', '--json'], { env })
    expect(reclaimed.stderr).toBe('')
    expect(JSON.parse(reclaimed.stdout)).toMatchObject({ table: 'public.things' })
  })
})

test('a read replica answers as well', { timeout: 60_000 }, async () => {
  const primary = await startOwnPostgres()
  const [, runs] = estimatedTables
  const client = await connect(primary.url())
  await client.query(`create schema zoo; ${runs?.create}`)
  await runs?.fill(client)
  await client.end()
  const replica = await startReplica(primary)
  await replica.caughtUp()
  const { stdout, stderr } = await estimated(['zoo.agent_runs', '--column', 'trace'], {
    DATABASE_URL: replica.postgres.url(),
  })
  expect(stderr).toBe('')
  expect(stdout).toMatch(/^Offloading zoo\.agent_runs\.trace pays/)
  expect(stdout).toContain('nothing stands in the way of')
})

test('values of any size and shape are looked at in bounded time', async () => {
  await bare.admin.query(`
    create table app.odd (id uuid primary key default gen_random_uuid(), tenant_id uuid, metadata jsonb);
    insert into app.odd (metadata) values (null), ('1'), ('"text"'), ('[]'), ('{}'), ('[1, 2]'), ('{"tool_interactions": []}'), ('{"tool_interactions": 7}');
    insert into app.odd (metadata) select jsonb_build_object('tool_interactions', jsonb_build_array(n, repeat('y', 300))) from generate_series(1, 500) n;
    -- 460 MB of text in 31 KB, and 60 MB in 700 KB.
    insert into app.odd (metadata) select jsonb_build_object('n', (select jsonb_agg(('1e131071')::jsonb) from generate_series(1, 3500)));
    insert into app.odd (metadata) select jsonb_build_object('z', repeat('z', 60000000));
    grant select on app.odd to ${reader}`)
  const started = performance.now()
  const { json, stderr } = await estimated(['app.odd', '--json'])
  expect(stderr).toBe('')
  expect(performance.now() - started).toBeLessThan(20_000)
  expect(json()).toMatchObject({ sample: { rows: 510 }, as_attached: { rows: 510 } })
  expect(json().as_attached.leaving.rows).toBeGreaterThanOrEqual(501)
  expect(json().caveats.join()).toContain('1 value is stored in over 262.1 KB and not opened')
})

/** What a command that wrote would change. */
async function written(): Promise<unknown[]> {
  const client = new pg.Client({ connectionString: bare.urls.admin })
  await client.connect()
  try {
    return await column(
      client,
      `select count(*)::text from pg_class union all select count(*)::text from pg_proc union all select count(*)::text from pg_namespace`,
    )
  } finally {
    await client.end()
  }
}
