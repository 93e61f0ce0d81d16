// A Postgres of a test's own, for faults that would hit the server that all tests share. The store is the shared one.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import pg from 'pg'
import { inject, onTestFinished } from 'vitest'
import { type RunningPostgres, startPostgres } from '../../src/embedded/postgres.ts'
import { type EmbeddedUrls, prepareEmbeddedDatabase } from '../../src/embedded/prepare.ts'
import { createEnvironment, type TestEnvironment } from './environment.ts'
import type { Servers } from './global-setup.ts'

/** A folder that goes with the test. */
export async function temporaryDir(name: string): Promise<string> {
  const dir = await mkdtemp(path.join(tmpdir(), `pg-lighter-${name}-`))
  onTestFinished(() => rm(dir, { recursive: true, force: true }))
  return dir
}

/** Stopped, at once, when the test ends. Nothing is flushed: the processes of such a server are killed, not its machine. */
export async function startOwnPostgres(
  settings: Record<string, string> = {},
  dataDir?: string,
): Promise<RunningPostgres> {
  const postgres = await startPostgres({
    dataDir: dataDir ?? path.join(await temporaryDir('postgres'), 'data'),
    settings: { fsync: 'off', shared_buffers: '32MB', ...settings },
  })
  onTestFinished(() => postgres.stop('immediate'))
  return postgres
}

/** A migrated database with the example tables, on a server that may be broken. */
export async function environmentOnOwnServer(
  postgres: Pick<RunningPostgres, 'url'>,
): Promise<{ environment: TestEnvironment; servers: Servers }> {
  const template = 'lighter_template'
  const client = new pg.Client({ connectionString: postgres.url() })
  await client.connect()
  let urls: EmbeddedUrls
  try {
    urls = await prepareEmbeddedDatabase(client, postgres, template, { withExampleTables: true })
  } finally {
    await client.end()
  }
  const servers: Servers = { ...inject('servers'), urls, templateDatabase: template }
  const environment = await createEnvironment({ servers })
  return { environment, servers }
}
