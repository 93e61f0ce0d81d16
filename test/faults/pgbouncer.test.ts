// A real PgBouncer between the daemon and Postgres. In transaction mode a server connection is another client's
// a moment later: whatever of ours stays on it (a lock, a setting, a role, a statement's name) is a fault.
import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { describe, expect, onTestFinished, test } from 'vitest'
import { takeSweepLock } from '../../src/sweeps/lock.ts'
import { startApi } from '../support/api.ts'
import {
  asJsonbText,
  drained,
  hydratedMany,
  insertMessage,
  newConversation,
  startDaemon,
  until,
  useFreshEnvironment,
} from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'
import {
  findPgBouncer,
  noPgBouncer,
  type PgBouncer,
  type PgBouncerOptions,
  startPgBouncer,
} from '../support/pgbouncer.ts'
import { runCli } from '../support/process.ts'
import { errorOf } from '../support/sql.ts'

const missing = (await findPgBouncer()) === null
if (missing) process.stderr.write(`pgbouncer.test.ts is skipped: ${noPgBouncer}\n`)

const environment = useFreshEnvironment()

const pooler = (options: PgBouncerOptions) => startPgBouncer(Object.values(environment.urls), options)

type Line = Record<string, unknown>
const said = (lines: Line[], text: string) => lines.filter(line => String(line.msg).includes(text))

async function start(env: Record<string, string>, lines: Line[] = []) {
  const daemon = await startDaemon(environment, { env, log: line => lines.push(line) })
  onTestFinished(() => daemon.stop(0).then(() => undefined))
  return { daemon, lines }
}

/** Rows of one tenant, small ones and, every tenth, one that is streamed. */
async function write(rows: number, round = 0): Promise<Map<string, string>> {
  const { conversationId } = await newConversation(environment)
  const written = new Map<string, string>()
  for (let n = 0; n < rows; n++) {
    const metadata = `{"tool_interactions": [${round}, ${n}], "trace": "${'~'.repeat(n % 10 === 0 ? 100_000 : 9000)}"}`
    written.set(await insertMessage(environment, conversationId, metadata), metadata)
  }
  return written
}

async function expectWhole(written: Map<string, string>): Promise<void> {
  await drained(environment)
  const texts = await hydratedMany(environment, [...written.keys()])
  const wanted = await Promise.all([...written.values()].map(text => asJsonbText(environment, text)))
  expect(texts).toEqual(wanted)
  expect(await strayArtifacts(environment)).toEqual([])
  expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
}

interface Leftover {
  settings: string[]
  statements: number
  locks: number
  tenant: string
}

const clean: Leftover = { settings: [], statements: 0, locks: 0, tenant: '' }

/**
 * What stands on the server connections that the pooler holds for the daemon's login: all of them, as many
 * transactions at once as there may be connections.
 */
async function leftovers(bouncer: PgBouncer, poolSize: number): Promise<Leftover[]> {
  const clients = await Promise.all(
    Array.from({ length: poolSize }, async () => {
      const client = new pg.Client({ connectionString: bouncer.through(environment.urls.daemon) })
      await client.connect()
      return client
    }),
  )
  try {
    await Promise.all(clients.map(client => client.query('begin')))
    const answers = await Promise.all(
      clients.map(client =>
        client.query<Leftover>(
          // The pooler itself keeps some settings as each client has them.
          `select (select coalesce(array_agg(name || '=' || setting order by name), '{}') from pg_settings
                    where source = 'session' and context <> 'internal'
                      and name not in ('application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings')) as settings,
                  (select count(*)::int from pg_prepared_statements where name like 'lighter%') as statements,
                  (select count(*)::int from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()) as locks,
                  coalesce(current_setting('app.current_tenant_id', true), '') as tenant`,
        ),
      ),
    )
    await Promise.all(clients.map(client => client.query('commit')))
    return answers.flatMap(answer => answer.rows)
  } finally {
    await Promise.all(clients.map(client => client.end()))
  }
}

/** Daemons that tell the triggers that they are awake, or asleep and would hear. */
async function daemonsThatSpeak(): Promise<number> {
  const { rows } = await environment.admin.query<{ n: number }>(
    'select count(*)::int as n from lighter.daemons where until > clock_timestamp()',
  )
  return rows[0]?.n ?? 0
}

