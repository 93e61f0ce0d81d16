// Rows that leave our sight are not taken for deleted: renamed, moved, swapped, detached, re-created, retyped.
import { randomUUID } from 'node:crypto'
import { afterEach, expect, test } from 'vitest'
import { attach, createTable, hydratedByCli, lighter, lighterOk, settled } from '../support/black-box.ts'
import { useDaemon, useEnvironment } from '../support/environment.ts'
import { releasedTwice } from '../support/sweep.ts'

const environment = await useEnvironment()
await useDaemon(environment)

const note = (n: number | string) =>
  `{"n": ${JSON.stringify(n)}, "tool_interactions": [{"text": "${'x'.repeat(2000)}"}]}`

const sql = (statements: string) => environment.admin.query(statements)

// Nothing is missing for the next test.
afterEach(async () => {
  const { rows } = await sql('select distinct source_id from lighter.missing_parts')
  for (const { source_id } of rows) {
    await sql(
      `select lighter.detach(s.relation, s.json_column) from lighter.sources s where s.id = ${source_id}`,
    )
  }
})

interface Prepared {
  tenant: string
  /** A plain table with the row 1, and one with the partitions `${parts}_1` (row 2) and `${parts}_2` (row 12). */
  notes: string
  parts: string
  live(): Promise<number>
  insert(table: string, id: number): Promise<void>
}

let prepared = 0

async function prepare(): Promise<Prepared> {
  const tenant = randomUUID()
  const notes = `notes${++prepared}`
  const parts = `parts${prepared}`
  const columns = '(id bigint primary key, tenant_id uuid not null, metadata jsonb)'
  await createTable(environment, notes, columns)
  await createTable(environment, parts, `${columns} partition by range (id)`)
  await sql(`create table ${parts}_1 partition of ${parts} for values from (1) to (10);
             create table ${parts}_2 partition of ${parts} for values from (10) to (20)`)
  await attach(environment, notes)
  await attach(environment, parts)
  const insert = async (table: string, id: number) => {
    await environment.admin.query(`insert into ${table} values ($1, $2, $3)`, [id, tenant, note(id)])
  }
  await insert(notes, 1)
  await insert(parts, 2)
  await insert(parts, 12)
  await settled(environment)
  const live = async () => {
    const { rows } = await environment.admin.query<{ n: number }>(
      'select count(*)::int as n from artifact_refs where tenant_id = $1 and deleted_at is null and purged_at is null',
      [tenant],
    )
    return rows[0]?.n ?? 0
  }
  expect(await live()).toBe(3)
  return { tenant, notes, parts, live, insert }
}

const changes: [what: string, change: (notes: string, parts: string) => string, named: string][] = [
  [
    'a column was renamed, and there is a new one under its name',
    notes =>
      `alter table ${notes} rename column metadata to old; alter table ${notes} add column metadata jsonb`,
    'metadata',
  ],
  ['a partition was detached', (_, parts) => `alter table ${parts} detach partition ${parts}_2`, '_2'],
  ['a partition was dropped', (_, parts) => `drop table ${parts}_2`, '_2'],
  [
    'a partition was detached and moved to another schema',
    (_, parts) =>
      `create schema cold; alter table ${parts} detach partition ${parts}_2; alter table ${parts}_2 set schema cold`,
    '_2',
  ],
  ['a table was dropped', notes => `drop table ${notes}`, 'notes'],
  [
    'a table was created again with its rows',
    notes => `create table copy as table ${notes}; drop table ${notes}; alter table copy rename to ${notes}`,
    'notes',
  ],
  [
    'a table was swapped by rename and emptied',
    notes =>
      `create table fresh as table ${notes}; alter table ${notes} rename to ${notes}_old;
       alter table fresh rename to ${notes}; delete from ${notes}_old`,
    'notes',
  ],
  [
    'a column was swapped by rename and emptied',
    notes =>
      `alter table ${notes} rename column metadata to old; alter table ${notes} add column metadata jsonb;
       update ${notes} set metadata = old, old = null`,
    'metadata',
  ],
  ['a column was dropped', notes => `alter table ${notes} drop column metadata cascade`, 'metadata'],
  [
    'a column got another type',
    notes =>
      `do $$ begin
         execute (select format('drop trigger %I on ${notes}', tgname) from pg_trigger where tgrelid = '${notes}'::regclass);
       end $$;
       alter table ${notes} alter column metadata type text`,
    'metadata',
  ],
  [
    'the tenant column was dropped',
    notes => `alter table ${notes} drop column tenant_id cascade`,
    'tenant_id',
  ],
  [
    'a schema was dropped',
    notes => `create schema app; alter table ${notes} set schema app; drop schema app cascade`,
    'notes',
  ],
]

test.each(changes)('%s: no payload is given up, and that is reported', async (_, change, named) => {
  const { notes, parts, live } = await prepare()
  await sql(change(notes, parts))
  for (const outcome of await releasedTwice(environment)) {
    expect(outcome).toMatchObject({ code: 'rows_out_of_sight', message: expect.stringContaining(named) })
  }
  expect(await live()).toBe(3)
})

