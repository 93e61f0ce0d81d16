import { randomUUID } from 'node:crypto'
import type pg from 'pg'
import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { type EmbeddedUrls, prepareEmbeddedDatabase } from '../../src/embedded/prepare.ts'
import { claimInbox } from '../../src/offload/claim.ts'
import { settle } from '../../src/offload/settle.ts'
import type { TestPostgres } from '../support/backends/backend.ts'
import { startPostgresBeside } from '../support/backends/start.ts'
import { insertMessage, newConversation, until, useEnvironment } from '../support/environment.ts'
import { emptyQueue } from '../support/queue.ts'
import { asRole, backendPid, column, connect, errorOf, uniqueRole, value } from '../support/sql.ts'

const environment = await useEnvironment()
let conversationId: string
let sourceId: number

beforeAll(async () => {
  conversationId = (await newConversation(environment)).conversationId
  sourceId = await value(environment.admin, 'select id from lighter.sources')
})
beforeEach(async () => {
  await emptyQueue(environment)
})

const queued = () => column<string>(environment.admin, 'select row_id from lighter.jobs order by row_id')
const places = () => column<string>(environment.admin, 'select place from lighter.jobs order by place')

const insert = (metadata: string | null, db?: Pick<pg.Pool, 'query'>) =>
  insertMessage(environment, conversationId, metadata, db)

/** A string value such that octet_length(metadata::text) is exactly `bytes`, made of `character`. */
function textOf(bytes: number, character = 'x'): string {
  const room = bytes - '{"text": ""}'.length
  const width = Buffer.byteLength(character)
  return `{"text": "${character.repeat(Math.floor(room / width))}${'x'.repeat(room % width)}"}`
}

