// lighter.savings: the whole database as it is against the same rows inline. Sizes against Postgres's own, estimates
// against what VACUUM FULL then really gives back.
import { stripVTControlCharacters } from 'node:util'
import { beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { readSlow } from '../../src/dashboard/report.ts'
import { readStats, type Savings } from '../../src/reports/read.ts'
import { renderLine, renderStats } from '../../src/reports/render.ts'
import { verdictOf } from '../../src/reports/verdict.ts'
import { attach, createTable } from '../support/black-box.ts'
import { drained, newConversation, useDaemon, useFreshEnvironment } from '../support/environment.ts'
import { runCli } from '../support/process.ts'
import { asRole, connect, uniqueRole, value } from '../support/sql.ts'

const environment = useFreshEnvironment()

// Statistics come when a test asks for them, and not before.
const keepStill = (table: string) =>
  environment.admin.query(
    `alter table ${table} set (autovacuum_enabled = false, toast.autovacuum_enabled = false)`,
  )
beforeEach(async () => {
  await keepStill('conversation_messages')
})

const savings = async (): Promise<Savings> => (await readStats(environment.worker)).savings
const sizeOf = (...tables: string[]) =>
  value<number>(
    environment.admin,
    'select sum(pg_total_relation_size(t::regclass))::float8 from unnest($1::text[]) t',
    [tables],
  ).then(Number)
const oursOnDisk = () =>
  value<number>(
    environment.admin,
    `select sum(pg_total_relation_size(oid))::float8 from pg_class where relkind = 'r' and relnamespace = 'lighter'::regnamespace`,
  ).then(Number)

/** Payloads of some 12 KB of text that compress to about a third, beside 200 bytes that stay. */
async function insertMessages(count: number): Promise<void> {
  const { conversationId } = await newConversation(environment)
  await environment.app.query(
    `insert into conversation_messages (conversation_id, role, content, metadata)
     select $1, 'assistant', repeat('c', 200), jsonb_build_object('tool_interactions',
              (select jsonb_agg(md5((n * 1000 + m / 2)::text)) from generate_series(1, 350) m))
       from generate_series(1, $2::int) n`,
    [conversationId, count],
  )
}

async function offloadMessages(count: number): Promise<void> {
  await insertMessages(count)
  const daemon = await useDaemon(environment)
  await drained(environment)
  await daemon.stop()
}

/** As `lighter stats` shows them, on a terminal that cuts nothing. */
const lines = async (width = 10_000) =>
  renderStats(await readStats(environment.worker), width).map(line => stripVTControlCharacters(line))
const savingsLines = async () => {
  const all = await lines()
  const from = all.indexOf('Savings')
  return all.slice(from + 1, all.indexOf('', from))
}

describe('sizes that are known', () => {
  test('are those of the attached tables and everything of ours, whatever else the database holds', async () => {
    await offloadMessages(30)
    await environment.admin.query(
      `create table other as select repeat('x', 1000) from generate_series(1, 1000)`,
    )
    const s = await savings()
    expect(s.tables_bytes).toBe(await sizeOf('conversation_messages'))
    expect(s.bookkeeping_bytes).toBe(await oursOnDisk())
    expect(s.database_bytes).toBe((s.tables_bytes ?? 0) + s.bookkeeping_bytes)
    expect(s.bookkeeping_usd_per_month).toBeCloseTo((s.bookkeeping_bytes / 1e9) * 0.125, 4)
  })

  test('count each partition once, though two columns of the table are attached', async () => {
    await createTable(
      environment,
      'parted',
      '(id bigint, tenant_id uuid, metadata jsonb, more jsonb, primary key (id)) partition by range (id)',
    )
    await environment.admin.query(`
      create table parted_1 partition of parted for values from (0) to (100);
      create table parted_2 partition of parted for values from (100) to (200) partition by range (id);
      create table parted_2_1 partition of parted_2 for values from (100) to (200)`)
    await attach(environment, 'parted')
    await attach(environment, 'parted', 'more', { phase1_field: 'null' })
    await environment.admin.query(
      `insert into parted select n, gen_random_uuid(), '{}', jsonb_build_object('text', repeat(md5(n::text), 20)) from generate_series(0, 199) n`,
    )
    const before = await savings()
    expect(before.tables_bytes).toBe(await sizeOf('conversation_messages', 'parted_1', 'parted_2_1'))
    expect(before.rewritten_bytes_estimated).toBeNull()
    await environment.admin.query('vacuum analyze parted')
    expect((await savings()).rewritten_bytes_estimated).toBeGreaterThan(await sizeOf('parted_1'))
    // A lock on one of them keeps nobody waiting either.
    const rewriter = await connect(environment.urls.admin)
    onTestFinished(() => rewriter.end())
    await rewriter.query('begin; lock table parted_2_1 in access exclusive mode')
    const { rows } = await environment.admin.query('select tables_bytes, not_known from lighter.savings')
    expect(rows).toEqual([{ tables_bytes: null, not_known: ['parted_2_1: locked by another session'] }])
  })

  test('of a table that is empty need no statistics', async () => {
    const s = await savings()
    expect(s.not_known).toBeNull()
    expect(s.rewrite_frees_bytes_estimated).toBeGreaterThanOrEqual(0)
    expect(s.statistics_at).not.toBeNull()
  })

  test('leave out a table that was dropped, and say what the others take', async () => {
    await createTable(environment, 'gone', '(id bigint primary key, tenant_id uuid, metadata jsonb)')
    await attach(environment, 'gone')
    await offloadMessages(5)
    await environment.admin.query('drop table gone')
    await environment.admin.query('vacuum analyze conversation_messages')
    const s = await savings()
    expect(s.tables_bytes).toBe(await sizeOf('conversation_messages'))
    expect(s.rewritten_bytes_estimated).toBeGreaterThan(0)
    expect(s.not_known).toBeNull()
    await environment.admin.query('drop table conversation_messages')
    expect(await savings()).toMatchObject({ tables_bytes: 0, artifacts: 5 })
  })

  test('of a table that another session keeps locked are not known, and nobody waits for them', async () => {
    await offloadMessages(5)
    const rewriter = await connect(environment.urls.admin)
    onTestFinished(() => rewriter.end())
    await rewriter.query('begin; lock table conversation_messages in access exclusive mode')
    const { rows } = await environment.admin.query(
      `select tables_bytes, database_bytes, rewritten_bytes_estimated, not_known, bookkeeping_bytes > 0 as ours, pays_bytes from lighter.savings`,
    )
    expect(rows).toEqual([
      {
        tables_bytes: null,
        database_bytes: null,
        rewritten_bytes_estimated: null,
        not_known: ['conversation_messages: locked by another session'],
        ours: true,
        pays_bytes: expect.any(Boolean),
      },
    ])
    expect(await savingsLines()).toContainEqual(expect.stringMatching(/^on disk now: not known, /))
  })
})

describe('estimates', () => {
  test('without statistics are not known, never 0, and say of which table', async () => {
    await offloadMessages(30)
    const s = await savings()
    expect(s).toMatchObject({
      reusable_bytes_estimated: null,
      rewrite_frees_bytes_estimated: null,
      rewritten_bytes_estimated: null,
      inline_database_bytes_estimated: null,
      statistics_at: null,
      not_known: ['conversation_messages: never vacuumed or analyzed'],
    })
    const shown = await savingsLines()
    expect(shown).toContain(
      'of that free for new rows: not known; a rewrite (VACUUM FULL, pg_repack) would give back: not known',
    )
    expect(shown).toContain('not known of conversation_messages: never vacuumed or analyzed')
    // ANALYZE alone tells nothing of TOAST.
    await environment.admin.query('analyze conversation_messages')
    expect((await savings()).not_known).toEqual([
      'conversation_messages: its TOAST was never vacuumed, or not since its last rewrite',
    ])
  })

  test('come near what VACUUM FULL gives back, and rather below', async () => {
    await offloadMessages(600)
    // At the end of the files, which VACUUM would else cut off.
    await insertMessages(20)
    await environment.admin.query('vacuum analyze conversation_messages')
    const before = await savings()
    const disk = await sizeOf('conversation_messages')
    expect(before.not_known).toBeNull()
    expect(Date.parse(before.statistics_at ?? '')).toBeGreaterThan(Date.now() - 60_000)
    // Of ours as well: they have no part in what this VACUUM FULL gives back.
    const { rows } = await environment.admin.query<{ rewritten: number; reusable: number }>(
      `select rewritten_bytes_estimated::float8 as rewritten, reusable_bytes_estimated::float8 as reusable
         from lighter.table_sizes() where relation = 'conversation_messages'::regclass`,
    )
    const { rewritten = 0, reusable = 0 } = rows[0] ?? {}
    await environment.admin.query('vacuum full conversation_messages')
    const freed = disk - (await sizeOf('conversation_messages'))
    expect(freed).toBeGreaterThan(disk / 2)
    expect(disk - rewritten).toBeLessThanOrEqual(freed)
    expect(disk - rewritten).toBeGreaterThan(0.9 * freed)
    expect(reusable).toBe(disk - rewritten)
    // Nothing more to give back.
    await environment.admin.query('vacuum analyze conversation_messages')
    const { rows: after } = await environment.admin.query<{ free: number }>(
      `select (bytes - rewritten_bytes_estimated)::float8 as free from lighter.table_sizes() where relation = 'conversation_messages'::regclass`,
    )
    expect(after[0]?.free).toBeLessThan(0.1 * disk)
  })

  test('tell what VACUUM has freed from what it has not come to', async () => {
    await offloadMessages(200)
    await environment.admin.query('vacuum analyze conversation_messages')
    const first = await savings()
    await environment.admin.query('delete from conversation_messages')
    await environment.admin.query('analyze conversation_messages')
    // Counters come within a second of the statement.
    await expect
      .poll(
        () =>
          value<number>(
            environment.admin,
            `select n_dead_tup::int from pg_stat_all_tables where relid = 'conversation_messages'::regclass`,
          ),
        { timeout: 10_000 },
      )
      .toBeGreaterThan(100)
    const dead = await savings()
    expect(dead.rewrite_frees_bytes_estimated).toBeGreaterThan(first.rewrite_frees_bytes_estimated ?? 0)
    expect(dead.reusable_bytes_estimated).toBeLessThan(dead.rewrite_frees_bytes_estimated ?? 0)
  })

  test('of a payload inline are its bytes times inline_ratio, against what ours will take', async () => {
    await offloadMessages(300)
    await environment.admin.query('vacuum analyze conversation_messages')
    await environment.admin.query('update lighter.prices set inline_ratio = 0.5')
    const s = await savings()
    expect(s.inline_bytes_estimated).toBe(Math.round(s.payload_bytes * 0.5))
    const { rows } = await environment.admin.query<{ ours: number; tables: number }>(
      `select sum(coalesce(rewritten_bytes_estimated, bytes)) filter (where ours)::float8 as ours,
              sum(rewritten_bytes_estimated) filter (where not ours)::float8 as tables from lighter.table_sizes()`,
    )
    const { ours = 0, tables = 0 } = rows[0] ?? {}
    expect(ours).toBeLessThanOrEqual(s.bookkeeping_bytes)
    expect(s.saved_bytes_estimated).toBeCloseTo(s.payload_bytes * 0.5 - ours, -1)
    expect(s.rewritten_bytes_estimated).toBe(tables + ours)
    expect(s.inline_database_bytes_estimated).toBeCloseTo(tables + s.payload_bytes * 0.5, -1)
    expect((s.database_bytes ?? 0) - (s.rewrite_frees_bytes_estimated ?? 0)).toBe(s.rewritten_bytes_estimated)
  })

  test('that the owner of our schema may not make count ours as large as they are', async () => {
    await offloadMessages(30)
    await environment.admin.query('vacuum analyze')
    const owner = uniqueRole('owner')
    await environment.admin.query(`
      create role ${owner}; grant usage, create on schema lighter to ${owner}; grant select on lighter.sources to ${owner};
      alter function lighter.table_sizes() owner to ${owner}`)
    const s = await savings()
    expect(s.not_known).toEqual([
      'conversation_messages: no statistics of its columns that the owner of schema lighter may see',
    ])
    // But for tables of which all columns have one length: a few pages.
    const asLargeAsTheyAre = s.inline_bytes_estimated - s.bookkeeping_bytes
    expect(s.saved_bytes_estimated).toBeGreaterThanOrEqual(asLargeAsTheyAre)
    expect(s.saved_bytes_estimated).toBeLessThan(asLargeAsTheyAre + 10 * 8192)
    await environment.admin.query(
      `reassign owned by ${owner} to current_user; drop owned by ${owner}; drop role ${owner}`,
    )
  })
})

describe('rows that wait inline', () => {
  test('are named, and are no savings', async () => {
    await environment.admin.query(`select lighter.set_defaults(settle_for => '1 hour', max_wait => '1 day')`)
    await insertMessages(7)
    const s = await savings()
    expect(s).toMatchObject({
      artifacts: 0,
      payload_bytes: 0,
      inline_bytes_estimated: 0,
      still_inline_rows: 7,
      still_inline_exact: true,
      still_inline_bytes_estimated: 0,
    })
    await environment.admin.query(
      `insert into lighter.waiting (source_id, row_id, tenant_id, phase, bytes, row_xmin)
       select id, gen_random_uuid(), gen_random_uuid(), 1, 5000, '5' from lighter.sources`,
    )
    expect(await savings()).toMatchObject({ still_inline_rows: 8, still_inline_bytes_estimated: 5000 })
    expect(await savingsLines()).toContain(
      '8 row(s) still wait inline, about 5.0 KB of payloads: no savings yet',
    )
  })
})

describe('the verdict', () => {
  const prices = (set: string) => environment.admin.query(`update lighter.prices set ${set}`)

  test('with nothing offloaded is that nothing is saved, whatever our empty tables take', async () => {
    expect(await savings()).toMatchObject({ artifacts: 0, pays_usd: null, pays_bytes: null })
    const [first] = await savingsLines()
    expect(first).toBe('Nothing is offloaded yet, so nothing is saved.')
    expect((await lines())[1]).not.toMatch(/pay/)
  })

  test('is the first line of all where it costs more, takes more, or both', async () => {
    await offloadMessages(20)
    await environment.admin.query('vacuum analyze conversation_messages')
    const first = async () => (await lines())[1]
    // 20 messages against all of our tables.
    expect(await savings()).toMatchObject({ pays_usd: false, pays_bytes: false })
    expect(await first()).toMatch(
      /^Offloading does not pay here: it costs about \$0\.\d+ more a month; after a rewrite the database is about [\d.]+ [KM]B larger than with all payloads inline\.$/,
    )
    expect(renderLine(await readStats(environment.worker))).toMatch(/ does not pay$/)
    await prices('inline_ratio = 1000')
    expect(await savings()).toMatchObject({ pays_usd: true, pays_bytes: true })
    expect(await first()).toBe('Queue')
    expect((await savingsLines())[0]).toMatch(/^Offloading pays: it saves about \$/)
    expect(renderLine(await readStats(environment.worker))).not.toMatch(/does not pay/)
    await prices('r2_class_a_million = 1e9')
    expect(await savings()).toMatchObject({ pays_usd: false, pays_bytes: true })
    expect(await first()).toMatch(
      /^Offloading does not pay here: it costs about \$\d+\.\d\d more a month; .* smaller/,
    )
    await prices('inline_ratio = 0.0001, r2_class_a_million = 0, r2_gb_month = 0')
    expect(await savings()).toMatchObject({ pays_usd: false, pays_bytes: false })
  })

  test('is not below inline when both are equal', async () => {
    await offloadMessages(2)
    await prices('r2_class_a_million = 0, r2_gb_month = 0, database_gb_month = 0')
    expect(await savings()).toMatchObject({ saved_usd_per_month_estimated: 0, pays_usd: false })
  })

  test('is on top of lighter stats as a command prints it', async () => {
    await offloadMessages(5)
    const { stdout } = await runCli(['stats'], { env: { ...environment.env, NO_COLOR: '1' } })
    expect(stdout.split('\n')[0]).toMatch(/^Offloading does not pay here: /)
    for (const line of await lines(40)) expect(line.length, line).toBeLessThanOrEqual(40)
  })

  test('has a sign for what is less than a cent', () => {
    const balance = {
      artifacts: 1,
      savedBytes: 1,
      paysBytes: true,
      period: 'a month',
      measured: true,
    } as const
    expect(verdictOf({ ...balance, savedUsd: -0.000012, paysUsd: false }).text).toContain(
      'costs $0.000012 more',
    )
    expect(verdictOf({ ...balance, savedUsd: 12.345, paysUsd: true }).text).toContain('saves $12.35 a month')
  })
})

describe('the dashboard', () => {
  test('says of the whole database what is known and what is not, and first whether offloading pays', async () => {
    await offloadMessages(3)
    await environment.admin.query('vacuum analyze conversation_messages')
    const read = () => readSlow(environment.worker)
    const size = () => sizeOf('conversation_messages')
    const slow = await read()
    expect(slow.savings).toMatchObject({
      tables_bytes: await size(),
      database_bytes: slow.savings.bookkeeping_bytes + (await size()),
      pays_bytes: false,
      verdict: {
        pays: false,
        text: expect.stringMatching(/^Offloading does not pay here: it costs about \$\S+ more a month/),
      },
    })
    const [table] = slow.tables
    expect(table).toMatchObject({
      source: 'conversation_messages',
      bytes: await size(),
      rows: expect.any(Number),
      reusable_bytes_estimated: expect.any(Number),
      rewritten_bytes_estimated: expect.any(Number),
    })
    // A new file, without statistics.
    await environment.admin.query('truncate conversation_messages')
    await insertMessages(3)
    const [unknown] = (await read()).tables
    expect(unknown).toMatchObject({
      bytes: await size(),
      rows: null,
      reusable_bytes_estimated: null,
      rewritten_bytes_estimated: null,
    })
  })
})

test('10^15 bytes are added up, priced and shown to the byte', async () => {
  await environment.admin.query('vacuum analyze conversation_messages')
  await environment.admin.query(
    `insert into artifact_refs (tenant_id, kind, r2_key, size_bytes)
     select gen_random_uuid(), 'own', 'own/' || n, 8796093022208 from generate_series(1, 200) n`,
  )
  const bytes = 200 * 2 ** 43
  const s = await savings()
  expect(s).toMatchObject({
    payload_bytes: bytes,
    inline_bytes_estimated: Math.round(bytes * 0.42),
    pays_usd: true,
    pays_bytes: true,
  })
  expect(s.inline_usd_per_month_estimated).toBeCloseTo(((bytes * 0.42) / 1e9) * 0.125, 2)
  expect((await savingsLines())[0]).toMatch(
    /^Offloading pays: it saves about \$\d+\.\d\d a month; .* 738\.\d TB smaller/,
  )
  // More than a bigint holds.
  await environment.admin.query('update lighter.prices set inline_ratio = 1e9, r2_class_b_million = 1e-9')
  expect((await savings()).inline_bytes_estimated).toBe(Number(9223372036854775807n))
})

test('a reporter reads the same, and learns nothing but sizes', async () => {
  await offloadMessages(30)
  await environment.admin.query('vacuum analyze conversation_messages')
  const expected = await savings()
  await asRole(environment.admin, 'lighter_reporter', async db => {
    const { rows } = await db.query(
      'select rewritten_bytes_estimated::float8 as rewritten, not_known from lighter.savings',
    )
    expect(rows).toEqual([{ rewritten: expected.rewritten_bytes_estimated, not_known: null }])
  })
})
