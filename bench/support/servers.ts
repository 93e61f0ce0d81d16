// The embedded pair for a bench, and databases on it.
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import pg from 'pg'
import { startEmbedded } from '../../src/embedded/index.ts'
import { prepareEmbeddedDatabase } from '../../src/embedded/prepare.ts'

/** As a small server of one's own would have them; the same for every contestant. */
export const postgresSettings = {
  shared_buffers: '1GB',
  max_wal_size: '4GB',
  checkpoint_timeout: '30min',
  maintenance_work_mem: '256MB',
}

/** Rows wait as they do on an own database; on these servers they leave as soon as they are written. */
export const asInstalled = `select lighter.set_defaults('1 minute', '24 hours')`

export interface BenchDatabase {
  name: string
  admin: pg.Pool
  urls: { admin: string; daemon: string; application: string }
  /** Environment of a daemon, and of every other contestant, on this database. */
  env: Record<string, string>
  drop(): Promise<void>
}

export interface BenchServers {
  r2Endpoint: string
  createDatabase(): Promise<BenchDatabase>
  stop(): Promise<void>
}

export async function startServers(settings: Record<string, string> = {}): Promise<BenchServers> {
  const dir = await mkdtemp(path.join(tmpdir(), 'pg-lighter-bench-'))
  const embedded = await startEmbedded({ dir, settings: { ...postgresSettings, ...settings } })
  const server = new pg.Client({ connectionString: embedded.postgres.url() })
  await server.connect()
  let databases = 0
  return {
    r2Endpoint: embedded.r2.endpoint,
    createDatabase: async () => {
      const name = `bench_${++databases}`
      const urls = await prepareEmbeddedDatabase(server, embedded.postgres, name, { withExampleTables: true })
      const admin = new pg.Pool({ connectionString: urls.admin, max: 4 })
      admin.on('error', () => undefined) // the database is dropped under it
      const env = {
        DATABASE_URL: urls.daemon,
        ADMIN_DATABASE_URL: urls.admin,
        R2_ENDPOINT: embedded.r2.endpoint,
        R2_BUCKET: embedded.r2.bucket,
        R2_ACCESS_KEY_ID: embedded.r2.accessKeyId,
        R2_SECRET_ACCESS_KEY: embedded.r2.secretAccessKey,
        R2_PREFIX: `${name}/`,
      }
      return {
        name,
        admin,
        urls,
        env,
        drop: async () => {
          await admin.end()
          await server.query(`drop database ${name} with (force)`)
          // What the last run left to be written must not be written during the next.
          await server.query('checkpoint')
        },
      }
    },
    stop: async () => {
      await server.end()
      await embedded.stop()
      await rm(dir, { recursive: true, force: true })
    },
  }
}
