// The address of the primary starts to answer from another server: a replica that took over, and that lacks the
// last of what the primary had committed.
import { randomUUID } from 'node:crypto'
import { beforeEach, expect, onTestFinished, test } from 'vitest'
import { createPool } from '../../src/db/pool.ts'
import { restoreSource } from '../../src/restore/restore.ts'
import { loadSources } from '../../src/source/sources.ts'
import { claimOwnership } from '../../src/store/ownership.ts'
import { sweepOrphansDeep, type UnknownObject } from '../../src/sweeps/orphans-deep.ts'
import {
  asJsonbText,
  createSignals,
  drained,
  environmentOn,
  hydratedMany,
  insertMessage,
  newConversation,
  startDaemon,
  type TestEnvironment,
  until,
} from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'
import { environmentOnOwnServer, startOwnPostgres } from '../support/own-server.ts'
import { runCli } from '../support/process.ts'
import { type Replica, startReplica } from '../support/replica.ts'
import { errorOf } from '../support/sql.ts'
import { age, bucketKeys, runNow } from '../support/sweep.ts'
import { startTcpProxy, type TcpProxy } from '../support/tcp-proxy.ts'

/** The database as it was at the primary, and as it goes on at the replica. */
let before: TestEnvironment
let after: TestEnvironment
let replica: Replica
/** What feeds the replica. */
let replication: TcpProxy
/** What the daemon takes for the primary. */
let address: TcpProxy
let conversationId: string

beforeEach(async () => {
  // Transaction numbers must not be used by others than the test.
  const settings = { autovacuum: 'off' }
  const primary = await startOwnPostgres(settings)
  const { environment, servers } = await environmentOnOwnServer(primary)
  before = environment
  replication = await startTcpProxy(primary.url())
  replica = await startReplica(primary, { via: replication.through, settings })
  const on = (url: string) => {
    const changed = new URL(url)
    changed.host = `127.0.0.1:${replica.postgres.port}`
    return changed.href
  }
  after = environmentOn(
    {
      ...servers,
      urls: {
        admin: on(servers.urls.admin),
        daemon: on(servers.urls.daemon),
        application: on(servers.urls.application),
      },
    },
    environment.database,
  )
  address = await startTcpProxy(primary.url())
  conversationId = (await newConversation(before)).conversationId
  onTestFinished(async () => {
    await Promise.all([closePools(before), after.close()])
  })
})

/** Its server may be gone, so its database is not dropped. */
async function closePools(environment: TestEnvironment): Promise<void> {
  await Promise.all([environment.admin.end(), environment.app.end(), environment.worker.end()])
  environment.store.close()
}

/** A daemon that only knows the address. */
async function start(options: Parameters<typeof startDaemon>[1] = {}) {
  const lines: Record<string, unknown>[] = []
  const daemon = await startDaemon(before, {
    ...options,
    log: line => lines.push(line),
    env: { DATABASE_URL: address.through(before.urls.daemon), OFFLOAD_LEASE_MS: '1000', ...options.env },
  })
  onTestFinished(() => daemon.stop(0).then(() => undefined))
  return { daemon, lines }
}

const heavy = (text: string) => `{"tool_interactions": ["${text}"]}`

async function write(environment: TestEnvironment, text: string, rows = 5): Promise<Map<string, string>> {
  const written = new Map<string, string>()
  for (let n = 0; n < rows; n++) {
    const metadata = heavy(`${text} ${n}`)
    written.set(await insertMessage(environment, conversationId, metadata), metadata)
  }
  return written
}

async function expectWhole(environment: TestEnvironment, written: Map<string, string>): Promise<void> {
  const wanted = await Promise.all([...written.values()].map(text => asJsonbText(environment, text)))
  expect(await hydratedMany(environment, [...written.keys()])).toEqual(wanted)
}

const epochOf = async ({ admin }: TestEnvironment) =>
  (await admin.query<{ epoch: number }>('select owner_epoch::int as epoch from lighter.installation')).rows[0]
    ?.epoch

