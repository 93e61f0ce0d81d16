// Retention, purge, orphans: what goes, what stays, and when. Time is made to pass by ageing rows.
import { randomUUID } from 'node:crypto'
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import { DeleteError } from '../../src/errors.ts'
import type { ObjectStore } from '../../src/store/object-store.ts'
import { adoptOwnership, advanceEpoch, checkOwnership, claimOwnership } from '../../src/store/ownership.ts'
import { takeSweepLock } from '../../src/sweeps/lock.ts'
import {
  createSignals,
  drained,
  hydrated,
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  useFreshEnvironment,
} from '../support/environment.ts'
import { openRawS3 } from '../support/raw-s3.ts'
import { startFaultyStore } from '../support/request-fault.ts'
import { column, value } from '../support/sql.ts'
import { age, bucketKeys, expireAfter90Days, runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()
let daemon: Daemon

beforeEach(async () => {
  await expireAfter90Days(environment)
  daemon = await startDaemon(environment)
})
afterEach(async () => {
  await daemon.stop()
})

/** A tenant with messages whose tool calls are offloaded; returns the messages' ids. */
async function messages(count: number, tenantId: string = randomUUID()) {
  const { conversationId } = await newConversation(environment, tenantId)
  const ids = await Promise.all(
    Array.from({ length: count }, (_, n) =>
      insertMessage(environment, conversationId, `{"tool_interactions": [{"n": ${n}}]}`),
    ),
  )
  await drained(environment)
  return { tenantId, conversationId, ids }
}

async function states(tenantId: string) {
  const { rows } = await environment.admin.query(
    `select count(*)::int as all, count(deleted_at)::int as deleted, count(purged_at)::int as purged
       from artifact_refs where tenant_id = $1`,
    [tenantId],
  )
  return rows[0]
}

describe('retention', () => {
  test('expires by the standard policy, purges after the grace, and empties the bucket', async () => {
    const { tenantId, ids } = await messages(5)
    const premium = await messages(5)
    await environment.admin.query(`insert into lighter.tenants (tenant_id, plan) values ($1, 'premium')`, [
      premium.tenantId,
    ])
    await age(environment, '89 days')
    expect((await runNow(environment, 'retention')).counts).toMatchObject({ expired: 0 })
    await age(environment, '2 days')
    const dry = await runNow(environment, 'retention', { dryRun: true })
    expect(dry.counts).toMatchObject({ expired: 5 })
    expect(await states(tenantId)).toEqual({ all: 5, deleted: 0, purged: 0 })

    expect((await runNow(environment, 'retention')).counts).toMatchObject({ expired: 5, purged: 0 })
    expect(await states(tenantId)).toEqual({ all: 5, deleted: 5, purged: 0 })
    expect(await states(premium.tenantId)).toEqual({ all: 5, deleted: 0, purged: 0 })
    const { rows } = await environment.admin.query(
      'select distinct deleted_reason as reason from artifact_refs where tenant_id = $1',
      [tenantId],
    )
    expect(rows).toEqual([{ reason: 'expired: standard plan, 90 days' }])
    const before = await bucketKeys(environment)
    expect((await runNow(environment, 'retention')).counts).toMatchObject({ expired: 0, purged: 0 })
    expect(await bucketKeys(environment)).toEqual(before)

    await age(environment, '8 days')
    expect((await runNow(environment, 'retention')).counts).toMatchObject({ purged: 5, objects_forgotten: 0 })
    const left = await bucketKeys(environment)
    expect(left.length).toBeLessThan(before.length)
    expect(left.every(key => key.includes(premium.tenantId))).toBe(true)
    // Their rows go when nothing for these keys can be under way any more.
    await age(environment, '1 hour')
    await runNow(environment, 'retention')
    const { rows: objects } = await environment.admin.query(
      'select from lighter.objects where tenant_id = $1',
      [tenantId],
    )
    expect(objects).toEqual([])
    await age(environment, '91 days')
    await runNow(environment, 'retention')
    expect(await states(tenantId)).toEqual({ all: 0, deleted: 0, purged: 0 })
    expect(await hydrated(environment, premium.ids[0] ?? '')).toBe('{"tool_interactions": [{"n": 0}]}')
    expect(await rawMetadata(environment, ids[0] ?? '')).toContain('tool_interactions_ref')
  })

  test('the most specific policy wins: tenant before plan, kind before none', async () => {
    const kind = 'assistant_message_tool_interactions'
    const tenantId = randomUUID()
    const inForce = async () => {
      const { rows } = await environment.worker.query(
        'select policy, keep_days from lighter.retention_policy_of($1, $2)',
        [tenantId, kind],
      )
      return rows[0]
    }
    const policy = async () => (await inForce())?.policy
    const add = (plan: string | null, tenant: string | null, ofKind: string | null, days: number | null) =>
      environment.admin.query(
        'insert into lighter.retention_policies (plan, tenant_id, kind, keep_days) values ($1, $2, $3, $4)',
        [plan, tenant, ofKind, days],
      )
    expect(await policy()).toBe('standard plan, 90 days')
    await add(null, null, kind, 5)
    expect(await policy()).toBe('standard plan, 90 days')
    await add('standard', null, kind, 30)
    expect(await policy()).toBe(`standard plan, kind ${kind}, 30 days`)
    await add(null, tenantId, null, null)
    expect(await inForce()).toEqual({ policy: 'this tenant, kept for ever', keep_days: null })
    await add(null, tenantId, kind, 10)
    expect(await policy()).toBe(`this tenant, kind ${kind}, 10 days`)
    await environment.admin.query(`insert into lighter.tenants (tenant_id, plan) values ($1, 'premium')`, [
      tenantId,
    ])
    expect(await policy()).toBe(`this tenant, kind ${kind}, 10 days`)
  })

  test('a legal hold on the tenant, or on the entity, stops everything, also what had expired before', async () => {
    const held = await messages(3)
    const partly = await messages(3)
    const other = await messages(2, partly.tenantId)
    await environment.admin.query(
      `insert into lighter.legal_holds (tenant_id, entity_type, entity_id, reason) values ($1, 'conversation', $2, 'case 7')`,
      [partly.tenantId, partly.conversationId],
    )
    await age(environment, '100 days')
    await environment.admin.query('insert into lighter.tenants (tenant_id, legal_hold) values ($1, true)', [
      held.tenantId,
    ])
    await runNow(environment, 'retention')
    expect(await states(held.tenantId)).toEqual({ all: 3, deleted: 0, purged: 0 })
    expect(await states(partly.tenantId)).toEqual({ all: 5, deleted: 2, purged: 0 })
    // A hold that comes during the grace keeps the bytes.
    await environment.admin.query(
      `insert into lighter.legal_holds (tenant_id, entity_type, entity_id, reason) values ($1, 'conversation', $2, 'case 8')`,
      [other.tenantId, other.conversationId],
    )
    await age(environment, '30 days')
    await runNow(environment, 'retention')
    expect(await states(partly.tenantId)).toEqual({ all: 5, deleted: 2, purged: 0 })
  })

  test('what lives beside a dead artifact in a pack stays readable', async () => {
    const { tenantId, ids } = await messages(20)
    const { rows } = await environment.admin.query<{ key: string; n: number }>(
      `select r2_key as key, count(*)::int as n from artifact_refs where tenant_id = $1 group by 1 order by 2 desc limit 1`,
      [tenantId],
    )
    const pack = rows[0]
    expect(pack?.n).toBeGreaterThan(1)
    await environment.admin.query(
      `update artifact_refs set deleted_at = now() - interval '30 days', deleted_reason = 'deleted'
        where (tenant_id, id) = (select tenant_id, id from artifact_refs where r2_key = $1 limit 1)`,
      [pack?.key],
    )
    expect((await runNow(environment, 'retention')).counts).toMatchObject({ purged: 1, objects_emptied: 0 })
    const { rows: objects } = await environment.admin.query(
      'select state, live_artifacts, dead_since is not null as dead from lighter.objects where r2_key = $1',
      [pack?.key],
    )
    expect(objects).toEqual([{ state: 'stored', live_artifacts: (pack?.n ?? 0) - 1, dead: true }])
    let readable = 0
    for (const id of ids) if ((await hydrated(environment, id).catch(() => null)) !== null) readable++
    expect(readable).toBe(19)
  })

  test('runs in batches, stops in the middle, and the next run goes on', async () => {
    // Frames of their own: a page is one at least.
    for (let n = 0; n < 5; n++) await messages(6)
    await age(environment, '100 days')
    const stop = new AbortController()
    let batches = 0
    const first = await runNow(environment, 'retention', {
      config: { batchSize: 7, rate: 200 },
      signal: stop.signal,
      sweep: context =>
        import('../../src/sweeps/retention.ts').then(({ sweepRetention }) =>
          sweepRetention({
            ...context,
            onProgress: counts => {
              context.onProgress(counts)
              if (++batches === 2) stop.abort()
            },
          }),
        ),
    })
    expect(first.outcome).toBe('stopped')
    expect(first.counts.expired).toBeLessThan(30)
    const second = await runNow(environment, 'retention', { config: { batchSize: 7 } })
    expect((first.counts.expired ?? 0) + (second.counts.expired ?? 0)).toBe(30)
  })

  test('walks past no tombstone, however many are remembered, and what must stay is looked at once a night', async () => {
    const { tenantId, conversationId } = await messages(6)
    const held = await newConversation(environment, tenantId)
    await environment.admin.query(
      `insert into lighter.legal_holds (tenant_id, entity_type, entity_id, reason) values ($1, 'conversation', $2, 'case')`,
      [tenantId, held.conversationId],
    )
    const insert = (count: number, columns: string, values: string) =>
      environment.admin.query(
        `insert into artifact_refs (tenant_id, kind, r2_key, created_at, ${columns})
         select $1, 'assistant_message_tool_interactions', 'x/' || gen_random_uuid(), now() - interval '150 days' - n * interval '1 s', ${values}
           from generate_series(1, $2::int) n`,
        [tenantId, count],
      )
    await insert(20_000, 'deleted_at, purged_at', `now() - interval '10 days', now() - interval '2 days'`)
    await insert(40, 'entity_type, entity_id', `'conversation', '${held.conversationId}'`)
    await insert(90, 'entity_type, entity_id', `'conversation', '${conversationId}'`)
    await age(environment, '1 hour')
    await environment.admin.query('vacuum analyze lighter.loose_artifacts')
    const seen = () =>
      value<number>(
        environment.admin,
        `select coalesce(sum(idx_tup_read), 0)::int from pg_stat_user_indexes
          where relid = 'lighter.loose_artifacts'::regclass and indexrelid not in (select indexrelid from pg_index where indisprimary)`,
      )
    const scans = () =>
      value<number>(
        environment.admin,
        `select idx_scan::int from pg_stat_user_indexes where indexrelname = 'loose_artifacts_live'`,
      )
    const [seenBefore, scansBefore] = [await seen(), await scans()]
    const { counts } = await runNow(environment, 'retention', {
      config: { batchSize: 10, deleteDelayMs: 60_000 },
    })
    expect(counts).toMatchObject({ expired: 90, groups: 1 })
    // Statistics come with the end of the sweep's sessions.
    await expect.poll(scans, { timeout: 10_000 }).toBeGreaterThan(scansBefore)
    await expect.poll(async () => (await seen()) - seenBefore, { timeout: 10_000 }).toBeGreaterThan(130)
    expect((await seen()) - seenBefore).toBeLessThan(250)
  })

  test('costs an insert no index more than before, where the table is ours', async () => {
    expect(
      await column(
        environment.admin,
        `select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid
          where i.indrelid in ('lighter.loose_artifacts'::regclass, 'lighter.frames'::regclass)
            -- not in those of what is deleted, damaged, empty, has a date of its own or lies on others
            and (i.indpred is null or c.relname in ('loose_artifacts_live', 'frames_live'))
          order by 1`,
      ),
    ).toEqual([
      'frames_entities',
      'frames_id',
      'frames_live',
      'frames_object',
      'frames_pkey',
      'idx_artifact_refs_entity',
      'loose_artifacts_live',
      'loose_artifacts_object',
      'loose_artifacts_pkey',
    ])
  })

  test("an object of the application's own, from before us, goes too; one outside our prefix does not", async () => {
    const tenantId = randomUUID()
    const inside = `${environment.store.prefix}tenants/${tenantId}/chat_transcript/a.json`
    const outside = `elsewhere/tenants/${tenantId}/chat_transcript/b.json`
    for (const key of [inside, outside]) {
      await environment.store.put(key, Buffer.from('{}'), { contentType: 'application/json' })
      await environment.admin.query(
        `insert into artifact_refs (tenant_id, kind, r2_key, created_at) values ($1, 'chat_transcript', $2, now() - interval '1 year')`,
        [tenantId, key],
      )
    }
    await runNow(environment, 'retention')
    await age(environment, '8 days')
    await runNow(environment, 'retention')
    expect(await environment.store.head(inside)).toBeNull()
    expect(await environment.store.head(outside)).not.toBeNull()
    await environment.store.delete([outside])
  })
})

describe('orphans', () => {
  test('what was left uploading past its lease is deleted, and deleted again before it is forgotten', async () => {
    const { tenantId } = await messages(1)
    const key = `${environment.store.prefix}tenants/${tenantId}/agent_trace/orphan.json`
    await environment.store.put(key, Buffer.from('{}'), { contentType: 'application/json' })
    await environment.admin.query(
      `insert into lighter.objects (tenant_id, r2_key, kind, state, content_type, artifact_count, lease_until)
       values ($1, $2, 'agent_trace', 'uploading', 'application/json', 1, now() + interval '1 minute')`,
      [tenantId, key],
    )
    expect((await runNow(environment, 'orphans')).counts).toMatchObject({ orphans: 0 })
    await age(environment, '2 minutes')
    expect((await runNow(environment, 'orphans', { dryRun: true })).counts).toMatchObject({ orphans: 1 })
    expect((await runNow(environment, 'orphans')).counts).toMatchObject({ orphans: 1, objects_deleted: 1 })
    expect(await environment.store.head(key)).toBeNull()
    // A PUT that timed out lands late.
    await environment.store.put(key, Buffer.from('{}'), { contentType: 'application/json' })
    expect((await runNow(environment, 'orphans')).counts).toMatchObject({ objects_forgotten: 0 })
    await age(environment, '1 hour')
    expect((await runNow(environment, 'orphans')).counts).toMatchObject({ objects_forgotten: 1 })
    expect(await environment.store.head(key)).toBeNull()
    const { rows } = await environment.admin.query('select from lighter.objects where r2_key = $1', [key])
    expect(rows).toEqual([])
  })

  test('multipart uploads are aborted', async () => {
    const { tenantId } = await messages(1)
    const key = `${environment.store.prefix}tenants/${tenantId}/attachment/parts.bin`
    const raw = openRawS3(environment.config().store)
    onTestFinished(() => raw.close())
    const uploadId = await raw.createMultipart(key)
    await raw.uploadPart(key, uploadId, 1, Buffer.alloc(6_000_000))
    await environment.admin.query(
      `insert into lighter.objects (tenant_id, r2_key, kind, state, content_type, artifact_count, lease_until, upload_id)
       values ($1, $2, 'attachment', 'uploading', 'text/plain', 1, now() - interval '1 minute', $3)`,
      [tenantId, key, uploadId],
    )
    await runNow(environment, 'orphans')
    await expect(raw.uploadPart(key, uploadId, 2, Buffer.alloc(10))).rejects.toThrow()
  })

  test('a stream whose object was taken before its first part sends none: nobody would abort them', async () => {
    const faulty = await startFaultyStore(environment.env.R2_ENDPOINT ?? '')
    const signals = createSignals()
    await daemon.stop()
    daemon = await startDaemon(environment, {
      signal: signals.signal,
      env: {
        R2_ENDPOINT: faulty.endpoint,
        STREAM_THRESHOLD_BYTES: '65536',
        MULTIPART_PART_BYTES: String(5 * 1024 * 1024),
        OFFLOAD_CODEC: 'none',
      },
    })
    const { conversationId } = await newConversation(environment)
    const hold = signals.holdAt('after-register')
    const metadata = `{"document": "${'x'.repeat(6_000_000)}"}`
    const id = await insertMessage(environment, conversationId, metadata)
    await hold.reached
    const { rows } = await environment.admin.query<{ key: string }>(
      `update lighter.objects set lease_until = now() - interval '1 minute' where state = 'uploading' returning r2_key as key`,
    )
    await runNow(environment, 'orphans')
    hold.release()
    await drained(environment)
    const partsOf = (key = '') =>
      faulty.requests.filter(({ path }) => path.includes(key) && path.includes('partNumber=')).length
    expect(partsOf(rows[0]?.key)).toBe(0)
    expect(partsOf('tenants/')).toBe(2)
    expect(await hydrated(environment, id)).toBe(metadata)
    await daemon.stop()
    await faulty.close()
  })

  test('an object that an artifact uses is not deleted whatever its state says', async () => {
    const { tenantId, ids } = await messages(1)
    await environment.admin.query(
      `update lighter.objects set state = 'deleting', delete_after = now() - interval '1 day' where tenant_id = $1`,
      [tenantId],
    )
    expect((await runNow(environment, 'orphans')).counts).toMatchObject({ objects_deleted: 0 })
    expect(await hydrated(environment, ids[0] ?? '')).toContain('"n": 0')
  })
})

describe('every run', () => {
  test('is alone, on record, and named when its process died', async () => {
    const { lock } = await takeSweepLock(environment.urls.daemon, 'retention')
    const holder = expect.stringMatching(/^pid \d+, user lighter_worker, on .+:\d+, since \d{4}-/)
    expect(await takeSweepLock(environment.urls.daemon, 'retention')).toEqual({ lock: null, holder })
    expect(await runNow(environment, 'retention')).toEqual({ outcome: 'busy', counts: {}, holder })
    expect((await runNow(environment, 'orphans')).outcome).toBe('done')
    await lock?.release()
    await environment.admin.query(
      `insert into lighter.sweep_runs (sweep, heartbeat_at) values ('retention', now())`,
    )
    await runNow(environment, 'retention', { dryRun: true })
    await expect(
      runNow(environment, 'retention', { sweep: () => Promise.reject(new Error('the disk is full')) }),
    ).rejects.toThrow('the disk is full')
    const { rows } = await environment.admin.query(
      `select sweep, dry_run, finished_at is not null as finished, error from lighter.sweep_runs order by id`,
    )
    expect(rows).toEqual([
      { sweep: 'orphans', dry_run: false, finished: true, error: null },
      { sweep: 'retention', dry_run: false, finished: true, error: 'the process ended in the middle' },
      { sweep: 'retention', dry_run: true, finished: true, error: null },
      { sweep: 'retention', dry_run: false, finished: true, error: 'the disk is full' },
    ])
  })

  test('by the clock: one of several daemons does it', async () => {
    // The others' times may come while this runs.
    const others = ['RETENTION', 'RELEASE', 'COMPACTION', 'VERIFY', 'ROLLUP', 'VACUUM']
    const env = {
      ...Object.fromEntries(others.map(name => [`SWEEP_${name}_CRON`, 'off'])),
      SWEEP_ORPHANS_CRON: '*/2 * * * * *',
    }
    const second = await startDaemon(environment, { env })
    const third = await startDaemon(environment, { env })
    await expect
      .poll(
        async () =>
          (
            await environment.admin.query(
              `select count(*)::int as n from lighter.sweep_runs where sweep = 'orphans'`,
            )
          ).rows[0]?.n,
        { timeout: 20_000, interval: 200 },
      )
      .toBe(1)
    await new Promise(resolve => setTimeout(resolve, 2000))
    const { rows } = await environment.admin.query(`select sweep, error from lighter.sweep_runs`)
    expect(rows).toEqual([{ sweep: 'orphans', error: null }])
    await Promise.all([second.stop(), third.stop()])
  })
})

describe('a copy of the database deletes nothing of the original', () => {
  test('the epoch advances before the first deletion, and a stale memory refuses', async () => {
    const { tenantId } = await messages(1)
    const doom = (key: string) =>
      environment.admin.query(
        `insert into lighter.objects (tenant_id, r2_key, kind, state, content_type, artifact_count, delete_after)
         values ($1, $2, 'agent_trace', 'deleting', 'application/json', 1, now())`,
        [tenantId, key],
      )
    const key = (name: string) => `${environment.store.prefix}tenants/${tenantId}/agent_trace/${name}`
    const { rows: before } = await environment.admin.query('select * from lighter.installation')
    await doom(key('first'))
    await runNow(environment, 'orphans')
    const { rows: after } = await environment.admin.query('select * from lighter.installation')
    expect(Number(after[0].owner_epoch)).toBe(Number(before[0].owner_epoch) + 1)
    // What a physical copy, made before the run, remembers.
    await environment.admin.query('update lighter.installation set owner_epoch = $1, owner_etag = $2', [
      before[0].owner_epoch,
      before[0].owner_etag,
    ])
    await doom(key('second'))
    await environment.store.put(key('second'), Buffer.from('{}'), { contentType: 'application/json' })
    await expect(runNow(environment, 'orphans')).rejects.toMatchObject({ code: 'stale_copy' })
    expect(await environment.store.head(key('second'))).not.toBeNull()
  })

  test('an epoch whose answer was lost is recognised by its nonce', async () => {
    await claimOwnership(environment.worker, environment.store)
    const { rows: before } = await environment.admin.query('select * from lighter.installation')
    await advanceEpoch(environment.worker, environment.store)
    const { body } = await environment.store.get(`${environment.store.prefix}pg-lighter-owner.json`)
    const { nonce, epoch } = JSON.parse(body.toString())
    // As it is when the process dies between the PUT and remembering it.
    await environment.admin.query(
      'update lighter.installation set owner_epoch = $1, owner_etag = $2, next_epoch = $3, next_nonce = $4',
      [before[0].owner_epoch, before[0].owner_etag, epoch, nonce],
    )
    await advanceEpoch(environment.worker, environment.store)
    const { rows: after } = await environment.admin.query('select * from lighter.installation')
    expect(Number(after[0].owner_epoch)).toBe(epoch + 1)
    // With another nonce it is somebody else's.
    await environment.admin.query(
      'update lighter.installation set owner_epoch = $1, owner_etag = $2, next_epoch = $3, next_nonce = gen_random_uuid()',
      [before[0].owner_epoch, before[0].owner_etag, epoch + 1],
    )
    await expect(advanceEpoch(environment.worker, environment.store)).rejects.toMatchObject({
      code: 'stale_copy',
    })
  })
})

describe('sweeps that have lost their lock, and go on beside others of the same database', () => {
  const owner = async () => {
    const { body } = await environment.store.get(`${environment.store.prefix}pg-lighter-owner.json`)
    return JSON.parse(body.toString())
  }
  const remembered = async () => {
    const { rows } = await environment.admin.query<{ epoch: number }>(
      'select owner_epoch::int as epoch from lighter.installation',
    )
    return rows[0]?.epoch
  }
  const expectWell = async () => {
    const { epoch, contested } = await owner()
    expect([await remembered(), contested]).toEqual([epoch, undefined])
    await advanceEpoch(environment.worker, environment.store)
  }

  test('what one of them remembers late does not undo what another has remembered since', async () => {
    await claimOwnership(environment.worker, environment.store)
    const put: ObjectStore['put'] = async (...request) => {
      const answer = await environment.store.put(...request)
      await advanceEpoch(environment.worker, environment.store)
      return answer
    }
    await advanceEpoch(environment.worker, { ...environment.store, put })
    await expectWell()
  })

  test('nor what a daemon remembers late that was the first to claim the prefix', async () => {
    await environment.store.delete([`${environment.store.prefix}pg-lighter-owner.json`])
    await environment.admin.query('update lighter.installation set owner_epoch = 0, owner_etag = null')
    const put: ObjectStore['put'] = async (...request) => {
      const answer = await environment.store.put(...request)
      await advanceEpoch(environment.worker, environment.store)
      return answer
    }
    await claimOwnership(environment.worker, { ...environment.store, put })
    await expectWell()
  })

  test('two that write the same epoch recognise each other, whichever lands first', async () => {
    await claimOwnership(environment.worker, environment.store)
    const [begun, go, landed, over] = Array.from({ length: 4 }, () => Promise.withResolvers<void>())
    const first = advanceEpoch(environment.worker, {
      ...environment.store,
      put: async (...request) => {
        begun?.resolve()
        await go?.promise
        const answer = await environment.store.put(...request)
        landed?.resolve()
        await over?.promise
        return answer
      },
    })
    await begun?.promise
    const second = advanceEpoch(environment.worker, {
      ...environment.store,
      put: async (...request) => {
        go?.resolve()
        await landed?.promise
        return environment.store.put(...request)
      },
    }).finally(over?.resolve)
    await Promise.all([first, second])
    await expectWell()
  })

  test('whoever read the owner object before others have advanced looks again', async () => {
    await claimOwnership(environment.worker, environment.store)
    let others = 0
    const get: ObjectStore['get'] = async key => {
      if (others++ === 0) await advanceEpoch(environment.worker, environment.store)
      const answer = await environment.store.get(key)
      if (others === 1) await advanceEpoch(environment.worker, environment.store)
      return answer
    }
    expect(await checkOwnership(environment.worker, { ...environment.store, get })).toBe('mine')
    await expectWell()
  })
})

describe('where data could be lost', () => {
  test('a payload is not expired while a newer one lies on it', async () => {
    const { conversationId } = await newConversation(environment)
    const heavy = `{"trace": "${'x'.repeat(9000)}"}`
    const id = await insertMessage(environment, conversationId, heavy)
    await drained(environment)
    await age(environment, '91 days')
    await environment.app.query(
      `update conversation_messages set metadata = metadata || jsonb_build_object('fresh', repeat('y', 9000)) where id = $1`,
      [id],
    )
    await drained(environment)
    expect((await runNow(environment, 'retention')).counts).toMatchObject({ expired: 0 })
    expect(await hydrated(environment, id)).toContain('yyyy')
    await age(environment, '91 days')
    // From the newest down.
    expect((await runNow(environment, 'retention')).counts).toMatchObject({ expired: 1 })
    expect((await runNow(environment, 'retention')).counts).toMatchObject({ expired: 1 })
  })

  test('an object that nobody can delete does not hold up the others', async () => {
    const { tenantId } = await messages(1)
    const keys = Array.from(
      { length: 5 },
      () => `${environment.store.prefix}tenants/${tenantId}/k/${randomUUID()}.json`,
    )
    for (const key of keys) {
      await environment.store.put(key, Buffer.from('{}'), { contentType: 'application/json' })
      await environment.admin.query(
        `insert into lighter.objects (tenant_id, r2_key, kind, state, content_type, artifact_count, delete_after)
         values ($1, $2, 'k', 'deleting', 'application/json', 1, clock_timestamp() - interval '1 minute')`,
        [tenantId, key],
      )
    }
    const [locked] = keys
    const { store } = environment
    environment.store = {
      ...store,
      delete: async wanted => {
        await store.delete(wanted.filter(key => key !== locked))
        if (wanted.includes(locked ?? '')) throw new DeleteError([locked ?? ''], 'AccessDenied: locked')
      },
    }
    const { counts } = await runNow(environment, 'orphans', { config: { batchSize: 2 } })
    environment.store = store
    expect(counts).toMatchObject({ objects_deleted: 4, objects_not_deleted: 1 })
    for (const key of keys) expect((await store.head(key)) !== null).toBe(key === locked)
  })

  test('an object whose artifacts were deleted by hand goes too', async () => {
    const { tenantId } = await messages(3)
    await environment.admin.query('delete from artifact_refs where tenant_id = $1', [tenantId])
    await age(environment, '2 hours')
    await runNow(environment, 'retention')
    // After the grace period, as with a tombstone.
    expect((await bucketKeys(environment)).filter(key => key.includes(tenantId))).not.toEqual([])
    await age(environment, '8 days')
    await runNow(environment, 'retention')
    expect((await bucketKeys(environment)).filter(key => key.includes(tenantId))).toEqual([])
  })

  test('nothing goes at once: whoever is displaced by a copy has time to object, and then nothing goes', async () => {
    const { tenantId, ids } = await messages(1)
    const key = `${environment.store.prefix}tenants/${tenantId}/k/orphan.json`
    await environment.store.put(key, Buffer.from('{}'), { contentType: 'application/json' })
    await environment.admin.query(
      `insert into lighter.objects (tenant_id, r2_key, kind, state, content_type, artifact_count, lease_until)
       values ($1, $2, 'k', 'uploading', 'application/json', 1, now() - interval '1 minute')`,
      [tenantId, key],
    )
    const { rows: before } = await environment.admin.query(
      'select owner_epoch, owner_etag from lighter.installation',
    )
    const config = { deleteDelayMs: 7_200_000 }
    // The copy is first.
    expect((await runNow(environment, 'orphans', { config })).counts).toMatchObject({
      orphans: 1,
      objects_deleted: 0,
    })
    const { rows: copy } = await environment.admin.query(
      'select owner_epoch, owner_etag from lighter.installation',
    )
    const remember = (row: { owner_epoch: string; owner_etag: string }) =>
      environment.admin.query(
        'update lighter.installation set owner_epoch = $1, owner_etag = $2, next_epoch = null, next_nonce = null',
        [row.owner_epoch, row.owner_etag],
      )
    // The original finds itself displaced, and says so.
    await remember(before[0])
    await expect(runNow(environment, 'orphans', { config })).rejects.toMatchObject({ code: 'stale_copy' })
    // Now the copy may not delete.
    await remember(copy[0])
    await age(environment, '3 hours')
    await expect(runNow(environment, 'orphans', { config })).rejects.toMatchObject({ code: 'contested' })
    expect(await environment.store.head(key)).not.toBeNull()
    await adoptOwnership(environment.worker, environment.store)
    expect((await runNow(environment, 'orphans', { config })).counts).toMatchObject({ objects_deleted: 1 })
    expect(await hydrated(environment, ids[0] ?? '')).toContain('"n": 0')
  })

  test('a bucket without the owner object is not taken for ours', async () => {
    await messages(1)
    await advanceEpoch(environment.worker, environment.store)
    await environment.store.delete([`${environment.store.prefix}pg-lighter-owner.json`])
    for (const name of ['orphans', 'retention', 'compaction'] as const)
      await expect(runNow(environment, name)).rejects.toMatchObject({ code: 'owner_object_missing' })
    await expect(claimOwnership(environment.worker, environment.store)).rejects.toMatchObject({
      code: 'owner_object_missing',
    })
  })

  test('payloads of a pack whose rows changed before the commit leave with the erasure deadline', async () => {
    const signals = createSignals()
    await daemon.stop()
    daemon = await startDaemon(environment, { signal: signals.signal })
    const { conversationId, tenantId } = await newConversation(environment)
    const hold = signals.holdAt('before-commit')
    const { rows } = await environment.app.query<{ id: string }>(
      `insert into conversation_messages (conversation_id, role, content, metadata)
       select $1, 'assistant', '', jsonb_build_object('tool_interactions', jsonb_build_array(n)) from generate_series(1, 2) n returning id`,
      [conversationId],
    )
    await hold.reached
    await environment.app.query(
      `update conversation_messages set metadata = '{"plain": true}' where id = $1`,
      [rows[0]?.id],
    )
    hold.release()
    await drained(environment)
    const { rows: objects } = await environment.admin.query(
      'select artifact_count, live_artifacts, dead_since is not null as dead from lighter.objects where tenant_id = $1',
      [tenantId],
    )
    expect(objects).toEqual([{ artifact_count: 2, live_artifacts: 1, dead: true }])
  })
})
