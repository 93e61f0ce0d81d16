// A database that is well, and refuses: out of connections, out of time, a lock held, a conflict lost. None of it is a
// row's fault, so none of it may use up a row's attempts.
import { setTimeout } from 'node:timers/promises'
import { beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import {
  asJsonbText,
  createSignals,
  drained,
  hydrated,
  hydratedMany,
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  until,
  useFreshEnvironment,
} from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'
import { createLogin } from '../support/own-login.ts'
import { runCli } from '../support/process.ts'
import { connect } from '../support/sql.ts'
import { startTcpProxy } from '../support/tcp-proxy.ts'

const environment = useFreshEnvironment()
let conversationId: string
beforeEach(async () => {
  conversationId = (await newConversation(environment)).conversationId
})

type Line = Record<string, unknown>
const said = (lines: Line[], text: string) => lines.filter(line => String(line.msg).includes(text))

async function start(options: Parameters<typeof startDaemon>[1] = {}) {
  const lines: Line[] = []
  const daemon = await startDaemon(environment, { ...options, log: line => lines.push(line) })
  onTestFinished(() => daemon.stop(0).then(() => undefined))
  return { daemon, lines }
}

async function write(rows: number, round = 0): Promise<Map<string, string>> {
  const written = new Map<string, string>()
  for (let n = 0; n < rows; n++) {
    const metadata = `{"tool_interactions": [${round}, ${n}]}`
    written.set(await insertMessage(environment, conversationId, metadata), metadata)
  }
  return written
}

async function expectWhole(written: Map<string, string>): Promise<void> {
  const wanted = await Promise.all([...written.values()].map(text => asJsonbText(environment, text)))
  expect(await hydratedMany(environment, [...written.keys()])).toEqual(wanted)
  expect(await strayArtifacts(environment)).toEqual([])
  expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
  const { rows } = await environment.admin.query('select * from lighter.failed_jobs')
  expect(rows).toEqual([])
}

describe('out of connections', () => {
  test('at the start: it says so, with what to do', async () => {
    const login = await createLogin(environment)
    await login.alter('connection limit 0')
    const { code, stdout } = await runCli(['start', '--no-api'], {
      env: { ...environment.env, LOG_LEVEL: 'info', DATABASE_URL: login.url },
    })
    expect(code).toBe(1)
    expect(stdout).toContain('too many connections for role')
    expect(stdout).toContain('DATABASE_POOL_SIZE')
  })

  test('in the middle: it makes do with what it gets, blames no row, and goes on', async () => {
    const login = await createLogin(environment)
    const { lines } = await start({
      env: { DATABASE_URL: login.url, OFFLOAD_MAX_ATTEMPTS: '1', OFFLOAD_BATCH_ROWS: '5' },
    })
    const written = await write(20)
    await drained(environment)
    await login.alter('connection limit 0')
    await login.terminate()
    for (const [id, metadata] of await write(50, 1)) written.set(id, metadata)
    await until(() => said(lines, 'can not be reached').length > 0, 'it is refused all connections')
    // Batches beside each other want more of them than there are.
    await login.alter('connection limit 2')
    await drained(environment, 90_000)
    expect(JSON.stringify(lines)).toContain('too many connections for role')
    await expectWhole(written)
  }, 120_000)

  test('between a claim and the plan: the batch is given back when there are some again, and uses up no attempt', async () => {
    const login = await createLogin(environment)
    const signals = createSignals()
    const { lines } = await start({
      env: { DATABASE_URL: login.url, OFFLOAD_MAX_ATTEMPTS: '1' },
      signal: signals.signal,
    })
    const claimed = signals.holdAt('after-claim')
    const written = await write(3)
    await claimed.reached
    await login.alter('connection limit 0')
    await login.terminate()
    // A connection that is lost in use may be a row's fault. This is to be a refusal: the daemon knows of the loss by now.
    await setTimeout(1000)
    claimed.release()
    // Longer than one try to give it back.
    await setTimeout(2000)
    await login.alter('connection limit -1')
    await drained(environment)
    await expectWhole(written)
    expect(said(lines, 'batch failed')).toMatchObject([{ level: 50 }])
  })
})

describe('time-outs', () => {
  test('a claim and a commit that are cancelled are done again', async () => {
    const login = await createLogin(environment)
    const signals = createSignals()
    const { lines } = await start({
      env: { DATABASE_URL: login.url },
      signal: signals.signal,
    })
    const cancel = (text: string) =>
      until(async () => {
        const { rows } = await environment.admin.query(
          `select pg_cancel_backend(pid) from pg_stat_activity
            where usename = $1 and state = 'active' and wait_event_type = 'Lock' and query like $2`,
          [login.role, text],
        )
        return rows.length > 0
      }, `a statement like ${text} was cancelled`)
    // A lock on the whole table makes a statement last long enough to be cancelled.
    const holder = await connect(environment.urls.admin)
    try {
      await holder.query('begin; lock table lighter.inbox in access exclusive mode')
      await cancel('%from lighter.inbox%')
      await holder.query('commit')
      await until(() => said(lines, 'trying again').length > 0, 'the claim has failed')

      const hold = signals.holdAt('before-commit')
      const written = await write(5)
      await hold.reached
      await holder.query('begin; lock table public.artifact_refs in access exclusive mode')
      hold.release()
      await cancel('%with read as (%')
      await holder.query('commit')
      await drained(environment)
      await expectWhole(written)
    } finally {
      await holder.end()
    }
  })

  test('a small statement_timeout of the login does not keep commits from their time', async () => {
    const login = await createLogin(environment)
    await login.alter(`set statement_timeout = '700ms'`)
    const signals = createSignals()
    await start({ env: { DATABASE_URL: login.url }, signal: signals.signal })
    const hold = signals.holdAt('before-commit')
    const written = await write(3)
    await hold.reached
    const holder = await connect(environment.urls.admin)
    try {
      await holder.query('begin; lock table public.artifact_refs in access exclusive mode')
      hold.release()
      await until(async () => {
        const { rows } = await environment.admin.query(
          `select from pg_stat_activity where usename = $1 and wait_event_type = 'Lock' and now() - query_start > interval '1.5 s'`,
          [login.role],
        )
        return rows.length > 0
      }, 'the commit waits for longer than that')
      await holder.query('commit')
    } finally {
      await holder.end()
    }
    await drained(environment)
    await expectWhole(written)
  })

  test('a table that is locked as a whole for long costs its rows no attempt, and other tables no time', async () => {
    await environment.admin.query(`
      create table notes (id bigint generated always as identity primary key, tenant_id uuid not null, metadata jsonb);
      grant insert, select on notes to example_app;
      select lighter.attach('notes')`)
    await start({ env: { OFFLOAD_MAX_ATTEMPTS: '1' } })
    const holder = await connect(environment.urls.admin)
    const written = await write(5)
    await drained(environment)
    try {
      await environment.app.query(
        `insert into notes (tenant_id, metadata) select gen_random_uuid(), '{"tool_interactions": ["n"]}' from generate_series(1, 3)`,
      )
      await drained(environment)
      await holder.query('begin; lock table notes in access exclusive mode')
      await environment.admin.query(
        `select lighter.requeue('notes', (select array_agg(id::text) from (values (1), (2), (3)) v(id)))`,
      )
      await until(
        async () => {
          const { rows } = await environment.admin.query(
            `select from lighter.jobs where last_error like '%lock timeout%' and attempts = 0`,
          )
          return rows.length > 0
        },
        'the lock was waited for in vain',
        40_000,
      )
      for (const [id, metadata] of await write(5, 1)) written.set(id, metadata)
      await until(
        async () => {
          const { rows } = await environment.admin.query(
            `select from lighter.jobs j join lighter.sources s on s.id = j.source_id where s.relation = 'conversation_messages'::regclass`,
          )
          return rows.length === 0
        },
        'the other table is worked off',
        40_000,
      )
      await holder.query('commit')
      await environment.admin.query('update lighter.waiting set available_at = now()')
      await drained(environment)
      await expectWhole(written)
    } finally {
      await holder.end()
    }
  }, 120_000)

  test('rows that a long transaction of the application holds wait, and the others do not', async () => {
    await start()
    const written = await write(10)
    const [held = ''] = written.keys()
    await drained(environment)
    const writer = await connect(environment.urls.application)
    try {
      await writer.query('begin')
      await writer.query('select from conversation_messages where id = $1 for update', [held])
      for (const id of written.keys()) {
        if (id !== held)
          await environment.app.query('update conversation_messages set metadata = $2 where id = $1', [
            id,
            '{"tool_interactions": ["again"]}',
          ])
      }
      await environment.admin.query(
        `insert into lighter.inbox (source_id, row_id) select id, $1 from lighter.sources`,
        [held],
      )
      for (const id of written.keys()) {
        if (id !== held)
          await until(
            async () => (await rawMetadata(environment, id))?.includes('_ref') === true,
            `${id} goes on`,
          )
      }
      await writer.query('update conversation_messages set metadata = $2 where id = $1', [
        held,
        '{"tool_interactions": ["mine"]}',
      ])
      await writer.query('commit')
    } finally {
      await writer.end()
    }
    await drained(environment, 90_000)
    expect(await hydrated(environment, held)).toBe('{"tool_interactions": ["mine"]}')
    const { rows } = await environment.admin.query('select from lighter.failed_jobs')
    expect(rows).toEqual([])
  }, 120_000)
})

describe('conflicts', () => {
  test.for(['serializable', 'repeatable read'])(
    'with default_transaction_isolation = %s two daemons and the application get along',
    async isolation => {
      const login = await createLogin(environment)
      await login.alter(`set default_transaction_isolation = '${isolation}'`)
      const env = {
        DATABASE_URL: login.url,
        OFFLOAD_BATCH_ROWS: '5',
        OFFLOAD_MAX_ATTEMPTS: '3',
        STREAM_THRESHOLD_BYTES: '65536',
      }
      const { lines } = await start({ env })
      await start({ env })
      const written = new Map<string, string>()
      for (let round = 0; round < 4; round++) {
        for (const [id, metadata] of await write(40, round)) written.set(id, metadata)
        const big = `{"trace": "${'~'.repeat(100_000)}", "round": ${round}}`
        written.set(await insertMessage(environment, conversationId, big), big)
        for (const id of [...written.keys()].slice(-10)) {
          const metadata = `{"tool_interactions": ["changed", ${round}]}`
          await environment.app.query('update conversation_messages set metadata = $2 where id = $1', [
            id,
            metadata,
          ])
          written.set(id, metadata)
        }
      }
      await drained(environment, 60_000)
      await expectWhole(written)
      expect(lines.filter(line => Number(line.level) >= 40)).toEqual([])
    },
  )

  test('behind a pooler, where no default of ours holds, a statement that loses a conflict is run again', async () => {
    const login = await createLogin(environment)
    await login.alter(`set default_transaction_isolation = 'serializable'`)
    const pooler = await startTcpProxy(login.url, { pooler: true })
    const env = { DATABASE_URL: pooler.through(login.url), OFFLOAD_BATCH_ROWS: '5', POLL_INTERVAL_MS: '100' }
    for (let n = 0; n < 3; n++) await start({ env })
    const written = new Map<string, string>()
    for (let round = 0; round < 4; round++)
      for (const [id, metadata] of await write(50, round)) written.set(id, metadata)
    await drained(environment, 60_000)
    await expectWhole(written)
  })

  test('a commit that is chosen to die in a deadlock is made again', async () => {
    const login = await createLogin(environment)
    // Whoever looks for a deadlock first is the one to die in it.
    await login.alter(`set deadlock_timeout = '5s'`)
    const signals = createSignals()
    await start({ signal: signals.signal, env: { DATABASE_URL: login.url, OFFLOAD_MAX_ATTEMPTS: '1' } })
    const other = await connect(environment.urls.admin)
    try {
      const hold = signals.holdAt('before-commit')
      const written = await write(1)
      await hold.reached
      const [id] = written.keys()
      await other.query(`begin; set local deadlock_timeout = '60s'`)
      await other.query('select from lighter.leases where $1 = any (row_ids) for update', [id])
      hold.release()
      await until(async () => {
        const { rows } = await environment.admin.query(
          `select from pg_stat_activity where usename = $1 and wait_event_type = 'Lock'`,
          [login.role],
        )
        return rows.length === 1
      }, 'the commit has the row, and waits for its lease')
      await other.query('select from conversation_messages where id = $1 for update', [id])
      await other.query('commit')
      await drained(environment)
      await expectWhole(written)
    } finally {
      await other.end()
    }
    const { rows } = await environment.admin.query<{ deadlocks: number }>(
      'select deadlocks::int from pg_stat_database where datname = current_database()',
    )
    expect(rows[0]?.deadlocks).toBeGreaterThan(0)
  })
})