test('commits that the replica lacks are done again; what they had stored is found as unknown objects', async () => {
  const { daemon, lines } = await start()
  const written = await write(before, 'replicated')
  await drained(before)
  const pause = (paused: boolean) => before.admin.query('update lighter.sources set paused = $1', [paused])
  // Rows whose offload will be lost: they reach the replica while nothing is committed.
  await pause(true)
  const inline = await write(before, 'inline on the replica')
  await replica.caughtUp()
  await replication.refuse()
  await pause(false)
  await drained(before)
  const keysBefore = await bucketKeys(before)
  await expectWhole(before, new Map([...written, ...inline]))

  await replica.promote()
  await after.admin.query('update lighter.sources set paused = false')
  address.retarget(replica.postgres.url())
  const later = await write(after, 'written at the new primary')
  await drained(after)
  await expectWhole(after, new Map([...written, ...inline, ...later]))
  expect(await strayArtifacts(after)).toEqual([])
  await until(
    () => lines.filter(line => line.msg === 'listening for notifications').length > 1,
    'it listens at the new primary',
  )
  expect(await daemon.stop()).toBe(true)
  const { rows } = await after.admin.query('select from lighter.failed_jobs')
  expect(rows).toEqual([])

  // The lost commits' objects: in the bucket, on nobody's record, and only the deep look tells.
  const { unregistered, missing } = await bucketMismatches(after)
  expect(missing).toEqual([])
  expect(unregistered.length).toBeGreaterThan(0)
  expect(keysBefore).toEqual(expect.arrayContaining(unregistered))
  const found: UnknownObject[] = []
  await runNow(after, 'orphans', {
    sweep: context =>
      sweepOrphansDeep(context, {
        deleteUnknown: false,
        maxDeletions: 0,
        onUnknown: object => found.push(object),
        onMissing: () => undefined,
      }),
  })
  expect(found.map(object => object.key).sort()).toEqual(unregistered.sort())
})

test('a batch that was under way is not committed at the new primary, and done again', async () => {
  const signals = createSignals()
  const { daemon } = await start({ signal: signals.signal })
  await write(before, 'warm')
  await drained(before)
  const hold = signals.holdAt('before-commit')
  const written = await write(before, 'under way', 1)
  await hold.reached
  await replica.caughtUp()
  await replica.promote()
  address.retarget(replica.postgres.url())
  hold.release()
  await drained(after)
  await daemon.stop()
  await expectWhole(after, written)
  expect(await strayArtifacts(after)).toEqual([])
  expect((await bucketMismatches(after)).missing).toEqual([])
})

/** The row as a lost transaction wrote it, and as one of the same number writes it at the new primary. */
async function sameNumberTwice(atOld: () => Promise<unknown>, atNew: () => Promise<void>, id: string) {
  const version = async ({ admin }: TestEnvironment) =>
    (
      await admin.query<{ xmin: string }>(
        'select xmin::text as xmin from conversation_messages where id = $1',
        [id],
      )
    ).rows[0]?.xmin
  await replica.caughtUp()
  await replication.refuse()
  await atOld()
  const lost = await version(before)
  await replica.promote()
  await atNew()
  expect(await version(after), 'both transactions have one number').toBe(lost)
}

test('a row that a lost transaction wrote is not taken for the one that its number wrote since', async () => {
  const signals = createSignals()
  // No heartbeat of the lease may meet the cut.
  const { daemon } = await start({ signal: signals.signal, env: { OFFLOAD_LEASE_MS: '60000' } })
  const [id = ''] = (await write(before, 'first', 1)).keys()
  await drained(before)
  const update = ({ app }: TestEnvironment, metadata: string) =>
    app.query('update conversation_messages set metadata = $2 where id = $1', [id, metadata])
  const hold = signals.holdAt('after-plan')
  await sameNumberTwice(
    async () => {
      await update(before, heavy('lost'))
      await hold.reached
    },
    async () => void (await update(after, heavy('kept'))),
    id,
  )
  // Read from the old one; registered, uploaded and committed at the new one, if it is.
  address.retarget(replica.postgres.url())
  await until(async () => {
    const { rows } = await before.admin.query(
      `select from pg_stat_activity where usename = 'lighter_worker' and application_name like 'pg-lighter%'`,
    )
    return rows.length === 0
  }, 'all connections to the old one are gone')
  hold.release()
  await drained(after)
  await daemon.stop()
  await expectWhole(after, new Map([[id, heavy('kept')]]))
})

