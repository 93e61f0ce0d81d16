// Partitioned tables, whose keys have the partition's columns in them: their rows are found in their partition alone, and
// partitions come and go while a daemon works.
import { randomUUID } from 'node:crypto'
import { beforeEach, describe, expect, test } from 'vitest'
import { rowKey } from '../../src/source/row-key.ts'
import { lighterOk } from '../support/black-box.ts'
import { createSignals, drained, startDaemon, until, useFreshEnvironment } from '../support/environment.ts'
import { hydratedRows, offloadedKeys, sourceOf } from '../support/key-tables.ts'
import { planOf } from '../support/plan-of.ts'
import { column, value } from '../support/sql.ts'

const environment = useFreshEnvironment()
const document = (n: number) => `{"tool_interactions": [${n}]}`
const tenant = randomUUID()

beforeEach(() => environment.admin.query(`select lighter.set_defaults('0', '0')`))

/** All rows whole, read back by their keys. */
async function expectWhole(table: string, from: string, key: string, rows: number): Promise<void> {
  const keys = await column<string>(environment.admin, `select ${key} from ${from}`)
  expect(keys).toHaveLength(rows)
  const read = await hydratedRows(environment, table, keys)
  expect(read.size).toBe(rows)
  for (const text of read.values()) expect(String(text)).toMatch(/^\{"tool_interactions": \[\d+\]\}$/)
}

const inline = (table: string) =>
  value<number>(environment.admin, `select count(*)::int from ${table} where metadata ? 'tool_interactions'`)

describe.each<[string, string, string]>([
  [
    'by range of time',
    `create table events (id bigint, created_at timestamptz, tenant_id uuid, metadata jsonb, primary key (id, created_at)) partition by range (created_at);
     create table events_1 partition of events for values from (minvalue) to ('2026-02-01 00:00+00');
     create table events_2 partition of events for values from ('2026-02-01 00:00+00') to (maxvalue)`,
    `n, timestamptz '2026-01-01 00:00+00' + n * interval '1 day'`,
  ],
  [
    'by list',
    `create table events (region text, id bigint, tenant_id uuid, metadata jsonb, primary key (region, id)) partition by list (region);
     create table events_1 partition of events for values in ('eu', 'us');
     create table events_2 partition of events default`,
    `(array['eu', 'us', 'as"ia, \\'])[n % 3 + 1], n`,
  ],
  [
    'by hash',
    `create table events (account uuid, id integer, tenant_id uuid, metadata jsonb, primary key (account, id)) partition by hash (account);
     create table events_1 partition of events for values with (modulus 2, remainder 0);
     create table events_2 partition of events for values with (modulus 2, remainder 1)`,
    `md5(n::text)::uuid, n`,
  ],
  [
    'by list, and those by range, with columns in another order',
    `create table events (region text, id bigint, tenant_id uuid, metadata jsonb, primary key (id, region)) partition by list (region);
     create table events_1 partition of events for values in ('eu') partition by range (id);
     create table events_1_1 (metadata jsonb, tenant_id uuid, gone text, id bigint not null, region text not null);
     alter table events_1_1 drop gone;
     alter table events_1 attach partition events_1_1 for values from (0) to (30);
     create table events_1_2 partition of events_1 for values from (30) to (1000);
     create table events_2 partition of events default`,
    `(array['eu', 'us'])[n % 2 + 1], n`,
  ],
])('a table partitioned %s', (_, ddl, keyOfN) => {
  const fill = (from: number, to: number) =>
    environment.admin.query(
      `insert into events select ${keyOfN}, '${tenant}', jsonb_build_object('tool_interactions', jsonb_build_array(n)) from generate_series(${from}, ${to}) n`,
    )

  test('is offloaded, backfilled and restored whole; its rows are looked up in their partition by its index', async () => {
    const { admin } = environment
    await admin.query(ddl)
    await fill(1, 30)
    await admin.query(`select lighter.attach('events')`)
    await fill(31, 60)
    const daemon = await startDaemon(environment)
    await drained(environment)
    expect(await inline('events')).toBe(30)
    await lighterOk(environment, ['backfill', '--table', 'events'])
    await drained(environment)
    expect(await inline('events')).toBe(0)
    const source = await sourceOf(environment, 'events')
    const key = source.keySql
    await expectWhole('events', 'events m', key, 60)
    expect(await offloadedKeys(environment, 'events')).toHaveLength(60)

    await admin.query('analyze events')
    const plan = await planOf(
      environment.worker,
      source,
      await column<string>(admin, `select ${key} from events m limit 20`),
    )
    expect(plan).not.toMatch(/Seq Scan on (\w+\.)?events/)
    // Both columns, in each partition.
    const conditions = [
      ...plan.matchAll(/Index (?:Only )?Scan using events_\w+ on events\w* m\w*.*\n +Index Cond: (.*)/g),
    ]
    expect(conditions.length).toBeGreaterThanOrEqual(2)
    for (const [, condition] of conditions) expect(condition).toMatch(/ = .* AND .* = /)

    await daemon.stop()
    await lighterOk(environment, ['restore', '--table', 'events'])
    expect(await inline('events')).toBe(60)
  })
})