describe('a write enqueues its row, or one that the daemon then leaves alone,', () => {
  const cases: [string, string | null, boolean][] = [
    ['no metadata', null, false],
    ['an empty object', '{}', false],
    ['a small object', '{"model": "m", "usage": {"tokens": 12}}', false],
    ['a small array', '[1, 2, {"tool_interactions": [1]}]', false],
    ['a string', '"model"', false],
    ['a number', '1e400', false],
    ['JSON null', 'null', false],
    ['tool_interactions null', '{"tool_interactions": null}', true],
    ['an empty array of tool_interactions', '{"tool_interactions": []}', true],
    ['an empty object of tool_interactions', '{"tool_interactions": {}}', true],
    ['a string of tool_interactions', '{"tool_interactions": "[1]"}', true],
    ['a number of tool_interactions', '{"tool_interactions": 7}', true],
    ['true for tool_interactions', '{"tool_interactions": true}', true],
    ['tool_interactions further down', '{"a": {"tool_interactions": [1]}}', false],
    ['what is left after offloading', '{"tool_interactions_ref": "x", "tool_interactions_count": 1}', false],
    ['one tool interaction', '{"tool_interactions": [1]}', true],
    ['an array that holds an empty one', '{"tool_interactions": [[]]}', true],
    ['an object of tool_interactions', '{"tool_interactions": {"a": 1}}', true],
    ['so little that its text is surely under the threshold', textOf(1300), false],
    ['a sixth of the threshold, which control characters could make the whole', textOf(1400), true],
    ['characters that are six in its text', JSON.stringify({ t: '\u0001'.repeat(1332) }), true],
    ['8,000 bytes of text', textOf(8000), true],
    ['8,001 bytes of text', textOf(8001), true],
    ['8,000 bytes in fewer characters', textOf(8000, '日'), true],
    ['8,001 bytes in fewer characters', textOf(8001, '日'), true],
    ['8,001 bytes of astral characters', textOf(8001, '🚢'), true],
    ['8,001 bytes only with the spaces that Postgres puts in', textOf(8001).replace(': ', ':'), true],
    ['8,000 bytes when its own spaces are gone', textOf(8000).replace(': ', ' :  '), true],
    ['100 KB that compress to next to nothing', `{"text": "${' '.repeat(100_000)}"}`, true],
    ['a large array', JSON.stringify(Array.from({ length: 4000 }, (_, i) => i)), true],
    ['a large string', JSON.stringify('x'.repeat(9000)), true],
  ]
  test.each(cases)('or not, of %s', async (_, metadata, enqueues) => {
    const inserted = await insert(metadata)
    expect(await queued()).toEqual(enqueues ? [inserted] : [])
    await emptyQueue(environment)
    const updated = await insert('{}')
    await environment.app.query('update conversation_messages set metadata = $2 where id = $1', [
      updated,
      metadata,
    ])
    expect(await queued()).toEqual(enqueues ? [updated] : [])
  })

  test('the lengths above are what they say they are', async () => {
    for (const character of ['x', '日', '🚢']) {
      for (const bytes of [8000, 8001]) {
        expect(
          await value(environment.admin, 'select octet_length($1::jsonb::text)', [textOf(bytes, character)]),
        ).toBe(bytes)
      }
    }
  })

  test('as a fresh, live job of its source', async () => {
    const id = await insert('{"tool_interactions": [1]}')
    const { rows } = await environment.admin.query(
      'select source_id, row_id, place, priority, attempts, conflicts, last_error, available_at <= now() as due from lighter.jobs',
    )
    expect(rows).toEqual([
      {
        source_id: sourceId,
        row_id: id,
        place: 'inbox',
        priority: 0,
        attempts: 0,
        conflicts: 0,
        last_error: null,
        due: true,
      },
    ])
  })

  test('unless the update was of other columns', async () => {
    const id = await insert('{"tool_interactions": [1]}')
    await emptyQueue(environment)
    await environment.app.query(
      `update conversation_messages set content = 'edited', role = 'user' where id = $1`,
      [id],
    )
    expect(await queued()).toEqual([])
    // Setting it to what it was is a write of it all the same.
    await environment.app.query('update conversation_messages set metadata = metadata where id = $1', [id])
    expect(await queued()).toEqual([id])
  })

  test('once for each write, and what was written twice is claimed as one', async () => {
    const heavy = await environment.app.query<{ id: string }>(
      `insert into conversation_messages (conversation_id, role, content, metadata)
       select $1, 'assistant', '', case when n % 2 = 0 then '{"tool_interactions": [1]}'::jsonb else '{}' end
         from generate_series(1, 1000) n
       returning id, metadata <> '{}' as heavy`,
      [conversationId],
    )
    const ids = heavy.rows.filter(row => 'heavy' in row && row.heavy).map(row => row.id)
    expect(ids).toHaveLength(500)
    expect(await queued()).toEqual(ids.sort())
    // No row had a subtransaction that wrote: each would have taken a transaction id.
    expect(await value(environment.admin, 'select count(distinct xmin::text)::int from lighter.inbox')).toBe(
      1,
    )
    await environment.app.query(
      `update conversation_messages set metadata = metadata || '{"again": true}' where id = any ($1)`,
      [ids],
    )
    expect(await queued()).toEqual([...ids, ...ids].sort())
    const { lease, entries } = await claimInbox(environment.worker, [sourceId], 2000, 60_000)
    expect(entries).toBe(1000)
    expect(lease?.jobs.map(job => job.rowId).sort()).toEqual(ids)
    expect(await queued()).toEqual(ids)
  })

  test('with the upsert and the merge that an application may use', async () => {
    const id = await insert('{}')
    await environment.app.query(
      `insert into conversation_messages (id, conversation_id, role, content) values ($1, $2, 'user', '')
       on conflict (id) do update set metadata = '{"tool_interactions": [1]}'`,
      [id, conversationId],
    )
    expect(await queued()).toEqual([id])
    await emptyQueue(environment)
    await environment.app.query(
      `merge into conversation_messages m using (select $1::uuid as id) s on s.id = m.id
       when matched then update set metadata = '{"tool_interactions": [2]}'`,
      [id],
    )
    expect(await queued()).toEqual([id])
  })

  test('not when it is rolled back, in whole or to a savepoint', async () => {
    const client = await connect(environment.urls.application)
    try {
      await client.query('begin')
      await insert('{"tool_interactions": [1]}', client)
      await client.query('rollback')
      expect(await queued()).toEqual([])
      await client.query('begin; savepoint s')
      await insert('{"tool_interactions": [1]}', client)
      await client.query('rollback to savepoint s')
      const kept = await insert('{"tool_interactions": [2]}', client)
      await client.query('commit')
      expect(await queued()).toEqual([kept])
    } finally {
      await client.end()
    }
  })
})

