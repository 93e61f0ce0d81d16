// An application edits inside a document that has left its row: what that does, and what a guard makes of it.
import { randomUUID } from 'node:crypto'
import type pg from 'pg'
import { beforeAll, describe, expect, test } from 'vitest'
import { attach, createTable, hydratedByCli, lighter, lighterOk, settled } from '../support/black-box.ts'
import { useDaemon, useEnvironment } from '../support/environment.ts'
import { connect, errorOf, value } from '../support/sql.ts'

const environment = await useEnvironment()
await useDaemon(environment)

const tenantId = randomUUID()
const columns = '(id integer primary key, tenant_id uuid, note text, metadata jsonb)'
const long = 'x'.repeat(9000)
const documents = {
  whole: `{"model": "m", "views": 1, "nested": {"a": 1}, "long": "${long}"}`,
  field: '{"model": "m", "tool_interactions": [{"result": "r"}]}',
  array: `[{"text": "${long}"}, {"text": "b"}]`,
  // An array with a pointer, and an element that the application appended.
  appended: `[{"text": "${long}"}]`,
}
type Document = keyof typeof documents

let lastId = 0

/** New rows that are offloaded; returns the first one's key. */
async function insert(table: string, document: Document, rows = 1): Promise<number> {
  const id = lastId + 1
  lastId += rows
  await environment.app.query(
    `insert into ${table} select n, $1, 'n', $2 from generate_series($3::int, $4::int) n`,
    [tenantId, documents[document], id, lastId],
  )
  await settled(environment)
  expect(await text(table, id)).toMatch(/_ref"/)
  if (document === 'appended') await edit(table, id, `metadata || '[1, 2]'`)
  return id
}

const edit = (table: string, id: number, expression: string) =>
  environment.app.query(`update ${table} set metadata = ${expression} where id = $1`, [id])

const text = (table: string, id: number) =>
  value<string | null>(environment.admin, `select metadata::text from ${table} where id = $1`, [id])

const hydrated = async (table: string, id: number) =>
  JSON.parse(await hydratedByCli(environment, table, String(id)))

async function guarded(table: string, mode: string): Promise<void> {
  await createTable(environment, table, columns)
  await attach(environment, table, 'metadata', { guard: `'${mode}'` })
}

/** What Postgres tells the session of `work` without failing. */
async function warningsOf(work: (session: pg.Client) => Promise<void>): Promise<string[]> {
  const session = await connect(environment.urls.application)
  const warnings: string[] = []
  session.on('notice', notice => warnings.push(`${notice.severity}: ${notice.message}`))
  try {
    await work(session)
  } finally {
    await session.end()
  }
  return warnings
}

const edits: [string, Document, string, RegExp][] = [
  ['a change of a nested key', 'whole', `jsonb_set(metadata, '{nested,a}', '2')`, /changed nothing/],
  [
    'a count from a key that left',
    'whole',
    `jsonb_set(metadata, '{views}', to_jsonb((metadata->>'views')::int + 1))`,
    /null/,
  ],
  ['a key that is taken out', 'whole', `metadata - 'views'`, /changed nothing/],
  ['a key of the envelope that is taken out', 'whole', `metadata - 'model'`, /changed nothing/],
  ['the pointer that is taken out', 'whole', `metadata - 'artifact_metadata_ref'`, /removed the pointer/],
  [
    'the same beside a new key',
    'whole',
    `metadata - 'artifact_metadata_ref' || '{"a": 1}'`,
    /removed the pointer/,
  ],
  [
    'what a filter of known keys leaves',
    'whole',
    `jsonb_build_object('model', metadata->'model')`,
    /removed the pointer/,
  ],
  ['a document that is emptied', 'whole', `'{}'`, /removed the pointer/],
  ['a JSON null', 'whole', `'null'`, /null/],
  ['an element appended to an object', 'whole', `metadata || '[1]'`, /wrote into the pointer/],
  [
    'a change inside the field',
    'field',
    `jsonb_set(metadata, '{tool_interactions,0,result}', '"s"')`,
    /changed nothing/,
  ],
  ['the field that is taken out', 'field', `metadata - 'tool_interactions'`, /changed nothing/],
  ['the pointer of the field', 'field', `metadata - 'tool_interactions_ref'`, /removed the pointer/],
  [
    'a length that is counted',
    'field',
    `jsonb_set(metadata, '{n}', to_jsonb(jsonb_array_length(metadata->'tool_interactions')))`,
    /null/,
  ],
  ['an element by its place', 'array', `jsonb_set(metadata, '{1,text}', '"c"')`, /changed nothing/],
  [
    'the first element, which is a pointer',
    'array',
    `jsonb_set(metadata, '{0,text}', '"c"')`,
    /wrote into the pointer/,
  ],
  ['the first element that is removed', 'array', `metadata - 0`, /removed the pointer/],
  ['the same with others behind it', 'appended', `metadata - 0`, /removed the pointer/],
  ['an element that is taken for the document', 'array', `metadata -> 0`, /wrote into the pointer/],
]

const meant: [string, Document, string][] = [
  ['a new key', 'whole', `metadata || '{"feedback": 1}'`],
  ['another value for a key of the envelope', 'whole', `jsonb_set(metadata, '{model}', '"n"')`],
  ['a whole new document', 'whole', `'{"model": "m", "views": 2}'`],
  ['a key that is taken out of what stays', 'field', `metadata - 'model'`],
  ['the field written again', 'field', `metadata || '{"tool_interactions": [3]}'`],
  ['the field cleared', 'field', `metadata - 'tool_interactions_ref' || '{"tool_interactions": []}'`],
  ['an element appended', 'array', `metadata || '[{"text": "c"}]'`],
  ['an element put first', 'array', `'["c"]' || metadata`],
  ['an appended element taken away', 'appended', `metadata - -1`],
]

describe('without a guard, which is how a table is attached', () => {
  beforeAll(async () => {
    await createTable(environment, 'plain', columns)
    await attach(environment, 'plain')
  })

  test('an edit of what has left changes nothing, or makes the column null, and nobody is told', async () => {
    const [nested, counted] = [await insert('plain', 'whole'), await insert('plain', 'whole')]
    const before = await text('plain', nested)
    const warnings = await warningsOf(async session => {
      await session.query(
        `update plain set metadata = jsonb_set(metadata, '{nested,a}', '2') where id = ${nested}`,
      )
      await session.query(
        `update plain set metadata = jsonb_set(metadata, '{views}', to_jsonb((metadata->>'views')::int + 1)) where id = ${counted}`,
      )
    })
    expect(warnings).toEqual([])
    expect(await text('plain', nested)).toBe(before)
    expect(await text('plain', counted)).toBeNull()
  })
})

describe('with the guard "error"', () => {
  beforeAll(() => guarded('strict', 'error'))

  test.each(edits)('%s fails, and the row stays as it was', async (_, document, expression, problem) => {
    const id = await insert('strict', document)
    const before = await text('strict', id)
    const error = await errorOf(edit('strict', id, expression))
    expect(error).toMatchObject({ code: '23514', message: expect.stringMatching(problem) })
    expect(error.message).toMatch(/strict\.metadata/)
    expect(error.hint).toMatch(/write all of it/)
    expect(await text('strict', id)).toBe(before)
  })

  test.each(meant)('%s is let be', async (_, document, expression) => {
    const id = await insert('strict', document)
    await edit('strict', id, expression)
    await settled(environment)
  })

  test('a row that was read back whole, changed and written is let be', async () => {
    const id = await insert('strict', 'whole')
    const document = { ...(await hydrated('strict', id)), views: 2 }
    await environment.app.query('update strict set metadata = $1 where id = $2', [document, id])
    await settled(environment)
    expect(await hydrated('strict', id)).toEqual(document)
  })

  test('updates of other columns, rows that are not offloaded, and deletions are let be', async () => {
    const id = await insert('strict', 'whole')
    await environment.app.query(`update strict set note = 'changed' where id = $1`, [id])
    await environment.app.query('delete from strict where id = $1', [id])
    const small = ++lastId
    await environment.app.query(`insert into strict values ($1, $2, null, '{"a": 1, "x_ref": "b"}')`, [
      small,
      tenantId,
    ])
    for (const expression of [`metadata - 'a'`, 'metadata', 'null']) await edit('strict', small, expression)
    expect(await text('strict', small)).toBeNull()
  })

  test('a transaction that means it says so', async () => {
    const id = await insert('strict', 'whole')
    const session = await connect(environment.urls.application)
    await session.query(
      `begin; set local lighter.guard = 'off'; update strict set metadata = null where id = ${id}; commit`,
    )
    expect(await text('strict', id)).toBeNull()
    const other = await insert('strict', 'whole')
    await expect(session.query(`update strict set metadata = null where id = ${other}`)).rejects.toThrow(
      /null/,
    )
    await session.end()
  })

  test('the daemon offloads such a row again, and restore brings it back', async () => {
    const id = await insert('strict', 'whole')
    // All that restore has to write is in the row already, but for the pointer.
    await environment.app.query('update strict set metadata = $1 where id = $2', [{ long }, id])
    await settled(environment)
    await edit('strict', id, `metadata || '{"long": "short"}'`)
    await lighterOk(environment, ['restore', '--table', 'strict', '--row', String(id)])
    expect(await text('strict', id)).toBe('{"long": "short"}')

    const again = await insert('strict', 'field')
    await edit('strict', again, `metadata || '{"tool_interactions": [3], "long": "${long}"}'`)
    await settled(environment)
    expect(await text('strict', again)).not.toMatch(/"long"/)
    expect(await hydrated('strict', again)).toEqual({ model: 'm', tool_interactions: [3], long })
    expect(await value(environment.admin, 'select count(*)::int from lighter.failures')).toBe(0)
  })

  test('rows of partitions are guarded too', async () => {
    await createTable(environment, 'parts', `${columns} partition by range (id)`)
    await environment.admin.query('create table parts_1 partition of parts for values from (0) to (1000000)')
    await attach(environment, 'parts', 'metadata', { guard: `'error'` })
    const id = await insert('parts', 'whole')
    await expect(edit('parts', id, 'null')).rejects.toThrow(/null/)
  })

  test('a column that is renamed can be written, and is guarded again once the table is attached again', async () => {
    await guarded('renamed', 'error')
    const id = await insert('renamed', 'whole')
    await environment.admin.query('alter table renamed rename metadata to document')
    await environment.app.query(`update renamed set document = document - 'views' where id = $1`, [id])
    await attach(environment, 'renamed', 'document')
    const update = environment.app.query(`update renamed set document = document - 'views' where id = $1`, [
      id,
    ])
    await expect(update).rejects.toThrow(/changed nothing/)
  })
})

describe('with the guard "warn"', () => {
  beforeAll(() => guarded('lenient', 'warn'))

  test('the edit is made, with one warning of each kind in a transaction', async () => {
    const id = await insert('lenient', 'whole', 3)
    const warnings = await warningsOf(async session => {
      await session.query('begin')
      await session.query(`update lenient set metadata = metadata - 'views' where id >= ${id}`)
      await session.query(`update lenient set metadata = null where id > ${id}`)
      await session.query('commit')
      await session.query(`update lenient set metadata = null where id = ${id}`)
    })
    expect(warnings).toEqual([
      expect.stringMatching(/^WARNING: .*lenient\.metadata changed nothing/),
      expect.stringMatching(/^WARNING: .*null/),
      expect.stringMatching(/^WARNING: .*null/),
    ])
    expect(await text('lenient', id)).toBeNull()
  })
})

describe('the guard of an attached table', () => {
  test('is changed by attaching again, and other options do not change it', async () => {
    await createTable(environment, 'changing', columns)
    const cli = async (...args: string[]) =>
      JSON.parse(await lighterOk(environment, ['attach', 'changing', '--json', ...args]))
    expect((await cli()).decided.guard).toBe('off')
    const id = await insert('changing', 'whole')
    await edit('changing', id, `metadata - 'views'`)
    expect((await cli('--guard', 'error')).changed).toEqual({ guard: 'error instead of off' })
    await cli('--threshold', '9000')
    await expect(edit('changing', id, `metadata - 'views'`)).rejects.toThrow(/changed nothing/)
    await cli('--guard', 'off')
    await edit('changing', id, `metadata - 'views'`)
    expect(await hydrated('changing', id)).toEqual(JSON.parse(documents.whole))
  })

  test('is off, warn or error', async () => {
    await createTable(environment, 'odd', columns)
    await expect(attach(environment, 'odd', 'metadata', { guard: `'loud'` })).rejects.toThrow(
      /off, warn or error/,
    )
    expect((await lighter(environment, ['attach', 'odd', '--guard', 'loud'])).stderr).toMatch(
      /off, warn, error/,
    )
  })

  test('goes with detach', async () => {
    await guarded('leaving', 'error')
    const id = await insert('leaving', 'whole')
    await lighterOk(environment, ['detach', 'leaving'])
    await edit('leaving', id, 'null')
    expect(await text('leaving', id)).toBeNull()
  })

  test('is missed by doctor when its trigger is gone or disabled', async () => {
    await guarded('watched', 'warn')
    const trigger = await value<string>(
      environment.admin,
      `select tgname from pg_trigger where tgrelid = 'watched'::regclass and tgname like '%guard%'`,
    )
    for (const [statement, state] of [
      [`alter table watched disable trigger ${trigger}`, 'disabled'],
      [`drop trigger ${trigger} on watched`, 'gone'],
    ] as const) {
      await environment.admin.query(statement)
      const { stdout } = await lighter(environment, ['doctor'])
      expect(stdout).toMatch(new RegExp(`watched\\.metadata: its guard \\(warn\\) is ${state}`))
    }
    await attach(environment, 'watched')
    expect((await lighter(environment, ['doctor'])).stdout).not.toMatch(/its guard/)
  })
})
