// Small things that go wrong by themselves: each says what is to be done, or does the right thing.
import { randomUUID } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { attach, createTable, lighter, settled } from '../support/black-box.ts'
import { startDaemon, useFreshEnvironment } from '../support/environment.ts'
import { runCli } from '../support/process.ts'

const environment = useFreshEnvironment()

test('a row without a tenant is a dead letter at its first attempt, which says why', async () => {
  await createTable(environment, 'notes', '(id bigint primary key, tenant_id uuid, metadata jsonb)')
  await attach(environment, 'notes')
  const daemon = await startDaemon(environment)
  onTestFinished(() => daemon.stop().then(() => undefined))
  await environment.app.query(`insert into notes values (1, null, '{"tool_interactions": [1]}')`)
  await settled(environment)
  const { rows } = await environment.admin.query('select attempts, last_error from lighter.failed_jobs')
  expect(rows).toEqual([
    { attempts: 1, last_error: expect.stringMatching(/^no tenant: tenant_id of the row/) },
  ])
})

test('a byte-order mark at the beginning of .env is no part of the first name', async () => {
  const file = path.join(tmpdir(), `pg-lighter-${randomUUID()}.env`)
  const { ADMIN_DATABASE_URL = '', ...others } = environment.env
  await writeFile(file, `\uFEFFADMIN_DATABASE_URL=${ADMIN_DATABASE_URL}\n`)
  const { DATABASE_URL: _, ...env } = others
  const finished = await runCli(['--env-file', file, 'migrate', '--status', '--json'], { env })
  expect(finished.stderr).toBe('')
  expect(JSON.parse(finished.stdout)).toMatchObject({ pending: [] })
})

test('savings of nothing at all have no sign', async () => {
  await environment.admin.query(
    'update lighter.prices set r2_gb_month = 0, r2_class_a_million = 0, database_gb_month = 0',
  )
  const { stdout } = await lighter(environment, ['stats'])
  expect(stdout).toMatch(/^bill now \$0\.00 a month/m)
  expect(stdout).not.toContain('-$')
})

test('a port that is taken names the setting', async () => {
  const other = createServer()
  await new Promise<void>(resolve => other.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => void other.close())
  const address = other.address()
  const port = typeof address === 'object' && address !== null ? String(address.port) : ''
  const finished = await lighter(environment, ['start', '--no-worker'], {
    env: { API_PORT: port, LOG_LEVEL: 'info', AUTH_MODE: 'dev' },
  })
  expect(finished.code).toBe(1)
  expect(finished.stdout + finished.stderr).toMatch(/API_PORT/)
})
