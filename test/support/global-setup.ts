// One Postgres and one S3 server for the whole run, with a migrated database to clone.
import pg from 'pg'
import type { TestProject } from 'vitest/node'
import { type EmbeddedUrls, prepareEmbeddedDatabase } from '../../src/embedded/prepare.ts'
import { startBackend } from './backends/start.ts'

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
  const { postgres, store, stop } = await startBackend()
  const server = new pg.Client({ connectionString: postgres.url() })
  try {
    await server.connect()
    const templateDatabase = 'lighter_template'
    const urls = await prepareEmbeddedDatabase(server, postgres, templateDatabase, {
      withExampleTables: true,
    })
    const { endpoint, bucket, accessKeyId, secretAccessKey } = store
    project.provide('servers', {
      urls,
      templateDatabase,
      store: { endpoint, bucket, accessKeyId, secretAccessKey },
    })
  } catch (error) {
    await stop()
    throw error
  } finally {
    await server.end()
  }
  return stop
}
