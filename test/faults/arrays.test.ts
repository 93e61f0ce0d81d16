// Columns that hold an array, or no document at all. An array stays an array, so that whatever an application adds to
// it lies beside the pointer and not on top of it. `plain` is the same table without pg-lighter: the same statements
// run on both, and must give the same values.
import { randomUUID } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createLighterClient } from '../../src/index.ts'
import { startApi, type TestApi } from '../support/api.ts'
import { attach, createTable, hydratedByCli, lighter, settled } from '../support/black-box.ts'
import { useEnvironment } from '../support/environment.ts'
import { oddValues } from '../support/json-values.ts'

const environment = await useEnvironment()
const tenantId = randomUUID()
let api: TestApi

beforeAll(async () => {
  const columns = '(id bigint primary key, tenant_id uuid not null, metadata jsonb)'
  await createTable(environment, 'threads', columns)
  await createTable(environment, 'plain', columns)
  await attach(environment, 'threads')
  api = await startApi(environment, {
    env: { STREAM_THRESHOLD_BYTES: '65536', OFFLOAD_MAX_ATTEMPTS: '1' },
  })
})
afterAll(() => api.daemon.stop())

let lastId = 0

/** Writes a new row to both tables, and waits until it is offloaded. */
async function insert(json: string): Promise<string> {
  const id = String(++lastId)
  for (const table of ['threads', 'plain']) {
    await environment.app.query(`insert into ${table} values ($1, $2, $3)`, [id, tenantId, json])
  }
  await settled(environment)
  return id
}

/** Sets the column to an expression in both tables, and waits until that is offloaded. */
async function change(id: string, expression: string, ...values: string[]): Promise<void> {
  for (const table of ['threads', 'plain']) {
    await environment.app.query(`update ${table} set metadata = ${expression} where id = $1`, [id, ...values])
  }
  await settled(environment)
}

async function textIn(table: 'threads' | 'plain', id: string): Promise<string> {
  const { rows } = await environment.admin.query<{ text: string }>(
    `select metadata::text as text from ${table} where id = $1`,
    [id],
  )
  return rows[0]?.text ?? ''
}

const raw = async (id: string) => JSON.parse(await textIn('threads', id))
const message = (text: string, bytes = 9000) => `{"text": "${text}${'x'.repeat(bytes)}", "cost": 1e400}`
const pointer = { artifact_metadata_ref: expect.any(String) }

async function expectSame(id: string): Promise<void> {
  const json = `{"metadata": [${await textIn('threads', id)}]}`
  const answer = await api.call(tenantId, 'POST', '/api/storage/hydrate', { json })
  expect(answer.text).toBe(`{"status":"ok","count":1,"metadata":[${await textIn('plain', id)}],"errors":[]}`)
}

describe('what is added to an offloaded array', () => {
  test.each<[what: string, expression: string, added: string]>([
    ['appended', 'metadata || $2', '[{"role": "assistant"}, 1.00]'],
    ['prepended', '$2 || metadata', '[{"role": "system"}]'],
    ['inserted after it', `jsonb_insert(metadata || '[1]', '{-1}', $2)`, '{"role": "tool"}'],
    ['an object', 'metadata || $2', '{"feedback": 1}'],
    ['null', 'metadata || $2', 'null'],
    ['a string', 'metadata || $2', '"text"'],
    ['an empty array', 'metadata || $2', '[]'],
    ['an array in an array', 'metadata || $2', '[[], [[1]]]'],
  ])('%s: is beside the pointer, and hydrates in its place', async (_what, expression, added) => {
    const id = await insert(`[${message('first')}, null, [], {}]`)
    expect(await raw(id)).toMatchObject([pointer])
    await change(id, expression.replace('$2', '$2::jsonb'), added)
    await expectSame(id)

    // Offloaded again: each run between pointers becomes one, and none gets into a payload.
    await change(id, '$2::jsonb || metadata || $3::jsonb', `[${message('before')}]`, `[${message('after')}]`)
    const left = await raw(id)
    expect(left.length).toBeGreaterThanOrEqual(3)
    for (const element of left) expect(element).toMatchObject(pointer)
    await expectSame(id)
  })

  test('twice the same pointer is twice the same elements', async () => {
    const id = await insert(`[${message('twice')}]`)
    await change(id, 'metadata || metadata || $2::jsonb', '[1]')
    expect(await raw(id)).toMatchObject([pointer, pointer, 1])
    await expectSame(id)
  })

  test('elements that are streamed come back as they were', async () => {
    const long = Array.from({ length: 40 }, (_, n) => message(`long ${n}`)).join(', ')
    const id = await insert(`[${long}]`)
    expect(await raw(id)).toMatchObject([pointer])
    await change(id, `'[0]' || metadata || $2::jsonb`, `[${long}]`)
    expect(await raw(id)).toMatchObject([pointer, pointer, pointer])
    await expectSame(id)
  })

  test('odd values come back as they were', async () => {
    const odd = oddValues.map(([, json]) => json).join(', ')
    const id = await insert(`[${odd}]`)
    await change(id, '$2::jsonb || metadata || $2::jsonb', `[${odd}]`)
    expect(await raw(id)).toMatchObject([pointer, pointer, pointer])
    await expectSame(id)
  })
})

