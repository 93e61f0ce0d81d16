// The text form of keys and the uuids of tenants are formats: SQL and TypeScript must write the same, to the byte.
import { randomBytes, randomUUID } from 'node:crypto'
import { expect, test } from 'vitest'
import { rowKey, rowKeyParts } from '../../src/source/row-key.ts'
import { tenantIdOf } from '../../src/source/tenant-id.ts'
import { useEnvironment } from '../support/environment.ts'
import { value } from '../support/sql.ts'

const environment = await useEnvironment()

const odd = [
  '',
  ' ',
  'plain',
  '7',
  '-0',
  'null',
  '["a","b"]',
  'with "quotes" and \\ and /',
  'a\u0001\u0008\t\n\u000b\u000c\r\u001f\u007f\u0080\u2028\u2029',
  'ä ß 漢字 🚢 e\u0301',
  '2026-11-30T12:00:00+00:00',
]
const random = () => randomBytes(12).toString('utf8').replaceAll('\u0000', '')
const keys: [string, ...string[]][] = [
  ...odd.map((part): [string] => [part]),
  ...odd.flatMap(a => odd.map((b): [string, string] => [a, b])),
  ...Array.from({ length: 500 }, (): [string, ...string[]] => [random(), random(), random()]),
]

const inSql = (parts: string[]) =>
  value<string>(environment.admin, 'select lighter.row_key(variadic $1::text[])', [parts])
const partsInSql = (key: string, columns: number) =>
  value<string[] | null>(environment.admin, 'select lighter.row_key_parts($1, $2)', [key, columns])

test('a key has one text form, which gives the key back', async () => {
  const seen = new Map<string, string>()
  for (const parts of keys) {
    const key = rowKey(parts)
    expect(await inSql(parts)).toBe(key)
    expect(rowKeyParts(key, parts.length)).toEqual(parts)
    expect(await partsInSql(key, parts.length)).toEqual(parts)
    const name = `${parts.length} ${key}`
    expect(seen.get(name) ?? JSON.stringify(parts)).toBe(JSON.stringify(parts))
    seen.set(name, JSON.stringify(parts))
  }
  expect(seen.size).toBeGreaterThan(600)
  expect(await inSql(['a', 'b'])).toBe('["a","b"]')
})

test('what is no text form of a key of so many columns is none', async () => {
  for (const [key, columns] of [
    ['a', 2],
    ['["a"]', 2],
    ['["a","b","c"]', 2],
    ['["a", "b"]', 2],
    ['["a",1]', 2],
    ['["a",null]', 2],
    ['["\\u0061","b"]', 2],
    ['{"a":"b"}', 2],
    ['["a","b"', 2],
    ['["a","\\u0000"]', 2],
    ['["a","\\ud800"]', 2],
    ['', 2],
  ] as const) {
    expect([key, rowKeyParts(key, columns)]).toEqual([key, null])
    expect([key, await partsInSql(key, columns)]).toEqual([key, null])
  }
  expect(await value(environment.admin, `select lighter.row_key('a', null)`)).toBeNull()
})

test('a tenant named by a text has one uuid within its namespace', async () => {
  const namespaces = ['00000000-0000-0000-0000-000000000000', randomUUID(), randomUUID()]
  const ids = new Set<string>()
  const names = [...odd, 'acme', 'ACME', 'acme ']
  for (const namespace of namespaces) {
    for (const name of names) {
      const id = tenantIdOf(namespace, name)
      expect(id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
      expect(await value(environment.admin, 'select lighter.tenant_of($1, $2)', [namespace, name])).toBe(id)
      ids.add(id)
    }
  }
  expect(ids.size).toBe(namespaces.length * names.length)
  // For ever: docs/formats.md has this one.
  expect(tenantIdOf('6ba7b810-9dad-11d1-80b4-00c04fd430c8', 'acme')).toBe(
    '5aaf6176-7f61-8cf7-9c21-c3752224617e',
  )
})