describe('the application', () => {
  test('needs no right on our schema, has none, and can not call the functions by itself', async () => {
    const { rows } = await environment.app.query(
      `select has_schema_privilege('lighter', 'usage') as schema,
              (select bool_or(has_table_privilege(c.oid, 'select, insert, update, delete')) from pg_class c
                where c.relnamespace = (select oid from pg_namespace where nspname = 'lighter') and c.relkind in ('r', 'v')) as tables,
              (select bool_or(has_sequence_privilege(c.oid, 'usage, select, update')) from pg_class c
                where c.relnamespace = (select oid from pg_namespace where nspname = 'lighter') and c.relkind = 'S') as sequences,
              (select array_agg(p.proname::text) from pg_proc p
                where p.pronamespace = (select oid from pg_namespace where nspname = 'lighter') and has_function_privilege(p.oid, 'execute')) as functions`,
    )
    // What the trigger's condition asks is asked by whoever writes; it looks at its argument only.
    expect(rows).toEqual([
      { schema: false, tables: false, sequences: false, functions: [`heavy_${sourceId}`] },
    ])
    for (const call of [`heavy_${sourceId}('{}')`, `enqueue_${sourceId}()`]) {
      expect((await errorOf(environment.app.query(`select lighter.${call}`))).code).toBe('42501')
    }
    const id = await insert('{"tool_interactions": [1]}')
    expect(await queued()).toEqual([id])
  })

  test('can not turn the function against other rows by a trigger of its own', async () => {
    const role = uniqueRole('schemer')
    await environment.admin.query(`create role ${role}; create schema ${role} authorization ${role}`)
    try {
      const attempt = asRole(environment.admin, role, async db => {
        await db.query(`create table ${role}.t (id text, metadata jsonb)`)
        await db.query(
          `create trigger t after insert on ${role}.t for each row execute function lighter.enqueue_${sourceId}()`,
        )
      })
      expect((await errorOf(attempt)).code).toBe('42501')
    } finally {
      await environment.admin.query(`drop schema ${role} cascade; drop role ${role}`)
    }
  })

  test('writes as a role that row-level security binds', async () => {
    const role = uniqueRole('limited')
    await environment.admin.query(`
      create table guarded (id int primary key, tenant_id uuid, metadata jsonb);
      alter table guarded enable row level security;
      create role ${role};
      grant insert, select, update on guarded to ${role};
      create policy own on guarded for all to ${role} using (id < 10) with check (id < 10);
      select lighter.attach('guarded')`)
    try {
      const write = (id: number) =>
        asRole(environment.admin, role, db =>
          db.query(`insert into guarded values ($1, null, '{"tool_interactions": [1]}')`, [id]),
        )
      await write(1)
      expect(await queued()).toEqual(['1'])
      expect((await errorOf(write(10))).code).toBe('42501')
      expect(await queued()).toEqual(['1'])
    } finally {
      await environment.admin.query(`select lighter.detach('guarded'); drop table guarded; drop role ${role}`)
    }
  })

  test('writes on when the key was renamed under us; the row stays inline and a warning says why', async () => {
    await environment.admin.query(`
      create table renamed (id int primary key, tenant_id uuid, metadata jsonb);
      grant insert on renamed to example_app;
      select lighter.attach('renamed');
      alter table renamed rename id to number`)
    const client = await connect(environment.urls.application)
    try {
      const warnings: string[] = []
      client.on('notice', notice => warnings.push(notice.message ?? ''))
      await client.query(`insert into renamed values (1, null, '{"tool_interactions": [1]}')`)
      expect(warnings).toEqual([
        'pg-lighter: public.renamed has no key (id) of type integer any more, its rows are not offloaded',
      ])
    } finally {
      await client.end()
      await environment.admin.query(`select lighter.detach('renamed'); drop table renamed`)
    }
  })
})

