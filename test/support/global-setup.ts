// One Postgres and one S3 server for the whole run, with a migrated database to clone.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import pg from 'pg'
import type { TestProject } from 'vitest/node'
import { type EmbeddedUrls, prepareEmbeddedDatabase } from '../../src/embedded/prepare.ts'
import { startBackend } from './backends/start.ts'
import { logsVariable, secretsVariable } from './logs.ts'

/** What every test file gets. */
export interface Servers {
  /** Connection strings of the template database; tests put their own database's name in. */
  urls: EmbeddedUrls
  templateDatabase: string
  store: { endpoint: string; bucket: string; accessKeyId: string; secretAccessKey: string }
  /** Directory for what is logged. */
  logs: string
}

declare module 'vitest' {
  export interface ProvidedContext {
    servers: Servers
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const { postgres, store, stop } = await startBackend()
  const logs = await mkdtemp(path.join(tmpdir(), 'pg-lighter-logs-'))
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
      logs,
    })
    // For the reporter, which looks into the logs when all tests have run.
    process.env[logsVariable] = logs
    const passwords = Object.values(urls).map(url => decodeURIComponent(new URL(url).password))
    // A server that others configured may have a password that is a common word.
    const secrets = [store.secretAccessKey, ...new Set(passwords)].filter(secret => secret.length > 10)
    process.env[secretsVariable] = JSON.stringify(secrets)
  } catch (error) {
    await stop()
    throw error
  } finally {
    await server.end()
  }
  return async () => {
    await stop()
    await rm(logs, { recursive: true, force: true })
  }
}