test('nor does restore write back what a lost transaction had written', async () => {
  const { daemon } = await start()
  const [id = ''] = (await write(before, 'first', 1)).keys()
  await drained(before)
  await daemon.stop()
  const update = ({ app }: TestEnvironment, field: string) =>
    app.query(
      `update conversation_messages set metadata = metadata || jsonb_build_object($2::text, 1) where id = $1`,
      [id, field],
    )
  const source = [...(await loadSources(before.worker)).values()].find(s =>
    s.tableSql.endsWith('.conversation_messages'),
  )
  if (source === undefined) throw new Error('not attached')
  const pool = createPool(address.through(before.urls.daemon), 2, () => undefined)
  onTestFinished(() => pool.end())
  // Held where it has read the row and fetches what it points to.
  const reading = Promise.withResolvers<void>()
  const go = Promise.withResolvers<void>()
  const store = {
    ...before.store,
    get: async (...args: Parameters<typeof before.store.get>) => {
      reading.resolve()
      await go.promise
      return before.store.get(...args)
    },
  }
  let restored: Promise<unknown> = Promise.resolve()
  await sameNumberTwice(
    async () => {
      await update(before, 'lost')
      restored = restoreSource(
        {
          pool,
          store,
          config: before.config().offload,
          rate: Number.POSITIVE_INFINITY,
          signal: new AbortController().signal,
          mayGoOn: () => true,
          onProgress: () => undefined,
          onFailure: () => undefined,
        },
        source,
        { rowId: id, tenantId: null },
      )
      await reading.promise
    },
    async () => void (await update(after, 'kept')),
    id,
  )
  address.retarget(replica.postgres.url())
  go.resolve()
  await restored.catch(() => undefined)
  const { rows } = await after.admin.query<{ metadata: Record<string, unknown> }>(
    'select metadata from conversation_messages where id = $1',
    [id],
  )
  expect(rows[0]?.metadata).toMatchObject({ kept: 1 })
  expect(rows[0]?.metadata).not.toHaveProperty('lost')
})

test('a split brain: whichever sweeps second deletes nothing and objects, and then neither deletes', async () => {
  const { daemon } = await start()
  const written = await write(before, 'both have it')
  await drained(before)
  await daemon.stop()
  await replica.caughtUp()
  await replication.refuse()
  await replica.promote()
  // At the old primary, which goes on, the row's artifact is due to be deleted; the new one's rows need it.
  const keys = await bucketKeys(before)
  await before.admin.query(`update lighter.objects set state = 'deleting', delete_after = now()`)
  await before.admin.query('delete from artifact_refs')

  await runNow(after, 'orphans')
  expect(await errorOf(runNow(before, 'orphans'))).toMatchObject({ code: 'stale_copy' })
  expect(await bucketKeys(before)).toEqual(keys)
  await expectWhole(after, written)
  // Nobody but the operator knows which of the two is to live.
  expect(await errorOf(runNow(after, 'orphans'))).toMatchObject({
    code: 'contested',
    hint: expect.stringContaining('lighter adopt'),
  })
  expect(await errorOf(startDaemon(before))).toMatchObject({ code: 'stale_copy' })

  const adopted = await runCli(['adopt', '--yes'], { env: after.env })
  expect(adopted.code, adopted.stderr).toBe(0)
  expect(await runNow(after, 'orphans')).toMatchObject({ outcome: 'done' })
  expect(await errorOf(runNow(before, 'orphans'))).toMatchObject({ code: 'stale_copy' })
  expect(await bucketKeys(before)).toEqual(keys)
})

test('the old primary sweeps first: the new one deletes nothing until it has adopted the prefix', async () => {
  await claimOwnership(before.worker, before.store)
  const { daemon } = await start()
  const written = await write(before, 'both have it')
  await drained(before)
  await replica.caughtUp()
  await replication.refuse()
  // The epoch that this sweep writes is not known to the replica.
  await runNow(before, 'orphans')
  await replica.promote()
  expect([await epochOf(before), await epochOf(after)]).toEqual([1, 0])
  address.retarget(replica.postgres.url())
  await after.admin.query(
    `insert into lighter.objects (tenant_id, r2_key, kind, state, content_type, artifact_count, lease_until)
     values ($1, $2, 'k', 'uploading', 'application/json', 1, now() - interval '1 day')`,
    [randomUUID(), `${after.store.prefix}tenants/x`],
  )
  await age(after, '1 day')
  const keys = await bucketKeys(after)
  expect(await errorOf(runNow(after, 'orphans'))).toMatchObject({ code: 'stale_copy' })
  expect(await bucketKeys(after)).toEqual(keys)
  // Offloading goes on meanwhile: it only adds.
  const later = await write(after, 'later')
  await drained(after)
  await daemon.stop()
  await expectWhole(after, new Map([...written, ...later]))

  const adopted = await runCli(['adopt', '--yes'], { env: after.env })
  expect(adopted.code, adopted.stderr).toBe(0)
  expect(await runNow(after, 'orphans')).toMatchObject({ outcome: 'done', counts: { orphans: 1 } })
  const restarted = await startDaemon(after)
  await restarted.stop()
})
