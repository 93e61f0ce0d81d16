// How rows with keys of several columns are named: on the command line, in the dashboard, by its API.
import { randomUUID } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { lookUpRow } from '../../src/dashboard/lookup.ts'
import { lighter, lighterOk } from '../support/black-box.ts'
import { drained, startDaemon, useEnvironment } from '../support/environment.ts'
import { sourceOf } from '../support/key-tables.ts'
import { column, value } from '../support/sql.ts'

const environment = await useEnvironment()
const { admin } = environment
const document = '{"tool_interactions": [1]}'
const big = '9007199254740993'
const run = (...args: string[]) => lighterOk(environment, args)
const inline = () =>
  column<string>(admin, `select tenant || id from notes where metadata ? 'tool_interactions' order by 1`)

beforeAll(async () => {
  await admin.query(`
    select lighter.set_defaults('0', '0');
    create table notes (tenant text, id bigint, owner uuid, metadata jsonb, primary key (tenant, id))`)
  await admin.query(`select lighter.attach('notes', tenant_column => 'owner')`)
  const daemon = await startDaemon(environment)
  afterAll(() => daemon.stop())
  await admin.query(
    `insert into notes select t, n, '${randomUUID()}', '${document}' from unnest(array['t1', 'quo"te, ']) t, unnest(array[7, ${big}]) n`,
  )
  await drained(environment)
})

describe('a row is named', () => {
  test.each<string[][]>([
    [['--table', 'notes', 't1', '7']],
    [['notes', 't1', '007']],
    [['notes', '["t1","7"]']],
    [['notes', 'quo"te, ', big]],
    [['--table', 'notes', '--key', '{"tenant": "t1", "id": 7}']],
    [['notes', '--key', `{"id": ${big}, "tenant": "quo\\"te, "}`]],
  ])('to hydrate by %j', async args => {
    expect(await run('hydrate', ...args)).toBe(`${document}\n`)
  })

  test.each<[string[], string]>([
    [['notes', 't1'], '"t1" is not the key of a row of public.notes'],
    [['notes', 't1', 'x'], 'is not the key of a row of public.notes'],
    [['notes', 't1', '7', '8'], '3 values were given for a key of 2 column(s)'],
    [['notes', 't1', '8'], 'public.notes has no row ["t1","8"]'],
    [['notes', 't1', '7', '--key', '{}'], 'both --key and arguments name a row'],
    [['notes', '--key', 'x'], '--key is not JSON'],
    [['notes', '--key', '[1, 2]'], '--key is not a JSON object'],
    [['notes', '--key', '{"tenant": "t1"}'], '--key has no text or number for "id"'],
    [['notes', '--key', '{"tenant": "t1", "id": null}'], '--key has no text or number for "id"'],
    [['notes', '--key', '{"tenant": "t1", "id": 7, "x": 1}'], '--key has "x", which is no column of the key'],
  ])('and %j is an error that says what a key is', async (args, message) => {
    const { code, stderr } = await lighter(environment, ['status', ...args])
    expect({ code, stderr }).toMatchObject({ code: 1, stderr: expect.stringContaining(message) })
    expect(stderr).toMatch(/hint: .*(tenant \(text\), id \(whole number\)|Check the key|Pass one of them)/)
  })

  test('to status, to be restored, and to be let go again', async () => {
    expect(await run('status', 'notes', 't1', '7')).toMatch(/offloaded/i)
    const said = await run('restore', '--table', 'notes', '--row', 'quo"te, ', '7')
    expect(await inline()).toEqual(['quo"te, 7'])
    expect(said).toContain(`lighter unpin --row '["quo\\"te, ","7"]'`)
    expect(await column(admin, 'select row_id from lighter.pins')).toEqual(['["quo\\"te, ","7"]'])
    await run('restore', '--table', 'notes', '--key', '{"tenant": "t1", "id": 7}')
    expect(await inline()).toEqual(['quo"te, 7', 't17'])
    expect(await run('unpin')).toContain('row ["t1","7"]')
    await run('unpin', '--table', 'notes', '--row', '["quo\\"te, ","7"]')
    await run('unpin', '--table', 'notes', '--row', 't1', '7')
    expect(await value(admin, 'select count(*)::int from lighter.pins')).toBe(0)
    await run('backfill', '--table', 'notes')
    await drained(environment)
    expect(await inline()).toEqual([])
  })

  test('to retry its dead letter', async () => {
    await admin.query(`
      insert into lighter.failed_jobs (source_id, row_id, attempts, enqueued_at, last_error)
      select id, k, 1, now(), 'x' from lighter.sources, unnest(array['["t1","7"]', '["t1","8"]']) k where relation = 'notes'::regclass`)
    await run('retry', '--table', 'notes', '--row', 't1', '7')
    expect(await column(admin, 'select row_id from lighter.failed_jobs')).toEqual(['["t1","8"]'])
  })

  test('to the dashboard by its text', async () => {
    const { id } = await sourceOf(environment, 'notes')
    expect(await lookUpRow(environment.worker, id, '["t1","7"]')).toMatchObject({
      row_id: '["t1","7"]',
      pointers: [{ artifact: { row_id: '["t1","7"]', state: 'live' } }],
    })
    await expect(lookUpRow(environment.worker, id, 't1')).rejects.toMatchObject({
      status: 400,
      message: 'the key of public.notes is: tenant (text), id (whole number)',
    })
  })
})
