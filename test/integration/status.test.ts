// `lighter status`: where a row is on its way out, in words. Each test reads one state off a real row.
import { randomUUID } from 'node:crypto'
import { beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { isAnyDaemonWorking } from '../../src/reports/daemons.ts'
import { type RowStatus, readRowStatus } from '../../src/reports/row-status.ts'
import { loadSources } from '../../src/source/sources.ts'
import { pass, workByHand } from '../support/by-hand.ts'
import { insertMessage, newConversation, startDaemon, useEnvironment } from '../support/environment.ts'
import { runCli } from '../support/process.ts'
import { emptyQueue, leaseRows } from '../support/queue.ts'
import { column, value } from '../support/sql.ts'
import { toolCall } from '../support/tool-calls.ts'

const environment = await useEnvironment()
environment.env.PACK_MIN_BYTES = '32768'
const { work } = workByHand(environment)
const { admin } = environment
const sourceId = await value<number>(admin, 'select id from lighter.sources')

beforeEach(async () => {
  await environment.admin.query('select lighter.set_pack_sizes(4194304, 32768)')
  await emptyQueue(environment)
  await admin.query('delete from lighter.flushes; delete from lighter.failed_jobs; delete from lighter.pins')
  await admin.query(`select lighter.set_defaults('1 minute', '24 hours', 65536)`)
})

async function statusOf(id: string): Promise<RowStatus> {
  const source = (await loadSources(environment.worker)).get(sourceId)
  if (source === undefined) throw new Error('no source')
  const status = await readRowStatus(environment.worker, source, id)
  if (status === null) throw new Error(`no row ${id}`)
  return status
}
const lighter = (args: string[]) => runCli(args, { env: environment.env })
const inSeconds = (time: string | null) => (time === null ? null : (Date.parse(time) - Date.now()) / 1000)

describe('a row on its way', () => {
  test('that was just written settles: until when, and what comes then', async () => {
    const { conversationId, tenantId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, toolCall(2000))
    const status = await statusOf(id)
    expect(status).toMatchObject({
      state: 'settling',
      tenant_id: tenantId,
      kind: 'assistant_message_tool_interactions',
      leaves_at: null,
      group: { rows: 0, bytes: 0, min_bytes: 32_768, target_bytes: 4_194_304 },
    })
    expect(status.bytes).toBeGreaterThan(2000)
    expect(inSeconds(status.settles_at)).toBeGreaterThan(50)
    expect(inSeconds(status.settles_at)).toBeLessThanOrEqual(60)
    expect(status.says).toMatch(
      /^It was just written, and settles until .* UTC, in \d+ seconds, .* which have 0 B of 4\.2 MB; after 24 hours 32\.8 KB are enough\.$/,
    )
    const large = await statusOf(await insertMessage(environment, conversationId, toolCall(70_000)))
    expect(large.leaves_at).toBe(large.settles_at)
    expect(large.says).toMatch(/then leaves by itself/)
  })

  test('waits with less than PACK_MIN_BYTES: no date; with more: max_wait; with PACK_TARGET_BYTES: now', async () => {
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, toolCall(20_000))
    await pass(environment, '61 seconds')
    await work()
    const alone = await statusOf(id)
    expect(alone).toMatchObject({ state: 'waiting', leaves_at: null, group: { rows: 1 } })
    expect(alone.says).toMatch(/20\.\d KB of its kind in 1 row: less than the 32\.8 KB \(PACK_MIN_BYTES\)/)
    await insertMessage(environment, conversationId, toolCall(20_000))
    await pass(environment, '61 seconds')
    await work()
    const both = await statusOf(id)
    expect(both).toMatchObject({ state: 'waiting', group: { rows: 2 } })
    expect(inSeconds(both.leaves_at)).toBeGreaterThan(86_000)
    expect(inSeconds(both.leaves_at)).toBeLessThan(86_400 - 100)
    expect(both.says).toMatch(
      /in 2 rows\. It leaves when they have 4\.2 MB .* at the latest .*in 24 hours\.$/,
    )
    await admin.query('update lighter.waiting set bytes = 4194304 where row_id = $1', [id])
    expect(await statusOf(id)).toMatchObject({ state: 'due' })
  })

  test('is due when its time is over, or somebody flushes', async () => {
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, toolCall(2000))
    await pass(environment, '61 seconds')
    expect((await statusOf(id)).says).toBe('It is settled: a daemon looks at it in a moment.')
    await work()
    expect((await statusOf(id)).state).toBe('waiting')
    await admin.query('select lighter.flush()')
    expect((await statusOf(id)).says).toMatch(/lighter flush/)
    await work()
    expect((await statusOf(id)).state).toBe('offloaded')
  })

  test('that is worked on, or was left by a daemon that died', async () => {
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, toolCall(2000))
    await emptyQueue(environment)
    await leaseRows(admin, sourceId, [id])
    expect((await statusOf(id)).state).toBe('being_worked_on')
    await admin.query(`update lighter.leases set until = now() - interval '1 s'`)
    expect((await statusOf(id)).state).toBe('queued')
  })

  test('that failed: when it is tried again, and given up: how to bring it back', async () => {
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, toolCall(2000))
    await emptyQueue(environment)
    await admin.query(
      `insert into lighter.waiting (source_id, row_id, attempts, available_at, last_error) values ($1, $2, 2, now() + interval '5 minutes', E'out of\\norder')`,
      [sourceId, id],
    )
    const retrying = await statusOf(id)
    expect(retrying).toMatchObject({ state: 'retrying', attempts: 2, last_error: 'out of\norder' })
    expect(inSeconds(retrying.next_attempt_at)).toBeGreaterThan(290)
    expect(retrying.says).toMatch(/^2 attempts failed; the next one is .*in 5 minutes: out of order$/)
    await admin.query(
      `with w as (delete from lighter.waiting returning *)
       insert into lighter.failed_jobs (source_id, row_id, attempts, enqueued_at, last_error) select source_id, row_id, 5, enqueued_at, last_error from w`,
    )
    const dead = await statusOf(id)
    expect(dead).toMatchObject({ state: 'dead_letter', attempts: 5 })
    expect(dead.hint).toContain(`lighter retry --table public.conversation_messages --row ${id}`)
  })
})

