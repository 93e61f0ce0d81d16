import { randomUUID } from 'node:crypto'
import { tmpdir } from 'node:os'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { Check } from '../../src/doctor/checks.ts'
import { checkConditionalPuts } from '../../src/doctor/conditional-put.ts'
import { StoreError } from '../../src/errors.ts'
import {
  createEnvironment,
  drained,
  insertMessage,
  newConversation,
  startDaemon,
  type TestEnvironment,
} from '../support/environment.ts'
import { runCli } from '../support/process.ts'
import { asRole } from '../support/sql.ts'
import { startTcpProxy } from '../support/tcp-proxy.ts'

const source = 'source conversation_messages.metadata'

/** Migrated, attached, and its prefix claimed by a daemon that has run. */
async function healthyEnvironment(): Promise<TestEnvironment> {
  const environment = await freshEnvironment()
  await (await startDaemon(environment)).stop()
  return environment
}

async function freshEnvironment(options?: Parameters<typeof createEnvironment>[0]): Promise<TestEnvironment> {
  const environment = await createEnvironment(options)
  onTestFinished(() => environment.close())
  return environment
}

interface Examination {
  code: number | null
  ok: boolean
  checks: Check[]
  of(name: string): Check
}

async function doctor(
  environment: TestEnvironment,
  env: Record<string, string> = {},
  ...args: string[]
): Promise<Examination> {
  const { code, stdout, stderr } = await runCli(['doctor', '--json', ...args], {
    cwd: tmpdir(),
    env: { ...environment.env, ...env },
  })
  expect(stderr).toBe('')
  const { ok, checks }: { ok: boolean; checks: Check[] } = JSON.parse(stdout)
  return {
    code,
    ok,
    checks,
    of: name => {
      const check = checks.find(c => c.name === name)
      if (check === undefined)
        throw new Error(`no check "${name}" among ${checks.map(c => c.name).join(', ')}`)
      return check
    },
  }
}

/** Exit status 1 because of this check, and of no others than these before it, with advice. */
function expectFailure(
  examination: Examination,
  name: string,
  found: RegExp,
  advice: RegExp,
  before: string[] = [],
): void {
  expect(examination.of(name)).toEqual({
    name,
    status: 'fail',
    found: expect.stringMatching(found),
    advice: expect.stringMatching(advice),
  })
  expect(examination.checks.filter(c => c.status === 'fail').map(c => c.name)).toEqual([...before, name])
  expect(examination).toMatchObject({ ok: false, code: 1 })
}

/** Something to look at, with advice, that does not make the whole a failure. */
function expectWarning(examination: Examination, name: string, found: RegExp, advice: RegExp): void {
  expect(examination.of(name)).toEqual({
    name,
    status: 'warn',
    found: expect.stringMatching(found),
    advice: expect.stringMatching(advice),
  })
  expect(examination).toMatchObject({ ok: true, code: 0 })
}

async function expectHealthy(environment: TestEnvironment): Promise<void> {
  expect(await doctor(environment)).toMatchObject({ ok: true, code: 0 })
}

async function keysUnderPrefix(environment: TestEnvironment): Promise<string[]> {
  const keys: string[] = []
  for await (const { key } of environment.store.list(environment.store.prefix)) keys.push(key)
  return keys
}