describe.each(['read committed', 'repeatable read', 'serializable'])('a write in %s', isolation => {
  let writer: pg.Client
  let daemon: pg.Client
  let id: string
  const update = (db: pg.Client, n: number) =>
    db.query(
      `update conversation_messages set metadata = jsonb_build_object('tool_interactions', jsonb_build_array($2::int)) where id = $1`,
      [id, n],
    )
  const claim = async () => {
    const { lease } = await claimInbox(daemon, [sourceId], 100, 60_000)
    if (lease === null) throw new Error('nothing was claimed')
    return lease
  }

  beforeEach(async () => {
    ;[writer, daemon] = await Promise.all([
      connect(environment.urls.application),
      connect(environment.urls.daemon),
    ])
    id = await insert('{"tool_interactions": [0]}')
  })
  afterEach(() => Promise.all([writer.end(), daemon.end()]))

  const written = () =>
    value(
      environment.admin,
      `select metadata -> 'tool_interactions' from conversation_messages where id = $1`,
      [id],
    )

  test('succeeds when its row was claimed since its snapshot was taken, and queues it beside that', async () => {
    await writer.query(`begin isolation level ${isolation}`)
    await writer.query('select count(*) from conversations')
    await claim()
    await update(writer, 1)
    await writer.query('commit')
    expect(await written()).toEqual([1])
    expect(await queued()).toEqual([id, id])
    expect(await places()).toEqual(['inbox', 'lease'])
  })

  test('succeeds when a claim of its row is under way, and waits for nothing', async () => {
    await writer.query(`begin isolation level ${isolation}; set local lock_timeout = '1ms'`)
    await writer.query('select count(*) from conversations')
    await daemon.query('begin')
    await claim()
    await update(writer, 1)
    await writer.query('commit')
    await daemon.query('commit')
    expect(await written()).toEqual([1])
    expect(await queued()).toEqual([id, id])
    expect(await places()).toEqual(['inbox', 'lease'])
  })

  test('succeeds when such a claim is rolled back', async () => {
    await writer.query(`begin isolation level ${isolation}; set local lock_timeout = '1ms'`)
    await daemon.query('begin')
    await claim()
    await update(writer, 1)
    await writer.query('commit')
    await daemon.query('rollback')
    expect(await written()).toEqual([1])
    expect(await queued()).toEqual([id, id])
    expect(await places()).toEqual(['inbox', 'inbox'])
  })

  test('enqueues again when its row was done since its snapshot was taken', async () => {
    await writer.query(`begin isolation level ${isolation}`)
    await writer.query('select count(*) from conversations')
    const lease = await claim()
    await settle(daemon, lease, lease.jobs, [], 8)
    expect(await queued()).toEqual([])
    await update(writer, 1)
    await writer.query('commit')
    expect(await queued()).toEqual([id])
  })

  test('does not make other writers fail', async () => {
    const other = await connect(environment.urls.application)
    try {
      for (const db of [writer, other]) await db.query(`begin isolation level ${isolation}`)
      const ids = [
        await insert('{"tool_interactions": [1]}', writer),
        await insert('{"tool_interactions": [2]}', other),
        await insert('{"tool_interactions": [3]}', writer),
        await insert('{"tool_interactions": [4]}', other),
      ]
      await writer.query('commit')
      await other.query('commit')
      expect(await queued()).toEqual([id, ...ids].sort())
    } finally {
      await other.end()
    }
  })
})

test.each([
  ['requeue', 'inbox'],
  ['retry', 'waiting'],
])('a %s of rows that an open transaction writes waits for nobody, and nobody for it', async (way, place) => {
  const [writer, operator] = [
    await connect(environment.urls.application),
    await connect(environment.urls.daemon),
  ]
  try {
    const ids = [await insert('{}'), await insert('{}')].sort()
    const heavy = (id: string | undefined) =>
      writer.query(`update conversation_messages set metadata = '{"tool_interactions": [1]}' where id = $1`, [
        id,
      ])
    if (way === 'retry') {
      await environment.admin.query(
        `insert into lighter.failed_jobs (source_id, row_id, attempts, enqueued_at, last_error)
         select $1, id, 1, now(), 'x' from unnest($2::text[]) id`,
        [sourceId, ids],
      )
    }
    // The writer has queued the second row; the operator queues both; and then the writer comes to the first.
    for (const db of [writer, operator]) await db.query(`begin; set local lock_timeout = '1ms'`)
    await heavy(ids[1])
    const done =
      way === 'retry'
        ? await value(operator, 'select lighter.retry()::int')
        : await value(operator, `select lighter.requeue('conversation_messages', $1)::int`, [ids])
    expect(done).toBe(2)
    await heavy(ids[0])
    await writer.query('commit')
    await operator.query('commit')
    expect(await queued()).toEqual([...ids, ...ids].sort())
    expect(await places()).toEqual(['inbox', 'inbox', place, place])
  } finally {
    await Promise.all([writer.end(), operator.end()])
  }
})

