// Mode stub: a small JSON pointer in the place of the value. Only that text, with the id of an artifact that came off this
// column of this tenant, is a pointer. Everything else is the application's data.
import { randomUUID } from 'node:crypto'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { Daemon } from '../../src/daemon.ts'
import type { SignalPoint } from '../../src/offload/signals.ts'
import { createSignals, drained, startDaemon, useFreshEnvironment } from '../support/environment.ts'
import { value } from '../support/sql.ts'
import { releasedTwice } from '../support/sweep.ts'
import {
  attachValueTable,
  combinations,
  heavyValue,
  hydratedValue,
  insertValue,
  newValueTable,
  parameterSql,
  rawValue,
  restoreTable,
  updateValue,
} from '../support/value-tables.ts'

const environment = useFreshEnvironment()
const { signal, holdAt } = createSignals()
let daemon: Daemon
beforeEach(async () => {
  daemon = await startDaemon(environment, { signal })
})
afterEach(async () => {
  await daemon.stop()
})

const types = combinations.filter(([, mode]) => mode === 'stub').map(([type]) => type)
type StubType = (typeof types)[number]

async function offloadedRow(type: StubType, declared: string = type) {
  const table = await newValueTable(environment, type, 'stub', { declared })
  const tenantId = randomUUID()
  const id = await insertValue(environment, table, heavyValue(type), tenantId)
  await drained(environment)
  const { pointer } = await rawValue(environment, table, id)
  if (pointer === null) throw new Error('the row was not offloaded')
  return { table, id, tenantId, pointer }
}

const stub = (id: string) => `{"artifact_ref": "${id}"}`
const deleted = (pointer: string) =>
  value<boolean>(environment.admin, 'select deleted_at is not null from artifact_refs where id = $1', [
    pointer,
  ])

