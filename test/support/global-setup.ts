// One embedded Postgres and one R2 simulator for the whole run, with a migrated database to clone.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import pg from 'pg'
import type { TestProject } from 'vitest/node'
import { startEmbedded } from '../../src/embedded/index.ts'
import { type EmbeddedUrls, prepareEmbeddedDatabase } from '../../src/embedded/prepare.ts'

/** What every test file gets. */
export interface Servers {
  /** Connection strings of the template database; tests put their own database's name in. */
  urls: EmbeddedUrls
  templateDatabase: string
  store: { endpoint: string; bucket: string; accessKeyId: string; secretAccessKey: string }
}

declare module 'vitest' {
  export interface ProvidedContext {
    servers: Servers
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const dir = await mkdtemp(path.join(tmpdir(), 'pg-lighter-test-'))
  const embedded = await startEmbedded({ dir })
  const server = new pg.Client({ connectionString: embedded.postgres.url() })
  await server.connect()
  try {
    const templateDatabase = 'lighter_template'
    const urls = await prepareEmbeddedDatabase(server, embedded.postgres, templateDatabase, {
      withExampleTables: true,
    })
    const { endpoint, bucket, accessKeyId, secretAccessKey } = embedded.r2
    project.provide('servers', {
      urls,
      templateDatabase,
      store: { endpoint, bucket, accessKeyId, secretAccessKey },
    })
  } finally {
    await server.end()
  }
  return async () => {
    await embedded.stop()
    await rm(dir, { recursive: true, force: true })
  }
}
