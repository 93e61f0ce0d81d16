// The files of a queue that is empty are given back: no entry is lost by it, whoever writes meanwhile, and nobody waits.
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { beforeEach, describe, expect, test } from 'vitest'
import { useFreshEnvironment } from '../support/environment.ts'
import { column, errorOf, value } from '../support/sql.ts'
import { runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()

const size = (table: string) =>
  value<number>(environment.admin, `select pg_total_relation_size('lighter.${table}')::int`)
const giveBack = (table: string, atLeast = 0) =>
  value<number>(environment.worker, `select lighter.give_back_space('lighter.${table}', $1)::int`, [atLeast])

beforeEach(async () => {
  for (const table of ['inbox', 'waiting', 'leases'])
    await environment.admin.query(`alter table lighter.${table} set (autovacuum_enabled = off)`)
})

const fill = (table: string) =>
  environment.admin.query(
    table === 'leases'
      ? `insert into lighter.leases (id, source_ids, row_ids, enqueued_at)
         select gen_random_uuid(), array_fill(1, array[50]), array(select gen_random_uuid()::text || n from generate_series(1, 50)),
                array_fill(now(), array[50])
           from generate_series(1, 1000) n`
      : `insert into lighter.${table} (source_id, row_id) select 1, gen_random_uuid()::text from generate_series(1, 45000)`,
  )

/** With a session of its own, which is gone afterwards. */
async function inSession(work: (session: pg.PoolClient) => Promise<void>) {
  const session = await environment.admin.connect()
  try {
    await work(session)
  } finally {
    session.release(true)
  }
}

test.each(['inbox', 'waiting', 'leases'])(
  'the rollup sweep truncates lighter.%s when it is empty and has been long',
  async table => {
    await fill(table)
    const long = await size(table)
    expect(long).toBeGreaterThan(2_000_000)
    expect((await runNow(environment, 'rollup')).counts.given_back_bytes).toBeUndefined()
    expect(await size(table)).toBe(long)
    await environment.admin.query(`delete from lighter.${table}`)
    expect((await runNow(environment, 'rollup', { dryRun: true })).counts.given_back_bytes).toBeUndefined()
    expect(await size(table)).toBe(long)
    const { counts } = await runNow(environment, 'rollup')
    const short = await size(table)
    expect(short).toBeLessThan(100_000)
    expect(counts.given_back_bytes).toBe(long - short)
    // Too little to be worth a lock.
    expect(await giveBack(table, 1_000_000)).toBe(0)
    expect((await runNow(environment, 'rollup')).counts.given_back_bytes).toBeUndefined()
  },
)

describe.each(['inbox', 'waiting'])('lighter.%s', table => {
  test('a job that is not committed yet stays, and its writer is not waited for', async () => {
    await fill(table)
    await environment.admin.query(`delete from lighter.${table}`)
    await inSession(async writer => {
      await writer.query('begin')
      await writer.query(`insert into lighter.${table} (source_id, row_id) values (1, 'mine')`)
      const since = performance.now()
      expect(await giveBack(table)).toBe(0)
      expect(performance.now() - since).toBeLessThan(2000)
      await writer.query('commit')
    })
    expect(await giveBack(table)).toBe(0)
    expect(await column(environment.admin, `select row_id from lighter.${table}`)).toEqual(['mine'])
  })

  test('a dump that has begun finds what its snapshot has', async () => {
    await fill(table)
    await environment.admin.query(`delete from lighter.${table} where row_id > '1'`)
    await inSession(async dump => {
      await dump.query('begin isolation level repeatable read')
      await dump.query(`lock table lighter.${table} in access share mode`)
      const before = await value<number>(dump, `select count(*)::int from lighter.${table}`)
      await environment.admin.query(`delete from lighter.${table}`)
      expect(await giveBack(table)).toBe(0)
      expect(await value(dump, `select count(*)::int from lighter.${table}`)).toBe(before)
      await dump.query('commit')
    })
    expect(await giveBack(table)).toBeGreaterThan(1_000_000)
  })

  test('rows that are hidden are no empty table', async () => {
    await fill(table)
    await environment.admin.query(`
      delete from lighter.${table} where row_id > '1';
      alter table lighter.${table} enable row level security`)
    expect(await errorOf(giveBack(table))).toMatchObject({ code: '55L01' })
    await environment.admin.query(`alter table lighter.${table} disable row level security`)
    expect(await value(environment.admin, `select count(*) > 0 from lighter.${table}`)).toBe(true)
  })

  test('among writers and a consumer that empties the queue, every job is found once', async () => {
    const written: string[] = []
    const consumed: string[] = []
    let given = 0
    let done = false
    const until = performance.now() + 4000
    const writer = async (name: string) => {
      for (let n = 0; performance.now() < until; n++) {
        const id = `${name} ${n}`
        await environment.admin.query(`insert into lighter.${table} (source_id, row_id) values (1, $1)`, [id])
        written.push(id)
        await sleep(10 * Math.random())
      }
    }
    const consumer = async () => {
      for (;;) {
        const last = done
        consumed.push(
          ...(await column<string>(environment.worker, `delete from lighter.${table} returning row_id`)),
        )
        if (last) return
        await sleep(5)
      }
    }
    const giver = async () => {
      while (!done) given += (await giveBack(table)) ?? 0
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
})

test('only tables that are filled and emptied again, and only by the daemon', async () => {
  expect(
    await errorOf(environment.worker.query(`select lighter.give_back_space('lighter.objects')`)),
  ).toMatchObject({ code: '22023' })
  expect(
    await errorOf(environment.app.query(`select lighter.give_back_space('lighter.inbox')`)),
  ).toMatchObject({ code: '42501' })
})
