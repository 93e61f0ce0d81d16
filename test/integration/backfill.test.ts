// Rows that were there before: found as the trigger would have found them, enqueued behind live ones, resumably.
import { randomUUID } from 'node:crypto'
import { afterEach, describe, expect, test } from 'vitest'
import { parseAge } from '../../src/backfill/age.ts'
import type { Daemon } from '../../src/daemon.ts'
import { estimateRows } from '../../src/offload/table-size.ts'
import {
  asJsonbText,
  drained,
  hydratedMany,
  insertMessage,
  newConversation,
  startDaemon,
  until,
  useFreshEnvironment,
} from '../support/environment.ts'
import { oddValues } from '../support/json-values.ts'
import { offloadedRows, writeMessages } from '../support/messages.ts'
import { runCli, startCli } from '../support/process.ts'
import { emptyQueue } from '../support/queue.ts'
import { column, value } from '../support/sql.ts'

const environment = useFreshEnvironment()
let daemon: Daemon | undefined
afterEach(async () => {
  await daemon?.stop()
  daemon = undefined
})

const cli = (...args: string[]) => runCli(args, { env: environment.env })
async function backfilled(...args: string[]): Promise<{ tables: Record<string, unknown>[] }> {
  const { stdout, stderr } = await cli('backfill', ...args, '--json')
  expect(stderr).toBe('')
  return JSON.parse(stdout)
}
const jobs = (sql = 'true') =>
  column<string>(environment.admin, `select row_id from lighter.jobs where ${sql} order by row_id`)
const heavy = (mark: string) => `{"tool_interactions": ["${mark}"], "fill": "${'~'.repeat(9000)}"}`

/** What is to be offloaded, by the documented rule. The trigger queues more than that, since it renders nothing. */
const rowsToGo = () =>
  column<string>(
    environment.admin,
    `select id::text from conversation_messages
      where jsonb_typeof(metadata -> 'tool_interactions') in ('array', 'object')
              and metadata -> 'tool_interactions' not in ('[]', '{}')
         or jsonb_typeof(metadata) in ('array', 'object') and octet_length(metadata::text) > 8000
              -- Long because of a number alone: it takes little in its row.
              and jsonb_typeof(metadata -> 'a') is distinct from 'number'
      order by id::text`,
  )

/** As if all had been written before attach. */
const forget = () => emptyQueue(environment)

test('some thousand realistic messages go, exactly, and the next pass finds nothing', async () => {
  const messages = await writeMessages(environment, { messages: 3000, tenants: 5, seed: 11 })
  const queuedLive = await rowsToGo()
  await forget()
  const ids = messages.map(m => m.id)
  const written = new Map(
    (
      await environment.admin.query<{ id: string; text: string }>(
        'select id, metadata::text as text from conversation_messages',
      )
    ).rows.map(row => [row.id, row.text]),
  )
  const plain = await backfilled('--dry-run')
  expect(plain.tables).toMatchObject([{ seen: 3000, rows: queuedLive.length }])
  expect(await jobs()).toEqual([])
  const ofTenants = await column<string>(
    environment.admin,
    `select c.tenant_id || ' ' || count(*) from conversation_messages m join conversations c on c.id = m.conversation_id
      where m.id = any ($1) group by c.tenant_id order by 1`,
    [queuedLive],
  )
  const tenants = plain.tables[0]?.tenants as { tenant_id: string; rows: number; bytes: number }[]
  expect(tenants.map(t => `${t.tenant_id} ${t.rows}`).sort()).toEqual(ofTenants)
  expect(tenants.every(t => t.bytes > 0)).toBe(true)

  expect((await backfilled()).tables).toMatchObject([
    { outcome: 'done', seen: 3000, queued: queuedLive.length, resumed: false },
  ])
  expect(await jobs('priority = 10')).toEqual(queuedLive)
  daemon = await startDaemon(environment)
  await drained(environment)
  expect(await offloadedRows(environment)).toBe(queuedLive.length)
  expect((await hydratedMany(environment, ids)).map(String)).toEqual(ids.map(id => written.get(id)))
  expect((await backfilled()).tables).toMatchObject([{ outcome: 'done', seen: 3000, queued: 0 }])
})

