import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import pg from 'pg'
import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { needsEmbedded } from '../support/backends/backend.ts'
import {
  asJsonbText,
  createEnvironment,
  drained,
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  type TestEnvironment,
  until,
} from '../support/environment.ts'
import {
  alive,
  type CliOptions,
  descendants,
  type Finished,
  type RunningCli,
  runCli,
  startCli,
} from '../support/process.ts'
import { startTcpProxy, type TcpProxy } from '../support/tcp-proxy.ts'

const main = path.join(import.meta.dirname, '..', '..', 'src', 'cli', 'main.ts')
const nowhere = '00000000-0000-4000-8000-000000000000'

let environment: TestEnvironment
let conversationId: string
let cwd: string

beforeAll(async () => {
  environment = await createEnvironment()
  ;({ conversationId } = await newConversation(environment))
  cwd = await mkdtemp(path.join(tmpdir(), 'pg-lighter-cli-'))
})
afterAll(async () => {
  await environment.close()
  await rm(cwd, { recursive: true, force: true })
})

/** A command on this file's database and prefix. */
const lighter = (args: string[], options: CliOptions = {}) =>
  runCli(args, { cwd, ...options, env: { ...environment.env, ...options.env } })

/** On a database of the test's own. */
async function freshEnvironment(options?: Parameters<typeof createEnvironment>[0]): Promise<TestEnvironment> {
  const fresh = await createEnvironment(options)
  onTestFinished(() => fresh.close())
  return fresh
}

/** Exit status 1 and, on standard error, one line that says what is wrong and one that says what to do. */
function expectError(finished: Finished, error: string | RegExp, hint?: string | RegExp): void {
  const lines = finished.stderr.trimEnd().split('\n')
  expect(lines[0]).toMatch(/^error: /)
  expect(lines[0]).toMatch(error)
  if (hint !== undefined) {
    expect(lines[1]).toMatch(/^hint: /)
    expect(lines[1]).toMatch(hint)
  }
  expect(lines).toHaveLength(hint === undefined ? 1 : 2)
  expect(finished.stderr).not.toMatch(/^\s+at |node:internal|\.ts:\d/m)
  expect(finished.stdout).toBe('')
  expect(finished.code).toBe(1)
}

async function refusing(): Promise<TcpProxy> {
  const proxy = await startTcpProxy(environment.urls.admin)
  await proxy.refuse()
  return proxy
}

describe('help', () => {
  test('lists the commands, and each has help of its own', async () => {
    const { code, stdout } = await runCli(['--help'], { cwd })
    expect(code).toBe(0)
    const commands = (await readdir(path.dirname(main))).map(name => path.basename(name, '.ts'))
    const listed = [...stdout.matchAll(/^ {2}([a-z]+) /gm)].map(match => match[1] ?? '')
    for (const command of [
      'start',
      'dev',
      'migrate',
      'attach',
      'detach',
      'hydrate',
      'retry',
      'doctor',
      'adopt',
    ]) {
      expect(listed).toContain(command)
      expect(commands).toContain(command === 'detach' ? 'attach' : command)
    }
    const helps = await Promise.all(listed.map(command => runCli([command, '--help'], { cwd })))
    for (const [i, help] of helps.entries()) {
      expect(help).toMatchObject({ code: 0, stderr: '' })
      expect(help.stdout).toContain(`Usage: lighter ${listed[i] === 'help' ? '' : listed[i]}`)
    }
  })

  test('an unknown command or option is an error, with the one that was meant', async () => {
    const command = await runCli(['migrat'], { cwd })
    expect(command.code).toBe(1)
    expect(command.stderr).toContain("unknown command 'migrat'")
    expect(command.stderr).toContain('Did you mean migrate?')
    const option = await runCli(['migrate', '--dryrun'], { cwd })
    expect(option.code).toBe(1)
    expect(option.stderr).toContain('Did you mean --dry-run?')
    expect(command.stdout + option.stdout).toBe('')
  })

  test('--version is the version of the package', async () => {
    const manifest = JSON.parse(
      await readFile(path.join(path.dirname(main), '..', '..', 'package.json'), 'utf8'),
    )
    expect(await runCli(['--version'], { cwd })).toEqual({
      code: 0,
      stdout: `${manifest.version}\n`,
      stderr: '',
    })
  })
})

