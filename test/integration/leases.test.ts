// Where a queued row is, step by step, and who may end it: the inbox, a lease, or lighter.waiting, one of them at a time.
import { randomUUID } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { pino } from 'pino'
import { beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { createPool } from '../../src/db/pool.ts'
import { removeJobs } from '../../src/erase/queue.ts'
import { asTenantId } from '../../src/ids.ts'
import { claimEntries, claimExpired, claimInbox, claimWaiting } from '../../src/offload/claim.ts'
import { commitBatch } from '../../src/offload/commit.ts'
import { type Lease, LeaseLost } from '../../src/offload/lease.ts'
import { packBatch } from '../../src/offload/pack-batch.ts'
import { newTokens, planRows } from '../../src/offload/plan.ts'
import { registerObjects } from '../../src/offload/register.ts'
import { blameless, conflict, failure, notYet } from '../../src/offload/return-jobs.ts'
import { settle } from '../../src/offload/settle.ts'
import type { SignalPoint } from '../../src/offload/signals.ts'
import { unqueueRows } from '../../src/offload/unqueue.ts'
import { loadSources, type Source } from '../../src/source/sources.ts'
import type { Counts, SweepContext } from '../../src/sweeps/context.ts'
import { createClaims } from '../../src/wake/claims.ts'
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
  useEnvironment,
} from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'
import { emptyQueue, leaseRows } from '../support/queue.ts'
import { spawnDaemon } from '../support/spawn-daemon.ts'
import { backendPid, column, connect, untilBlocked, value } from '../support/sql.ts'

const environment = await useEnvironment()
const pool = environment.worker
const leaseMs = 60_000
const maxAttempts = 8
let source: Source
let conversationId: string

beforeAll(async () => {
  const [only] = (await loadSources(pool)).values()
  if (only === undefined) throw new Error('nothing is attached')
  source = only
})
beforeEach(async () => {
  await emptyQueue(environment)
  await environment.admin.query('delete from lighter.failed_jobs')
  conversationId = (await newConversation(environment)).conversationId
})

const heavy = (mark: unknown = 'heavy') => `{"tool_interactions": [${JSON.stringify(mark)}]}`
const insert = (metadata = heavy(), db?: Parameters<typeof insertMessage>[3]) =>
  insertMessage(environment, conversationId, metadata, db)
const update = (id: string, metadata: string) =>
  environment.app.query('update conversation_messages set metadata = $2 where id = $1', [id, metadata])

/** Where the row is, by what is committed. */
const placesOf = (id: string) =>
  column<string>(environment.admin, 'select place from lighter.jobs where row_id = $1 order by place', [id])

const claim = async (limit = 100): Promise<Lease> => {
  const { lease } = await claimInbox(pool, [source.id], limit, leaseMs)
  if (lease === null) throw new Error('nothing was claimed')
  return lease
}
const rowsOf = (lease: Lease | null) => lease?.jobs.map(job => job.rowId)

/** As if its holder had not been heard of for a minute. */
const runOut = (...leases: (Lease | null)[]) =>
  environment.admin.query(
    `update lighter.leases set until = now() - interval '1 s' where id = any ($1::uuid[])`,
    [leases.map(lease => lease?.id)],
  )

interface StoredLease {
  rows: string[]
  held: boolean
}
/** Rows that are in it still, of each lease; those that nobody holds last. */
async function storedLeases(): Promise<StoredLease[]> {
  const { rows } = await environment.admin.query<StoredLease>(
    `select array(select r from unnest(row_ids) with ordinality u(r, ord) where ord <> all (done) order by ord) as rows,
            until is not null as held
       from lighter.leases order by until nulls last`,
  )
  return rows
}

const limits = { budgetBytes: 1e8, streamThresholdBytes: 1e8, maxPayloadBytes: 1e8 }

/** Of a lease, what a daemon has in hand just before its commit. */
async function readyToCommit(lease: Lease) {
  const tokens = newTokens()
  const rows = await planRows(pool, source, lease.jobs, limits, tokens)
  const { built } = await packBatch(rows, environment.config().offload, environment.store.prefix, tokens)
  const objects = built.map(o => ({ tenantId: o.tenantId, key: o.key, byteLength: o.body.length }))
  const register = () =>
    registerObjects(
      pool,
      built.map(o => ({ ...o, byteLength: o.body.length })),
      leaseMs,
      lease.id,
    )
  const upload = async () => {
    for (const { key, body, contentType } of built) await environment.store.put(key, body, { contentType })
  }
  const locations = new Map(built.flatMap(o => [...o.locations]))
  const keys = objects.map(o => o.key)
  return { keys, register, upload, commit: () => commitBatch(pool, rows, locations, objects, maxAttempts) }
}

