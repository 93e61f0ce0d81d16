// The way back: of rows, of a tenant, of all; what stays inline then, and what can't be restored.
import { randomUUID } from 'node:crypto'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import type { SignalPoint } from '../../src/offload/signals.ts'
import { batchesOf } from '../../src/restore/restore.ts'
import { spoilHashes } from '../support/artifacts.ts'
import {
  asJsonbText,
  createSignals,
  drained,
  hydrated,
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  until,
  useFreshEnvironment,
} from '../support/environment.ts'
import { offloadedRows } from '../support/messages.ts'
import { runCli, startCli } from '../support/process.ts'
import { column, value } from '../support/sql.ts'
import { age, bucketKeys, runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()
let daemon: Daemon
const signals = createSignals()
beforeEach(async () => {
  daemon = await startDaemon(environment, { signal: signals.signal })
})
afterEach(async () => {
  await daemon.stop()
})

const cli = (...args: string[]) => runCli(args, { env: environment.env })
const heavy = (mark: string) =>
  `{"model": "m", "price": 12345678901234567890.5, "tool_interactions": [{"mark": "${mark}", "n": 1e400}], "trace": "${'~'.repeat(9000)}"}`
const update = (id: string, expression: string, json: string) =>
  environment.app.query(`update conversation_messages set metadata = ${expression} where id = $1`, [id, json])

async function restored(...args: string[]): Promise<Record<string, unknown>> {
  const { stdout, stderr } = await cli('restore', ...args, '--json')
  expect(stderr).toBe('')
  return JSON.parse(stdout)
}

describe('one row', () => {
  test('comes back exactly, and stays inline however often it is written, until it is unpinned', async () => {
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, heavy('one'))
    const other = await insertMessage(environment, conversationId, heavy('other'))
    await drained(environment)
    expect(await restored('--message', id.toUpperCase())).toMatchObject({
      outcome: 'done',
      restored: 1,
      failed: 0,
    })
    expect(await rawMetadata(environment, id)).toBe(await asJsonbText(environment, heavy('one')))
    expect(await rawMetadata(environment, other)).toContain('_ref')

    await update(id, '$2::jsonb', heavy('again'))
    await update(other, '$2::jsonb', heavy('other again'))
    await drained(environment)
    expect(await rawMetadata(environment, id)).toBe(await asJsonbText(environment, heavy('again')))
    expect(await rawMetadata(environment, other)).not.toContain('~')

    expect((await cli('unpin')).stdout).toContain(`row ${id}`)
    expect((await cli('unpin', '--row', id)).stdout).toContain('1 pin(s) taken away')
    await update(id, '$2::jsonb', heavy('at last'))
    await drained(environment)
    expect(await rawMetadata(environment, id)).not.toContain('~')
    expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, heavy('at last')))
  })

  test('that was offloaded again and again is one value again', async () => {
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, heavy('first'))
    await drained(environment)
    for (const round of ['second', 'third', 'fourth']) {
      await update(id, `metadata || $2::jsonb`, `{"${round}": "${'-'.repeat(9000)}"}`)
      await drained(environment)
      expect(await rawMetadata(environment, id)).not.toContain('---')
    }
    await update(id, `metadata || $2::jsonb`, '{"tool_interactions": ["new"], "rating": 1e-400}')
    await drained(environment)
    const written = await asJsonbText(environment, await hydrated(environment, id))
    expect(await restored('--row', id)).toMatchObject({ restored: 1 })
    expect(await rawMetadata(environment, id)).toBe(written)
    expect(written).toContain('"second"')
  })

  test('that was never offloaded is pinned too', async () => {
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, '{"small": 1}')
    expect(await restored('--row', id)).toMatchObject({ restored: 0, failed: 0 })
    await update(id, '$2::jsonb', heavy('large now'))
    await drained(environment)
    expect(await rawMetadata(environment, id)).toContain('~')
  })

  test('of 20 MB comes back, without the others waiting for memory', async () => {
    const { conversationId } = await newConversation(environment)
    const large = `{"model": "m", "tool_interactions": [1e400, "${'é"'.replace('"', '\\"').repeat(5_000_000)}"], "trace": ["${'~'.repeat(5_000_000)}"]}`
    const id = await insertMessage(environment, conversationId, large)
    const others = await Promise.all(
      Array.from({ length: 20 }, (_, i) => insertMessage(environment, conversationId, heavy(`${i}`))),
    )
    await drained(environment, 60_000)
    const digest = () =>
      value(environment.admin, 'select md5(metadata::text) from conversation_messages where id = $1', [id])
    const written = await value(environment.admin, 'select md5($1::jsonb::text)', [large])
    expect(await digest()).not.toBe(written)
    expect(await restored('--all')).toMatchObject({ restored: 21, failed: 0 })
    expect(await digest()).toBe(written)
    expect(await rawMetadata(environment, others[7] ?? '')).toBe(await asJsonbText(environment, heavy('7')))
  })

  test('that the application holds is waited for, and what it writes wins', async () => {
    const { conversationId } = await newConversation(environment)
    const held = await insertMessage(environment, conversationId, heavy('held'))
    const free = await insertMessage(environment, conversationId, heavy('free'))
    await drained(environment)
    const writer = await environment.app.connect()
    await writer.query('begin')
    await writer.query('update conversation_messages set metadata = $2 where id = $1', [
      held,
      '{"mine": 1.50}',
    ])
    const restore = startCli(['restore', '--all', '--json'], { env: environment.env })
    await until(
      async () => !(await rawMetadata(environment, free))?.includes('_ref'),
      'the free row is restored',
    )
    expect(restore.hasEnded()).toBe(false)
    await writer.query('commit')
    writer.release()
    expect(JSON.parse((await restore.ended).stdout)).toMatchObject({ outcome: 'done', failed: 0 })
    expect(await rawMetadata(environment, held)).toBe('{"mine": 1.50}')
    expect(await offloadedRows(environment)).toBe(0)
  })

  test('that does not exist, is no id, or is not said, is an error that pins nothing', async () => {
    expect(await cli('restore', '--row', randomUUID())).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/has no row/),
    })
    expect(await cli('restore', '--row', 'x')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/uuid/),
    })
    expect(await cli('restore')).toMatchObject({ code: 1, stderr: expect.stringMatching(/--all/) })
    expect(await cli('restore', '--all', '--row', randomUUID())).toMatchObject({ code: 1 })
    expect(await cli('restore', '--all', '--table', 'nowhere')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/not attached/),
    })
    expect((await cli('unpin')).stdout).toBe('nothing is held\n')
  })
})

