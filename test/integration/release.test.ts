// Release: what no row points to any more goes, in its time; what any row points to, by whatever way, stays.
import { randomUUID } from 'node:crypto'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import {
  asJsonbText,
  drained,
  hydrated,
  insertMessage,
  newConversation,
  startDaemon,
  useFreshEnvironment,
} from '../support/environment.ts'
import { column, value } from '../support/sql.ts'
import { age, runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()
let daemon: Daemon

beforeEach(async () => {
  daemon = await startDaemon(environment)
})
afterEach(async () => {
  await daemon.stop()
})

const heavy = (note: string) =>
  JSON.stringify({ note, tool_interactions: [{ call: note }], trace: 'x'.repeat(9000) })

/** Released in one run, given a tombstone in the next that is a grace period later. */
async function releaseTwice() {
  await age(environment, '2 hours')
  await runNow(environment, 'release')
  await age(environment, '8 days')
  await environment.admin.query(`update artifact_refs set released_at = released_at - interval '8 days'`)
  return runNow(environment, 'release')
}

async function live(): Promise<number> {
  const { rows } = await environment.admin.query<{ n: number }>(
    'select count(*)::int as n from artifact_refs where deleted_at is null',
  )
  return rows[0]?.n ?? 0
}

test('a deleted message, a cascade and an overwritten pointer', async () => {
  const { conversationId } = await newConversation(environment)
  const doomed = await newConversation(environment)
  const [deleted, overwritten, kept] = await Promise.all(
    ['deleted', 'overwritten', 'kept'].map(note => insertMessage(environment, conversationId, heavy(note))),
  )
  await insertMessage(environment, doomed.conversationId, heavy('cascade'))
  await environment.app.query(
    `insert into conversation_messages (conversation_id, role, content, metadata)
     select $1, 'user', '', m from unnest(array[null, 'null', '[]', '1', '"text"', '{}']::jsonb[]) m`,
    [conversationId],
  )
  await drained(environment)
  expect(await live()).toBe(8)
  await environment.app.query('delete from conversation_messages where id = $1', [deleted])
  await environment.app.query('delete from conversations where id = $1', [doomed.conversationId])
  await environment.app.query(`update conversation_messages set metadata = '{"plain": 1}' where id = $1`, [
    overwritten,
  ])
  await age(environment, '2 hours')
  expect((await runNow(environment, 'release', { dryRun: true })).counts).toMatchObject({ released: 6 })
  expect((await runNow(environment, 'release')).counts).toMatchObject({ released: 6, tombstoned: 0 })
  expect(await live()).toBe(8)
  expect((await releaseTwice()).counts).toMatchObject({ tombstoned: 6, released: 0 })
  expect(await live()).toBe(2)
  expect(await hydrated(environment, kept ?? '')).toBe(await asJsonbText(environment, heavy('kept')))
  const { rows } = await environment.admin.query(
    'select distinct deleted_reason from artifact_refs where deleted_at is not null',
  )
  expect(rows).toEqual([{ deleted_reason: 'released: no row points to it' }])
})

test('a copy of the row keeps its artifacts after the row itself is deleted', async () => {
  const { conversationId } = await newConversation(environment)
  const id = await insertMessage(environment, conversationId, heavy('copied'))
  await drained(environment)
  const copy = randomUUID()
  await environment.app.query(
    `insert into conversation_messages (id, conversation_id, role, content, metadata)
     select $2, conversation_id, role, content, metadata from conversation_messages where id = $1`,
    [id, copy],
  )
  await environment.app.query('delete from conversation_messages where id = $1', [id])
  expect((await releaseTwice()).counts).toMatchObject({ released: 0, tombstoned: 0 })
  expect(await hydrated(environment, copy)).toBe(await asJsonbText(environment, heavy('copied')))
})

test.each([
  ['in packs', {}, 9000],
  ['streamed', { STREAM_THRESHOLD_BYTES: '65536' }, 100_000],
])(
  'a row offloaded again, on top of the last time, keeps all that its payloads lead to: %s',
  async (_, env, bytes) => {
    await daemon.stop()
    daemon = await startDaemon(environment, { env })
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, heavy('first'))
    await drained(environment)
    for (const n of [1, 2, 3]) {
      await environment.app.query(
        `update conversation_messages set metadata = metadata || jsonb_build_object('more_' || $2::text, repeat('y', $3)) where id = $1`,
        [id, n, bytes],
      )
      await drained(environment)
    }
    const before = await hydrated(environment, id)
    expect(await live()).toBe(5)
    // Each leads to another one, but for the tool calls, and says so.
    expect(
      await column(
        environment.admin,
        `select field from artifact_refs where row_id = $1 and refers_to = '{}'`,
        [id],
      ),
    ).toEqual(['tool_interactions'])
    expect((await releaseTwice()).counts).toMatchObject({ released: 0, tombstoned: 0 })
    expect(await hydrated(environment, id)).toBe(before)
    // As stored before it was noted what payloads point to: nothing of the row is released on a guess.
    await environment.admin.query('update lighter.loose_artifacts set refers_to = null')
    expect((await releaseTwice()).counts).toMatchObject({ released: 0, tombstoned: 0 })
    expect(await hydrated(environment, id)).toBe(before)
    await environment.app.query('delete from conversation_messages where id = $1', [id])
    await releaseTwice()
    expect(await live()).toBe(0)
  },
)

