// Every way to write a row, times every kind of content: nothing that the plan would offload is missed, and hardly anything
// is queued that it then leaves alone. The plan itself is the judge.
import { randomUUID } from 'node:crypto'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { from as copyFrom } from 'pg-copy-streams'
import { beforeAll, describe, expect, test } from 'vitest'
import { generateMessages } from '../../src/demo/messages.ts'
import { newTokens, planRows } from '../../src/offload/plan.ts'
import { loadSources, type Source } from '../../src/source/sources.ts'
import { newConversation, useEnvironment } from '../support/environment.ts'
import { emptyQueue, leaseRows } from '../support/queue.ts'
import { column, connect, value } from '../support/sql.ts'
import { noiseText } from '../support/tool-calls.ts'

const environment = await useEnvironment()
const { admin } = environment
const tenantId = randomUUID()

const nested = (depth: number, inner: string) => `${'{"a":'.repeat(depth)}${inner}${'}'.repeat(depth)}`

/** JSON text by name, and whether something of it leaves. */
const contents: Record<string, [json: string | null, leaves: boolean]> = {
  null: [null, false],
  small: ['{"model": "m", "usage": {"tokens": 12}}', false],
  'tool call': ['{"tool_interactions": [{"name": "search"}]}', true],
  'tool calls that are none': ['{"tool_interactions": []}', false],
  'tool call as an object': ['{"tool_interactions": {"name": "search"}}', true],
  'tool call deeper down': ['{"inner": {"tool_interactions": [1]}}', false],
  'long, compressible': [JSON.stringify({ text: 'x'.repeat(9000) }), true],
  'long, incompressible': [JSON.stringify({ text: noiseText(9000) }), true],
  'just below the threshold': [JSON.stringify({ text: noiseText(7900) }), false],
  'control characters': [JSON.stringify({ text: '\u0001'.repeat(1400) }), true],
  'escaped quotes and lines': [JSON.stringify({ code: '"\n'.repeat(2100) }), true],
  'beyond ASCII': [JSON.stringify({ text: 'ä€𝄞'.repeat(1000) }), true],
  'short numbers': [JSON.stringify({ n: Array.from({ length: 3000 }, (_, n) => n % 10) }), true],
  'numbers that are long only as text': ['{"n": [1e8000, 1e8000]}', false],
  booleans: [JSON.stringify({ flags: Array.from({ length: 1500 }, () => false) }), true],
  deep: [nested(200, JSON.stringify(noiseText(9000))), true],
  'deep and small': [nested(200, '1'), false],
  wide: [JSON.stringify(Object.fromEntries(Array.from({ length: 700 }, (_, n) => [`key ${n}`, n]))), true],
  'an array': [JSON.stringify([noiseText(9000)]), true],
  'a small array': ['[1, 2, 3]', false],
  'a scalar': [JSON.stringify(noiseText(9000)), false],
  'what looks like a pointer': [`{"tool_interactions_ref": "${randomUUID()}"}`, false],
}

type Write = (ids: string[], json: (string | null)[]) => Promise<void>

const insertSql =
  'insert into walked (id, tenant_id, metadata) select i, $1, d::jsonb from unnest($2::uuid[], $3::text[]) u(i, d)'
/** Rows that are there, with nothing in them, and nothing queued. */
async function present(ids: string[]): Promise<void> {
  await environment.app.query('insert into walked (id, tenant_id) select i, $1 from unnest($2::uuid[]) i', [
    tenantId,
    ids,
  ])
}