describe('a row is in one committed place at a time', () => {
  test('in the inbox, in a lease, waiting, in a lease again, and nowhere', async () => {
    const id = await insert()
    expect(await placesOf(id)).toEqual(['inbox'])
    const daemon = await connect(environment.urls.daemon)
    const step = async <T>(work: () => Promise<T>, before: string[], after: string[]): Promise<T> => {
      await daemon.query('begin')
      const result = await work()
      expect(await placesOf(id)).toEqual(before)
      await daemon.query('commit')
      expect(await placesOf(id)).toEqual(after)
      return result
    }
    try {
      const { lease } = await step(() => claimInbox(daemon, [source.id], 10, leaseMs), ['inbox'], ['lease'])
      if (lease === null) throw new Error('nothing was claimed')
      await step(
        () =>
          settle(
            daemon,
            lease,
            [],
            lease.jobs.map(job => conflict(job, source)),
            maxAttempts,
          ),
        ['lease'],
        ['waiting'],
      )
      await environment.admin.query('update lighter.waiting set available_at = now()')
      const again = await step(() => claimWaiting(daemon, [source.id], 10, leaseMs), ['waiting'], ['lease'])
      if (again === null) throw new Error('nothing was claimed')
      await runOut(again)
      const taken = await claimExpired(pool, leaseMs)
      if (taken === null) throw new Error('nothing had run out')
      expect(await placesOf(id)).toEqual(['lease'])
      const { register, upload, commit } = await readyToCommit(taken)
      await register()
      await upload()
      expect((await commit()).done.size).toBe(1)
      expect(await placesOf(id)).toEqual([])
      expect(await storedLeases()).toEqual([])
    } finally {
      await daemon.end()
    }
    expect(await hydrated(environment, id)).toBe(heavy())
  })

  test('a dead letter is in none of them', async () => {
    const id = await insert()
    const lease = await claim()
    await settle(
      pool,
      lease,
      [],
      lease.jobs.map(job => failure(job, 'never', true)),
      maxAttempts,
    )
    expect(await placesOf(id)).toEqual([])
    expect(await column(environment.admin, 'select row_id from lighter.failed_jobs')).toEqual([id])
  })

  test('at every step of a daemon', async () => {
    const signals = createSignals()
    const daemon = await startDaemon(environment, { signal: signals.signal })
    onTestFinished(() => daemon.stop().then(() => undefined))
    for (const [point, places] of [
      ['after-claim', ['lease']],
      ['after-plan', ['lease']],
      ['after-register', ['lease']],
      ['after-upload', ['lease']],
      ['before-commit', ['lease']],
      ['after-commit', []],
    ] as [SignalPoint, string[]][]) {
      const hold = signals.holdAt(point)
      const id = await insert()
      await hold.reached
      expect(await placesOf(id), point).toEqual(places)
      hold.release()
      await drained(environment)
    }
  })

  test('at every moment, among daemons that share the work, with rows that fail and leases that run out', async () => {
    await environment.admin.query(`
      create function stumble() returns trigger language plpgsql security definer set search_path = public as $$ begin
        -- Each third row fails the first time, and keeps that in mind by what a rollback does not undo.
        if abs(hashtext(new.id::text)) % 3 = 0 and nextval('stumbles') < 60 then raise exception 'not yet'; end if;
        return new;
      end $$;
      create sequence stumbles;
      create trigger stumble before update on conversation_messages for each row execute function stumble();
      alter table conversation_messages enable always trigger stumble`)
    onTestFinished(async () => {
      await environment.admin.query(
        'drop trigger stumble on conversation_messages; drop function stumble(); drop sequence stumbles',
      )
    })
    const ids = await Promise.all(Array.from({ length: 200 }, (_, n) => insert(heavy(n))))
    const env = { OFFLOAD_BATCH_ROWS: '20', POLL_INTERVAL_MS: '100' }
    const daemons = await Promise.all([startDaemon(environment, { env }), startDaemon(environment, { env })])
    onTestFinished(async () => {
      for (const daemon of daemons) await daemon.stop()
    })
    const wrong = `
      select m.id, m.metadata ? 'tool_interactions_ref' as offloaded, array(select j.place from lighter.jobs j where j.row_id = m.id::text) as places
        from conversation_messages m
       where m.id = any ($1::uuid[])
         and (select count(*) from lighter.jobs j where j.row_id = m.id::text)
             <> case when m.metadata ? 'tool_interactions_ref' then 0 else 1 end`
    let looks = 0
    for (let left = 1; left > 0; looks++) {
      // One statement, and thereby one snapshot.
      expect((await environment.admin.query(wrong, [ids])).rows).toEqual([])
      left = await value<number>(environment.admin, 'select count(*)::int from lighter.jobs')
    }
    expect(looks).toBeGreaterThan(10)
    expect((await environment.admin.query(wrong, [ids])).rows).toEqual([])
    expect(await column(environment.admin, 'select row_id from lighter.failed_jobs')).toEqual([])
  })
})