test('every reader puts the elements in the place of the pointer', async () => {
  const id = await insert(`[${message('readers')}]`)
  await change(id, 'metadata || $2::jsonb', '[{"role": "user"}]')
  const stored = await textIn('threads', id)
  const expected = await textIn('plain', id)
  expect(await hydratedByCli(environment, 'threads', id)).toBe(expected)
  await expectSame(id)

  const overHttp = createLighterClient({ baseUrl: api.url, tenantId })
  const direct = createLighterClient({ pool: environment.worker, store: environment.store, tenantId })
  for (const client of [overHttp, direct]) {
    expect(await client.hydrate({ id, metadata: stored })).toEqual({ id, metadata: expected })
    const [row] = await client.hydrateMany([{ metadata: JSON.parse(stored) }])
    expect(row?.metadata).toEqual(JSON.parse(expected))
  }
})

test('a document that was put into an array is hydrated there', async () => {
  const id = await insert(`{"model": "m", "trace": "${'t'.repeat(9000)}"}`)
  await change(id, 'jsonb_build_array(metadata, 2)')
  expect(await raw(id)).toMatchObject([pointer, 2])
  await expectSame(id)
})

describe('what can not be put together is an error, and stays', () => {
  test.each([
    ['a key written into the pointer', `jsonb_set(metadata, '{0,feedback}', '1')`],
    ['the pointer taken out of its array, and written to', `(metadata -> 0) || '{"feedback": 1}'`],
    ['a share that the payload does not have', `jsonb_set(metadata, '{0,artifact_metadata_from}', '7')`],
  ])('%s', async (_what, expression) => {
    const id = await insert(`[${message('changed')}]`)
    await environment.app.query(`update threads set metadata = ${expression} where id = $1`, [id])
    await settled(environment)
    const before = await textIn('threads', id)
    for (const args of [
      ['hydrate', id, '--table', 'threads'],
      ['restore', '--row', id, '--table', 'threads'],
    ]) {
      const { code, stdout, stderr } = await lighter(environment, args)
      expect(code).not.toBe(0)
      expect(`${stdout}${stderr}`).toMatch(/pointer to artifact .* can not be followed/)
    }
    expect(await textIn('threads', id)).toBe(before)
    await lighter(environment, ['unpin', '--row', id, '--table', 'threads'])
    await environment.app.query('delete from threads where id = $1', [id])
  })
})

test('an element that looks like a pointer and is none keeps the row inline', async () => {
  const id = await insert(`[{"artifact_metadata_ref": "${randomUUID()}"}, ${message('made up')}]`)
  expect(await textIn('threads', id)).toBe(await textIn('plain', id))
  const { rows } = await environment.admin.query(
    'select last_error from lighter.failures where row_id = $1',
    [id],
  )
  expect(rows).toMatchObject([{ last_error: expect.stringMatching(/^lost_pointer: /) }])
})

test.each(['"text"', '1', 'true', 'null'])(
  'elements like %s under the name of a pointer are data',
  async value => {
    const id = await insert(`[{"artifact_metadata_ref": ${value}}, ${message('data')}]`)
    expect(await raw(id)).toMatchObject([pointer])
    await expectSame(id)
  },
)

test.each([
  ['a string', `"${'s'.repeat(9000)}"`],
  ['a number', `1${'0'.repeat(9000)}`],
  ['an array of nothing', '[]'],
])('%s stays inline, and is no failure', async (_what, json) => {
  const id = await insert(json)
  expect(await textIn('threads', id)).toBe(await textIn('plain', id))
  const { rows } = await environment.admin.query('select from lighter.failures where row_id = $1', [id])
  expect(rows).toEqual([])
  await expectSame(id)
})

test('restore brings every array back as it would have been', async () => {
  // The one with a made-up pointer can not be read, and is inline already.
  await environment.admin.query(
    'delete from threads where id in (select row_id::bigint from lighter.failures)',
  )
  const { code, stderr } = await lighter(environment, ['restore', '--all', '--table', 'threads', '--json'])
  expect(code, stderr).toBe(0)
  const { rows } = await environment.admin.query(
    'select id from threads t join plain p using (id) where t.metadata::text <> p.metadata::text',
  )
  expect(rows).toEqual([])
  const { rows: pointing } = await environment.admin.query(
    `select id from threads where metadata::text like '%"artifact_metadata_count"%'`,
  )
  expect(pointing).toEqual([])
})
