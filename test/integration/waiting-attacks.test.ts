// What goes wrong around rows that wait: trouble, other people's wishes, and odd sizes.
import { randomUUID } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { beforeEach, describe, expect, test, vi } from 'vitest'
import { removeJobs } from '../../src/erase/queue.ts'
import { asTenantId } from '../../src/ids.ts'
import { claimExpired, claimSettled } from '../../src/offload/claim.ts'
import { dueGroups } from '../../src/offload/claim-groups.ts'
import { runBatch } from '../../src/offload/pipeline.ts'
import { loadSources, type Source } from '../../src/source/sources.ts'
import type { SweepContext } from '../../src/sweeps/context.ts'
import { createClaims, firstGroups } from '../../src/wake/claims.ts'
import { lighterOk } from '../support/black-box.ts'
import { pass, workByHand } from '../support/by-hand.ts'
import {
  asJsonbText,
  hydrated,
  insertMessage,
  newConversation,
  rawMetadata,
  useEnvironment,
} from '../support/environment.ts'
import { emptyQueue } from '../support/queue.ts'
import { column, value } from '../support/sql.ts'
import { runNow } from '../support/sweep.ts'
import { insertToolCalls, isInline as isRowInline, noiseText, toolCall } from '../support/tool-calls.ts'

const environment = await useEnvironment()
environment.env.PACK_MIN_BYTES = '32768'
const { work, context } = workByHand(environment)
const few = workByHand(environment, { OFFLOAD_BATCH_ROWS: '10' })
const codecs: Record<string, ReturnType<typeof workByHand>> = Object.fromEntries(
  ['none', 'gzip', 'zstd'].map(codec => [codec, workByHand(environment, { OFFLOAD_CODEC: codec })]),
)
const { admin } = environment

const setDefaults = (settleFor: string, maxWait: string) =>
  admin.query('select lighter.set_defaults($1, $2, 65536)', [settleFor, maxWait])

beforeEach(async () => {
  await environment.admin.query('select lighter.set_pack_sizes(4194304, 32768)')
  await emptyQueue(environment)
  await admin.query('delete from lighter.flushes; delete from lighter.failed_jobs')
  await setDefaults('1 minute', '24 hours')
})

const insertMany = (conversationId: string, count: number, bytes: number) =>
  insertToolCalls(environment, conversationId, count, bytes)

const isInline = (id: string) => isRowInline(environment, id)
const objectsOf = (tenantId: string) =>
  value<number>(admin, 'select count(*)::int from lighter.objects where tenant_id = $1', [tenantId])
const oneSource = async (): Promise<Source> => {
  const [source] = [...(await loadSources(environment.worker)).values()]
  if (source === undefined) throw new Error('nothing is attached')
  return source
}

/** Rows that are said to wait, of a tenant that has none. */
const sayWaiting = async (tenantId: string, rows: number, bytes: number, ago = '1 hour') =>
  admin.query(
    `insert into lighter.waiting (source_id, row_id, available_at, enqueued_at, tenant_id, phase, bytes, row_xmin)
     select (select id from lighter.sources), gen_random_uuid(), now() - $4::interval, now() - $4::interval, $1, 1, $3, '3'
       from generate_series(1, $2::int)`,
    [tenantId, rows, bytes, ago],
  )

describe('trouble that no row has caused', () => {
  test('does not make rows leave before that pays', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    const ids = await insertMany(conversationId, 3, 2000)
    await pass(environment, '61 seconds')
    const sources = await loadSources(environment.worker)
    await admin.query('revoke select on conversation_messages from lighter_daemon')
    try {
      const { lease } = await claimSettled(context.pool, [...sources.values()], 10, 60_000)
      if (lease === null) throw new Error('nothing was claimed')
      await runBatch(context, sources, lease, 0)
    } finally {
      await admin.query('grant select on conversation_messages to lighter_daemon')
    }
    expect(await column(admin, 'select attempts from lighter.waiting where last_error is not null')).toEqual([
      0, 0, 0,
    ])
    await pass(environment, '1 minute')
    expect(await work()).toMatchObject({ waiting: 3, objects: 0 })
    expect(await objectsOf(tenantId)).toBe(0)
    for (const id of ids) expect(await isInline(id)).toBe(true)
    expect(await column(admin, 'select distinct tenant_id from lighter.waiting')).toEqual([tenantId])
  })

  test('an erasure that takes a run away lets the rows of others wait', async () => {
    const mine = await newConversation(environment)
    const other = await newConversation(environment)
    await insertMany(mine.conversationId, 1, 2000)
    await insertMany(other.conversationId, 2, 2000)
    await pass(environment, '61 seconds')
    await claimSettled(context.pool, [await oneSource()], 10, 60_000)
    const counts = {}
    await removeJobs(
      {
        pool: environment.worker,
        signal: new AbortController().signal,
        onProgress: () => undefined,
      } as unknown as SweepContext,
      { tenantId: asTenantId(mine.tenantId), entity: null },
      counts,
    )
    expect(counts).toMatchObject({ jobs: 1 })
    const lease = await claimExpired(context.pool, 60_000)
    if (lease === null) throw new Error('nothing was left behind')
    const { result } = await runBatch(context, await loadSources(environment.worker), lease, 0)
    expect(result).toMatchObject({ waiting: 2, objects: 0 })
    expect(await objectsOf(other.tenantId)).toBe(0)
  })
})

