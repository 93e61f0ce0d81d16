// The demo is the front door: it must run as a command, and must notice when something is wrong.
import { execFile } from 'node:child_process'
import { rm, writeFile } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { gzipSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { DemoReport } from '../../src/demo/run.ts'
import { type Verification, verifyRows } from '../../src/demo/verify.ts'
import { weighDatabase } from '../../src/demo/weigh.ts'
import { loadSources } from '../../src/source/sources.ts'
import { spoilHashes } from '../support/artifacts.ts'
import { needsEmbedded } from '../support/backends/backend.ts'
import {
  createEnvironment,
  drained,
  insertMessage,
  newConversation,
  startDaemon,
  type TestEnvironment,
} from '../support/environment.ts'
import { value } from '../support/sql.ts'
import { bucketKeys } from '../support/sweep.ts'

const cli = path.join(import.meta.dirname, '../../src/cli/main.ts')

async function demoText(args: string[], more: Record<string, string> = {}): Promise<string> {
  const { NODE_OPTIONS: _, ...env } = process.env
  const { stdout } = await promisify(execFile)(process.execPath, [cli, 'demo', ...args], {
    env: { ...env, NO_COLOR: '1', ...more },
  })
  return stdout
}

const demo = async (args: string[], more: Record<string, string> = {}): Promise<DemoReport> =>
  JSON.parse(await demoText(['--json', ...args], more))

/** Not a line that says how far it is. */
const isReport = (line: string) => !/^(starting|writing|draining|verifying|weighing) /.test(line)

test('made-up messages are offloaded, changed meanwhile, and verified to the last row', async context => {
  needsEmbedded(context)
  const report = await demo(['--messages', '600', '--rate', '0', '--large-mb', '6'])
  expect(report).toMatchObject({ messages: 600, mismatched: 0, mismatches: [] })
  expect(report.verified).toBe(report.messages - report.deleted)
  expect(report.rows).toBe(report.verified)
  expect(report.updated).toBeGreaterThan(0)
  expect(report.deleted).toBeGreaterThan(0)
  expect(report.offloaded).toBeGreaterThan(60)
  expect(report.artifacts).toBeGreaterThanOrEqual(report.offloaded)
  expect(report.puts).toBeGreaterThanOrEqual(report.objects)
  expect(report.payload_bytes).toBeGreaterThan(6 * 1024 * 1024)
  const { balance } = report
  expect(balance.disk_bytes_measured).toBe(
    balance.disk_table_bytes_measured + balance.disk_ours_bytes_measured,
  )
  expect(balance.rewritten_bytes_measured).toBe(
    balance.rewritten_table_bytes_measured + balance.rewritten_ours_bytes_measured,
  )
  expect(balance.rewrite_freed_bytes_measured).toBe(
    balance.disk_bytes_measured - balance.rewritten_bytes_measured,
  )
  // The tables of artifacts alone would be less.
  expect(balance.rewritten_ours_bytes_measured).toBeGreaterThan(80 * 8192)
  expect(balance.rewritten_table_bytes_measured).toBeLessThan(balance.inline_bytes_measured)
  // An offloaded table has free space, and not more than a rewrite gives back.
  expect(balance.reusable_bytes_source).toBe('measured')
  expect(balance.reusable_bytes ?? 0).toBeGreaterThan(0.3 * balance.rewrite_freed_bytes_measured)
  expect(balance.reusable_bytes ?? 0).toBeLessThan(1.1 * balance.rewrite_freed_bytes_measured)
  expect(balance.pays_bytes).toBe(balance.rewritten_bytes_measured < balance.inline_bytes_measured)
  // By the default prices: 0.125 and 0.015 USD a GB-month, 4.50 a million PUTs.
  const months = 3
  expect(balance.inline_usd_90_days).toBeCloseTo((balance.inline_bytes_measured / 1e9) * 0.125 * months, 9)
  expect(balance.usd_90_days).toBeCloseTo(
    ((balance.rewritten_bytes_measured * 0.125 + report.object_bytes * 0.015) / 1e9) * months +
      report.puts * 4.5e-6,
    9,
  )
  expect(balance.pays_usd).toBe(balance.usd_90_days < balance.inline_usd_90_days)
  expect(report.latency_p50_ms).toBeGreaterThan(0)
  expect(report.latency_p99_ms ?? 0).toBeGreaterThanOrEqual(report.latency_p50_ms ?? 0)
})

test('a file is replayed, gzipped or not, with numbers that no double holds', async context => {
  needsEmbedded(context)
  const tenant = '11111111-1111-4111-8111-111111111111'
  const conversation = '22222222-2222-4222-8222-222222222222'
  const lines = Array.from(
    { length: 50 },
    (_, seq) =>
      `{"tenant_id":"${tenant}","conversation_id":"${conversation}","seq":${seq},"role":"assistant","content":"x","metadata":{"tool_interactions":[12345678901234567890.5,1e400,${seq}]}}`,
  )
  const file = path.join(os.tmpdir(), `pg-lighter-demo-test-${process.pid}.jsonl`)
  await writeFile(file, lines.join('\n'))
  await writeFile(`${file}.gz`, gzipSync(lines.join('\n')))
  try {
    for (const from of [file, `${file}.gz`]) {
      const report = await demo(['--from', from, '--rate', '0'])
      expect(report).toMatchObject({ messages: 50, mismatched: 0, verified: 50 - report.deleted })
      expect(report.offloaded).toBe(report.verified)
      // 50 small payloads do not make up for our tables.
      expect(report.balance).toMatchObject({ pays_usd: false, pays_bytes: false })
    }
    const [first = ''] = (await demoText(['--from', file, '--rate', '0'])).split('\n').filter(isReport)
    expect(first).toMatch(
      /^Offloading does not pay here: it costs \$0\.\d+ more in 90 days; after a rewrite the database is [\d.]+ [KM]B larger than with all payloads inline\.$/,
    )
  } finally {
    await Promise.all([rm(file), rm(`${file}.gz`)])
  }
})

describe('on servers that are there already', () => {
  let environment: TestEnvironment
  beforeAll(async () => {
    environment = await createEnvironment({ empty: true })
  })
  afterAll(() => environment.close())

  const leftovers = async () => {
    const { rows } = await environment.admin.query<{ name: string }>(
      `select datname as name from pg_database where datname like 'lighter\\_demo\\_%'
        union all select rolname from pg_roles where rolname like 'lighter\\_demo\\_%'`,
    )
    return [...rows.map(row => row.name), ...(await bucketKeys(environment))]
  }

  test('it verifies every row, and takes its database, logins and objects away', async () => {
    const report = await demo(
      ['--external', '--messages', '300', '--rate', '0', '--large-mb', '6'],
      environment.env,
    )
    expect(report).toMatchObject({ messages: 300, mismatched: 0, latency_p50_ms: null })
    expect(report.verified).toBe(report.messages - report.deleted)
    expect(report.objects).toBeGreaterThan(0)
    expect(await leftovers()).toEqual([])
  })

  test('a bucket that is not there is said, and nothing is left either', async () => {
    const failed = demo(['--external', '--messages', '10'], {
      ...environment.env,
      R2_BUCKET: 'no-such-bucket',
    })
    await expect(failed).rejects.toThrow(/no-such-bucket/)
    expect(await leftovers()).toEqual([])
  })

  test('an administrator without the right to create databases is told', async () => {
    const failed = demo(['--external', '--messages', '10'], {
      ...environment.env,
      ADMIN_DATABASE_URL: environment.urls.application,
    })
    await expect(failed).rejects.toThrow(/permission denied to create database/)
    expect(await leftovers()).toEqual([])
  })
})

describe('weighing', () => {
  let environment: TestEnvironment
  beforeAll(async () => {
    environment = await createEnvironment()
  })
  afterAll(() => environment.close())

  test('where the free space map may not be read, free space is an estimate and is called one', async () => {
    const { admin } = environment
    await admin.query(`
      create function refuse() returns event_trigger language plpgsql as $$ begin raise insufficient_privilege; end $$;
      create event trigger refuse on ddl_command_start when tag in ('CREATE EXTENSION') execute function refuse();
      create table public.plain (like conversation_messages including all)`)
    const { conversationId } = await newConversation(environment)
    const fill = (table: string, text: string) =>
      admin.query(
        `insert into ${table} (conversation_id, role, content, metadata)
         select $1, 'user', $2, '{}' from generate_series(1, 500)`,
        [conversationId, text],
      )
    await fill('public.plain', 'x'.repeat(1000))
    await fill('conversation_messages', 'x'.repeat(1000))
    await admin.query(
      `delete from conversation_messages where ctid in (select ctid from conversation_messages order by ctid limit 400)`,
    )
    // The counters come within a second, and would else count what VACUUM has removed by then.
    const dead = `select n_dead_tup::int from pg_stat_all_tables where relid = 'conversation_messages'::regclass`
    await expect.poll(() => value<number>(admin, dead), { timeout: 10_000 }).toBe(400)
    const stored = { emptyOursBytes: 1, payloadBytes: 0, objectBytes: 0, puts: 0 }
    const balance = await weighDatabase(admin, 'public.plain', stored)
    expect(balance).toMatchObject({
      reusable_bytes_source: 'estimated',
      inline_ratio_measured: null,
      pays_usd: null,
      pays_bytes: null,
    })
    expect(balance.reusable_bytes).toBeGreaterThan(300_000)
    expect(balance.reusable_bytes).toBeLessThan(balance.rewrite_freed_bytes_measured)
    expect(balance.inline_bytes_measured).toBeGreaterThan(500_000)
  })
})

describe('verification', () => {
  let environment: TestEnvironment
  beforeAll(async () => {
    environment = await createEnvironment()
  })
  afterAll(() => environment.close())

  test('names rows that differ, are missing, should not be there, or can not be hydrated', async () => {
    const { conversationId } = await newConversation(environment)
    const write = (n: number) => insertMessage(environment, conversationId, `{"tool_interactions": [${n}]}`)
    const [good, differs, extra, damaged] = [await write(1), await write(2), await write(3), await write(4)]
    const missing = '99999999-9999-4999-8999-999999999999'
    const hashOf = async (id: string) => {
      const { rows } = await environment.admin.query<{ hash: string }>(
        `select encode(sha256(convert_to(metadata::text, 'UTF8')), 'hex') as hash from conversation_messages where id = $1`,
        [id],
      )
      return rows[0]?.hash ?? ''
    }
    const expected = new Map([
      [good, await hashOf(good)],
      [differs, await hashOf(good)],
      [damaged, await hashOf(damaged)],
      [missing, await hashOf(good)],
    ])
    const daemon = await startDaemon(environment)
    await drained(environment)
    await daemon.stop()
    await spoilHashes(environment.admin, 'row_id = $1', [damaged])

    const verification: Verification = { verified: 0, mismatches: [] }
    const source = [...(await loadSources(environment.admin)).values()][0]
    if (source === undefined) throw new Error('not attached')
    const context = { db: environment.admin, store: environment.store }
    await verifyRows(context, source, expected, environment.admin, 'public.copy_of_messages', verification)
    expect(verification.verified).toBe(1)
    const reasons = new Map(verification.mismatches.map(({ id, reason }) => [id, reason]))
    expect(Object.fromEntries(reasons)).toEqual({
      [differs]: 'the row differs from what was written',
      [extra]: 'the row should not be there',
      [damaged]: expect.stringContaining('damaged'),
      [missing]: 'the row is missing',
    })
  })
})