describe('a healthy installation', () => {
  test('passes all checks, with work waiting or done', async () => {
    const environment = await healthyEnvironment()
    const { conversationId } = await newConversation(environment)
    await insertMessage(environment, conversationId, '{"tool_interactions": [1]}')
    const examination = await doctor(environment)
    expect(examination.checks.map(c => [c.name, c.status])).toEqual([
      ['configuration', 'ok'],
      ['database', 'ok'],
      ['clock', 'ok'],
      ['schema', 'ok'],
      ['schema objects', 'ok'],
      ['privileges', 'ok'],
      [source, 'ok'],
      ['HTTP API', 'ok'],
      ['queue', 'ok'],
      ['moved rows', 'ok'],
      ['pointers public.conversation_messages.metadata', 'ok'],
      ['deletions', 'ok'],
      ['vacuum horizon', 'ok'],
      ['LISTEN', 'ok'],
      ['bucket', 'ok'],
      ['bucket owner', 'ok'],
      ['bucket write', 'skip'],
    ])
    for (const check of examination.checks) {
      expect(check.found).not.toBe('')
      expect(check.advice).toBeUndefined()
    }
    expect(examination.of('queue').found).toMatch(
      /^1 queued, oldest \d+ s, 0 of them after an error, 0 dead letters$/,
    )
    expect(examination).toMatchObject({ ok: true, code: 0 })
  })

  test('is told so in plain lines too, and nothing of it is secret', async () => {
    const environment = await healthyEnvironment()
    const { code, stdout, stderr } = await runCli(['doctor'], { cwd: tmpdir(), env: environment.env })
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const lines = stdout.trimEnd().split('\n')
    expect(lines).toContain('ok    schema: up to date')
    expect(lines).toContain(`ok    ${source}: trigger in place, threshold 8000 bytes`)
    expect(lines.at(-1)).toBe('all is well')
    for (const name of ['R2_ACCESS_KEY_ID', 'R2_SECRET_ACCESS_KEY'])
      expect(stdout).not.toContain(environment.env[name])
    for (const url of Object.values(environment.urls)) expect(stdout).not.toContain(new URL(url).password)
  })

  test('before its daemon has ever run is healthy as well', async () => {
    const environment = await freshEnvironment()
    const examination = await doctor(environment)
    expect(examination.of('bucket owner')).toMatchObject({
      status: 'ok',
      found: expect.stringContaining('nobody yet'),
    })
    expect(examination.code).toBe(0)
    expect(await keysUnderPrefix(environment)).toEqual([])
  })

  test('--write writes, reads and deletes an object, and leaves none', async () => {
    const environment = await healthyEnvironment()
    const before = await keysUnderPrefix(environment)
    const examination = await doctor(environment, {}, '--write')
    expect(examination.of('bucket write')).toMatchObject({
      status: 'ok',
      found: expect.stringMatching(/^written, read and deleted in \d+ ms$/),
    })
    expect(examination.of('bucket conditions')).toMatchObject({ status: 'ok' })
    expect(examination.code).toBe(0)
    expect(await keysUnderPrefix(environment)).toEqual(before)
  })
})

describe('configuration', () => {
  test('that is missing is a failure for each variable, and nothing else is tried', async () => {
    const { code, stdout, stderr } = await runCli(['doctor', '--json'], { cwd: tmpdir() })
    expect({ code, stderr }).toEqual({ code: 1, stderr: '' })
    const { ok, checks } = JSON.parse(stdout)
    expect(ok).toBe(false)
    expect(checks.map((c: Check) => [c.name, c.status])).toEqual([
      ...['DATABASE_URL', 'R2_ACCESS_KEY_ID', 'R2_SECRET_ACCESS_KEY', 'R2_BUCKET', 'R2_ACCOUNT_ID'].map(
        name => [`configuration ${name}`, 'fail'],
      ),
      ['everything else', 'skip'],
    ])
    for (const check of checks.slice(0, -1)) expect(check.advice).toMatch(/^expected ./)
  })

  test('in plain lines has the advice below each failure, and how many there are', async () => {
    const { code, stdout } = await runCli(['doctor'], { cwd: tmpdir() })
    expect(code).toBe(1)
    const lines = stdout.trimEnd().split('\n')
    expect(lines[0]).toBe('FAIL  configuration DATABASE_URL: found nothing')
    expect(lines[1]).toMatch(/^ {6}→ expected a URL/)
    expect(lines.at(-1)).toBe('5 check(s) failed')
  })
})

