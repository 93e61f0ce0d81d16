// Erase: nothing of the tenant, or of the entity, is left, nothing of anybody else is touched, and a proof tells.
import { randomUUID } from 'node:crypto'
import { pino } from 'pino'
import { afterEach, beforeEach, expect, onTestFinished, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import { createPool } from '../../src/db/pool.ts'
import { runErasure } from '../../src/erase/run.ts'
import type { EraseScope } from '../../src/erase/scope.ts'
import { surveyErasure } from '../../src/erase/survey.ts'
import { asTenantId } from '../../src/ids.ts'
import { type ObjectStore, openStore } from '../../src/store/object-store.ts'
import type { Counts } from '../../src/sweeps/context.ts'
import { takeSweepLock } from '../../src/sweeps/lock.ts'
import { spoilHashes } from '../support/artifacts.ts'
import { artifactCount, type TenantData, writeConversations } from '../support/conversations.ts'
import {
  createSignals,
  drained,
  hydratedMany,
  newConversation,
  rawMetadata,
  startDaemon,
  type TestEnvironment,
  useFreshEnvironment,
} from '../support/environment.ts'
import { bucketMismatches } from '../support/invariants.ts'
import { runCli, startCli } from '../support/process.ts'
import { leaseRows } from '../support/queue.ts'
import { openRawS3 } from '../support/raw-s3.ts'
import { startFaultyStore } from '../support/request-fault.ts'
import { column, errorOf, value } from '../support/sql.ts'
import { age, bucketKeys, runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()
let daemon: Daemon

beforeEach(async () => {
  daemon = await startDaemon(environment)
})
afterEach(async () => {
  await daemon.stop()
})

async function twoTenants(messages = 500): Promise<[TenantData, TenantData]> {
  const [first, second] = await writeConversations(environment, { messages, tenants: 2 })
  if (first === undefined || second === undefined) throw new Error('two tenants are needed')
  return [first, second]
}

async function eraseNow(
  scope: EraseScope,
  options: {
    signal?: AbortSignal
    store?: TestEnvironment['store']
    batchSize?: number
    onProgress?: (counts: Counts) => void
  } = {},
) {
  const pool = createPool(environment.urls.daemon, 4, () => undefined)
  try {
    return await runErasure(scope, {
      pool,
      lockUrl: environment.urls.daemon,
      store: options.store ?? environment.store,
      config: { ...environment.config().sweeps, rate: 1_000_000, batchSize: options.batchSize ?? 500 },
      offload: environment.config().offload,
      log: pino({ level: 'silent' }),
      signal: options.signal ?? new AbortController().signal,
      ...(options.onProgress && { onProgress: options.onProgress }),
    })
  } finally {
    await pool.end()
  }
}

const all = (tenant: TenantData): EraseScope => ({ tenantId: asTenantId(tenant.tenantId), entity: null })

/** What every row of the tenant hydrates to. */
const contents = (tenant: TenantData) => hydratedMany(environment, tenant.rowIds)

async function keysOf(tenantId: string): Promise<string[]> {
  return (await bucketKeys(environment)).filter(key => key.includes(`/tenants/${tenantId}/`))
}

async function tableCounts(tenantId: string) {
  const { rows } = await environment.admin.query(
    `select (select count(*)::int from artifact_refs where tenant_id = $1) as artifacts,
            (select count(*)::int from lighter.objects where tenant_id = $1 and state <> 'deleting') as objects,
            (select count(*)::int from lighter.idempotency_keys where tenant_id = $1) as keys,
            (select count(*)::int from lighter.tenants where tenant_id = $1) as tenants,
            (select count(*)::int from lighter.retention_policies where tenant_id = $1) as policies`,
    [tenantId],
  )
  return rows[0]
}

const nothing = { artifacts: 0, objects: 0, keys: 0, tenants: 0, policies: 0 }

test('a tenant: artifacts, objects, uploads, jobs and settings go, its rows stay, and the other tenant keeps everything', async () => {
  const [gone, stays] = await twoTenants()
  const before = await contents(stays)
  const staysKeys = await keysOf(stays.tenantId)
  const artifacts = await artifactCount(environment, gone.tenantId)
  const key = (name: string) => `${environment.store.prefix}tenants/${gone.tenantId}/attachment/${name}`
  // An upload under way, one that nobody knows, and what is kept beside the artifacts.
  const raw = openRawS3(environment.config().store)
  onTestFinished(() => raw.close())
  const uploadId = await raw.createMultipart(key('parts.bin'))
  await raw.uploadPart(key('parts.bin'), uploadId, 1, Buffer.alloc(6_000_000))
  await environment.store.put(key('unknown.bin'), Buffer.from('x'), { contentType: 'text/plain' })
  await environment.admin.query(
    `insert into lighter.objects (tenant_id, r2_key, kind, content_type, artifact_count, lease_until, upload_id)
     values ($1, $2, 'attachment', 'text/plain', 1, now() + interval '1 hour', $3)`,
    [gone.tenantId, key('parts.bin'), uploadId],
  )
  await environment.admin.query(
    `insert into lighter.tenants (tenant_id, plan) values ($1, 'premium'), ($2, 'premium')`,
    [gone.tenantId, stays.tenantId],
  )
  await environment.admin.query(
    `insert into lighter.retention_policies (tenant_id, keep_days) values ($1, 5), ($2, 5)`,
    [gone.tenantId, stays.tenantId],
  )
  await environment.admin.query(
    `insert into lighter.idempotency_keys (tenant_id, key, fingerprint, locked_until)
     select t, n::text, 'f', now() from unnest($1::uuid[]) t, generate_series(1, 30) n`,
    [[gone.tenantId, stays.tenantId]],
  )
  await environment.admin.query(
    'insert into lighter.when_failures (source_id, row_id, error) select id, $1, $1 from lighter.sources',
    [gone.rowIds[0]],
  )
  await daemon.stop()
  const job = (tenant: TenantData, table: string, columns: string, values: string) =>
    environment.admin.query(
      `insert into ${table} (source_id, row_id${columns}) select id, $1${values} from lighter.sources`,
      [tenant.rowIds[0]],
    )
  for (const tenant of [gone, stays]) {
    await job(tenant, 'lighter.inbox', '', '')
    await job(tenant, 'lighter.waiting', '', '')
    await job(tenant, 'lighter.failed_jobs', ', attempts, enqueued_at, last_error', `, 8, now(), 'x'`)
  }
  // Both of them in one batch, which a daemon is just working on, and each in one of its own.
  const sourceId = await value<number>(environment.admin, 'select id from lighter.sources')
  const firstOf = ({ rowIds }: TenantData) => rowIds[0] ?? ''
  const leases = [
    await leaseRows(environment.admin, sourceId, [firstOf(gone), firstOf(stays)]),
    await leaseRows(environment.admin, sourceId, [firstOf(gone)]),
    await leaseRows(environment.admin, sourceId, [firstOf(stays)]),
  ]

  const survey = await surveyErasure(environment.worker, environment.store.prefix, all(gone))
  expect(survey).toMatchObject({ artifacts, objects_shared: 0, outside_prefix: 0 })
  expect(survey.rows_pointing).toBeGreaterThan(20)
  const pointing = (await contents(gone)).length
  expect(survey.rows_pointing).toBeLessThanOrEqual(pointing)

  const { outcome, counts, proof } = await eraseNow(all(gone), { batchSize: 10 })
  expect(outcome).toBe('done')
  expect(counts).toMatchObject({
    artifacts_purged: artifacts,
    artifacts_erased: artifacts,
    jobs: 4,
    dead_letters: 1,
    idempotency_keys: 30,
    settings: 2,
    objects_unknown: 1,
  })
  expect(proof).toMatchObject({
    complete: true,
    objects_listed: 0,
    artifacts: 0,
    uploads: 0,
    objects_with_bytes: 0,
  })
  expect(await keysOf(gone.tenantId)).toEqual([])
  expect(await tableCounts(gone.tenantId)).toEqual(nothing)
  await expect(raw.uploadPart(key('parts.bin'), uploadId, 2, Buffer.alloc(10))).rejects.toThrow()

  // Rows are as they were, and say that their payload is gone.
  const errors = (await contents(gone)).filter(result => result instanceof Error)
  expect(errors).toHaveLength(survey.rows_pointing)
  const { rows: queue } = await environment.admin.query(
    `select place, row_id from lighter.jobs union all select 'failed', row_id from lighter.failed_jobs order by place`,
  )
  expect(queue).toEqual(
    ['failed', 'inbox', 'lease', 'lease', 'waiting'].map(place => ({ place, row_id: firstOf(stays) })),
  )
  // What was worked on of the erased tenant can not be committed any more, nor what was in a batch with it; others can.
  const held = await column<string>(
    environment.admin,
    'select id from lighter.leases where until is not null',
  )
  expect(held).toEqual([leases[2]?.id])
  expect(await contents(stays)).toEqual(before)
  expect(await keysOf(stays.tenantId)).toEqual(staysKeys)
  expect(await tableCounts(stays.tenantId)).toMatchObject({ keys: 30, tenants: 1, policies: 1 })
  const { rows: record } = await environment.admin.query(
    'select tenant_id, entity_type, requested_by, finished_at is not null as finished, proof from lighter.erasures',
  )
  expect(record).toEqual([
    expect.objectContaining({ tenant_id: gone.tenantId, entity_type: null, finished: true, proof }),
  ])
  expect(record[0].requested_by).not.toBe('')

  // Late writes are deleted by the second pass.
  await environment.store.put(key('parts.bin'), Buffer.from('late'), { contentType: 'text/plain' })
  await age(environment, '1 hour')
  await runNow(environment, 'orphans')
  expect(await keysOf(gone.tenantId)).toEqual([])
  const { rows: objects } = await environment.admin.query(
    'select from lighter.objects where tenant_id = $1',
    [gone.tenantId],
  )
  expect(objects).toEqual([])
  expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
  expect(await column(environment.admin, 'select error from lighter.when_failures')).toEqual([])
})

test('an entity: its bytes leave shared packs at once, and everything else in them is readable', async () => {
  const [tenant, other] = await twoTenants()
  const [entity] = [...tenant.conversations].sort((a, b) => b[1].length - a[1].length)
  if (entity === undefined) throw new Error('no conversation')
  const [conversationId, rowIds] = entity
  const scope: EraseScope = { ...all(tenant), entity: { type: 'conversation', id: conversationId } }
  const others = { ...tenant, rowIds: tenant.rowIds.filter(id => !rowIds.includes(id)) }
  const before = [await contents(others), await contents(other)]
  const { rows: packs } = await environment.admin.query<{ key: string }>(
    `select distinct r2_key as key from artifact_refs where tenant_id = $1 and entity_id = $2`,
    [tenant.tenantId, conversationId],
  )
  const survey = await surveyErasure(environment.worker, environment.store.prefix, scope)
  expect(survey.objects_shared).toBeGreaterThan(0)

  const { counts, proof } = await eraseNow(scope)
  expect(proof).toMatchObject({ complete: true, objects_listed: 0, artifacts: 0, objects_with_bytes: 0 })
  expect(counts).toMatchObject({ artifacts_erased: survey.artifacts, packs_rewritten: survey.objects_shared })
  for (const { key } of packs) expect(await environment.store.head(key)).toBeNull()
  expect([await contents(others), await contents(other)]).toEqual(before)
  expect((await contents({ ...tenant, rowIds })).filter(r => r instanceof Error)).toHaveLength(
    survey.rows_pointing,
  )
  const { rows: left } = await environment.admin.query('select from artifact_refs where entity_id = $1', [
    conversationId,
  ])
  expect(left).toEqual([])
  expect((await runNow(environment, 'verify', { config: { verifySample: 10_000 } })).counts).toMatchObject({
    damaged: 0,
  })
})

/** Messages of two conversations of one tenant, offloaded together. */
async function neighbours(metadata: (n: number) => string) {
  const erased = await newConversation(environment)
  const kept = await newConversation(environment, erased.tenantId)
  const { rows } = await environment.app.query<{ id: string; conversation: string }>(
    `insert into conversation_messages (conversation_id, role, content, metadata)
     select case when o % 2 = 0 then $1::uuid else $2 end, 'assistant', '', m::jsonb
       from unnest($3::text[]) with ordinality u(m, o) returning id, conversation_id as conversation`,
    [erased.conversationId, kept.conversationId, Array.from({ length: 40 }, (_, n) => metadata(n))],
  )
  await drained(environment)
  const scope: EraseScope = {
    tenantId: asTenantId(erased.tenantId),
    entity: { type: 'conversation', id: erased.conversationId },
  }
  const of = ({ conversationId }: { conversationId: string }) =>
    rows.filter(row => row.conversation === conversationId).map(row => row.id)
  return { scope, kept: of(kept), erased: of(erased) }
}

const toolCalls = (n: number) => `{"tool_interactions": [{"n": ${n}}]}`

test('a reader that had looked its payload up before reads it where it is afterwards', async () => {
  const { scope, kept } = await neighbours(toolCalls)
  const expected = await hydratedMany(environment, kept)
  let release = () => {}
  const erased = new Promise<void>(resolve => {
    release = resolve
  })
  let asked = 0
  const slow: ObjectStore = {
    ...environment.store,
    get: async (...get) => {
      asked++
      await erased
      return environment.store.get(...get)
    },
  }
  const reading = hydratedMany({ ...environment, store: slow }, kept)
  await expect.poll(() => asked).toBeGreaterThan(0)
  const { counts, proof } = await eraseNow(scope)
  expect(proof).toMatchObject({ complete: true, objects_listed: 0 })
  expect(counts.packs_rewritten).toBeGreaterThan(0)
  release()
  expect(await reading).toEqual(expected)
})

test('what was moved out of a pack before the erasure leaves that pack too; others keep their grace', async () => {
  // Only what is kept has a trace, which is of another kind.
  const { scope, kept } = await neighbours(n =>
    n % 2 === 0 ? JSON.stringify({ ...JSON.parse(toolCalls(n)), trace: 'x'.repeat(9000) }) : toolCalls(n),
  )
  // Most of what is kept dies, and compaction moves the rest, and all that is erased, of which then nothing tells
  // where it was before.
  await environment.admin.query(
    `update artifact_refs set deleted_at = now() - interval '30 days', deleted_reason = 'deleted'
      where tenant_id = $1 and id in (
        select id from (select id, row_number() over (partition by kind order by id) as n
                          from artifact_refs where tenant_id = $1 and entity_id <> $2) x where n > 3)`,
    [scope.tenantId, scope.entity?.id],
  )
  await runNow(environment, 'retention', { config: { deleteDelayMs: 86_400_000 } })
  await runNow(environment, 'compaction', { config: { compactLiveShare: 0.99 } })
  // Left by a compaction from before there was anything of the entity.
  const earlier = `${environment.store.prefix}tenants/${scope.tenantId}/assistant_message_tool_interactions/2026/01/01/${randomUUID()}.jsonl`
  await environment.store.put(earlier, Buffer.from('{}'), { contentType: 'application/x-ndjson' })
  await environment.admin.query(
    `insert into lighter.objects (tenant_id, r2_key, kind, state, content_type, artifact_count, byte_length, created_at, stored_at, delete_after)
     values ($1, $2, 'assistant_message_tool_interactions', 'deleting', 'application/x-ndjson', 5, 2, now() - interval '2 days',
             now() - interval '2 days', now() + interval '5 days')`,
    [scope.tenantId, earlier],
  )
  const leaving = async () => {
    const { rows } = await environment.admin.query<{ key: string; kind: string; hours: number }>(
      `select r2_key as key, kind, round(extract(epoch from delete_after - now()) / 3600)::int as hours from lighter.objects
        where tenant_id = $1 and state = 'deleting' order by r2_key`,
      [scope.tenantId],
    )
    return rows
  }
  const before = await leaving()
  const expected = before.map(o => ({
    ...o,
    isErased: o.kind.endsWith('tool_interactions') && o.key !== earlier,
  }))
  expect(expected.filter(o => o.isErased).length).toBeGreaterThan(0)
  expect(expected.filter(o => !o.isErased).length).toBeGreaterThan(1)
  const whole = await hydratedMany(environment, kept)

  const { proof, counts } = await eraseNow(scope)
  expect(proof).toMatchObject({ complete: true, objects_listed: 0 })
  const after = new Map((await leaving()).map(o => [o.key, o.hours]))
  for (const { key, hours, isErased } of expected) {
    expect([key, (await environment.store.head(key)) !== null]).toEqual([key, !isErased])
    if (!isErased) expect(after.get(key)).toBe(hours)
  }
  expect(counts.objects_hastened).toBe(
    expected.filter(o => o.isErased).length + (counts.packs_rewritten ?? 0),
  )
  expect(await hydratedMany(environment, kept)).toEqual(whole)
})

/** Of every frame of the tenant what could tell of a payload, a row or an entity: its arrays, as they are. */
async function knownOfFrames(tenantId: string): Promise<string> {
  const known = await column<string>(
    environment.admin,
    `select concat_ws(' ', hashes::text, row_uuids::text, row_texts::text, entities::text) from lighter.frames where tenant_id = $1`,
    [tenantId],
  )
  return known.join('\n')
}

test.each([
  ['one that the application deleted, and one whose row changed before the commit', 'row_id = $2'],
  ['all of them, deleted by the application', 'entity_id = $1'],
  ['all of them, and all others in the pack', 'true'],
])(
  'bytes of an entity that are in packs and are no artifacts leave the bucket with it: %s',
  async (_, deleted) => {
    const signals = createSignals()
    await daemon.stop()
    // So that payloads can be looked for in the bucket.
    environment.env.OFFLOAD_CODEC = 'none'
    daemon = await startDaemon(environment, { signal: signals.signal })
    const text = (n: number) => `payload number ${n}.`
    const rowOf = (n: number) =>
      value<string>(environment.admin, 'select id from conversation_messages where metadata::text like $1', [
        `%${text(n)}%`,
      ])
    const hold = signals.holdAt('before-commit')
    const written = neighbours(n => `{"tool_interactions": [{"text": "${text(n)}"}]}`)
    await hold.reached
    const [changed, another] = [await rowOf(7), await rowOf(13)]
    await environment.app.query(
      `update conversation_messages set metadata = '{"plain": true}' where id = $1`,
      [changed],
    )
    hold.release()
    const { scope, kept, erased } = await written
    const { tenantId, entity } = scope
    expect(erased).toEqual(expect.arrayContaining([changed, another]))
    expect(await column(environment.admin, 'select cardinality(voids) from lighter.frames')).toEqual([1])

    const whole = await hydratedMany(environment, kept)
    const { rows: payloads } = await environment.admin.query<{ row: string; hash: string }>(
      `select p.row_id as row, encode(substr(f.hashes, 32 * p.n::int - 31, 32), 'hex') as hash
         from lighter.frames f cross join lateral unnest(f.row_uuids) with ordinality p(row_id, n) where f.tenant_id = $1`,
      [tenantId],
    )
    expect(payloads).toHaveLength(40)
    const secrets = [
      entity?.id ?? '',
      ...payloads.filter(p => erased.includes(p.row)).flatMap(p => [p.row, p.hash]),
    ]
    expect(secrets).toHaveLength(41)
    const known = await knownOfFrames(tenantId)
    for (const secret of secrets) expect(known).toContain(secret)
    await environment.admin.query(
      `delete from artifact_refs where ${deleted} and $1::uuid is not null and $2::text is not null`,
      [entity?.id, another],
    )

    // Before, what a dry run tells of them; of the tenant, those of its other entities too.
    for (const each of [scope, { tenantId, entity: null }]) {
      const [{ n } = { n: 0 }] = (
        await environment.admin.query<{ n: number }>(
          `select count(*)::int as n
             from lighter.frames f cross join lateral unnest(f.voids) o
            where f.tenant_id = $1 and ($2::uuid is null or f.entities[f.entity_places[o + 1]] = $2)`,
          [tenantId, each.entity?.id ?? null],
        )
      ).rows
      const survey = await surveyErasure(environment.worker, environment.store.prefix, each)
      expect(survey.payloads_of_no_artifact).toBe(n)
      expect(n).toBeGreaterThan(0)
    }
    expect((await eraseNow(scope)).proof).toMatchObject({
      complete: true,
      objects_listed: 0,
      artifacts: 0,
      frames: 0,
      objects_with_bytes: 0,
    })
    const bodies = (await keysOf(tenantId)).map(async key =>
      (await environment.store.get(key)).body.toString(),
    )
    const bucket = (await Promise.all(bodies)).join('')
    for (let n = 1; n < 40; n += 2) expect(bucket).not.toContain(text(n))
    const left = await knownOfFrames(tenantId)
    for (const secret of secrets) expect(left).not.toContain(secret)
    expect(await column(environment.admin, 'select ordinal from lighter.frame_exceptions')).toEqual([])
    if (deleted === 'true') return
    for (let n = 0; n < 40; n += 2) expect(bucket).toContain(text(n))
    for (const { row, hash } of payloads.filter(p => kept.includes(p.row))) {
      expect(left).toContain(row)
      expect(left).toContain(hash)
    }
    expect(await hydratedMany(environment, kept)).toEqual(whole)
  },
)

test('a pack in which others have something damaged stays as it is, and the proof says so', async () => {
  const [tenant] = await twoTenants()
  const [entity] = [...tenant.conversations].sort((a, b) => b[1].length - a[1].length)
  const scope: EraseScope = { ...all(tenant), entity: { type: 'conversation', id: entity?.[0] ?? '' } }
  const neighbours = await spoilHashes(
    environment.admin,
    `a.tenant_id = $1 and a.entity_id <> $2
      and a.r2_key in (select r2_key from artifact_refs where entity_id = $2)`,
    [tenant.tenantId, entity?.[0]],
  )
  expect(neighbours.length).toBeGreaterThan(0)
  const { counts, proof } = await eraseNow(scope)
  expect(counts.packs_not_rewritten).toBeGreaterThan(0)
  expect(proof).toMatchObject({ complete: false, objects_with_bytes: counts.packs_not_rewritten })
  expect(proof?.artifacts).toBeGreaterThan(0)
})

test('a legal hold refuses, on the tenant and on any of its entities, and nothing is done', async () => {
  const [tenant] = await twoTenants(200)
  const [conversationId] = [...tenant.conversations.keys()]
  const entity = { type: 'conversation', id: conversationId ?? '' }
  const keys = await keysOf(tenant.tenantId)
  const before = await contents(tenant)
  await environment.admin.query(
    `insert into lighter.legal_holds (tenant_id, entity_type, entity_id, reason) values ($1, 'conversation', $2, 'case 7')`,
    [tenant.tenantId, conversationId],
  )
  expect(await errorOf(eraseNow(all(tenant)))).toMatchObject({
    code: 'legal_hold',
    message: expect.stringContaining('case 7'),
  })
  expect(await errorOf(eraseNow({ ...all(tenant), entity }))).toMatchObject({ code: 'legal_hold' })
  await environment.admin.query('delete from lighter.legal_holds')
  await environment.admin.query('insert into lighter.tenants (tenant_id, legal_hold) values ($1, true)', [
    tenant.tenantId,
  ])
  const refused = await runCli(['erase', '--tenant', tenant.tenantId, '--yes'], { env: environment.env })
  expect(refused.code).toBe(1)
  expect(refused.stderr).toContain('legal hold')
  expect(await keysOf(tenant.tenantId)).toEqual(keys)
  expect(await contents(tenant)).toEqual(before)
  expect((await environment.admin.query('select from lighter.erasures')).rowCount).toBe(0)
})

test('stopped after any batch, or broken off by an outage, the next run goes on and the record is one', async () => {
  const [tenant, other] = await twoTenants()
  const before = await contents(other)
  const artifacts = await artifactCount(environment, tenant.tenantId)
  for (const stopAt of [3, 6, 9]) {
    const stop = new AbortController()
    let batches = 0
    const { outcome } = await eraseNow(all(tenant), {
      batchSize: 7,
      signal: stop.signal,
      onProgress: () => {
        if (++batches === stopAt) stop.abort()
      },
    })
    expect(outcome).toBe('stopped')
  }
  const config = environment.config().store
  const faulty = await startFaultyStore(config.endpoint)
  const store = openStore({ ...config, endpoint: faulty.endpoint, timeoutMs: 2000 })
  faulty.fault = (method, path) => (method === 'POST' && path.includes('delete') ? 503 : null)
  await expect(eraseNow(all(tenant), { store })).rejects.toMatchObject({ code: 'store_unavailable' })
  store.close()
  await faulty.close()
  expect((await keysOf(tenant.tenantId)).length).toBeGreaterThan(0)

  const last = await eraseNow(all(tenant))
  expect(last.proof).toMatchObject({ complete: true, objects_listed: 0 })
  expect(last.counts).toMatchObject({ artifacts_purged: artifacts, artifacts_erased: artifacts })
  expect(await keysOf(tenant.tenantId)).toEqual([])
  expect((await environment.admin.query('select from lighter.erasures')).rowCount).toBe(1)
  expect(await contents(other)).toEqual(before)
})

test('killed in the middle, as a process, and run again', async () => {
  const [tenant, other] = await twoTenants()
  const before = await contents(other)
  const env = { ...environment.env, SWEEP_BATCH_SIZE: '1', SWEEP_RATE: '50' }
  const args = ['erase', '--tenant', tenant.tenantId, '--yes', '--json']
  const running = startCli(args, { env })
  await expect
    .poll(
      async () =>
        (
          await environment.admin.query(
            'select count(*)::int as n from artifact_refs where purged_at is not null',
          )
        ).rows[0]?.n,
      { timeout: 30_000, interval: 20 },
    )
    .toBeGreaterThan(3)
  running.signal('SIGKILL')
  await running.ended
  const finished = await runCli(args, { env: environment.env })
  expect(JSON.parse(finished.stdout)).toMatchObject({ outcome: 'done', proof: { complete: true } })
  expect(finished.code).toBe(0)
  expect(await keysOf(tenant.tenantId)).toEqual([])
  expect(await contents(other)).toEqual(before)
})

test('it must be asked for, tells what it would do, and waits for a compaction', async () => {
  const [tenant] = await twoTenants(200)
  const keys = await keysOf(tenant.tenantId)
  const env = environment.env
  const unasked = await runCli(['erase', '--tenant', tenant.tenantId], { env })
  expect(unasked.code).toBe(1)
  expect(unasked.stderr).toMatch(/rows?\(s\)? of the application hold pointers.*no longer hydrate/)
  const dry = await runCli(['erase', '--tenant', tenant.tenantId, '--dry-run', '--json'], { env })
  expect(JSON.parse(dry.stdout)).toMatchObject({
    dry_run: true,
    would_erase: { artifacts: await artifactCount(environment, tenant.tenantId) },
  })
  const { lock } = await takeSweepLock(environment.urls.daemon, 'compaction')
  expect(await eraseNow(all(tenant))).toMatchObject({ outcome: 'busy', by: 'compaction' })
  await lock?.release()
  expect(await keysOf(tenant.tenantId)).toEqual(keys)
})

test('what is written meanwhile, or lies outside the prefix, is not passed over: no proof is claimed', async () => {
  const [tenant] = await twoTenants(200)
  const outside = `elsewhere/tenants/${tenant.tenantId}/chat_transcript/b.json`
  await environment.admin.query(
    `insert into artifact_refs (tenant_id, kind, r2_key) values ($1, 'chat_transcript', $2)`,
    [tenant.tenantId, outside],
  )
  const late = `${environment.store.prefix}tenants/${tenant.tenantId}/agent_trace/${randomUUID()}.json`
  let written = false
  const { outcome, proof } = await eraseNow(all(tenant), {
    // A daemon that still runs registers and uploads when the objects were already taken.
    onProgress: counts => {
      if (written || counts.artifacts_erased === undefined) return
      written = true
      void environment.admin.query(
        `insert into lighter.objects (tenant_id, r2_key, kind, content_type, artifact_count, lease_until)
         values ($1, $2, 'agent_trace', 'application/json', 1, now() + interval '1 hour')`,
        [tenant.tenantId, late],
      )
    },
  })
  expect(written).toBe(true)
  expect(outcome).toBe('done')
  expect(proof).toMatchObject({ complete: false, artifacts: 1, uploads: 1 })
  expect(await rawMetadata(environment, tenant.rowIds[0] ?? '')).not.toBeUndefined()
})

test('what is on record under a former prefix is not passed over either', async () => {
  const { scope } = await neighbours(toolCalls)
  const elsewhere = (state: string) =>
    environment.admin.query(
      `insert into lighter.objects (tenant_id, r2_key, kind, state, content_type, artifact_count, stored_at, delete_after)
       values ($1, 'former/tenants/' || $1::uuid || '/agent_trace/2026/01/01/' || gen_random_uuid() || '.jsonl', 'agent_trace', $2,
               'application/x-ndjson', 3, now(), case when $2 = 'deleting' then now() end)`,
      [scope.tenantId, state],
    )
  await elsewhere('stored')
  // Whose artifacts are in it is known, and of which entity.
  expect((await eraseNow(scope)).proof).toMatchObject({ complete: true, objects_elsewhere: 0 })
  await elsewhere('deleting')
  expect((await eraseNow(scope)).proof).toMatchObject({ complete: false, objects_elsewhere: 1 })
  const whole = { ...scope, entity: null }
  expect((await eraseNow(whole)).proof).toMatchObject({ complete: false, objects_elsewhere: 2 })
  await environment.admin.query(`delete from lighter.objects where r2_key like 'former/%'`)
  expect((await eraseNow(whole)).proof).toMatchObject({ complete: true, objects_elsewhere: 0 })
})

test('a copy of the database erases nothing', async () => {
  const [tenant] = await twoTenants(200)
  const keys = await keysOf(tenant.tenantId)
  await environment.admin.query('update lighter.installation set owner_epoch = owner_epoch - 1')
  expect(await errorOf(eraseNow(all(tenant)))).toMatchObject({ code: 'stale_copy' })
  expect(await keysOf(tenant.tenantId)).toEqual(keys)
  expect(
    (await environment.admin.query('select from artifact_refs where purged_at is not null')).rowCount,
  ).toBe(0)
})
