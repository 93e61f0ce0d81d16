// Rows that are moved to another tenant after their offload: they can't be read there, which is noticed, and there is
// a way to get them over whole.
import { randomUUID } from 'node:crypto'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import { createPool } from '../../src/db/pool.ts'
import type { Check } from '../../src/doctor/checks.ts'
import { findMovedRows } from '../../src/doctor/moved-rows.ts'
import {
  asJsonbText,
  drained,
  hydrated,
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  useFreshEnvironment,
} from '../support/environment.ts'
import { runCli } from '../support/process.ts'
import { asRole, column, errorOf, value } from '../support/sql.ts'
import { age, runNow } from '../support/sweep.ts'

// Each runs a handful of commands, one after another.
const timeout = 180_000

const environment = useFreshEnvironment()
let daemon: Daemon

beforeEach(async () => {
  daemon = await startDaemon(environment, { env: { OFFLOAD_MAX_ATTEMPTS: '1' } })
})
afterEach(async () => {
  await daemon.stop()
})

const heavy = (note: string) =>
  JSON.stringify({ note, model: 'm', tool_interactions: [{ call: note, n: 1 }], trace: 'x'.repeat(9000) })

const move = (conversationId: string, tenantId: string) =>
  environment.app.query('update conversations set tenant_id = $2 where id = $1', [conversationId, tenantId])

async function lighter(...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await runCli(args, { env: environment.env })
  expect([code, stderr]).toEqual([0, expect.any(String)])
  return stdout
}

async function doctor(): Promise<Check> {
  const { checks }: { checks: Check[] } = JSON.parse(await lighter('doctor', '--json'))
  const check = checks.find(c => c.name === 'moved rows')
  if (check === undefined) throw new Error('doctor does not look at moved rows')
  return check
}

const named = () =>
  asRole(environment.admin, 'lighter_reporter', async db => {
    const { rows } = await db.query(
      'select source, row_id, tenant_id, artifact_tenant_id from lighter.moved_rows order by row_id',
    )
    return rows
  })

/** As the documentation says. */
async function remedy(
  rowIds: string[],
  moveBack: () => Promise<unknown>,
  moveAgain: () => Promise<unknown>,
  ...table: string[]
) {
  await moveBack()
  for (const id of rowIds) await lighter('restore', '--row', id, ...table)
  await moveAgain()
  for (const id of rowIds) await lighter('unpin', '--row', id, ...table)
}

test('a conversation that was moved is noticed, loses nothing, and gets over whole', {
  timeout,
}, async () => {
  const from = await newConversation(environment)
  const kept = await newConversation(environment, from.tenantId)
  const to = randomUUID()
  const ids = [heavy('one'), '{"tool_interactions": [2]}'].map(metadata => ({
    id: '',
    metadata,
  }))
  for (const row of ids) row.id = await insertMessage(environment, from.conversationId, row.metadata)
  const neighbour = await insertMessage(environment, kept.conversationId, heavy('kept'))
  await drained(environment)
  expect(await doctor()).toMatchObject({
    status: 'ok',
    found: expect.stringContaining('none of 5 artifacts'),
  })

  await move(from.conversationId, to)
  for (const { id } of ids)
    expect(await errorOf(hydrated(environment, id))).toMatchObject({ code: 'artifact_not_found' })
  const noticed = await doctor()
  expect(noticed).toMatchObject({
    status: 'warn',
    found: expect.stringMatching(/^2 row\(s\) point to artifacts of another tenant.*all there are/),
    advice: expect.stringContaining('lighter restore --row'),
  })
  for (const { id } of ids) expect(noticed.found).toContain(`${id} (now ${to}, its payload ${from.tenantId})`)
  expect(noticed.found).not.toContain(neighbour)

  // A report for those who have no rights on the tables, by the sweep that sees all rows, which keeps what it saw.
  await age(environment, '2 hours')
  const dry = await runNow(environment, 'release', { dryRun: true })
  expect(dry.counts).toMatchObject({ moved: 3, released: 0 })
  expect(await named()).toEqual([])
  for (let run = 0; run < 2; run++) {
    expect((await runNow(environment, 'release')).counts).toMatchObject({ moved: 3, released: 0, unused: 0 })
    expect(await named()).toEqual(
      ids
        .map(({ id }) => ({
          source: 'conversation_messages',
          row_id: id,
          tenant_id: to,
          artifact_tenant_id: from.tenantId,
        }))
        .sort((a, b) => (a.row_id < b.row_id ? -1 : 1)),
    )
  }

  const rowIds = await column<string>(
    environment.worker,
    `select row_id from lighter.offloaded_rows($1, 'conversation', $2, 1000)`,
    [from.tenantId, from.conversationId],
  )
  expect(rowIds.sort()).toEqual(ids.map(row => row.id).sort())
  await remedy(
    rowIds,
    () => move(from.conversationId, from.tenantId),
    () => move(from.conversationId, to),
  )
  for (const { id, metadata } of ids) {
    expect(await rawMetadata(environment, id)).toBe(await asJsonbText(environment, metadata))
  }
  expect(await doctor()).toMatchObject({ status: 'ok' })
  expect((await runNow(environment, 'release')).counts).toMatchObject({ moved: 0, released: 3 })
  expect(await named()).toEqual([])

  // From then on they are the new tenant's like any other.
  await lighter('backfill')
  await drained(environment)
  for (const { id, metadata } of ids) {
    expect(await rawMetadata(environment, id)).toContain('_ref')
    expect(await hydrated(environment, id)).toBe(await asJsonbText(environment, metadata))
  }
  expect(
    await value(
      environment.admin,
      `select count(*)::int from artifact_refs where tenant_id = $1 and r2_key like '%tenants/' || $1::uuid || '/%'`,
      [to],
    ),
  ).toBe(3)
  expect(await hydrated(environment, neighbour)).toBe(await asJsonbText(environment, heavy('kept')))
})