describe('a tenant', () => {
  test('that is reached through the parent comes back and stays; the others do not notice', async () => {
    const mine = await newConversation(environment)
    const theirs = await newConversation(environment)
    const ids = await Promise.all(
      ['a', 'b', 'c'].map(m => insertMessage(environment, mine.conversationId, heavy(m))),
    )
    const other = await insertMessage(environment, theirs.conversationId, heavy('theirs'))
    await drained(environment)
    expect(await restored('--tenant', mine.tenantId, '--dry-run')).toMatchObject({
      tables: [{ rows: 3, unreadable: 0, tenants: [{ tenant_id: mine.tenantId, rows: 3 }] }],
    })
    expect(await offloadedRows(environment)).toBe(4)
    expect(await restored('--tenant', mine.tenantId)).toMatchObject({ restored: 3 })
    expect(await restored('--tenant', mine.tenantId)).toMatchObject({ restored: 0 })
    ids.push(await insertMessage(environment, mine.conversationId, heavy('new')))
    const theirNew = await insertMessage(environment, theirs.conversationId, heavy('their new'))
    await drained(environment)
    for (const id of ids) expect(await rawMetadata(environment, id)).toContain('~')
    for (const id of [other, theirNew]) expect(await rawMetadata(environment, id)).not.toContain('~')

    expect((await cli('unpin', '--tenant', mine.tenantId)).stdout).toContain('1 pin(s)')
    expect((await cli('backfill')).stdout).toContain('4 of 6 rows queued')
    await drained(environment)
    for (const id of ids) expect(await rawMetadata(environment, id)).not.toContain('~')
    expect(await hydrated(environment, ids[3] ?? '')).toBe(await asJsonbText(environment, heavy('new')))
  })
})

test('copies of a row, made with its pointers, come back too, also of a row that is gone', async () => {
  const { tenantId, conversationId } = await newConversation(environment)
  const id = await insertMessage(environment, conversationId, heavy('copied'))
  await drained(environment)
  await environment.app.query(
    `insert into conversation_messages (conversation_id, role, content, metadata)
     select conversation_id, role, content, metadata || '{"copy": true}'
       from conversation_messages, generate_series(1, 3) where id = $1`,
    [id],
  )
  await environment.app.query('delete from conversation_messages where id = $1', [id])
  expect(await restored('--tenant', tenantId)).toMatchObject({ restored: 3, failed: 0 })
  expect(
    await column(environment.admin, 'select distinct metadata::text from conversation_messages'),
  ).toEqual([await asJsonbText(environment, heavy('copied').replace('{', '{"copy": true, '))])
})