test('each row is looked up once, in its partition alone, and no table is read whole', async () => {
  const { admin } = environment
  await admin.query(`
    create table events (tenant_id uuid, id bigint, status text, metadata jsonb, primary key (tenant_id, id, status)) partition by list (status);
    create table events_a partition of events for values in ('a');
    create table events_b partition of events for values in ('b') partition by hash (id);
    create table events_b0 partition of events_b for values with (modulus 2, remainder 0);
    create table events_b1 partition of events_b for values with (modulus 2, remainder 1);
    select lighter.attach('events');
    insert into events select '${tenant}', n, (array['a', 'b'])[n % 2 + 1], '{}' from generate_series(1, 9000) n;
    analyze events;
    insert into events select '${tenant}', n, (array['a', 'b'])[n % 2 + 1], '${document(1)}' from generate_series(9001, 10000) n;
    select pg_stat_reset()`)
  const daemon = await startDaemon(environment)
  await drained(environment)
  await daemon.stop()
  const sum = (what: string) =>
    value<number>(
      admin,
      `select coalesce(sum(${what}), 0)::int from pg_stat_user_tables where relname like 'events%'`,
    )
  // Sessions give their counts in when they end.
  await until(async () => (await sum('idx_scan')) >= 1000, 'the look-ups are counted')
  expect(await sum('idx_scan')).toBeLessThan(1100)
  expect(await sum('seq_scan')).toBe(0)
  expect(await inline('events')).toBe(0)
})