describe('a row that does not move', () => {
  test('is offloaded, and points to its artifacts', async () => {
    await admin.query(`select lighter.set_defaults('0', '0')`)
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, toolCall(2000))
    await work()
    const status = await statusOf(id)
    const [artifact] = await column(admin, 'select id from artifact_refs where row_id = $1', [id])
    expect(status).toMatchObject({
      state: 'offloaded',
      pointers: [{ artifact_id: artifact, kind: 'assistant_message_tool_interactions' }],
    })
    expect(status.says).toContain(artifact)
  })

  test.each([
    [null, /null/],
    ['"a text"', /a string has no room/],
    [
      '{"a": 1}',
      /no tool_interactions that is an array or object with anything in it, and is not over 8\.0 KB/,
    ],
  ])('holds nothing to offload: %s', async (metadata, says) => {
    const { conversationId } = await newConversation(environment)
    const status = await statusOf(await insertMessage(environment, conversationId, metadata))
    expect(status).toMatchObject({ state: 'nothing_to_offload', bytes: 0, hint: null })
    expect(status.says).toMatch(says)
  })

  test('is pinned, its table is paused, or it was never queued', async () => {
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, toolCall(2000))
    await admin.query('insert into lighter.pins (source_id, row_id) values ($1, $2)', [sourceId, id])
    expect((await statusOf(id)).state).toBe('pinned')
    await admin.query('delete from lighter.pins')
    await admin.query('update lighter.sources set paused = true')
    try {
      expect((await statusOf(id)).state).toBe('paused')
    } finally {
      await admin.query('update lighter.sources set paused = false')
    }
    await emptyQueue(environment)
    const status = await statusOf(id)
    expect(status.state).toBe('not_queued')
    expect(status.hint).toMatch(/lighter backfill/)
  })

  test('has no tenant', async () => {
    const orphan = randomUUID()
    await admin.query(
      'alter table conversation_messages drop constraint if exists conversation_messages_conversation_id_fkey',
    )
    const id = await insertMessage(environment, orphan, toolCall(2000))
    expect((await statusOf(id)).says).toMatch(
      /^It has no tenant: tenant_id of its public\.conversations is null or missing/,
    )
  })
})