describe('configuration', () => {
  test('that is missing is reported whole by the commands that need it', async () => {
    for (const command of [['hydrate', nowhere], ['adopt']]) {
      const { code, stdout, stderr } = await runCli(command, { cwd })
      expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
      const lines = stderr.trimEnd().split('\n')
      expect(lines[0]).toBe('error: 5 problem(s) in the configuration')
      expect(lines.slice(1, 6).map(line => line.trim().split(':')[0])).toEqual([
        'DATABASE_URL',
        'R2_ACCESS_KEY_ID',
        'R2_SECRET_ACCESS_KEY',
        'R2_BUCKET',
        'R2_ACCOUNT_ID',
      ])
      expect(lines[6]).toMatch(/^hint: .*\.env\.example/)
      expect(lines).toHaveLength(7)
    }
    // A daemon starts without a store, and says so.
    const { code, stderr } = await runCli(['start'], { cwd })
    expect(code).toBe(1)
    expect(stderr).toMatch(/^error: 1 problem\(s\) in the configuration\n +DATABASE_URL: /)
  })

  test('of the bucket is not asked for by commands that never touch it', async () => {
    for (const command of [
      ['migrate', '--status'],
      ['detach', 'x'],
      ['attach', 'x'],
      ['retry', '--dry-run'],
    ]) {
      const { code, stderr } = await runCli(command, { cwd })
      expect(code).toBe(1)
      expect(stderr.match(/found nothing/g)).toHaveLength(1)
      expect(stderr).toContain('DATABASE_URL: found nothing')
    }
    const env = { DATABASE_URL: environment.urls.daemon }
    expect(await runCli(['retry', '--dry-run'], { cwd, env })).toMatchObject({ code: 0, stderr: '' })
  })

  test('can come from a file, before or after the command; what is set already wins, and is named', async () => {
    const fresh = await freshEnvironment()
    const file = path.join(cwd, 'lighter.env')
    await writeFile(
      file,
      Object.entries(fresh.env)
        .map(([name, value]) => `${name}=${value}\n`)
        .join(''),
    )
    const status = ['migrate', '--status', '--json']
    for (const args of [
      ['--env-file', file, ...status],
      [...status, '--env-file', file],
    ]) {
      const { code, stdout } = await runCli(args, { cwd })
      expect(code).toBe(0)
      expect(JSON.parse(stdout)).toMatchObject({ pending: [] })
    }
    const empty = await freshEnvironment({ empty: true })
    const set = { ADMIN_DATABASE_URL: empty.urls.admin }
    const other = await runCli(['--env-file', file, ...status], { cwd, env: set })
    expect(other.code).toBe(2)
    expect(other.stderr).toMatch(/^note: set otherwise in the environment, .*: ADMIN_DATABASE_URL$/m)
    const unset = { ADMIN_DATABASE_URL: '' }
    expect(await runCli(['--env-file', file, ...status], { cwd, env: unset })).toMatchObject({
      code: 0,
      stderr: '',
    })
  })

  test('from a file that is not there is an error in one line', async () => {
    const { code, stdout, stderr } = await runCli(['--env-file', 'no.env', 'migrate'], { cwd })
    expect(code).not.toBe(0)
    expect(stdout).toBe('')
    expect(stderr.trimEnd().split('\n')).toEqual([expect.stringContaining('no.env')])
  })
})

describe('a database that can not be used', () => {
  test('because nothing answers, is one clear line', async () => {
    const proxy = await refusing()
    // A name with several addresses fails with an error that has no message of its own.
    for (const host of ['127.0.0.1', 'localhost']) {
      const url = `postgresql://someone:hidden-pw@${host}:${proxy.port}/db`
      const env = { DATABASE_URL: url, ADMIN_DATABASE_URL: url }
      for (const command of [['migrate'], ['hydrate', nowhere], ['retry']]) {
        const finished = await lighter(command, { env })
        expectError(
          finished,
          new RegExp(`ECONNREFUSED .*:${proxy.port}`),
          /is Postgres running.*DATABASE_URL/,
        )
        expect(finished.stderr).not.toContain('hidden-pw')
      }
      const started = await lighter(['start'], { env: { ...env, LOG_LEVEL: 'info' } })
      expect(started).toMatchObject({ code: 1, stderr: '' })
      const lines = started.stdout.trimEnd().split('\n')
      expect(lines).toHaveLength(1)
      expect(JSON.parse(lines[0] ?? '')).toMatchObject({
        level: 60,
        msg: expect.stringContaining('ECONNREFUSED'),
        hint: expect.stringContaining('DATABASE_URL'),
      })
    }
  })

  test('because host, login or database are wrong, says which', async () => {
    const withUrl = (change: (url: URL) => void) => {
      const url = new URL(environment.urls.admin)
      change(url)
      return lighter(['migrate'], { env: { ADMIN_DATABASE_URL: url.href } })
    }
    expectError(
      await withUrl(url => {
        url.password = 'wrong-pw'
      }),
      /password authentication failed/,
      /user and password/,
    )
    expectError(
      await withUrl(url => {
        url.pathname = '/no_such_database'
      }),
      /"no_such_database" does not exist/,
      /Create the database/,
    )
    expectError(
      await withUrl(url => {
        url.hostname = 'no-such-host.invalid'
      }),
      /no-such-host\.invalid/,
      /check DATABASE_URL/,
    )
  })

  test('because it goes away in the middle, ends the command with one line', async () => {
    const fresh = await freshEnvironment()
    await fresh.admin.query(`select lighter.detach('conversation_messages')`)
    const blocker = await fresh.admin.connect()
    try {
      await blocker.query('begin; lock table conversation_messages')
      const running = startCli(['attach', 'conversation_messages'], { cwd, env: fresh.env })
      const waiting = () =>
        fresh.admin.query<{ pid: number }>(
          `select pid from pg_stat_activity where datname = current_database() and application_name = 'lighter' and wait_event_type = 'Lock'`,
        )
      await until(async () => (await waiting()).rows.length === 1, 'attach waits for the table')
      await fresh.admin.query('select pg_terminate_backend($1)', [(await waiting()).rows[0]?.pid])
      expectError(await running.ended, /terminating connection|Connection terminated/)
    } finally {
      await blocker.query('rollback')
      blocker.release()
    }
  })

  test('because it has no schema of ours, says to migrate', async () => {
    const empty = await freshEnvironment({ empty: true })
    const env = { ...empty.env, DATABASE_URL: empty.urls.admin }
    await empty.admin.query('create table t (id uuid primary key, tenant_id uuid, metadata jsonb)')
    for (const command of [
      ['attach', 't'],
      ['detach', 't'],
      ['hydrate', nowhere],
      ['retry'],
      ['retry', '--dry-run'],
    ])
      expectError(await runCli(command, { cwd, env }), /lighter/, /Run: lighter migrate/)
  })
})

