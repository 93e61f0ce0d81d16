// Rows that no trigger queues: the sweep scan finds them.
import { beforeEach, describe, expect, test } from 'vitest'
import { loadSources } from '../../src/source/sources.ts'
import { sweepScan } from '../../src/sweeps/scan.ts'
import { workByHand } from '../support/by-hand.ts'
import { useEnvironment } from '../support/environment.ts'
import { runCli } from '../support/process.ts'
import { emptyQueue } from '../support/queue.ts'
import { column, value } from '../support/sql.ts'
import { runNow } from '../support/sweep.ts'
import { finished, type WhenTable, whenTables } from '../support/when-tables.ts'

const environment = await useEnvironment()
const { admin, app } = environment
const { work } = workByHand(environment)
const { attachTable, newTable, insert, isInline, queued, refusals } = whenTables(environment)

beforeEach(async () => {
  await emptyQueue(environment)
  await admin.query('delete from lighter.flushes')
})

/** Ends as the sweep does: a few minutes later it runs again. */
const scan = async () => (await runNow(environment, 'scan')).counts

describe('the sweep scan', () => {
  beforeEach(async () => {
    // Tables of other tests are looked through as well.
    await admin.query('update lighter.sources set paused = true')
  })

  test('finds rows whose time has come, and queues them behind those that are written now', async () => {
    const table = await newTable(`when_sql => 'done_at < now()'`)
    const [past, future] = [
      await insert(table, { done_at: new Date(Date.now() - 1000) }),
      await insert(table, { done_at: new Date(Date.now() + 3_600_000) }),
    ]
    await work()
    expect([await isInline(table, past), await isInline(table, future)]).toEqual([false, true])
    expect(await queued(table)).toEqual([])
    expect(await scan()).toMatchObject({ tables: 1, rows_seen: 2, rows_queued: 0 })
    // Time passes: nothing is written that the trigger would see.
    await admin.query(
      `set session_replication_role = replica; update ${table.name} set done_at = done_at - interval '2 hours'; reset session_replication_role`,
    )
    expect(await queued(table)).toEqual([])
    expect(await scan()).toMatchObject({ rows_queued: 1 })
    expect(
      await column(admin, 'select priority from lighter.waiting where source_id = $1', [table.sourceId]),
    ).toEqual([10])
    // It is queued once.
    expect(await scan()).toMatchObject({ rows_queued: 0 })
    expect(await work()).toMatchObject({ offloadedRows: 1 })
    expect(await isInline(table, future)).toBe(false)
    expect(await scan()).toMatchObject({ rows_seen: 2, rows_queued: 0 })
  })

  test('does not look through tables whose trigger sees all', async () => {
    await newTable(finished)
    expect(await scan()).toMatchObject({ tables: 0 })
  })

  test('goes on where it was stopped, and begins again after the last row', async () => {
    const table = await newTable(`${finished}, trigger => false`)
    await app.query(
      `insert into ${table.name} (tenant_id, status, payload) select gen_random_uuid(), 'finished', repeat('y', 9000) from generate_series(1, 1200)`,
    )
    const stop = new AbortController()
    const first = await runNow(environment, 'scan', {
      signal: stop.signal,
      sweep: context =>
        sweepScan({
          ...context,
          onProgress: counts => {
            context.onProgress(counts)
            stop.abort()
          },
        }),
    })
    expect(first.counts).toMatchObject({ rows_seen: 500, rows_queued: 500 })
    const position = () =>
      value(admin, 'select position from lighter.scans where source_id = $1', [table.sourceId])
    expect(await position()).toBe('500')
    expect(await scan()).toMatchObject({ rows_seen: 700, rows_queued: 700 })
    expect(await position()).toBe(null)
    expect(await scan()).toMatchObject({ rows_seen: 1200, rows_queued: 0 })
  })

  test('uses a partial index on the key, and says which would help', async () => {
    const table = await newTable(`${finished}, trigger => false`)
    const hints = () =>
      column<string>(
        admin,
        `select hint from lighter.check_attach('${table.name}', 'payload') where what = 'warning'`,
      )
    expect((await hints()).join()).toContain(
      `create index concurrently on ${table.name} (id) where (status = 'finished'::text)`,
    )
    await admin.query(`create index on ${table.name} (id) where (status = 'finished')`)
    expect((await hints()).join()).toContain('It uses the index')
    for (const status of ['open', 'finished', 'open']) await insert(table, { status })
    expect(await scan()).toMatchObject({ rows_seen: 1, rows_queued: 1 })
    const source = (await loadSources(environment.worker)).get(table.sourceId)
    expect(source?.scansByIndex).toBe(true)
  })

  test.each([
    [`status = 'finished' and done_at < now()`, true],
    [`done_at < now() and n = 1 and status = 'finished'`, true],
    [`(status = 'finished') = false and done_at < now()`, false],
    [`n = 1 and (status = 'finished') is distinct from true`, false],
    [`status = 'finished' or n = 1`, false],
    [`not (status = 'finished' and n = 1)`, false],
  ])('takes an index for its own only if nothing else can hold: %s', async (when, isUsed) => {
    const table = await newTable(`when_sql => $when$${when}$when$, trigger => false`)
    await admin.query(`create index on ${table.name} (id) where (status = 'finished')`)
    const source = (await loadSources(environment.worker)).get(table.sourceId)
    expect(source?.scansByIndex).toBe(isUsed)
    await insert(table, { status: isUsed ? 'finished' : 'open', n: 1, done_at: new Date(Date.now() - 1000) })
    expect(await scan()).toMatchObject({ rows_queued: 1 })
  })

  test('leaves out a row on which the condition fails, and finds those behind it', async () => {
    const table = await newTable(`when_sql => '1 / n > 0', trigger => false`)
    const good = await insert(table, { n: 1 })
    const bad = await insert(table, { n: 0 })
    const behind = await insert(table, { n: 1 })
    expect(await scan()).toMatchObject({ rows_queued: 2, failed: 1 })
    expect(
      await column(admin, 'select row_id from lighter.waiting where source_id = $1 order by row_id', [
        table.sourceId,
      ]),
    ).toEqual([good, behind])
    expect(
      await column(admin, 'select row_id from lighter.when_failures where source_id = $1', [table.sourceId]),
    ).toEqual([bad])
  })

  test('finds out and changes nothing with --dry-run', async () => {
    const table = await newTable(`${finished}, trigger => false`)
    await insert(table, { status: 'finished' })
    expect((await runNow(environment, 'scan', { dryRun: true })).counts).toMatchObject({ rows_queued: 1 })
    expect(await queued(table)).toEqual([])
    expect(await column(admin, 'select 1 from lighter.scans where source_id = $1', [table.sourceId])).toEqual(
      [],
    )
  })
})

