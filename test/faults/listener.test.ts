// The connection that listens, dead without a word, misled, or left unread.
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { claimOwnership } from '../../src/store/ownership.ts'
import { deadClientMs } from '../../src/wake/session.ts'
import {
  createEnvironment,
  drained,
  hydrated,
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  type TestEnvironment,
  until,
} from '../support/environment.ts'
import { environmentOnOwnServer, startOwnPostgres } from '../support/own-server.ts'
import { startReplica } from '../support/replica.ts'
import { spawnDaemon } from '../support/spawn-daemon.ts'
import { connect } from '../support/sql.ts'
import { startTcpProxy } from '../support/tcp-proxy.ts'

const heavy = '{"tool_interactions": ["heavy"]}'

type Line = Record<string, unknown>
const said = (lines: Line[], text: string) => lines.filter(line => String(line.msg).includes(text))

async function start(environment: TestEnvironment, env: Record<string, string>) {
  const lines: Line[] = []
  const daemon = await startDaemon(environment, { env, log: line => lines.push(line) })
  onTestFinished(() => daemon.stop(0).then(() => undefined))
  return { daemon, lines }
}

/** Written, and found in the bucket's care a moment later. */
async function isWorkedOff(environment: TestEnvironment, timeoutMs = 30_000): Promise<void> {
  const { conversationId } = await newConversation(environment)
  const id = await insertMessage(environment, conversationId, heavy)
  await drained(environment, timeoutMs)
  expect(await rawMetadata(environment, id)).toContain('_ref')
  expect(await hydrated(environment, id)).toBe(heavy)
}

describe('a connection', () => {
  let environment: TestEnvironment
  beforeEach(async () => {
    environment = await createEnvironment()
  })
  afterEach(() => environment.close())

  test('in a black hole is noticed with the first work that comes, and replaced; work goes on meanwhile', async () => {
    const proxy = await startTcpProxy(environment.urls.daemon)
    const { lines } = await start(environment, {
      LISTEN_DATABASE_URL: proxy.through(environment.urls.daemon),
      POLL_INTERVAL_MS: '300',
    })
    expect(said(lines, 'listening for notifications')).toHaveLength(1)
    await isWorkedOff(environment)
    // Bytes are swallowed, and nobody is told: no FIN, no RST.
    proxy.blackHole()
    const began = performance.now()
    await isWorkedOff(environment)
    // Its pings come every 30 s. The lock, which goes the same way, is missed at once: 5 s, and 2 s for a ping.
    await until(() => said(lines, 'LISTEN does not work').length > 0, 'the silence is noticed', 20_000)
    expect(performance.now() - began, 'sooner than its pings would tell').toBeLessThan(25_000)
    for (let n = 0; n < 3; n++) await isWorkedOff(environment, 5000)
    await proxy.recover()
    await until(() => said(lines, 'listening for notifications').length > 1, 'it listens again', 40_000)
    expect(said(lines, 'LISTEN does not work')).toHaveLength(1)
    await isWorkedOff(environment)
  })

  test('that a frozen daemon does not read keeps vacuum back for half a minute, not for ever', async () => {
    const daemon = await spawnDaemon(environment, { env: { POLL_INTERVAL_MS: '300' } })
    onTestFinished(() => daemon.kill('SIGKILL'))
    interface Backend {
      pid: number
      backend_xmin: string | null
      wait_event: string
    }
    const ears = async () =>
      (
        await environment.admin.query<Backend>(
          `select pid, backend_xmin::text, wait_event from pg_stat_activity
            where datname = current_database() and application_name = 'pg-lighter listen'`,
        )
      ).rows
    const notify = (times: number, bytes: number) =>
      environment.admin.query(
        `select pg_notify('lighter_ping', n || repeat('~', $2)) from generate_series(1, $1) n`,
        [times, bytes],
      )
    const [ear] = await ears()
    daemon.kill('SIGSTOP')
    // What fits into the buffers between is sent, and held against nobody.
    await notify(1000, 10)
    await until(async () => (await ears())[0]?.backend_xmin === null, 'the server has sent it')
    const waits = async () => {
      const [now] = await ears()
      return now?.wait_event === 'ClientWrite' && now.backend_xmin !== null
    }
    await until(async () => {
      await notify(200, 7000)
      if (!(await waits())) return false
      // A forwarder on the way, as that of a container's port, has buffers of its own to fill: a pause is no end yet.
      await new Promise(resolve => setTimeout(resolve, 1000))
      return waits()
    }, 'the server is stuck in sending')
    await until(
      async () => (await ears()).every(({ pid }) => pid !== ear?.pid),
      'the server has given it up',
      2 * deadClientMs,
    )
    daemon.kill('SIGCONT')
    await isWorkedOff(environment)
    await until(async () => (await ears()).length === 1, 'it listens again', 40_000)
  }, 150_000)
})

describe('a server in recovery', () => {
  test('can not be listened to: the log says so once, and few attempts are made', async () => {
    const primary = await startOwnPostgres()
    const { environment } = await environmentOnOwnServer(primary)
    onTestFinished(() => environment.close())
    const { postgres } = await startReplica(primary)
    const proxy = await startTcpProxy(postgres.url())
    const { daemon, lines } = await start(environment, {
      LISTEN_DATABASE_URL: proxy.through(environment.urls.daemon),
      POLL_INTERVAL_MS: '300',
    })
    expect(said(lines, 'LISTEN does not work')).toMatchObject([
      { reason: 'cannot execute LISTEN during recovery' },
    ])
    await isWorkedOff(environment)
    const attempts = proxy.accepted()
    await new Promise(resolve => setTimeout(resolve, 6000))
    expect(proxy.accepted() - attempts).toBeLessThan(10)
    expect(said(lines, 'LISTEN')).toHaveLength(1)
    proxy.retarget(primary.url())
    await until(() => said(lines, 'listening for notifications').length > 0, 'it listens', 30_000)
    await isWorkedOff(environment)
    await daemon.stop()
  })

  test('makes a daemon wait, with few words, and work once the server is promoted', async () => {
    const primary = await startOwnPostgres()
    const { environment } = await environmentOnOwnServer(primary)
    onTestFinished(() => environment.close())
    await claimOwnership(environment.worker, environment.store)
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, heavy)
    const replica = await startReplica(primary)
    await replica.caughtUp()
    const at = (url: string) => url.replace(`:${primary.port}/`, `:${replica.postgres.port}/`)
    const { daemon, lines } = await start(environment, { DATABASE_URL: at(environment.urls.daemon) })
    await new Promise(resolve => setTimeout(resolve, 6000))
    // It pauses for 250 ms at first, then for twice as long each time.
    expect(said(lines, 'trying again').length).toBeGreaterThan(2)
    expect(lines.filter(line => Number(line.level) >= 40).length).toBeLessThan(12)
    await replica.promote()
    const client = await connect(at(environment.urls.admin))
    try {
      await until(
        async () => (await client.query('select from lighter.jobs')).rowCount === 0,
        'the queue is empty',
      )
      const { rows } = await client.query(
        'select metadata::text as text from conversation_messages where id = $1',
        [id],
      )
      expect(rows[0].text).toContain('_ref')
    } finally {
      await client.end()
    }
    await daemon.stop()
  })
})
