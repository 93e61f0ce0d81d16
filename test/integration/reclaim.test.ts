// `lighter reclaim`: what a rewrite gives back, and that nothing is rewritten unless the operator says so. With pg_repack on
// Debian's Postgres, where that is installed.
import { access } from 'node:fs/promises'
import path from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { generateMessages } from '../../src/demo/messages.ts'
import {
  asJsonbText,
  drained,
  hydratedMany,
  startDaemon,
  type TestEnvironment,
  useFreshEnvironment,
} from '../support/environment.ts'
import { offloadedRows, type WrittenMessage, writeMessages } from '../support/messages.ts'
import { environmentOnOwnServer } from '../support/own-server.ts'
import { runCli } from '../support/process.ts'
import { column, connect, value } from '../support/sql.ts'
import { findSystemPostgres, startSystemPostgres } from '../support/system-postgres.ts'

const table = 'public.conversation_messages'
const programs = await findSystemPostgres()
const repackProgram = programs === null ? null : path.join(programs, 'pg_repack')
const hasRepack =
  repackProgram !== null &&
  (await access(repackProgram, 1).then(
    () => true,
    () => false,
  ))
if (!hasRepack)
  process.stderr.write(
    'reclaim.test.ts runs without pg_repack: apt-get install -y --no-install-recommends postgresql-15-repack\n',
  )

const reclaim = (environment: TestEnvironment, args: string[]) =>
  runCli(['reclaim', table, ...args], { env: environment.env })

const totalBytes = (environment: TestEnvironment) =>
  value<number>(environment.admin, 'select pg_total_relation_size($1::regclass)::float8', [table])

/** Everything of the table that a rewrite must leave as it is. */
const standing = (environment: TestEnvironment) =>
  column<string>(
    environment.admin,
    `select concat_ws(' ', t.tgname, t.tgenabled, pg_get_triggerdef(t.oid)) from pg_trigger t where t.tgrelid = $1::regclass and not t.tgisinternal
     union all select polname::text from pg_policy where polrelid = $1::regclass
     union all select relacl::text from pg_class where oid = $1::regclass
     union all select s::text from lighter.sources s order by 1`,
    [table],
  )

/** Messages that were there before the table was attached, backfilled: the space they took is free inside its files. */
async function backfilled(
  environment: TestEnvironment,
): Promise<{ messages: WrittenMessage[]; texts: (string | null)[] }> {
  await environment.admin.query(`alter table ${table} disable trigger user`)
  const messages = await writeMessages(environment, { messages: 2500, tenants: 3, seed: 3 })
  await environment.admin.query(`alter table ${table} enable trigger user`)
  const ids = messages.map(message => message.id)
  const byId = new Map(
    (
      await environment.admin.query<{ id: string; text: string | null }>(
        `select id, metadata::text as text from ${table}`,
      )
    ).rows.map(row => [row.id, row.text]),
  )
  const daemon = await startDaemon(environment)
  onTestFinished(async () => void (await daemon.stop()))
  const { code, stderr } = await runCli(['backfill'], { env: environment.env })
  expect([code, stderr]).toEqual([0, expect.any(String)])
  await drained(environment)
  await environment.admin.query(`vacuum analyze ${table}`)
  return { messages, texts: ids.map(id => byId.get(id) ?? null) }
}

async function expectAllThere(
  environment: TestEnvironment,
  messages: WrittenMessage[],
  texts: (string | null)[],
): Promise<void> {
  const found = await hydratedMany(
    environment,
    messages.map(message => message.id),
  )
  expect(found).toEqual(texts)
}