describe('a claim of the inbox', () => {
  test('leases a row once that was written twice, and counts its wait from the first', async () => {
    const id = await insert(heavy(1))
    await update(id, heavy(2))
    await environment.admin.query(
      `update lighter.inbox set enqueued_at = case when id = (select min(id) from lighter.inbox) then '2026-01-01 00:00Z'::timestamptz else enqueued_at end`,
    )
    expect(await placesOf(id)).toEqual(['inbox', 'inbox'])
    const { lease, entries } = await claimInbox(pool, [source.id], 10, leaseMs)
    expect(entries).toBe(2)
    expect(lease?.jobs).toMatchObject([
      { rowId: id, enqueuedMs: Date.parse('2026-01-01T00:00:00Z'), attempts: 1, conflicts: 0, priority: 0 },
    ])
    expect(await placesOf(id)).toEqual(['lease'])
  })

  test('takes the oldest entries, of the given sources only, and says how far it came', async () => {
    const ids = [await insert(), await insert(), await insert()]
    await environment.admin.query(`insert into lighter.inbox (source_id, row_id) values (0, 'of another')`)
    const { lease, entries, lastId } = await claimInbox(pool, [source.id], 2, leaseMs)
    expect([rowsOf(lease), entries]).toEqual([ids.slice(0, 2), 2])
    expect(await claimInbox(pool, [source.id], 2, leaseMs, lastId + 1)).toEqual({
      lease: null,
      entries: 0,
      lastId: 0,
    })
    expect(rowsOf((await claimInbox(pool, [source.id], 2, leaseMs, lastId)).lease)).toEqual(ids.slice(2))
    expect(await placesOf('of another')).toEqual(['inbox'])
  })

  test('a row that is written while it is leased is queued beside that, and both end', async () => {
    const id = await insert(heavy('first'))
    const lease = await claim()
    const first = await readyToCommit(lease)
    await first.register()
    await first.upload()
    await update(id, heavy('second'))
    expect(await placesOf(id)).toEqual(['inbox', 'lease'])
    const next = await claim()
    expect(await placesOf(id)).toEqual(['lease', 'lease'])
    const second = await readyToCommit(next)
    await second.register()
    await second.upload()
    expect((await second.commit()).done.size).toBe(1)
    // What the first has in hand is not what is in the row.
    expect((await first.commit()).changed).toHaveLength(1)
    expect(await placesOf(id)).toEqual(['waiting'])
    expect(await hydrated(environment, id)).toBe(heavy('second'))
  })

  test('leaves a row to its next attempt, however often it is written meanwhile', async () => {
    const [busy, failing, backfilled] = [await insert(), await insert(), await insert()]
    await environment.admin.query(
      `insert into lighter.waiting (source_id, row_id, priority, conflicts, attempts, available_at)
       values ($1, $2, 0, 3, 0, now() + interval '1 minute'), ($1, $3, 0, 0, 2, now() + interval '1 minute'),
              ($1, $4, 10, 0, 0, now())`,
      [source.id, busy, failing, backfilled],
    )
    const { lease } = await claimInbox(pool, [source.id], 100, leaseMs)
    expect(lease?.jobs.map(job => job.rowId)).toEqual([backfilled])
    // The others are queued as before, and in one place.
    expect(
      await column(
        environment.admin,
        `select row_id from lighter.jobs where place <> 'lease' and priority = 0 order by conflicts`,
      ),
    ).toEqual([failing, busy])
    await update(busy, heavy('once more'))
    expect((await claimInbox(pool, [source.id], 100, leaseMs)).lease).toBeNull()
    await environment.admin.query('update lighter.waiting set available_at = now() where row_id = $1', [busy])
    await update(busy, heavy('when it is due'))
    expect((await claimInbox(pool, [source.id], 100, leaseMs)).lease?.jobs.map(job => job.rowId)).toEqual([
      busy,
    ])
  })

  test('by many at once takes each entry once', async () => {
    const ids = Array.from({ length: 300 }, () => randomUUID())
    await environment.admin.query(
      `insert into lighter.inbox (source_id, row_id) select $1, r from unnest($2::text[]) r, generate_series(1, 3)`,
      [source.id, ids],
    )
    const wide = createPool(environment.urls.daemon, 8, () => undefined)
    onTestFinished(() => wide.end())
    const claims: { lease: Lease | null; entries: number }[] = []
    const oneDaemon = async (n: number) => {
      for (;;) {
        if (n % 4 === 3) {
          // As the look at the newest does.
          const some = await column<number>(
            wide,
            'select id::int from lighter.inbox order by id desc limit 20',
          )
          const lease = some.length === 0 ? null : await claimEntries(wide, some, leaseMs)
          if (lease !== null) claims.push({ lease, entries: 0 })
          if (some.length === 0) return
        } else {
          const claim = await claimInbox(wide, [source.id], 30, leaseMs)
          if (claim.lease === null) return
          claims.push(claim)
        }
      }
    }
    await Promise.all(Array.from({ length: 8 }, (_, n) => oneDaemon(n)))
    expect(await value(environment.admin, 'select count(*)::int from lighter.inbox')).toBe(0)
    const rows = claims.flatMap(each => rowsOf(each.lease) ?? [])
    expect(new Set(rows)).toEqual(new Set(ids))
    for (const { lease } of claims) expect(new Set(rowsOf(lease)).size).toBe(lease?.jobs.length)
    const stored = await storedLeases()
    expect(stored.flatMap(lease => lease.rows).sort()).toEqual(rows.sort())
  })

  test('leaves alone what another is just taking, and entries that are not committed', async () => {
    const [taken, free] = [await insert(), await insert()]
    const [other, writer] = [
      await connect(environment.urls.daemon),
      await connect(environment.urls.application),
    ]
    try {
      await writer.query('begin')
      await insert(heavy(), writer)
      await other.query('begin')
      expect(rowsOf((await claimInbox(other, [source.id], 1, leaseMs)).lease)).toEqual([taken])
      expect(rowsOf((await claimInbox(pool, [source.id], 10, leaseMs)).lease)).toEqual([free])
      const entries = await column<number>(environment.admin, 'select id::int from lighter.inbox')
      expect(await claimEntries(pool, entries, leaseMs)).toBeNull()
    } finally {
      await Promise.all([other.end(), writer.end()])
    }
  })
})

test('a lease goes with its last row, though the commits of its parts do not see each other', async () => {
  for (let n = 0; n < 3; n++) await insert()
  const lease = await claim()
  const [first, second, third] = lease.jobs
  if (first === undefined || second === undefined || third === undefined) throw new Error('three were queued')
  await settle(pool, lease, [first], [], maxAttempts)
  const one = await connect(environment.urls.daemon)
  const other = await connect(environment.urls.daemon)
  await one.query('begin')
  await settle(one, lease, [second], [], maxAttempts)
  const pid = await backendPid(other)
  const theOther = settle(other, lease, [third], [], maxAttempts)
  await untilBlocked(environment.admin, pid)
  await one.query('commit')
  await theOther
  expect(await column(environment.admin, 'select id from lighter.leases')).toEqual([])
})