describe('without a trigger', () => {
  const triggers = ({ name }: WhenTable) =>
    column(admin, `select tgname from pg_trigger where tgrelid = '${name}'::regclass and not tgisinternal`)

  test('nothing is on the table; the scan finds its rows, and they settle first', async () => {
    await admin.query('update lighter.sources set paused = true')
    const table = await newTable(
      'trigger => false, ship_alone_bytes => 1024',
      `, settle_for => '1 minute', max_wait => '24 hours'`,
    )
    expect(await triggers(table)).toEqual([])
    const id = await insert(table)
    expect(await queued(table)).toEqual([])
    await scan()
    expect(await work()).toMatchObject({ waiting: 1, offloadedRows: 0 })
    await admin.query(
      `update lighter.waiting set available_at = available_at - interval '61 seconds' where source_id = $1`,
      [table.sourceId],
    )
    expect(await work()).toMatchObject({ offloadedRows: 1 })
    expect(await isInline(table, id)).toBe(false)
  })

  test('attaching again takes the trigger off, and makes it again', async () => {
    const table = await newTable(finished)
    expect(await triggers(table)).toHaveLength(1)
    await attachTable(table.name, 'trigger => false')
    expect(await triggers(table)).toEqual([])
    await admin.query(
      'select lighter.set_threshold(8001); select lighter.set_threshold(8000); select lighter.build_triggers()',
    )
    expect(await triggers(table)).toEqual([])
    const doctor = await runCli(['doctor', '--json'], { env: environment.env })
    expect(doctor.stdout).not.toContain('its trigger is gone')
    await attachTable(table.name, 'min_bytes => 0')
    expect(await triggers(table)).toEqual([])
    await attachTable(table.name, 'trigger => true')
    expect(await triggers(table)).toHaveLength(1)
  })

  test('is refused in mode whole, and with a guard', async () => {
    const { name } = await newTable(null)
    await admin.query(`alter table ${name} add column doc jsonb`)
    expect(await refusals(name, `trigger => false, mode => 'whole', create_pointer_column => true`)).toEqual([
      expect.stringContaining('needs its trigger'),
    ])
    expect(
      await column(
        admin,
        `select found from lighter.check_attach('${name}', 'doc', trigger => false, guard => 'warn') where what = 'obstacle'`,
      ),
    ).toEqual([expect.stringContaining('guard is a trigger')])
  })
})
