// Where a demo runs: on servers of its own, or on those that the environment names. Either way in a database of its
// own, and nothing of it stays.
import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import pg from 'pg'
import { loadAdminDatabaseUrl, loadConfig } from '../config.ts'
import { startEmbedded } from '../embedded/index.ts'
import { type EmbeddedUrls, type Logins, prepareEmbeddedDatabase } from '../embedded/prepare.ts'
import { LighterError } from '../errors.ts'
import { openStore } from '../store/object-store.ts'

export interface DemoServers {
  urls: EmbeddedUrls
  /** Of a daemon on them. */
  env: Record<string, string | undefined>
  remove(): Promise<void>
}

/** In a temporary folder. @throws {LighterError} the packages are not installed, or do not start */
export async function startOwnServers(): Promise<DemoServers> {
  const dir = await mkdtemp(path.join(tmpdir(), 'pg-lighter-demo-'))
  const removeDir = () => rm(dir, { recursive: true, force: true })
  // Commit times tell the true latency: rows are visible when their transaction commits, not when it began.
  const embedded = await startEmbedded({ dir, settings: { track_commit_timestamp: 'on' } }).catch(
    async error => {
      await removeDir()
      throw error
    },
  )
  const remove = async () => {
    await embedded.stop()
    await removeDir()
  }
  try {
    const urls = await connected(embedded.postgres.url(), server =>
      prepareEmbeddedDatabase(server, embedded.postgres, 'lighter_demo', { withExampleTables: true }),
    )
    const env = {
      DATABASE_URL: urls.daemon,
      R2_ENDPOINT: embedded.r2.endpoint,
      R2_BUCKET: embedded.r2.bucket,
      R2_ACCESS_KEY_ID: embedded.r2.accessKeyId,
      R2_SECRET_ACCESS_KEY: embedded.r2.secretAccessKey,
    }
    return { urls, env, remove }
  } catch (error) {
    await remove()
    throw error
  }
}

/**
 * A database, two logins and a prefix with one random name, so that demos do not meet, and what a killed one has left
 * is recognised. The roles of the schema are the whole cluster's: those stay.
 * @throws {LighterError} the connection may not create databases and roles, or the bucket can not be reached
 */
export async function useExternalServers(env: Record<string, string | undefined>): Promise<DemoServers> {
  const name = `lighter_demo_${randomBytes(6).toString('hex')}`
  const postgres = { url: urlsOf(loadAdminDatabaseUrl(env)) }
  const login = (part: string) => ({
    user: `${name}_${part}`,
    password: randomBytes(18).toString('base64url'),
  })
  const logins: Logins = { daemon: login('daemon'), application: login('application') }
  const daemonEnv = {
    ...env,
    // What may come from files as well, and would then be said twice.
    DATABASE_URL_FILE: undefined,
    LISTEN_DATABASE_URL_FILE: undefined,
    LISTEN_DATABASE_URL: undefined,
    ADMIN_DATABASE_URL_FILE: undefined,
    ADMIN_DATABASE_URL: undefined,
    DATABASE_URL: postgres.url({ database: name, ...logins.daemon }),
    R2_PREFIX: `${env.R2_PREFIX ?? ''}${name}/`,
  }
  const store = openStore(loadConfig(daemonEnv).store)
  const remove = async () => {
    try {
      const keys: string[] = []
      for await (const { key } of store.list(store.prefix)) keys.push(key)
      for (let from = 0; from < keys.length; from += 1000) await store.delete(keys.slice(from, from + 1000))
    } finally {
      store.close()
      await connected(postgres.url(), async server => {
        await server.query(`drop database if exists ${name} with (force)`)
        for (const { user } of [logins.daemon, logins.application])
          await server.query(`drop role if exists ${user}`)
      })
    }
  }
  try {
    await store.check()
    const urls = await connected(postgres.url(), server =>
      prepareEmbeddedDatabase(server, postgres, name, { withExampleTables: true, logins }),
    )
    return { urls, env: daemonEnv, remove }
  } catch (error) {
    // What failed is what the user has to know, not that cleaning up then fails as well.
    await remove().catch(() => undefined)
    throw error
  }
}

/** The connection string with another database or login in it. */
function urlsOf(admin: string) {
  return ({ database, user, password }: { database?: string; user?: string; password?: string } = {}) => {
    if (!URL.canParse(admin)) {
      throw new LighterError('demo_needs_host', 'ADMIN_DATABASE_URL names no host', {
        hint: 'Write it as postgresql://user:password@host:5432/database.',
      })
    }
    const url = new URL(admin)
    if (database !== undefined) url.pathname = `/${database}`
    if (user !== undefined) url.username = user
    if (password !== undefined) url.password = password
    return url.href
  }
}

async function connected<T>(connectionString: string, work: (server: pg.Client) => Promise<T>): Promise<T> {
  const server = new pg.Client({ connectionString })
  await server.connect()
  try {
    return await work(server)
  } finally {
    await server.end()
  }
}
