// Verify: damage is found, put on record, and taken off it again; an outage is not damage.
import { randomUUID } from 'node:crypto'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import { createPool } from '../../src/db/pool.ts'
import { asTenantId } from '../../src/ids.ts'
import { openStore } from '../../src/store/object-store.ts'
import type { Counts } from '../../src/sweeps/context.ts'
import { type DamagedArtifact, sweepVerify, type VerifyOptions } from '../../src/sweeps/verify.ts'
import { sampleArtifacts } from '../../src/sweeps/verify-choose.ts'
import { spoilHashes } from '../support/artifacts.ts'
import { artifactCount, type TenantData, writeConversations } from '../support/conversations.ts'
import {
  drained,
  insertMessage,
  newConversation,
  startDaemon,
  useFreshEnvironment,
} from '../support/environment.ts'
import { runCli } from '../support/process.ts'
import { startFaultyStore } from '../support/request-fault.ts'
import { value } from '../support/sql.ts'
import { runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()
let daemon: Daemon

beforeEach(async () => {
  daemon = await startDaemon(environment)
})
afterEach(async () => {
  await daemon.stop()
})

/** Runs the sweep over everything; `stopAfter` batches it is stopped. */
async function verify(
  options: Partial<VerifyOptions> & { stopAfter?: number; dryRun?: boolean; batchSize?: number } = {},
) {
  const damaged: DamagedArtifact[] = []
  const stop = new AbortController()
  let batches = 0
  const { outcome, counts } = await runNow(environment, 'verify', {
    config: { batchSize: options.batchSize ?? 500 },
    dryRun: options.dryRun ?? false,
    signal: stop.signal,
    sweep: context =>
      sweepVerify(
        {
          ...context,
          onProgress: now => {
            context.onProgress(now)
            if (++batches === options.stopAfter) stop.abort()
          },
        },
        { all: true, tenantId: null, restart: false, onDamaged: found => damaged.push(found), ...options },
      ),
  })
  return { outcome, counts, damaged }
}

/** The place of each artifact of a tenant, most shared objects first. */
async function placesOf(tenant: TenantData) {
  const { rows } = await environment.admin.query<{
    id: string
    key: string
    byte_offset: string | null
    byte_length: string | null
  }>(
    `select id, r2_key as key, byte_offset, byte_length from artifact_refs where tenant_id = $1
      order by count(*) over (partition by r2_key) desc, r2_key, byte_offset, frame_offset`,
    [tenant.tenantId],
  )
  return rows
}

const damagedIds = async () => {
  const { rows } = await environment.worker.query<{ id: string; damage: string }>(
    'select id, damage from lighter.damaged_artifacts order by id',
  )
  return rows
}

test('everything is read back; a changed byte, a missing object and a foreign key are found, and what is mended is cleared', async () => {
  const [first, second] = await writeConversations(environment, { messages: 500, tenants: 2 })
  if (first === undefined || second === undefined) throw new Error('two tenants are needed')
  const all =
    (await artifactCount(environment, first.tenantId)) + (await artifactCount(environment, second.tenantId))
  expect(all).toBeGreaterThan(100)
  expect((await verify()).counts).toMatchObject({ checked: all, damaged: 0, unread: 0 })

  // A byte in the middle of one frame: all artifacts of the frame, and no other.
  const [victim] = await placesOf(first)
  if (victim === undefined) throw new Error('no artifact')
  const { body: whole } = await environment.store.get(victim.key)
  const middle = Number(victim.byte_offset) + Math.floor(Number(victim.byte_length) / 2)
  const broken = Buffer.from(whole)
  broken[middle] = (broken[middle] ?? 0) ^ 0xff
  await environment.store.put(victim.key, broken, { contentType: 'application/x-ndjson' })
  const { rows: inFrame } = await environment.admin.query<{ id: string }>(
    'select id from artifact_refs where r2_key = $1 and byte_offset = $2 order by id',
    [victim.key, victim.byte_offset],
  )
  // An object that is gone, of the other tenant.
  const [lost] = await placesOf(second)
  if (lost === undefined) throw new Error('no artifact')
  const { body: kept } = await environment.store.get(lost.key)
  await environment.store.delete([lost.key])
  const { rows: inLost } = await environment.admin.query<{ id: string }>(
    'select id from artifact_refs where r2_key = $1',
    [lost.key],
  )
  // A row that points to another tenant's object.
  const { rows: foreign } = await environment.admin.query<{ id: string }>(
    `insert into artifact_refs (tenant_id, kind, r2_key, size_bytes, sha256) values ($1, 'agent_trace', $2, 2, 'x') returning id`,
    [second.tenantId, `${environment.store.prefix}tenants/${first.tenantId}/agent_trace/x.json`],
  )

  const dry = await verify({ dryRun: true })
  expect(dry.counts.damaged).toBe(inFrame.length + inLost.length + 1)
  expect(await damagedIds()).toEqual([])

  const found = await verify()
  expect(found.counts.damaged).toBe(inFrame.length + inLost.length + 1)
  const byId = new Map((await damagedIds()).map(d => [d.id, d.damage]))
  expect(new Set(byId.keys())).toEqual(new Set([...inFrame, ...inLost, ...foreign].map(r => r.id)))
  for (const { id } of inFrame) expect(byId.get(id)).toMatch(/^artifact_corrupt/)
  for (const { id } of inLost) expect(byId.get(id)).toMatch(/^artifact_object_missing/)
  expect(byId.get(foreign[0]?.id ?? '')).toMatch(/^artifact_foreign_key/)

  // Only the one tenant's.
  expect((await verify({ tenantId: asTenantId(first.tenantId) })).counts).toMatchObject({
    damaged: inFrame.length,
    checked: await artifactCount(environment, first.tenantId),
  })

  await environment.store.put(victim.key, whole, { contentType: 'application/x-ndjson' })
  await environment.store.put(lost.key, kept, { contentType: 'application/x-ndjson' })
  expect((await verify()).counts).toMatchObject({ damaged: 1, healed: inFrame.length + inLost.length })
  expect((await damagedIds()).map(d => d.id)).toEqual(foreign.map(r => r.id))
})

test('a pass that is interrupted goes on where it was and reports the whole; --restart begins anew', async () => {
  const [tenant] = await writeConversations(environment, { messages: 600, tenants: 1 })
  if (tenant === undefined) throw new Error('no tenant')
  const all = await artifactCount(environment, tenant.tenantId)
  const spoilt = await spoilHashes(
    environment.admin,
    'a.id = (select id from artifact_refs order by tenant_id, id limit 1)',
  )
  const first = await verify({ batchSize: 20, stopAfter: 2 })
  expect(first).toMatchObject({ outcome: 'stopped', counts: { damaged: 1 } })
  // Of a row that changed while it was offloaded nothing is in its frame, and a batch has so many fewer.
  expect(first.counts.checked).toBeGreaterThan(20)
  expect(first.counts.checked).toBeLessThanOrEqual(40)
  // What was seen before is not read again, but is part of the outcome.
  const second = await verify({ batchSize: 20 })
  expect(second).toMatchObject({ outcome: 'done', counts: { checked: all, damaged: 1 } })
  expect(second.damaged.map(d => d.id)).toEqual(spoilt)
  expect((await environment.admin.query('select from lighter.sweep_cursors')).rowCount).toBe(0)

  await verify({ batchSize: 20, stopAfter: 1 })
  const again = await verify({ batchSize: 20, stopAfter: 1, restart: true })
  expect(again.counts.checked).toBeGreaterThan(0)
  expect(again.counts.checked).toBeLessThanOrEqual(20)
})

test('when the store is down nothing is marked, and the pass goes on from there when it is back', async () => {
  const [tenant] = await writeConversations(environment, { messages: 200, tenants: 1 })
  if (tenant === undefined) throw new Error('no tenant')
  const { store: config } = environment.config()
  const faulty = await startFaultyStore(config.endpoint)
  const store = openStore({ ...config, endpoint: faulty.endpoint, timeoutMs: 2000 })
  let reads = 0
  // A few reads go through, then every answer is an error or none.
  faulty.fault = () => (++reads > 8 ? (reads % 2 === 0 ? 503 : 'drop') : null)
  const run = () =>
    runNow(environment, 'verify', {
      config: { batchSize: 10 },
      sweep: context =>
        sweepVerify(
          { ...context, store },
          { all: true, tenantId: null, restart: false, onDamaged: () => undefined },
        ),
    })
  try {
    await expect(run()).rejects.toMatchObject({ code: 'store_unavailable' })
    expect(await damagedIds()).toEqual([])
    const { rows } = await environment.admin.query<{ counts: Counts }>(
      'select counts from lighter.sweep_cursors',
    )
    expect(rows[0]?.counts.checked).toBeGreaterThan(0)
    faulty.fault = () => null
    expect((await run()).counts).toMatchObject({
      checked: await artifactCount(environment, tenant.tenantId),
      damaged: 0,
      unread: 0,
    })
  } finally {
    store.close()
    await faulty.close()
  }
})

test('in a bucket that is not ours nothing is said to be missing', async () => {
  const [tenant] = await writeConversations(environment, { messages: 60, tenants: 1 })
  expect(tenant).toBeDefined()
  const store = openStore({ ...environment.config().store, prefix: `${environment.store.prefix}elsewhere/` })
  await expect(
    runNow(environment, 'verify', { sweep: context => sweepVerify({ ...context, store }) }),
  ).rejects.toMatchObject({ code: 'owner_object_missing' })
  store.close()
  expect(await damagedIds()).toEqual([])
})

test('the scheduled sample is random, of the size that was asked for, and leaves purged artifacts out', async () => {
  const [tenant] = await writeConversations(environment, { messages: 400, tenants: 1 })
  if (tenant === undefined) throw new Error('no tenant')
  const all = await artifactCount(environment, tenant.tenantId)
  const sampled = await runNow(environment, 'verify', { config: { verifySample: 30 } })
  expect(sampled.counts).toMatchObject({ checked: 30, damaged: 0 })
  // More than there are is all there are, but for the purged.
  const purged = await spoilHashes(environment.admin, 'a.id in (select id from artifact_refs limit 5)')
  expect(purged).toHaveLength(5)
  await environment.admin.query(
    'update artifact_refs set deleted_at = now(), purged_at = now() where id = any ($1)',
    [purged],
  )
  expect((await runNow(environment, 'verify', { config: { verifySample: 100_000 } })).counts).toMatchObject({
    checked: all - 5,
    damaged: 0,
  })
  expect((await runNow(environment, 'verify', { config: { verifySample: 0 } })).counts.checked).toBe(0)
})

test('the sample of a large table reads some of its pages, not all of them', async () => {
  await environment.admin.query(
    `insert into artifact_refs (tenant_id, kind, r2_key, sha256)
     select $1, 'agent_trace', 'elsewhere/' || n, repeat('0', 64) from generate_series(1, 20000) n`,
    [randomUUID()],
  )
  const read = () =>
    value<number>(
      environment.admin,
      `select seq_tup_read::int from pg_stat_user_tables where relid = 'lighter.loose_artifacts'::regclass`,
    )
  const pool = createPool(environment.urls.daemon, 1, () => undefined)
  const config = { ...environment.config().sweeps, verifySample: 20 }
  const before = await read()
  const sampled = await sampleArtifacts({ pool, config })
  await pool.query('select pg_stat_force_next_flush()')
  await pool.end()
  expect(sampled.length).toBeGreaterThan(0)
  await expect.poll(read, { timeout: 10_000 }).toBeGreaterThan(before)
  // Twenty of some five hundred pages, give or take.
  expect((await read()) - before).toBeLessThan(5000)
})

test('long payloads are streamed, and the command says what is damaged', async () => {
  const { conversationId, tenantId } = await newConversation(environment)
  const long = `{"trace": "${'abcdefgh'.repeat(1_000_000)}"}`
  await insertMessage(environment, conversationId, long)
  await insertMessage(environment, conversationId, '{"tool_interactions": [1]}')
  await drained(environment)
  const env = environment.env
  const well = await runCli(['sweep', 'verify', '--all', '--json'], { env })
  expect(well.code).toBe(0)
  expect(JSON.parse(well.stdout)).toMatchObject({
    outcome: 'done',
    counts: { checked: 2, damaged: 0 },
    damaged: [],
  })

  const [spoilt] = await spoilHashes(environment.admin, 'a.size_bytes > 8000000')
  expect(spoilt).toBeDefined()
  const bad = await runCli(['sweep', 'verify', '--all', '--tenant', tenantId.toUpperCase()], { env })
  expect(bad.code).toBe(1)
  expect(bad.stdout).toContain(spoilt)
  expect(bad.stdout).toContain('artifact_corrupt')
  const json = await runCli(['sweep', 'verify', '--all', '--json'], { env })
  expect(JSON.parse(json.stdout)).toMatchObject({
    damaged: [{ tenant_id: tenantId, id: spoilt, kind: 'assistant_message_metadata' }],
  })
  const misplaced = await runCli(['sweep', 'verify', '--tenant', tenantId], { env })
  expect(misplaced.code).toBe(1)
  expect(misplaced.stderr).toContain('verify --all')
})