describe('migrate', () => {
  test('tells what is pending, tries it without a trace, applies it once', async () => {
    const fresh = await freshEnvironment({ empty: true })
    const run = (...args: string[]) => runCli(['migrate', ...args], { cwd, env: fresh.env })
    const hasSchema = async () => {
      const { rows } = await fresh.admin.query(`select to_regnamespace('lighter') is not null as there`)
      return rows[0].there
    }

    const before = await run('--status')
    expect(before.code).toBe(2)
    const pending = before.stdout.trimEnd().split('\n')
    expect(pending[0]).toMatch(/^pending .*migrations\/0001/)
    expect(pending.at(-1)).toMatch(/^pending .*grants\.sql$/)

    const dry = await run('--dry-run')
    expect(dry.code).toBe(0)
    expect(dry.stdout.trimEnd().split('\n')).toEqual(
      pending.map(line => line.replace(/^pending\s+/, 'would apply  ')),
    )
    const names = pending.map(line => line.replace(/^pending\s+/, ''))
    expect(JSON.parse((await run('--dry-run', '--json')).stdout)).toEqual({
      dryRun: true,
      pending: names,
      mended: [],
      left: [],
    })
    expect(JSON.parse((await run('--status', '--json')).stdout)).toEqual({
      applied: [],
      pending: names,
      differences: [],
    })
    expect(await hasSchema()).toBe(false)

    const applied = await run('--json')
    expect(applied).toMatchObject({ code: 0, stderr: '' })
    expect(JSON.parse(applied.stdout)).toEqual({
      dryRun: false,
      applied: names,
      mended: [],
      left: [],
    })

    const after = await run('--status', '--json')
    expect(after.code).toBe(0)
    const { applied: known, pending: left } = JSON.parse(after.stdout)
    expect(left).toEqual([])
    expect(known.map((file: { name: string }) => file.name).sort()).toEqual(names.toSorted())
    expect(await run()).toEqual({
      code: 0,
      stdout: 'nothing to apply: the schema is up to date\n',
      stderr: '',
    })
  })

  test('--with-example-tables makes the two tables and attaches one', async () => {
    const fresh = await freshEnvironment({ empty: true })
    const result = await runCli(['migrate', '--with-example-tables'], { cwd, env: fresh.env })
    expect(result.code).toBe(0)
    const { rows } = await fresh.admin.query('select relation::text, json_column from lighter.sources')
    expect(rows).toEqual([{ relation: 'conversation_messages', json_column: 'metadata' }])
    const { conversationId: inFresh } = await newConversation(fresh).catch(async () => {
      const made = await fresh.admin.query(
        'insert into conversations (tenant_id) values (gen_random_uuid()) returning id as "conversationId"',
      )
      return made.rows[0]
    })
    await insertMessage(fresh, inFresh, '{"tool_interactions": [1]}', fresh.admin)
    expect((await fresh.admin.query('select from lighter.jobs')).rowCount).toBe(1)
  })

  test('that fails changes nothing and says where', async () => {
    const fresh = await freshEnvironment({ empty: true })
    await fresh.admin.query('create table artifact_refs (id uuid primary key)')
    const result = await runCli(['migrate'], { cwd, env: fresh.env })
    expectError(result, /migrations\/0002.*artifact_refs.*lacks/, /add/)
    const { rows } = await fresh.admin.query(`select to_regnamespace('lighter') as schema`)
    expect(rows).toEqual([{ schema: null }])
  })
})