describe('a notification', () => {
  let listener: pg.Client
  let heard: string[]
  beforeEach(async () => {
    listener = await connect(environment.urls.daemon)
    heard = []
    listener.on('notification', ({ channel, payload }) => heard.push(`${channel} ${payload}`))
    // A sleeping daemon, to a trigger: somebody who would hear it.
    await listener.query('listen lighter_jobs; listen marker')
    await say(1, 'asleep')
  })
  afterEach(async () => {
    await listener.end()
    for (const n of [1, 2, 3]) await say(n, 'gone')
  })

  /** What daemon `n` says of itself. */
  const say = (n: number, state: 'asleep' | 'awake' | 'gone', forMs = 60_000) =>
    environment.worker.query(`select lighter.daemon_says(lpad($1::text, 32, '0')::uuid, $2, $3)`, [
      n,
      state === 'gone' ? null : state === 'asleep',
      forMs,
    ])

  const wake = 'lighter_jobs {}'

  /** What was heard up to now: notifications come in the order of commits, so after ours nothing older comes. */
  async function heardSoFar(): Promise<string[]> {
    const marker = randomUUID()
    const mine = new Promise<void>(resolve => {
      listener.on('notification', ({ payload }) => payload === marker && resolve())
    })
    await environment.admin.query('select pg_notify($1, $2)', ['marker', marker])
    await mine
    return heard.filter(line => !line.startsWith('marker '))
  }

  test('is sent when every daemon sleeps', async () => {
    await insert('{"tool_interactions": [1]}')
    expect(await heardSoFar()).toEqual([wake])
    await insert('{}')
    expect(await heardSoFar()).toEqual([wake])
  })

  test('is not sent when no daemon is there to hear it: writes only queue', async () => {
    await say(1, 'gone')
    const id = await insert('{"tool_interactions": [1]}')
    expect(await heardSoFar()).toEqual([])
    expect(await queued()).toContain(id)
  })

  test('is not sent while a daemon is awake, and is again when the last one sleeps', async () => {
    await say(2, 'awake')
    await say(3, 'awake')
    await insert('{"tool_interactions": [1]}')
    expect(await heardSoFar()).toEqual([])
    await say(2, 'asleep')
    await insert('{"tool_interactions": [2]}')
    expect(await heardSoFar()).toEqual([])
    await say(3, 'gone')
    const id = await insert('{"tool_interactions": [3]}')
    expect(await heardSoFar()).toEqual([wake])
    expect(await queued()).toContain(id)
  })

  test('is sent again, once one that is left says that it sleeps, when a daemon has died awake', async () => {
    await say(2, 'awake', 200)
    await insert('{"tool_interactions": [1]}')
    expect(await heardSoFar()).toEqual([])
    await until(
      () =>
        value(environment.admin, 'select until < clock_timestamp() from lighter.daemons where not asleep'),
      'what it said holds no more',
    )
    await say(1, 'asleep')
    await insert('{"tool_interactions": [2]}')
    expect(await heardSoFar()).toEqual([wake])
  })

  test('is not sent when all that slept are dead', async () => {
    await say(1, 'asleep', 200)
    await until(
      () => value(environment.admin, 'select until < clock_timestamp() from lighter.daemons'),
      'what it said holds no more',
    )
    await insert('{"tool_interactions": [1]}')
    expect(await heardSoFar()).toEqual([])
  })

  test('follows what daemons say at the same time: of two that contradict each other none is lost', async () => {
    await Promise.all(
      Array.from({ length: 40 }, (_, n) => say(1 + (n % 3), n % 2 === 0 ? 'awake' : 'asleep')),
    )
    const expected = `select case when bool_and(asleep) then (extract(epoch from max(until)) * 1000)::bigint else 0 end from lighter.daemons`
    expect(await value(environment.admin, 'select last_value from lighter.notify_until')).toBe(
      await value(environment.admin, expected),
    )
  })

  test('is decided by what daemons say now, however old the snapshot of the writer is', async () => {
    const client = await connect(environment.urls.application)
    try {
      await client.query('begin isolation level repeatable read; select count(*) from conversations')
      await say(2, 'awake')
      await insert('{"tool_interactions": [1]}', client)
      await client.query('commit')
      expect(await heardSoFar()).toEqual([])
      await client.query('begin isolation level repeatable read; select count(*) from conversations')
      await say(2, 'asleep')
      await insert('{"tool_interactions": [1]}', client)
      await client.query('commit')
      expect(await heardSoFar()).toEqual([wake])
    } finally {
      await client.end()
    }
  })

  test('is sent once per transaction, by whichever of its rows finds all asleep', async () => {
    const client = await connect(environment.urls.application)
    try {
      await client.query('begin')
      for (let n = 0; n < 3; n++) await insert('{"tool_interactions": [1]}', client)
      await client.query('commit')
      expect(await heardSoFar()).toEqual([wake])

      // The first row finds a daemon awake, the second one none.
      await say(2, 'awake')
      await client.query('begin')
      await insert('{"tool_interactions": [1]}', client)
      await client.query('commit')
      expect(await heardSoFar()).toEqual([wake])
      await client.query('begin')
      await insert('{"tool_interactions": [1]}', client)
      await say(2, 'gone')
      await insert('{"tool_interactions": [1]}', client)
      await client.query('commit')
      expect(await heardSoFar()).toEqual([wake, wake])
    } finally {
      await client.end()
    }
  })

  test('is not sent by a write that is rolled back, nor lost with a savepoint', async () => {
    const client = await connect(environment.urls.application)
    try {
      await client.query('begin')
      await insert('{"tool_interactions": [1]}', client)
      await client.query('rollback')
      expect(await heardSoFar()).toEqual([])
      await client.query('begin; savepoint s')
      await insert('{"tool_interactions": [1]}', client)
      await client.query('rollback to savepoint s')
      await insert('{"tool_interactions": [1]}', client)
      await client.query('commit')
      expect(await heardSoFar()).toEqual([wake])
    } finally {
      await client.end()
    }
  })

  test('is decided without a lock that others could hold, and leaves none behind', async () => {
    const client = await connect(environment.urls.application)
    try {
      const pid = await backendPid(client)
      const locks = () =>
        column(
          environment.admin,
          `select locktype from pg_locks where pid = $1 and (locktype = 'advisory' or mode not in ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock', 'ExclusiveLock'))`,
          [pid],
        )
      await client.query('begin')
      await insert('{"tool_interactions": [1]}', client)
      expect(await locks()).toEqual([])
      await client.query('commit')
      expect(await locks()).toEqual([])
    } finally {
      await client.end()
    }
  })

  test.each([
    ['retry', 'select lighter.retry()'],
    ['requeue', `select lighter.requeue('conversation_messages', array[gen_random_uuid()::text])`],
  ])('is sent by %s too, when every daemon sleeps', async (_, sql) => {
    await environment.worker.query(sql)
    expect(await heardSoFar()).toEqual([wake])
  })
})