describe.each(types)('a not null column of type %s', type => {
  test('a full save of an offloaded row changes nothing; update, upsert and a value of the application’s win', async () => {
    const { table, id, pointer } = await offloadedRow(type, `${type} not null`)
    const { app } = environment
    await app.query(
      `update public.${table.name} t set (tenant_id, note, value)
         = (select tenant_id, 'saved', value from public.${table.name} where id = t.id) where id = $1`,
      [id],
    )
    // As a program saves what it has read.
    await updateValue(environment, table, id, Buffer.from(stub(pointer)))
    await drained(environment)
    expect(await rawValue(environment, table, id)).toEqual({ bytes: Buffer.from(stub(pointer)), pointer })
    expect(await hydratedValue(environment, table, id)).toEqual(heavyValue(type))
    await app.query(
      `insert into public.${table.name} (id, tenant_id, value) values ($1, gen_random_uuid(), ${parameterSql(type, '$2')})
         on conflict (id) do update set value = excluded.value`,
      [id, heavyValue(type, 'upserted')],
    )
    await drained(environment)
    expect(await hydratedValue(environment, table, id)).toEqual(heavyValue(type, 'upserted'))
    await updateValue(environment, table, id, heavyValue(type, 'light', 20))
    expect(await hydratedValue(environment, table, id)).toEqual(heavyValue(type, 'light', 20))
    await releasedTwice(environment)
    expect(await deleted(pointer)).toBe(true)
  })

  test('after restore and detach the table is as it was before attach', async () => {
    const table = await newValueTable(environment, type, 'stub', {
      attached: false,
      declared: `${type} not null`,
    })
    for (const [note, bytes] of [
      ['heavy', 9000],
      ['light', 30],
      ['long', 300_000],
    ] as const)
      await insertValue(environment, table, heavyValue(type, note, bytes))
    await insertValue(environment, table, Buffer.from(stub(randomUUID())))
    const rows = `select json_agg(t::text order by id)::text from public.${table.name} t`
    const before = await value(environment.admin, rows)
    const attached = await attachValueTable(environment, table)
    await environment.admin.query(
      `insert into lighter.waiting (source_id, row_id) select $1, id::text from public.${table.name}`,
      [attached.sourceId],
    )
    await drained(environment)
    expect(await value(environment.admin, rows)).not.toEqual(before)
    await restoreTable(environment, attached, { paused: true })
    expect(await value(environment.admin, `select lighter.detach('public.${table.name}', 'value')`)).toBe(
      true,
    )
    expect(await value(environment.admin, rows)).toEqual(before)
  })

  test('a copy of the row keeps the artifact; so does a stub that was put into another value', async () => {
    const { table, id, pointer } = await offloadedRow(type)
    const { app } = environment
    const { rows } = await app.query<{ id: string }>(
      `insert into public.${table.name} (tenant_id, value) select tenant_id, value from public.${table.name} returning id::text`,
    )
    await app.query(`delete from public.${table.name} where id = $1`, [id])
    await releasedTwice(environment)
    const copy = rows[0]?.id ?? ''
    expect(await hydratedValue(environment, table, copy)).toEqual(heavyValue(type))
    const wrapped = Buffer.from(`{"parts": [1, ${stub(pointer)}]}`)
    await updateValue(environment, table, copy, wrapped)
    await releasedTwice(environment)
    expect(await deleted(pointer)).toBe(false)
    expect(await hydratedValue(environment, table, copy)).toEqual(wrapped)
    // It leaves in its turn, and what it points to must live as long as it does.
    const heavy = Buffer.from(`{"parts": [${stub(pointer)}], "note": ${JSON.stringify('x'.repeat(9000))}}`)
    await updateValue(environment, table, copy, heavy)
    await drained(environment)
    const own = (await rawValue(environment, table, copy)).pointer
    expect(own).not.toBe(null)
    await releasedTwice(environment)
    expect(await deleted(pointer)).toBe(false)
    // JSON as Postgres writes it: its keys are in an order of its own.
    const read = JSON.parse((await hydratedValue(environment, table, copy))?.toString() ?? '')
    expect(read).toEqual(JSON.parse(heavy.toString()))
    const long = Buffer.from(
      `{"note": ${JSON.stringify('y'.repeat(12_000_000))}, "parts": [${stub(pointer)}]}`,
    )
    await updateValue(environment, table, copy, long)
    await drained(environment)
    await releasedTwice(environment)
    expect(await deleted(pointer)).toBe(false)
    await updateValue(environment, table, copy, Buffer.from('{}'))
    await releasedTwice(environment)
    expect(await deleted(pointer)).toBe(true)
  })
})

test('detached and attached again: stubs from before count, and are released again', async () => {
  const { table, id, pointer } = await offloadedRow('text')
  const { admin } = environment
  await admin.query(`select lighter.detach('public.${table.name}', 'value')`)
  expect(await releasedTwice(environment)).not.toContainEqual(expect.any(Error))
  expect(await deleted(pointer)).toBe(false)
  const again = await attachValueTable(environment, table)
  expect(again.sourceId).not.toBe(table.sourceId)
  expect(await hydratedValue(environment, again, id)).toEqual(heavyValue('text'))
  await releasedTwice(environment)
  expect(await deleted(pointer)).toBe(false)
  await environment.app.query(`delete from public.${table.name} where id = $1`, [id])
  await releasedTwice(environment)
  expect(await deleted(pointer)).toBe(true)
})

