// The database in trouble while a batch is under way: the daemon lives, and nothing is lost.
import { beforeEach, describe, expect, test } from 'vitest'
import type { BatchResult } from '../../src/offload/batch-result.ts'
import type { SignalPoint } from '../../src/offload/signals.ts'
import {
  asJsonbText,
  createSignals,
  drained,
  hydrated,
  hydratedMany,
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  until,
  useFreshEnvironment,
} from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'
import { spawnDaemon } from '../support/spawn-daemon.ts'

const environment = useFreshEnvironment()
let conversationId: string
beforeEach(async () => {
  conversationId = (await newConversation(environment)).conversationId
})

const heavy = '{"tool_interactions": ["heavy"]}'
const terminate = () =>
  environment.admin.query(
    `select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and usename = 'lighter_worker'`,
  )

describe.for<SignalPoint>(['after-claim', 'after-plan', 'after-register', 'after-upload', 'before-commit'])(
  'every connection of the daemon is cut at %s',
  point => {
    test('it goes on, and the row is offloaded', async () => {
      const signals = createSignals()
      const daemon = await startDaemon(environment, {
        signal: signals.signal,
        env: { OFFLOAD_LEASE_MS: '1000' },
      })
      const hold = signals.holdAt(point)
      const id = await insertMessage(environment, conversationId, heavy)
      await hold.reached
      await terminate()
      hold.release()
      await drained(environment)
      await daemon.stop()
      expect(await rawMetadata(environment, id)).toContain('_ref')
      expect(await hydrated(environment, id)).toBe(heavy)
      expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
    })
  },
)

test('connections cut all the time, in statements and in transactions, cost nothing but time', async () => {
  const daemon = await spawnDaemon(environment, {
    env: {
      OFFLOAD_LEASE_MS: '1000',
      OFFLOAD_BATCH_ROWS: '20',
      STREAM_THRESHOLD_BYTES: '65536',
      LOG_LEVEL: 'silent',
    },
  })
  const written = new Map<string, string | null>()
  for (let round = 0; round < 12; round++) {
    for (let n = 0; n < 25; n++) {
      const metadata = `{"tool_interactions": [${round}, ${n}], "trace": "${'~'.repeat(n === 0 ? 200_000 : 100)}"}`
      written.set(await insertMessage(environment, conversationId, metadata), metadata)
    }
    await terminate()
  }
  await drained(environment, 50_000)
  daemon.kill('SIGTERM')
  expect(await daemon.ended, 'the same process all along').toEqual({ code: 0, signal: null })
  const texts = await hydratedMany(environment, [...written.keys()])
  for (const [i, metadata] of [...written.values()].entries()) {
    expect(texts[i]).toBe(await asJsonbText(environment, metadata))
  }
  expect(await strayArtifacts(environment)).toEqual([])
  expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
})

test('an object swept away as an orphan before the commit is not pointed to', async () => {
  const signals = createSignals()
  const results: BatchResult[] = []
  const daemon = await startDaemon(environment, {
    signal: signals.signal,
    onResult: result => results.push(result),
  })
  const hold = signals.holdAt('before-commit')
  const id = await insertMessage(environment, conversationId, heavy)
  await hold.reached
  // As the orphan sweep does it: first the record, then the bytes.
  const { rows } = await environment.admin.query<{ key: string }>(
    `update lighter.objects set state = 'deleting', delete_after = now() where state = 'uploading' returning r2_key as key`,
  )
  await environment.store.delete(rows.map(row => row.key))
  hold.release()
  await drained(environment)
  await daemon.stop()
  expect(results.some(result => result.rowError?.includes('orphans'))).toBe(true)
  expect(await hydrated(environment, id)).toBe(heavy)
  expect(await strayArtifacts(environment)).toEqual([])
})

test('a row on which every daemon dies becomes a dead letter, and takes no other row with it', async () => {
  // The bad row is the one that a process, once it has claimed it, does not survive.
  const ids: string[] = []
  for (let n = 0; n < 30; n++)
    ids.push(await insertMessage(environment, conversationId, `{"tool_interactions": [${n}]}`))
  await environment.admin.query(`
    create table poison (row_id text);
    insert into poison values ('${ids[7]}');
    grant select on poison to public;
    create function die() returns trigger language plpgsql security definer set search_path = public, lighter as $$
    begin
      if exists (select from poison p where p.row_id::uuid = any (new.row_uuids)) then perform pg_terminate_backend(pg_backend_pid()); end if;
      return null;
    end $$;
    create trigger die after insert on lighter.frames for each row execute function die();`)
  const daemon = await startDaemon(environment, {
    env: { OFFLOAD_LEASE_MS: '1000', OFFLOAD_MAX_ATTEMPTS: '4' },
  })
  await until(
    async () => {
      const { rows } = await environment.admin.query('select from lighter.failed_jobs')
      return rows.length > 0
    },
    'the bad row is given up',
    55_000,
  )
  await drained(environment)
  await daemon.stop()
  const { rows } = await environment.admin.query('select row_id from lighter.failed_jobs')
  expect(rows).toEqual([{ row_id: ids[7] }])
  const texts = await hydratedMany(environment, ids)
  expect(texts).toEqual(ids.map((_, n) => `{"tool_interactions": [${n}]}`))
}, 90_000)

test('rows that wait for their stream go back into the queue, unblamed, when the daemon stops', async () => {
  const signals = createSignals()
  const daemon = await startDaemon(environment, {
    signal: signals.signal,
    env: { STREAM_THRESHOLD_BYTES: '65536', STREAM_CONCURRENCY: '1' },
  })
  const hold = signals.holdAt('after-register')
  for (let n = 0; n < 10; n++) {
    await insertMessage(environment, conversationId, `{"n": ${n}, "trace": "${'~'.repeat(100_000)}"}`)
  }
  await hold.reached
  const stopped = daemon.stop()
  hold.release()
  expect(await stopped).toBe(true)
  const { rows } = await environment.admin.query(
    'select attempts, count(*)::int as jobs from lighter.jobs group by attempts',
  )
  expect(rows).toEqual([{ attempts: 0, jobs: 9 }])
})
