// `lighter flush`: lets rows leave that settle or wait, and waits until they have.
import { randomUUID } from 'node:crypto'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import { pass, workByHand } from '../support/by-hand.ts'
import { insertMessage, newConversation, startDaemon, until, useEnvironment } from '../support/environment.ts'
import { runCli, startCli } from '../support/process.ts'
import { emptyQueue } from '../support/queue.ts'
import { value } from '../support/sql.ts'
import { isInline as isRowInline, toolCall } from '../support/tool-calls.ts'

const environment = await useEnvironment()
environment.env.PACK_MIN_BYTES = '32768'
const { work } = workByHand(environment)
const { admin } = environment
const sourceId = await value<number>(admin, 'select id from lighter.sources')
let daemon: Daemon | null = null

beforeEach(async () => {
  await environment.admin.query('select lighter.set_pack_sizes(4194304, 32768)')
  await emptyQueue(environment)
  await admin.query('delete from lighter.flushes; delete from lighter.failed_jobs; delete from lighter.pins')
  await admin.query(`select lighter.set_defaults('1 minute', '24 hours', 65536)`)
})
afterEach(async () => {
  await daemon?.stop()
  daemon = null
})

const isInline = (id: string) => isRowInline(environment, id)
const flush = (...args: string[]) => runCli(['flush', ...args], { env: environment.env })
const flushJson = async (...args: string[]) => {
  const finished = await flush(...args, '--json')
  return { code: finished.code, ...JSON.parse(finished.stdout) }
}

describe('without a daemon', () => {
  test('it says so at once, exits with 1, and its request is kept', async () => {
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, toolCall(2000))
    const { code, stdout, stderr } = await flush()
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
    expect(stderr).toBe(
      'error: no daemon is running, so nothing leaves yet\nhint: Start one: lighter start. Your request is kept: the rows leave when it runs.\n',
    )
    await work()
    expect(await isInline(id)).toBe(false)
  })

  test('one that serves the API only, and one that said something long ago, do not count', async () => {
    await admin.query(
      `insert into lighter.daemons (id, asleep, until) values (gen_random_uuid(), true, now() - interval '1 s')`,
    )
    daemon = await startDaemon(environment, { worker: false })
    expect((await flush('--no-wait')).code).toBe(1)
    await admin.query(`update lighter.daemons set until = now() + interval '1 minute'`)
    expect((await flush('--no-wait')).code).toBe(0)
    await admin.query('delete from lighter.daemons')
  })

  test.each([
    [['--table', 'nowhere'], /^error: nowhere is not attached\nhint: Attached: /],
    [['--tenant', 'x'], /^error: no tenant is named "x"\nhint: Pass the uuid of the tenant/],
  ])('%j is an error', async (args, expected) => {
    const { code, stderr } = await flush(...args)
    expect(code).toBe(1)
    expect(stderr).toMatch(expected)
  })
})

