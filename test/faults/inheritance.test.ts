// Tables that inherit, and keys that are not unique any more: no row ever gets, gives or loses another row's payload.
import { randomUUID } from 'node:crypto'
import { expect, test } from 'vitest'
import { attach, createTable, hydratedByCli, lighter, lighterOk, settled } from '../support/black-box.ts'
import { createSignals, startDaemon, until, useFreshEnvironment } from '../support/environment.ts'
import { age, runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()

const columns = '(id bigint primary key, tenant_id uuid, metadata jsonb)'
/** As Postgres writes it. */
const whole = (note: string) => `{"tool_interactions": [{"call": "${note}"}]}`

async function inherits(child: string, parent: string): Promise<void> {
  await environment.admin.query(`create table ${child} (primary key (id)) inherits (${parent})`)
}

async function insert(table: string, id: number, note: string, tenantId = randomUUID()): Promise<void> {
  await environment.admin.query(`insert into ${table} (id, tenant_id, metadata) values ($1, $2, $3)`, [
    id,
    tenantId,
    whole(note),
  ])
}

/** The texts of a table's own rows as they stand there, in order. */
async function stored(table: string): Promise<string[]> {
  const { rows } = await environment.admin.query<{ metadata: string }>(
    `select metadata::text as metadata from only ${table} order by id, metadata::text`,
  )
  return rows.map(row => row.metadata)
}

async function withDaemon(work: () => Promise<void>, options: Parameters<typeof startDaemon>[1] = {}) {
  const daemon = await startDaemon(environment, options)
  try {
    await work()
  } finally {
    await daemon.stop()
  }
}

test('a table with children is not attached, nor one whose tenants are in such a table', async () => {
  await createTable(environment, 'notes', columns)
  await inherits('notes_archive', 'notes')
  const { code, stderr } = await lighter(environment, ['attach', 'notes'])
  expect({ code, stderr }).toEqual({
    code: 1,
    stderr: expect.stringMatching(
      /notes has children by inheritance: public\.notes_archive[\s\S]*hint: .*alter table public\.notes_archive no inherit public\.notes;/,
    ),
  })
  await createTable(environment, 'rooms', '(id bigint primary key, tenant_id uuid)')
  await createTable(
    environment,
    'lines',
    '(id bigint primary key, room_id bigint references rooms, metadata jsonb)',
  )
  await inherits('old_rooms', 'rooms')
  await expect(attach(environment, 'lines')).rejects.toThrow(
    'rooms has children by inheritance: public.old_rooms',
  )
})

test('a row in a child that was added later keeps its own payload, and doctor names the child', async () => {
  await createTable(environment, 'notes', columns)
  await attach(environment, 'notes')
  await inherits('notes_archive', 'notes')
  await withDaemon(async () => {
    await insert('notes_archive', 1, 'of the child')
    await insert('notes', 1, 'of the table')
    await settled(environment)
  })
  expect(await stored('notes')).toEqual([expect.stringContaining('tool_interactions_ref')])
  expect(await stored('notes_archive')).toEqual([whole('of the child')])
  expect(await hydratedByCli(environment, 'notes', '1')).toBe(whole('of the table'))
  const doctor = await lighter(environment, ['doctor'])
  expect(doctor.code).toBe(1)
  expect(doctor.stdout).toContain('notes has children by inheritance: public.notes_archive')

  await lighterOk(environment, ['restore', '--all', '--table', 'notes'])
  expect(await stored('notes')).toEqual([whole('of the table')])
  expect(await stored('notes_archive')).toEqual([whole('of the child')])
})

test('a row that was moved to a child keeps its payload through the release sweeps', async () => {
  await createTable(environment, 'notes', columns)
  await attach(environment, 'notes')
  await withDaemon(async () => {
    await insert('notes', 1, 'moved')
    await settled(environment)
  })
  await inherits('notes_archive', 'notes')
  await environment.admin.query(
    'with moved as (delete from only notes returning *) insert into notes_archive select * from moved',
  )
  await age(environment, '2 hours')
  expect((await runNow(environment, 'release')).counts).toMatchObject({ pointers: 1, released: 0 })
})

test('a row that gets the key of one that is being offloaded keeps its payload', async () => {
  await createTable(environment, 'notes', columns)
  await attach(environment, 'notes')
  const signals = createSignals()
  const held = signals.holdAt('after-plan')
  await withDaemon(
    async () => {
      await insert('notes', 1, 'first')
      await held.reached
      await environment.admin.query('alter table notes drop constraint notes_pkey')
      await insert('notes', 1, 'second')
      held.release()
      await settled(environment)
    },
    { signal: signals.signal, env: { OFFLOAD_MAX_ATTEMPTS: '1' } },
  )
  const [second, first] = await stored('notes')
  expect(second).toBe(whole('second'))
  expect(first).toContain('tool_interactions_ref')
  // It has queued its key, of which there are two now.
  expect(await lighterOk(environment, ['retry', '--dry-run'])).toContain('several rows have this key')
})

test('rows of one key stay inline and whole, as dead letters, and doctor says that the key is not unique', async () => {
  await createTable(environment, 'notes', columns)
  await attach(environment, 'notes')
  await environment.admin.query('alter table notes drop constraint notes_pkey')
  await insert('notes', 1, 'first')
  await insert('notes', 1, 'second')
  await insert('notes', 2, 'alone')
  await withDaemon(
    async () => {
      await until(
        async () => (await stored('notes')).filter(text => text.includes('_ref')).length === 1,
        'the row of its own key is offloaded',
      )
      await settled(environment)
    },
    { env: { OFFLOAD_MAX_ATTEMPTS: '1' } },
  )
  expect((await stored('notes')).slice(0, 2)).toEqual([whole('first'), whole('second')])
  expect(await lighterOk(environment, ['retry', '--dry-run'])).toContain('several rows have this key')
  expect((await lighter(environment, ['hydrate', '1', '--table', 'notes'])).stderr).toContain(
    'notes has several rows 1',
  )
  expect((await lighter(environment, ['doctor'])).stdout).toContain(
    'no valid unique index keeps public.notes (id) from being there twice',
  )
  await expect(attach(environment, 'notes')).rejects.toThrow('notes has no key')
})

test('a restore brings back every row by itself, where several have one key', async () => {
  await createTable(environment, 'notes', columns)
  await attach(environment, 'notes')
  const tenants = [randomUUID(), randomUUID()]
  await withDaemon(async () => {
    await insert('notes', 1, 'first', tenants[0])
    await insert('notes', 2, 'second', tenants[1])
    await settled(environment)
  })
  await environment.admin.query('alter table notes drop constraint notes_pkey')
  await environment.admin.query('update notes set id = 1')
  await insert('notes', 1, 'inline', tenants[0])
  await lighterOk(environment, ['restore', '--all', '--table', 'notes'])
  expect(await stored('notes')).toEqual([whole('first'), whole('inline'), whole('second')])
})

test('a table that is written to another file between plan and commit is offloaded all the same', async () => {
  await createTable(environment, 'notes', columns)
  await attach(environment, 'notes')
  const signals = createSignals()
  const held = signals.holdAt('after-plan')
  await withDaemon(
    async () => {
      await insert('notes', 1, 'kept')
      await held.reached
      await environment.admin.query('vacuum full notes')
      await environment.admin.query('cluster notes using notes_pkey')
      held.release()
      await settled(environment)
    },
    { signal: signals.signal },
  )
  expect(await stored('notes')).toEqual([expect.stringContaining('tool_interactions_ref')])
  expect(await hydratedByCli(environment, 'notes', '1')).toBe(whole('kept'))
})

test('a row that moves to another partition between plan and commit is offloaded from there', async () => {
  await createTable(environment, 'parts', `${columns} partition by range (id)`)
  for (const n of [0, 1])
    await environment.admin.query(
      `create table parts_${n} partition of parts for values from (${n * 10}) to (${n * 10 + 10})`,
    )
  await attach(environment, 'parts')
  const signals = createSignals()
  const held = signals.holdAt('after-plan')
  await withDaemon(
    async () => {
      await insert('parts', 1, 'moved')
      await insert('parts', 2, 'stays')
      await held.reached
      await environment.admin.query('update parts set id = 11 where id = 1')
      held.release()
      await settled(environment)
    },
    { signal: signals.signal },
  )
  expect(await hydratedByCli(environment, 'parts', '11')).toBe(whole('moved'))
  expect(await hydratedByCli(environment, 'parts', '2')).toBe(whole('stays'))
  const { rows } = await environment.admin.query<{ n: number }>(
    `select count(*)::int as n from parts where metadata ? 'tool_interactions_ref'`,
  )
  expect(rows[0]?.n).toBe(2)
  await lighterOk(environment, ['restore', '--all', '--table', 'parts'])
  const back = await environment.admin.query(`select id::int as id, metadata::text from parts order by id`)
  expect(back.rows).toEqual([
    { id: 2, metadata: whole('stays') },
    { id: 11, metadata: whole('moved') },
  ])
})