test('what is pointed to again within the grace period is found again', async () => {
  const { conversationId } = await newConversation(environment)
  const id = await insertMessage(environment, conversationId, heavy('held'))
  await drained(environment)
  const { rows } = await environment.app.query(
    'select metadata::text from conversation_messages where id = $1',
    [id],
  )
  await environment.app.query('delete from conversation_messages where id = $1', [id])
  await age(environment, '2 hours')
  expect((await runNow(environment, 'release')).counts).toMatchObject({ released: 2 })
  // The application had the row in hand.
  const again = await insertMessage(environment, conversationId, rows[0].metadata)
  expect((await runNow(environment, 'release')).counts).toMatchObject({ found_again: 2 })
  expect((await releaseTwice()).counts).toMatchObject({ tombstoned: 0 })
  expect(await hydrated(environment, again)).toBe(await asJsonbText(environment, heavy('held')))
})

test('artifacts of a detached table, of the API and on hold are left alone', async () => {
  const { conversationId, tenantId } = await newConversation(environment)
  const id = await insertMessage(environment, conversationId, heavy('held'))
  await drained(environment)
  await environment.admin.query(
    `insert into artifact_refs (tenant_id, kind, r2_key, created_at) values ($1, 'agent_trace', 'x', now() - interval '1 year')`,
    [tenantId],
  )
  await environment.admin.query(
    `insert into lighter.legal_holds (tenant_id, entity_type, entity_id, reason) values ($1, 'conversation', $2, 'case')`,
    [tenantId, conversationId],
  )
  await environment.app.query('delete from conversation_messages where id = $1', [id])
  expect((await releaseTwice()).counts).toMatchObject({ tombstoned: 0 })
  await environment.admin.query('delete from lighter.legal_holds')
  await environment.admin.query(`select lighter.detach('public.conversation_messages')`)
  expect((await releaseTwice()).counts).toMatchObject({ released: 0, tombstoned: 0 })
  expect(await live()).toBe(3)
})

const detach = () => environment.admin.query(`select lighter.detach('public.conversation_messages')`)
const attach = (settings = '') =>
  environment.admin.query(`select lighter.attach('public.conversation_messages'${settings})`)