describe('a row that is not settled', () => {
  test('stays when another tenant is flushed, however large', async () => {
    const one = await newConversation(environment)
    const other = await newConversation(environment)
    const [id = ''] = await insertMany(other.conversationId, 1, 70_000)
    await admin.query('select lighter.flush(tenant => $1)', [one.tenantId])
    expect(await work()).toMatchObject({ offloadedRows: 0, objects: 0 })
    expect(await isInline(id)).toBe(true)
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ offloadedRows: 1 })
  })

  test('that was written long ago too stays likewise', async () => {
    const one = await newConversation(environment)
    const other = await newConversation(environment)
    const [id = ''] = await insertMany(other.conversationId, 1, 70_000)
    await pass(environment, '59 seconds')
    await environment.app.query('update conversation_messages set metadata = $2 where id = $1', [
      id,
      toolCall(70_000),
    ])
    await pass(environment, '2 seconds')
    await admin.query('select lighter.flush(tenant => $1)', [one.tenantId])
    expect(await work()).toMatchObject({ offloadedRows: 0, objects: 0 })
    expect(await isInline(id)).toBe(true)
  })
})

describe('what a look takes a row for', () => {
  test('a document that compresses to nearly nothing waits for others', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    const id = await insertMessage(
      environment,
      conversationId,
      JSON.stringify({ trace: 'all work and no play '.repeat(900) }),
    )
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ waiting: 1, objects: 0 })
    expect(await objectsOf(tenantId)).toBe(0)
    const bytes = await value<number>(admin, 'select bytes from lighter.waiting where row_id = $1', [id])
    expect(bytes).toBeGreaterThan(18_000)
  })

  test('a field whose pointer has the name of something else waits with its document', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    const id = await insertMessage(
      environment,
      conversationId,
      JSON.stringify({ tool_interactions: [{ text: noiseText(1000) }], tool_interactions_ref: 'mine' }),
    )
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ waiting: 1, objects: 0 })
    expect(await objectsOf(tenantId)).toBe(0)
    expect(await column(admin, 'select phase from lighter.waiting where row_id = $1', [id])).toEqual([2])
  })
})

describe('a group of more rows than a batch', () => {
  test('with little in each leaves in the end', async () => {
    const { conversationId } = await newConversation(environment)
    const ids = await insertMany(conversationId, 30, 1500)
    await pass(environment, '61 seconds')
    expect(await few.work()).toMatchObject({ waiting: 30 })
    await pass(environment, '25 hours')
    expect(await few.work()).toMatchObject({ offloadedRows: expect.any(Number) })
    let inline = 0
    for (const id of ids) if (await isInline(id)) inline++
    expect(inline).toBeLessThan(30)
  })

  test('is claimed in one go, and not a batch each time the groups are added up', async () => {
    const tenantId = randomUUID()
    await sayWaiting(tenantId, 2000, 50_000)
    const config = environment.config({ OFFLOAD_BATCH_ROWS: '200' }).offload
    const claims = createClaims(context.pool, config)
    const source = await oneSource()
    let claimed = 0
    for (let n = 0; n < 30; n++) {
      const { leases } = await claims.next([source], 200, false)
      for (const lease of leases) claimed += lease.jobs.length
    }
    expect(claimed).toBeGreaterThan(1900)
  })

  test('what is left of it waits on when that is too little', async () => {
    await sayWaiting(randomUUID(), 1010, 5000)
    const config = environment.config({ OFFLOAD_BATCH_ROWS: '1000' }).offload
    const claims = createClaims(context.pool, config)
    const source = await oneSource()
    let claimed = 0
    for (let n = 0; n < 10; n++) {
      const { leases } = await claims.next([source], 1000, false)
      for (const lease of leases) claimed += lease.jobs.length
    }
    expect(claimed).toBe(1000)
  })

  test('does not cut down the others that go with it', async () => {
    // Few and large, and many and small.
    await sayWaiting(randomUUID(), 80, 60_000)
    await sayWaiting(randomUUID(), 900, 4800)
    const config = environment.config({ OFFLOAD_BATCH_BYTES: String(16 * 1024 * 1024) }).offload
    const sources = [await oneSource()]
    const { groups } = await dueGroups(context.pool, sources, config)
    const chosen = firstGroups(groups, config)
    expect(chosen).toHaveLength(2)
    const claims = createClaims(context.pool, config)
    const { leases } = await claims.next(sources, config.batchRows, false)
    expect(leases.flatMap(lease => lease.jobs)).toHaveLength(980)
  })
})