describe('database', () => {
  test('that nobody answers for: the bucket is examined all the same', async () => {
    const environment = await healthyEnvironment()
    const proxy = await startTcpProxy(environment.urls.daemon)
    await proxy.refuse()
    const url = new URL(proxy.through(environment.urls.daemon))
    url.hostname = 'localhost'
    const examination = await doctor(environment, { DATABASE_URL: url.href })
    expectFailure(examination, 'database', /ECONNREFUSED/, /DATABASE_URL/)
    expect(examination.of('bucket').status).toBe('ok')
    expect(examination.of('bucket owner').status).toBe('skip')
  })

  test('with a wrong password', async () => {
    const environment = await healthyEnvironment()
    const url = new URL(environment.urls.daemon)
    url.password = 'wrong'
    expectFailure(
      await doctor(environment, { DATABASE_URL: url.href }),
      'database',
      /password authentication failed/,
      /user and password/,
    )
  })

  test('as a superuser, to whom row-level security does not apply, is a warning', async () => {
    const environment = await healthyEnvironment()
    expectWarning(
      await doctor(environment, { DATABASE_URL: environment.urls.admin }),
      'database',
      /as postgres, which bypasses row-level security/,
      /member of lighter_daemon/,
    )
  })

  test('that was not migrated', async () => {
    const environment = await freshEnvironment({ empty: true })
    expectFailure(await doctor(environment), 'schema', /no schema "lighter"/, /lighter migrate/)
  })

  test('that lacks a migration', async () => {
    const environment = await healthyEnvironment()
    await environment.admin.query(`delete from lighter.schema_migrations where name like 'migrations/0003%'`)
    expectFailure(await doctor(environment), 'schema', /1 migration\(s\).*0003/, /lighter migrate/)
  })
})

describe('privileges', () => {
  test('of a login that is no member of lighter_daemon', async () => {
    const environment = await healthyEnvironment()
    const login = `stranger_${randomUUID().slice(0, 8)}`
    await environment.admin.query(`create role ${login} login password 'stranger'`)
    onTestFinished(async () => {
      const cleaner = await createEnvironment({ empty: true })
      await cleaner.admin.query(`drop role ${login}`)
      await cleaner.close()
    })
    const url = new URL(environment.urls.daemon)
    url.username = login
    url.password = 'stranger'
    expectFailure(
      await doctor(environment, { DATABASE_URL: url.href }),
      'schema',
      /may not read schema "lighter"/,
      new RegExp(`grant lighter_daemon to "?${login}`),
    )
  })

  test.each<[sql: string, found: RegExp, before?: string[]]>([
    // Grants on what is ours are a part of its schema.
    [
      'revoke update on lighter.objects from lighter_daemon',
      /^missing: update on lighter\.objects$/,
      ['schema objects'],
    ],
    [
      'revoke select on artifact_refs from lighter_daemon',
      /^missing: select on public\.artifact_refs$/,
      ['schema objects'],
    ],
    [
      'revoke insert on lighter.loose_artifacts, lighter.frames, lighter.frame_exceptions from lighter_daemon',
      /^missing: insert on lighter\.frames, insert on lighter\.frame_exceptions, insert on lighter\.loose_artifacts$/,
      ['schema objects'],
    ],
    [
      'revoke update (metadata) on conversation_messages from lighter_daemon',
      /^missing: update on conversation_messages\.metadata$/,
    ],
    [
      'revoke select (tenant_id) on conversations from lighter_daemon',
      /^missing: select on conversations\.tenant_id$/,
    ],
    [
      'revoke all on conversation_messages from lighter_daemon',
      /select on conversation_messages\.metadata.*select on conversation_messages\.id/,
    ],
  ])('after "%s" names what is missing, and the advice mends it', async (sql, found, before) => {
    const environment = await healthyEnvironment()
    await environment.admin.query(sql)
    // Grants are stated anew when a file of the schema has changed.
    await environment.admin.query(
      `update lighter.schema_migrations set checksum = '' where name = 'grants.sql'`,
    )
    expectFailure(
      await doctor(environment),
      'privileges',
      found,
      /lighter migrate; lighter attach <table>/,
      before,
    )
    for (const args of [['migrate'], ['attach', 'conversation_messages']])
      expect((await runCli(args, { env: environment.env })).code).toBe(0)
    await expectHealthy(environment)
  })
})