test('it takes what the trigger takes: odd values, both sides of the threshold, long values that compress', async () => {
  const { conversationId } = await newConversation(environment)
  const documents: (string | null)[] = [
    null,
    'null',
    '[]',
    '{"tool_interactions": []}',
    '{"tool_interactions": null}',
    '{"tool_interactions": "text"}',
    '{"tool_interactions": [1]}',
    '{"tool_interactions": {"a": 1}}',
    `{"a": "${'x'.repeat(8000 - 9)}"}`,
    `{"a": "${'x'.repeat(8001 - 9)}"}`,
    `{"a": "${'語'.repeat(2664)}"}`,
    `{"a": "${'x'.repeat(2_000_000)}"}`,
    '{"a": 1e100000}',
    `{"a": "${Array.from({ length: 20_000 }, () => randomUUID()).join('')}"}`,
    ...oddValues.flatMap(([, json]) => [`{"tool_interactions": ${json}}`, `{"other": ${json}}`]),
  ]
  for (const document of documents) await insertMessage(environment, conversationId, document)
  const live = await rowsToGo()
  expect(live.length).toBeGreaterThan(18)
  expect(await jobs()).toEqual(expect.arrayContaining(live))
  await forget()
  await backfilled()
  expect(await jobs()).toEqual(live)
})

test('an empty object, which the trigger looks at in vain, is left out', async () => {
  const { conversationId } = await newConversation(environment)
  await insertMessage(environment, conversationId, '{"tool_interactions": {}}')
  await forget()
  await backfilled()
  expect(await jobs()).toEqual([])
})

describe.for([
  ['bigint', 'bigint'],
  ['integer', 'integer'],
] as const)('keys of type %s', ([type]) => {
  test('negative ones too, with the tenant in the table, page by page', async () => {
    await environment.admin.query(`
      create table public.traces (id ${type} primary key, tenant_id uuid, metadata jsonb);
      grant all on public.traces to public`)
    await environment.app.query(
      `insert into traces select n, case when n % 10 <> 0 then '00000000-0000-7000-8000-00000000000a'::uuid end, $1::jsonb
         from generate_series(-1000, 1000) n`,
      ['{"tool_interactions": [1]}'],
    )
    await environment.admin.query(`select lighter.attach('public.traces')`)
    // Without a tenant nothing can be offloaded.
    expect((await backfilled('--table', 'traces')).tables).toMatchObject([
      { outcome: 'done', seen: 2001, queued: 1800 },
    ])
    daemon = await startDaemon(environment)
    await drained(environment)
    expect(
      await value(
        environment.admin,
        `select count(*)::int from traces where metadata ? 'tool_interactions_ref'`,
      ),
    ).toBe(1800)
  })
})

test('live rows and those that wait keep their place, dead letters and pinned rows are left alone', async () => {
  const { tenantId, conversationId } = await newConversation(environment)
  const pinnedTenant = await newConversation(environment)
  const [live, waiting, dead, pinned, other] = await Promise.all(
    ['live', 'waiting', 'dead', 'pinned', 'other'].map(mark =>
      insertMessage(environment, conversationId, heavy(mark)),
    ),
  )
  await insertMessage(environment, pinnedTenant.conversationId, heavy('of a pinned tenant'))
  const source = await value<number>(environment.admin, 'select id from lighter.sources')
  await environment.admin.query('delete from lighter.inbox where row_id <> $1', [live])
  await environment.admin.query(
    `insert into lighter.waiting (source_id, row_id, attempts, available_at, last_error) values ($1, $2, 3, now() + interval '1 hour', 'x')`,
    [source, waiting],
  )
  await environment.admin.query(
    `insert into lighter.failed_jobs (source_id, row_id, attempts, enqueued_at, last_error) values ($1, $2, 9, now(), 'x')`,
    [source, dead],
  )
  await environment.admin.query(
    `insert into lighter.pins (source_id, row_id, tenant_id) values ($1, $2, null), ($1, null, $3)`,
    [source, pinned, pinnedTenant.tenantId],
  )
  expect((await backfilled('--tenant', randomUUID())).tables).toMatchObject([{ queued: 0, seen: 6 }])
  // What is in the inbox is not looked up there: it is first there, and the second look finds nothing.
  expect((await backfilled('--tenant', tenantId.toUpperCase())).tables).toMatchObject([
    { queued: 2, seen: 6 },
  ])
  expect(await jobs('priority = 10')).toEqual([live, other].sort())
  expect(await jobs(`priority = 0 and place = 'inbox'`)).toEqual([live])
  expect(
    await column(
      environment.admin,
      `select row_id from lighter.waiting where priority = 0 and attempts = 3 and last_error = 'x' and available_at > now()`,
    ),
  ).toEqual([waiting])
})