describe('with a daemon', () => {
  test('rows that settle and rows that wait have left when it ends', async () => {
    const { conversationId } = await newConversation(environment)
    const waiting = await insertMessage(environment, conversationId, toolCall(2000))
    await pass(environment, '61 seconds')
    await work()
    const settling = await insertMessage(environment, conversationId, toolCall(2000))
    daemon = await startDaemon(environment)
    const { code, stdout, stderr } = await flush('--table', 'conversation_messages')
    expect({ code, stdout, stderr }).toEqual({ code: 0, stdout: '2 rows left the queue\n', stderr: '' })
    expect([await isInline(waiting), await isInline(settling)]).toEqual([false, false])
    expect((await flush()).stdout).toBe('nothing was queued\n')
  })

  test('of a tenant leaves those of others waiting, and does not wait for them', async () => {
    const one = await newConversation(environment)
    const other = await newConversation(environment)
    const left = await insertMessage(environment, one.conversationId, toolCall(2000))
    const stays = await insertMessage(environment, other.conversationId, toolCall(2000))
    daemon = await startDaemon(environment)
    expect(await flushJson('--tenant', one.tenantId)).toMatchObject({
      code: 0,
      outcome: 'done',
      left: 1,
      queued: 0,
    })
    expect([await isInline(left), await isInline(stays)]).toEqual([false, true])
  })

  test('--no-wait asks and returns', async () => {
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, toolCall(2000))
    daemon = await startDaemon(environment)
    expect(await flushJson('--no-wait')).toMatchObject({ code: 0, outcome: 'asked', queued: 1 })
    await until(async () => !(await isInline(id)), 'it has left')
  })

  test('it does not wait for rows that failed or of a paused table, and names them', async () => {
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, toolCall(2000))
    await emptyQueue(environment)
    await admin.query(
      `insert into lighter.waiting (source_id, row_id, attempts, available_at, last_error) values ($1, $2, 1, now() + interval '1 hour', 'no luck')`,
      [sourceId, id],
    )
    await insertMessage(environment, conversationId, toolCall(2000))
    daemon = await startDaemon(environment)
    const failing = await flush()
    expect(failing.code).toBe(1)
    expect(failing.stdout).toMatch(
      /^1 row left the queue\n1 row failed and waits for another attempt \(the next at .*Z\): no luck\n$/,
    )
    await admin.query('update lighter.sources set paused = true')
    try {
      expect(await flushJson()).toMatchObject({ code: 1, left: 0, paused: 1, retrying: 0 })
    } finally {
      await admin.query('update lighter.sources set paused = false')
    }
  })

  test('a row that was pinned meanwhile stays, and is not waited for', async () => {
    const { conversationId } = await newConversation(environment)
    const waits = await insertMessage(environment, conversationId, toolCall(2000))
    await pass(environment, '61 seconds')
    await work()
    const settles = await insertMessage(environment, conversationId, toolCall(2000))
    for (const id of [waits, settles])
      await admin.query('insert into lighter.pins (source_id, row_id) values ($1, $2)', [sourceId, id])
    daemon = await startDaemon(environment)
    expect((await flush()).code).toBe(0)
    expect([await isInline(waits), await isInline(settles)]).toEqual([true, true])
  })

  test('it says how many became dead letters', async () => {
    const { conversationId } = await newConversation(environment)
    const lost = JSON.stringify({
      ...JSON.parse(toolCall(2000)),
      artifact_metadata_ref: randomUUID(),
    })
    await insertMessage(environment, conversationId, lost)
    daemon = await startDaemon(environment, { env: { OFFLOAD_MAX_ATTEMPTS: '1' } })
    expect(await flushJson()).toMatchObject({ code: 1, left: 0, queued: 0, dead_letters: 1 })
  })

  test('interrupted, it says how far it is', async () => {
    const { conversationId } = await newConversation(environment)
    await insertMessage(environment, conversationId, toolCall(2000))
    // Somebody holds the row, so it does not leave.
    const holder = await environment.app.connect()
    try {
      await holder.query('begin')
      await holder.query('select from conversation_messages where conversation_id = $1 for update', [
        conversationId,
      ])
      daemon = await startDaemon(environment)
      const running = startCli(['flush'], { env: environment.env })
      await until(
        async () => (await value<number>(admin, 'select count(*)::int from lighter.flushes')) > 0,
        'asked',
      )
      await new Promise(resolve => setTimeout(resolve, 500))
      expect(running.hasEnded()).toBe(false)
      running.signal('SIGINT')
      const { code, stdout } = await running.ended
      expect(code).toBe(1)
      expect(stdout).toMatch(/^0 rows left the queue; interrupted with 1 row to go. The daemon goes on\n$/)
    } finally {
      await holder.query('rollback')
      holder.release()
    }
  })

  test('a daemon that goes away meanwhile ends it', async () => {
    const { conversationId } = await newConversation(environment)
    await insertMessage(environment, conversationId, toolCall(2000))
    const holder = await environment.app.connect()
    try {
      await holder.query('begin')
      await holder.query('select from conversation_messages where conversation_id = $1 for update', [
        conversationId,
      ])
      daemon = await startDaemon(environment)
      const running = startCli(['flush'], { env: environment.env })
      await until(
        async () => (await value<number>(admin, 'select count(*)::int from lighter.flushes')) > 0,
        'asked',
      )
      await new Promise(resolve => setTimeout(resolve, 500))
      await daemon.stop()
      const { code, stderr } = await running.ended
      expect(code).toBe(1)
      expect(stderr).toMatch(/^error: the daemon went away; 0 rows left, 1 have not\nhint: Start one/m)
    } finally {
      await holder.query('rollback')
      holder.release()
    }
  })
})
