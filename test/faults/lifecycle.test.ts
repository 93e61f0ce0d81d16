// The commands that let things go are killed at their statements to Postgres, before these are done and after, when
// nobody has heard of it. Run again they finish: nothing goes that is needed, and nothing stays that is not.
import { randomUUID } from 'node:crypto'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import {
  drained,
  hydrated,
  insertMessage,
  newConversation,
  startDaemon,
  useFreshEnvironment,
} from '../support/environment.ts'
import { bucketMismatches, oddFrames, strayArtifacts } from '../support/invariants.ts'
import { runCli, startCli } from '../support/process.ts'
import { column, value } from '../support/sql.ts'
import { type FaultyPostgres, startFaultyPostgres } from '../support/statement-fault.ts'
import { age, bucketKeys, expireAfter90Days, runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()
let daemon: Daemon
let postgres: FaultyPostgres

beforeEach(async () => {
  daemon = await startDaemon(environment)
  postgres = await startFaultyPostgres(environment.urls.daemon)
})
afterEach(async () => {
  await daemon.stop()
})

const commit = /^commit$/
const purge = /ordinals = h\.inside, purged_at = now\(\)/

/** Some twenty processes, one after another. */
const timeout = 300_000

const env = () => ({
  ...environment.env,
  DATABASE_URL: postgres.through(environment.urls.daemon),
  ADMIN_DATABASE_URL: postgres.through(environment.urls.admin),
  SWEEP_BATCH_SIZE: '3',
})

/** Kills the command when it comes to the statement, once it has sent `after`; `done`: when Postgres has done it. */
async function killAt(args: string[], statement: RegExp, done: boolean, after = /^/) {
  const running = startCli(args, { env: env() })
  let killed = false
  let armed = false
  postgres.fault = sql => {
    armed ||= after.test(sql)
    if (killed || !armed || !statement.test(sql)) return null
    return done ? 'drop-answer' : 'drop'
  }
  postgres.onFault = () => {
    killed = true
    running.signal('SIGKILL')
  }
  await expect.poll(() => killed || running.hasEnded(), { timeout: 30_000, interval: 5 }).toBe(true)
  expect([killed, running.stdout()], String(statement)).toEqual([true, ''])
  await running.ended
  postgres.fault = () => null
}

/** To its end; the server may not have noticed yet that the last one is gone, and has its lock. */
async function run(...args: string[]) {
  for (;;) {
    const { code, stdout, stderr } = await runCli([...args, '--json'], { env: env() })
    expect(stderr).toBe('')
    if (code === 2) continue
    expect(code).toBe(0)
    return JSON.parse(stdout).counts
  }
}

/** Messages with an object each. */
async function messages(count: number, conversationId: string): Promise<string[]> {
  const ids: string[] = []
  for (let n = 0; n < count; n++) {
    ids.push(await insertMessage(environment, conversationId, `{"tool_interactions": [{"n": ${n}}]}`))
    await drained(environment)
  }
  return ids
}

async function expectWhole(ids: string[]) {
  for (const [n, id] of ids.entries())
    expect(await hydrated(environment, id)).toBe(`{"tool_interactions": [{"n": ${n}}]}`)
}

const count = (condition: string) =>
  value<number>(environment.admin, `select count(*)::int from artifact_refs where ${condition}`)

/** What every object's account says is what artifacts use, and what is in the bucket. */
async function expectConsistent() {
  expect(await oddFrames(environment.admin)).toEqual([])
  expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
  expect(
    await column(
      environment.admin,
      `select o.r2_key from lighter.objects o
        where o.state = 'stored' and coalesce(o.live_artifacts, o.artifact_count) <>
              (select count(*) from artifact_refs a where a.r2_key = o.r2_key and a.purged_at is null)
           or o.state = 'deleting' and exists (select from artifact_refs a where a.r2_key = o.r2_key and a.purged_at is null)`,
    ),
  ).toEqual([])
}

/** Time passes, and what is to go goes. */
async function settle(objects: number) {
  for (let round = 0; round < 3; round++) {
    await age(environment, '8 days')
    await runNow(environment, 'orphans')
  }
  await expectConsistent()
  expect(await bucketKeys(environment)).toHaveLength(objects)
}

test('retention, from the policy to the end', { timeout }, async () => {
  const { conversationId, tenantId } = await newConversation(environment)
  const held = await newConversation(environment, tenantId)
  // The oldest are looked at first.
  const gone = await messages(8, conversationId)
  const kept = await messages(4, held.conversationId)
  await environment.admin.query(
    `insert into lighter.legal_holds (tenant_id, entity_type, entity_id, reason) values ($1, 'conversation', $2, 'case')`,
    [tenantId, held.conversationId],
  )
  await expireAfter90Days(environment)
  await age(environment, '91 days')
  const expiry = /deleted_at = now\(\), deleted_reason = \$\d/
  await killAt(['sweep', 'retention'], expiry, false)
  expect(await count('deleted_at is not null')).toBe(0)
  // The transaction was not over: what is done is undone.
  await killAt(['sweep', 'retention'], expiry, true)
  expect(await count('deleted_at is not null')).toBe(0)
  // A frame at a time, with so small a batch.
  await killAt(['sweep', 'retention'], commit, true, expiry)
  expect(await count('deleted_at is not null')).toBe(1)
  expect(await run('sweep', 'retention')).toMatchObject({ expired: 7, purged: 0 })
  expect(await count(`deleted_reason = 'expired: standard plan, 90 days'`)).toBe(8)
  await expectConsistent()
  await expectWhole(kept)

  await age(environment, '8 days')
  const account = /live_artifacts = c\.artifacts/
  for (const [statement, done] of [
    [purge, false],
    [account, true],
    [commit, false],
  ] as const) {
    await killAt(['sweep', 'retention'], statement, done, purge)
    expect(await count('purged_at is not null')).toBe(0)
    await expectConsistent()
  }
  await killAt(['sweep', 'retention'], commit, true, purge)
  expect(await count('purged_at is not null')).toBe(3)
  await expectConsistent()
  expect(await run('sweep', 'retention')).toMatchObject({ expired: 0 })
  expect(await count('purged_at is not null')).toBe(8)
  await expectConsistent()
  await expectWhole(kept)

  // Out of the bucket, and that is put on record; twice.
  await age(environment, '3 hours')
  const record = /set first_deleted_at = now\(\)/
  await killAt(['sweep', 'retention'], record, false)
  await killAt(['sweep', 'retention'], record, true)
  await expectConsistent()
  await settle(4)
  await age(environment, '91 days')
  const forget = /lighter\.forget_artifacts\(/
  await killAt(['sweep', 'retention'], forget, false)
  expect(await count('true')).toBe(12)
  await killAt(['sweep', 'retention'], forget, true)
  expect(await count('true')).toBe(9)
  expect(await run('sweep', 'retention')).toMatchObject({ forgotten: 5 })
  await settle(4)
  expect(await strayArtifacts(environment)).toEqual([])
  await expectWhole(kept)
  expect(gone).toHaveLength(8)
})

test('release, from the mark to the tombstone, and back', { timeout }, async () => {
  const { conversationId } = await newConversation(environment)
  const kept = await messages(4, conversationId)
  const gone = await messages(8, conversationId)
  const copy = await value<string>(
    environment.admin,
    'select metadata::text from conversation_messages where id = $1',
    [gone[0]],
  )
  await environment.app.query('delete from conversation_messages where id = any ($1)', [gone])
  await age(environment, '2 hours')
  const args = ['sweep', 'release']
  // While it looks, and while it marks.
  await killAt(args, /insert into pointed_to/, true)
  await killAt(args, /insert into lighter\.moved_row_records/, false)
  const mark = /ordinals = h\.inside, released_at = now\(\)/
  await killAt(args, mark, false)
  expect(await count('released_at is not null')).toBe(0)
  await killAt(args, mark, true)
  expect(await count('released_at is not null')).toBe(0)
  await killAt(args, commit, true, mark)
  expect(await count('released_at is not null')).toBe(3)
  expect(await run(...args)).toMatchObject({ pointers: 4, unused: 8, released: 5, tombstoned: 0 })
  await expectWhole(kept)

  const pass = () =>
    environment.admin.query(
      `update artifact_refs set released_at = released_at - interval '8 days' where released_at is not null`,
    )
  await pass()
  const tombstone = /deleted_reason = 'released: no row points to it'/
  await killAt(args, tombstone, false)
  expect(await count('deleted_at is not null')).toBe(0)
  await killAt(args, tombstone, true)
  expect(await count('deleted_at is not null')).toBe(0)
  await killAt(args, commit, true, tombstone)
  expect(await count('deleted_at is not null')).toBe(3)
  expect(await run(...args)).toMatchObject({ tombstoned: 5 })
  // The application had the first one in hand.
  const back = randomUUID()
  await environment.app.query(
    `insert into conversation_messages (id, conversation_id, role, content, metadata) values ($1, $2, 'assistant', '', $3)`,
    [back, conversationId, copy],
  )
  const again = /ordinals = h\.inside, released_at = null, deleted_at = null/
  await killAt(args, again, false)
  expect(await count('deleted_at is not null')).toBe(8)
  await killAt(args, again, true)
  expect(await count('deleted_at is not null')).toBe(8)
  await killAt(args, commit, true, again)
  expect(await count('deleted_at is not null')).toBe(7)
  expect(await run(...args)).toMatchObject({ found_again: 0 })
  await expectWhole(kept)
  await expectWhole([back])

  await age(environment, '8 days')
  await killAt(['sweep', 'retention'], commit, true, purge)
  expect(await run('sweep', 'retention')).toMatchObject({ purged: 4 })
  await settle(5)
  await expectWhole(kept)
  await expectWhole([back])
})

test('detach, before a release', async () => {
  const { conversationId } = await newConversation(environment)
  const [kept, gone] = await messages(2, conversationId)
  const detach = ['detach', 'public.conversation_messages']
  await killAt(detach, /lighter\.detach/, false)
  expect(await column(environment.admin, 'select id from lighter.former_sources')).toEqual([])
  await killAt(detach, /lighter\.detach/, true)
  expect(await column(environment.admin, 'select id from lighter.former_sources')).toEqual([1])
  expect(await column(environment.admin, 'select id from lighter.sources')).toEqual([])
  const attach = ['attach', 'public.conversation_messages']
  await killAt(attach, /lighter\.attach/, true)
  expect((await runCli(attach, { env: env() })).code).toBe(0)
  await environment.app.query('delete from conversation_messages where id = $1', [gone])
  await age(environment, '2 hours')
  expect(await run('sweep', 'release')).toMatchObject({ released: 1 })
  await expectWhole([kept ?? ''])
})
