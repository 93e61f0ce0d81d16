// Values of every type leave their column and come back as exactly the bytes that were written.
import { describe, expect, test } from 'vitest'
import { drained, useDaemon, useEnvironment } from '../support/environment.ts'
import {
  combinations,
  heavyValue,
  hydratedValue,
  insertValue,
  newValueTable,
  rawValue,
  updateValue,
  type ValueType,
} from '../support/value-tables.ts'

const environment = await useEnvironment()
await useDaemon(environment, { env: { STREAM_THRESHOLD_BYTES: '200000' } })

const contentTypes: Record<ValueType, string> = {
  jsonb: 'application/json',
  json: 'application/json',
  text: 'text/plain; charset=utf-8',
  bytea: 'application/octet-stream',
}

describe.each(combinations)('%s in mode %s', (type, mode) => {
  test('a heavy value leaves and is read as it was, a light one stays', async () => {
    const table = await newValueTable(environment, type, mode)
    const heavy = heavyValue(type)
    const light = heavyValue(type, 'light', 100)
    const ids = [await insertValue(environment, table, heavy), await insertValue(environment, table, light)]
    const none = await insertValue(environment, table, null)
    await drained(environment)
    const [left = '', stayed = ''] = ids
    const row = await rawValue(environment, table, left)
    expect(row.pointer).toMatch(/^[0-9a-f-]{36}$/)
    expect(row.bytes?.toString() ?? null).toBe(mode === 'whole' ? null : `{"artifact_ref": "${row.pointer}"}`)
    expect(await hydratedValue(environment, table, left)).toEqual(heavy)
    expect(await rawValue(environment, table, stayed)).toEqual({ bytes: light, pointer: null })
    expect(await hydratedValue(environment, table, stayed)).toEqual(light)
    expect(await hydratedValue(environment, table, none)).toBe(null)
    const { rows } = await environment.admin.query(
      'select id, row_id, kind, field, content_type, size_bytes::int from artifact_refs where source_id = $1',
      [table.sourceId],
    )
    expect(rows).toEqual([
      {
        id: row.pointer,
        row_id: left,
        kind: 'column_value',
        field: null,
        content_type: contentTypes[type],
        size_bytes: heavy.length,
      },
    ])
  })

  test('a value written over an offloaded one is offloaded in its place', async () => {
    const table = await newValueTable(environment, type, mode)
    const id = await insertValue(environment, table, heavyValue(type, 'first'))
    await drained(environment)
    const first = await rawValue(environment, table, id)
    await updateValue(environment, table, id, heavyValue(type, 'second'))
    if (mode === 'whole') expect((await rawValue(environment, table, id)).pointer).not.toBe(first.pointer)
    await drained(environment)
    expect((await rawValue(environment, table, id)).pointer).not.toBe(first.pointer)
    expect(await hydratedValue(environment, table, id)).toEqual(heavyValue(type, 'second'))
    await updateValue(environment, table, id, heavyValue(type, 'light', 50))
    await drained(environment)
    expect(await rawValue(environment, table, id)).toEqual({
      bytes: heavyValue(type, 'light', 50),
      pointer: null,
    })
  })

  test('a value that is too long to be held is streamed', async () => {
    const table = await newValueTable(environment, type, mode)
    const large = heavyValue(type, 'large – ✓', 1_000_000)
    const id = await insertValue(environment, table, large)
    await drained(environment)
    expect((await rawValue(environment, table, id)).pointer).not.toBe(null)
    expect((await hydratedValue(environment, table, id))?.equals(large)).toBe(true)
    const { rows } = await environment.admin.query(
      'select content_type, r2_key from artifact_refs where source_id = $1 and byte_offset is null',
      [table.sourceId],
    )
    expect(rows[0]?.content_type).toBe(contentTypes[type])
    expect(rows[0]?.r2_key).toMatch(/\.(json|txt|bin)$/)
  })
})
