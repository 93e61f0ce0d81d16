// The statements of docs/operations.md run: those of the runbooks as the daemon logs in, all others as the owner.
import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { beforeAll, describe, expect, test } from 'vitest'
import { blocksOf, readDoc } from '../support/doc-blocks.ts'
import { useEnvironment } from '../support/environment.ts'
import { column } from '../support/sql.ts'

const environment = await useEnvironment()
const tenant = randomUUID()
const artifact = randomUUID()
beforeAll(async () => {
  await environment.admin.query(
    `insert into artifact_refs (id, tenant_id, kind, r2_key, deleted_at, deleted_reason)
     values ($1, $2::uuid, 'agent_trace', 'tenants/' || $2::uuid || '/x', now(), 'expired: standard plan, 90 days')`,
    [artifact, tenant],
  )
})

const [before = '', runbooks = ''] = readDoc('operations.md').split(/^## Runbooks$/m)
/** In lists they are indented. */
const statementsOf = (markdown: string) =>
  blocksOf(markdown.replace(/^ {2}/gm, ''))
    .filter(block => block.info === 'sql')
    .map(block => ({ ...block, name: `${block.heading}: ${block.text.split('\n')[0]}` }))

async function run(pool: pg.Pool, sql: string): Promise<pg.QueryResult[]> {
  const variables: Record<string, string> = { tenant, artifact, conversation: randomUUID() }
  const client = await pool.connect()
  try {
    await client.query('begin')
    return [
      await client.query(
        sql.replace(/:'(\w+)'/g, (_, name) => pg.escapeLiteral(variables[name] ?? `no ${name}`)),
      ),
    ].flat()
  } finally {
    await client.query('rollback')
    client.release()
  }
}

describe('outside of the runbooks', () => {
  // For another program, for a superuser of the whole cluster, and for the very end.
  const others = /read_ndjson_objects|grant set on parameter|drop schema lighter/
  const statements = statementsOf(before)

  test('some are not for here', () => {
    expect(statements.filter(s => others.test(s.text))).toHaveLength(3)
  })

  test.each(statements.filter(s => !others.test(s.text)))('$name', async ({ text }) => {
    await run(environment.admin, text)
  })
})

describe('in the runbooks', () => {
  const statements = statementsOf(runbooks)

  test('every one says what it is seen by, and what to do', () => {
    const sections = runbooks.split(/^### /m).slice(1)
    expect(sections.length).toBeGreaterThanOrEqual(12)
    for (const section of sections) expect(section).toMatch(/\*\*Look\*\*[\s\S]*ure\*\*/)
    expect(statements.length).toBeGreaterThanOrEqual(8)
  })

  test.each(statements)('$name', async ({ text }) => {
    const results = await run(environment.worker, text)
    // What brings an artifact back does.
    if (text.startsWith('update')) expect(results.map(result => result.rowCount)).toEqual([1])
  })

  test('what was brought back is as it was', async () => {
    const [, update = ''] = /^ {2}(update public\.artifact_refs [\s\S]*?;)/m.exec(runbooks) ?? []
    const client = await environment.worker.connect()
    try {
      await client.query(
        update.replace(/:'(\w+)'/g, (_, name) => pg.escapeLiteral(name === 'tenant' ? tenant : artifact)),
      )
    } finally {
      client.release()
    }
    expect(await column(environment.worker, 'select id from lighter.artifact_list($1)', [tenant])).toEqual([
      artifact,
    ])
  })
})
