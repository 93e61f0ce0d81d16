// Named statements are for connections that are server sessions; behind a pooler the names would get lost.
import { expect, onTestFinished, test } from 'vitest'
import { createPool, type Queryable } from '../../src/db/pool.ts'
import { claimInbox } from '../../src/offload/claim.ts'
import { commitBatch } from '../../src/offload/commit.ts'
import { newTokens, planRows } from '../../src/offload/plan.ts'
import { loadSources } from '../../src/source/sources.ts'
import {
  asJsonbText,
  drained,
  hydrated,
  insertMessage,
  newConversation,
  startDaemon,
  useEnvironment,
} from '../support/environment.ts'
import { leaseRows } from '../support/queue.ts'
import { startTcpProxy } from '../support/tcp-proxy.ts'

const environment = await useEnvironment()

function poolOf(url: string) {
  const pool = createPool(url, 1, () => undefined)
  onTestFinished(() => pool.end())
  return pool
}

const queryable = (pool: Queryable): Queryable => pool

const prepared = 'select name, generic_plans + custom_plans as runs from pg_prepared_statements'

test('on a direct connection a statement to prepare is planned under one name', async () => {
  const pool = poolOf(environment.urls.daemon)
  for (let n = 0; n < 3; n++) {
    const { rows } = await queryable(pool).query<{ n: number }>({
      text: 'select $1::int as n',
      values: [n],
      prepare: true,
    })
    expect(rows).toEqual([{ n }])
  }
  const { rows } = await pool.query(prepared)
  expect(rows).toEqual([{ name: expect.stringMatching(/^lighter_[0-9a-f]{24}$/), runs: '3' }])
})

test('the statements of a small batch are planned once, not for each batch', async () => {
  const pool = poolOf(environment.urls.daemon)
  const [source] = (await loadSources(pool)).values()
  if (source === undefined) throw new Error('no table is attached')
  const { conversationId } = await newConversation(environment)
  const rowId = await insertMessage(environment, conversationId, '{"model": "m"}')
  const job = async () => {
    const [only] = (await leaseRows(environment.admin, source.id, [rowId])).jobs
    if (only === undefined) throw new Error('the lease is empty')
    return only
  }
  const limits = { budgetBytes: 1e6, streamThresholdBytes: 1e6, maxPayloadBytes: 1e6 }
  for (let n = 0; n < 20; n++) {
    const rows = await planRows(pool, source, [await job()], limits, newTokens())
    expect(rows).toMatchObject([{ outcome: 'nothing' }])
    expect((await commitBatch(pool, rows, new Map(), [], 8)).done.size).toBe(1)
  }
  const { rows } = await pool.query(
    'select generic_plans::int, custom_plans::int from pg_prepared_statements',
  )
  // Postgres tries its luck with the first five. Plan, rewrite, bookkeeping, and the end of the lease.
  expect(rows).toEqual(Array.from({ length: 4 }, () => ({ generic_plans: 15, custom_plans: 5 })))

  // A source that was paused meanwhile has another version, but no other statements, which a session would keep.
  const outdated = await job()
  const planned = await planRows(pool, source, [outdated], limits, newTokens())
  await environment.admin.query('update lighter.sources set paused = true')
  await environment.admin.query('update lighter.sources set paused = false')
  expect(await commitBatch(pool, planned, new Map(), [], 8)).toMatchObject({ changed: [outdated] })
  const [reloaded] = (await loadSources(pool)).values()
  if (reloaded === undefined) throw new Error('no table is attached')
  const again = await planRows(pool, reloaded, [await job()], limits, newTokens())
  expect((await commitBatch(pool, again, new Map(), [], 8)).done.size).toBe(1)
  expect((await pool.query('select from pg_prepared_statements')).rowCount).toBe(4)
})

test('what stays in the rows counts, too, for how many are planned at once', async () => {
  const pool = poolOf(environment.urls.daemon)
  await environment.admin.query('update lighter.sources set threshold_bytes = 100000')
  try {
    const [source] = (await loadSources(pool)).values()
    if (source === undefined) throw new Error('no table is attached')
    const { conversationId } = await newConversation(environment)
    const stays = `{"tool_interactions": [1], "text": "${'x'.repeat(50_000)}"}`
    for (let n = 0; n < 6; n++) await insertMessage(environment, conversationId, stays)
    const { lease } = await claimInbox(pool, [source.id], 100, 60_000)
    const rows = await planRows(
      pool,
      source,
      lease?.jobs ?? [],
      { budgetBytes: 120_000, streamThresholdBytes: 1e6, maxPayloadBytes: 1e6 },
      newTokens(),
    )
    expect(rows.map(row => row.outcome)).toEqual([
      'offload',
      'offload',
      'deferred',
      'deferred',
      'deferred',
      'deferred',
    ])
    expect(rows.reduce((sum, row) => sum + (row.target?.length ?? 0), 0)).toBeLessThanOrEqual(120_000)
  } finally {
    await environment.admin.query(
      'update lighter.sources set threshold_bytes = null; truncate lighter.leases',
    )
  }
})

test('others are not', async () => {
  const pool = poolOf(environment.urls.daemon)
  await pool.query({ text: 'select $1::int as n', values: [1] })
  await pool.query('select $1::int as n', [1])
  expect((await pool.query(prepared)).rows).toEqual([])
})

test('behind a pooler no name is used, and rows are offloaded all the same', async () => {
  const proxy = await startTcpProxy(environment.urls.daemon, { pooler: true })
  const pool = poolOf(proxy.through(environment.urls.daemon))
  await queryable(pool).query({ text: 'select $1::int as n', values: [1], prepare: true })
  expect((await pool.query(prepared)).rows).toEqual([])

  const daemon = await startDaemon(environment, {
    env: { DATABASE_URL: proxy.through(environment.urls.daemon) },
  })
  onTestFinished(() => daemon.stop().then(() => undefined))
  const { conversationId } = await newConversation(environment)
  const metadata = '{"tool_interactions": [1]}'
  const id = await insertMessage(environment, conversationId, metadata)
  await drained(environment)
  expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, metadata))
})

test('a table attached anew in another way is another statement', async () => {
  const daemon = await startDaemon(environment, { env: { DATABASE_POOL_SIZE: '2' } })
  onTestFinished(() => daemon.stop().then(() => undefined))
  const { conversationId } = await newConversation(environment)
  const metadata = `{"steps": "${'x'.repeat(9000)}", "note": 1}`
  const write = async () => {
    const id = await insertMessage(environment, conversationId, metadata)
    await drained(environment)
    expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, metadata))
    const { rows } = await environment.admin.query(
      `select metadata ? 'note' as kept from conversation_messages where id = $1`,
      [id],
    )
    return rows[0]?.kept
  }
  for (let n = 0; n < 8; n++) expect(await write()).toBe(false)
  await environment.admin.query(
    `update lighter.sources set envelope_keys = envelope_keys || '{note}'::text[]`,
  )
  // At once, although the daemon has looked the source up a moment ago.
  expect(await write()).toBe(true)
})