describe('with offloads under way', () => {
  const points: SignalPoint[] = ['after-plan', 'after-upload', 'before-commit']

  test.for(points)('one that is at %s does not undo the restore of its tenant', async point => {
    const { tenantId, conversationId } = await newConversation(environment)
    const hold = signals.holdAt(point)
    const id = await insertMessage(environment, conversationId, heavy('under way'))
    await hold.reached
    expect(await restored('--tenant', tenantId)).toMatchObject({ outcome: 'done', failed: 0 })
    hold.release()
    await drained(environment)
    expect(await rawMetadata(environment, id)).toBe(await asJsonbText(environment, heavy('under way')))
    expect(await value(environment.admin, 'select count(*)::int from artifact_refs')).toBe(0)
  })

  test('one that is at before-commit stays queued while all is restored, and is done afterwards', async () => {
    const { conversationId } = await newConversation(environment)
    const hold = signals.holdAt('before-commit')
    const id = await insertMessage(environment, conversationId, heavy('paused'))
    await hold.reached
    expect(await restored('--all')).toMatchObject({ outcome: 'done', failed: 0 })
    hold.release()
    const fresh = await insertMessage(environment, conversationId, heavy('fresh'))
    await until(
      async () =>
        (await value(environment.admin, 'select max(conflicts)::int from lighter.jobs where row_id = $1', [
          id,
        ])) === 1,
      'the commit was refused',
    )
    await daemon.stop()
    daemon = await startDaemon(environment)
    expect(await column(environment.admin, 'select count(*)::int from lighter.jobs')).toEqual([2])
    for (const row of [id, fresh]) expect(await rawMetadata(environment, row)).toContain('~')
    expect((await cli('backfill')).stderr).toContain('paused')
    expect((await cli('unpin', '--all')).stdout).toContain('1 table(s) worked on again')
    await drained(environment)
    for (const row of [id, fresh]) expect(await rawMetadata(environment, row)).not.toContain('~')
  })
})

describe('a table with a trigger of its own', () => {
  const table = async (skipTriggers: boolean, body: string) => {
    await environment.admin.query(`
      create table public.notes (
        id integer primary key generated always as identity, tenant_id uuid not null default gen_random_uuid(),
        metadata jsonb, updated_at timestamptz not null default now());
      grant all on public.notes to public;
      create function public.on_note() returns trigger language plpgsql as $$ begin ${body} end $$;
      select lighter.attach('public.notes', skip_triggers => ${skipTriggers});`)
    await environment.app.query('insert into notes (metadata) select $1::jsonb from generate_series(1, 5)', [
      heavy('note'),
    ])
    await until(
      async () =>
        (await value<number>(
          environment.admin,
          `select count(*)::int from notes where metadata ? 'artifact_metadata_ref'`,
        )) === 5,
      'all are offloaded',
    )
    await environment.admin.query(
      'create trigger on_note before update on public.notes for each row execute function public.on_note()',
    )
  }
  const touch = 'new.updated_at := clock_timestamp(); return new;'

  test('is restored without it where the role may do that', async () => {
    await table(true, touch)
    const before = await column(environment.admin, 'select updated_at::text from notes order by id')
    expect(await restored('--table', 'notes')).toMatchObject({ restored: 5, failed: 0 })
    expect(await column(environment.admin, 'select updated_at::text from notes order by id')).toEqual(before)
  })

  test('with skip_triggers off it fires, and our own leaves no job behind', async () => {
    await table(false, touch)
    const before = await column(environment.admin, 'select updated_at::text from notes order by id')
    expect(await restored('--table', 'public.notes')).toMatchObject({ restored: 5, failed: 0 })
    expect(await column(environment.admin, 'select updated_at::text from notes order by id')).not.toEqual(
      before,
    )
    expect(await column(environment.admin, 'select row_id from lighter.jobs')).toEqual([])
  })

  test('that refuses some rows makes those fail, and no others', async () => {
    await table(
      false,
      `if new.id = 2 then raise exception 'not this one'; elsif new.id = 4 then return null; end if; return new;`,
    )
    const { stdout, code } = await cli('restore', '--table', 'notes', '--json')
    expect(code).toBe(1)
    const { failures, ...counts } = JSON.parse(stdout)
    expect(counts).toMatchObject({ restored: 3, failed: 2 })
    expect(
      failures.toSorted((a: { rowId: string }, b: { rowId: string }) => Number(a.rowId) - Number(b.rowId)),
    ).toMatchObject([
      { rowId: '2', code: 'write_failed', message: 'not this one' },
      { rowId: '4', code: 'rewrite_undone' },
    ])
    expect(
      await column(
        environment.admin,
        `select id from notes where metadata ? 'artifact_metadata_ref' order by id`,
      ),
    ).toEqual([2, 4])
  })
})