// A server of its own, whose queue of notifications is small enough to fill.
test('a full queue of notifications does not make a write fail', async () => {
  const server = await startPostgresBeside({ max_notify_queue_pages: '64' })
  try {
    const urls = await preparedDatabase(server)
    const [listener, writer] = [await connect(urls.admin), await connect(urls.application)]
    // One that listens and does not read holds the queue.
    await listener.query('listen noise')
    await listener.query('begin')
    const notify = () => writer.query(`select pg_notify('noise', repeat('x', 7000) || clock_timestamp())`)
    for (;;) {
      const failed = await notify().then(
        () => false,
        (error: Error) => error.message.includes('too many notifications'),
      )
      if (failed) break
    }
    await writer.query(
      `with c as (insert into conversations (tenant_id) values (gen_random_uuid()) returning id)
       select set_config('test.conversation', id::text, false) from c`,
    )
    await writer.query(
      `insert into conversation_messages (conversation_id, role, content, metadata)
       values (current_setting('test.conversation')::uuid, 'assistant', '', '{"tool_interactions": [1]}')`,
    )
    expect(await value(listener, 'select count(*)::int from lighter.jobs')).toBe(1)
    await Promise.all([listener.end(), writer.end()])
  } finally {
    await server.stop()
  }
})

async function preparedDatabase(server: TestPostgres): Promise<EmbeddedUrls> {
  const client = await connect(server.url())
  try {
    return await prepareEmbeddedDatabase(client, server, 'notify', { withExampleTables: true })
  } finally {
    await client.end()
  }
}