describe('looks that are bounded', () => {
  test('at groups: read in parts, however these fall, they are the same', async () => {
    const config = environment.config().offload
    const sources = [await oneSource()]
    const tenants = Array.from({ length: 6 }, () => randomUUID())
    // Enough, and too little, and one that takes up several looks by itself.
    for (const [n, tenant] of tenants.entries())
      await sayWaiting(tenant, n === 3 ? 300 : 20, n % 2 === 0 ? 300_000 : 60_000)
    const named = (groups: { tenantId: string; kind: string }[]) =>
      groups.map(g => `${g.tenantId} ${g.kind}`).sort()
    const whole = await dueGroups(context.pool, sources, config)
    expect(whole.next).toBeNull()
    expect(whole.groups).toHaveLength(4)
    for (const limit of [7, 20, 21, 45, 100, 399, 400]) {
      const found = new Set<string>()
      let from: Awaited<ReturnType<typeof dueGroups>>['next'] = null
      let looks = 0
      do {
        const look = await dueGroups(context.pool, sources, config, from, limit)
        for (const name of named(look.groups)) found.add(name)
        from = look.next
        expect(++looks, `looks of ${limit}`).toBeLessThan(150)
      } while (from !== null)
      // Of one that is cut off again and again a part may be too little; what is found is due.
      for (const name of named(whole.groups)) expect(found, `looks of ${limit}`).toContain(name)
      // (One that takes up a whole look is found whatever it has; what it has is asked again when it is claimed.)
      if (limit > 20) expect(found.size, `looks of ${limit}`).toBe(whole.groups.length)
    }
  })

  test('at rows: more than a batch of bytes is opened by several statements, and each row is weighed once', async () => {
    const { conversationId } = await newConversation(environment)
    const ids = await insertMany(conversationId, 12, 40_000)
    await pass(environment, '61 seconds')
    const small = workByHand(environment, { OFFLOAD_BATCH_BYTES: '65536', STREAM_THRESHOLD_BYTES: '65536' })
    const query = vi.spyOn(small.context.pool, 'query')
    expect(await small.work()).toMatchObject({ waiting: 12, objects: 0 })
    expect(query.mock.calls.filter(call => JSON.stringify(call).includes('isLater')).length).toBeGreaterThan(
      4,
    )
    query.mockRestore()
    const { rows } = await admin.query<{ rowId: string; bytes: number }>(
      'select row_id as "rowId", bytes from lighter.waiting where row_id = any ($1)',
      [ids],
    )
    expect(rows.map(row => row.rowId).sort()).toEqual([...ids].sort())
    for (const { bytes } of rows) expect(bytes).toBeGreaterThan(40_000)
  })

  test('flushes are forgotten after a month, by the rollup sweep', async () => {
    await admin.query('select lighter.flush(tenant => gen_random_uuid())')
    await admin.query(`update lighter.flushes set flushed_at = now() - interval '32 days'`)
    await admin.query('select lighter.flush(tenant => gen_random_uuid())')
    await runNow(environment, 'rollup')
    expect(await column(admin, `select flushed_at > now() - interval '1 hour' from lighter.flushes`)).toEqual(
      [true],
    )
  })
})

describe('settings that change while rows wait', () => {
  test('to nothing to wait for: a row that was to settle for long leaves', async () => {
    await setDefaults('20 days', '24 hours')
    const { conversationId } = await newConversation(environment)
    const [id = ''] = await insertMany(conversationId, 1, 500)
    // Its entry is as old as that, and the row has been written since.
    await admin.query(`update lighter.inbox set enqueued_at = now() - interval '20 days 1 minute'`)
    await setDefaults('19 days', '30 days')
    await environment.app.query(`update conversation_messages set content = 'edited' where id = $1`, [id])
    expect(await work()).toMatchObject({ waiting: 1 })
    expect(
      await value<boolean>(admin, `select available_at > now() + interval '18 days' from lighter.waiting`),
    ).toBe(true)
    await setDefaults('0', '0')
    expect(await work()).toMatchObject({ offloadedRows: 1 })
    expect(await isInline(id)).toBe(false)
  })
})