describe('the command', () => {
  test('answers in a line, and says that no daemon runs', async () => {
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, toolCall(2000))
    const { code, stdout } = await lighter(['status', 'conversation_messages', id.toUpperCase()])
    expect(code).toBe(0)
    expect(stdout.trimEnd().split('\n')).toEqual([
      expect.stringMatching(/^It was just written/),
      'No daemon is running. Start one: lighter start',
    ])
    const json = await lighter(['status', 'conversation_messages', id, '--json'])
    expect(JSON.parse(json.stdout)).toMatchObject({
      table: 'public.conversation_messages',
      column: 'metadata',
      state: 'settling',
      daemon_running: false,
    })
  })

  test('without a row: a line for each source', async () => {
    const { conversationId } = await newConversation(environment)
    await insertMessage(environment, conversationId, toolCall(20_000))
    await pass(environment, '61 seconds')
    await work()
    await insertMessage(environment, conversationId, toolCall(2000))
    const { stdout } = await lighter(['status'])
    expect(stdout).toMatch(/settling +waiting +bytes +next leave/)
    expect(stdout).toMatch(/^conversation_messages +1 +1 +20\.\d KB +needs more +0 /m)
    const { sources } = JSON.parse((await lighter(['status', 'conversation_messages', '--json'])).stdout)
    expect(sources).toMatchObject([{ source: 'conversation_messages', settling: 1, waiting: 1, depth: 0 }])
  })

  test.each([
    [
      ['status', 'nowhere', '1'],
      /^error: nowhere is not attached\nhint: Attached: public\.conversation_messages/,
    ],
    [
      ['status', 'conversation_messages', 'x'],
      /^error: "x" is not the key of a row of public.conversation_messages\nhint: .*id \(uuid\)/,
    ],
    [['status', 'conversation_messages', randomUUID()], /^error: public\.conversation_messages has no row /],
    [['status', '--column', 'metadata'], /^error: --column needs a table\nhint: /],
  ])('%j is an error that says what to do', async (args, expected) => {
    const { code, stdout, stderr } = await lighter(args)
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
    expect(stderr).toMatch(expected)
  })
})

describe('with a daemon', () => {
  test('nobody is told to start one, and its log says what it noticed, once a minute', async () => {
    const lines: Record<string, unknown>[] = []
    const daemon = await startDaemon(environment, {
      log: line => lines.push(line),
      env: { POLL_INTERVAL_MS: '100' },
    })
    onTestFinished(async () => void (await daemon.stop()))
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, toolCall(2000))
    await expect.poll(() => isAnyDaemonWorking(admin)).toBe(true)
    expect((await statusOf(id)).hint).toMatch(/^Let it leave now: lighter flush/)
    const noticed = () => lines.filter(line => String(line.msg).startsWith('noticed '))
    await expect.poll(() => noticed().length, { timeout: 10_000 }).toBe(1)
    expect(noticed()[0]).toMatchObject({ level: 30, source: 'public.conversation_messages', rows: 1 })
    expect(noticed()[0]?.msg).toMatch(
      /^noticed 1 row of public\.conversation_messages\. They stay for 1 minute after their last write, then leave when .* To let them leave now: lighter flush$/,
    )
    await insertMessage(environment, conversationId, toolCall(2000))
    await new Promise(resolve => setTimeout(resolve, 1000))
    expect(noticed()).toHaveLength(1)
  })

  test('the log says nothing of rows that leave at once', async () => {
    await admin.query(`select lighter.set_defaults('0', '0')`)
    const lines: Record<string, unknown>[] = []
    const daemon = await startDaemon(environment, {
      log: line => lines.push(line),
      env: { POLL_INTERVAL_MS: '100' },
    })
    onTestFinished(async () => void (await daemon.stop()))
    const { conversationId } = await newConversation(environment)
    await insertMessage(environment, conversationId, toolCall(2000))
    await expect.poll(() => lines.some(line => line.msg === 'batch'), { timeout: 10_000 }).toBe(true)
    expect(lines.filter(line => String(line.msg).startsWith('noticed '))).toEqual([])
  })
})