describe('a lease that runs out', () => {
  const five = ['1', '2', '3', '4', '5']
  const expired = () => claimExpired(pool, leaseMs)

  test('is split in two, and the second half is taken whole: it is not split before it was tried', async () => {
    const lease = await leaseRows(environment.admin, source.id, five)
    expect(await expired()).toBeNull()
    await runOut(lease)
    const first = await expired()
    expect(first).toMatchObject({ isHalf: true, suspect: false })
    expect(rowsOf(first)).toEqual(['1', '2', '3'])
    expect(await storedLeases()).toEqual([
      { rows: ['1', '2', '3'], held: true },
      { rows: ['4', '5'], held: false },
    ])
    const second = await expired()
    expect(second).toMatchObject({ isHalf: false, suspect: false })
    expect(rowsOf(second)).toEqual(['4', '5'])
    expect(await expired()).toBeNull()
    for (const each of [first, second]) for (const job of each?.jobs ?? []) expect(job.attempts).toBe(1)

    await runOut(second)
    expect(rowsOf(await expired())).toEqual(['4'])
    // Alone, but not because it was tried alone.
    const last = await expired()
    expect(last).toMatchObject({ suspect: false, jobs: [{ rowId: '5', attempts: 1 }] })
    expect(await storedLeases()).toHaveLength(3)
  })

  test('is known by another name afterwards, each half by its own', async () => {
    const lease = await leaseRows(environment.admin, source.id, five)
    await runOut(lease)
    const halves = [await expired(), await expired()]
    const ids = await column<string>(environment.admin, 'select id from lighter.leases')
    expect(new Set(ids)).toEqual(new Set(halves.map(half => half?.id)))
    expect(ids).not.toContain(lease.id)
  })

  test('brings its rows back as they were, and none that is in it no more', async () => {
    const lease = await leaseRows(environment.admin, source.id, five, {
      attempts: 4,
      conflicts: 2,
      priority: 10,
      error: 'no answer',
      enqueuedMs: 1_700_000_000_000,
    })
    await settle(pool, lease, lease.jobs.slice(1, 3), [], maxAttempts)
    await runOut(lease)
    const [first, second] = [await expired(), await expired()]
    expect([rowsOf(first), rowsOf(second)]).toEqual([['1', '4'], ['5']])
    for (const job of [...(first?.jobs ?? []), ...(second?.jobs ?? [])])
      expect(job).toMatchObject({
        attempts: 4,
        conflicts: 2,
        priority: 10,
        error: 'no answer',
        enqueuedMs: 1_700_000_000_000,
      })
  })

  test('with nothing in it any more goes, and the next one is looked at', async () => {
    const [empty, full] = [
      await leaseRows(environment.admin, source.id, ['done']),
      await leaseRows(environment.admin, source.id, ['left']),
    ]
    await environment.admin.query(`update lighter.leases set done = '{1}' where id = $1`, [empty.id])
    await environment.admin.query(
      `update lighter.leases set until = now() - interval '1 hour' where id = $1`,
      [empty.id],
    )
    await runOut(full)
    expect(rowsOf(await expired())).toEqual(['left'])
    expect(await storedLeases()).toEqual([{ rows: ['left'], held: true }])
  })

  test('is taken by one of many who look at once', async () => {
    const leases = await Promise.all(
      Array.from({ length: 20 }, (_, n) =>
        leaseRows(environment.admin, source.id, [`${n} a`, `${n} b`, `${n} c`]),
      ),
    )
    await runOut(...leases)
    const wide = createPool(environment.urls.daemon, 8, () => undefined)
    onTestFinished(() => wide.end())
    const found: string[] = []
    const oneDaemon = async () => {
      for (;;) {
        const lease = await claimExpired(wide, leaseMs)
        if (lease === null) return
        found.push(...(rowsOf(lease) ?? []))
      }
    }
    await Promise.all(Array.from({ length: 8 }, oneDaemon))
    // Whoever looks at what another is just splitting finds nothing, and looks again later.
    for (let last = 0; last !== found.length; ) {
      last = found.length
      await oneDaemon()
    }
    expect(found.sort()).toEqual(leases.flatMap(lease => lease.jobs.map(job => job.rowId)).sort())
    expect((await storedLeases()).flatMap(lease => lease.rows).sort()).toEqual(found)
  })

  test('does not while its holder works, however long that takes', async () => {
    const signals = createSignals()
    const env = { OFFLOAD_LEASE_MS: '1000' }
    const daemon = await startDaemon(environment, { signal: signals.signal, env })
    onTestFinished(() => daemon.stop().then(() => undefined))
    const hold = signals.holdAt('after-upload')
    const id = await insert()
    await hold.reached
    const lease = () =>
      environment.admin
        .query<{ id: string; until: Date; held: boolean }>(
          'select id, until, until > clock_timestamp() as held from lighter.leases where $1 = any (row_ids)',
          [id],
        )
        .then(({ rows }) => rows[0])
    const before = await lease()
    const other = await startDaemon(environment, { env })
    onTestFinished(() => other.stop().then(() => undefined))
    await until(async () => {
      const now = await lease()
      expect(now).toMatchObject({ id: before?.id, held: true })
      return (now?.until.getTime() ?? 0) > (before?.until.getTime() ?? 0) + 2500
    }, 'it was extended for more than two leases')
    hold.release()
    await drained(environment)
    expect(await hydrated(environment, id)).toBe(heavy())
    expect(
      await value(environment.admin, 'select count(*)::int from artifact_refs where row_id = $1', [id]),
    ).toBe(1)
  })
})