describe('what looks like a stub', () => {
  test.each(types)(
    '%s: names nothing, or what is another tenant’s or column’s, and is the application’s own',
    async type => {
      const { table, tenantId, pointer } = await offloadedRow(type)
      const other = await newValueTable(environment, type, 'stub')
      const secret = await insertValue(environment, other, heavyValue(type, 'secret'), tenantId)
      await drained(environment)
      const ofOther = (await rawValue(environment, other, secret)).pointer ?? ''
      for (const [tenant, id] of [
        [tenantId, randomUUID()],
        [randomUUID(), pointer],
        [tenantId, ofOther],
      ] as const) {
        const written = Buffer.from(stub(id))
        const row = await insertValue(environment, table, written, tenant)
        expect(await hydratedValue(environment, table, row)).toEqual(written)
      }
      await restoreTable(environment, table)
      expect(
        await value(
          environment.admin,
          `select count(*)::int from public.${table.name} where lighter.stub_id(value::text) is not null`,
        ),
      ).toBe(3)
    },
  )

  // As programs do that read JSON and save all columns.
  test.each(['json', 'text'] as const)('%s: is a stub with any white space of JSON', async type => {
    const { table, tenantId, pointer } = await offloadedRow(type)
    const ids: string[] = []
    for (const text of [
      JSON.stringify({ artifact_ref: pointer }),
      JSON.stringify({ artifact_ref: pointer }, undefined, 4),
      `\r\n\t{ "artifact_ref" :\n"${pointer}" } \n`,
    ]) {
      const row = await insertValue(environment, table, Buffer.from(text), tenantId)
      expect(await hydratedValue(environment, table, row)).toEqual(heavyValue(type))
      ids.push(row)
    }
    await releasedTwice(environment)
    await restoreTable(environment, table)
    for (const id of ids) expect((await rawValue(environment, table, id)).bytes).toEqual(heavyValue(type))
  })

  test('is no stub when it is written in another way', async () => {
    const { table, tenantId, pointer } = await offloadedRow('text')
    for (const text of [
      `{"artifact_ref": "${pointer.toUpperCase()}"}`,
      `{"artifact_ref": "${pointer}"${' '.repeat(100)}}`,
      `\u00a0{"artifact_ref": "${pointer}"}`,
      `{"artifact_ref": "${pointer}"}\u000b`,
      `{"artifact_ref": "${pointer}"}{}`,
      `{"artifact_ref": "${pointer}", "a": 1}`,
      `["artifact_ref": "${pointer}"]`,
      pointer,
    ]) {
      const row = await insertValue(environment, table, Buffer.from(text), tenantId)
      expect((await hydratedValue(environment, table, row))?.toString()).toBe(text)
    }
  })

  test('inside a heavy value is payload', async () => {
    const { table, tenantId, pointer } = await offloadedRow('text')
    const text = Buffer.from(`${stub(pointer)}\n${'x'.repeat(9000)}\n${stub(pointer)}`)
    const row = await insertValue(environment, table, text, tenantId)
    await drained(environment)
    expect((await rawValue(environment, table, row)).pointer).not.toBe(pointer)
    expect(await hydratedValue(environment, table, row)).toEqual(text)
  })

  test('jsonb_set inside a stub loses no artifact', async () => {
    const { table, id, pointer } = await offloadedRow('jsonb')
    await environment.app.query(
      `update public.${table.name} set value = jsonb_set(value, '{a}', '1') where id = $1`,
      [id],
    )
    await releasedTwice(environment)
    expect(await deleted(pointer)).toBe(false)
    expect(JSON.parse((await hydratedValue(environment, table, id))?.toString() ?? '')).toEqual({
      a: 1,
      artifact_ref: pointer,
    })
  })
})

describe.each(['after-plan', 'before-commit'] as SignalPoint[])('while a daemon is %s', point => {
  test.each([
    ['another heavy value', `value = repeat('other ', 2000)`, 'other '.repeat(2000)],
    ['a light value', `value = ''`, ''],
    ['null', 'value = null', null],
    [
      'a stub of its own',
      `value = '{"artifact_ref": "11111111-1111-4111-8111-111111111111"}'`,
      stub('11111111-1111-4111-8111-111111111111'),
    ],
  ])('the application writes %s, and that is what the row has', async (_, set, expected) => {
    const table = await newValueTable(environment, 'text', 'stub')
    const held = holdAt(point)
    const id = await insertValue(environment, table, heavyValue('text'))
    await held.reached
    await environment.app.query(`update public.${table.name} set ${set} where id = $1`, [id])
    held.release()
    await drained(environment)
    expect((await hydratedValue(environment, table, id))?.toString() ?? null).toBe(expected)
  })
})