describe('attach and detach', () => {
  test('start and stop watching a table', async () => {
    const fresh = await freshEnvironment()
    await fresh.admin.query('create table notes (id bigint primary key, tenant uuid, body jsonb)')
    const run = (...args: string[]) => runCli(args, { cwd, env: fresh.env })
    const attach = ['attach', 'public.notes', '--column', 'body', '--tenant-column', 'tenant']
    const settings = ['--threshold', '2000', '--field', '', '--envelope-keys', 'a,b', '--kind', 'note']
    const attached = await run(...attach, ...settings, '--no-skip-triggers', '--json')
    expect(attached).toMatchObject({ code: 0, stderr: '' })
    const { sourceId, ...rest } = JSON.parse(attached.stdout)
    expect(rest).toMatchObject({
      table: 'public.notes',
      column: 'body',
      decided: { tenant_column: 'tenant', key_types: 'bigint', envelope_keys: '["a", "b"]', guard: 'off' },
      changed: {},
      warnings: [],
      obstacles: [],
    })
    const { rows } = await fresh.admin.query('select * from lighter.sources where id = $1', [sourceId])
    expect(rows).toMatchObject([
      {
        json_column: 'body',
        tenant_column: 'tenant',
        key_types: ['bigint'],
        phase1_field: null,
        phase2_kind: 'note',
        envelope_keys: ['a', 'b'],
        threshold_bytes: 2000,
        skip_triggers: false,
      },
    ])
    const again = await run(...attach, ...settings, '--no-skip-triggers')
    expect(again).toMatchObject({ code: 0, stderr: '' })
    const changed = await run(...attach, '--threshold', '3000', '--json')
    expect(JSON.parse(changed.stdout).changed).toEqual({ threshold_bytes: '3000 instead of 2000' })

    expect(await run('detach', 'notes', '--column', 'body')).toEqual({
      code: 0,
      stdout: 'detached notes.body\n',
      stderr: '',
    })
    expect(
      (await fresh.admin.query(`select from pg_trigger where tgrelid = 'notes'::regclass`)).rowCount,
    ).toBe(0)
    const twice = await run('detach', 'notes', '--column', 'body', '--json')
    expect(twice.code).toBe(0)
    expect(JSON.parse(twice.stdout)).toEqual({ table: 'notes', column: 'body', detached: false })
  })

  test('refuse what can not be watched, and say what to do', async () => {
    const fresh = await freshEnvironment()
    await fresh.admin.query(`
      create table no_key (tenant_id uuid, metadata jsonb);
      create table no_tenant (id uuid primary key, metadata jsonb);
      create table plain_xml (id uuid primary key, tenant_id uuid, metadata xml)`)
    const run = (...args: string[]) => runCli(args, { cwd, env: fresh.env })
    expectError(await run('attach', 'no_such_table'), /"no_such_table" does not exist/)
    expectError(await run('attach', 'no_key'), /no key: neither a primary key/, /add column lighter_key/)
    expectError(await run('attach', 'no_tenant'), /tenant/, /tenant_column/)
    expectError(await run('attach', 'plain_xml'), /not jsonb, json, text or bytea/, /alter table/)
    expectError(await run('detach', 'no_such_table'), /"no_such_table" does not exist/)
    const threshold = await run('attach', 'no_key', '--threshold', 'big')
    expect(threshold.code).toBe(1)
    expect(threshold.stderr).toContain('not a whole number')
  })

  test('as a login that may not, name the one that may', async () => {
    const fresh = await freshEnvironment()
    const env = { ...fresh.env, ADMIN_DATABASE_URL: fresh.urls.daemon }
    expectError(
      await runCli(['attach', 'conversation_messages'], { cwd, env }),
      /permission denied/,
      /ADMIN_DATABASE_URL/,
    )
  })
})