describe('attempts', () => {
  const waiting = () =>
    environment.admin
      .query('select row_id, attempts, conflicts, last_error from lighter.waiting order by row_id')
      .then(({ rows }) => rows)

  test("count a row's own failure, and neither trouble, nor a conflict, nor that it was not its turn", async () => {
    const lease = await leaseRows(environment.admin, source.id, ['1', '2', '3', '4'])
    const [failed, troubled, changed, deferred] = lease.jobs
    if (failed === undefined || troubled === undefined || changed === undefined || deferred === undefined)
      throw new Error('four rows')
    await settle(
      pool,
      lease,
      [],
      [
        failure(failed, 'bad'),
        blameless(troubled, new Error('down'), 1000),
        conflict(changed, source),
        notYet(deferred),
      ],
      maxAttempts,
    )
    expect(await waiting()).toEqual([
      { row_id: '1', attempts: 1, conflicts: 0, last_error: 'bad' },
      { row_id: '2', attempts: 0, conflicts: 0, last_error: 'down' },
      { row_id: '3', attempts: 0, conflicts: 1, last_error: null },
      { row_id: '4', attempts: 0, conflicts: 0, last_error: null },
    ])
    expect(await storedLeases()).toEqual([])
  })

  test('count a daemon that died only against a row that was alone', async () => {
    const lease = await leaseRows(environment.admin, source.id, ['1', '2'])
    await runOut(lease)
    const first = await claimExpired(pool, leaseMs)
    expect(first?.jobs).toMatchObject([{ rowId: '1', attempts: 1 }])
    await runOut(first)
    // The half that nobody has tried comes first.
    expect((await claimExpired(pool, leaseMs))?.jobs).toMatchObject([{ rowId: '2', attempts: 1 }])
    const again = await claimExpired(pool, leaseMs)
    expect(again).toMatchObject({ suspect: true, jobs: [{ rowId: '1', attempts: 2 }] })
    await runOut(again)
    const last = await claimExpired(pool, leaseMs)
    expect(last?.jobs).toMatchObject([{ rowId: '1', attempts: 3 }])
    if (last === null) throw new Error('it had run out')
    // Put back in peace, the two stay.
    await settle(
      pool,
      last,
      [],
      last.jobs.map(job => notYet(job)),
      maxAttempts,
    )
    expect(await waiting()).toEqual([{ row_id: '1', attempts: 2, conflicts: 0, last_error: null }])
  })

  test('of a row on which every daemon dies are the only ones that are used up, and the others are done first', async () => {
    const ids = Array.from({ length: 64 }, (_, n) => String(n))
    const bad = '37'
    await leaseRows(environment.admin, source.id, ids, { leaseMs: -1000 })
    const done: string[] = []
    let deaths = 0
    for (;;) {
      const lease = await claimExpired(pool, leaseMs)
      if (lease === null) throw new Error('the bad row was lost')
      const [only] = lease.jobs
      if (only?.rowId === bad && only.attempts > maxAttempts) break
      if (lease.jobs.some(job => job.rowId === bad)) {
        deaths++
        await runOut(lease)
        continue
      }
      for (const job of lease.jobs) expect(job.attempts).toBe(1)
      await settle(pool, lease, lease.jobs, [], maxAttempts)
      done.push(...lease.jobs.map(job => job.rowId))
    }
    expect(done.sort()).toEqual(ids.filter(id => id !== bad).sort())
    // Once for each time that 64 can be halved, and once for each attempt of its own.
    expect(deaths).toBeLessThanOrEqual(Math.log2(64) + maxAttempts)
  })

  test('when they are used up make a dead letter of it that says what happened', async () => {
    const id = await insert()
    await emptyQueue(environment)
    await leaseRows(environment.admin, source.id, [id], { attempts: 3, leaseMs: -1000 })
    const daemon = await startDaemon(environment, { env: { OFFLOAD_MAX_ATTEMPTS: '3' } })
    await drained(environment)
    await daemon.stop()
    const { rows } = await environment.admin.query(
      'select row_id, attempts, last_error from lighter.failed_jobs',
    )
    expect(rows).toEqual([
      { row_id: id, attempts: 4, last_error: expect.stringMatching(/^3 attempts ended without an answer/) },
    ])
    expect(await rawMetadata(environment, id)).toBe(heavy())
  })
})

describe('a former holder of a lease', () => {
  const takeOver: [string, (lease: Lease) => Promise<Lease | null>][] = [
    [
      'that ran out',
      async lease => {
        await runOut(lease)
        return claimExpired(pool, leaseMs)
      },
    ],
    [
      'whose rows are done by another',
      async lease => {
        await runOut(lease)
        const taken = await claimExpired(pool, leaseMs)
        if (taken !== null) await settle(pool, taken, taken.jobs, [], maxAttempts)
        return null
      },
    ],
    [
      'that was taken away',
      async lease => {
        await environment.admin.query(
          'update lighter.leases set id = gen_random_uuid(), until = null where id = $1',
          [lease.id],
        )
        return null
      },
    ],
  ]

  test.each(takeOver)(
    '%s can neither register nor commit nor return anything, and changes nothing',
    async (_, take) => {
      const ids = [await insert(heavy(1)), await insert(heavy(2))]
      const lease = await claim()
      const late = await readyToCommit(lease)
      const frozen = await readyToCommit(lease)
      await frozen.register()
      await frozen.upload()
      await take(lease)

      const state = async () => {
        const { rows } = await environment.admin.query(
          `select (select json_agg(l order by l.id) from lighter.leases l) as leases,
                (select json_agg(j order by j.row_id) from lighter.waiting j) as waiting,
                (select json_agg(o order by o.r2_key) from lighter.objects o) as objects,
                (select json_agg(m.metadata order by m.id) from conversation_messages m where m.id = any ($1::uuid[])) as rows,
                (select count(*)::int from artifact_refs) as artifacts,
                (select count(*)::int from lighter.latency_changes) as latencies`,
          [ids],
        )
        return rows[0]
      }
      const before = await state()
      await expect(late.register()).rejects.toBeInstanceOf(LeaseLost)
      await expect(frozen.commit()).rejects.toBeInstanceOf(LeaseLost)
      await expect(settle(pool, lease, lease.jobs, [], maxAttempts)).rejects.toBeInstanceOf(LeaseLost)
      await expect(
        settle(
          pool,
          lease,
          [],
          lease.jobs.map(job => failure(job, 'late')),
          maxAttempts,
        ),
      ).rejects.toMatchObject({ code: 'lease_lost', retryable: true })
      expect(await state()).toEqual(before)
      // What it had uploaded is on record, and an orphan once its own lease has run out.
      expect((await bucketMismatches(environment)).unregistered).toEqual([])
      for (const id of ids) expect(await rawMetadata(environment, id)).not.toContain('_ref')
    },
  )

  test('that commits while another takes it over: one of the two has it, whoever comes first', async () => {
    const id = await insert()
    const lease = await claim()
    const { register, upload, commit } = await readyToCommit(lease)
    await register()
    await upload()
    await runOut(lease)
    const [taker, watcher] = [await connect(environment.urls.daemon), environment.admin]
    try {
      // Another daemon has found it, and has not committed that yet.
      await taker.query('begin')
      await taker.query('select from lighter.leases where id = $1 for update', [lease.id])
      await taker.query('delete from lighter.leases where id = $1', [lease.id])
      const committing = commit().then(
        () => 'committed',
        (error: unknown) => error,
      )
      await until(async () => {
        const { rows } = await watcher.query(
          `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query like '%lighter.leases%'`,
        )
        return rows.length === 1
      }, 'the commit waits for its lease')
      // While the commit waits nobody else finds the lease either.
      expect(await claimExpired(environment.admin, leaseMs)).toBeNull()
      await taker.query('commit')
      expect(await committing).toBeInstanceOf(LeaseLost)
    } finally {
      await taker.end()
    }
    expect(await rawMetadata(environment, id)).toBe(heavy())
  })

  const points: SignalPoint[] = [
    'after-claim',
    'after-plan',
    'after-register',
    'after-upload',
    'before-commit',
  ]
  test.each(points)(
    'a real one, stopped %s for longer than its lease, leaves what others have done',
    async point => {
      const env = { OFFLOAD_LEASE_MS: '1000', POLL_INTERVAL_MS: '200' }
      const texts = [heavy('frozen 1'), heavy('frozen 2')]
      const ids = [await insert(texts[0]), await insert(texts[1])]
      const frozen = await spawnDaemon(environment, { env: { ...env, STOP_AT: point } })
      onTestFinished(() => frozen.kill('SIGKILL'))
      await until(
        async () => / T /.test(await readFile(`/proc/${frozen.pid}/stat`, 'utf8')),
        'it has stopped itself',
      )
      const other = await startDaemon(environment, { env })
      onTestFinished(() => other.stop().then(() => undefined))
      await drained(environment)
      const artifacts = () =>
        column(environment.admin, 'select id from artifact_refs where row_id = any ($1) order by id', [ids])
      const before = {
        artifacts: await artifacts(),
        rows: await Promise.all(ids.map(id => rawMetadata(environment, id))),
      }
      expect(before.artifacts).toHaveLength(2)
      frozen.kill('SIGCONT')
      // It goes on, and finds out.
      const last = heavy('written after it went on')
      const next = await insert(last)
      await drained(environment)
      frozen.kill('SIGTERM')
      expect(await frozen.ended).toEqual({ code: 0, signal: null })
      expect({
        artifacts: await artifacts(),
        rows: await Promise.all(ids.map(id => rawMetadata(environment, id))),
      }).toEqual(before)
      for (const [n, id] of ids.entries()) expect(await hydrated(environment, id)).toBe(texts[n])
      expect(await hydrated(environment, next)).toBe(last)
      expect((await bucketMismatches(environment)).unregistered).toEqual([])
      expect(await strayArtifacts(environment)).toEqual([])
      expect(await column(environment.admin, 'select row_id from lighter.failed_jobs')).toEqual([])
    },
  )
})

