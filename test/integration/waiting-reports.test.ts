// Rows that settle or wait are told of everywhere, and nowhere as a lag.
import { setTimeout as delay } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import { lookUpRow } from '../../src/dashboard/lookup.ts'
import { readFast } from '../../src/dashboard/report.ts'
import type { Check } from '../../src/doctor/checks.ts'
import { readStats } from '../../src/reports/read.ts'
import { renderLine, renderStats } from '../../src/reports/render.ts'
import { readFigures } from '../../src/telemetry/figures.ts'
import { pass, workByHand } from '../support/by-hand.ts'
import { insertMessage, newConversation, startDaemon, useEnvironment } from '../support/environment.ts'
import { runCli } from '../support/process.ts'
import { emptyQueue, leaseRows } from '../support/queue.ts'
import { scrape, serviceKey } from '../support/scrape.ts'
import { value } from '../support/sql.ts'
import { toolCall } from '../support/tool-calls.ts'

const environment = await useEnvironment()
environment.env.PACK_MIN_BYTES = '32768'
const { work } = workByHand(environment)
const { admin } = environment
const sourceId = await value<number>(admin, 'select id from lighter.sources')
let daemon: Daemon | null = null

beforeEach(async () => {
  await environment.admin.query('select lighter.set_pack_sizes(4194304, 32768)')
  await emptyQueue(environment)
  await admin.query('delete from lighter.flushes')
  await admin.query(`select lighter.set_defaults('10 minutes', '24 hours', 65536)`)
})
afterEach(async () => {
  await daemon?.stop()
  daemon = null
})

/** Two that wait, since 10 minutes and a while, and three that settle since 9 minutes. */
async function twoWaitThreeSettle(bytes = 20_000): Promise<{ tenantId: string; waiting: string }> {
  const { tenantId, conversationId } = await newConversation(environment)
  const waiting = await insertMessage(environment, conversationId, toolCall(bytes))
  await insertMessage(environment, conversationId, toolCall(bytes))
  await pass(environment, '11 minutes')
  await work()
  for (let n = 0; n < 3; n++) await insertMessage(environment, conversationId, toolCall(1000))
  await pass(environment, '9 minutes')
  return { tenantId, waiting }
}

const health = async () => (await admin.query('select * from lighter.queue_health')).rows[0]
const readyz = async (): Promise<{ queue: string }> => {
  daemon = await startDaemon(environment, { worker: false, api: true })
  const answer = await fetch(`${daemon.address()}/readyz`)
  return (await answer.json()) as { queue: string }
}
const doctorOfQueue = async (): Promise<Check> => {
  const { stdout } = await runCli(['doctor', '--json'], { env: environment.env })
  const { checks } = JSON.parse(stdout) as { checks: Check[] }
  const check = checks.find(each => each.name === 'queue')
  if (check === undefined) throw new Error('no check of the queue')
  return check
}

describe('how late the queue is counts from when a row was due', () => {
  test('one that has just settled is not late by as long as it settled', async () => {
    const { conversationId } = await newConversation(environment)
    await insertMessage(environment, conversationId, toolCall(1000))
    await pass(environment, '601 seconds')
    const found = await health()
    expect(found).toMatchObject({ depth: '1', due: '1', settling: '0' })
    expect(found.oldest_seconds).toBeGreaterThan(0.9)
    expect(found.oldest_seconds).toBeLessThan(60)
    await pass(environment, '1 hour')
    expect((await health()).oldest_seconds).toBeGreaterThan(3600)
  })

  test('a flush makes it due at that moment', async () => {
    const { conversationId } = await newConversation(environment)
    await insertMessage(environment, conversationId, toolCall(1000))
    await pass(environment, '5 minutes')
    await admin.query('select lighter.flush()')
    const found = await health()
    expect(found).toMatchObject({ due: '1', settling: '0' })
    expect(found.oldest_seconds).toBeLessThan(60)
  })

  test('one that waited for a day and is worked on, or failed just now, is not a day late', async () => {
    const { conversationId } = await newConversation(environment)
    const id = await insertMessage(environment, conversationId, toolCall(1000))
    await emptyQueue(environment)
    await leaseRows(admin, sourceId, [id], { enqueuedMs: Date.now() - 86_400_000 })
    expect(await health()).toMatchObject({ depth: '1', in_flight: '1', oldest_seconds: null })
    await admin.query(`update lighter.leases set until = now() - interval '20 minutes'`)
    expect((await health()).oldest_seconds).toBeCloseTo(1200, -1)
    await emptyQueue(environment)
    await admin.query(
      `insert into lighter.waiting (source_id, row_id, attempts, enqueued_at, available_at, last_error)
       values ($1, $2, 1, now() - interval '1 day', now() + interval '1 minute', 'no luck')`,
      [sourceId, id],
    )
    expect(await health()).toMatchObject({ depth: '1', due: '0', oldest_seconds: 0 })
  })
})