describe('on a Postgres without pg_repack', () => {
  const environment = useFreshEnvironment()

  test('it says how much comes back, as VACUUM FULL then shows, and changes nothing', async () => {
    const { messages, texts } = await backfilled(environment)
    const before = await totalBytes(environment)
    const { stdout, stderr, code } = await reclaim(environment, [])
    expect([code, stderr]).toEqual([0, ''])
    expect(stdout).toMatch(/^public\.conversation_messages: a rewrite gives back about \d+\.\d [KM]B of /)
    expect(stdout).toContain(
      'By a sample: the extension pgstattuple is not installed; by the lengths of 2500 rows on',
    )
    expect(stdout).toContain('Nothing was changed. The ways to rewrite it:')
    for (const way of ['pg_repack', 'pg_squeeze', 'vacuum full', 'cluster'])
      expect(stdout).toContain(`\n${way}: `)
    expect(stdout).toMatch(
      /vacuum full: .*\n {2}lock: ACCESS EXCLUSIVE all the time: about 1 s at 50\.0 MB a second .*\n {2}disk: about \S+ [KM]B more/,
    )
    expect(await totalBytes(environment)).toBe(before)

    const told = JSON.parse((await reclaim(environment, ['--json'])).stdout)
    expect(told).toMatchObject({
      method: 'sample',
      command: null,
      rewritten: null,
      attached: [{ column: 'metadata', queued: 0 }],
    })
    const hanging = await standing(environment)
    const full = await reclaim(environment, ['--full', '--yes'])
    expect(full.stdout).toMatch(/triggers, policies and rights are as before/)
    const after = await totalBytes(environment)
    expect(after).toBeLessThan(before)
    const estimated = told.bytes_rewritten.table + told.bytes_rewritten.indexes
    expect(Math.abs(estimated / after - 1), `${estimated} estimated, ${after} really`).toBeLessThan(0.1)
    expect(await standing(environment)).toEqual(hanging)
    await expectAllThere(environment, messages, texts)
  })

  test('VACUUM FULL needs a yes, and waits for its lock no longer than it may', async () => {
    const refused = await reclaim(environment, ['--full'])
    expect(refused.stderr).toContain(
      'error: --full: VACUUM FULL locks public.conversation_messages against all reading and writing',
    )
    expect(refused.stderr).toContain('hint: Add --yes if the application can wait as long')
    expect(refused.code).toBe(1)
    const file = await value(environment.admin, 'select pg_relation_filenode($1::regclass)', [table])
    const dry = await reclaim(environment, ['--full', '--dry-run'])
    expect(dry.stdout).toContain('would run:\n  vacuum (full, analyze) public.conversation_messages')
    const reader = await connect(environment.urls.application)
    await reader.query(`begin; select from ${table}`)
    const waiting = await reclaim(environment, ['--full', '--yes', '--lock-timeout', '0.2'])
    await reader.end()
    expect(waiting.stderr).toContain(
      'VACUUM FULL did not get its lock on public.conversation_messages within 0.2 s',
    )
    expect(await value(environment.admin, 'select pg_relation_filenode($1::regclass)', [table])).toBe(file)
  })

  test('pg_repack is asked for where it is not', async () => {
    const { stderr } = await reclaim(environment, ['--repack'])
    expect(stderr).toContain('error: --repack: the extension pg_repack is not in this database')
    expect(stderr).toContain('hint: create extension pg_repack;')
    expect((await reclaim(environment, ['--repack', '--full'])).stderr).toContain(
      'error: --repack and --full are two ways: give one',
    )
  })

  test('a table that is not attached, a partitioned one, and what is none', async () => {
    await environment.admin.query(`
      create table public.days (day date, note text) partition by range (day);
      create table public.days_1 partition of public.days for values from ('2026-01-01') to ('2026-02-01');
      insert into public.days select '2026-01-05', repeat('x', 500) from generate_series(1, 2000);
      delete from public.days where random() < 0.8;
      create view public.seen as select day from public.days`)
    await environment.admin.query('vacuum public.days')
    const told = JSON.parse((await runCli(['reclaim', 'days', '--json'], { env: environment.env })).stdout)
    expect(told).toMatchObject({ table: 'public.days', partitions: 1, attached: [] })
    expect(told.gives_back_bytes).toBeGreaterThan(0.6 * told.bytes_now.table)
    expect(told.ways[0]).toMatchObject({
      name: 'partitions',
      what: expect.stringContaining('one of its 1 partitions'),
    })
    const { stderr } = await runCli(['reclaim', 'seen'], { env: environment.env })
    expect(stderr).toContain('error: seen is a view: nothing can be taken off it')
  })
})

