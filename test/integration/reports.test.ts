// Reports: every figure against one that is computed here from the rows themselves, after all that may happen to
// them; and who may see them.
import { randomUUID } from 'node:crypto'
import { stripVTControlCharacters } from 'node:util'
import type pg from 'pg'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import { settle } from '../../src/offload/settle.ts'
import { readStats } from '../../src/reports/read.ts'
import { renderStats } from '../../src/reports/render.ts'
import { fitTable } from '../../src/reports/table.ts'
import { sweepRollup } from '../../src/sweeps/rollup.ts'
import { drained, newConversation, startDaemon, until, useFreshEnvironment } from '../support/environment.ts'
import { runCli, startCli } from '../support/process.ts'
import { leaseRows } from '../support/queue.ts'
import { asRole, column, errorOf, uniqueRole, value } from '../support/sql.ts'
import { age, expireAfter90Days, runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()
let daemon: Daemon

beforeEach(async () => {
  daemon = await startDaemon(environment)
})
afterEach(async () => {
  await daemon.stop()
})

/** One transaction, so that they share packs. Every fifth message has a trace beside its tool calls. */
async function messages(count: number, tenantId: string = randomUUID()) {
  const { conversationId } = await newConversation(environment, tenantId)
  await environment.app.query(
    `insert into conversation_messages (conversation_id, role, content, metadata)
     select $1, 'assistant', '', jsonb_build_object('tool_interactions', jsonb_build_array(jsonb_build_object('n', n, 'text', repeat('lorem ', n % 50))))
                                 || case when n % 5 = 0 then jsonb_build_object('trace', repeat('x', 9000 + n)) else '{}' end
       from generate_series(1, $2::int) n`,
    [conversationId, count],
  )
  await drained(environment)
  return { tenantId, conversationId }
}

interface ArtifactRow {
  tenant_id: string
  kind: string
  day: string
  bytes: number
  deleted: boolean
  purged: boolean
}

interface ObjectRow {
  tenant_id: string
  kind: string
  day: string
  bytes: number
  state: string
  artifacts: number
  written: number | null
  live: number | null
  live_artifacts: number | null
}

const artifactRows = `
  select tenant_id, kind, to_char(created_at at time zone 'UTC', 'YYYY-MM-DD') as day, coalesce(size_bytes, 0)::float8 as bytes,
         deleted_at is not null as deleted, purged_at is not null as purged
    from public.artifact_refs`
const objectRows = `
  select tenant_id, kind, to_char(stored_at at time zone 'UTC', 'YYYY-MM-DD') as day, byte_length::float8 as bytes, state,
         artifact_count as artifacts, payload_bytes::float8 as written, live_bytes::float8 as live, live_artifacts
    from lighter.objects`

const sum = <T>(rows: T[], of: (row: T) => number) => rows.reduce((total, row) => total + of(row), 0)
const groups = <T>(rows: T[], of: (row: T) => string) =>
  [...Map.groupBy(rows, of)].sort(([a], [b]) => (a < b ? -1 : 1))

/** Both the reports and the rows of one moment, whoever writes meanwhile. */
async function expectExact() {
  const db = await environment.admin.connect()
  try {
    await db.query('begin isolation level repeatable read')
    const query = async <R extends pg.QueryResultRow>(sql: string) => (await db.query<R>(sql)).rows
    const artifacts = await query<ArtifactRow>(artifactRows)
    const allObjects = await query<ObjectRow>(objectRows)
    const objects = allObjects.filter(o => o.state === 'stored')
    const live = artifacts.filter(a => !a.deleted)
    const inGrace = artifacts.filter(a => a.deleted && !a.purged)
    const keys = (of: (row: { tenant_id: string; kind: string; day: string }) => string) =>
      groups([...live, ...inGrace, ...objects], of).map(([key]) => key)

    const byKind = keys(row => row.kind).map(kind => {
      const own = live.filter(a => a.kind === kind)
      const days = own.map(a => a.day).sort()
      return {
        kind,
        artifacts: own.length,
        payload_bytes: sum(own, a => a.bytes),
        oldest: days[0] ?? null,
        newest: days.at(-1) ?? null,
        objects: objects.filter(o => o.kind === kind).length,
        object_bytes: sum(
          objects.filter(o => o.kind === kind),
          o => o.bytes,
        ),
        deleted_artifacts: inGrace.filter(a => a.kind === kind).length,
        deleted_bytes: sum(
          inGrace.filter(a => a.kind === kind),
          a => a.bytes,
        ),
      }
    })
    expect(
      await query(`
        select kind, artifacts::int, payload_bytes::float8, to_char(oldest at time zone 'UTC', 'YYYY-MM-DD') as oldest,
               to_char(newest at time zone 'UTC', 'YYYY-MM-DD') as newest, objects::int, object_bytes::float8,
               deleted_artifacts::int, deleted_bytes::float8
          from lighter.storage_by_kind order by kind collate "C"`),
    ).toEqual(byKind)

    const byTenant = keys(row => row.tenant_id).map(tenant_id => ({
      tenant_id,
      artifacts: live.filter(a => a.tenant_id === tenant_id).length,
      payload_bytes: sum(
        live.filter(a => a.tenant_id === tenant_id),
        a => a.bytes,
      ),
      objects: objects.filter(o => o.tenant_id === tenant_id).length,
      object_bytes: sum(
        objects.filter(o => o.tenant_id === tenant_id),
        o => o.bytes,
      ),
      deleted_artifacts: inGrace.filter(a => a.tenant_id === tenant_id).length,
    }))
    expect(
      await query(`
        select tenant_id, artifacts::int, payload_bytes::float8, objects::int, object_bytes::float8, deleted_artifacts::int
          from lighter.storage_by_tenant order by tenant_id`),
    ).toEqual(byTenant)

    const byDay = groups([...live, ...objects], row => `${row.day} ${row.kind}`).map(([key]) => {
      const of = <T extends { day: string; kind: string }>(rows: T[]) =>
        rows.filter(row => `${row.day} ${row.kind}` === key)
      return {
        key,
        artifacts: of(live).length,
        payload_bytes: sum(of(live), a => a.bytes),
        objects: of(objects).length,
        object_bytes: sum(of(objects), o => o.bytes),
      }
    })
    expect(
      await query(`
        select to_char(day, 'YYYY-MM-DD') || ' ' || kind as key, artifacts::int, payload_bytes::float8, objects::int,
               object_bytes::float8
          from lighter.storage_by_day order by day, kind collate "C"`),
    ).toEqual(byDay)

    const packs = groups(allObjects, o => o.kind).map(([kind]) => {
      const stored = objects.filter(o => o.kind === kind)
      const known = stored.filter(o => o.written !== null)
      return {
        kind,
        objects: stored.length,
        packs: stored.filter(o => o.artifacts > 1).length,
        object_bytes: sum(stored, o => o.bytes),
        written_bytes: sum(known, o => o.written ?? 0),
        live_bytes: sum(known, o => o.live ?? o.written ?? 0),
        live_artifacts: sum(stored, o => o.live_artifacts ?? o.artifacts),
        deleting: allObjects.filter(o => o.kind === kind && o.state === 'deleting').length,
        uploading: allObjects.filter(o => o.kind === kind && o.state === 'uploading').length,
      }
    })
    expect(
      await query(`
        select kind, objects::int, packs::int, object_bytes::float8, written_bytes::float8, live_bytes::float8,
               live_artifacts::int, deleting::int, uploading::int
          from lighter.pack_health order by kind collate "C"`),
    ).toEqual(packs)

    const [savings] = await query<Record<string, number>>(`
      select artifacts::int, payload_bytes::float8, object_bytes::float8, objects::int, inline_bytes_estimated::float8,
             storage_usd_per_month::float8, inline_usd_per_month_estimated::float8, usd_per_month::float8,
             saved_usd_per_month_estimated::float8,
             class_a_usd_last_30_days::float8, bookkeeping_usd_per_month::float8
        from lighter.savings`)
    const bytes = sum(live, a => a.bytes)
    expect(savings).toMatchObject({
      artifacts: live.length,
      payload_bytes: bytes,
      objects: objects.length,
      object_bytes: sum(objects, o => o.bytes),
      inline_bytes_estimated: Math.round(bytes * 0.42),
    })
    expect(savings?.storage_usd_per_month).toBeCloseTo((sum(objects, o => o.bytes) / 1e9) * 0.015, 3)
    expect(savings?.inline_usd_per_month_estimated).toBeCloseTo(((bytes * 0.42) / 1e9) * 0.125, 3)
    return { artifacts, objects }
  } finally {
    await db.query('rollback')
    db.release()
  }
}

const entries = () =>
  value<number>(environment.admin, 'select count(*)::int from lighter.storage_changes').then(Number)

describe('storage reports are exact', () => {
  test('before a rollup, after it, and after another', async () => {
    await messages(40)
    await messages(7)
    expect(await entries()).toBeGreaterThan(0)
    await expectExact()
    const first = await runNow(environment, 'rollup')
    expect(first.counts.storage_entries).toBeGreaterThan(0)
    expect(await entries()).toBe(0)
    const { artifacts } = await expectExact()
    expect(artifacts.length).toBe(47 + 8 + 1)
    expect((await runNow(environment, 'rollup')).counts).toMatchObject({
      storage_entries: 0,
      latency_entries: 0,
    })
    await expectExact()
  })

  test('through expiry, purge, compaction, deletion and forgetting', async () => {
    const { tenantId } = await messages(40)
    await messages(10)
    await runNow(environment, 'rollup')
    const step = async (work: () => Promise<unknown>) => {
      await work()
      await expectExact()
      await runNow(environment, 'rollup')
      await expectExact()
    }
    // A part of each pack, so that there is something to compact.
    await step(() =>
      environment.admin.query(
        `update artifact_refs set deleted_at = now() - interval '30 days', deleted_reason = 'deleted'
          where tenant_id = $1 and abs(hashtext(id::text)) % 4 <> 0`,
        [tenantId],
      ),
    )
    await step(() => runNow(environment, 'retention'))
    const compacted = await runNow(environment, 'compaction')
    expect(compacted.counts.objects_rewritten).toBeGreaterThan(0)
    await step(async () => undefined)
    await expireAfter90Days(environment)
    await step(() => age(environment, '91 days'))
    expect((await runNow(environment, 'retention')).counts.expired).toBeGreaterThan(0)
    await step(async () => undefined)
    await step(() => age(environment, '8 days'))
    await step(() => runNow(environment, 'retention'))
    await step(() => age(environment, '100 days'))
    await step(() => runNow(environment, 'retention'))
    await runNow(environment, 'retention')
    await runNow(environment, 'rollup')
    expect(await column(environment.admin, 'select day from lighter.storage_days')).toEqual([])
    expect(await column(environment.admin, 'select day from lighter.storage_totals')).toEqual([])
  })

  test('of what the application stores, changes and takes back itself, with days and sizes of its own', async () => {
    const { tenantId } = await messages(5)
    await runNow(environment, 'rollup')
    await environment.admin.query(
      `insert into artifact_refs (tenant_id, kind, r2_key, size_bytes, created_at)
       select $1, 'chat_transcript', 'own/' || n, case when n % 3 <> 0 then n * 100 end, now() - n * interval '1 day'
         from generate_series(1, 30) n`,
      [tenantId],
    )
    await expectExact()
    await runNow(environment, 'rollup')
    const changes = [
      `update artifact_refs set size_bytes = 5, kind = 'agent_trace' where r2_key = 'own/7'`,
      `update artifact_refs set deleted_at = now() where r2_key in ('own/8', 'own/9')`,
      `update artifact_refs set deleted_at = null where r2_key = 'own/8'`,
      `update artifact_refs set r2_key = 'own/moved' where r2_key = 'own/10'`,
      `delete from artifact_refs where r2_key in ('own/9', 'own/11')`,
      `insert into artifact_refs (tenant_id, kind, r2_key) select tenant_id, kind, r2_key from artifact_refs`,
      // One goes and another comes back in one statement: of their frame as many are alive, and not as many bytes.
      `insert into lighter.frame_exceptions (tenant_id, frame_id, ordinal, ordinals, deleted_at)
       select tenant_id, frame_id, ordinal, array[ordinal], case place when 1 then now() end
         from (select *, row_number() over (order by size_bytes) as place from artifact_refs
                where tenant_id = '${tenantId}' and kind like '%interactions' and ordinal is not null and deleted_at is null) a
        where place in (1, 2)`,
      `update lighter.frame_exceptions set deleted_at = case when deleted_at is null then now() end
        where frame_id in (select frame_id from lighter.frame_exceptions where deleted_at is null)`,
      `update artifact_refs set deleted_at = now() where id in (select id from artifact_refs where tenant_id = '${tenantId}' and ordinal is not null limit 2)`,
      `delete from artifact_refs where id in (select id from artifact_refs where tenant_id = '${tenantId}' and ordinal is not null and deleted_at is null limit 1)`,
      `truncate lighter.loose_artifacts`,
    ]
    for (const change of changes) {
      await environment.admin.query(change)
      await expectExact()
    }
    await runNow(environment, 'rollup')
    await expectExact()
  })

  test('of sizes that nothing has, which fail no write, no sweep and no report', async () => {
    const { tenantId } = await messages(3)
    await runNow(environment, 'rollup')
    const largest = '9223372036854775807'
    const smallest = '-9223372036854775808'
    const terabytes = 2 ** 43
    const payloadBytes = () =>
      value<number>(
        environment.admin,
        `select payload_bytes::float8 from lighter.storage_by_kind where kind = 'chat_transcript'`,
      )
    // Two of a statement are more than there is, one taken back is less than there is.
    await environment.admin.query(
      `insert into artifact_refs (tenant_id, kind, r2_key, size_bytes, entity_type)
       select $1, 'chat_transcript', 'tenants/' || $1::uuid || '/own', b, n
         from unnest($2::bigint[]) with ordinality s(b, n)`,
      [tenantId, [largest, largest, smallest, smallest, '7']],
    )
    expect(await payloadBytes()).toBe(2 * terabytes + 7)
    await runNow(environment, 'rollup')
    expect(await payloadBytes()).toBe(2 * terabytes + 7)
    expect(
      (await runNow(environment, 'rollup', { sweep: c => sweepRollup(c, { full: true }) })).counts,
    ).toMatchObject({
      corrected: 0,
    })
    for (const report of ['storage_by_tenant', 'storage_by_day', 'savings', 'pack_health', 'retention_due'])
      await environment.admin.query(`select * from lighter.${report}`)
    expect(
      await value(
        environment.admin,
        `select count(*)::int from lighter.artifact_list($1, of_kind => 'chat_transcript')`,
        [tenantId],
      ),
    ).toBe(5)
    // Expired, purged, and the account of their object with them.
    await environment.admin.query(
      `update artifact_refs set size_bytes = case size_bytes when $1 then $2::bigint when $2 then $1::bigint else size_bytes end
        where kind = 'chat_transcript'`,
      [largest, smallest],
    )
    expect(await payloadBytes()).toBe(2 * terabytes + 7)
    await environment.admin.query(
      `update artifact_refs set deleted_at = now() - interval '8 days' where kind = 'chat_transcript' and entity_type::int < 3`,
    )
    expect((await runNow(environment, 'retention')).counts).toMatchObject({ purged: 2 })
    await environment.admin.query(
      `update artifact_refs set deleted_at = now() - interval '8 days' where kind = 'chat_transcript'`,
    )
    expect((await runNow(environment, 'retention')).counts).toMatchObject({ purged: 3, objects_emptied: 1 })
    await environment.admin.query(`delete from artifact_refs where kind = 'chat_transcript'`)
    await runNow(environment, 'rollup')
    await expectExact()

    // So many that even what each counts as is too much together: a sum ends where numbers do.
    await environment.admin.query(`alter table lighter.storage_changes alter column id restart with 1000000`)
    for (let n = 0; n < 3; n++) {
      await environment.admin.query(
        `insert into lighter.storage_changes (tenant_id, kind, day, artifacts, payload_bytes) values ($1, 'chat_transcript', current_date, 1, $2)`,
        [tenantId, largest],
      )
      await environment.admin.query('select * from lighter.storage_by_tenant')
      await runNow(environment, 'rollup')
    }
    expect(await payloadBytes()).toBe(Number(largest))
    await environment.admin.query('truncate lighter.loose_artifacts, lighter.frames cascade')
    await environment.admin.query('select * from lighter.storage_by_kind')
  })

  test('of objects of a size that nothing has', async () => {
    const { tenantId } = await messages(3)
    await environment.admin.query(
      'update lighter.objects set byte_length = $2, payload_bytes = $2, live_bytes = $2 where tenant_id = $1',
      [tenantId, '-9223372036854775808'],
    )
    await environment.admin.query(
      'update lighter.objects set byte_length = $2, payload_bytes = $2, live_bytes = $2 where tenant_id = $1',
      [tenantId, '9223372036854775807'],
    )
    await runNow(environment, 'rollup')
    await environment.admin.query('delete from lighter.objects')
    await runNow(environment, 'rollup')
    expect(await column(environment.admin, 'select kind from lighter.pack_health')).toEqual([])
  })

  test('at every moment while a daemon, an application and rollups are at work', async () => {
    const busy = new AbortController()
    const tenants = Array.from({ length: 4 }, () => randomUUID())
    const write = async (tenantId: string) => {
      while (!busy.signal.aborted) {
        const { conversationId } = await newConversation(environment, tenantId)
        await environment.app.query(
          `insert into conversation_messages (conversation_id, role, content, metadata)
           select $1, 'assistant', '', '{"tool_interactions": [1]}' from generate_series(1, 5)`,
          [conversationId],
        )
        await environment.admin.query(
          `update artifact_refs set deleted_at = now() where id in (select id from artifact_refs where tenant_id = $1 and deleted_at is null limit 3)`,
          [tenantId],
        )
      }
    }
    const rollup = async () => {
      while (!busy.signal.aborted) {
        await runNow(environment, 'rollup')
        await runNow(environment, 'rollup', { sweep: context => sweepRollup(context, { full: true }) }).then(
          ({ counts }) => expect(counts.corrected).toBe(0),
        )
      }
    }
    const work = [...tenants.map(write), rollup()]
    const checks = async () => {
      for (let n = 0; n < 25; n++) await expectExact()
    }
    try {
      await Promise.race([checks(), Promise.all(work)])
    } finally {
      busy.abort()
      await Promise.all(work)
    }
    await drained(environment)
    const { artifacts } = await expectExact()
    expect(artifacts.length).toBeGreaterThan(20)
  })

  test('a run that is stopped in the middle leaves them exact, and the next goes on', async () => {
    const { tenantId } = await messages(5)
    await environment.admin.query(
      `insert into lighter.storage_changes (tenant_id, kind, day, artifacts)
       select $1, 'assistant_message_metadata', current_date, case when n % 2 = 0 then 1 else -1 end from generate_series(1, 25000) n`,
      [tenantId],
    )
    await environment.admin.query(
      `insert into lighter.storage_changes (tenant_id, kind, day, artifacts) values ($1, 'assistant_message_metadata', current_date, -1)`,
      [tenantId],
    )
    await environment.admin.query(
      `insert into artifact_refs (tenant_id, kind, r2_key) values ($1, 'x', 'x')`,
      [tenantId],
    )
    await environment.admin.query(
      `insert into lighter.storage_changes (tenant_id, kind, day, artifacts) values ($1, 'assistant_message_metadata', current_date, 1)`,
      [tenantId],
    )
    const stop = new AbortController()
    const stopped = await runNow(environment, 'rollup', {
      signal: stop.signal,
      sweep: context =>
        sweepRollup({
          ...context,
          onProgress: counts => {
            context.onProgress(counts)
            stop.abort()
          },
        }),
    })
    expect(stopped.outcome).toBe('stopped')
    expect(await entries()).toBeGreaterThan(0)
    await expectExact()
    await runNow(environment, 'rollup')
    expect(await entries()).toBe(0)
    await expectExact()
  })

  test('again after --full, when somebody has kept the triggers from firing', async () => {
    await messages(10)
    await runNow(environment, 'rollup')
    const db = await environment.admin.connect()
    try {
      await db.query('begin; set local session_replication_role = replica')
      await db.query('delete from artifact_refs where id in (select id from artifact_refs limit 4)')
      await db.query(`update lighter.objects set byte_length = byte_length + 1`)
      await db.query('commit')
    } finally {
      db.release()
    }
    await expect(expectExact()).rejects.toThrow()
    const dry = await runCli(['sweep', 'rollup', '--full', '--dry-run', '--json'], { env: environment.env })
    expect(JSON.parse(dry.stdout).counts.corrected).toBeGreaterThan(0)
    await expect(expectExact()).rejects.toThrow()
    const full = await runCli(['sweep', 'rollup', '--full', '--json'], { env: environment.env })
    expect(JSON.parse(full.stdout)).toMatchObject({ outcome: 'done' })
    await expectExact()
    const again = await runCli(['sweep', 'rollup', '--full', '--json'], { env: environment.env })
    expect(JSON.parse(again.stdout).counts.corrected).toBe(0)
  })
})

describe('queue_health', () => {
  const health = async (table = 'conversation_messages') => {
    const { rows } = await environment.admin.query(
      `select depth::int, due::int, in_flight::int, retrying::int, failed::int, oldest_seconds, exact, paused
         from lighter.queue_health where source = $1`,
      [table],
    )
    return rows[0]
  }

  test('tells waiting, due, in flight, retrying and failed jobs apart', async () => {
    await daemon.stop()
    const id = await value<number>(environment.admin, 'select id from lighter.sources')
    await environment.admin.query(
      `insert into lighter.inbox (source_id, row_id, enqueued_at) values
         ($1, 'due', now() - interval '100 s'), ($1, 'due', now() - interval '10 s')`,
      [id],
    )
    await environment.admin.query(
      `insert into lighter.waiting (source_id, row_id, available_at, attempts, enqueued_at, last_error) values
         ($1, 'backing off', now() + interval '1 min', 2, now() - interval '900 s', 'no answer'),
         ($1, 'changed meanwhile', now() + interval '1 min', 0, now() - interval '10 s', null),
         ($1, 'again', now() - interval '1 s', 2, now() - interval '10 s', 'no answer')`,
      [id],
    )
    await leaseRows(environment.admin, id, ['flying'], { enqueuedMs: Date.now() - 50_000 })
    // Of this one half is done.
    const half = await leaseRows(environment.admin, id, ['flying again', 'done'], { error: 'no answer' })
    await settle(environment.admin, half, half.jobs.slice(1), [], 8)
    await environment.admin.query(
      `insert into lighter.failed_jobs (source_id, row_id, attempts, enqueued_at, last_error) values ($1, 'lost', 8, now(), 'no tenant')`,
      [id],
    )
    const found = await health()
    expect(found).toMatchObject({
      depth: 7,
      due: 3,
      in_flight: 2,
      retrying: 3,
      failed: 1,
      exact: true,
      paused: false,
    })
    expect(found.oldest_seconds).toBeGreaterThanOrEqual(900)
    expect(found.oldest_seconds).toBeLessThan(960)
    expect(
      await column(
        environment.admin,
        `select source || ' ' || row_id || ' ' || last_error from lighter.failures`,
      ),
    ).toEqual(['conversation_messages lost no tenant'])
  })

  describe('of a long queue estimates what is many and counts what is few:', () => {
    /** Another source. */
    const attachOther = () =>
      environment.admin.query(`
        create table other (id int primary key, tenant_id uuid, metadata jsonb);
        select lighter.attach('other');
        insert into lighter.inbox (source_id, row_id) select id, 'x' from lighter.sources where relation = 'other'::regclass`)

    test('of the inbox, and what waits and is leased is exact', async () => {
      await daemon.stop()
      const id = await value<number>(environment.admin, 'select id from lighter.sources')
      await attachOther()
      await environment.admin.query(
        `insert into lighter.inbox (source_id, row_id, enqueued_at)
         select $1, n, now() - (150000 - n) * interval '1 ms' from generate_series(1, 150000) n`,
        [id],
      )
      await environment.admin.query(
        `insert into lighter.waiting (source_id, row_id, available_at, last_error)
         select $1, n, now() + interval '1 min', case when n <= 15 then 'no answer' end from generate_series(1, 30) n`,
        [id],
      )
      await leaseRows(environment.admin, id, ['a', 'b', 'c'])
      await environment.admin.query('analyze lighter.inbox')
      const found = await health()
      expect(found).toMatchObject({ exact: false, in_flight: 3, retrying: 15 })
      expect(Math.abs(found.depth - 150_000)).toBeLessThan(3000)
      expect(found.due).toBe(found.depth - 33)
      expect(found.oldest_seconds).toBeGreaterThan(149)
      expect(await health('other')).toMatchObject({ exact: false, depth: 1, due: 1, in_flight: 0 })
    })

    test('of what waits, and what is in the inbox is exact', async () => {
      await daemon.stop()
      const id = await value<number>(environment.admin, 'select id from lighter.sources')
      await attachOther()
      await environment.admin.query(
        `insert into lighter.waiting (source_id, row_id, priority, available_at, enqueued_at, last_error)
         select $1, n, case when n % 2 = 0 then 0 else 10 end, now() - n * interval '1 ms', now() - n * interval '1 ms',
                case when n <= 10 or n between 500 and 504 then 'no answer' end
           from generate_series(1, 150000) n`,
        [id],
      )
      await environment.admin.query('analyze lighter.waiting')
      const found = await health()
      expect(found).toMatchObject({ exact: false, in_flight: 0, retrying: 15 })
      expect(Math.abs(found.depth - 150_000)).toBeLessThan(3000)
      expect(found.due).toBe(found.depth)
      expect(found.oldest_seconds).toBeGreaterThan(149)
      expect(await health('other')).toMatchObject({ exact: false, depth: 1, due: 1, in_flight: 0 })
    })
  })
})

describe('offload_latency', () => {
  const rows = async () =>
    (
      await environment.admin.query(
        `select queue, sum(rows)::int as rows, min(p50_ms) as p50, max(max_ms) as max from lighter.offload_latency group by queue order by queue`,
      )
    ).rows

  test('counts every offloaded row once, before and after the rollup, and no row with nothing to offload', async () => {
    let offloaded = 0
    await daemon.stop()
    daemon = await startDaemon(environment, { onResult: result => (offloaded += result.offloadedRows) })
    await messages(60)
    const { conversationId } = await newConversation(environment)
    const small = await value<string>(
      environment.admin,
      `insert into conversation_messages (conversation_id, role, content, metadata) values ($1, 'user', '', '{}') returning id`,
      [conversationId],
    )
    await environment.admin.query(
      `select lighter.requeue('conversation_messages', array[$1, gen_random_uuid()::text])`,
      [small],
    )
    await drained(environment)
    await until(() => offloaded === 60, '60 rows are reported')
    expect(await rows()).toEqual([
      { queue: 'live', rows: 60, p50: expect.any(Number), max: expect.any(Number) },
    ])
    await runNow(environment, 'rollup')
    expect(await value(environment.admin, 'select count(*)::int from lighter.latency_changes')).toBe(0)
    expect(await rows()).toEqual([
      { queue: 'live', rows: 60, p50: expect.any(Number), max: expect.any(Number) },
    ])
  })

  test('is above the true figure by less than 19 %, rows of a backfill apart', async () => {
    await daemon.stop()
    const { conversationId } = await newConversation(environment)
    await environment.app.query(
      `insert into conversation_messages (conversation_id, role, content, metadata)
       select $1, 'assistant', '', '{"tool_interactions": [1]}' from generate_series(1, 200)`,
      [conversationId],
    )
    // Each waits for a time of its own: n hours, of whole hours, so that the seconds of the test do not matter.
    await environment.admin.query(`
      with taken as (delete from lighter.inbox returning source_id, row_id)
      insert into lighter.waiting (source_id, row_id, enqueued_at, priority)
      select source_id, row_id, now() - n * interval '1 hour', case when n <= 100 then 0 else 10 end
        from (select source_id, row_id, row_number() over (order by row_id) as n from taken) n`)
    daemon = await startDaemon(environment)
    await drained(environment)
    const { rows: found } = await environment.admin.query<{
      queue: string
      [figure: string]: number | string
    }>(
      'select queue, rows::int, p50_ms / 3600000 as p50, p95_ms / 3600000 as p95, p99_ms / 3600000 as p99, max_ms / 3600000 as max from lighter.offload_latency order by queue',
    )
    const truth: Record<string, Record<string, number>> = {
      live: { p50: 50, p95: 95, p99: 99, max: 100 },
      backfill: { p50: 150, p95: 195, p99: 199, max: 200 },
    }
    expect(found.map(f => [f.queue, f.rows])).toEqual([
      ['backfill', 100],
      ['live', 100],
    ])
    for (const hour of found) {
      for (const [figure, hours] of Object.entries(truth[hour.queue] ?? {})) {
        expect(Number(hour[figure]), `${hour.queue} ${figure}`).toBeGreaterThanOrEqual(hours)
        expect(Number(hour[figure]), `${hour.queue} ${figure}`).toBeLessThan(hours * 1.2)
      }
    }
  })

  test('is forgotten after 31 days, as runs of sweeps are after 90, but for the last of each', async () => {
    await messages(5)
    await runNow(environment, 'rollup')
    await runNow(environment, 'orphans')
    await environment.admin.query(`update lighter.latency_hours set hour = hour - interval '32 days'`)
    await age(environment, '91 days')
    await runNow(environment, 'rollup')
    expect(await rows()).toEqual([])
    expect(
      await column(environment.admin, 'select sweep from lighter.sweep_history order by sweep, started_at'),
    ).toEqual(['orphans', 'rollup'])
  })
})

describe('retention_due', () => {
  const due = async () =>
    (
      await environment.admin.query<{
        tenant_id: string
        kind: string
        artifacts: number
        bytes: number
        oldest: string
      }>(
        `select tenant_id, kind, artifacts::int, payload_bytes::float8 as bytes, to_char(oldest at time zone 'UTC', 'YYYY-MM-DD') as oldest
           from lighter.retention_due order by tenant_id, kind`,
      )
    ).rows

  test('is what the next retention sweep lets expire: by policy, by date, without what is on hold', async () => {
    // Two in a frame, and an age of its own for each frame.
    await daemon.stop()
    daemon = await startDaemon(environment, { env: { OFFLOAD_BATCH_ROWS: '2' } })
    await expireAfter90Days(environment)
    // One after the other, so that no two share a batch.
    const standard = await messages(6)
    const premium = await messages(6)
    const held = await messages(6)
    const partly = await messages(6)
    const short = await messages(6)
    const tenant = (id: string, columns: string, values: string) =>
      environment.admin.query(
        `insert into lighter.tenants (tenant_id, ${columns}) values ('${id}', ${values})`,
      )
    await tenant(premium.tenantId, 'plan', `'premium'`)
    await tenant(held.tenantId, 'legal_hold', 'true')
    await environment.admin.query(
      `insert into lighter.legal_holds (tenant_id, entity_type, entity_id, reason) values ($1, 'conversation', $2, 'case 7')`,
      [partly.tenantId, partly.conversationId],
    )
    await messages(2, partly.tenantId)
    await environment.admin.query(
      `insert into lighter.retention_policies (tenant_id, keep_days) values ($1, 10)`,
      [short.tenantId],
    )
    expect(await due()).toEqual([])
    await environment.admin.query(
      `update lighter.frames set created_at = case when tenant_id = $1 then now() - interval '10 days' + id_n * interval '1 h' - interval '3 hours 30 minutes'
                                                   else now() - interval '85 days' - id_n * interval '2 days' end
         from (select id as n_id, row_number() over (partition by tenant_id order by kind, id) as id_n from lighter.frames) n where n.n_id = id`,
      [short.tenantId],
    )
    // One of a frame, and not the other.
    await environment.admin.query(
      `update artifact_refs set expires_at = now() - interval '1 hour'
        where id in (select id from artifact_refs where tenant_id = any ($1) and created_at > now() - interval '90 days' and ordinal = 0)`,
      [[standard.tenantId, premium.tenantId]],
    )
    for (const rolledUp of [false, true]) {
      if (rolledUp) await runNow(environment, 'rollup')
      const found = await due()
      expect(found.some(f => f.tenant_id === held.tenantId)).toBe(false)
      expect(
        sum(
          found.filter(f => f.tenant_id === short.tenantId),
          f => f.artifacts,
        ),
      ).toBe(5)
    }
    // What a live payload lies on waits for it, and is due all the same: not here.
    await environment.admin.query(`update lighter.frames set refers_from = '{}', refers_to = '{}'`)
    const before = await due()
    await runNow(environment, 'retention')
    const { rows: expired } = await environment.admin.query(
      `select tenant_id, kind, count(*)::int as artifacts, sum(size_bytes)::float8 as bytes,
              to_char(min(created_at) at time zone 'UTC', 'YYYY-MM-DD') as oldest
         from artifact_refs where deleted_at is not null group by tenant_id, kind order by tenant_id, kind`,
    )
    expect(before).toEqual(expired)
    expect(await due()).toEqual([])
  })
})

test('savings counts writes that were paid for, whether or not their objects are still there', async () => {
  const { tenantId } = await messages(20)
  const written = await value<number>(
    environment.admin,
    `select count(*)::int from lighter.objects where state = 'stored'`,
  )
  const classA = () =>
    value<string>(environment.admin, 'select class_a_last_30_days from lighter.savings').then(Number)
  expect(await classA()).toBe(written)
  await runNow(environment, 'rollup')
  expect(await classA()).toBe(written)
  await environment.admin.query(
    `update artifact_refs set deleted_at = now() - interval '30 days' where tenant_id = $1`,
    [tenantId],
  )
  await runNow(environment, 'retention')
  await runNow(environment, 'rollup')
  expect(await value(environment.admin, 'select objects::int from lighter.savings')).toBe(0)
  expect(await classA()).toBe(written)
  // An upload in parts of 5 MiB: 4 parts, its creation and its completion.
  await environment.admin.query(
    `insert into lighter.objects (tenant_id, r2_key, kind, content_type, artifact_count, lease_until, upload_id) values ($1, 'parts', 'k', 'x', 1, now(), 'u')`,
    [tenantId],
  )
  await environment.admin.query(
    `update lighter.objects set state = 'stored', stored_at = now(), lease_until = null, upload_id = null, byte_length = 20000000 where r2_key = 'parts'`,
  )
  expect(await classA()).toBe(written + 6)
  await environment.admin.query('update lighter.prices set r2_class_a_million = 1000000')
  expect(await value(environment.admin, 'select class_a_usd_last_30_days::float8 from lighter.savings')).toBe(
    written + 6,
  )
})

test('sweep_history tells what ran, runs and failed', async () => {
  await runNow(environment, 'rollup')
  await errorOf(
    runNow(environment, 'orphans', {
      sweep: () => Promise.reject(Object.assign(new Error('the store is away'), { code: 'x' })),
    }),
  )
  await environment.admin.query(
    `insert into lighter.sweep_runs (sweep, started_at, heartbeat_at) values ('release', now() - interval '9 s', now())`,
  )
  const { rows } = await environment.admin.query(
    `select sweep, outcome, dry_run, error, finished_at is not null as finished from lighter.sweep_history order by sweep`,
  )
  expect(rows).toEqual([
    { sweep: 'orphans', outcome: 'failed', dry_run: false, error: 'the store is away', finished: true },
    { sweep: 'release', outcome: 'running', dry_run: false, error: null, finished: false },
    { sweep: 'rollup', outcome: 'done', dry_run: false, error: null, finished: true },
  ])
})

describe('who may see them', () => {
  const reports = [
    'failures',
    'missing_parts',
    'moved_rows',
    'offload_latency',
    'overdue_deletions',
    'pack_health',
    'queue_health',
    'retention_due',
    'savings',
    'storage_by_day',
    'storage_by_kind',
    'storage_by_tenant',
    'storage_entries',
    'storage_total_entries',
    'sweep_history',
    'waiting_groups',
  ]
  const readable = (role: string) =>
    column<string>(
      environment.admin,
      `select relname::text from pg_class
        where relnamespace = 'lighter'::regnamespace and relkind in ('r', 'v') and has_any_column_privilege($1, oid, 'select')
        order by relname`,
      [role],
    )

  test('a reporter reads the reports, of all tenants, and nothing else', async () => {
    const { tenantId } = await messages(5)
    await messages(5)
    expect(await readable('lighter_reporter')).toEqual(reports)
    await asRole(environment.admin, 'lighter_reporter', async db => {
      for (const report of reports) await db.query(`select * from lighter.${report}`)
      expect(await value(db, 'select count(*)::int from lighter.storage_by_tenant')).toBe(2)
      expect(
        await value(db, 'select artifacts::int from lighter.storage_by_tenant where tenant_id = $1', [
          tenantId,
        ]),
      ).toBe(6)
    })
    for (const forbidden of [
      'select * from public.artifact_refs',
      'select * from lighter.artifacts',
      'select * from lighter.frames',
      'select * from lighter.frame_exceptions',
      'select * from lighter.loose_artifacts',
      'select * from lighter.jobs',
      'select * from lighter.inbox',
      'select * from lighter.waiting',
      'select * from lighter.leases',
      'select * from lighter.moved_row_records',
      'select * from lighter.objects',
      'select * from lighter.prices',
      'select * from lighter.storage_days',
      'select * from lighter.storage_recount',
      'select * from public.conversation_messages',
      'delete from lighter.storage_entries',
      'update lighter.failures set last_error = null',
      'select lighter.retry()',
    ]) {
      const attempt = asRole(environment.admin, 'lighter_reporter', db => db.query(forbidden))
      expect(['42501', '55000'], forbidden).toContain((await errorOf(attempt)).code)
    }
    expect(
      await column(
        environment.admin,
        `select oid::regprocedure::text from pg_proc
          where pronamespace = 'lighter'::regnamespace and has_function_privilege('lighter_reporter', oid, 'execute')
            -- What triggers ask, whoever writes.
            and proname !~ '^heavy_[0-9]+$'`,
      ),
    ).toEqual(['lighter.table_sizes()'])
  })

  test('a tenant, and an application, sees none of them', async () => {
    // What public.artifact_refs is made of, by row-level security: of one tenant.
    expect(await readable('lighter_tenant')).toEqual(['frame_exceptions', 'frames', 'loose_artifacts'])
    expect(await readable('example_app')).toEqual([])
  })

  test('views that run with the rights of their owner are open to nobody who acts for a tenant', async () => {
    const views = await column<string>(
      environment.admin,
      `select oid::regclass::text from pg_class
        where relnamespace = 'lighter'::regnamespace and relkind = 'v'
          and not coalesce(reloptions, '{}') @> array['security_invoker=true']`,
    )
    expect(views.length).toBeGreaterThanOrEqual(reports.length)
    for (const view of views) {
      for (const role of ['public', 'lighter_tenant', 'example_app']) {
        expect(
          await value(environment.admin, `select has_table_privilege($1, $2, 'select')`, [role, view]),
          `${role} ${view}`,
        ).toBe(false)
      }
    }
  })

  test('the triggers write what their caller may not', async () => {
    const role = uniqueRole('writer')
    await environment.admin.query(`create role ${role}; grant usage on schema lighter to ${role};
      grant insert on artifact_refs, lighter.loose_artifacts to ${role}; grant execute on function lighter.is_frame_id(uuid) to ${role};
      create policy writer on lighter.loose_artifacts for insert to ${role} with check (true)`)
    try {
      await asRole(environment.admin, role, db =>
        db.query(
          `insert into artifact_refs (tenant_id, kind, r2_key) values (gen_random_uuid(), 'own', 'own')`,
        ),
      )
      expect(
        await value(
          environment.admin,
          `select artifacts::int from lighter.storage_by_kind where kind = 'own'`,
        ),
      ).toBe(1)
    } finally {
      await environment.admin.query(
        `drop policy writer on lighter.loose_artifacts; drop owned by ${role}; drop role ${role}`,
      )
    }
  })
})

describe('lighter stats', () => {
  test('--json prints one object, also for a login that only may report', async () => {
    await messages(20)
    await runNow(environment, 'rollup')
    const login = uniqueRole('reporter')
    await environment.admin.query(`create role ${login} login password 'x' in role lighter_reporter`)
    try {
      const url = new URL(environment.urls.admin)
      url.username = login
      url.password = 'x'
      for (const DATABASE_URL of [url.href, environment.urls.daemon]) {
        const { code, stdout, stderr } = await runCli(['stats', '--json'], { env: { DATABASE_URL } })
        expect(stderr).toBe('')
        expect(code).toBe(0)
        const stats = JSON.parse(stdout)
        expect(Object.keys(stats)).toEqual([
          'at',
          'storage_by_kind',
          'top_tenants',
          'tenants',
          'queue',
          'missing_parts',
          'latency',
          'failures',
          'savings',
          'packs',
          'retention_due',
          'sweeps',
        ])
        expect(stats).toMatchObject({
          storage_by_kind: expect.arrayContaining([
            expect.objectContaining({ kind: 'assistant_message_tool_interactions', artifacts: 20 }),
          ]),
          tenants: 1,
          queue: [{ source: 'conversation_messages', depth: 0, exact: true, oldest_seconds: null }],
          latency: [{ queue: 'live', rows: 20 }],
          failures: [],
          savings: { artifacts: 24, inline_usd_per_month_estimated: expect.any(Number) },
          retention_due: { tenants: 0, artifacts: 0, payload_bytes: 0 },
          sweeps: [{ sweep: 'rollup', outcome: 'done', counts: { storage_entries: expect.any(Number) } }],
        })
      }
    } finally {
      await environment.admin.query(`drop role ${login}`)
    }
  })

  test('a login that may not is told what to grant', async () => {
    const { code, stderr } = await runCli(['stats'], { env: { DATABASE_URL: environment.urls.application } })
    expect(code).toBe(1)
    expect(stderr).toContain('grant lighter_reporter to "example_app"')
  })

  test('as text has every section, no colours, and on a terminal fits its width', async () => {
    await messages(20)
    await environment.admin.query(
      `insert into lighter.failed_jobs (source_id, row_id, attempts, enqueued_at, last_error)
       select id, gen_random_uuid(), 8, now(), repeat('a long error ', 30) from lighter.sources`,
    )
    await runNow(environment, 'rollup')
    const { stdout } = await runCli(['stats'], { env: { ...environment.env, NO_COLOR: '1' } })
    for (const title of [
      'Storage',
      'Tenants',
      'Queue',
      'Latency',
      'Failures',
      'Savings',
      'Objects',
      'Sweeps',
    ])
      expect(stdout).toMatch(new RegExp(`^${title}`, 'm'))
    expect(stdout).not.toContain('\x1b[')
    const stats = await readStats(environment.worker)
    for (const width of [40, 80, 132]) {
      for (const line of renderStats(stats, width)) {
        const visible = stripVTControlCharacters(line)
        expect(visible.length, visible).toBeLessThanOrEqual(width)
      }
    }
  })

  test('--watch prints a line each time where there is no terminal, and ends when told to', async () => {
    await messages(3)
    const cli = startCli(['stats', '--watch', '0.2'], { env: environment.env })
    await until(() => cli.stdout().split('\n').length > 3, 'three lines were printed')
    cli.signal('SIGINT')
    const { code, stdout } = await cli.ended
    expect(code).toBe(0)
    for (const line of stdout.trim().split('\n')) expect(line).toMatch(/queue 0 .* artifacts 3 /)
    expect(stdout).not.toContain('\x1b')
  })

  test('a table that is too wide has its text cut before its numbers are', () => {
    const columns = [
      { title: 'name', flexible: true },
      { title: 'n', right: true },
    ]
    const plain = (width: number) =>
      fitTable(columns, [['a rather long name', '12,345']], width).map(line => stripVTControlCharacters(line))
    expect(plain(80)).toEqual(['name                     n', 'a rather long name  12,345'])
    expect(plain(20)).toEqual(['name               n', 'a rather lo…  12,345'])
    expect(plain(10)).toEqual(['name', 'a rathe…'])
  })
})
