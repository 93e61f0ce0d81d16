// Settings of the database or of a login change how Postgres writes values and reads statements. None of them changes
// what we store, show or delete.
import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { expect, onTestFinished, test } from 'vitest'
import { startApi, type TestApi } from '../support/api.ts'
import { attach, createTable, hydratedByCli, lighter, lighterOk, settled } from '../support/black-box.ts'
import { useFreshEnvironment } from '../support/environment.ts'
import { findPgBouncer, startPgBouncer } from '../support/pgbouncer.ts'

/** Many commands, each a process of its own. */
const slow = { timeout: 180_000 }

const environment = useFreshEnvironment()

const odd = {
  datestyle: `'German'`,
  intervalstyle: 'sql_standard',
  timezone: `'Asia/Kathmandu'`,
  extra_float_digits: '-15',
  bytea_output: 'escape',
  standard_conforming_strings: 'off',
  array_nulls: 'off',
  transform_null_equals: 'on',
  quote_all_identifiers: 'on',
  gin_fuzzy_search_limit: '1',
  search_path: 'pg_temp',
}

async function makeOdd(): Promise<void> {
  for (const [name, value] of Object.entries(odd))
    await environment.admin.query(`alter database ${environment.database} set ${name} = ${value}`)
  const login = decodeURIComponent(new URL(environment.urls.daemon).username)
  await environment.admin.query(
    `alter role ${pg.escapeIdentifier(login)} in database ${environment.database} set row_security = off`,
  )
}

const tenant = randomUUID()
const text = `{"tool_interactions": [{"text": "${'x'.repeat(2000)}"}], "note": "it's \\\\ here", "n": 123456789.125}`

/** What an application does in a day, checked at each step. */
async function liveADay(api: TestApi, env: Record<string, string> = {}): Promise<void> {
  await createTable(
    environment,
    'public.notes',
    '(id bigint primary key, tenant_id uuid not null, metadata jsonb)',
  )
  await attach(environment, 'public.notes')
  await environment.app.query(`insert into public.notes values (1, $1, $2), (2, $1, $2)`, [tenant, text])
  await settled(environment)
  const hydrated = await hydratedByCli(environment, 'notes', '1', [])
  expect(JSON.parse(hydrated)).toEqual(JSON.parse(text))

  const put = await api.call(tenant, 'POST', '/api/storage/artifacts', {
    json: JSON.stringify({ kind: 'agent_trace', payload: { a: 'b'.repeat(123_456) } }),
  })
  expect(put.status, put.text).toBe(201)
  const list = await api.call(tenant, 'GET', '/api/storage/artifacts?limit=2')
  expect(list.status, list.text).toBe(200)
  expect(list.json.artifacts.map((a: { size_bytes: number }) => a.size_bytes)).toContain(123_464)
  for (const { created_at } of list.json.artifacts)
    expect(Math.abs(Date.parse(created_at) - Date.now())).toBeLessThan(600_000)
  const rest = await api.call(tenant, 'GET', `/api/storage/artifacts?limit=2&cursor=${list.json.next_cursor}`)
  expect(rest.json.artifacts).toHaveLength(1)

  const { id } = put.json.artifact ?? put.json
  expect((await api.call(tenant, 'DELETE', `/api/storage/artifacts/${id}`)).status).toBe(200)
  expect((await api.call(tenant, 'GET', `/api/storage/artifacts/${id}`)).status).toBe(410)

  const { rows } = await environment.admin.query(
    `select metadata ->> 'tool_interactions_ref' as id from public.notes where id = 2`,
  )
  await environment.admin.query('update public.artifact_refs set deleted_at = now() where id = $1', [
    rows[0].id,
  ])
  const gone = await lighter(environment, ['hydrate', '2', '--table', 'notes'], { env })
  expect(gone.stdout).not.toContain('xxxx')
  expect(gone.code).toBe(1)
}

test(
  'with every odd setting at once, what was deleted stays deleted and everything else works',
  slow,
  async () => {
    await makeOdd()
    const api = await startApi(environment)
    onTestFinished(() => api.daemon.stop().then(() => undefined))
    await liveADay(api)
    for (const sweep of ['release', 'retention', 'compaction']) await lighterOk(environment, ['sweep', sweep])
    await lighterOk(environment, ['stats'])
    await lighterOk(environment, ['restore', '--table', 'notes', '--row', '1'])
  },
)

test.skipIf((await findPgBouncer()) === null)(
  'the same behind a pooler in transaction mode, whose connections keep nothing of ours',
  slow,
  async () => {
    await makeOdd()
    const pooler = await startPgBouncer([environment.urls.daemon], { poolMode: 'transaction', poolSize: 4 })
    const through = { DATABASE_URL: pooler.through(environment.urls.daemon) }
    const env = { ...through, LISTEN_DATABASE_URL: environment.urls.daemon }
    const api = await startApi(environment, { env })
    onTestFinished(() => api.daemon.stop().then(() => undefined))
    await liveADay(api, env)
    const other = new pg.Client({ connectionString: through.DATABASE_URL })
    onTestFinished(() => other.end())
    await other.connect()
    for (const name of ['extra_float_digits', 'quote_all_identifiers', 'row_security'])
      expect((await other.query(`show ${name}`)).rows[0]).toEqual({
        [name]: { extra_float_digits: '-15', quote_all_identifiers: 'on', row_security: 'off' }[name],
      })
  },
)