describe('a row that was moved to another tenant while it waited', () => {
  test('counts for that one when it turns out to be too little', async () => {
    const from = await newConversation(environment)
    const rest = await newConversation(environment)
    const [moved = ''] = await insertMany(from.conversationId, 1, 20_000)
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ waiting: 1 })
    // Two conversations of one tenant, of which one is moved.
    await admin.query('update conversations set tenant_id = $2 where id = $1', [
      rest.conversationId,
      from.tenantId,
    ])
    await insertMany(rest.conversationId, 1, 20_000)
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ waiting: 1 })
    const to = randomUUID()
    await admin.query('update conversations set tenant_id = $2 where id = $1', [from.conversationId, to])
    await pass(environment, '25 hours')
    // Neither of the two has enough.
    expect(await work()).toMatchObject({ offloadedRows: 0, objects: 0 })
    expect(await column(admin, 'select tenant_id from lighter.waiting where row_id = $1', [moved])).toEqual([
      to,
    ])
  })
})

describe('the row that tries after an outage', () => {
  test('is sent, though its group is not worth a PUT by it alone', async () => {
    const { conversationId } = await newConversation(environment)
    await insertMany(conversationId, 3, 20_000)
    await pass(environment, '61 seconds')
    expect(await work()).toMatchObject({ waiting: 3 })
    await pass(environment, '25 hours')
    const claims = createClaims(context.pool, context.config)
    const sources = await loadSources(environment.worker)
    const { leases } = await claims.next([...sources.values()], 1, true)
    expect(leases).toHaveLength(1)
    const [lease] = leases
    if (lease === undefined) return
    const { result } = await runBatch(context, sources, lease, 0)
    expect(result).toMatchObject({ offloadedRows: 1, objects: 1 })
  })
})

describe('a long inbox of rows that settle', () => {
  test('is looked through for a twentieth of the time', async () => {
    await setDefaults('1 hour', '24 hours')
    const sources = [...(await loadSources(environment.worker)).values()]
    let looks = 0
    // As if it had ten million entries.
    const slow = new Proxy(context.pool, {
      get: (pool, name) =>
        name === 'query'
          ? async (query: { text: string }) => {
              if (query.text.includes('until as materialized') && query.text.includes('where i.id >')) {
                looks++
                await delay(300)
              }
              return pool.query(query)
            }
          : Reflect.get(pool, name),
    })
    const claims = createClaims(slow, context.config)
    const until = performance.now() + 4000
    while (performance.now() < until) {
      await claims.next(sources, 100, false)
      await delay(20)
    }
    expect(looks).toBe(1)
  })

  test('and one that was flushed is found within a second', async () => {
    const { conversationId } = await newConversation(environment)
    const sources = [...(await loadSources(environment.worker)).values()]
    const claims = createClaims(context.pool, context.config)
    expect((await claims.next(sources, 100, false)).leases).toEqual([])
    const [id = ''] = await insertMany(conversationId, 1, 500)
    await admin.query('select lighter.flush()')
    await delay(1100)
    const { leases } = await claims.next(sources, 100, false)
    expect(leases.flatMap(lease => lease.jobs.map(job => job.rowId))).toEqual([id])
  })
})