test('what came off a table before it was detached is released once it is attached again', async () => {
  const { conversationId } = await newConversation(environment)
  const [deleted, before, kept] = await Promise.all(
    ['deleted', 'before', 'kept'].map(note => insertMessage(environment, conversationId, heavy(note))),
  )
  await drained(environment)
  await environment.app.query('delete from conversation_messages where id = $1', [before])
  await detach()
  await environment.app.query('delete from conversation_messages where id = $1', [deleted])
  // Not while nobody can look at the rows.
  expect((await releaseTwice()).counts).toMatchObject({ released: 0, tombstoned: 0 })
  await attach()
  expect(
    await column(environment.worker, 'select f.id = s.id from lighter.former_sources f, lighter.sources s'),
  ).toEqual([false])
  expect((await releaseTwice()).counts).toMatchObject({ tombstoned: 4, released: 0 })
  expect(await live()).toBe(2)
  expect(await hydrated(environment, kept ?? '')).toBe(await asJsonbText(environment, heavy('kept')))
  // However often.
  for (let n = 0; n < 2; n++) {
    await detach()
    await attach()
  }
  await environment.app.query('delete from conversation_messages where id = $1', [kept])
  expect((await releaseTwice()).counts).toMatchObject({ tombstoned: 2 })
  expect(await live()).toBe(0)
})

test('pointers from when a table was attached in another way keep what they lead to', async () => {
  const { conversationId } = await newConversation(environment)
  const id = await insertMessage(environment, conversationId, '{"tool_interactions": [1]}')
  await drained(environment)
  await detach()
  // Nobody who looks at the sources that there are now would take tool_interactions_ref for a pointer.
  await attach(`, phase1_field => 'steps'`)
  expect((await releaseTwice()).counts).toMatchObject({ pointers: 1, released: 0, tombstoned: 0 })
  // Nor in a payload that is put on top of it.
  await environment.app.query(
    `update conversation_messages set metadata = metadata || jsonb_build_object('trace', repeat('x', 9000)) where id = $1`,
    [id],
  )
  await drained(environment)
  expect((await releaseTwice()).counts).toMatchObject({ released: 0, tombstoned: 0 })
  expect(await live()).toBe(2)
  await detach()
  await attach()
  expect(JSON.parse((await hydrated(environment, id)) ?? '')).toEqual({
    tool_interactions: [1],
    trace: 'x'.repeat(9000),
  })
})

test('a table that is gone, another column, and a table of the same name are no reason to release anything', async () => {
  const { conversationId } = await newConversation(environment)
  await environment.admin.query(`
    create table notes (id uuid primary key default gen_random_uuid(), tenant_id uuid not null, metadata jsonb, other jsonb);
    grant all on notes to example_app;
    select lighter.attach('notes')`)
  const note = `insert into notes (tenant_id, metadata) values (gen_random_uuid(), '{"tool_interactions": [1]}')`
  await environment.app.query(note)
  await drained(environment)
  await environment.admin.query(`select lighter.detach('notes'); select lighter.attach('notes', 'other')`)
  await environment.app.query('delete from notes')
  expect((await releaseTwice()).counts).toMatchObject({ released: 0, tombstoned: 0 })
  await environment.admin.query(`
    drop table notes;
    create table notes (id uuid primary key default gen_random_uuid(), tenant_id uuid not null, metadata jsonb);
    select lighter.attach('notes')`)
  await expect(releaseTwice()).rejects.toMatchObject({ code: 'rows_out_of_sight' })
  expect(await live()).toBe(1)
  // Detached when it was gone already: nobody can attach it again.
  const gone = await value<number>(environment.admin, `select max(relation::oid::int) from lighter.sources`)
  await environment.admin.query('drop table notes')
  await environment.admin.query('select lighter.detach($1::oid::regclass)', [gone])
  expect(
    await value(
      environment.admin,
      'select count(*)::int from lighter.former_sources where relation = $1::oid',
      [gone],
    ),
  ).toBe(0)
  await insertMessage(environment, conversationId, heavy('goes on'))
  await drained(environment)
})

