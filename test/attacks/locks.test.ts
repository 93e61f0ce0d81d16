// Somebody with a login and no right at all tries to stop the work with locks.
import { randomUUID } from 'node:crypto'
import type pg from 'pg'
import { describe, expect, onTestFinished, test } from 'vitest'
import { lighter, lighterOk, settled } from '../support/black-box.ts'
import { insertMessage, newConversation, startDaemon, useEnvironment } from '../support/environment.ts'
import { column, connect, errorOf, uniqueRole, value } from '../support/sql.ts'

const environment = await useEnvironment()

/** A login with no grant, connected; gone with the test. */
async function stranger(): Promise<pg.Client> {
  const role = uniqueRole('stranger')
  await environment.admin.query(`create role ${role} login password 'stranger'`)
  const url = new URL(environment.urls.admin)
  url.username = role
  url.password = 'stranger'
  const client = await connect(url.href)
  onTestFinished(async () => {
    await client.end()
    await environment.admin.query(`drop role ${role}`)
  })
  return client
}

/** All advisory locks that somebody could guess: by number, and by the names of what runs. */
async function takeAdvisoryLocks(client: pg.Client): Promise<void> {
  const names = ['retention', 'release', 'compaction', 'orphans', 'verify', 'rollup', 'vacuum', 'erase']
  const columns = ['restore', 'backfill'].map(what => `${what} public.conversation_messages.metadata`)
  await client.query(`select pg_advisory_lock(7809632190500 + n) from generate_series(0, 99) n`)
  await client.query('select pg_advisory_lock(78096, hashtext(n)) from unnest($1::text[]) n', [
    [...names, ...columns],
  ])
}

test('a login without a grant that takes advisory locks stops no offload, sweep, backfill, restore, attach or migration', async () => {
  const client = await stranger()
  await takeAdvisoryLocks(client)
  const { conversationId } = await newConversation(environment)
  const daemon = await startDaemon(environment)
  onTestFinished(() => daemon.stop(0).then(() => undefined))
  const id = await insertMessage(environment, conversationId, '{"tool_interactions": [1]}')
  await settled(environment)
  for (const sweep of ['retention', 'release', 'orphans', 'rollup'])
    await lighterOk(environment, ['sweep', sweep])
  await lighterOk(environment, ['backfill'])
  await lighterOk(environment, ['restore', '--row', id])
  const text = `select metadata::text from conversation_messages where id = $1`
  expect(await value(environment.admin, text, [id])).toBe('{"tool_interactions": [1]}')
  const admin = { env: { ADMIN_DATABASE_URL: environment.urls.admin } }
  await lighterOk(environment, ['migrate'], admin)
  await lighterOk(environment, ['attach', 'public.conversation_messages'], admin)
}, 120_000)

test('and can lock no table of ours, in any mode', async () => {
  const client = await stranger()
  const tables = await column<string>(
    environment.admin,
    `select oid::regclass::text from pg_class
      where relkind in ('r', 'p', 'v') and (relnamespace = 'lighter'::regnamespace or relname = 'artifact_refs')`,
  )
  expect(tables.length).toBeGreaterThan(20)
  for (const table of tables) {
    for (const mode of ['access share', 'row exclusive', 'share', 'access exclusive']) {
      await client.query('begin')
      const { code } = await errorOf(client.query(`lock table ${table} in ${mode} mode nowait`))
      expect(code, `${table} in ${mode} mode`).toBe('42501')
      await client.query('rollback')
    }
  }
})

describe('whoever is in the way is named, and not waited for without end', () => {
  /** Takes a lock in a transaction that ends with the test. */
  async function lock(sql: string): Promise<number> {
    const client = await connect(environment.urls.admin)
    onTestFinished(() => client.end())
    await client.query(`begin; ${sql}`)
    return value<number>(client, 'select pg_backend_pid()')
  }
  const named = (pid: number) =>
    new RegExp(`pid ${pid}, user ${new URL(environment.urls.admin).username}, since \\d{4}-`)

  test('of an attach', async () => {
    const pid = await lock('lock table lighter.settings in share row exclusive mode')
    const error = await errorOf(
      environment.admin.query(`select lighter.attach('conversation_messages', lock_timeout_ms => 200)`),
    )
    expect(error).toMatchObject({ code: '55P03', message: expect.stringMatching(named(pid)) })
  })

  test('of a sweep that is under way in another process', async () => {
    const holder = await connect(environment.urls.daemon)
    onTestFinished(() => holder.end())
    const tag = `somebody ${randomUUID()}`
    await holder.query(`select set_config('application_name', $1, false)`, [tag])
    await holder.query(
      `insert into lighter.locks (name, tag, pid, login, place)
       select 'release', $1, pg_backend_pid(), oid, 'elsewhere:1' from pg_roles where rolname = session_user`,
      [tag],
    )
    const pid = await value<number>(holder, 'select pg_backend_pid()')
    const busy = await lighter(environment, ['sweep', 'release'])
    expect(busy).toMatchObject({
      code: 2,
      stdout: expect.stringContaining(`pid ${pid}, user lighter_worker, on elsewhere:1, since `),
    })
    // Its lock goes with its session, whatever it leaves behind.
    await holder.end()
    await lighterOk(environment, ['sweep', 'release'])
    expect(await column(environment.admin, 'select name from lighter.locks')).toEqual([])
  })

  test('of a session that only calls itself like the holder: it has no lock', async () => {
    const client = await stranger()
    await environment.admin.query(
      `insert into lighter.locks (name, tag, pid, login, place)
       select 'release', 'pg-lighter release', $1, oid, 'elsewhere:1' from pg_roles where rolname = 'lighter_worker'`,
      [await value(client, 'select pg_backend_pid()')],
    )
    await client.query(`select set_config('application_name', 'pg-lighter release', false)`)
    await lighterOk(environment, ['sweep', 'release'])
  })
})
