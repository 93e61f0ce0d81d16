import { beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import { createPool } from '../../src/db/pool.ts'
import { createListener, type Listener, type ListenerOptions } from '../../src/wake/listener.ts'
import { openNotice } from '../../src/wake/notice.ts'
import {
  createSignals,
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  until,
  useEnvironment,
} from '../support/environment.ts'
import { startTcpProxy } from '../support/tcp-proxy.ts'

/** So long that whatever is offloaded within a test was not found by polling. */
const noPolling = { POLL_INTERVAL_MS: '60000' }
/** Far below the poll interval, and enough for a loaded machine. */
const soonMs = 5000

const heavy = '{"tool_interactions": [{"tool": "a"}]}'

const environment = await useEnvironment()
let conversationId: string

beforeAll(async () => {
  ;({ conversationId } = await newConversation(environment))
})

type Line = Record<string, unknown>

/** A daemon that is stopped with its test, and what it logs. */
async function start(
  options: Parameters<typeof startDaemon>[1] = {},
): Promise<{ daemon: Daemon; lines: Line[] }> {
  const lines: Line[] = []
  const daemon = await startDaemon(environment, { ...options, log: line => lines.push(line) })
  onTestFinished(async () => {
    await daemon.stop(0)
  })
  return { daemon, lines }
}

const said = (lines: Line[], text: string) => lines.filter(line => String(line.msg).includes(text))

async function isOffloaded(id: string): Promise<boolean> {
  return (await rawMetadata(environment, id))?.includes('tool_interactions_ref') === true
}

const offloaded = (id: string, timeoutMs = soonMs) =>
  until(() => isOffloaded(id), `row ${id} is offloaded`, timeoutMs)

const insert = (metadata: string = heavy) => insertMessage(environment, conversationId, metadata)

interface Backend {
  pid: number
  application_name: string
  state: string
  backend_xmin: string | null
}

/** The daemons' connections to this file's database. */
async function backends(name = 'pg-lighter%'): Promise<Backend[]> {
  const { rows } = await environment.admin.query<Backend>(
    `select pid, application_name, state, backend_xmin::text from pg_stat_activity
      where datname = current_database() and application_name like $1`,
    [name],
  )
  return rows
}

const terminate = (name: string) =>
  environment.admin.query(
    `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name like $1`,
    [name],
  )

/** How many daemons tell the triggers that they are awake, or that they sleep and would hear. */
async function awake(state: 'awake' | 'asleep' = 'awake'): Promise<number> {
  const { rows } = await environment.admin.query<{ n: string }>(
    'select count(*) as n from lighter.daemons where until > clock_timestamp() and asleep = $1',
    [state === 'asleep'],
  )
  return Number(rows[0]?.n)
}

const saysAwake = () => until(async () => (await awake()) === 1, 'the daemon says that it is awake')

const asleep = () =>
  until(
    async () => (await awake('asleep')) > 0 && (await awake()) === 0,
    'the daemon says that it sleeps',
    20_000,
  )

/** Asleep, and past the checks that follow on falling asleep: only a notification or the poll wakes it now. */
async function settled(): Promise<void> {
  await asleep()
  const { rows } = await environment.admin.query<{ calls: string }>('select clock_timestamp()::text as calls')
  const since = rows[0]?.calls
  // The last of those checks is a statement of the pool that began 200 ms after it fell asleep.
  await until(async () => {
    const quiet = await environment.admin.query<{ quiet: boolean }>(
      `select coalesce(max(state_change), $1::timestamptz) < clock_timestamp() - interval '400 ms' as quiet
         from pg_stat_activity where datname = current_database() and application_name = 'pg-lighter'`,
      [since],
    )
    return quiet.rows[0]?.quiet === true
  }, 'the daemon has settled')
}

describe('NOTIFY', () => {
  test('wakes a sleeping daemon long before its poll interval', async () => {
    await start({ env: noPolling })
    await settled()
    await offloaded(await insert())
    await settled()
    await offloaded(await insert())
  })

  test('of a row of a table that was attached a moment ago wakes it as well', async () => {
    await start({ env: noPolling })
    await environment.admin.query(`
      create table notes (id bigint generated always as identity primary key, tenant_id uuid not null, metadata jsonb);
      grant insert, select on notes to example_app;
      select lighter.attach('notes')`)
    onTestFinished(async () => {
      await environment.admin.query(`select lighter.detach('notes'); drop table notes`)
    })
    await settled()
    await environment.app.query('insert into notes (tenant_id, metadata) values (gen_random_uuid(), $1)', [
      heavy,
    ])
    await until(
      async () => {
        const { rows } = await environment.admin.query('select metadata from notes')
        return rows[0].metadata.tool_interactions_ref !== undefined
      },
      'the note is offloaded',
      soonMs,
    )
  })

  test('of a row that is heavy since a moment ago: what the daemon still knew of the source does not count', async () => {
    await start({ env: noPolling })
    onTestFinished(() => environment.admin.query('select lighter.set_threshold(8000)').then(() => undefined))
    const text = `{"steps": "${'x'.repeat(3000)}"}`
    await offloaded(await insert())
    await settled()
    await environment.admin.query('select lighter.set_threshold(2000)')
    const id = await insert(text)
    await until(
      async () => (await rawMetadata(environment, id))?.includes('artifact_metadata_ref') === true,
      'the row is offloaded',
      soonMs,
    )
  })

  test('with a payload that is not ours, or not JSON, does no harm', async () => {
    const { lines } = await start({ env: noPolling })
    await settled()
    for (const payload of ['', 'not json', '{"from": 1}'])
      for (const channel of ['lighter_jobs', 'lighter_ping'])
        await environment.app.query('select pg_notify($1, $2)', [channel, payload])
    await settled()
    await offloaded(await insert())
    expect(said(lines, 'listening')).toHaveLength(1)
    expect(said(lines, 'LISTEN does not work')).toHaveLength(0)
    expect(await backends('pg-lighter listen')).toHaveLength(1)
  })
})

describe('a transaction that commits after the daemon fell asleep', () => {
  // Within 200 ms, that is, which a loaded machine may miss.
  test('but had found it awake, is caught by the checks that follow', { retry: 3 }, async () => {
    // The daemon is held awake at the commit of one job while the other transaction checks.
    const signals = createSignals()
    await start({ env: noPolling, signal: signals.signal })
    await settled()
    const hold = signals.holdAt('before-commit')
    const first = await insert()
    await hold.reached
    await saysAwake()

    const writer = await environment.app.connect()
    let late: string
    try {
      await writer.query('begin')
      late = await insertMessage(environment, conversationId, heavy, writer)
      hold.release()
      await asleep()
      await writer.query('commit')
    } finally {
      writer.release()
    }
    await offloaded(first)
    await offloaded(late)
  })

  test('and had found it asleep, wakes it', async () => {
    await start({ env: noPolling })
    await settled()
    const writer = await environment.app.connect()
    let id: string
    try {
      await writer.query('begin')
      id = await insertMessage(environment, conversationId, heavy, writer)
      await settled()
      await writer.query('commit')
    } finally {
      writer.release()
    }
    await offloaded(id)
  })
})

describe('what a daemon tells the triggers', () => {
  test('is that it is awake while it works, and that it sleeps and would hear afterwards; and nothing once it has stopped', async () => {
    const signals = createSignals()
    const { daemon } = await start({ env: noPolling, signal: signals.signal })
    await settled()
    expect([await awake('awake'), await awake('asleep')]).toEqual([0, 1])
    const hold = signals.holdAt('after-claim')
    const id = await insert()
    await hold.reached
    await saysAwake()
    expect(await awake('asleep')).toBe(0)
    hold.release()
    await offloaded(id)
    await asleep()
    await daemon.stop()
    expect([await awake('awake'), await awake('asleep')]).toEqual([0, 0])
  })

  test('is nothing while it is deaf: writers do not notify in vain', async () => {
    const proxy = await startTcpProxy(environment.urls.daemon)
    await proxy.refuse()
    await start({
      env: { LISTEN_DATABASE_URL: proxy.through(environment.urls.daemon), POLL_INTERVAL_MS: '300' },
    })
    const id = await insert()
    await offloaded(id)
    expect([await awake('awake'), await awake('asleep')]).toEqual([0, 0])
  })

  test('keeps writers from notifying while it is awake', async () => {
    const signals = createSignals()
    await start({ env: noPolling, signal: signals.signal })
    await settled()
    const heard: string[] = []
    const ear = await environment.admin.connect()
    try {
      ear.on('notification', message => heard.push(message.channel))
      await ear.query('listen lighter_jobs')
      const hold = signals.holdAt('after-claim')
      const first = await insert()
      await hold.reached
      await saysAwake()
      const others = [await insert(), await insert(), await insert()]
      hold.release()
      for (const id of [first, ...others]) await offloaded(id)
      await ear.query('select 1') // whatever was notified has arrived by now
      expect(heard).toEqual(['lighter_jobs'])
    } finally {
      ear.removeAllListeners('notification')
      ear.release(true)
    }
  })

  test('changes at most every five seconds, however often it wakes; rows are offloaded at once all the same', async () => {
    await start({ env: noPolling })
    await settled()
    const version = async () =>
      (await environment.admin.query<{ v: string }>('select xmin::text as v from lighter.daemons')).rows[0]?.v
    const before = await version()
    const started = performance.now()
    for (let n = 0; n < 10; n++) await offloaded(await insert())
    if (performance.now() - started < 4000) expect(await version()).toBe(before)
    expect(await awake('asleep')).toBe(1)
  })

  test('is found among the daemons that work when others have died: what they said ends by itself', async () => {
    await environment.admin.query(`select lighter.daemon_says(gen_random_uuid(), false, -2 * 3600 * 1000)`)
    await start({ env: noPolling })
    await settled()
    await offloaded(await insert())
    const { rows } = await environment.admin.query('select from lighter.daemons')
    expect(rows).toHaveLength(1)
  })

  test('is said again, and heard again, some time after another has died awake', async () => {
    await start({ env: { POLL_INTERVAL_MS: '2000' } })
    await settled()
    const notifies = async () => {
      const { rows } = await environment.admin.query<{ notifies: boolean }>(
        'select last_value > extract(epoch from clock_timestamp()) * 1000 as notifies from lighter.notify_until',
      )
      return rows[0]?.notifies === true
    }
    expect(await notifies()).toBe(true)
    await environment.admin.query('select lighter.daemon_says(gen_random_uuid(), false, 500)')
    expect(await notifies()).toBe(false)
    // Until then polling finds them.
    await offloaded(await insert())
    await until(notifies, 'writers notify again', 20_000)
    await offloaded(await insert())
  })

  test('is said over another connection when its own was lost in the middle of the work', async () => {
    const signals = createSignals()
    await start({ env: noPolling, signal: signals.signal })
    await settled()
    const hold = signals.holdAt('after-claim')
    const a = await insert()
    await hold.reached
    await saysAwake()
    await terminate('pg-lighter notice')
    await terminate('pg-lighter daemon %')
    const b = await insert()
    hold.release()
    await offloaded(a)
    await offloaded(b)
    await asleep()
  })

  test('that can not be said keeps nobody waiting', async () => {
    const proxy = await startTcpProxy(environment.urls.daemon)
    const errors: unknown[] = []
    const notice = openNotice(proxy.through(environment.urls.daemon), 1000, error => errors.push(error))
    expect(await notice.asleep(true)).toBe(true)
    expect(await awake('asleep')).toBe(1)
    proxy.blackHole()
    const started = performance.now()
    await until(
      async () => {
        await notice.asleep(true)
        return errors.length === 1
      },
      'it fails to say that it still sleeps',
      20_000,
    )
    // Draining goes on without it; the next attempts are not made at once.
    await notice.awake()
    expect(await notice.asleep(true)).toBe(true)
    await notice.stop()
    expect(performance.now() - started).toBeLessThan(20_000)
    expect(errors).toHaveLength(1)
  })
})

describe('the listening connection', () => {
  test('holds no snapshot, so that vacuum is not held back', async () => {
    await start({ env: noPolling })
    await offloaded(await insert())
    await settled()
    for (let i = 0; i < 20; i++) await insert()
    expect(await backends('pg-lighter listen')).toMatchObject([{ state: 'idle', backend_xmin: null }])
    await until(
      async () => (await backends('pg-lighter daemon %')).length > 0,
      'the session of the lock has its name',
    )
    expect(await backends('pg-lighter daemon %')).toMatchObject([{ state: 'idle', backend_xmin: null }])
  })

  test('cut off: jobs are found by polling, and the log says once that it is so and once that it is over', async () => {
    const proxy = await startTcpProxy(environment.urls.daemon)
    const { lines } = await start({
      env: { POLL_INTERVAL_MS: '300', LISTEN_DATABASE_URL: proxy.through(environment.urls.daemon) },
    })
    expect(said(lines, 'listening for notifications')).toHaveLength(1)
    expect(said(lines, 'LISTEN does not work')).toHaveLength(0)

    await proxy.refuse()
    await until(() => said(lines, 'LISTEN does not work').length > 0, 'the loss is noticed')
    await until(async () => (await backends('pg-lighter listen')).length === 0, 'the server has noticed too')
    for (let i = 0; i < 3; i++) await offloaded(await insert())
    expect(said(lines, 'LISTEN does not work')).toMatchObject([{ level: 40, pollIntervalMs: 300 }])

    await proxy.recover()
    await until(() => said(lines, 'listening for notifications').length > 1, 'it listens again', 15_000)
    expect(said(lines, 'LISTEN does not work')).toHaveLength(1)
    expect(said(lines, 'listening for notifications')).toHaveLength(2)
    expect(await backends('pg-lighter listen')).toHaveLength(1)
  })

  test('that never was: the daemon starts all the same, and listens when it can', async () => {
    const proxy = await startTcpProxy(environment.urls.daemon)
    await proxy.refuse()
    const { lines } = await start({
      env: { POLL_INTERVAL_MS: '300', LISTEN_DATABASE_URL: proxy.through(environment.urls.daemon) },
    })
    await offloaded(await insert())
    expect(said(lines, 'LISTEN does not work')).toHaveLength(1)
    expect(said(lines, 'listening for notifications')).toHaveLength(0)
    await proxy.recover()
    await until(() => said(lines, 'listening for notifications').length > 0, 'it listens', 15_000)
    expect(said(lines, 'LISTEN does not work')).toHaveLength(1)
  })

  test('found again, brings what was notified meanwhile', async () => {
    const proxy = await startTcpProxy(environment.urls.daemon)
    const { lines } = await start({
      env: { ...noPolling, LISTEN_DATABASE_URL: proxy.through(environment.urls.daemon) },
    })
    await settled()
    await proxy.refuse()
    await until(() => said(lines, 'LISTEN does not work').length > 0, 'the loss is noticed')
    const id = await insert()
    expect(await isOffloaded(id)).toBe(false)
    await proxy.recover()
    await offloaded(id, 15_000)
  })

  test('severed, or terminated by the server, is replaced at once', async () => {
    const proxy = await startTcpProxy(environment.urls.daemon)
    const { lines } = await start({
      env: { ...noPolling, LISTEN_DATABASE_URL: proxy.through(environment.urls.daemon) },
    })
    for (const [i, cut] of [() => proxy.sever(), () => terminate('pg-lighter listen')].entries()) {
      await cut()
      await until(
        () => said(lines, 'listening for notifications').length === i + 2,
        'it listens again',
        soonMs,
      )
      await settled()
      await offloaded(await insert())
    }
    expect(await backends('pg-lighter listen')).toHaveLength(1)
  })
})

describe('a listener by itself', () => {
  type Change = [listening: boolean, reason: string]

  /** With pings fast enough for a test. */
  async function listen(options: Partial<ListenerOptions> & { url: string }) {
    const changes: Change[] = []
    let wakes = 0
    const pool = createPool(environment.urls.daemon, 2, () => undefined)
    const listener: Listener = createListener({
      db: pool,
      onWake: () => {
        wakes++
      },
      onChange: (listening, reason) => changes.push([listening, reason]),
      pingIntervalMs: 100,
      pingTimeoutMs: 1000,
      ...options,
    })
    onTestFinished(async () => {
      await listener.stop()
      await pool.end()
    })
    await listener.start()
    return { listener, changes, wakes: () => wakes }
  }

  const listenersGone = () =>
    until(async () => (await backends('pg-lighter listen')).length === 0, 'nobody listens any more')

  test('finds out that its connection has fallen into a black hole, and replaces it', async () => {
    const proxy = await startTcpProxy(environment.urls.daemon)
    const { listener, changes } = await listen({ url: proxy.through(environment.urls.daemon) })
    expect(changes).toEqual([[true, 'LISTEN works']])
    proxy.blackHole()
    await until(() => changes.length > 1, 'the silence is noticed')
    expect(changes[1]).toEqual([false, 'no answer to our own notification within 1000 ms'])
    expect(listener.isListening()).toBe(false)
    await proxy.recover()
    await until(() => listener.isListening(), 'it listens again', 20_000)
    expect(changes).toHaveLength(3)
  })

  test('stops at once with its connection in a black hole', async () => {
    const proxy = await startTcpProxy(environment.urls.daemon)
    const { listener } = await listen({ url: proxy.through(environment.urls.daemon) })
    proxy.blackHole()
    const started = performance.now()
    await listener.stop()
    expect(performance.now() - started).toBeLessThan(3000)
  })

  test('stops at once while it waits for the server to come back, and opens nothing when it is back', async () => {
    const proxy = await startTcpProxy(environment.urls.daemon)
    const { listener, changes, wakes } = await listen({ url: proxy.through(environment.urls.daemon) })
    await proxy.refuse()
    await until(() => changes.length > 1, 'the loss is noticed')
    const started = performance.now()
    await listener.stop()
    expect(performance.now() - started).toBeLessThan(3000)

    await proxy.recover()
    const before = { accepted: proxy.accepted(), wakes: wakes() }
    await listenersGone()
    // Longer than the longest pause between two attempts to connect: whoever was to come, has come.
    await new Promise(resolve => setTimeout(resolve, 5500))
    expect({ accepted: proxy.accepted(), wakes: wakes() }).toEqual(before)
    expect(changes).toHaveLength(2)
  })

  test('stops while it is still connecting', async () => {
    const proxy = await startTcpProxy(environment.urls.daemon)
    proxy.blackHole()
    const pool = createPool(environment.urls.daemon, 2, () => undefined)
    const changes: boolean[] = []
    const listener = createListener({
      url: proxy.through(environment.urls.daemon),
      db: pool,
      onWake: () => undefined,
      onChange: listening => changes.push(listening),
    })
    const starting = listener.start()
    await until(() => proxy.accepted() > 0, 'it connects')
    const began = performance.now()
    await listener.stop()
    await starting
    expect(performance.now() - began).toBeLessThan(3000)
    expect(changes).toEqual([])
    await pool.end()
  })

  test('started after it was stopped, does nothing', async () => {
    const proxy = await startTcpProxy(environment.urls.daemon)
    const pool = createPool(environment.urls.daemon, 2, () => undefined)
    const listener = createListener({
      url: proxy.through(environment.urls.daemon),
      db: pool,
      onWake: () => undefined,
      onChange: () => undefined,
    })
    await listener.stop()
    await listener.start()
    expect(proxy.accepted()).toBe(0)
    await pool.end()
  })

  test('is not deaf because a ping could not be sent', async () => {
    let broken = false
    const pool = createPool(environment.urls.daemon, 2, () => undefined)
    let pings = 0
    const { listener, changes } = await listen({
      url: environment.urls.daemon,
      db: {
        query: (config, values) => {
          pings++
          return broken ? Promise.reject(new Error('no connection to be had')) : pool.query(config, values)
        },
      },
    })
    broken = true
    const before = pings
    await until(() => pings > before + 3, 'it has tried')
    expect(listener.isListening()).toBe(true)
    expect(changes).toEqual([[true, 'LISTEN works']])
    await listener.stop()
    await pool.end()
  })
})

describe('a lost database', () => {
  test('whose backends were all terminated is reconnected to, and work goes on', async () => {
    const { lines } = await start({ env: noPolling })
    await settled()
    await terminate('pg-lighter%')
    await until(() => said(lines, 'listening for notifications').length === 2, 'it listens again', soonMs)
    await offloaded(await insert(), 15_000)
  })

  test('that refuses connections is tried again and again, less and less often', async () => {
    const proxy = await startTcpProxy(environment.urls.daemon)
    const { lines } = await start({
      env: { DATABASE_URL: proxy.through(environment.urls.daemon), POLL_INTERVAL_MS: '100' },
    })
    await offloaded(await insert())
    await proxy.refuse()
    const id = await insert()
    const failures = () => said(lines, 'the database can not be reached')
    await until(() => failures().length >= 4, 'it has failed four times')
    const pauses = failures().map(line => Number(line.pauseMs))
    expect(pauses.slice(0, 4)).toEqual([250, 500, 1000, 2000])
    expect(await isOffloaded(id)).toBe(false)

    await proxy.recover()
    await offloaded(id, 15_000)
    await offloaded(await insert())
  })

  test('does not keep a daemon from stopping', async () => {
    const proxy = await startTcpProxy(environment.urls.daemon)
    const { daemon, lines } = await start({
      env: { DATABASE_URL: proxy.through(environment.urls.daemon), POLL_INTERVAL_MS: '100' },
    })
    await proxy.refuse()
    await until(() => said(lines, 'the database can not be reached').length >= 3, 'it waits for the database')
    const started = performance.now()
    expect(await daemon.stop(10_000)).toBe(true)
    expect(performance.now() - started).toBeLessThan(5000)
  })
})

describe('a daemon that stops', () => {
  test('leaves no connection behind', async () => {
    const { daemon } = await start()
    await Promise.all(Array.from({ length: 10 }, async () => offloaded(await insert())))
    expect((await backends()).map(b => b.application_name)).toContain('pg-lighter listen')
    expect(await daemon.stop()).toBe(true)
    await until(async () => (await backends()).length === 0, 'no connection is left', 2000)
  })

  test('finishes what it has claimed', async () => {
    const signals = createSignals()
    const { daemon } = await start({ env: noPolling, signal: signals.signal })
    await settled()
    const hold = signals.holdAt('after-upload')
    const id = await insert()
    await hold.reached
    const stopping = daemon.stop()
    expect(await isOffloaded(id)).toBe(false)
    hold.release()
    expect(await stopping).toBe(true)
    expect(await isOffloaded(id)).toBe(true)
  })

  test('in the middle of work, at its deadline, says that it has not finished', async () => {
    const signals = createSignals()
    const { daemon } = await start({ env: noPolling, signal: signals.signal })
    await settled()
    const hold = signals.holdAt('after-upload')
    await insert()
    await hold.reached
    expect(await daemon.stop(100)).toBe(false)
    hold.release()
  })
})

test('two daemons on one queue share the work, and both stop cleanly', async () => {
  const shares = [0, 0]
  const daemons = await Promise.all(
    shares.map((_, i) =>
      start({
        env: { OFFLOAD_BATCH_ROWS: '5', OFFLOAD_BATCHES_IN_FLIGHT: '1' },
        onResult: result => {
          shares[i] = (shares[i] ?? 0) + result.offloadedRows
        },
      }),
    ),
  )
  const ids = await Promise.all(Array.from({ length: 200 }, () => insert()))
  await Promise.all(ids.map(id => offloaded(id, 30_000)))
  const artifacts = await environment.admin.query<{ row_id: string }>(
    'select row_id from artifact_refs where row_id = any ($1)',
    [ids],
  )
  expect(artifacts.rows.map(row => row.row_id).sort()).toEqual(ids.toSorted())
  expect((shares[0] ?? 0) + (shares[1] ?? 0)).toBeGreaterThanOrEqual(200)
  for (const share of shares) expect(share).toBeGreaterThan(0)
  expect(await Promise.all(daemons.map(({ daemon }) => daemon.stop()))).toEqual([true, true])
  await until(async () => (await backends()).length === 0, 'no connection is left', 3000)
})
