// The SQL of the guides runs, as the owner of the tables. (That of operations.md, sql.md and schemas.md has tests of its own.)
import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { beforeAll, describe, expect, test } from 'vitest'
import { blocksOf, documents, readDoc, readDocument } from '../support/doc-blocks.ts'
import { useEnvironment } from '../support/environment.ts'
import { asRole, column, ensureSupabaseRoles, errorOf } from '../support/sql.ts'

const tested = ['docs/operations.md', 'docs/sql.md', 'docs/sql-reference.md', 'docs/schemas.md']
const statements = documents()
  .filter(name => !tested.includes(name))
  .flatMap(name =>
    blocksOf(readDocument(name))
      // Supabase's own tables are not here.
      .filter(block => block.info === 'sql' && !block.text.includes('auth.users'))
      .map(block => ({ ...block, name: `${name}:${block.line}` })),
  )

const environment = await useEnvironment()
beforeAll(async () => {
  await ensureSupabaseRoles(environment.admin)
})

test('there are some', () => {
  expect(statements.length).toBeGreaterThan(8)
})

test.each(statements)('$name', async ({ text }) => {
  const client = await environment.admin.connect()
  const login = `docs_${randomUUID().slice(0, 8)}`
  try {
    await client.query('begin')
    // The cluster of the tests has a login of that name.
    if (!text.includes('create role')) await client.query(`create role ${login}`)
    await client.query(
      text.replaceAll('lighter_worker', login).replace(/:'(\w+)'/g, () => pg.escapeLiteral(randomUUID())),
    )
  } finally {
    await client.query('rollback')
    client.release()
  }
})

describe('the function for pages in docs/supabase.md', () => {
  const artifacts = { mine: randomUUID(), other: randomUUID() }
  const tenants = { mine: randomUUID(), other: randomUUID() }
  const asUser = (claims: object | null, role = 'authenticated') =>
    asRole(environment.admin, role, async client => {
      if (claims !== null)
        await client.query(`select set_config('request.jwt.claims', $1, true)`, [JSON.stringify(claims)])
      return column<string>(client, 'select id from public.my_artifacts()')
    })

  beforeAll(async () => {
    const [block] = blocksOf(readDoc('supabase.md')).filter(b => b.text.includes('my_artifacts'))
    await environment.admin.query(block?.text ?? '')
    for (const of of ['mine', 'other'] as const)
      await environment.admin.query(
        `insert into artifact_refs (id, tenant_id, kind, r2_key) values ($1, $2, 'agent_trace', $3)`,
        [artifacts[of], tenants[of], randomUUID()],
      )
  })

  test('shows a user the artifacts of the tenant in its token, and no others', async () => {
    expect(await asUser({ app_metadata: { tenant_id: tenants.mine } })).toEqual([artifacts.mine])
    expect(await asUser({ app_metadata: { tenant_id: tenants.other } })).toEqual([artifacts.other])
  })

  test('shows nothing without a tenant, nor for one that the user has made up', async () => {
    expect(await asUser(null)).toEqual([])
    expect(await asUser({})).toEqual([])
    expect(await asUser({ user_metadata: { tenant_id: tenants.mine }, tenant_id: tenants.mine })).toEqual([])
  })

  test('is not for those who are not logged in', async () => {
    const error = await errorOf(asUser({ app_metadata: { tenant_id: tenants.mine } }, 'anon'))
    expect(error.code).toBe('42501')
  })
})