test('rows whose artifact is damaged or gone are reported and stay whole; the others come back', async () => {
  const { conversationId } = await newConversation(environment)
  const ids: string[] = []
  for (let i = 0; i < 30; i++) ids.push(await insertMessage(environment, conversationId, heavy(`${i}`)))
  await drained(environment)
  // The bytes of one, the tombstone of another.
  await spoilHashes(environment.admin, 'a.row_id = $1 and a.field is null', [ids[3]])
  await environment.admin.query(
    `update artifact_refs set deleted_at = now() where row_id = $1 and field is not null`,
    [ids[5]],
  )
  const before = await Promise.all([3, 5].map(i => rawMetadata(environment, ids[i] ?? '')))
  expect(await restored('--all', '--dry-run')).toMatchObject({ tables: [{ rows: 30, unreadable: 1 }] })

  const { stdout, code } = await cli('restore', '--all')
  expect(code).toBe(1)
  expect(stdout).toContain(`${ids[3]}  artifact_corrupt`)
  expect(stdout).toContain(`${ids[5]}  artifact_gone`)
  expect(stdout).toContain('28 row(s) restored')
  expect(await Promise.all([3, 5].map(i => rawMetadata(environment, ids[i] ?? '')))).toEqual(before)
  expect(await rawMetadata(environment, ids[4] ?? '')).toBe(await asJsonbText(environment, heavy('4')))
  expect(await offloadedRows(environment)).toBe(2)

  await environment.admin.query('update artifact_refs set deleted_at = null')
  expect(await restored('--all')).toMatchObject({ restored: 1, failed: 1 })
})

test('restore deletes nothing; the release sweep, and those after it, empty the bucket', async () => {
  const { conversationId } = await newConversation(environment)
  for (let i = 0; i < 20; i++) await insertMessage(environment, conversationId, heavy(`${i}`))
  await drained(environment)
  const keys = await bucketKeys(environment)
  expect(await restored('--all')).toMatchObject({ restored: 20 })
  expect(await bucketKeys(environment)).toEqual(keys)
  expect(
    await value(environment.admin, 'select count(*)::int from artifact_refs where deleted_at is null'),
  ).toBe(40)

  await age(environment, '2 hours')
  expect((await runNow(environment, 'release')).counts).toMatchObject({ released: 40 })
  await environment.admin.query(`update artifact_refs set released_at = released_at - interval '8 days'`)
  expect((await runNow(environment, 'release')).counts).toMatchObject({ tombstoned: 40 })
  for (let i = 0; i < 3; i++) {
    await age(environment, '40 days')
    await runNow(environment, 'retention')
    await runNow(environment, 'compaction')
    await runNow(environment, 'orphans')
  }
  expect(await bucketKeys(environment)).toEqual([])
  expect(await offloadedRows(environment)).toBe(0)
})

test('SIGINT ends it after the batch, and it says how to go on', async () => {
  const { conversationId } = await newConversation(environment)
  for (let i = 0; i < 40; i++) await insertMessage(environment, conversationId, heavy(`${i}`))
  await drained(environment)
  const restore = startCli(['restore', '--all', '--rate', '2'], { env: environment.env })
  await until(async () => (await offloadedRows(environment)) < 40, 'some are restored')
  expect((await cli('restore', '--all')).stderr).toContain('another process restores')
  restore.signal('SIGINT')
  const { code, stdout } = await restore.ended
  expect(code).toBe(0)
  expect(stdout).toContain('run it again to go on')
  expect(await offloadedRows(environment)).toBeGreaterThan(0)
  expect(await restored('--all')).toMatchObject({ outcome: 'done', failed: 0 })
  expect(await offloadedRows(environment)).toBe(0)
})

test('a store that stays away ends the restore; it goes on when the store is back', async () => {
  const { conversationId } = await newConversation(environment)
  await insertMessage(environment, conversationId, heavy('away'))
  await drained(environment)
  const { code, stderr } = await runCli(['restore', '--all'], {
    env: { ...environment.env, R2_ENDPOINT: 'http://127.0.0.1:9' },
  })
  expect(code).toBe(1)
  expect(stderr).toContain('error')
  expect(await offloadedRows(environment)).toBe(1)
  expect(await restored('--all')).toMatchObject({ restored: 1, failed: 0 })
}, 120_000)

test('a batch holds no more bytes than it may, and a long row is alone', () => {
  const row = (rowId: string, bytes: number) => ({ rowId, bytes, tenantId: null, unreadable: 0 })
  const rows = [row('a', 40), row('b', 40), row('c', 500), row('d', 40), row('e', 0)]
  const batches = batchesOf(rows, { rows: 500, batchBytes: 100, streamThresholdBytes: 100 })
  expect(batches.map(batch => batch.map(r => r.rowId).join(''))).toEqual(['c', 'ab', 'de'])
  expect(batchesOf(rows, { rows: 1, batchBytes: 100, streamThresholdBytes: 1000 })).toHaveLength(5)
})
