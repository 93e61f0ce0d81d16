import { expect, test } from 'vitest'
import { arrayText } from '../../src/db/array-text.ts'
import { useEnvironment } from '../support/environment.ts'

const environment = await useEnvironment()

test('Postgres reads arrays as they were written, whatever is in them', async () => {
  const values = [
    'plain',
    '',
    ' ',
    'NULL',
    'null',
    null,
    'a,b',
    '{}',
    '"quoted"',
    'back\\slash',
    "it's",
    'two\nlines\ttabs\r',
    'é 日本語 😀',
    '\\x41',
    '$1',
    'tenants/01890000-0000-7000-8000-000000000001/kind/2026/01/01/a.jsonl.zst',
  ]
  const { rows } = await environment.admin.query('select $1::text[] as read', [arrayText(values)])
  expect(rows).toEqual([{ read: values }])
})

test('numbers, booleans and nothing at all', async () => {
  const { rows } = await environment.admin.query(
    'select $1::float8[] as numbers, $2::bool[] as flags, $3::text[] as none, $4::bigint[] as whole',
    [arrayText([1.5, -2, 0, null]), arrayText([true, false, null]), arrayText([]), arrayText([2 ** 53 - 1])],
  )
  expect(rows).toEqual([
    { numbers: [1.5, -2, 0, null], flags: [true, false, null], none: [], whole: ['9007199254740991'] },
  ])
})