describe.skipIf(missing)('PgBouncer in transaction mode', () => {
  test('with LISTEN over a direct connection: two daemons and an API leave nothing on its connections', async () => {
    const poolSize = 4
    const bouncer = await pooler({ poolMode: 'transaction', poolSize })
    const env = {
      DATABASE_URL: bouncer.through(environment.urls.daemon),
      LISTEN_DATABASE_URL: environment.urls.daemon,
      STREAM_THRESHOLD_BYTES: '65536',
      STREAM_CONCURRENCY: '1',
      OFFLOAD_BATCH_ROWS: '10',
    }
    const { daemon, lines } = await start(env)
    const api = await startApi(environment, { env })
    onTestFinished(() => api.daemon.stop(0).then(() => undefined))
    expect(said(lines, 'listening for notifications')).toHaveLength(1)
    const tenants = [randomUUID(), randomUUID()]
    const requests = Promise.all(
      Array.from({ length: 32 }, (_, n) =>
        api.call(tenants[n % 2] ?? '', 'POST', '/api/storage/artifacts', {
          json: `{"kind": "agent_trace", "payload": {"tenant": ${n % 2}}}`,
        }),
      ),
    )
    const written = await write(120)
    expect((await requests).map(answer => answer.status)).toEqual(Array(32).fill(201))
    for (const tenant of tenants) {
      const { json } = await api.call(tenant, 'GET', '/api/storage/artifacts?limit=100')
      expect(json.artifacts).toHaveLength(16)
    }
    await drained(environment)
    expect(await leftovers(bouncer, poolSize)).toEqual(Array(poolSize).fill(clean))
    await daemon.stop()
    await api.daemon.stop()
    await expectWhole(written)
    expect(await daemonsThatSpeak()).toBe(0)
    expect(said(lines, 'LISTEN does not work')).toEqual([])
    expect(lines.filter(line => Number(line.level) > 30)).toEqual([])
  })

  test('without a direct connection: the daemon says so once, polls, and asks for no notification at any time', async () => {
    const bouncer = await pooler({ poolMode: 'transaction', poolSize: 3 })
    const { daemon, lines } = await start({
      DATABASE_URL: bouncer.through(environment.urls.daemon),
      POLL_INTERVAL_MS: '200',
      STREAM_CONCURRENCY: '1',
    })
    expect(said(lines, 'LISTEN does not work')).toMatchObject([{ level: 40, pollIntervalMs: 200 }])
    let most = 0
    const watch = setInterval(() => void daemonsThatSpeak().then(n => (most = Math.max(most, n))), 10)
    try {
      for (let round = 0; round < 3; round++) await expectWhole(await write(20, round))
    } finally {
      clearInterval(watch)
    }
    expect(await daemon.stop()).toBe(true)
    expect(most).toBe(0)
    expect(await leftovers(bouncer, 3)).toEqual(Array(3).fill(clean))
    expect(said(lines, 'LISTEN does not work')).toHaveLength(1)
  })

  test('no sweep, backfill or restore takes a lock through it: they say which connection they need', async () => {
    const bouncer = await pooler({ poolMode: 'transaction', poolSize: 3 })
    const url = bouncer.through(environment.urls.daemon)
    for (let n = 0; n < 3; n++)
      expect(await errorOf(takeSweepLock(url, 'orphans'))).toMatchObject({ code: 'no_session' })
    expect(await leftovers(bouncer, 3)).toEqual(Array(3).fill(clean))
    for (const command of [['backfill'], ['restore', '--all']]) {
      const { code, stderr } = await runCli(command, { env: { ...environment.env, DATABASE_URL: url } })
      expect(code, stderr).toBe(1)
      expect(stderr).toContain('LISTEN_DATABASE_URL')
    }
  })

  test('killed and started again, paused and resumed: work goes on', async () => {
    const bouncer = await pooler({ poolMode: 'transaction', poolSize: 5 })
    const { daemon, lines } = await start({
      DATABASE_URL: bouncer.through(environment.urls.daemon),
      LISTEN_DATABASE_URL: environment.urls.daemon,
      OFFLOAD_LEASE_MS: '1000',
    })
    const written = new Map<string, string>()
    const more = async (round: number) => {
      for (const [id, metadata] of await write(20, round)) written.set(id, metadata)
    }
    await more(0)
    await bouncer.stop()
    await more(1)
    await until(() => said(lines, 'can not be reached').length > 0, 'the daemon has noticed')
    await bouncer.restart()
    await more(2)
    await bouncer.command('pause')
    await more(3)
    await bouncer.command('resume')
    await expectWhole(written)
    expect(await daemon.stop()).toBe(true)
    const { rows } = await environment.admin.query('select from lighter.failed_jobs')
    expect(rows).toEqual([])
  })
})

describe.skipIf(missing)('PgBouncer in session mode', () => {
  test('is as good as a direct connection: LISTEN, the locks and the sweeps go through it', async () => {
    const bouncer = await pooler({ poolMode: 'session' })
    const url = bouncer.through(environment.urls.daemon)
    // Nothing that is offloaded within the test was found by polling, but what a writer saw us awake for.
    const { daemon, lines } = await start({ DATABASE_URL: url, POLL_INTERVAL_MS: '3000' })
    expect(said(lines, 'listening for notifications')).toHaveLength(1)
    await expectWhole(await write(20))
    await until(async () => (await daemonsThatSpeak()) === 1, 'it sleeps, and says that it would hear')

    for (const command of [['sweep', 'orphans'], ['backfill'], ['restore', '--all']]) {
      const { code, stdout, stderr } = await runCli(command, {
        env: { ...environment.env, DATABASE_URL: url },
      })
      expect({ command, code, stderr }).toMatchObject({ code: 0 })
      expect(stdout).not.toBe('')
    }
    expect(await daemon.stop()).toBe(true)
    await until(async () => (await daemonsThatSpeak()) === 0, 'the pooler has reset what it keeps')
    expect(said(lines, 'LISTEN does not work')).toEqual([])
  })
})