describe('hydrate', () => {
  const metadata = `{
    "model": "m", "exact": 12345678901234567890.5, "tiny": 0.10000000000000000000000000000000000000000001,
    "huge": 1e400, "text": "ä😀\\u2028\\"\\\\", "zero": -0.0, "trailing": 1.500,
    "tool_interactions": [{"n": 12345678901234567890.5, "huge": -1e400, "empty": {}, "null": null}]
  }`

  test('prints the exact JSON of an offloaded row, whatever its numbers, and nothing else', async () => {
    const fresh = await freshEnvironment()
    const { conversationId: inFresh } = await newConversation(fresh)
    const small = await insertMessage(fresh, inFresh, metadata)
    const big = await insertMessage(fresh, inFresh, metadata.replace('"m"', `"${'m'.repeat(20_000)}"`))
    const untouched = await insertMessage(fresh, inFresh, '{"a": 1e3}')
    const none = await insertMessage(fresh, inFresh, null)
    const daemon = await startDaemon(fresh)
    await drained(fresh)
    await daemon.stop()
    expect(await rawMetadata(fresh, small)).toContain('tool_interactions_ref')
    expect(await rawMetadata(fresh, big)).toContain('artifact_metadata_ref')

    const print = (...args: string[]) => runCli(['hydrate', ...args], { cwd, env: fresh.env })
    const expected = await asJsonbText(fresh, metadata)
    expect(expected).toContain(`"huge": 1${'0'.repeat(400)}`)
    expect(await print(small)).toEqual({ code: 0, stdout: `${expected}\n`, stderr: '' })
    expect((await print(big)).stdout).toBe(`${expected?.replace('"m"', `"${'m'.repeat(20_000)}"`)}\n`)
    expect((await print(untouched)).stdout).toBe('{"a": 1000}\n')
    expect((await print(none)).stdout).toBe('null\n')
    for (const args of [[small.toUpperCase()], [`{${small}}`], [small, '--table', 'conversation_messages']])
      expect((await print(...args)).stdout).toBe(`${expected}\n`)
    expect((await print(small, '--table', 'public.conversation_messages')).code).toBe(0)
  })

  test('of what is not there is an error of one line, with advice', async () => {
    expectError(await lighter(['hydrate', nowhere]), `has no row ${nowhere}`, /Check the key/)
    expectError(await lighter(['hydrate', 'not-an-id']), '"not-an-id" is not the key of a row', /id \(uuid\)/)
    expectError(
      await lighter(['hydrate', nowhere, '--table', 'conversations']),
      'conversations is not attached',
      'Attached: public.conversation_messages (metadata)',
    )
  })

  test('asks for the table, or the column, where several are attached', async () => {
    const fresh = await freshEnvironment()
    await fresh.admin.query(`
      create table notes (id integer primary key, tenant_id uuid, a jsonb, b jsonb);
      grant insert, select on notes to example_app;
      select lighter.attach('notes', 'a');
      select lighter.attach('notes', 'b');
      insert into notes values (7, gen_random_uuid(), '{"in": "a"}', '{"in": "b"}')`)
    const print = (...args: string[]) => runCli(['hydrate', ...args], { cwd, env: fresh.env })
    expectError(await print('7'), 'several columns are attached', /--table or --column.*notes \(a\)/)
    expectError(await print('7', '--table', 'notes'), 'several columns are attached', /notes \(b\)/)
    expect((await print('7', '--table', 'notes', '--column', 'b')).stdout).toBe('{"in": "b"}\n')
    expect((await print('007', '--column', 'a')).stdout).toBe('{"in": "a"}\n')
    expectError(
      await print('99999999999', '--column', 'a'),
      '"99999999999" is not the key of a row',
      /id \(whole number\)/,
    )
    expectError(await print('7', '--column', 'c'), 'c is not attached', /notes \(a\)/)
    await fresh.admin.query(`select lighter.detach('notes', 'a'), lighter.detach('notes', 'b'),
      lighter.detach('conversation_messages')`)
    expectError(
      await print('7'),
      'no table is attached',
      'lighter attach <table> (again, if it was detached)',
    )
  })

  test('into a pipe that is closed early ends quietly', async () => {
    const id = await insertMessage(environment, conversationId, `{"a": "${'x'.repeat(7_000)}"}`)
    await environment.admin.query(
      `alter table conversation_messages disable trigger user;
       update conversation_messages set metadata = jsonb_build_object('a', repeat('x', 2000000)) where id = '${id}';
       alter table conversation_messages enable trigger user`,
    )
    const { stdout, stderr } = await promisify(execFile)(
      '/bin/sh',
      ['-c', '"$0" "$1" hydrate "$2" | head -c 5', process.execPath, main, id],
      { cwd, env: { PATH: process.env.PATH, ...environment.env } },
    )
    expect({ stdout, stderr }).toEqual({ stdout: '{"a":', stderr: '' })
  })
})

describe('retry', () => {
  test('lists dead letters and brings them back: all, those of a table, or one', async () => {
    const fresh = await freshEnvironment()
    await fresh.admin.query(`
      create table notes (id bigint primary key, tenant_id uuid, metadata jsonb);
      select lighter.attach('notes');
      insert into notes select i, null, '{"tool_interactions": [1]}' from generate_series(1, 3) i`)
    const giveUp = async () => {
      const daemon = await startDaemon(fresh, { env: { OFFLOAD_MAX_ATTEMPTS: '1' } })
      await drained(fresh)
      await daemon.stop()
    }
    await giveUp()
    const run = (...args: string[]) => runCli(['retry', ...args], { cwd, env: fresh.env })
    const waiting = async () => {
      const { rows } = await fresh.admin.query('select row_id from lighter.jobs order by row_id')
      return rows.map(row => row.row_id)
    }

    const listed = await run('--dry-run')
    expect(listed.stdout.trimEnd().split('\n').sort()).toEqual(
      ['1', '2', '3'].map(id => expect.stringMatching(new RegExp(`^notes ${id} {2}1 attempts {2}no tenant`))),
    )
    const { failed } = JSON.parse((await run('--dry-run', '--json', '--row', '2')).stdout)
    expect(failed).toEqual([
      { source: 'notes', row_id: '2', attempts: 1, last_error: expect.stringContaining('no tenant') },
    ])
    expect(await waiting()).toEqual([])

    expect(JSON.parse((await run('--json', '--table', 'conversation_messages')).stdout)).toEqual({
      retried: 0,
    })
    expect(await run('--row', '2', '--table', 'notes')).toMatchObject({
      code: 0,
      stdout: '1 job(s) queued again\n',
    })
    expect(await waiting()).toEqual(['2'])
    expect(JSON.parse((await run('--json')).stdout)).toEqual({ retried: 2 })
    expect(await waiting()).toEqual(['1', '2', '3'])
    expect(await run('--dry-run')).toMatchObject({ code: 0, stdout: 'no dead letters\n' })

    await fresh.admin.query('update notes set tenant_id = gen_random_uuid()')
    await giveUp()
    const { rows } = await fresh.admin.query(`select metadata ? 'tool_interactions_ref' as moved from notes`)
    expect(rows).toEqual([{ moved: true }, { moved: true }, { moved: true }])
  })

  test('of a table that is not attached, or not there, is an error', async () => {
    expectError(
      await lighter(['retry', '--table', 'no_such_table']),
      'no_such_table is not attached',
      /Attached: /,
    )
    expectError(
      await lighter(['retry', '--table', 'conversations']),
      'conversations is not attached',
      /Attached: /,
    )
    expectError(
      await lighter(['retry', '--dry-run', '--table', 'conversations']),
      'conversations is not attached',
      /Attached: /,
    )
  })
})