describe('a source', () => {
  const changed = async (sql: string): Promise<TestEnvironment> => {
    const environment = await healthyEnvironment()
    await environment.admin.query(sql)
    return environment
  }
  const followAttachAdvice = async (environment: TestEnvironment, examination: Examination) => {
    const command = /lighter (attach \S+ --column \S+)/.exec(examination.of(source).advice ?? '')?.[1]
    expect((await runCli((command ?? '').split(' '), { env: environment.env })).code).toBe(0)
    await expectHealthy(environment)
  }

  test('whose trigger was dropped fails, and the advice mends it', async () => {
    const environment = await changed('drop trigger lighter_enqueue_1 on conversation_messages')
    const examination = await doctor(environment)
    expectFailure(
      examination,
      source,
      /trigger is gone/,
      /lighter attach conversation_messages --column metadata/,
    )
    await followAttachAdvice(environment, examination)
  })

  test('whose trigger is disabled fails, and the advice is the statement that mends it', async () => {
    const environment = await changed('alter table conversation_messages disable trigger lighter_enqueue_1')
    const examination = await doctor(environment)
    expectFailure(
      examination,
      source,
      /trigger is disabled/,
      /^alter table conversation_messages enable trigger/,
    )
    await environment.admin.query(examination.of(source).advice ?? '')
    await expectHealthy(environment)
  })

  test('whose writers may not ask what its trigger asks fails, and the advice is the statement that mends it', async () => {
    const environment = await changed('revoke execute on function lighter.heavy_1(jsonb) from public')
    const examination = await doctor(environment)
    expectFailure(
      examination,
      source,
      /may not call lighter\.heavy_1/,
      /^grant execute on function lighter\.heavy_1\(jsonb\) to public;$/,
    )
    await environment.admin.query(examination.of(source).advice ?? '')
    await expectHealthy(environment)
  })

  test('whose trigger has another threshold fails, and the advice mends it', async () => {
    const environment = await changed('update lighter.settings set threshold_bytes = 9000')
    const examination = await doctor(environment)
    expectFailure(examination, source, /does not have the threshold 9000/, /lighter attach/)
    await followAttachAdvice(environment, examination)
  })

  test('whose threshold is not the one of the configuration is a warning, until the daemon starts', async () => {
    const environment = await healthyEnvironment()
    const env = { AI_ARTIFACT_META_THRESHOLD_BYTES: '12000' }
    expectWarning(
      await doctor(environment, env),
      source,
      /threshold 8000, configuration says 12000/,
      /restart it/,
    )
    await (await startDaemon(environment, { env })).stop()
    expect((await doctor(environment, env)).of(source).status).toBe('ok')
  })

  test.each(['conversation_messages', 'conversations'])(
    'fails when row-level security hides rows of %s, and the advice mends it',
    async table => {
      const environment = await changed(
        `alter table ${table} enable row level security; drop policy lighter_daemon on ${table}`,
      )
      const examination = await doctor(environment)
      expectFailure(
        examination,
        source,
        new RegExp(`row-level security hides rows of ${table} from the daemon`),
        /lighter attach/,
      )
      await followAttachAdvice(environment, examination)
    },
  )

  test('with a restrictive policy that binds the daemon fails, and the advice names it', async () => {
    const environment = await changed(`
      alter table conversation_messages enable row level security;
      select lighter.attach('conversation_messages');
      create policy only_mine on conversation_messages as restrictive for all using (false)`)
    expectFailure(
      await doctor(environment),
      source,
      /row-level security hides rows of conversation_messages/,
      /restrictive policies.*except lighter_daemon: only_mine/,
    )
  })

  test('that is paused is a warning, and the advice is the statement that ends it', async () => {
    const environment = await changed('update lighter.sources set paused = true')
    const examination = await doctor(environment)
    expectWarning(examination, source, /paused/, /^update lighter\.sources set paused = false/)
    await environment.admin.query(examination.of(source).advice ?? '')
    expect((await doctor(environment)).of(source).status).toBe('ok')
  })

  const whole = `
    create table notes (id bigint primary key, tenant_id uuid, body text);
    select lighter.attach('notes', 'body', mode => 'whole', create_pointer_column => true);`
  test.each([
    ['drop trigger lighter_clear_null_2 on notes', /gone/, /lighter attach notes --column body/],
    [
      'alter table notes disable trigger lighter_clear_null_2',
      /disabled/,
      /^alter table notes enable trigger lighter_clear_null_2;$/,
    ],
    ['drop trigger lighter_clear_2 on notes', /gone/, /lighter attach notes --column body/],
    [
      'alter table notes disable trigger lighter_clear_2',
      /disabled/,
      /^alter table notes enable trigger lighter_clear_2;$/,
    ],
  ])('of mode whole after: %s', async (sql, found, advice) => {
    const environment = await changed(`${whole} ${sql}`)
    const examination = await doctor(environment)
    expectFailure(examination, 'source notes.body', found, advice)
    await environment.admin.query(
      examination.of('source notes.body').advice?.startsWith('alter') === true
        ? (examination.of('source notes.body').advice ?? '')
        : `select lighter.attach('notes', 'body')`,
    )
    await expectHealthy(environment)
  })

  test('of mode whole whose pointer column got a default is told what attach would say', async () => {
    const environment = await changed(
      `${whole} alter table notes alter body_artifact_id set default gen_random_uuid()`,
    )
    expectFailure(await doctor(environment), 'obstacle notes.body', /has a default/, /drop default/)
  })

  test('of mode whole without rights on the pointer column fails', async () => {
    const environment = await changed(
      `${whole} revoke update (body_artifact_id) on notes from lighter_daemon`,
    )
    expectFailure(
      await doctor(environment),
      'privileges',
      /update on notes.body_artifact_id/,
      /lighter attach/,
    )
  })

  test('whose table is gone fails, and the advice forgets it', async () => {
    const environment = await changed(`
      create table notes (id bigint primary key, tenant_id uuid, metadata jsonb);
      select lighter.attach('notes');
      drop table notes`)
    const examination = await doctor(environment)
    const { status, found, advice = '' } = examination.of('out of sight')
    expect({ status, found }).toEqual({
      status: 'fail',
      found: expect.stringMatching(/notes: the table does not exist/),
    })
    await environment.admin.query(advice.slice(advice.indexOf('select ')))
    expect((await doctor(environment)).checks.map(c => c.name)).not.toContain('out of sight')
  })

  test('is missing altogether: a warning that says how to attach one', async () => {
    const environment = await changed(`select lighter.detach('conversation_messages')`)
    expectWarning(await doctor(environment), 'sources', /no table is attached/, /lighter attach/)
  })
})