describe('what was taken out of a lease meanwhile', () => {
  const waiting = () =>
    column<string>(environment.admin, 'select row_id from lighter.waiting order by row_id')

  test('is returned nowhere, and makes nothing of the rest fail', async () => {
    const lease = await leaseRows(environment.admin, source.id, ['1', '2', '3'])
    await environment.admin.query(
      `insert into lighter.waiting (source_id, row_id) values ($1, '2'), ($1, 'other'), (0, '2');`.replaceAll(
        '$1',
        String(source.id),
      ),
    )
    await environment.admin.query(`insert into lighter.inbox (source_id, row_id) values ($1, '2')`, [
      source.id,
    ])
    await unqueueRows(pool, source.id, ['2'])
    expect(
      await column(
        environment.admin,
        `select place from lighter.jobs where row_id = '2' and source_id = $1`,
        [source.id],
      ),
    ).toEqual([])
    expect(await storedLeases()).toEqual([{ rows: ['1', '3'], held: true }])
    await settle(
      pool,
      lease,
      [],
      lease.jobs.map(job => failure(job, 'bad', job.rowId === '3')),
      maxAttempts,
    )
    expect(await waiting()).toEqual(['1', '2', 'other'])
    expect(
      await column(environment.admin, `select source_id from lighter.waiting where row_id = '2'`),
    ).toEqual([0])
    expect(await column(environment.admin, 'select row_id from lighter.failed_jobs')).toEqual(['3'])
    expect(await storedLeases()).toEqual([])
  })

  test('is found out though both happen at the same time: the one waits for the other', async () => {
    const lease = await leaseRows(environment.admin, source.id, ['1', '2'])
    const [restore, daemon] = [await connect(environment.urls.daemon), await connect(environment.urls.daemon)]
    try {
      const pid = await backendPid(daemon)
      await restore.query('begin')
      await unqueueRows(restore, source.id, ['2'])
      const settling = settle(
        daemon,
        lease,
        [],
        lease.jobs.map(job => notYet(job)),
        maxAttempts,
      )
      await untilBlocked(environment.admin, pid)
      await restore.query('commit')
      await settling
    } finally {
      await Promise.all([restore.end(), daemon.end()])
    }
    expect(await waiting()).toEqual(['1'])
  })

  test('nor does it come back when the lease runs out', async () => {
    const lease = await leaseRows(environment.admin, source.id, ['1', '2', '3'])
    await unqueueRows(pool, source.id, ['1', '3'])
    await runOut(lease)
    expect((await claimExpired(pool, leaseMs))?.jobs).toMatchObject([{ rowId: '2' }])
    expect(await claimExpired(pool, leaseMs)).toBeNull()
  })

  test('a table that is detached while its rows are returned leaves none of them behind', async () => {
    await environment.admin.query(`
      create table short_lived (id bigint primary key, tenant_id uuid, metadata jsonb);
      select lighter.attach('short_lived')`)
    onTestFinished(async () => {
      await environment.admin.query('drop table short_lived')
    })
    const id = await value<number>(
      environment.admin,
      `select id from lighter.sources where relation = 'short_lived'::regclass`,
    )
    const lease = await leaseRows(environment.admin, id, ['1'])
    const [daemon, owner] = [await connect(environment.urls.daemon), await connect(environment.urls.admin)]
    try {
      await daemon.query('begin')
      await settle(
        daemon,
        lease,
        [],
        lease.jobs.map(job => notYet(job)),
        maxAttempts,
      )
      const pid = await backendPid(owner)
      const detaching = owner.query(`select lighter.detach('short_lived')`)
      await untilBlocked(environment.admin, pid)
      await daemon.query('commit')
      await detaching
    } finally {
      await Promise.all([daemon.end(), owner.end()])
    }
    expect(
      await column(environment.admin, 'select place from lighter.jobs where source_id = $1', [id]),
    ).toEqual([])
  })
})