test('what is written to a moved row stays in it, so that the row gets over whole all the same', {
  timeout,
}, async () => {
  const from = await newConversation(environment)
  const to = randomUUID()
  const whole = await insertMessage(environment, from.conversationId, heavy('whole'))
  const field = await insertMessage(environment, from.conversationId, '{"tool_interactions": ["field"]}')
  await drained(environment)
  await move(from.conversationId, to)
  const written = { later: 'y'.repeat(9000), tool_interactions: ['new'] }
  await environment.app.query(
    'update conversation_messages set metadata = metadata || $2 where id = any ($1)',
    [[whole, field], written],
  )
  await drained(environment)
  expect(
    await column(
      environment.admin,
      'select row_id from lighter.failures where last_error like $1 order by 1',
      ['lost_pointer: %'],
    ),
  ).toEqual([whole])
  expect(JSON.parse((await rawMetadata(environment, whole)) ?? '')).toMatchObject(written)
  // Of this one nothing is needed that it does not have itself.
  expect(JSON.parse((await hydrated(environment, field)) ?? '')).toMatchObject(written)

  await remedy(
    [whole],
    () => move(from.conversationId, from.tenantId),
    () => move(from.conversationId, to),
  )
  const expected = await asJsonbText(
    environment,
    JSON.stringify({ ...JSON.parse(heavy('whole')), ...written }),
  )
  expect(await rawMetadata(environment, whole)).toBe(expected)
  await lighter('retry')
  await drained(environment)
  expect(await rawMetadata(environment, whole)).toContain('artifact_metadata_ref')
  expect(await hydrated(environment, whole)).toBe(expected)
  expect(await doctor()).toMatchObject({ status: 'ok' })
})

test('a row that has the tenant itself, and one that was copied to another tenant', { timeout }, async () => {
  await environment.admin.query(`
    create table notes (id bigint generated always as identity primary key, tenant_id uuid, metadata jsonb);
    grant all on notes to example_app;
    select lighter.attach('notes')`)
  const [from, to] = [randomUUID(), randomUUID()]
  const insert = `insert into notes (tenant_id, metadata) values ($1, $2) returning id::text`
  const [moved, original, untouched] = await Promise.all(
    ['moved', 'original', 'untouched'].map(note =>
      value<string>(environment.app, insert, [from, heavy(note)]),
    ),
  )
  await drained(environment)
  await environment.app.query('update notes set tenant_id = $2 where id = $1', [moved, to])
  const copy = await value<string>(
    environment.app,
    'insert into notes (tenant_id, metadata) select $2, metadata from notes where id = $1 returning id::text',
    [original, to],
  )
  const widow = await value<string>(
    environment.app,
    'insert into notes (tenant_id, metadata) select null, metadata from notes where id = $1 returning id::text',
    [untouched],
  )
  // Of the copies no artifact tells: whoever looks at every row finds them.
  expect((await doctor()).found).toMatch(/^1 row/)
  expect((await runNow(environment, 'release')).counts).toMatchObject({ moved: 6 })
  expect(await named()).toEqual(
    [
      { row_id: moved, tenant_id: to },
      { row_id: copy, tenant_id: to },
      { row_id: widow, tenant_id: null },
    ].map(row => ({ source: 'notes', artifact_tenant_id: from, ...row })),
  )
  expect((await doctor()).found).toMatch(/^3 row/)
  // A row that says something else since, and one that is gone, are no longer among them.
  await environment.app.query(`update notes set metadata = '{}' where id = $1`, [widow])
  await environment.app.query('delete from notes where id = $1', [copy])
  expect((await doctor()).found).toMatch(/^1 row/)
  await remedy(
    [moved ?? ''],
    () => environment.app.query('update notes set tenant_id = $2 where id = $1', [moved, from]),
    () => environment.app.query('update notes set tenant_id = $2 where id = $1', [moved, to]),
    '--table',
    'notes',
  )
  expect((await doctor()).status).toBe('ok')
  expect(await value(environment.admin, 'select metadata::text from notes where id = $1', [moved])).toBe(
    await asJsonbText(environment, heavy('moved')),
  )
  expect(
    await value(environment.admin, 'select metadata::text from notes where id = $1', [original]),
  ).toContain('artifact_metadata_ref')
})

test('of very many artifacts doctor looks at a sample, and at what the last sweep has named', async () => {
  const from = await newConversation(environment)
  const id = await insertMessage(environment, from.conversationId, heavy('one of many'))
  await drained(environment)
  // A page with a row that whoever may write the table has made up among them.
  await environment.admin.query(
    `insert into artifact_refs (tenant_id, kind, r2_key, sha256, source_id, row_id)
     select $1, 'agent_trace', 'x/' || n, repeat('0', 64), (select id from lighter.sources),
            case when n % 2 = 0 then 'no uuid' else gen_random_uuid()::text end
       from generate_series(1, 60000) n`,
    [from.tenantId],
  )
  await move(from.conversationId, randomUUID())
  await runNow(environment, 'release')
  const pool = createPool(environment.urls.daemon, 1, () => undefined)
  try {
    const { rows, lookedAt, all } = await findMovedRows(pool)
    expect(rows.map(row => row.rowId)).toEqual([id])
    expect(all).toBe(false)
    expect(lookedAt).toBeGreaterThan(10_000)
    expect(lookedAt).toBeLessThan(50_000)
  } finally {
    await pool.end()
  }
})