describe('queue and LISTEN', () => {
  test('dead letters are a warning that says how to see them and bring them back', async () => {
    const environment = await healthyEnvironment()
    await environment.admin.query(`
      create table notes (id bigint primary key, tenant_id uuid, metadata jsonb);
      select lighter.attach('notes');
      insert into notes values (1, null, '{"tool_interactions": [1]}')`)
    const daemon = await startDaemon(environment, { env: { OFFLOAD_MAX_ATTEMPTS: '1' } })
    await drained(environment)
    await daemon.stop()
    expectWarning(
      await doctor(environment),
      'queue',
      /0 queued, 0 of them after an error, 1 dead letters/,
      /lighter retry --dry-run/,
    )
  })

  test('jobs that nobody works on are a warning', async () => {
    const environment = await healthyEnvironment()
    await environment.admin.query(
      `insert into lighter.inbox (source_id, row_id, enqueued_at) values (1, 'x', now() - interval '1 hour')`,
    )
    expectWarning(await doctor(environment), 'queue', /1 queued, oldest 36\d\d s/, /lighter start/)
    // Nor are those that a daemon has left behind, or that have failed, forgotten.
    await environment.admin.query(
      `delete from lighter.inbox;
       insert into lighter.waiting (source_id, row_id, enqueued_at, last_error) values (1, 'x', now() - interval '1 hour', 'no answer');
       insert into lighter.leases (id, until, source_ids, row_ids, enqueued_at)
       values (gen_random_uuid(), now() - interval '1 hour', '{1}', '{y}', array[now() - interval '2 hours'])`,
    )
    expectWarning(
      await doctor(environment),
      'queue',
      /2 queued, oldest 72\d\d s, 1 of them after an error/,
      /./,
    )
  })

  test('jobs of a source that does not exist are a warning, and the advice removes them', async () => {
    const environment = await healthyEnvironment()
    await environment.admin.query(
      `insert into lighter.inbox (source_id, row_id) values (99, 'x');
       insert into lighter.waiting (source_id, row_id) values (99, 'x')`,
    )
    const examination = await doctor(environment)
    expectWarning(
      examination,
      'queue',
      /a source that does not exist/,
      /^Remove them: delete from lighter\.inbox/,
    )
    const statement =
      /delete from lighter\.inbox j .*?;/.exec(examination.of('queue').advice ?? '')?.[0] ?? ''
    for (const table of ['inbox', 'waiting'])
      await environment.admin.query(statement.replace('lighter.inbox', `lighter.${table}`))
    await expectHealthy(environment)
  })

  test('a LISTEN connection that can not be had, or is deaf, is a warning', async () => {
    const environment = await healthyEnvironment()
    const proxy = await startTcpProxy(environment.urls.daemon)
    const env = { LISTEN_DATABASE_URL: proxy.through(environment.urls.daemon) }
    expect((await doctor(environment, env)).of('LISTEN').status).toBe('ok')
    proxy.blackHole()
    expectWarning(await doctor(environment, env), 'LISTEN', /timeout/, /LISTEN_DATABASE_URL/)
    await proxy.refuse()
    expectWarning(await doctor(environment, env), 'LISTEN', /ECONNREFUSED/, /LISTEN_DATABASE_URL/)
    // Another database's notifications are not ours: what a pooler that drops LISTEN looks like.
    const elsewhere = await freshEnvironment()
    expectWarning(
      await doctor(environment, { LISTEN_DATABASE_URL: elsewhere.urls.daemon }),
      'LISTEN',
      /no notification arrived/,
      /pooler/,
    )
  })
})

