// The files of a queue that is empty are given back: no entry is lost by it, whoever writes meanwhile, and nobody waits.
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { beforeEach, expect, test } from 'vitest'
import { useFreshEnvironment } from '../support/environment.ts'
import { column, errorOf, value } from '../support/sql.ts'
import { runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()

const size = () => value<number>(environment.admin, `select pg_total_relation_size('lighter.jobs')::int`)
const giveBack = (atLeast = 0) =>
  value<number>(environment.worker, `select lighter.give_back_space('lighter.jobs', $1)::int`, [atLeast])

beforeEach(async () => {
  await environment.admin.query('alter table lighter.jobs set (autovacuum_enabled = off)')
  await environment.admin.query(
    `insert into lighter.jobs (source_id, row_id) select 1, gen_random_uuid()::text from generate_series(1, 30000)`,
  )
})

/** With a session of its own, which is gone afterwards. */
async function inSession(work: (session: pg.PoolClient) => Promise<void>) {
  const session = await environment.admin.connect()
  try {
    await work(session)
  } finally {
    session.release(true)
  }
}

test('the rollup sweep truncates what is empty and has been long', async () => {
  const long = await size()
  expect(long).toBeGreaterThan(4_000_000)
  expect((await runNow(environment, 'rollup')).counts.given_back_bytes).toBeUndefined()
  expect(await size()).toBe(long)
  await environment.admin.query('delete from lighter.jobs')
  expect((await runNow(environment, 'rollup', { dryRun: true })).counts.given_back_bytes).toBeUndefined()
  expect(await size()).toBe(long)
  const { counts } = await runNow(environment, 'rollup')
  const short = await size()
  expect(short).toBeLessThan(100_000)
  expect(counts.given_back_bytes).toBe(long - short)
  // Too little to be worth a lock.
  expect(await giveBack(1_000_000)).toBe(0)
  expect((await runNow(environment, 'rollup')).counts.given_back_bytes).toBeUndefined()
})

test('a job that is not committed yet stays, and its writer is not waited for', async () => {
  await environment.admin.query('delete from lighter.jobs')
  await inSession(async writer => {
    await writer.query('begin')
    await writer.query(`insert into lighter.jobs (source_id, row_id) values (1, 'mine')`)
    const since = performance.now()
    expect(await giveBack()).toBe(0)
    expect(performance.now() - since).toBeLessThan(2000)
    await writer.query('commit')
  })
  expect(await giveBack()).toBe(0)
  expect(await column(environment.admin, 'select row_id from lighter.jobs')).toEqual(['mine'])
})

test('a dump that has begun finds what its snapshot has', async () => {
  await environment.admin.query(`delete from lighter.jobs where row_id > '1'`)
  await inSession(async dump => {
    await dump.query('begin isolation level repeatable read')
    await dump.query('lock table lighter.jobs in access share mode')
    const before = await value<number>(dump, 'select count(*)::int from lighter.jobs')
    await environment.admin.query('delete from lighter.jobs')
    expect(await giveBack()).toBe(0)
    expect(await value(dump, 'select count(*)::int from lighter.jobs')).toBe(before)
    await dump.query('commit')
  })
  expect(await giveBack()).toBeGreaterThan(1_000_000)
})

test('rows that are hidden are no empty table', async () => {
  await environment.admin.query(`
    delete from lighter.jobs where row_id > '1';
    alter table lighter.jobs enable row level security`)
  expect(await errorOf(giveBack())).toMatchObject({ code: '55L01' })
  await environment.admin.query('alter table lighter.jobs disable row level security')
  expect(await value(environment.admin, 'select count(*) > 0 from lighter.jobs')).toBe(true)
})

test('only tables that are filled and emptied again, and only by the daemon', async () => {
  expect(
    await errorOf(environment.worker.query(`select lighter.give_back_space('lighter.objects')`)),
  ).toMatchObject({ code: '22023' })
  expect(
    await errorOf(environment.app.query(`select lighter.give_back_space('lighter.jobs')`)),
  ).toMatchObject({ code: '42501' })
})

test('among writers and a consumer that empties the queue, every job is found once', async () => {
  await environment.admin.query('delete from lighter.jobs')
  const written: string[] = []
  const consumed: string[] = []
  let given = 0
  let done = false
  const until = performance.now() + 4000
  const writer = async (name: string) => {
    for (let n = 0; performance.now() < until; n++) {
      const id = `${name} ${n}`
      await environment.admin.query('insert into lighter.jobs (source_id, row_id) values (1, $1)', [id])
      written.push(id)
      await sleep(10 * Math.random())
    }
  }
  const consumer = async () => {
    for (;;) {
      const last = done
      consumed.push(
        ...(await column<string>(environment.worker, 'delete from lighter.jobs returning row_id')),
      )
      if (last) return
      await sleep(5)
    }
  }
  const giver = async () => {
    while (!done) given += (await giveBack()) ?? 0
  }
  const others = [consumer(), giver()]
  await Promise.all([writer('a'), writer('b'), writer('c')])
  done = true
  await Promise.all(others)
  expect(written.length).toBeGreaterThan(300)
  // It did happen among them.
  expect(given).toBeGreaterThan(0)
  expect(consumed.toSorted()).toEqual(written.toSorted())
})