const writes: Record<string, Write> = {
  'an insert': async (ids, json) => {
    for (const [n, id] of ids.entries())
      await environment.app.query('insert into walked values ($1, $2, $3)', [id, tenantId, json[n]])
  },
  'an insert of many rows': async (ids, json) => {
    await environment.app.query(insertSql, [tenantId, ids, json])
  },
  // What is read from a table is compressed already.
  'INSERT … SELECT from another table': async (ids, json) => {
    await environment.app.query(
      'insert into kept (id, metadata) select i, d::jsonb from unnest($1::uuid[], $2::text[]) u(i, d)',
      [ids, json],
    )
    await environment.app.query(
      'insert into walked (id, tenant_id, metadata) select id, $1, metadata from kept where id = any ($2)',
      [tenantId, ids],
    )
  },
  'an update': async (ids, json) => {
    await present(ids)
    for (const [n, id] of ids.entries())
      await environment.app.query('update walked set metadata = $2 where id = $1', [id, json[n]])
  },
  'an update with what another table has': async (ids, json) => {
    await present(ids)
    await environment.app.query(
      'insert into kept (id, metadata) select i, d::jsonb from unnest($1::uuid[], $2::text[]) u(i, d)',
      [ids, json],
    )
    await environment.app.query(
      'update walked w set metadata = k.metadata from kept k where k.id = w.id and w.id = any ($1)',
      [ids],
    )
  },
  'an upsert': async (ids, json) => {
    await present(ids)
    await environment.app.query(`${insertSql} on conflict (id) do update set metadata = excluded.metadata`, [
      tenantId,
      ids,
      json,
    ])
  },
  'a MERGE': async (ids, json) => {
    await present(ids.slice(1))
    await environment.app.query(
      `merge into walked w using (select i, d::jsonb as d from unnest($2::uuid[], $3::text[]) u(i, d)) s on s.i = w.id
       when matched then update set metadata = s.d
       when not matched then insert (id, tenant_id, metadata) values (s.i, $1, s.d)`,
      [tenantId, ids, json],
    )
  },
  COPY: async (ids, json) => {
    const client = await connect(environment.urls.application)
    try {
      const lines = ids.map((id, n) => {
        const text = json[n]
        return `${id}\t${tenantId}\t${text == null ? '\\N' : text.replaceAll('\\', '\\\\')}\n`
      })
      await pipeline(
        Readable.from(lines),
        client.query(copyFrom('copy walked (id, tenant_id, metadata) from stdin')),
      )
    } finally {
      await client.end()
    }
  },
  'a write in a savepoint': async (ids, json) => {
    const client = await connect(environment.urls.application)
    try {
      await client.query('begin; savepoint s')
      await client.query(insertSql, [tenantId, ids, json])
      await client.query('release s; commit')
    } finally {
      await client.end()
    }
  },
  'a function of the application': async (ids, json) => {
    await environment.app.query(
      `select write_walked(i, $1, d::jsonb) from unnest($2::uuid[], $3::text[]) u(i, d)`,
      [tenantId, ids, json],
    )
  },
}

let source: Source

beforeAll(async () => {
  await admin.query(`
    create table walked (id uuid primary key, tenant_id uuid not null, metadata jsonb);
    create table kept (id uuid primary key, metadata jsonb);
    create function write_walked(id uuid, tenant uuid, doc jsonb) returns void language plpgsql as $$
    begin
      insert into walked values (id, tenant, doc);
    exception when unique_violation then
      update walked w set metadata = doc where w.id = write_walked.id;
    end $$;
    grant select, insert, update, delete on walked, kept to example_app`)
  const id = await value<number>(admin, `select lighter.attach('walked')`)
  source = (await loadSources(environment.worker)).get(id) as Source
})

const queued = async (ids: string[]) =>
  new Set(await column<string>(admin, 'select row_id from lighter.inbox where row_id = any ($1)', [ids]))

/** Of the given rows, those that have something to offload. */
async function heavyOf(ids: string[], of = source): Promise<Set<string>> {
  const { jobs } = await leaseRows(admin, of.id, ids)
  const { offload } = environment.config()
  const planned = await planRows(
    environment.worker,
    of,
    jobs,
    { ...offload, budgetBytes: 2 ** 40 },
    newTokens(),
  )
  return new Set(planned.filter(row => row.outcome === 'offload').map(row => row.job.rowId))
}

describe.for(Object.entries(writes))('%s', ([, write]) => {
  test('queues what is heavy, and of the rest only what can not be told from it', async () => {
    await emptyQueue(environment)
    const ids = Object.keys(contents).map(() => randomUUID())
    await write(
      ids,
      Object.values(contents).map(([json]) => json),
    )
    const seen = await queued(ids)
    const heavy = await heavyOf(ids)
    const wrong: string[] = []
    const inVain: string[] = []
    for (const [n, [name, [, leaves]]] of Object.entries(contents).entries()) {
      const id = ids[n] ?? ''
      if (heavy.has(id) !== leaves) wrong.push(`${name}: ${leaves ? 'stays' : 'leaves'}`)
      if (leaves && !seen.has(id)) wrong.push(`${name}: missed`)
      if (!leaves && seen.has(id)) inVain.push(name)
    }
    expect(wrong).toEqual([])
    expect(inVain.filter(name => !mayBeQueued.has(name))).toEqual([])
  })
})