describe('of what a daemon claims next', () => {
  const claimsOf = () => createClaims(pool, { ...environment.config().offload, leaseMs })
  const queue = (rows: string[]) =>
    environment.admin.query('insert into lighter.inbox (source_id, row_id) select $1, unnest($2::text[])', [
      source.id,
      rows,
    ])
  const wait = (row: string, priority = 0) =>
    environment.admin.query('insert into lighter.waiting (source_id, row_id, priority) values ($1, $2, $3)', [
      source.id,
      row,
      priority,
    ])

  test('an entry of a transaction that ended late is found at once when nothing newer is there', async () => {
    const claims = claimsOf()
    const writer = await connect(environment.urls.application)
    try {
      await writer.query('begin')
      const late = await insert(heavy('late'), writer)
      const early = await insert(heavy('early'))
      expect((await claims.next([source], 10, false)).leases.map(rowsOf)).toEqual([[early]])
      expect((await claims.next([source], 10, false)).leases).toEqual([])
      await writer.query('commit')
      expect((await claims.next([source], 10, false)).leases.map(rowsOf)).toEqual([[late]])
    } finally {
      await writer.end()
    }
  })

  test('and soon, too, among newer ones that never cease to come', async () => {
    const claims = claimsOf()
    const writer = await connect(environment.urls.application)
    try {
      await writer.query('begin')
      const late = await insert(heavy('late'), writer)
      await queue(['before'])
      await claims.next([source], 1, false)
      await writer.query('commit')
      let newer = 0
      const began = performance.now()
      for (let found = false; !found; ) {
        expect(performance.now() - began, 'ms until it is found').toBeLessThan(5000)
        // There is always one more than is taken.
        await queue([`newer ${newer++}`, `newer ${newer++}`])
        const { leases, full } = await claims.next([source], 1, false)
        expect(full).toBe(true)
        found = leases.some(lease => rowsOf(lease)?.includes(late))
      }
    } finally {
      await writer.end()
    }
  })

  test('rows that wait have their turn beside a full inbox, and those of a backfill only when it is not', async () => {
    const claims = claimsOf()
    await wait('failed before')
    await wait('of a backfill', 10)
    await queue(Array.from({ length: 40 }, (_, n) => `new ${n}`))
    const claimed: string[] = []
    for (let n = 0; n < 8; n++) {
      const { leases, full } = await claims.next([source], 5, false)
      expect(full).toBe(true)
      claimed.push(...leases.flatMap(lease => rowsOf(lease) ?? []))
      if (n === 6) {
        expect(claimed).toContain('failed before')
        expect(claimed).not.toContain('of a backfill')
      }
    }
    const { leases } = await claims.next([source], 5, false)
    claimed.push(...leases.flatMap(lease => rowsOf(lease) ?? []))
    expect(claimed).toContain('of a backfill')
    expect(new Set(claimed).size).toBe(claimed.length)
  })

  test('what others have left behind comes at once when nothing else is to be done, and beside it otherwise', async () => {
    const claims = claimsOf()
    await runOut(await leaseRows(environment.admin, source.id, ['a', 'b']))
    expect((await claims.next([source], 10, false)).leases.map(rowsOf)).toEqual([['a']])
    await queue(['new'])
    const { leases, full } = await claims.next([source], 10, false)
    expect(leases.map(rowsOf)).toEqual([['b'], ['new']])
    expect(full).toBe(true)
    expect((await claims.next([source], 10, false)).leases).toEqual([])
    await runOut(await leaseRows(environment.admin, source.id, ['c']))
    expect((await claims.next([source], 10, false)).leases.map(rowsOf)).toEqual([['c']])
  })

  test('a probe takes one lease', async () => {
    const claims = claimsOf()
    await wait('waits')
    await queue(['new', 'newer'])
    await runOut(await leaseRows(environment.admin, source.id, ['left behind']))
    expect((await claims.next([source], 1, true)).leases.map(rowsOf)).toEqual([['new']])
    expect((await claims.next([source], 1, true)).leases.map(rowsOf)).toEqual([['newer']])
    expect((await claims.next([source], 1, true)).leases.map(rowsOf)).toEqual([['waits']])
  })
})

