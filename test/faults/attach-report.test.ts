// Attaching says everything at once: what it decided, what it changes, and all that stands in the way.
import { randomUUID } from 'node:crypto'
import { afterAll, beforeEach, describe, expect, test } from 'vitest'
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
    await createTable(environment, table, '(id numeric primary key, tenant_id date, metadata xml)')
    await environment.admin.query(`create table ${table}_old () inherits (${table})`)
  })
  const all = [
    /has no key: .* id is of type numeric/,
    /metadata is of type xml, not jsonb, json, text or bytea/,
    /tenant column .* is of type date, not uuid/,
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
      expect(text).toMatch(/alter column metadata type text using metadata::text/)
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
      key_columns: 'id',
      key_types: 'bigint',
      tenant_column: 'tenant_id',
      parent_relations: 'none',
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
    /^mode +document\n[\s\S]*\nkey_columns +id\n[\s\S]*can be attached; nothing was changed\n$/,
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
    expect(changed).toEqual({ key_columns: 'file_no instead of id' })
    expect(await hydratedByCli(environment, table, '1')).toBe(document)
  })
})

test('a dry run says the statement that attaches the table in the same way', async () => {
  await createTable(environment, table, '(id uuid primary key, tenant_id uuid, metadata jsonb)')
  const options = [
    '--envelope-keys',
    `a,b'c,"d"`,
    '--settle-for',
    '10m',
    '--no-skip-triggers',
    '--kind',
    'note',
  ]
  const dry = JSON.parse(await lighterOk(environment, ['attach', table, ...options, '--dry-run', '--json']))
  expect(await source()).toEqual([])
  await environment.admin.query(dry.statement)
  expect(await source()).toHaveLength(1)
  const again = JSON.parse(await lighterOk(environment, ['attach', table, '--dry-run', '--json']))
  expect(again.decided).toEqual(dry.decided)
  expect(again.decided).toMatchObject({ envelope_keys: expect.stringContaining("b'c"), phase2_kind: 'note' })
})

describe('when rows leave', () => {
  const defaults = (settleFor: string, maxWait: string) =>
    environment.admin.query('select lighter.set_defaults($1, $2)', [settleFor, maxWait])
  const timing = async () =>
    (
      await environment.admin.query(
        `select settle_for::text, max_wait::text, ship_alone_bytes, min_bytes from lighter.sources where relation = $1::regclass`,
        [table],
      )
    ).rows[0]

  beforeEach(async () => {
    await createTable(environment, table, good)
    await defaults('1 minute', '24 hours')
  })
  afterAll(() => defaults('0', '0'))

  test('is said with what holds for all tables, in the report and in its last line', async () => {
    const text = await lighterOk(environment, ['attach', table])
    expect(text).toMatch(
      /^settle_for {8}1 minute \(default\)\nmax_wait {10}24 hours \(default\)\nship_alone_bytes {2}65536 \(default\)$/m,
    )
    const [last, before] = text.trimEnd().split('\n').reverse()
    expect(before).toMatch(new RegExp(`^attached ${table}.metadata as source \\d+$`))
    expect(last).toBe(
      `Rows written from now on stay for 1 minute after their last write, then leave when their tenant has 4.2 MB of a kind, or after 24 hours if it has 65.5 KB by then. A row with 65.5 KB or more waits for no others. To let them leave now: lighter flush. To see where a row is: lighter status ${table} <id>`,
    )
    await defaults('0', '0')
    expect(await lighterOk(environment, ['attach', table])).toMatch(
      /^settle_for {8}0 seconds \(default\)$[\s\S]*\nRows written from now on leave as soon as a daemon sees them\. /m,
    )
  })

  test('is set by options, changed alone, and goes back to the default', async () => {
    await report(['--settle-for', '90s', '--max-wait', '2d', '--ship-alone', '2048', '--min-bytes', '100'])
    expect(await timing()).toEqual({
      settle_for: '00:01:30',
      max_wait: '48:00:00',
      ship_alone_bytes: 2048,
      min_bytes: 100,
    })
    const { decided, changed } = await report(['--settle-for', '0'])
    expect(decided).toMatchObject({ settle_for: '0 seconds', max_wait: '2 days', ship_alone_bytes: '2048' })
    expect(changed).toEqual({ settle_for: '0 seconds instead of 90 seconds' })
    const back = [
      '--settle-for',
      'default',
      '--max-wait',
      'default',
      '--ship-alone',
      'default',
      '--min-bytes',
      'default',
    ]
    expect((await report(back)).changed).toEqual({
      settle_for: '1 minute (default) instead of 0 seconds',
      max_wait: '24 hours (default) instead of 2 days',
      ship_alone_bytes: '65536 (default) instead of 2048',
      min_bytes: '0 instead of 100',
    })
    expect(await timing()).toEqual({ settle_for: null, max_wait: null, ship_alone_bytes: null, min_bytes: 0 })
  })

  test.each([
    [
      ['--settle-for', '1 minute'],
      /argument '1 minute' is invalid\. not a duration: 0, 30s, 5m, 24h, 2d, or default/,
    ],
    [['--max-wait', '-1s'], /argument '-1s' is invalid\. not a duration/],
    [
      ['--ship-alone', '0'],
      /argument '0' is invalid\. not a whole number of bytes from 1024 on, nor default/,
    ],
    [
      ['--min-bytes', '3000000000'],
      /argument '3000000000' is invalid\. not a whole number of bytes, nor default/,
    ],
    [['--settle-for', '31d'], /^error: settle_for can be 30 days at most/],
  ])('%j is an error', async (args, expected) => {
    const { code, stderr } = await lighter(environment, ['attach', table, ...args])
    expect(code).toBe(1)
    expect(stderr).toMatch(expected)
    expect(await source()).toEqual([])
  })
})
