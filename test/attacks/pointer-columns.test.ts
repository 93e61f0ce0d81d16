// The pointer column of mode whole belongs to us only under its number. Rows out of sight may hold ids, too.
import { randomUUID } from 'node:crypto'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import { drained, startDaemon, useFreshEnvironment } from '../support/environment.ts'
import { column, value } from '../support/sql.ts'
import { releasedTwice } from '../support/sweep.ts'
import {
  attachValueTable,
  heavyValue,
  hydratedValue,
  insertValue,
  newValueTable,
  rawValue,
  restoreTable,
  updateValue,
} from '../support/value-tables.ts'

const environment = useFreshEnvironment()
let daemon: Daemon | null = null
beforeEach(async () => {
  daemon = await startDaemon(environment)
})
afterEach(async () => {
  await daemon?.stop()
  daemon = null
})

const columns = (table: string) =>
  column<string>(
    environment.admin,
    `select attname from pg_attribute where attrelid = $1::regclass and attnum > 0 and not attisdropped order by attnum`,
    [table],
  )

test('a column of the application that took the name of the renamed pointer column keeps its values', async () => {
  const { admin, app } = environment
  const table = await newValueTable(environment, 'text', 'whole')
  const id = await insertValue(environment, table, heavyValue('text'))
  await drained(environment)
  await admin.query(`
    alter table public.${table.name} rename value_artifact_id to stored_as;
    alter table public.${table.name} add value_artifact_id text`)
  await app.query(`update public.${table.name} set value_artifact_id = 'mine' where id = $1`, [id])
  await updateValue(environment, table, id, Buffer.from('light'))
  const { rows } = await admin.query(`select value, stored_as, value_artifact_id from public.${table.name}`)
  expect(rows).toEqual([{ value: 'light', stored_as: null, value_artifact_id: 'mine' }])
})

describe('a partition that was detached with ids in it', () => {
  async function detachedPartition(mode: 'whole' | 'stub') {
    const { admin } = environment
    await admin.query(`
      create table public.events (id bigint, day date, tenant_id uuid, value text, primary key (id, day)) partition by range (day);
      create table public.events_1 partition of public.events for values from (minvalue) to ('2026-02-01');
      create table public.events_2 partition of public.events for values from ('2026-02-01') to (maxvalue);
      select lighter.attach('public.events', 'value', mode => '${mode}' ${mode === 'whole' ? ', create_pointer_column => true' : ''})`)
    await admin.query(`insert into public.events values (1, '2026-01-01', $1, repeat('a b ', 5000))`, [
      randomUUID(),
    ])
    await drained(environment)
    await admin.query('alter table public.events detach partition public.events_1')
    await admin.query(`select lighter.detach('public.events', 'value')`)
    return value<string>(
      admin,
      mode === 'whole'
        ? 'select value_artifact_id from public.events_1'
        : 'select lighter.stub_id(value) from public.events_1',
    )
  }
  const deleted = (pointer: string) =>
    value<boolean>(environment.admin, 'select deleted_at is not null from artifact_refs where id = $1', [
      pointer,
    ])

  test('keeps the pointer column, and its artifacts', async () => {
    const pointer = await detachedPartition('whole')
    expect(await columns('public.events')).toContain('value_artifact_id')
    await releasedTwice(environment)
    expect(await deleted(pointer)).toBe(false)
  })

  test.each(['whole', 'stub'] as const)(
    'is still known of when the table is attached again: %s',
    async mode => {
      const { admin } = environment
      const pointer = await detachedPartition(mode)
      await admin.query(
        `select lighter.attach('public.events', 'value', mode => '${mode}' ${mode === 'whole' ? `, pointer_column => 'value_artifact_id'` : ''})`,
      )
      expect(await column(admin, 'select name from lighter.missing_parts')).toEqual(['public.events_1'])
      await releasedTwice(environment)
      expect(await deleted(pointer)).toBe(false)
      await admin.query(
        `alter table public.events attach partition public.events_1 for values from (minvalue) to ('2026-02-01')`,
      )
      expect(await column(admin, 'select name from lighter.missing_parts')).toEqual([])
    },
  )
})

test('a pointer column that attach made goes with the last detach, whatever was attached in between', async () => {
  const { admin } = environment
  const table = await newValueTable(environment, 'text', 'whole')
  const before = (await columns(`public.${table.name}`)).filter(name => name !== 'value_artifact_id')
  const id = await insertValue(environment, table, heavyValue('text'))
  await drained(environment)
  const detach = () => admin.query(`select lighter.detach('public.${table.name}', 'value')`)
  await detach()
  const again = await attachValueTable(environment, table)
  await restoreTable(environment, again, { paused: true })
  expect((await rawValue(environment, again, id)).bytes).toEqual(heavyValue('text'))
  await detach()
  expect(await columns(`public.${table.name}`)).toEqual(before)
  // Nothing of it stands in the way of another mode.
  await attachValueTable(environment, { ...table, mode: 'stub' })
})

test('an id beside a value, written where triggers are off, does not bring the old value back', async () => {
  const { admin } = environment
  const table = await newValueTable(environment, 'text', 'whole')
  const id = await insertValue(environment, table, heavyValue('text'))
  await drained(environment)
  const client = await admin.connect()
  try {
    await client.query('set session_replication_role = replica')
    await client.query(`update public.${table.name} set value = 'newer' where id = $1`, [id])
  } finally {
    await client.query('reset session_replication_role')
    client.release()
  }
  await updateValue(environment, table, id, null)
  expect(await rawValue(environment, table, id)).toEqual({ bytes: null, pointer: null })
  expect(await hydratedValue(environment, table, id)).toBe(null)
})