describe('of rows that settle or wait', () => {
  test('lighter stats shows how many, how many bytes, and when they leave', async () => {
    await twoWaitThreeSettle()
    const stats = await readStats(admin)
    const lines = renderStats(stats, 200)
    expect(lines.join('\n')).toMatch(/settling +waiting +bytes +next leave/)
    expect(lines.find(line => line.startsWith('conversation_messages '))).toMatch(
      /^conversation_messages +0 +0 +- +3 +2 +40\.\d KB +24 h +0 +0 +0$/,
    )
    expect(renderLine(stats)).toMatch(/queue 0 {2}oldest 0\.0 s {2}settling 3 {2}waiting 2 \(40\.\d KB\)/)
  })

  test('the dashboard shows the same, and of a row where it is in words', async () => {
    const { waiting } = await twoWaitThreeSettle()
    const { queue } = await readFast(environment.worker)
    expect(queue).toMatchObject([{ depth: 0, settling: 3, waiting: 2, oldest_seconds: null }])
    const row = await lookUpRow(environment.worker, sourceId, waiting)
    expect(row.status).toMatchObject({ state: 'waiting', hint: expect.stringMatching(/lighter/) })
    expect(row.status.says).toMatch(/^It waits for others, whole\./)
  })

  test('the metrics have gauges of their own', async () => {
    await twoWaitThreeSettle()
    daemon = await startDaemon(environment, {
      worker: false,
      api: true,
      env: { SERVICE_API_KEY: serviceKey },
    })
    const samples = await scrape(daemon.address())
    const of = (name: string) => samples.get(`lighter_queue_${name}{source="conversation_messages"}`)
    expect([of('jobs'), of('due_jobs'), of('oldest_job_age_seconds')]).toEqual([0, 0, 0])
    expect([of('settling_rows'), of('waiting_rows')]).toEqual([3, 2])
    expect(of('waiting_bytes')).toBeGreaterThan(40_000)
    expect(of('oldest_waiting_age_seconds')).toBeGreaterThanOrEqual(1200)
    expect(of('next_departure_seconds')).toBeGreaterThan(85_000)
    expect(of('next_departure_seconds')).toBeLessThan(85_300)
    expect(samples.get('lighter_queue_overdue_seconds')).toBe(0)
  })

  test('with none there is no next departure', async () => {
    const { queues, overdueSeconds } = await readFigures(environment.worker, [])
    expect(queues).toMatchObject([{ departureSeconds: null, oldestWaitingSeconds: 0 }])
    expect(overdueSeconds).toBe(0)
  })

  test('overdue are those alone that have enough, and are not paused', async () => {
    const overdue = async () => (await readFigures(environment.worker, [])).overdueSeconds
    await twoWaitThreeSettle()
    await pass(environment, '26 hours')
    // Two hours, and the twenty minutes of before.
    expect(await overdue()).toBeGreaterThan(2 * 3600)
    expect(await overdue()).toBeLessThan(3 * 3600)
    await admin.query('update lighter.sources set paused = true')
    expect(await overdue()).toBe(0)
    await admin.query('update lighter.sources set paused = false')
    await admin.query('update lighter.waiting set bytes = 10000')
    expect(await overdue()).toBe(0)
    // They wait for more.
    expect((await readFigures(environment.worker, [])).queues[0]?.departureSeconds).toBeNull()
  })

  test('readyz is behind with a row that was due twenty minutes ago, wherever it is, and reads no long queue for that', async () => {
    await insertMessage(environment, (await newConversation(environment)).conversationId, toolCall(2000))
    await admin.query(`update lighter.inbox set enqueued_at = now() - interval '29 minutes'`)
    expect(await readyz()).toMatchObject({ queue: 'behind' })
    await admin.query(`update lighter.inbox set enqueued_at = now() - interval '24 minutes'`)
    expect(await readyz()).toMatchObject({ queue: 'ok' })
    await emptyQueue(environment)
    await admin.query(
      `insert into lighter.waiting (source_id, row_id, enqueued_at, available_at, last_error)
       values ($1, 'a', now() - interval '1 day', now() - interval '20 minutes', 'bad')`,
      [sourceId],
    )
    expect(await readyz()).toMatchObject({ queue: 'behind' })
    await admin.query(`update lighter.waiting set available_at = now() - interval '10 minutes'`)
    expect(await readyz()).toMatchObject({ queue: 'ok' })
    await emptyQueue(environment)
    await leaseRows(admin, sourceId, ['b'], { enqueuedMs: Date.now() - 86_400_000 })
    expect(await readyz()).toMatchObject({ queue: 'ok' })
    await admin.query(`update lighter.leases set until = now() - interval '20 minutes'`)
    expect(await readyz()).toMatchObject({ queue: 'behind' })
  })

  test('readyz and doctor find nothing behind', async () => {
    await twoWaitThreeSettle()
    await admin.query(
      `update lighter.waiting set enqueued_at = now() - interval '23 hours', available_at = now() - interval '22 hours'`,
    )
    expect(await readyz()).toMatchObject({ queue: 'ok' })
    expect(await doctorOfQueue()).toEqual({
      name: 'queue',
      status: 'ok',
      found:
        '0 queued, 0 of them after an error, 0 dead letters; besides, 3 settle and 2 wait for others, which is as it should be (lighter status)',
    })
  })

  test('what is due and is not taken is behind all the same', async () => {
    await twoWaitThreeSettle()
    await pass(environment, '30 minutes')
    expect(await readyz()).toMatchObject({ queue: 'behind' })
    expect(await doctorOfQueue()).toMatchObject({
      status: 'warn',
      found: expect.stringMatching(/^3 queued, oldest \d+ s/),
    })
  })

  test('the log counts them at each batch', async () => {
    const lines: Record<string, unknown>[] = []
    const { conversationId } = await newConversation(environment)
    await insertMessage(environment, conversationId, toolCall(1000))
    await pass(environment, '11 minutes')
    daemon = await startDaemon(environment, { log: line => lines.push(line) })
    for (let n = 0; n < 100 && !lines.some(line => line.msg === 'batch'); n++) await delay(50)
    expect(lines.find(line => line.msg === 'batch')).toMatchObject({ level: 30, claimed: 1, waiting: 1 })
  })
})