/** One look at the row is needed to tell. */
const mayBeQueued = new Set([
  'tool calls that are none',
  'just below the threshold',
  'a scalar',
  'numbers that are long only as text',
  'deep and small',
])

test('an update of another column queues nothing, of a table without a trigger that may change the row before', async () => {
  const ids = Object.keys(contents).map(() => randomUUID())
  await writes['an insert of many rows']?.(
    ids,
    Object.values(contents).map(([json]) => json),
  )
  await emptyQueue(environment)
  await environment.app.query('update walked set tenant_id = tenant_id where id = any ($1)', [ids])
  expect(await queued(ids)).toEqual(new Set())
})

test('of a table with such a trigger it queues what is heavy', async () => {
  await admin.query(`
    create table triggered (id uuid primary key, tenant_id uuid not null, metadata jsonb, note text);
    create function fill_in() returns trigger language plpgsql as $$
    begin
      if new.note = 'fill' then new.metadata := jsonb_build_object('tool_interactions', jsonb_build_array(1)); end if;
      return new;
    end $$;
    create trigger fill_in before update on triggered for each row execute function fill_in();
    grant select, insert, update on triggered to example_app`)
  const id = await value<number>(admin, `select lighter.attach('triggered')`)
  const rowId = randomUUID()
  await environment.app.query('insert into triggered values ($1, $2, null, null)', [rowId, tenantId])
  expect(await queued([rowId])).toEqual(new Set())
  await environment.app.query(`update triggered set note = 'fill' where id = $1`, [rowId])
  expect(await queued([rowId])).toEqual(new Set([rowId]))
  const own = (await loadSources(environment.worker)).get(id) as Source
  expect(await heavyOf([rowId], own)).toEqual(new Set([rowId]))
})

test('a row that moves to another partition is queued there', async () => {
  await admin.query(`
    create table parted (id bigint primary key, tenant_id uuid not null, metadata jsonb) partition by range (id);
    create table parted_low partition of parted for values from (0) to (1000);
    create table parted_high partition of parted for values from (1000) to (2000);
    grant select, insert, update on parted to example_app`)
  await admin.query(`select lighter.attach('parted')`)
  const entries = Object.values(contents)
  await environment.app.query(
    'insert into parted select ord, $1, d::jsonb from unnest($2::text[]) with ordinality u(d, ord)',
    [tenantId, entries.map(([json]) => json)],
  )
  await emptyQueue(environment)
  await environment.app.query('update parted set id = id + 1000')
  const seen = await queued(entries.map((_, n) => String(n + 1001)))
  const missed = Object.keys(contents).filter((name, n) => contents[name]?.[1] && !seen.has(String(n + 1001)))
  expect(missed).toEqual([])
})

test('of made-up messages hardly any is queued in vain', async () => {
  await emptyQueue(environment)
  const { conversationId } = await newConversation(environment, tenantId)
  const messages = [...generateMessages({ seed: 5, messages: 2000, tenants: 1, largeBytes: 100_000 })]
  const ids = messages.map(() => randomUUID())
  await environment.app.query(
    `insert into conversation_messages (id, conversation_id, role, content, metadata)
     select i, $1, 'assistant', '', d::jsonb from unnest($2::uuid[], $3::text[]) u(i, d)`,
    [conversationId, ids, messages.map(m => m.metadata)],
  )
  const own = [...(await loadSources(environment.worker)).values()].find(s =>
    s.tableSql.endsWith('conversation_messages'),
  )
  if (own === undefined) throw new Error('conversation_messages is not attached')
  const seen = await queued(ids)
  const heavy = await heavyOf(ids, own)
  expect([...heavy].filter(id => !seen.has(id))).toEqual([])
  const inVain = [...seen].filter(id => !heavy.has(id)).length
  expect(heavy.size).toBeGreaterThan(300)
  expect(inVain / heavy.size).toBeLessThan(0.15)
})