describe('partitions', () => {
  const ddl = `
    create table events (tenant_id uuid, id integer, metadata jsonb, primary key (tenant_id, id)) partition by range (id);
    create table events_1 partition of events for values from (0) to (100);
    create table events_2 partition of events for values from (100) to (200)`
  const key = 'lighter.row_key(tenant_id::text, id::text)'
  const insert = (from: number, to: number, table = 'events') =>
    environment.admin.query(
      `insert into ${table} (tenant_id, id, metadata) select '${tenant}', n, jsonb_build_object('tool_interactions', jsonb_build_array(n)) from generate_series(${from}, ${to}) n`,
    )

  test('are made, attached, detached and dropped while the daemon runs; no row in sight is lost', async () => {
    const { admin } = environment
    await admin.query(ddl)
    await admin.query(`select lighter.attach('events')`)
    const daemon = await startDaemon(environment)
    await insert(1, 10)
    await insert(101, 110)
    await drained(environment)
    await admin.query('create table events_3 partition of events for values from (200) to (300)')
    await insert(201, 210)
    await admin.query(`create table events_4 (metadata jsonb, id integer not null, tenant_id uuid not null)`)
    await insert(301, 310, 'events_4')
    await admin.query('alter table events attach partition events_4 for values from (300) to (400)')
    await admin.query('update events set metadata = metadata where id > 300')
    await drained(environment)
    expect(await inline('events')).toBe(0)
    await expectWhole('events', 'events', key, 40)

    // What is detached while it is queued is gone, and whole.
    await daemon.stop()
    await insert(111, 120)
    await admin.query('alter table events detach partition events_2')
    const next = await startDaemon(environment)
    await drained(environment)
    expect(await inline('events_2')).toBe(10)
    expect(await column(admin, `select part || ' ' || name from lighter.missing_parts`)).toEqual([
      'partition public.events_2',
    ])
    await admin.query('alter table events attach partition events_2 for values from (100) to (200)')
    expect(await column(admin, 'select part from lighter.missing_parts')).toEqual([])
    await admin.query('update events set metadata = metadata where id between 111 and 120')
    await drained(environment)
    await expectWhole('events', 'events', key, 50)
    await admin.query('drop table events_3')
    await insert(11, 20)
    await drained(environment)
    await expectWhole('events', 'events', key, 50)
    expect(await value(admin, 'select count(*)::int from lighter.failed_jobs')).toBe(0)
    await next.stop()
  })

  test.each(['after-plan', 'before-commit'] as const)(
    'a row that moves to another one at %s is another row: it is offloaded under its new key, and the old one is gone',
    async point => {
      const { admin } = environment
      await admin.query(ddl)
      await admin.query(`select lighter.attach('events')`)
      const signals = createSignals()
      const hold = signals.holdAt(point)
      await insert(1, 5)
      const daemon = await startDaemon(environment, { signal: signals.signal })
      await hold.reached
      // One goes to another partition, one goes and is changed too, one goes and comes back, one gets another key only.
      await admin.query(`
        update events set id = 51 where id = 1;
        update events set id = 152 where id = 2;
        update events set id = 153, metadata = '${document(3000)}' where id = 3;
        update events set id = 154 where id = 4;
        update events set id = 4 where id = 154`)
      hold.release()
      await drained(environment)
      await expectWhole('events', 'events', key, 5)
      // Nothing wrote its document, so under its new key it was not queued.
      expect(await column(admin, `select id from events where metadata ? 'tool_interactions'`)).toEqual([51])
      await admin.query('update events set metadata = metadata where id = 51')
      await drained(environment)
      await expectWhole('events', 'events', key, 5)
      expect(await inline('events')).toBe(0)
      const keys = [4, 5, 51, 152, 153].map(id => rowKey([tenant, String(id)])).sort()
      expect(await offloadedKeys(environment, 'events')).toEqual(keys)
      expect(await value(admin, `select metadata::text from events where id = 153`)).toMatch('_ref')
      expect(
        (await hydratedRows(environment, 'events', [rowKey([tenant, '153'])])).values().next().value,
      ).toBe(document(3000))
      expect(await value(admin, 'select count(*)::int from lighter.failed_jobs')).toBe(0)
      await daemon.stop()
    },
  )

  test('rows that move all the time lose nothing, and hold up no other', async () => {
    const { admin } = environment
    await admin.query(ddl)
    await admin.query(`select lighter.attach('events')`)
    const daemon = await startDaemon(environment)
    await insert(1, 40)
    const until_ = performance.now() + 3000
    for (let n = 0; performance.now() < until_; n++) {
      await admin.query(
        `update events e set id = (id + 100) % 200 where id % 10 = ${n % 10} and not exists (select from events o where o.id = (e.id + 100) % 200)`,
      )
      await admin.query(
        `insert into events values ('${tenant}', ${n % 90} + 50, '${document(n)}') on conflict do nothing`,
      )
    }
    await until(
      async () => (await value<number>(admin, 'select count(*)::int from lighter.jobs')) === 0,
      'all is done',
      60_000,
    )
    const rows = await value<number>(admin, 'select count(*)::int from events')
    await expectWhole('events', 'events', key, rows)
    expect(await value(admin, 'select count(*)::int from lighter.failed_jobs')).toBe(0)
    await daemon.stop()
  })
})
