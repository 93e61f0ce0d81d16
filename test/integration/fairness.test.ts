// One tenant's backlog must not keep others waiting, nor its own newest rows. How many jobs the backlog has is in
// FAIRNESS_JOBS; what is asserted is how much of it was worked off meanwhile, not how fast the machine is.
import { expect, test } from 'vitest'
import type { BatchResult } from '../../src/offload/batch-result.ts'
import { claimInbox, claimWaiting } from '../../src/offload/claim.ts'
import { notYet } from '../../src/offload/return-jobs.ts'
import { settle } from '../../src/offload/settle.ts'
import {
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  until,
  useFreshEnvironment,
} from '../support/environment.ts'
import { spawnDaemon } from '../support/spawn-daemon.ts'
import { value } from '../support/sql.ts'

const backlog = Number(process.env.FAIRNESS_JOBS ?? 150_000)

const environment = useFreshEnvironment()

/** Rows of one tenant and their jobs, by the set: as many triggers would take minutes. */
async function fillBacklog(jobs: number): Promise<{ tenantId: string; conversationId: string }> {
  const big = await newConversation(environment)
  const db = await environment.admin.connect()
  try {
    await db.query('begin; set local session_replication_role = replica; set local synchronous_commit = off')
    await db.query(
      `insert into conversation_messages (conversation_id, role, content, metadata)
       select $1, 'assistant', '', jsonb_build_object('tool_interactions', jsonb_build_array(n)) from generate_series(1, $2::int) n`,
      [big.conversationId, jobs],
    )
    await db.query(
      `insert into lighter.inbox (source_id, row_id, enqueued_at)
       select s.id, m.id::text, now() - interval '1 hour'
         from conversation_messages m, lighter.sources s`,
    )
    await db.query('commit; analyze lighter.inbox; analyze conversation_messages')
  } finally {
    db.release()
  }
  return big
}

const jobsLeft = () => value<number>(environment.admin, 'select count(*)::int from lighter.jobs')

const offloaded = async (id: string) => (await rawMetadata(environment, id))?.includes('_ref') === true

/** Once the backlog is being worked on: how much of it is done until the rows are, and after how long. */
async function doneMeanwhile(rows: () => Promise<string[]>): Promise<{ jobs: number; ms: number }> {
  const start = await jobsLeft()
  await until(async () => (await jobsLeft()) < start - 1000, 'the backlog is being worked on')
  const before = await jobsLeft()
  const began = performance.now()
  const ids = await rows()
  for (const id of ids) await until(() => offloaded(id), 'the row is offloaded')
  const ms = Math.round(performance.now() - began)
  const jobs = before + ids.length - (await jobsLeft())
  console.log(`${ids.length} row(s) among ${before} jobs: ${ms} ms, ${jobs} jobs done meanwhile`)
  return { jobs, ms }
}

test("another tenant's row, and the tenant's own newest, are done long before the backlog", async () => {
  const big = await fillBacklog(backlog)
  const daemon = await startDaemon(environment)
  const other = await newConversation(environment)
  const first = await doneMeanwhile(async () => [
    await insertMessage(environment, other.conversationId, '{"tool_interactions": ["other"]}'),
  ])
  const own = await doneMeanwhile(() =>
    Promise.all(
      Array.from({ length: 20 }, (_, n) =>
        insertMessage(environment, big.conversationId, `{"tool_interactions": ["new", ${n}]}`),
      ),
    ),
  )
  const left = await jobsLeft()
  await daemon.stop()
  expect(left, 'the backlog is still there').toBeGreaterThan(backlog / 4)
  expect(first.jobs).toBeLessThan(backlog / 4)
  expect(own.jobs).toBeLessThan(backlog / 4)
})

test('with three daemons on the backlog, too, and for each of thirty tenants', async () => {
  await fillBacklog(backlog)
  const daemons = await Promise.all(Array.from({ length: 3 }, () => spawnDaemon(environment)))
  const others = await Promise.all(Array.from({ length: 30 }, () => newConversation(environment)))
  const met = await doneMeanwhile(() =>
    Promise.all(
      others.map(({ conversationId }) =>
        insertMessage(environment, conversationId, '{"tool_interactions": [1]}'),
      ),
    ),
  )
  const left = await jobsLeft()
  for (const daemon of daemons) daemon.kill('SIGTERM')
  for (const daemon of daemons) expect(await daemon.ended).toEqual({ code: 0, signal: null })
  expect(left, 'the backlog is still there').toBeGreaterThan(backlog / 4)
  expect(met.jobs).toBeLessThan(backlog / 2)
  const { rows } = await environment.admin.query(
    'select row_id from artifact_refs group by row_id, field having count(*) > 1',
  )
  expect(rows, 'rows offloaded twice').toEqual([])
})

test("a tenant's hundreds of large rows let another tenant's large row go first", async () => {
  const trace = '~'.repeat(70_000)
  const big = await newConversation(environment)
  for (let n = 0; n < 200; n++) {
    await insertMessage(environment, big.conversationId, `{"n": ${n}, "trace": "${trace}"}`)
  }
  const gate = Promise.withResolvers<void>()
  let streamed = 0
  const daemon = await startDaemon(environment, {
    env: { STREAM_THRESHOLD_BYTES: '65536', STREAM_CONCURRENCY: '1' },
    signal: point => (point === 'after-register' ? gate.promise : undefined),
    onResult: (result: BatchResult) => {
      streamed += result.offloadedRows
    },
  })
  const claimed = async (where: string) =>
    (await value<number>(
      environment.admin,
      `select count(*)::int from lighter.jobs where (place = 'inbox' or place = 'waiting' and available_at <= now()) and ${where}`,
    )) === 0
  await until(() => claimed('true'), 'every row is in line, or was turned away')
  const other = await newConversation(environment)
  const id = await insertMessage(environment, other.conversationId, `{"trace": "${trace}"}`)
  await until(() => claimed(`row_id = '${id}'`), 'the other row has been claimed, too')
  gate.resolve()
  await until(() => offloaded(id), "the other tenant's row is offloaded")
  const meanwhile = streamed
  await daemon.stop()
  expect(meanwhile).toBeLessThan(15)
})

test('a row whose turn it was not keeps its place in the queue', async () => {
  const { conversationId } = await newConversation(environment)
  const ids: string[] = []
  for (let n = 0; n < 3; n++)
    ids.push(await insertMessage(environment, conversationId, `{"tool_interactions": [${n}]}`))
  const sources = await environment.admin.query<{ id: number }>('select id from lighter.sources')
  const sourceIds = sources.rows.map(row => row.id)
  // One that failed before, and is due since a moment ago.
  await environment.admin.query(
    `insert into lighter.waiting (source_id, row_id, attempts, last_error) values ($1, 'failed', 1, 'x')`,
    [sourceIds[0]],
  )
  const { lease } = await claimInbox(environment.worker, sourceIds, 2, 60_000)
  if (lease === null) throw new Error('nothing was claimed')
  expect(lease.jobs.map(job => job.rowId)).toEqual(ids.slice(0, 2))
  await settle(
    environment.worker,
    lease,
    [],
    lease.jobs.map(job => notYet(job)),
    8,
  )
  const again = await claimWaiting(environment.worker, sourceIds, 2, 60_000)
  expect(again?.jobs.map(job => job.rowId).sort()).toEqual(ids.slice(0, 2).sort())
  expect(again?.jobs).toMatchObject([{ attempts: 1 }, { attempts: 1 }])
})
