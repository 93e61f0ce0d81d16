// The store is down for a day, which is made to pass by moving the timestamps of what waits. The application goes on
// writing, the daemon holds nothing but its breath, and afterwards the newest rows do not wait for the day's.
import { afterAll, beforeAll, expect, test } from 'vitest'
import {
  drained,
  hydratedMany,
  insertMessage,
  newConversation,
  rawMetadata,
  until,
  useEnvironment,
} from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'
import { type FaultyStore, startFaultyStore } from '../support/request-fault.ts'
import { spawnDaemon } from '../support/spawn-daemon.ts'
import { column, value } from '../support/sql.ts'

const environment = await useEnvironment()
let store: FaultyStore
beforeAll(async () => {
  store = await startFaultyStore(environment.env.R2_ENDPOINT ?? '')
})
afterAll(async () => {
  await store.close()
})

const MiB = 1024 * 1024
const count = (from: string) => value<number>(environment.admin, `select count(*)::int from ${from}`)

/** Two hours, for the queue and for what was registered. In the order in which all statements take them. */
const twoHoursPass = () =>
  environment.admin.query(`
    with held as materialized (select id from lighter.leases order by id for update)
    update lighter.leases l
       set enqueued_at = array(select e - interval '2 hours' from unnest(l.enqueued_at) with ordinality as u(e, ord) order by ord)
      from held where l.id = held.id;
    update lighter.inbox set enqueued_at = enqueued_at - interval '2 hours';
    with held as materialized (select source_id, row_id from lighter.waiting order by source_id, row_id for update)
    update lighter.waiting w set enqueued_at = enqueued_at - interval '2 hours', available_at = available_at - interval '2 hours'
      from held where w.source_id = held.source_id and w.row_id = held.row_id;
    update lighter.objects set created_at = created_at - interval '2 hours', lease_until = lease_until - interval '2 hours'`)

test('a day without a store', async () => {
  const { conversationId } = await newConversation(environment)
  const write = (rows: number) =>
    environment.app.query(
      `insert into conversation_messages (conversation_id, role, content, metadata)
       select $1, 'assistant', '', jsonb_build_object('tool_interactions', jsonb_build_array(n, repeat('x', 300))) from generate_series(1, $2::int) n`,
      [conversationId, rows],
    )
  const daemon = await spawnDaemon(environment, { env: { R2_ENDPOINT: store.endpoint } })
  await write(500)
  await drained(environment)
  const idle = await daemon.memory()

  store.fault = method => (method === 'PUT' ? 503 : null)
  for (let hours = 0; hours < 24; hours += 2) {
    await write(2500)
    // One by one, as an application does, and each has its answer.
    for (let n = 0; n < 5; n++)
      await insertMessage(environment, conversationId, `{"tool_interactions": [${n}]}`)
    await twoHoursPass()
  }
  await until(async () => (await count('lighter.leases')) === 0, 'no row is claimed', 60_000)
  expect(await value<number>(environment.admin, 'select max(attempts) from lighter.jobs')).toBe(0)
  expect(await count('lighter.jobs')).toBe(12 * 2505)
  expect(await count('lighter.failed_jobs')).toBe(0)
  expect(
    await count(`lighter.objects where state = 'uploading'`),
    'not one object for each time it was tried',
  ).toBeLessThan(30)
  expect(((await daemon.peakMemory()) - idle) / MiB).toBeLessThan(120)

  store.fault = () => null
  const other = await newConversation(environment)
  await until(async () => (await count('lighter.jobs')) < 12 * 2505 - 500, 'it catches up', 60_000)
  const id = await insertMessage(environment, other.conversationId, '{"tool_interactions": ["new"]}')
  await until(
    async () => (await rawMetadata(environment, id))?.includes('_ref') === true,
    'the new row is offloaded',
    60_000,
  )
  const left = await count('lighter.jobs')
  await drained(environment, 60_000)
  const grown = ((await daemon.peakMemory()) - idle) / MiB
  daemon.kill('SIGTERM')
  expect(await daemon.ended).toEqual({ code: 0, signal: null })
  expect(left, 'long before the day is caught up with').toBeGreaterThan(2505)
  expect(grown).toBeLessThan(250)
  expect(await count('lighter.failed_jobs')).toBe(0)
  expect(await count(`conversation_messages where metadata ? 'tool_interactions'`)).toBe(0)
  const sample = await column<string>(
    environment.admin,
    'select id::text from conversation_messages order by random() limit 200',
  )
  for (const text of await hydratedMany(environment, sample))
    expect(text).toMatch(/^\{"tool_interactions": \[/)
  expect(await strayArtifacts(environment)).toEqual([])
  expect((await bucketMismatches(environment)).unregistered).toEqual([])
}, 240_000)