describe('adopt', () => {
  test('does nothing without --yes, and says what it would do', async () => {
    const fresh = await freshEnvironment()
    expectError(
      await runCli(['adopt'], { cwd, env: fresh.env }),
      fresh.env.R2_PREFIX ?? '',
      'lighter adopt --yes',
    )
    const keys: string[] = []
    for await (const { key } of fresh.store.list(fresh.store.prefix)) keys.push(key)
    expect(keys).toEqual([])
  })

  test('--yes takes the prefix over from whoever had it', async () => {
    const fresh = await freshEnvironment()
    const first = await runCli(['adopt', '--yes', '--json'], { cwd, env: fresh.env })
    expect(JSON.parse(first.stdout)).toEqual({ adopted: true, previous: null, epoch: 1 })
    const former = await fresh.admin.query<{ id: string }>('select id from lighter.installation')
    await fresh.admin.query('update lighter.installation set id = gen_random_uuid(), owner_epoch = 0')
    expect((await runCli(['start'], { cwd, env: fresh.env })).code).toBe(1)
    const second = await runCli(['adopt', '--yes'], { cwd, env: fresh.env })
    expect(second.stdout).toContain(`(before: ${former.rows[0]?.id}), epoch 2`)
    await (await startDaemon(fresh)).stop()
  })
})

