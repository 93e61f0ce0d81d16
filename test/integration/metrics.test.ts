// What /metrics says agrees with what was done, and is said in time.
import { randomUUID } from 'node:crypto'
import { pino } from 'pino'
import { afterEach, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import { createPool } from '../../src/db/pool.ts'
import type { SignalPoint } from '../../src/offload/signals.ts'
import { createMetrics } from '../../src/telemetry/metrics.ts'
import { writeConversations } from '../support/conversations.ts'
import {
  createSignals,
  drained,
  insertMessage,
  newConversation,
  startDaemon,
  until,
  useFreshEnvironment,
} from '../support/environment.ts'
import { startFaultyStore } from '../support/request-fault.ts'
import { byLabel, samplesOf, scrape, serviceKey } from '../support/scrape.ts'
import { value } from '../support/sql.ts'
import { startTcpProxy } from '../support/tcp-proxy.ts'

const environment = useFreshEnvironment()
let daemon: Daemon | undefined
afterEach(async () => {
  await daemon?.stop()
  daemon = undefined
})

async function start(
  env: Record<string, string> = {},
  options: Omit<Parameters<typeof startDaemon>[1], 'env'> = {},
): Promise<Daemon> {
  daemon = await startDaemon(environment, {
    api: true,
    ...options,
    env: { SERVICE_API_KEY: serviceKey, ...env },
  })
  return daemon
}

/** The figures of the database are looked up every 10 s at most. */
async function scraped(condition: (samples: Awaited<ReturnType<typeof scrape>>) => boolean, what: string) {
  let samples = await scrape(daemon?.address() ?? null)
  await until(
    async () => {
      samples = await scrape(daemon?.address() ?? null)
      return condition(samples)
    },
    what,
    40_000,
  )
  return samples
}

/** When the queue is empty the daemon may not have heard of it yet. */
async function settled() {
  await drained(environment)
  return scraped(
    found => found.get('lighter_in_flight_batches') === 0 && found.get('lighter_in_flight_large_rows') === 0,
    'nothing is under way',
  )
}

const small = '{"model": "m", "tool_interactions": ["small"]}'
const document = (bytes: number) => `{"document": "${'d'.repeat(bytes)}"}`

test('rows, artifacts, bytes, objects and latencies are those of the database', async () => {
  await start({ STREAM_THRESHOLD_BYTES: '65536' })
  await writeConversations(environment, { messages: 1500, tenants: 4 })
  const { conversationId } = await newConversation(environment)
  for (const bytes of [100_000, 300_000]) await insertMessage(environment, conversationId, document(bytes))

  const samples = await settled()
  const { rows } = await environment.admin.query<Record<string, string>>(
    `select a.kind, count(*) as artifacts, sum(a.size_bytes) as payload,
            (select sum(o.byte_length) from lighter.objects o where o.kind = a.kind and o.state = 'stored') as stored,
            (select count(*) from lighter.objects o where o.kind = a.kind and o.state = 'stored') as objects
       from artifact_refs a group by a.kind`,
  )
  expect(rows.length).toBe(2)
  const inDatabase = (column: string) =>
    Object.fromEntries(rows.map(row => [row.kind ?? '', Number(row[column])]))
  expect(byLabel(samples, 'lighter_artifacts_total', 'kind')).toEqual(inDatabase('artifacts'))
  expect(byLabel(samples, 'lighter_payload_bytes_total', 'kind')).toEqual(inDatabase('payload'))
  expect(byLabel(samples, 'lighter_object_bytes_total', 'kind')).toEqual(inDatabase('stored'))
  expect(byLabel(samples, 'lighter_objects_total', 'kind')).toEqual(inDatabase('objects'))

  const outcomes = byLabel(samples, 'lighter_rows_total', 'outcome')
  const offloaded = await value<string>(
    environment.admin,
    `select count(*) from conversation_messages
      where metadata ?| array['tool_interactions_ref', 'artifact_metadata_ref']`,
  )
  expect(outcomes.offloaded).toBe(Number(offloaded))
  expect(outcomes).toMatchObject({ dead_letter: 0, retried: 0, gone: 0 })
  // Whatever was claimed has one outcome: those put back were claimed again.
  expect(samples.get('lighter_rows_claimed_total')).toBe(
    Object.values(outcomes).reduce((sum, count) => sum + count, 0),
  )
  expect(samples.get('lighter_offload_latency_seconds_count{queue="live"}')).toBe(Number(offloaded))
  // The buckets are those of the report in SQL, all below 2^17 ms.
  const slower = await value<string>(
    environment.admin,
    `select coalesce(sum(jobs), 0) from (select bucket, jobs from lighter.latency_changes
       union all select bucket, jobs from lighter.latency_hours) l where bucket > 4 * 7`,
  )
  expect(samples.get('lighter_offload_latency_seconds_bucket{le="0.128",queue="live"}')).toBe(
    Number(offloaded) - Number(slower),
  )

  const steps = new Map(Object.entries(byLabel(samples, 'lighter_batch_step_duration_seconds_count', 'step')))
  expect(steps.get('stream')).toBe(2)
  for (const step of ['claim', 'plan', 'pack', 'register', 'upload', 'commit'])
    expect(steps.get(step), step).toBeGreaterThan(0)
  expect(samples.get('lighter_commits_total')).toBe(steps.get('commit'))
  for (const name of ['bytes', 'batches', 'large_rows'])
    expect(samples.get(`lighter_in_flight_${name}`)).toBe(0)

  const puts = samples.get('lighter_store_requests_total{operation="PutObject",outcome="ok"}') ?? 0
  // One of them is the owner object's.
  expect(puts).toBe(Object.values(inDatabase('objects')).reduce((sum, count) => sum + count, 1))
  expect(byLabel(samples, 'lighter_pool_connections', 'pool')).toMatchObject({ metrics: 1 })
  expect(samples.get('lighter_pool_size{pool="worker"}')).toBe(10)
  expect([...samples.keys()].filter(series => /tenant/.test(series))).toEqual([])
  for (const series of samples.keys()) expect(series).not.toMatch(/[0-9a-f]{8}-[0-9a-f]{4}-/)
})

test('what was committed counts although the batch fails right after', async () => {
  let failures = 0
  await start(
    {},
    {
      signal: (point: SignalPoint) => {
        if (point === 'after-commit' && failures++ === 0) throw new Error('as told')
      },
    },
  )
  const { conversationId } = await newConversation(environment)
  await insertMessage(environment, conversationId, small)
  await until(() => failures > 0, 'a batch has failed')
  const samples = await settled()
  expect(byLabel(samples, 'lighter_rows_total', 'outcome').offloaded).toBe(1)
  expect(byLabel(samples, 'lighter_artifacts_total', 'kind')).toEqual({
    assistant_message_tool_interactions: 1,
  })
})

test('a batch that is committed in parts counts each object once, and the row that is refused', async () => {
  await environment.admin.query(`
    create function refuse() returns trigger language plpgsql as $$ begin raise 'as told'; end $$;
    create trigger refuse before update on conversation_messages for each row when (old.content = 'refused')
      execute function refuse();
    alter table conversation_messages enable always trigger refuse`)
  await environment.admin.query('update lighter.sources set paused = true')
  const { conversationId } = await newConversation(environment)
  await environment.app.query(
    `insert into conversation_messages (conversation_id, role, content, metadata)
     select $1, 'assistant', case i when 3 then 'refused' else '' end, $2 from generate_series(1, 8) i`,
    [conversationId, small],
  )
  await environment.admin.query('update lighter.sources set paused = false')
  await start({ OFFLOAD_MAX_ATTEMPTS: '1' })
  const samples = await settled()
  const stored = await value<string>(
    environment.admin,
    `select sum(byte_length) from lighter.objects where state = 'stored'`,
  )
  expect(samples.get('lighter_commits_total')).toBeGreaterThan(1)
  const kind = '{kind="assistant_message_tool_interactions"}'
  expect(samples.get(`lighter_objects_total${kind}`)).toBe(1)
  expect(samples.get(`lighter_object_bytes_total${kind}`)).toBe(Number(stored))
  expect(samples.get(`lighter_artifacts_total${kind}`)).toBe(7)
  expect(byLabel(samples, 'lighter_rows_total', 'outcome')).toMatchObject({
    offloaded: 7,
    retried: 0,
    dead_letter: 1,
  })
})

test('a row that changes meanwhile, one that is deleted and one that is given up', async () => {
  const signals = createSignals()
  await start(
    { MAX_PAYLOAD_BYTES: String(1024 * 1024), OFFLOAD_MAX_ATTEMPTS: '2' },
    { signal: signals.signal },
  )
  const { conversationId } = await newConversation(environment)
  const hold = signals.holdAt('before-commit')
  const changed = await insertMessage(environment, conversationId, small)
  await hold.reached
  await environment.app.query('update conversation_messages set metadata = $2 where id = $1', [
    changed,
    '{"tool_interactions": ["other"]}',
  ])
  hold.release()
  await drained(environment)

  const planned = signals.holdAt('after-claim')
  const deleted = await insertMessage(environment, conversationId, small)
  await planned.reached
  await environment.app.query('delete from conversation_messages where id = $1', [deleted])
  planned.release()
  await drained(environment)

  await insertMessage(environment, conversationId, document(1_100_000))
  await drained(environment)

  const samples = await scraped(
    found => (byLabel(found, 'lighter_queue_failed_jobs', 'source').conversation_messages ?? 0) > 0,
    'the dead letter is in the metrics',
  )
  const outcomes = byLabel(samples, 'lighter_rows_total', 'outcome')
  expect(outcomes).toEqual({
    offloaded: 1,
    nothing: expect.any(Number),
    gone: 1,
    changed: expect.any(Number),
    // What is too large would be so again.
    retried: 0,
    put_back: 0,
    waiting: 0,
    dead_letter: 1,
  })
  // The write in the middle has queued the row beside what had changed by it: the one waits for the other, finds it done, or
  // at work on it.
  expect(outcomes.changed).toBeGreaterThanOrEqual(1)
})

test('a queue that waits: depth, age, and what is paused', async () => {
  await environment.admin.query('update lighter.sources set paused = true')
  const { conversationId } = await newConversation(environment)
  for (let i = 0; i < 3; i++) await insertMessage(environment, conversationId, small)
  await environment.admin.query(`update lighter.inbox set enqueued_at = now() - interval '1 hour'`)
  await start()
  const samples = await scraped(found => (found.get('lighter_database_up') ?? 0) === 1, 'it has looked')
  const source = '{source="conversation_messages"}'
  expect(samples.get(`lighter_queue_jobs${source}`)).toBe(3)
  expect(samples.get(`lighter_queue_due_jobs${source}`)).toBe(3)
  expect(samples.get(`lighter_queue_paused${source}`)).toBe(1)
  expect(samples.get(`lighter_queue_oldest_job_age_seconds${source}`)).toBeGreaterThanOrEqual(3600)
  expect(samples.get('lighter_damaged_artifacts')).toBe(0)
})

test('sweeps: when they ran, how they ended, what they counted; damage', async () => {
  await environment.admin.query(
    `insert into lighter.sweep_runs (sweep, started_at, finished_at, heartbeat_at, counts, error) values
       ('orphans', now() - interval '2 hours', now() - interval '119 minutes', now(), '{"orphans": 7}', null),
       ('orphans', now() - interval '1 hour', now() - interval '59 minutes', now(), '{"orphans": 1}', 'as told')`,
  )
  await environment.admin.query(
    `insert into artifact_refs (tenant_id, kind, r2_key, damaged_at, damage) values ($1, 'agent_trace', 'x', now(), 'gone')`,
    [randomUUID()],
  )
  await start({ SWEEP_VERIFY_CRON: 'off', SWEEP_ORPHANS_CRON: '0 0 1 1 *' })
  const samples = await scraped(found => found.get('lighter_database_up') === 1, 'it has looked')
  const ago = (series: string) => Date.now() / 1000 - (samples.get(series) ?? Number.NaN)
  const sweep = '{sweep="orphans"}'
  expect(ago(`lighter_sweep_last_run_timestamp_seconds${sweep}`)).toBeCloseTo(3600, -2)
  expect(ago(`lighter_sweep_last_success_timestamp_seconds${sweep}`)).toBeCloseTo(119 * 60, -2)
  expect(samples.get(`lighter_sweep_last_duration_seconds${sweep}`)).toBeCloseTo(60, 0)
  expect(samples.get('lighter_sweep_last_outcome{sweep="orphans",outcome="failed"}')).toBe(1)
  expect(samples.get('lighter_sweep_last_outcome{sweep="orphans",outcome="done"}')).toBe(0)
  expect(samples.get('lighter_sweep_last_count{sweep="orphans",count="orphans"}')).toBe(1)
  expect(samples.has('lighter_sweep_last_success_timestamp_seconds{sweep="verify"}')).toBe(false)
  // One that has never run has had since the installation to do so.
  expect(samples.has('lighter_sweep_last_run_timestamp_seconds{sweep="retention"}')).toBe(false)
  expect(ago('lighter_sweep_last_success_timestamp_seconds{sweep="retention"}')).toBeLessThan(86_400)
  expect(samples.get('lighter_damaged_artifacts')).toBe(1)
})

test('a store in trouble: refusals, retries, the circuit; and all clear again', async () => {
  const store = await startFaultyStore(environment.env.R2_ENDPOINT ?? '')
  try {
    await start({ R2_ENDPOINT: store.endpoint })
    const { conversationId } = await newConversation(environment)
    let refused = 0
    store.fault = method => {
      if (method !== 'PUT') return null
      refused++
      return 503
    }
    await insertMessage(environment, conversationId, small)
    await scraped(found => found.get('lighter_store_circuit_open') === 1, 'the circuit is open')
    store.fault = () => null
    await drained(environment)
    const samples = await scraped(
      found => found.get('lighter_store_circuit_open') === 0,
      'the circuit is closed',
    )
    expect(samples.get('lighter_store_circuit_opened_total')).toBe(1)
    expect(samples.get('lighter_store_requests_total{operation="PutObject",outcome="throttled"}')).toBe(
      refused,
    )
    expect(samples.get('lighter_store_retries_total{operation="PutObject"}')).toBeGreaterThanOrEqual(3)
    const outcomes = byLabel(samples, 'lighter_rows_total', 'outcome')
    expect(outcomes).toMatchObject({ offloaded: 1, retried: 0, dead_letter: 0 })
    expect(outcomes.put_back).toBeGreaterThanOrEqual(1)
  } finally {
    await store.close()
  }
})

test('a database that does not answer keeps no scrape waiting', async () => {
  const proxy = await startTcpProxy(environment.urls.daemon)
  proxy.blackHole()
  const metrics = createMetrics()
  const pool = createPool(proxy.through(environment.urls.daemon), 1, () => undefined)
  try {
    metrics.database.watch({ pool, sweeps: [], log: pino({ level: 'silent' }) })
    for (let i = 0; i < 3; i++) {
      const samples = samplesOf(await metrics.expose())
      expect(samples.get('lighter_database_up')).toBe(0)
      expect(samples.has('lighter_damaged_artifacts')).toBe(false)
      expect(samples.get('lighter_rows_claimed_total')).toBe(0)
    }
    // All three were answered while the first look still waits.
    expect([pool.totalCount, pool.idleCount, pool.waitingCount]).toEqual([1, 0, 0])
  } finally {
    metrics.stop()
    proxy.sever()
    await pool.end()
  }
})

test('figures that can not be renewed stay as they were for a while, and are renewed when they can be', async () => {
  const proxy = await startTcpProxy(environment.urls.daemon)
  await start({
    DATABASE_URL: proxy.through(environment.urls.daemon),
    LISTEN_DATABASE_URL: environment.urls.daemon,
    SHUTDOWN_TIMEOUT_MS: '100',
  })
  await scraped(found => found.get('lighter_database_up') === 1, 'it has looked')
  proxy.blackHole()
  const late = await scraped(found => found.get('lighter_database_up') === 0, 'it says that it can not look')
  expect(late.get('lighter_damaged_artifacts')).toBe(0)
  await proxy.recover()
  await scraped(found => found.get('lighter_database_up') === 1, 'it has looked again')
})

test('many scrapes at once, and again soon after, are one look', async () => {
  const metrics = createMetrics()
  let looks = 0
  const pool = createPool(environment.urls.daemon, 1, () => undefined)
  pool.on('acquire', () => looks++)
  try {
    metrics.database.watch({ pool, sweeps: [], log: pino({ level: 'silent' }) })
    await Promise.all(Array.from({ length: 30 }, () => metrics.expose()))
    await metrics.expose()
    expect(samplesOf(await metrics.expose()).get('lighter_database_up')).toBe(1)
    expect(looks).toBe(1)
  } finally {
    metrics.stop()
    await pool.end()
  }
})

test('tenants have metrics only where they are asked for, and only so many', async () => {
  await start({ METRICS_TENANTS: '2' })
  const tenants = Array.from({ length: 4 }, () => randomUUID())
  for (const tenantId of tenants) {
    const { conversationId } = await newConversation(environment, tenantId)
    await insertMessage(environment, conversationId, small)
    await drained(environment)
  }
  const samples = await settled()
  const [first = '', second = ''] = tenants
  expect(byLabel(samples, 'lighter_tenant_artifacts_total', 'tenant')).toEqual({
    [first]: 1,
    [second]: 1,
    other: 2,
  })
  const bytes = byLabel(samples, 'lighter_tenant_payload_bytes_total', 'tenant')
  expect(bytes.other).toBe(2 * (bytes[first] ?? 0))
})