test('doctor, stats and the sweep say what is out of sight, and what to do', async () => {
  const { notes, parts } = await prepare()
  await sql(
    `alter table ${parts} detach partition ${parts}_2; alter table ${notes} drop column metadata cascade`,
  )
  const sweep = await lighter(environment, ['sweep', 'release'])
  expect(sweep.code).toBe(1)
  expect(sweep.stderr).toContain(`partition public.${parts}_2: the partition was detached`)
  expect(sweep.stderr).toContain(`${notes}, column metadata: the column does not exist any more`)
  const doctor = await lighter(environment, ['doctor'])
  expect(doctor.stdout).toContain(`warn  out of sight: public.${parts}, partition public.${parts}_2`)
  expect(doctor.stdout).toContain(`FAIL  out of sight: public.${notes}, column metadata`)
  expect(doctor.stdout).toContain('lighter.forget_missing(')
  expect(await lighterOk(environment, ['stats'])).toContain('Out of sight')
})

test('tables and columns that were renamed or moved are followed: read, offload, release, restore', async () => {
  const { notes, live, insert } = await prepare()
  await sql(`alter table ${notes} rename column metadata to document;
             alter table ${notes} rename column tenant_id to owner_id;
             create schema moved; alter table ${notes} set schema moved; alter table moved.${notes} rename to remarks`)
  const { rows: missing } = await sql('select reason, advice from lighter.missing_parts')
  expect(missing).toEqual([
    {
      reason: 'lighter_daemon may not use its schema',
      advice: 'grant usage on schema moved to lighter_daemon;',
    },
  ])
  await sql('grant usage on schema moved to lighter_daemon')
  expect(await hydratedByCli(environment, 'remarks', '1')).toBe(note(1))
  await insert('moved.remarks', 5)
  await insert('moved.remarks', 6)
  await expect.poll(live, { timeout: 60_000 }).toBe(5)
  await sql('delete from moved.remarks where id = 6')
  for (const outcome of await releasedTwice(environment)) expect(outcome).toMatchObject({ outcome: 'done' })
  expect(await live()).toBe(4)
  await lighterOk(environment, ['restore', '--table', 'remarks'])
  const { rows } = await sql('select document::text from moved.remarks order by id')
  expect(rows.map(row => row.document)).toEqual([note(1), note(5)])
})

test('a partition that is attached again finds its payloads', async () => {
  const { parts } = await prepare()
  await sql(`alter table ${parts} detach partition ${parts}_2`)
  await releasedTwice(environment)
  await sql(`alter table ${parts} attach partition ${parts}_2 for values from (10) to (20)`)
  for (const outcome of await releasedTwice(environment)) expect(outcome).toMatchObject({ outcome: 'done' })
  expect(await hydratedByCli(environment, parts, '12')).toBe(note(12))
})

test('a detached partition that is attached by itself is in sight again', async () => {
  const { parts } = await prepare()
  await sql(`alter table ${parts} detach partition ${parts}_2`)
  await attach(environment, `${parts}_2`)
  for (const outcome of await releasedTwice(environment)) expect(outcome).toMatchObject({ outcome: 'done' })
  expect(await hydratedByCli(environment, `${parts}_2`, '12')).toBe(note(12))
})

test('rows that were deleted or truncated are released all the same', async () => {
  const { notes, parts, live } = await prepare()
  await sql(`truncate ${parts}_2; delete from ${notes}`)
  for (const outcome of await releasedTwice(environment)) expect(outcome).toMatchObject({ outcome: 'done' })
  expect(await live()).toBe(1)
})

test.each<[string, (notes: string, parts: string) => string]>([
  ['a partition', (_, parts) => `drop table ${parts}_2`],
  ['a table', notes => `drop table ${notes}`],
  ['a column', notes => `alter table ${notes} drop column metadata cascade`],
])('%s that was dropped on purpose is released if somebody says so', async (_, change) => {
  const { notes, parts, live } = await prepare()
  await sql(change(notes, parts))
  const { rows } = await sql('select source_id, advice from lighter.missing_parts')
  const call = `select lighter.forget_missing(${rows[0].source_id})`
  expect(rows).toEqual([{ source_id: expect.any(Number), advice: expect.stringContaining(`${call};`) }])
  await sql(call)
  for (const outcome of await releasedTwice(environment)) expect(outcome).toMatchObject({ outcome: 'done' })
  expect(await live()).toBe(2)
})

test('a key that became larger is followed', async () => {
  const tenant = randomUUID()
  await createTable(environment, 'small', '(id integer primary key, tenant_id uuid not null, metadata jsonb)')
  await attach(environment, 'small')
  await sql('alter table small alter column id type bigint')
  await environment.admin.query('insert into small values (3000000000, $1, $2)', [tenant, note('large')])
  await settled(environment)
  const { rows } = await sql(`select metadata ? 'tool_interactions_ref' as offloaded from small`)
  expect(rows).toEqual([{ offloaded: true }])
  expect(await hydratedByCli(environment, 'small', '3000000000')).toBe(note('large'))
})