describe('start', () => {
  /** As an orchestrator starts it. */
  async function start(
    on: TestEnvironment,
    env: Record<string, string> = {},
    args: string[] = [],
  ): Promise<RunningCli> {
    const running = startCli(['start', ...args], { cwd, env: { ...on.env, LOG_LEVEL: 'trace', ...env } })
    await running.says('"daemon started"')
    return running
  }
  const isOffloaded = (on: TestEnvironment, id: string) =>
    until(async () => (await rawMetadata(on, id))?.includes('_ref"') === true, `row ${id} is offloaded`)

  test('works until SIGTERM, and logs JSON without payloads or credentials', async () => {
    const fresh = await freshEnvironment()
    const { conversationId: inFresh } = await newConversation(fresh)
    const running = await start(fresh)
    const marker = 'PAYLOAD-MARKER-5c1d'
    const id = await insertMessage(fresh, inFresh, `{"tool_interactions": [{"${marker}": "${marker}"}]}`)
    const big = await insertMessage(fresh, inFresh, `{"text": "${marker.repeat(1000)}"}`)
    // One that fails, so that an error is logged too.
    await fresh.admin.query(`
      create table notes (id bigint primary key, tenant_id uuid, metadata jsonb);
      select lighter.attach('notes');
      insert into notes values (1, null, '{"tool_interactions": ["${marker}"]}')`)
    await isOffloaded(fresh, id)
    await isOffloaded(fresh, big)
    await running.says('could not be offloaded')

    running.signal('SIGTERM')
    const { code, stdout, stderr } = await running.ended
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const lines = stdout
      .trimEnd()
      .split('\n')
      .map(line => JSON.parse(line))
    for (const line of lines)
      expect(line).toMatchObject({
        level: expect.any(Number),
        service: 'pg-lighter',
        msg: expect.any(String),
      })
    expect(lines.at(-1)).toMatchObject({ msg: 'stopped' })
    expect(lines).toContainEqual(
      expect.objectContaining({ msg: 'draining work in flight', signal: 'SIGTERM' }),
    )
    expect(stdout).not.toContain(marker)
    const { R2_ACCESS_KEY_ID = '?', R2_SECRET_ACCESS_KEY = '?' } = fresh.env
    const passwords = Object.values(fresh.urls).map(url => new URL(url).password)
    for (const secret of [R2_ACCESS_KEY_ID, R2_SECRET_ACCESS_KEY, ...passwords]) {
      expect(secret.length).toBeGreaterThan(5)
      expect(stdout).not.toContain(secret)
    }
  })

  test('finishes what it has begun before it exits with 0', async () => {
    const fresh = await freshEnvironment()
    const { conversationId: inFresh } = await newConversation(fresh)
    const running = await start(fresh, { OFFLOAD_BATCH_ROWS: '5' })
    const ids = await Promise.all(
      Array.from({ length: 50 }, () => insertMessage(fresh, inFresh, '{"tool_interactions": [1]}')),
    )
    await running.says('"batch"')
    running.signal('SIGTERM')
    expect((await running.ended).code).toBe(0)
    // Nothing is left claimed: what was not done is free for another daemon at once.
    const { rows } = await fresh.admin.query<{ row_id: string }>(
      `select row_id from lighter.jobs where place = 'lease' or attempts > 0 or available_at > now()`,
    )
    expect(rows).toEqual([])
    expect(ids).toHaveLength(50)
    const orphans = await fresh.admin.query(`select from lighter.objects where state <> 'stored'`)
    expect(orphans.rowCount).toBe(0)
    const connections = await fresh.admin.query(
      `select from pg_stat_activity where datname = current_database() and application_name like 'pg-lighter%'`,
    )
    expect(connections.rowCount).toBe(0)
  })

  test('takes a Ctrl-C that arrives twice, as npm passes it on, for one', async () => {
    const running = await start(environment)
    running.signal('SIGINT')
    await running.says('draining')
    running.signal('SIGINT')
    const { code, stdout } = await running.ended
    expect(code).toBe(0)
    expect(stdout).toContain('"stopped"')
    expect(stdout).not.toContain('second signal')
  })

  test('with an upload that hangs: the deadline, or a second signal, ends it with 1', async () => {
    const fresh = await freshEnvironment()
    const { conversationId: inFresh } = await newConversation(fresh)
    const proxy = await startTcpProxy(fresh.env.R2_ENDPOINT ?? '')
    const R2_ENDPOINT = proxy.through(fresh.env.R2_ENDPOINT ?? '')
    const hang = async (env: Record<string, string>) => {
      const running = await start(fresh, { R2_ENDPOINT, OFFLOAD_LEASE_MS: '1000', ...env })
      proxy.blackHole()
      const id = await insertMessage(fresh, inFresh, '{"tool_interactions": [1]}')
      await until(async () => {
        const { rows } = await fresh.admin.query(`select from lighter.objects where state = 'uploading'`)
        return rows.length > 0
      }, 'an upload is under way')
      running.signal('SIGTERM')
      await running.says('draining')
      return { running, id }
    }

    const late = await hang({ SHUTDOWN_TIMEOUT_MS: '500' })
    const { code, stdout } = await late.running.ended
    expect(code).toBe(1)
    expect(stdout).toContain('stopped with work in flight')

    await proxy.recover()
    await fresh.admin.query(`delete from lighter.objects where state = 'uploading'`)
    const impatient = await hang({ SHUTDOWN_TIMEOUT_MS: '60000' })
    const began = performance.now()
    await until(() => {
      impatient.running.signal('SIGTERM')
      return impatient.running.hasEnded()
    }, 'it has ended')
    expect(performance.now() - began).toBeLessThan(5000)
    const second = await impatient.running.ended
    expect(second.code).toBe(1)
    expect(second.stdout).toContain('second signal: leaving at once')

    // What they left undone is done by the next.
    await proxy.recover()
    const next = await start(fresh)
    await isOffloaded(fresh, late.id)
    await isOffloaded(fresh, impatient.id)
    next.signal('SIGTERM')
    expect((await next.ended).code).toBe(0)
  })

  test('on a database without the schema logs one line, fatal, that says to migrate', async () => {
    const empty = await freshEnvironment({ empty: true })
    const finished = await runCli(['start'], { cwd, env: { ...empty.env, LOG_LEVEL: 'trace' } })
    expect(finished).toMatchObject({ code: 1, stderr: '' })
    const lines = finished.stdout.trimEnd().split('\n')
    expect(lines).toHaveLength(1)
    expect(JSON.parse(lines[0] ?? '')).toMatchObject({
      level: 60,
      code: 'schema_missing',
      hint: expect.stringContaining('lighter migrate'),
    })
  })

  test('--migrate brings the schema up to date first, as the owner', async () => {
    const empty = await freshEnvironment({ empty: true })
    const running = await start(empty, {}, ['--migrate'])
    expect(running.logged()[0]).toMatchObject({
      msg: 'schema is up to date',
      applied: expect.arrayContaining(['migrations/0001_roles_and_settings.sql']),
    })
    running.signal('SIGTERM')
    expect((await running.ended).code).toBe(0)
  })

  test("in another installation's prefix refuses, and says how to adopt", async () => {
    const owner = await freshEnvironment()
    await (await startDaemon(owner)).stop()
    const other = await freshEnvironment()
    const env = { ...other.env, R2_PREFIX: owner.env.R2_PREFIX ?? '', LOG_LEVEL: 'info' }
    const finished = await runCli(['start'], { cwd, env })
    expect(finished.code).toBe(1)
    expect(JSON.parse(finished.stdout)).toMatchObject({
      code: 'foreign_prefix',
      hint: expect.stringContaining('lighter adopt'),
    })
  })
})

