// Attaching says everything at once: what it decided, what it changes, and all that stands in the way.
import { randomUUID } from 'node:crypto'
import { beforeEach, describe, expect, test } from 'vitest'
import { attach, createTable, hydratedByCli, lighter, lighterOk, settled } from '../support/black-box.ts'
import { startDaemon, useEnvironment } from '../support/environment.ts'

const environment = await useEnvironment()
let table = ''
let tables = 0

beforeEach(() => {
  table = `files_${++tables}`
})

interface Report {
  sourceId: number | null
  decided: Record<string, string>
  changed: Record<string, string>
  warnings: { found: string; hint: string | null }[]
  obstacles: { found: string; hint: string | null }[]
}

async function report(args: string[], code = 0): Promise<Report> {
  const finished = await lighter(environment, ['attach', table, '--json', ...args])
  expect(finished.code, finished.stderr).toBe(code)
  return JSON.parse(finished.stdout)
}

async function source(): Promise<Record<string, unknown>[]> {
  const { rows } = await environment.admin.query(
    'select phase1_field, threshold_bytes, envelope_keys, tenant_column from lighter.sources where relation = $1::regclass',
    [table],
  )
  return rows
}

const good = '(id bigint primary key, tenant_id uuid, owner_id uuid, metadata jsonb)'
const document = '{"tool_interactions": [1, 2]}'

async function offloaded(id: number): Promise<void> {
  const daemon = await startDaemon(environment)
  await environment.admin.query(`insert into ${table} (id, tenant_id, metadata) values ($1, $2, $3)`, [
    id,
    randomUUID(),
    document,
  ])
  await settled(environment)
  await daemon.stop()
}

describe('a table with several obstacles', () => {
  beforeEach(async () => {
    await createTable(environment, table, '(id text primary key, tenant_id text, metadata json)')
    await environment.admin.query(`create table ${table}_old () inherits (${table})`)
  })
  const all = [
    /primary key .* is of type text/,
    /metadata is of type json, not jsonb/,
    /tenant column .* is of type text, not uuid/,
    /a kind is snake_case/,
    /has children by inheritance/,
  ].map(problem => expect.stringMatching(problem))

  test('has them all named by a dry run, with exit status 1, and nothing is attached', async () => {
    const { obstacles, sourceId } = await report(['--dry-run', '--kind', 'No Kind'], 1)
    expect(obstacles.map(each => each.found)).toEqual(all)
    expect(sourceId).toBeNull()
    expect(await source()).toEqual([])
  })

  test('has them all named by one error of attach, in SQL and on the command line, each with its remedy', async () => {
    const { code, stderr } = await lighter(environment, ['attach', table, '--kind', 'No Kind'])
    expect(code).toBe(1)
    const message = await attach(environment, table, 'metadata', { phase2_kind: `'No Kind'` }).then(
      () => 'it succeeded',
      error => String(error),
    )
    for (const text of [stderr, message]) {
      expect(text).toContain('cannot be attached, for 5 reasons')
      for (const problem of all) expect(text).toEqual(problem)
      expect(text).toMatch(/alter column metadata type jsonb using metadata::jsonb/)
    }
  })
})

test('a dry run says what would be decided and changes nothing; attach says the same and does it', async () => {
  await createTable(environment, table, good)
  const dry = await report(['--dry-run', '--threshold', '9000'])
  expect(dry).toMatchObject({
    sourceId: null,
    changed: {},
    warnings: [],
    obstacles: [],
    decided: {
      key_column: 'id',
      key_type: 'bigint',
      tenant_column: 'tenant_id',
      parent_relation: 'none',
      entity_column: 'none',
      phase1_field: 'tool_interactions',
      threshold_bytes: '9000',
      skip_triggers: 'true',
      allow_dependents: 'false',
    },
  })
  expect(await source()).toEqual([])
  const done = await report(['--threshold', '9000'])
  expect(done).toEqual({ ...dry, sourceId: expect.any(Number) })
  expect(await source()).toHaveLength(1)
  expect(await lighterOk(environment, ['attach', table, '--dry-run'])).toMatch(
    /^key_column +id\n[\s\S]*can be attached; nothing was changed\n$/,
  )
})

test('options of an attached table are changed by attaching again; the others stay', async () => {
  await createTable(environment, table, good)
  await report(['--envelope-keys', 'a,b', '--field', ''])
  expect(await report([])).toMatchObject({ changed: {} })
  const { changed } = await report(['--threshold', '9000', '--envelope-keys', 'a'])
  expect(changed).toEqual({
    threshold_bytes: '9000 instead of none',
    envelope_keys: '["a"] instead of ["a", "b"]',
  })
  expect(await source()).toEqual([
    { phase1_field: null, threshold_bytes: 9000, envelope_keys: ['a'], tenant_column: 'tenant_id' },
  ])
  await report(['--threshold', '0', '--field', 'tool_interactions'])
  expect(await source()).toMatchObject([{ phase1_field: 'tool_interactions', threshold_bytes: null }])
})

describe('once rows are offloaded', () => {
  beforeEach(async () => {
    await createTable(environment, table, good)
    await attach(environment, table)
    await offloaded(1)
  })

  test('their field and their tenant are not changed, and they stay readable', async () => {
    const { obstacles } = await report(['--dry-run', '--field', 'trace', '--tenant-column', 'owner_id'], 1)
    expect(obstacles.map(each => each.found)).toEqual([
      expect.stringContaining('are offloaded under the field "tool_interactions"'),
      expect.stringContaining(`tenant in public.${table}.tenant_id`),
    ])
    await expect(attach(environment, table, 'metadata', { phase1_field: `''` })).rejects.toThrow(
      'with phase1_field none they could not be read',
    )
    expect(await hydratedByCli(environment, table, '1')).toBe(document)
  })

  test('a key that was renamed, or became bigint, is taken up by attaching again', async () => {
    await environment.admin.query(`alter table ${table} rename id to file_no`)
    const { changed } = await report([])
    expect(changed).toEqual({ key_column: 'file_no instead of id' })
    expect(await hydratedByCli(environment, table, '1')).toBe(document)
  })
})