test('one that is stopped, or killed, goes on where it was; --restart begins anew', async () => {
  await writeMessages(environment, { messages: 2500, tenants: 2, seed: 12 })
  const all = await rowsToGo()
  await forget()
  for (const signal of ['SIGINT', 'SIGKILL'] as const) {
    const already = (await jobs()).length
    const backfill = startCli(['backfill', '--rate', '50', '--json'], { env: environment.env })
    await until(async () => (await jobs()).length > already, 'a page is enqueued')
    await until(
      async () =>
        (await value(environment.admin, 'select count(position)::int from lighter.backfills')) === 1,
      'the position is saved',
    )
    expect((await cli('backfill')).stderr).toContain('another process backfills')
    backfill.signal(signal)
    const { code, stdout } = await backfill.ended
    if (signal === 'SIGINT') {
      expect(code).toBe(0)
      expect(JSON.parse(stdout)).toMatchObject({ tables: [{ outcome: 'stopped', resumed: false }] })
    }
  }
  expect((await jobs()).length).toBeLessThan(all.length)
  // Also were another pass not finished, for something else.
  expect((await backfilled('--older-than', '1d')).tables).toMatchObject([
    { seen: 2500, queued: 0, resumed: false },
  ])
  const [done] = (await backfilled()).tables
  expect(done).toMatchObject({ outcome: 'done', resumed: true })
  expect(Number(done?.seen)).toBeGreaterThanOrEqual(2500)
  expect(await jobs()).toEqual(all)
  expect(
    await value(
      environment.admin,
      'select count(*)::int from lighter.backfills where finished_at is not null',
    ),
  ).toBe(2)
  await forget()
  expect((await backfilled('--restart')).tables).toMatchObject([
    { resumed: false, seen: 2500, queued: all.length },
  ])
})

test('it waits while too many of its jobs are queued, and goes on when daemons have worked them off', async () => {
  const { conversationId } = await newConversation(environment)
  await environment.app.query(
    `insert into conversation_messages (conversation_id, role, content, metadata)
     select $1, 'assistant', '', '{"tool_interactions": [1]}' from generate_series(1, 3000)`,
    [conversationId],
  )
  await forget()
  const backfill = startCli(['backfill', '--max-queue', '100', '--json'], { env: environment.env })
  await until(async () => (await jobs()).length > 0, 'the first page is enqueued')
  const first = (await jobs()).length
  await new Promise(resolve => setTimeout(resolve, 1500))
  expect((await jobs()).length).toBe(first)
  expect(backfill.hasEnded()).toBe(false)
  daemon = await startDaemon(environment)
  expect(JSON.parse((await backfill.ended).stdout)).toMatchObject({
    tables: [{ outcome: 'done', queued: 3000 }],
  })
  await drained(environment)
  expect(await offloadedRows(environment)).toBe(3000)
})