describe('an erasure', () => {
  async function eraseJobs(
    tenantId: string,
    entity: { type: string; id: string } | null = null,
  ): Promise<Counts> {
    const counts: Counts = {}
    const context = {
      pool,
      config: environment.config().sweeps,
      log: pino({ level: 'silent' }),
      signal: new AbortController().signal,
      onProgress: () => undefined,
    } as unknown as SweepContext
    await removeJobs(context, { tenantId: asTenantId(tenantId), entity }, counts)
    return counts
  }

  test('revokes the leases that have a row of it, takes that out, and leaves the rows of others to be done anew', async () => {
    const [gone, stays] = [await newConversation(environment), await newConversation(environment)]
    const write = (conversation: string) => insertMessage(environment, conversation, heavy())
    const [mine, other] = [await write(gone.conversationId), await write(stays.conversationId)]
    const mixed = await claim()
    const waits = await write(gone.conversationId)
    const back = await claim()
    await settle(
      pool,
      back,
      [],
      back.jobs.map(job => conflict(job, source)),
      maxAttempts,
    )
    const queued = await write(gone.conversationId)
    const apart = await leaseRows(pool, source.id, [other])
    const { register, upload, commit } = await readyToCommit(mixed)
    await register()
    await upload()

    expect(await eraseJobs(gone.tenantId)).toMatchObject({ jobs: 3 })
    for (const id of [mine, waits, queued]) expect(await placesOf(id)).toEqual([])
    expect(await storedLeases()).toEqual([
      { rows: [other], held: true },
      { rows: [other], held: false },
    ])
    expect(await value(environment.admin, 'select id from lighter.leases where until is not null')).toBe(
      apart.id,
    )
    await expect(commit()).rejects.toBeInstanceOf(LeaseLost)
    expect(await rawMetadata(environment, mine)).toBe(heavy())
    expect((await claimExpired(pool, leaseMs))?.jobs).toMatchObject([{ rowId: other, attempts: 1 }])
    expect(await eraseJobs(gone.tenantId)).toMatchObject({ jobs: 0 })
  })

  test('of an entity revokes those with its rows only', async () => {
    const first = await newConversation(environment)
    const second = await newConversation(environment, first.tenantId)
    await insertMessage(environment, first.conversationId, heavy())
    await claim()
    const kept = await insertMessage(environment, second.conversationId, heavy())
    const lease = await claim()
    await eraseJobs(first.tenantId, { type: 'conversation', id: first.conversationId })
    expect(await column(environment.admin, 'select row_id from lighter.jobs')).toEqual([kept])
    const { register, upload, commit } = await readyToCommit(lease)
    await register()
    await upload()
    expect((await commit()).done.size).toBe(1)
  })

  test('waits for a commit that is just ending, and counts nothing of it', async () => {
    const { tenantId, conversationId: own } = await newConversation(environment)
    const id = await insertMessage(environment, own, heavy())
    const lease = await claim()
    const daemon = await connect(environment.urls.daemon)
    try {
      await daemon.query('begin')
      await settle(daemon, lease, lease.jobs, [], maxAttempts)
      const erasing = eraseJobs(tenantId)
      await until(async () => {
        const { rows } = await environment.admin.query(
          `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`,
        )
        return rows.length === 1
      }, 'it waits for the commit')
      await daemon.query('commit')
      expect(await erasing).toMatchObject({ jobs: 0 })
    } finally {
      await daemon.end()
    }
    expect(await placesOf(id)).toEqual([])
  })

  // A row on its way from one place to the next is in one of the two, in whichever order they are looked at.
  test('comes to its end though the tenant goes on writing', async () => {
    const busy = await newConversation(environment)
    const id = await insertMessage(environment, busy.conversationId, heavy())
    let ended = false
    const erasing = eraseJobs(busy.tenantId).finally(() => {
      ended = true
    })
    let writes = 0
    while (!ended && writes < 2000) {
      await Promise.all(
        Array.from({ length: 5 }, () =>
          environment.admin.query('insert into lighter.inbox (source_id, row_id) values ($1, $2)', [
            source.id,
            id,
          ]),
        ),
      )
      writes += 5
    }
    expect(ended).toBe(true)
    expect((await erasing).jobs).toBeGreaterThan(0)
  })

  test('misses no row that is on its way from its lease back into the queue', async () => {
    const { tenantId, conversationId: own } = await newConversation(environment)
    const id = await insertMessage(environment, own, heavy())
    const lease = await claim()
    const daemon = await connect(environment.urls.daemon)
    try {
      await daemon.query('begin')
      await settle(
        daemon,
        lease,
        [],
        lease.jobs.map(job => conflict(job, source)),
        maxAttempts,
      )
      const erasing = eraseJobs(tenantId)
      await until(async () => {
        const { rows } = await environment.admin.query(
          `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`,
        )
        return rows.length === 1
      }, 'it waits for the commit')
      await daemon.query('commit')
      expect(await erasing).toMatchObject({ jobs: 1 })
    } finally {
      await daemon.end()
    }
    expect(await placesOf(id)).toEqual([])
  })

  test('misses no row that is on its way from the queue into a lease', async () => {
    const { tenantId, conversationId: own } = await newConversation(environment)
    const id = await insertMessage(environment, own, heavy())
    const daemon = await connect(environment.urls.daemon)
    try {
      await daemon.query('begin')
      expect((await claimInbox(daemon, [source.id], 10, leaseMs)).entries).toBe(1)
      const erasing = eraseJobs(tenantId)
      await until(async () => {
        const { rows } = await environment.admin.query(
          `select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`,
        )
        return rows.length === 1
      }, 'it waits for the claim')
      await daemon.query('commit')
      await erasing
    } finally {
      await daemon.end()
    }
    expect(await placesOf(id)).toEqual([])
  })
})

test('a daemon whose lease was taken away says so, and goes on', async () => {
  const lines: Record<string, unknown>[] = []
  const signals = createSignals()
  const daemon = await startDaemon(environment, { signal: signals.signal, log: line => lines.push(line) })
  onTestFinished(() => daemon.stop().then(() => undefined))
  const hold = signals.holdAt('before-commit')
  const texts = [heavy('one'), heavy('two')]
  const id = await insert(texts[0])
  await hold.reached
  await environment.admin.query('update lighter.leases set id = gen_random_uuid(), until = null')
  hold.release()
  await drained(environment)
  expect(lines.filter(line => String(line.msg).includes('the lease of a batch ran out'))).toMatchObject([
    { level: 40 },
  ])
  const next = await insert(texts[1])
  await drained(environment)
  expect(await Promise.all([id, next].map(each => hydrated(environment, each)))).toEqual(
    await Promise.all(texts.map(text => asJsonbText(environment, text))),
  )
  expect(await column(environment.admin, 'select row_id from lighter.failed_jobs')).toEqual([])
})

test('of a batch that the database refuses in a later round the large rows are given back, too', async () => {
  let plans = 0
  const daemon = await startDaemon(environment, {
    env: { OFFLOAD_LEASE_MS: '600000', OFFLOAD_BATCH_BYTES: '65536', STREAM_THRESHOLD_BYTES: '65536' },
    signal: point => {
      // As Postgres says that it has no connection left.
      if (point === 'after-plan' && ++plans === 2)
        throw Object.assign(new Error('none left'), { code: '53300' })
    },
  })
  onTestFinished(() => daemon.stop().then(() => undefined))
  const client = await connect(environment.urls.application)
  try {
    await client.query('begin')
    await insert(heavy('x'.repeat(80_000)), client)
    for (let n = 0; n < 4; n++) await insert(heavy(`${n}`.repeat(40_000)), client)
    await client.query('commit')
  } finally {
    await client.end()
  }
  await drained(environment)
  expect(plans).toBeGreaterThan(2)
  expect(await column(environment.admin, 'select row_id from lighter.failed_jobs')).toEqual([])
})