describe('deletions', () => {
  const doomed = (environment: TestEnvironment, key: string, hours: number) =>
    environment.admin.query(
      `insert into lighter.objects (tenant_id, r2_key, kind, state, content_type, artifact_count, byte_length, stored_at, delete_after)
       values ($1, $2, 'agent_trace', 'deleting', 'application/json', 1, 7, now(), now() - $3 * interval '1 hour')`,
      [tenant, key, hours],
    )
  const tenant = randomUUID()

  test('that are due under a former prefix are never made, and are a warning that names it', async () => {
    const environment = await healthyEnvironment()
    const former = `tenants/${tenant}/agent_trace/2026/01/01/x.json`
    await doomed(environment, `former/${former}`, 30)
    await doomed(environment, `former/${former}n`, 20)
    await doomed(environment, former, 40)
    await doomed(environment, 'conversations/of/the/application.json', 50)
    await doomed(environment, `${environment.store.prefix}${former}`, 2)
    const sweep = await runCli(['sweep', 'orphans', '--json'], { env: environment.env })
    // Its own, for the first of two times.
    expect(JSON.parse(sweep.stdout).counts).toMatchObject({ objects_deleted: 1 })
    expectWarning(
      await doctor(environment),
      'deletions',
      /^3 object\(s\).*under no tenant, such as conversations\/of\/the\/application.json|^3 object\(s\).*under former\/tenants\//,
      /Delete them with another tool/,
    )
    const report = await asRole(environment.admin, 'lighter_reporter', async db => {
      const { rows } = await db.query(
        'select prefix, objects::int, bytes::int, example from lighter.overdue_deletions order by prefix nulls last',
      )
      return rows
    })
    expect(report).toEqual([
      { prefix: '', objects: 1, bytes: 7, example: former },
      { prefix: 'former/', objects: 1, bytes: 7, example: `former/${former}` },
      { prefix: null, objects: 1, bytes: 7, example: 'conversations/of/the/application.json' },
    ])
  })

  test('that are due under its own prefix for a day are a warning: nobody sweeps', async () => {
    const environment = await healthyEnvironment()
    await doomed(environment, `${environment.store.prefix}tenants/${tenant}/agent_trace/x.json`, 30)
    expectWarning(
      await doctor(environment),
      'deletions',
      /^1 object\(s\) should have left/,
      /lighter sweep orphans/,
    )
    await runCli(['sweep', 'orphans'], { env: environment.env })
    await expectHealthy(environment)
    expect((await doctor(environment)).of('deletions').status).toBe('ok')
  })
})

