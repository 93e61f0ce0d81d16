// The generated pages are what the code says, and the code says something of everything.
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { beforeAll, describe, expect, test } from 'vitest'
import { renderPages } from '../../reference/pages.ts'
import { readSqlSchema, type SqlSchema } from '../../reference/sql.ts'
import { createProgram } from '../../src/cli/program.ts'
import { environmentSchema } from '../../src/config.ts'
import { useEnvironment } from '../support/environment.ts'

const environment = await useEnvironment()
let schema: SqlSchema
let pages: Map<string, string>
beforeAll(async () => {
  schema = await readSqlSchema(environment.admin)
  pages = await renderPages(environment.admin, file => readFileSync(file, 'utf8'))
})

test.each(['sql-reference.md', 'configuration.md', 'cli.md'])('docs/%s is what npm run docs writes', name => {
  const [file = '', text] = [...pages].find(([path]) => path.endsWith(`/${name}`)) ?? []
  expect(readFileSync(file, 'utf8'), `docs/${name} is old: npm run docs`).toBe(text)
})

test('sql/expected-catalogue.json is what npm run docs writes', () => {
  const [file = '', text] = [...pages].find(([path]) => path.endsWith('.json')) ?? []
  expect(readFileSync(file, 'utf8'), 'sql/expected-catalogue.json is old: npm run docs').toBe(text)
})

test('every function, table, view and column of the schema has a comment', () => {
  const silent = [
    ...schema.functions.filter(f => !f.meaning).map(f => f.signature),
    ...schema.relations.filter(r => !r.meaning).map(r => r.name),
    ...schema.relations.flatMap(r => r.columns.filter(c => !c.meaning).map(c => `${r.name}.${c.name}`)),
  ]
  expect(silent).toEqual([])
  expect(schema.relations.length).toBeGreaterThan(30)
})

test('no comment is of a column that an application has described itself', async () => {
  // An adopted table may have comments of its own, which stay at the next migration.
  const own = 'What we call it.'
  const client = await environment.admin.connect()
  try {
    await client.query('begin')
    await client.query(`comment on column lighter.loose_artifacts.kind is '${own}'`)
    await client.query(
      readFileSync(path.join(import.meta.dirname, '../../sql/views/90_comments.sql'), 'utf8'),
    )
    const { rows } = await client.query<{ meaning: string }>(
      `select col_description('lighter.loose_artifacts'::regclass, attnum) as meaning from pg_attribute
        where attrelid = 'lighter.loose_artifacts'::regclass and attname = 'kind'`,
    )
    expect(rows).toEqual([{ meaning: own }])
  } finally {
    await client.query('rollback')
    client.release()
  }
})

describe('the pages', () => {
  const page = (name: string) => [...pages].find(([file]) => file.endsWith(`/${name}`))?.[1] ?? ''

  test('name every variable once, and mark no secret as harmless', () => {
    for (const name of Object.keys(environmentSchema.shape))
      expect(page('configuration.md').split(`\n| \`${name}\``).length, name).toBe(2)
    for (const name of ['JWT_SECRET', 'DATABASE_URL'])
      expect(page('configuration.md')).toContain(`| \`${name}\` (secret) `)
    expect(page('configuration.md')).not.toContain('`R2_BUCKET` (secret)')
  })

  test('name every command with all its options', () => {
    for (const command of createProgram().commands) {
      expect(page('cli.md')).toContain(`\n### lighter ${command.name()}\n`)
      for (const option of command.options) expect(page('cli.md')).toContain(`| \`${option.flags}\` `)
    }
  })

  test('show every function that somebody may call, and none of the others', () => {
    const shown = [...page('sql-reference.md').matchAll(/^### (\w+)$/gm)].map(([, name]) => name)
    expect(shown).toEqual(expect.arrayContaining(['attach', 'artifact_get', 'retry', 'requeue']))
    expect(shown).not.toContain('describe_source')
  })
})