describe('a pack in which two kinds lie', () => {
  test.each(['none', 'gzip', 'zstd'])('is read, verified and restored, with codec %s', async codec => {
    const { tenantId, conversationId } = await newConversation(environment)
    const written: [id: string, metadata: string][] = []
    for (let n = 0; n < 5; n++) {
      const metadata = JSON.stringify({
        tool_interactions: [{ text: noiseText(300) }],
        trace: noiseText(9000),
      })
      written.push([await insertMessage(environment, conversationId, metadata), metadata])
    }
    await admin.query('select lighter.flush()')
    const by = codecs[codec]
    expect(await by?.work()).toMatchObject({ offloadedRows: 5, artifacts: 10, objects: 1 })
    expect(
      await column(admin, 'select other_kinds from lighter.objects where tenant_id = $1', [tenantId]),
    ).toEqual([['assistant_message_tool_interactions']])
    for (const [id, metadata] of written)
      expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, metadata))
    await runNow(environment, 'orphans')
    expect(await runNow(environment, 'verify')).toMatchObject({ outcome: 'done', counts: { damaged: 0 } })
    await lighterOk(environment, ['restore', '--tenant', tenantId])
    for (const [id, metadata] of written)
      expect(await rawMetadata(environment, id)).toBe(await asJsonbText(environment, metadata))
    await lighterOk(environment, ['unpin', '--all'])
  })

  test('is gone after the erasure of an entity of either kind, when a compaction had moved it out before', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    const erased = await newConversation(environment)
    await admin.query('update conversations set tenant_id = $2 where id = $1', [
      erased.conversationId,
      tenantId,
    ])
    for (let n = 0; n < 5; n++)
      await insertMessage(environment, conversationId, JSON.stringify({ trace: noiseText(9000) }))
    const [id = ''] = await insertMany(erased.conversationId, 1, 300)
    await admin.query('select lighter.flush()')
    expect(await work()).toMatchObject({ offloadedRows: 6, objects: 1 })
    const { rows: packs } = await admin.query<{ key: string; kind: string }>(
      'select r2_key as key, kind from lighter.objects where tenant_id = $1',
      [tenantId],
    )
    expect(packs).toMatchObject([{ kind: 'assistant_message_metadata' }])
    const key = packs[0]?.key ?? ''
    // Most of it dies, and the rest moves on.
    await admin.query(
      `update artifact_refs set deleted_at = now() - interval '30 days', deleted_reason = 'deleted'
        where id in (select id from artifact_refs where tenant_id = $1 and kind like '%metadata' order by id limit 4)`,
      [tenantId],
    )
    await runNow(environment, 'retention', { config: { deleteDelayMs: 86_400_000 } })
    await runNow(environment, 'compaction', { config: { compactLiveShare: 0.99 } })
    expect(await value(admin, 'select state from lighter.objects where r2_key = $1', [key])).toBe('deleting')
    expect(await environment.store.head(key)).not.toBeNull()
    const entityType = await value<string>(admin, 'select entity_type from artifact_refs where row_id = $1', [
      id,
    ])
    await lighterOk(environment, [
      'erase',
      '--tenant',
      tenantId,
      '--entity',
      `${entityType}:${erased.conversationId}`,
      '--yes',
    ])
    expect(await environment.store.head(key)).toBeNull()
  })
})

describe('a source with one kind for both phases', () => {
  test('fills a pack with both', async () => {
    await admin.query(
      'create table alike (id bigint generated always as identity primary key, tenant_id uuid not null, metadata jsonb)',
    )
    try {
      await admin.query(`select lighter.attach('alike', phase1_kind => 'alike', phase2_kind => 'alike')`)
      await admin.query('grant insert, select on alike to public')
      const tenantId = randomUUID()
      const written = [toolCall(20_000), JSON.stringify({ trace: noiseText(20_000) })]
      for (const metadata of written)
        await environment.app.query('insert into alike (tenant_id, metadata) values ($1, $2)', [
          tenantId,
          metadata,
        ])
      await pass(environment, '25 hours')
      await work()
      await pass(environment, '25 hours')
      await work()
      expect(
        await column(admin, 'select kind from lighter.objects where tenant_id = $1', [tenantId]),
      ).toEqual(['alike'])
      expect(
        await column(admin, 'select other_kinds from lighter.objects where tenant_id = $1', [tenantId]),
      ).toEqual([null])
      expect(await column(admin, 'select place from lighter.jobs')).toEqual([])
    } finally {
      await lighterOk(environment, ['restore', '--table', 'alike'])
      await admin.query(`select lighter.detach('alike')`)
      await admin.query('drop table alike')
    }
  })
})

describe('two daemons at once', () => {
  test('take a group apart into as many packs as one would, and leave nothing', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    await insertMany(conversationId, 90, 50_000)
    await pass(environment, '61 seconds')
    const config = environment.config().offload
    const sources = await loadSources(environment.worker)
    // Both look before either claims.
    const claims = [createClaims(context.pool, config), createClaims(context.pool, config)]
    await work()
    await admin.query('select lighter.flush()')
    await insertMany(conversationId, 1, 2000)
    await pass(environment, '61 seconds')
    for (let n = 0; n < 5; n++) {
      const both = await Promise.all(claims.map(each => each.next([...sources.values()], 2000, false)))
      await Promise.all(
        both.flatMap(({ leases }) => leases.map(lease => runBatch(context, sources, lease, 0))),
      )
    }
    expect(await objectsOf(tenantId)).toBeLessThanOrEqual(2)
    expect(await column(admin, 'select place from lighter.jobs')).toEqual(['waiting'])
  })
})
