// Vacuum of attached tables after a wave of offloads, where it is worth it, allowed, and not in a busy hour.
import { beforeAll, expect, test } from 'vitest'
import { sweepVacuum } from '../../src/sweeps/vacuum.ts'
import { useEnvironment } from '../support/environment.ts'
import { runNow } from '../support/sweep.ts'

const environment = await useEnvironment()

beforeAll(async () => {
  await environment.admin.query(`
    alter table conversation_messages set (autovacuum_enabled = off, toast.autovacuum_enabled = off);
    insert into conversations (id, tenant_id) values ('22222222-2222-4222-8222-222222222222', gen_random_uuid());
    insert into conversation_messages (conversation_id, role, content)
    select '22222222-2222-4222-8222-222222222222', 'user', n::text from generate_series(1, 20000) n`)
})

const dead = async () =>
  (
    await environment.admin.query<{ n: number }>(
      `select pg_stat_get_dead_tuples('conversation_messages'::regclass)::int as n`,
    )
  ).rows[0]?.n ?? 0
const vacuum = (asked: boolean, dryRun = false) =>
  runNow(environment, 'vacuum', { dryRun, sweep: context => sweepVacuum(context, asked) })

test('a table that is mostly alive is left alone; one that is not is vacuumed, by whoever may', async () => {
  expect((await vacuum(true)).counts).toEqual({ tables: 0, dead_rows: 0 })
  await environment.admin.query(`update conversation_messages set content = content || '.'`)
  await expect.poll(dead, { timeout: 15_000 }).toBeGreaterThanOrEqual(20_000)
  // The daemon owns no table.
  expect((await vacuum(true)).counts).toMatchObject({ tables: 0, not_permitted: 1 })
  const { rows } = await environment.admin.query<{ n: number }>(
    `select current_setting('server_version_num')::int as n`,
  )
  if ((rows[0]?.n ?? 0) < 170_000) return
  await environment.admin.query('grant maintain on conversation_messages to lighter_daemon')
  expect((await vacuum(true, true)).counts).toMatchObject({ tables: 1 })
  expect(await dead()).toBeGreaterThanOrEqual(20_000)
  // By itself, not while it is written to.
  const writing = setInterval(() => {
    environment.admin
      .query(
        `update conversation_messages set role = role where ctid in (select ctid from conversation_messages limit 500)`,
      )
      .catch(() => undefined)
  }, 200)
  try {
    expect((await vacuum(false)).counts).toMatchObject({ tables: 0, busy: 1 })
  } finally {
    clearInterval(writing)
  }
  await expect.poll(async () => (await vacuum(false)).counts.tables, { timeout: 30_000 }).toBe(1)
  await expect.poll(dead, { timeout: 15_000 }).toBeLessThan(10_000)
})
