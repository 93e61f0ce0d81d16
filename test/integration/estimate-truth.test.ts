// What `lighter estimate` says of a table before anything is installed, against what really happens to it: attached, backfilled,
// flushed, vacuumed and rewritten. Sizes within 10 %, PUTs within 20 %.
import { describe, expect, test } from 'vitest'
import { isClassA } from '../../bench/support/class-a.ts'
import { createHandWorker } from '../../bench/support/hand-worker.ts'
import { sweepNow } from '../../bench/support/sweep-now.ts'
import { backfillSource } from '../../src/backfill/backfill.ts'
import { migrate } from '../../src/db/migrate.ts'
import { createPool } from '../../src/db/pool.ts'
import { type Estimate, estimate } from '../../src/estimate/estimate.ts'
import { loadSources } from '../../src/source/sources.ts'
import { openStore } from '../../src/store/object-store.ts'
import { createEnvironment, type TestEnvironment } from '../support/environment.ts'
import { type EstimatedTable, estimatedTables } from '../support/estimated-tables.ts'
import { connect, value } from '../support/sql.ts'

const options = (zoo: EstimatedTable) => ({
  table: zoo.table,
  column: zoo.column,
  said: zoo.attach?.said ?? {},
  limits: { pages: 2000, bytes: 64_000_000, timeoutMs: 30_000 },
  lockTimeoutMs: 2000,
  rowsPerSecond: null,
  timeColumn: null,
  tenants: null,
  keptDays: 90,
  prices: {},
})

async function estimated(environment: TestEnvironment, zoo: EstimatedTable, limits = {}): Promise<Estimate> {
  const client = await connect(environment.urls.admin)
  try {
    return await estimate(client, { ...options(zoo), limits: { ...options(zoo).limits, ...limits } })
  } finally {
    await client.end()
  }
}

const tableBytes = (environment: TestEnvironment, zoo: EstimatedTable) =>
  value<number>(environment.admin, `select pg_total_relation_size($1::regclass)::int`, [zoo.table])

/** Everything of schema lighter, after a VACUUM. */
const ourBytes = (environment: TestEnvironment) =>
  value<number>(
    environment.admin,
    `select sum(pg_total_relation_size(oid))::int from pg_class
      where relkind in ('r', 'S', 'm') and relnamespace = 'lighter'::regnamespace`,
  )

/** Attaches, backfills and flushes. @returns class A operations */
async function offloadAll(environment: TestEnvironment, zoo: EstimatedTable): Promise<number> {
  const client = await connect(environment.urls.admin)
  await migrate(client)
  await client.end()
  await environment.admin.query(
    `select lighter.attach($1::regclass, $2::name${zoo.attach === undefined ? '' : `, ${zoo.attach.sql}`})`,
    [zoo.table, zoo.column],
  )
  let puts = 0
  const { offload, store: storeConfig } = environment.config()
  const store = openStore(storeConfig, operation => {
    if (isClassA(operation)) puts++
  })
  const pool = createPool(environment.urls.daemon, 4, () => undefined)
  try {
    const sources = await loadSources(pool)
    const [source] = sources.values()
    if (source === undefined) throw new Error('it was not attached')
    const throttle = { rate: Number.POSITIVE_INFINITY, maxQueue: 50_000, maxLagSeconds: 10 }
    const context = { pool, throttle, signal: new AbortController().signal, onProgress: () => undefined }
    await backfillSource(context, source, { tenantId: null, cutoff: null, ageColumn: null }, null, false)
    await environment.admin.query('select lighter.flush(null, null)')
    const result = await createHandWorker({ pool, store, config: offload }).work(() => sources)
    expect(result).toMatchObject({ failed: 0, deadLetters: 0, outage: null })
    return puts
  } finally {
    store.close()
    await pool.end()
  }
}

const within = (estimate: number, truth: number, part: number, what: string) =>
  expect(
    Math.abs(estimate / truth - 1),
    `${what}: ${Math.round(estimate)} estimated, ${truth} really`,
  ).toBeLessThan(part)

describe.each(estimatedTables)('$name', zoo => {
  test('becomes what was estimated', async () => {
    const environment = await createEnvironment({ empty: true })
    try {
      await environment.admin.query(`create schema zoo; ${zoo.create}`)
      await zoo.fill(environment.admin)
      const fresh = await tableBytes(environment, zoo)
      const e = await estimated(environment, zoo)
      const weight = e.asAttached
      const part = await estimated(environment, zoo, { pages: 60, bytes: 500_000 })
      if (weight === null || part.asAttached === null) throw new Error('no estimate')
      await environment.admin.query(`vacuum full ${zoo.table}`)
      const rewritten = await tableBytes(environment, zoo)
      const puts = await offloadAll(environment, zoo)
      await sweepNow(environment as never, 'rollup')
      await environment.admin.query('vacuum analyze')
      await environment.admin.query(`vacuum full ${zoo.table}`)
      const after = await tableBytes(environment, zoo)
      const ours = await ourBytes(environment)
      const stored = await environment.admin.query(
        `select count(*)::int as artifacts, sum(size_bytes)::float8 as bytes, (select sum(byte_length)::float8 from lighter.objects) as bucket, (select count(*)::int from lighter.frames) as frames from public.artifact_refs`,
      )
      if (process.env.SHOW)
        console.log(
          zoo.table,
          JSON.stringify({ fresh, rewritten, after, ours, puts, ...stored.rows[0] }),
          '\n',
          JSON.stringify({
            ...weight.table,
            ours: weight.ours,
            ...weight.leaving,
            ...weight.backfill,
            steady: weight.steady,
            bill: weight.bill,
            t: weight.tenants.total,
            share: e.storedShare,
            rate: e.rate,
            advice: e.advice,
            caveats: e.caveats,
          }),
        )
      expect(weight.table.now).toBe(fresh)
      within(weight.table.rewritten, rewritten, 0.1, 'the table, rewritten')
      within(weight.table.after, after, 0.1, 'the table after')
      within(weight.ours, ours, 0.1, 'our tables')
      // By 60 pages, and by what is opened within 500 KB: as sure as it says.
      const sure = (interval: number) => 0.1 + 1.5 * interval
      within(
        part.asAttached.table.after,
        after,
        sure(part.sample.interval.tableAfter),
        'the table after, by a part',
      )
      within(
        part.asAttached.leaving.payloadBytes,
        stored.rows[0].bytes,
        sure(part.sample.interval.payloadBytes),
        'text, by a part',
      )
      within(weight.leaving.artifacts, stored.rows[0].artifacts, 0.02, 'artifacts')
      within(weight.leaving.payloadBytes, stored.rows[0].bytes, 0.05, 'text')
      if (e.storedShare.basis === 'measured')
        within(weight.backfill.bucketBytes, stored.rows[0].bucket, 0.25, 'the bucket')
      within(weight.backfill.puts, puts, 0.2, 'PUTs')
    } finally {
      await environment.close()
    }
  }, 90_000)
})