test('nothing is released while row-level security may hide rows', async () => {
  const { conversationId } = await newConversation(environment)
  const id = await insertMessage(environment, conversationId, heavy('hidden'))
  await drained(environment)
  await environment.admin.query(`
    alter table conversation_messages enable row level security;
    create policy app on conversation_messages for all to example_app using (true) with check (true);
    create policy narrow on conversation_messages as restrictive for all to public using (false)`)
  await age(environment, '2 hours')
  await expect(runNow(environment, 'release')).rejects.toMatchObject({ code: 'rows_hidden' })
  await environment.admin.query(`
    drop policy narrow on conversation_messages;
    drop policy lighter_daemon on conversation_messages`)
  await expect(runNow(environment, 'release')).rejects.toMatchObject({ code: 'rows_hidden' })
  // Attaching again mends it.
  await environment.admin.query(
    `select lighter.attach('public.conversation_messages', entity_type => 'conversation', entity_column => 'conversation_id')`,
  )
  expect((await runNow(environment, 'release')).counts).toMatchObject({ released: 0 })
  expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, heavy('hidden')))
})

test('a pointer that comes back after the tombstone is right until the bytes are gone', async () => {
  const { conversationId } = await newConversation(environment)
  const id = await insertMessage(environment, conversationId, heavy('back'))
  await drained(environment)
  const { rows } = await environment.app.query(
    'select metadata::text from conversation_messages where id = $1',
    [id],
  )
  await environment.app.query('delete from conversation_messages where id = $1', [id])
  expect((await releaseTwice()).counts).toMatchObject({ tombstoned: 2 })
  const again = await insertMessage(environment, conversationId, rows[0].metadata)
  expect((await runNow(environment, 'release')).counts).toMatchObject({ found_again: 2 })
  expect(await hydrated(environment, again)).toBe(await asJsonbText(environment, heavy('back')))
})

test('what a payload of another source, or of the API, points to is kept', async () => {
  await environment.admin.query(`
    create table notes (id uuid primary key default gen_random_uuid(), tenant_id uuid not null, metadata jsonb);
    grant all on notes to example_app;
    select lighter.attach('notes', phase1_field => 'steps')`)
  const { conversationId, tenantId } = await newConversation(environment)
  const metadata = '{"tool_interactions": [{"n": 1.10}]}'
  const copied = await insertMessage(environment, conversationId, metadata)
  const stored = await insertMessage(environment, conversationId, metadata)
  await drained(environment)
  // A row of another source, with a pointer of this one's, offloaded whole.
  await environment.app.query(
    `insert into notes (tenant_id, metadata)
     select $2, metadata || jsonb_build_object('text', repeat('x', 9000)) from conversation_messages where id = $1`,
    [copied, tenantId],
  )
  await drained(environment)
  // Stored by the application, which says nothing of what its payload points to.
  const { rows } = await environment.app.query(
    'select metadata::text from conversation_messages where id = $1',
    [stored],
  )
  const key = `${environment.store.prefix}tenants/${tenantId}/agent_trace/own.json`
  await environment.store.put(key, Buffer.from(rows[0].metadata), { contentType: 'application/json' })
  const own = await environment.admin.query(
    `insert into artifact_refs (tenant_id, kind, r2_key, content_type) values ($1, 'agent_trace', $2, 'application/json') returning id`,
    [tenantId, key],
  )
  const pointing = await insertMessage(
    environment,
    conversationId,
    `{"artifact_metadata_ref": "${own.rows[0].id}"}`,
  )
  await environment.app.query('delete from conversation_messages where id = any ($1)', [[copied, stored]])
  const expected = await asJsonbText(environment, metadata)
  expect(await hydrated(environment, pointing)).toBe(expected)
  for (let n = 0; n < 2; n++)
    expect((await releaseTwice()).counts).toMatchObject({ released: 0, tombstoned: 0 })
  expect(await hydrated(environment, pointing)).toBe(expected)
  // It is known now, and no longer keeps what it does not point to.
  const { rows: known } = await environment.admin.query('select refers_to from artifact_refs where id = $1', [
    own.rows[0].id,
  ])
  expect(known[0].refers_to).toHaveLength(1)
})
