// The deep orphans sweep: the bucket and the account of it, compared both ways.
import { randomUUID } from 'node:crypto'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import { type ObjectStore, openStore } from '../../src/store/object-store.ts'
import {
  type DeepOptions,
  type MissingObject,
  sweepOrphansDeep,
  type UnknownObject,
} from '../../src/sweeps/orphans-deep.ts'
import { writeConversations } from '../support/conversations.ts'
import { hydratedMany, startDaemon, useFreshEnvironment } from '../support/environment.ts'
import { bucketMismatches } from '../support/invariants.ts'
import { runCli } from '../support/process.ts'
import { startFaultyStore } from '../support/request-fault.ts'
import { errorOf } from '../support/sql.ts'
import { runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()
let daemon: Daemon

beforeEach(async () => {
  daemon = await startDaemon(environment)
})
afterEach(async () => {
  await daemon.stop()
})

/** The store two days later: what is in it has become older. */
function aged(store: ObjectStore): ObjectStore {
  return {
    ...store,
    async *list(prefix) {
      for await (const entry of store.list(prefix)) {
        yield {
          ...entry,
          lastModified: entry.lastModified && new Date(entry.lastModified.getTime() - 2 * 86_400_000),
        }
      }
    },
  }
}

async function compare(
  options: Partial<DeepOptions> & {
    store?: ObjectStore
    batchSize?: number
    dryRun?: boolean
    stopAfter?: number
  } = {},
) {
  const unknown: UnknownObject[] = []
  const missing: MissingObject[] = []
  const stop = new AbortController()
  let batches = 0
  const { outcome, counts } = await runNow(environment, 'orphans', {
    config: { batchSize: options.batchSize ?? 5 },
    dryRun: options.dryRun ?? false,
    signal: stop.signal,
    sweep: context =>
      sweepOrphansDeep(
        {
          ...context,
          store: options.store ?? aged(context.store),
          onProgress: now => {
            context.onProgress(now)
            if (++batches === options.stopAfter) stop.abort()
          },
        },
        {
          deleteUnknown: false,
          maxDeletions: 1000,
          onUnknown: found => unknown.push(found),
          onMissing: found => missing.push(found),
          ...options,
        },
      ),
  })
  return { outcome, counts, unknown, missing }
}

const put = (key: string) =>
  environment.store.put(key, Buffer.from('{}'), { contentType: 'application/json' })

/** Two tenants' conversations, and keys that nobody knows: before, between and after the known ones. */
async function withUnknown() {
  const tenants = await writeConversations(environment, { messages: 400, tenants: 2 })
  const [first] = tenants
  if (first === undefined) throw new Error('no tenant')
  const { prefix } = environment.store
  const named = (kind: string, extension = 'json') => `${kind}/2026/01/02/${randomUUID()}.${extension}`
  const unknown = [
    `${prefix}tenants/00000000-0000-4000-8000-000000000000/${named('agent_trace')}`,
    `${prefix}tenants/${first.tenantId}/${named('a', 'jsonl.zst')}`,
    `${prefix}tenants/${first.tenantId}/${named('ü🙂', 'bin')}`,
    `${prefix}tenants/${first.tenantId}/${named('ü\uffe6', 'jsonl.gz')}`,
    `${prefix}tenants/${first.tenantId}/${named('zzz', 'jsonl')}`,
    `${prefix}tenants/ffffffff-ffff-4fff-8fff-ffffffffffff/${named('agent_trace')}`,
  ]
  for (const key of unknown) await put(key)
  // Not such as we write: whoever put them there, they stay.
  const foreign = [
    `${prefix}photos/a.json`,
    `${prefix}tenants/acme/a.json`,
    // Of a tenant of ours, but no key that we make: the application's own files.
    `${prefix}tenants/${first.tenantId}/uploads/avatar.png`,
    `${prefix}tenants/${first.tenantId}/agent_trace/a.json`,
    `${prefix}tenants/${first.tenantId}/agent_trace/2026/01/02/report.json`,
    `${prefix}tenants/${randomUUID()}2/a.json`,
    `${prefix}staging/tenants/${randomUUID()}/agent_trace/a.json`,
  ]
  for (const key of foreign) await put(key)
  return { tenants, first, unknown, foreign }
}

test('reports what nobody knows, and deletes it only when asked to, never what could be somebody else’s', async () => {
  const { tenants, first, unknown, foreign } = await withUnknown()
  // Known by an artifact alone: stored by the application before us.
  const own = `${environment.store.prefix}tenants/${first.tenantId}/chat_transcript/own.json`
  await put(own)
  await environment.admin.query(
    `insert into artifact_refs (tenant_id, kind, r2_key) values ($1, 'chat_transcript', $2)`,
    [first.tenantId, own],
  )
  const rowIds = tenants.flatMap(t => t.rowIds)
  const before = await hydratedMany(environment, rowIds)

  const report = await compare()
  expect(report.unknown.map(u => u.key).sort()).toEqual([...unknown].sort())
  expect(report.counts).toMatchObject({
    objects_unknown: unknown.length,
    objects_missing: 0,
    unknown_deleted: 0,
    // And the owner object.
    // The owner object, and the application's own, which is none of ours by its name.
    objects_foreign: foreign.length + 2,
  })
  // None of them is old enough yet.
  const young = await compare({ store: environment.store, deleteUnknown: true })
  expect(young.counts).toMatchObject({ unknown_deleted: 0 })
  expect(new Set(young.unknown.map(u => u.kept))).toEqual(new Set(['too young']))
  const dry = await compare({ deleteUnknown: true, dryRun: true })
  expect(dry.counts).toMatchObject({ unknown_deleted: unknown.length })
  for (const key of unknown) expect(await environment.store.head(key)).not.toBeNull()

  // Not more than allowed; the next run takes the rest.
  const some = await compare({ deleteUnknown: true, maxDeletions: 4 })
  expect(some.counts).toMatchObject({ unknown_deleted: 4, over_the_limit: 2 })
  expect((await compare({ deleteUnknown: true })).counts).toMatchObject({ unknown_deleted: 2 })
  for (const key of unknown) expect(await environment.store.head(key)).toBeNull()
  for (const key of [...foreign, own]) expect(await environment.store.head(key)).not.toBeNull()
  expect(await hydratedMany(environment, rowIds)).toEqual(before)
  expect((await compare()).counts).toMatchObject({ objects_unknown: 0, objects_missing: 0 })
})

test('an object that becomes known while it is looked at stays', async () => {
  const { first, unknown } = await withUnknown()
  const [, found] = unknown
  if (found === undefined) throw new Error('no key')
  const store = aged(environment.store)
  let registered = false
  await compare({
    deleteUnknown: true,
    batchSize: 500,
    store: {
      ...store,
      // When all has been listed, and before anything is deleted, it comes onto record, as an upload that has only
      // just begun.
      async *list(prefix) {
        yield* store.list(prefix)
        registered = true
        await environment.admin.query(
          `insert into lighter.objects (tenant_id, r2_key, kind, content_type, artifact_count, lease_until)
           values ($1, $2, 'agent_trace', 'application/json', 1, now() + interval '1 hour')`,
          [first.tenantId, found],
        )
      },
      delete: async keys => {
        expect(keys).not.toContain(found)
        await store.delete(keys)
      },
    },
  })
  expect(registered).toBe(true)
  expect(await environment.store.head(found)).not.toBeNull()
})

test('stored objects that are gone are reported with their artifacts; what leaves on purpose is not', async () => {
  const tenants = await writeConversations(environment, { messages: 400, tenants: 2 })
  const { rows } = await environment.admin.query<{ key: string; artifacts: number }>(
    `select o.r2_key as key, count(a.id)::int as artifacts
       from lighter.objects o join artifact_refs a using (tenant_id, r2_key) group by 1 order by 2 desc, 1`,
  )
  const [lost, alsoLost, leaving] = rows
  if (lost === undefined || alsoLost === undefined || leaving === undefined)
    throw new Error('three objects are needed')
  await environment.store.delete([lost.key, alsoLost.key, leaving.key])
  await environment.admin.query(
    `update lighter.objects set state = 'deleting', delete_after = now() + interval '1 hour' where r2_key = $1`,
    [leaving.key],
  )
  const found = await compare({ batchSize: 2 })
  expect(new Map(found.missing.map(m => [m.key, m.artifacts]))).toEqual(
    new Map([lost, alsoLost].map(o => [o.key, o.artifacts])),
  )
  expect(found.counts).toMatchObject({
    objects_missing: 2,
    artifacts_affected: lost.artifacts + alsoLost.artifacts,
    objects_unknown: 0,
  })
  expect(tenants.map(t => t.tenantId)).toContain(found.missing[0]?.tenant_id)
  expect(found.missing[0]?.artifact_ids.length).toBeGreaterThan(0)

  const cli = await runCli(['sweep', 'orphans', '--deep', '--json'], { env: environment.env })
  expect(cli.code).toBe(1)
  expect(JSON.parse(cli.stdout)).toMatchObject({ counts: { objects_missing: 2 }, unknown: [] })
  const said = await runCli(['sweep', 'orphans', '--deep'], { env: environment.env })
  expect(said.stdout).toContain(lost.key)
  const misplaced = await runCli(['sweep', 'orphans', '--delete-unknown'], { env: environment.env })
  expect(misplaced.stderr).toContain('orphans --deep')
})

test('stopped in the middle it says nothing of what it did not look at', async () => {
  await withUnknown()
  const { outcome, missing, counts } = await compare({ batchSize: 2, stopAfter: 2 })
  expect(outcome).toBe('stopped')
  expect(missing).toEqual([])
  expect(counts.objects_listed).toBeLessThan(10)
})

test('when the store goes away in the middle nothing is said to be missing; another bucket is refused', async () => {
  await withUnknown()
  const config = environment.config().store
  const faulty = await startFaultyStore(config.endpoint)
  const store = openStore({ ...config, endpoint: faulty.endpoint, timeoutMs: 2000 })
  faulty.fault = (method, path) => (method === 'GET' && path.includes('list-type') ? 503 : null)
  expect(await errorOf(compare({ store }))).toMatchObject({ code: 'store_unavailable' })
  store.close()
  await faulty.close()
  const elsewhere = openStore({ ...config, prefix: `${config.prefix}elsewhere/` })
  expect(await errorOf(compare({ store: elsewhere, deleteUnknown: true }))).toMatchObject({
    code: 'owner_object_missing',
  })
  elsewhere.close()
})

test('a copy of the database deletes nothing', async () => {
  const { unknown } = await withUnknown()
  await environment.admin.query('update lighter.installation set owner_epoch = owner_epoch - 1')
  expect(await errorOf(compare({ deleteUnknown: true }))).toMatchObject({ code: 'stale_copy' })
  for (const key of unknown) expect(await environment.store.head(key)).not.toBeNull()
  expect((await bucketMismatches(environment)).missing).toEqual([])
})