describe('dev', () => {
  beforeEach(needsEmbedded)

  async function newStateDir(): Promise<string> {
    const dir = await mkdtemp(path.join(tmpdir(), 'pg-lighter-dev-'))
    onTestFinished(() => rm(dir, { recursive: true, force: true }))
    return dir
  }

  /** Up, with the variables that it prints for pasting. */
  async function dev(dir: string, env: Record<string, string> = {}) {
    const running = startCli(['dev', '--dir', dir], { cwd, env })
    await running.says('"daemon started"')
    const printed = running.stdout().matchAll(/^ {2}export (\w+)='(.*)'$/gm)
    const variables = Object.fromEntries([...printed].map(match => [match[1] ?? '', match[2] ?? '']))
    return { running, variables, servers: await descendants(running.pid) }
  }

  async function query(url: string | undefined, sql: string, values: unknown[] = []) {
    const client = new pg.Client({ connectionString: url ?? '' })
    await client.connect()
    try {
      return (await client.query(sql, values)).rows
    } finally {
      await client.end()
    }
  }

  const metadata = '{"n": 12345678901234567890.5, "tool_interactions": [{"huge": 1e400}]}'

  async function insertOffloaded(url: string | undefined): Promise<{ id: string; expected: string }> {
    const [row] = await query(
      url,
      `with c as (insert into conversations (tenant_id) values (gen_random_uuid()) returning id)
       insert into conversation_messages (conversation_id, role, content, metadata)
       select id, 'assistant', '', $1 from c returning id, metadata::text as expected`,
      [metadata],
    )
    await until(async () => {
      const [found] = await query(
        url,
        'select metadata::text as text from conversation_messages where id = $1',
        [row.id],
      )
      return found.text.includes('tool_interactions_ref')
    }, 'the row is offloaded')
    return row
  }

  async function interrupt(running: RunningCli, servers: number[]): Promise<void> {
    const began = performance.now()
    running.signal('SIGINT')
    const { code, stderr } = await running.ended
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(performance.now() - began).toBeLessThan(15_000)
    expect(await alive(servers)).toEqual([])
  }

  test('keeps its state: what one run has offloaded hydrates in the next, at the same addresses', async () => {
    const dir = await newStateDir()
    // What the surroundings say of another database must not lead there.
    const first = await dev(dir, {
      DATABASE_URL_FILE: '/nowhere',
      LISTEN_DATABASE_URL: 'postgresql://x@127.0.0.1:1/x',
    })
    expect(first.servers.length).toBeGreaterThan(2)
    expect(first.running.logged()).toContainEqual(
      expect.objectContaining({ msg: 'daemon started', listening: true }),
    )
    const { id, expected } = await insertOffloaded(first.variables.ADMIN_DATABASE_URL)
    const pasted = first.variables
    await interrupt(first.running, first.servers)
    expect(existsSync(path.join(dir, 'postgres', 'postmaster.pid'))).toBe(false)

    const second = await dev(dir)
    expect(second.variables).toEqual(pasted)
    expect(await runCli(['hydrate', id], { cwd, env: pasted })).toEqual({
      code: 0,
      stdout: `${expected}\n`,
      stderr: '',
    })
    const healthy = await runCli(['doctor', '--write'], { cwd, env: pasted })
    expect(healthy.code).toBe(0)
    await interrupt(second.running, second.servers)

    // Somebody takes the ports meanwhile: others are found, and kept from then on.
    const taken = [pasted.DATABASE_URL, pasted.R2_ENDPOINT].map(url => Number(new URL(url ?? '').port))
    for (const port of taken) {
      const server = createServer().listen(port, '127.0.0.1')
      await once(server, 'listening')
      onTestFinished(() => void server.close())
    }
    const third = await dev(dir)
    expect(third.variables.DATABASE_URL).not.toBe(pasted.DATABASE_URL)
    expect(third.variables.R2_ENDPOINT).not.toBe(pasted.R2_ENDPOINT)
    expect((await runCli(['hydrate', id], { cwd, env: third.variables })).stdout).toBe(`${expected}\n`)
    await interrupt(third.running, third.servers)
  })

  test('killed, takes its servers with it, and starts again', async () => {
    const dir = await newStateDir()
    const first = await dev(dir)
    const { id, expected } = await insertOffloaded(first.variables.ADMIN_DATABASE_URL)
    first.running.signal('SIGKILL')
    await first.running.ended
    await until(async () => (await alive(first.servers)).length === 0, 'its servers are gone', 15_000)

    const second = await dev(dir)
    expect((await runCli(['hydrate', id], { cwd, env: second.variables })).stdout).toBe(`${expected}\n`)
    await interrupt(second.running, second.servers)
  })

  test('interrupted while it starts leaves no server, and starts well the next time', async () => {
    const dir = await newStateDir()
    const early = startCli(['dev', '--dir', dir], { cwd })
    let servers: number[] = []
    await until(async () => {
      servers = await descendants(early.pid)
      return servers.length > 1
    }, 'its servers are on their way')
    early.signal('SIGINT')
    await early.ended
    await until(async () => (await alive(servers)).length === 0, 'nothing of it runs', 15_000)

    const second = await dev(dir)
    await insertOffloaded(second.variables.ADMIN_DATABASE_URL)
    await interrupt(second.running, second.servers)
  })

  test('refuses a directory that is in use, and leaves the other alone', async () => {
    const dir = await newStateDir()
    const first = await dev(dir)
    const second = await runCli(['dev', '--dir', dir], { cwd })
    expectError(second, `${path.join(dir, 'postgres')} is in use`, /another lighter dev\?/)
    await insertOffloaded(first.variables.ADMIN_DATABASE_URL)
    await interrupt(first.running, first.servers)
  })
})