describe('by age', () => {
  test('only what is old enough goes, by created_at or the column that is named', async () => {
    const { conversationId } = await newConversation(environment)
    const [old, young] = await Promise.all(
      ['old', 'young'].map(m => insertMessage(environment, conversationId, heavy(m))),
    )
    await environment.admin.query(`alter table conversation_messages add sent_on date default '2020-01-01'`)
    await environment.admin.query(
      `update conversation_messages set created_at = now() - interval '8 days' where id = $1`,
      [old],
    )
    await forget()
    expect((await backfilled('--older-than', '9d')).tables).toMatchObject([{ queued: 0 }])
    expect((await backfilled('--older-than', '7d')).tables).toMatchObject([{ queued: 1 }])
    expect(await jobs()).toEqual([old])
    const refused = await cli('backfill', '--older-than', '7d', '--age-column', 'sent_on')
    expect(refused).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/grant select \(sent_on\) on public.conversation_messages/),
    })
    await environment.admin.query('grant select (sent_on) on conversation_messages to lighter_daemon')
    expect((await backfilled('--older-than', '2021-01-01', '--age-column', 'sent_on')).tables).toMatchObject([
      { queued: 1 },
    ])
    expect(await jobs()).toEqual([old, young].sort())
  })

  test('a pass that was stopped is not gone on with by another column', async () => {
    await environment.admin.query(`
      alter table conversation_messages add sent_at timestamptz default '2020-01-01';
      grant select (sent_at) on conversation_messages to lighter_daemon`)
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, heavy('young, and sent long ago'))
    await forget()
    expect((await backfilled('--older-than', '7d')).tables).toMatchObject([{ queued: 0 }])
    // As a process leaves it that was killed after the last page.
    await environment.admin.query('update lighter.backfills set finished_at = null')
    expect((await backfilled('--older-than', '7d', '--age-column', 'sent_at')).tables).toMatchObject([
      { queued: 1, resumed: false },
    ])
    expect(await jobs()).toEqual([id])
  })

  test('a table without such a column, a column of another type and an age that is none are errors', async () => {
    await environment.admin.query(`
      create table public.bare (id bigint primary key, tenant_id uuid, metadata jsonb);
      select lighter.attach('public.bare')`)
    const run = (...args: string[]) => cli('backfill', '--table', ...args)
    expect(await run('bare', '--older-than', '7d')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/no column "created_at"[\s\S]*--age-column/),
    })
    expect(await run('bare', '--older-than', '7d', '--age-column', 'tenant_id')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/of type uuid/),
    })
    expect(await run('bare', '--older-than', 'yesterday')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/neither an age nor a date/),
    })
  })

  test.for([
    ['30m', '2026-03-09T23:30:00.000Z'],
    ['12h', '2026-03-09T12:00:00.000Z'],
    ['7d', '2026-03-03T00:00:00.000Z'],
    ['2w', '2026-02-24T00:00:00.000Z'],
    ['2026-01-01', '2026-01-01T00:00:00.000Z'],
    ['2026-01-01T12:00:00+02:00', '2026-01-01T10:00:00.000Z'],
    ['7', null],
    ['7 days', null],
    ['2026-13-01', null],
    ['', null],
  ])('%s', ([text, expected]) => {
    const found = parseAge(text ?? '', new Date('2026-03-10T00:00:00Z'))
    expect(found?.toISOString() ?? null).toBe(expected)
  })
})

test('about how many rows there are is known once they were counted, of partitions together', async () => {
  const { admin, worker } = environment
  await admin.query(`
    create table public.plain (id bigint);
    create table public.parted (id bigint) partition by list (id);
    create table public.part_1 partition of public.parted for values in (1);
    create table public.part_2 partition of public.parted for values in (2);
    insert into plain select 1 from generate_series(1, 300);
    insert into parted select 1 + n % 2 from generate_series(1, 400) n`)
  expect(await estimateRows(worker, 'public.plain')).toBe(null)
  await admin.query('analyze plain; analyze part_1')
  expect(await estimateRows(worker, 'public.plain')).toBe(300)
  expect(await estimateRows(worker, 'public.parted')).toBe(null)
  await admin.query('analyze part_2')
  expect(await estimateRows(worker, 'public.parted')).toBe(400)
})

test('a row that an open transaction is writing does not hold it up, nor the transaction', async () => {
  const { conversationId } = await newConversation(environment)
  const ids = await Promise.all(
    Array.from({ length: 30 }, (_, i) => insertMessage(environment, conversationId, heavy(`${i}`))),
  )
  await forget()
  const writer = await environment.app.connect()
  try {
    await writer.query(`begin; set local lock_timeout = '1ms'`)
    await writer.query(
      `update conversation_messages set metadata = metadata || '{"open": true}' where id = $1`,
      [ids[9]],
    )
    expect((await backfilled()).tables).toMatchObject([{ outcome: 'done', queued: 30 }])
    expect(await jobs()).toEqual([...ids].sort())
    await writer.query(
      `update conversation_messages set metadata = metadata || '{"second": true}' where id = $1`,
      [ids[10]],
    )
    await writer.query('commit')
  } finally {
    writer.release()
  }
  expect(await jobs()).toEqual([...ids, ids[9], ids[10]].sort())
  expect(await jobs(`place = 'waiting'`)).toEqual([...ids].sort())
  daemon = await startDaemon(environment)
  await drained(environment)
  expect(await asJsonbText(environment, String((await hydratedMany(environment, [ids[9] ?? '']))[0]))).toBe(
    await asJsonbText(environment, heavy('9').replace('{', '{"open": true, ')),
  )
})