describe('bucket', () => {
  test('with a wrong secret', async () => {
    const environment = await healthyEnvironment()
    const examination = await doctor(environment, { R2_SECRET_ACCESS_KEY: 'f'.repeat(64) })
    expectFailure(examination, 'bucket', /403/, /R2_SECRET_ACCESS_KEY/)
    expect(examination.checks.map(c => c.name)).not.toContain('bucket owner')
  })

  test('that does not exist', async () => {
    const environment = await healthyEnvironment()
    expectFailure(
      await doctor(environment, { R2_BUCKET: 'no-such-bucket' }),
      'bucket',
      /no-such-bucket/,
      /R2_BUCKET/,
    )
  })

  test('at an endpoint that nobody answers for', async () => {
    const environment = await healthyEnvironment()
    const proxy = await startTcpProxy(environment.urls.daemon)
    await proxy.refuse()
    const R2_ENDPOINT = `http://127.0.0.1:${proxy.port}`
    expectFailure(await doctor(environment, { R2_ENDPOINT }), 'bucket', /ECONNREFUSED/, /R2_ENDPOINT/)
  })

  test('that takes the conditions of a write and pays no heed', async () => {
    const { store } = await freshEnvironment()
    const heedless = {
      ...store,
      put: (...[key, body, headers]: Parameters<typeof store.put>) => store.put(key, body, headers),
    }
    expect(await checkConditionalPuts(heedless)).toEqual({
      name: 'bucket conditions',
      status: 'fail',
      found: 'of 4 conditional writes at once 4 made the object, 4 replaced it',
      advice: expect.stringContaining('Do not use this store'),
    })
  })

  test('that refuses every conditional write', async () => {
    const { store } = await freshEnvironment()
    const refuses = {
      ...store,
      put: async (...put: Parameters<typeof store.put>) => {
        if (put[3] !== undefined) throw new StoreError('precondition_failed', 'refused')
        return store.put(...put)
      },
    }
    expect(await checkConditionalPuts(refuses)).toMatchObject({
      status: 'warn',
      found: expect.stringMatching(/ 0 made .* 0 replaced/),
    })
  })

  test("whose prefix is another installation's: nothing is written there, not even for --write", async () => {
    const owner = await healthyEnvironment()
    const environment = await freshEnvironment()
    const before = await keysUnderPrefix(owner)
    const examination = await doctor(environment, { R2_PREFIX: owner.env.R2_PREFIX ?? '' }, '--write')
    expectFailure(examination, 'bucket owner', /belongs to installation/, /R2_PREFIX.*lighter adopt/)
    expect(examination.of('bucket write')).toMatchObject({ status: 'skip' })
    expect(await keysUnderPrefix(owner)).toEqual(before)
  })

  test('whose prefix was taken over since this database was copied', async () => {
    const environment = await healthyEnvironment()
    await environment.admin.query('update lighter.installation set owner_epoch = owner_epoch - 1')
    expectFailure(await doctor(environment), 'bucket owner', /epoch/, /prefix of its own.*lighter adopt/)
  })
})

describe('the HTTP API', () => {
  test('is answered as lighter_tenant, or the check says what is missing', async () => {
    const environment = await healthyEnvironment()
    const jwt = { AUTH_MODE: 'jwt', JWT_SECRET: 'x'.repeat(32) }
    expect((await doctor(environment, jwt)).of('HTTP API')).toMatchObject({ status: 'ok' })
    expectWarning(await doctor(environment, { AUTH_MODE: 'dev' }), 'HTTP API', /believed/, /jwt or service/)
    const login = `lighter_test_${randomUUID().replaceAll('-', '')}`
    await environment.admin.query(`create role ${login} login password 'x'`)
    // Has the daemon's rights, but may become nobody.
    await environment.admin.query(`grant lighter_daemon to ${login} with inherit true, set false`)
    try {
      const url = new URL(environment.urls.daemon)
      url.username = login
      url.password = 'x'
      const examination = await doctor(environment, { ...jwt, DATABASE_URL: url.href })
      expect(examination.of('HTTP API')).toMatchObject({
        status: 'fail',
        found: expect.stringMatching(/lighter_tenant/),
        advice: expect.stringMatching(/grant lighter_tenant to lighter_daemon/),
      })
    } finally {
      await environment.admin.query(`drop role ${login}`)
    }
  })
})