describe.skipIf(!hasRepack)('with pg_repack', () => {
  test('the table is rewritten while a daemon and the application write to it', {
    timeout: 120_000,
  }, async () => {
    const server = await startSystemPostgres(programs ?? '')
    const { environment } = await environmentOnOwnServer(server)
    onTestFinished(() => environment.close())
    await environment.admin.query(
      'create schema extensions; create extension pg_repack; create extension pgstattuple schema extensions',
    )
    const { messages, texts } = await backfilled(environment)
    const before = await totalBytes(environment)
    const hanging = await standing(environment)
    const told = JSON.parse((await reclaim(environment, ['--json'])).stdout)
    expect(told.method).toBe('pgstattuple_approx')
    const dry = await reclaim(environment, ['--repack', '--dry-run'])
    expect(dry.stdout).toMatch(
      /would run:\n {2}\S+\/pg_repack --table=public\.conversation_messages --no-order --no-kill-backend --wait-timeout=60/,
    )
    expect(await totalBytes(environment)).toBe(before)

    // Both write meanwhile: heavy rows, which the daemon takes off as they come.
    const stop = new AbortController()
    const added: WrittenMessage[] = []
    const written: string[] = []
    const writing = (async () => {
      for (let seed = 100; !stop.signal.aborted; seed++) {
        const options = { messages: 40, tenants: 2, seed }
        added.push(...(await writeMessages(environment, options)))
        written.push(...[...generateMessages(options)].map(message => message.metadata))
      }
    })()
    const { stdout, stderr, code } = await reclaim(environment, ['--repack'])
    stop.abort()
    await writing
    expect([code, stderr]).toEqual([
      0,
      expect.stringContaining('repacking table "public.conversation_messages"'),
    ])
    expect(stdout).toMatch(
      /^public\.conversation_messages: .* before, .* after, in \d+ s; triggers, policies and rights are as before/,
    )
    expect(await standing(environment)).toEqual(hanging)
    expect(added.length).toBeGreaterThan(40)
    await expectAllThere(environment, messages, texts)

    const { rows: asStored } = await environment.admin.query<{ text: string }>(
      'select d::text as text from unnest($1::jsonb[]) with ordinality u(d, n) order by n',
      [written],
    )
    await drained(environment)
    await expectAllThere(
      environment,
      added,
      asStored.map(row => row.text),
    )

    // The trigger still sees what is written, and the daemon takes it off; edits of rewritten rows too.
    await drained(environment)
    const wasOffloaded = await offloadedRows(environment)
    const [first] = messages
    const heavy = await asJsonbText(
      environment,
      JSON.stringify({ tool_interactions: [{ note: 'after the rewrite' }] }),
    )
    await environment.app.query(`update ${table} set metadata = $2 where id = $1`, [first?.id, heavy])
    await drained(environment)
    expect(await hydratedMany(environment, [first?.id ?? ''])).toEqual([heavy])
    expect(await offloadedRows(environment)).toBeGreaterThanOrEqual(wasOffloaded)
    // As much came back as was said; what was written meanwhile is in it.
    await environment.admin.query(`vacuum full ${table}`)
    const bytesOfOthers = (added.length / messages.length) * (before - told.gives_back_bytes)
    const after = await totalBytes(environment)
    expect(after - bytesOfOthers).toBeLessThan(1.15 * (before - told.gives_back_bytes))
  })

  test('where another session keeps the table locked it gives up, ends nobody, and says so', {
    timeout: 120_000,
  }, async () => {
    const server = await startSystemPostgres(programs ?? '')
    const { environment } = await environmentOnOwnServer(server)
    onTestFinished(() => environment.close())
    const missing = await reclaim(environment, ['--repack'])
    expect(missing.stderr).toContain('the extension pg_repack is not in this database')
    await environment.admin.query('create extension pg_repack')
    const wrong = await reclaim(environment, ['--repack', '--program', '/usr/bin/pg_repackk'])
    expect(wrong.stderr).toContain('error: --program: there is no program /usr/bin/pg_repackk')
    const locker = await connect(environment.urls.admin)
    await locker.query(`begin; lock table ${table} in access exclusive mode`)
    const locked = await reclaim(environment, ['--repack'])
    expect(locked.stderr).toContain('another session has locked public.conversation_messages against readers')
    await locker.end()
    const holder = await connect(environment.urls.admin)
    await holder.query(`begin; select from ${table}`)
    const { stderr, code } = await reclaim(environment, ['--repack', '--lock-timeout', '2'])
    expect(stderr).toContain(
      'error: pg_repack did not rewrite public.conversation_messages: another session held a lock on it for too long',
    )
    expect(code).toBe(1)
    expect((await holder.query('select 1 as one')).rows).toEqual([{ one: 1 }])
    await holder.end()
    // Nothing of it is left, and the next one succeeds.
    expect(
      await column(environment.admin, `select tgname from pg_trigger where tgname like 'repack%'`),
    ).toEqual([])
    expect((await reclaim(environment, ['--repack'])).code).toBe(0)
  })
})
