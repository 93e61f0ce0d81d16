// The servers that are tortured: a Postgres that can be restarted in place, and R2's simulator behind proxies.
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import pg from 'pg'
import { type Config, loadConfig } from '../src/config.ts'
import { type RunningPostgres, startPostgres } from '../src/embedded/postgres.ts'
import { type EmbeddedUrls, prepareEmbeddedDatabase } from '../src/embedded/prepare.ts'
import { type RunningR2, startR2 } from '../src/embedded/r2.ts'
import { type BodyType, filesModelOf } from './files.ts'
import { daemonSettings, shortLivedKind } from './settings.ts'

export interface World {
  dir: string
  r2: RunningR2
  urls: EmbeddedUrls
  /** Superuser, application, daemon. */
  admin: pg.Pool
  app: pg.Pool
  worker: pg.Pool
  /** The environment of a process that reaches the store at this endpoint. */
  env(endpoint: string): Record<string, string>
  config(endpoint: string): Config
  /** Straight to the store, with the patience that a slow machine needs. */
  calmConfig(): Config
  restartPostgres(mode: 'fast' | 'immediate'): Promise<void>
  close(): Promise<void>
}

const database = 'torture'

/** @param bodyType of the column that leaves as a whole */
export async function createWorld(bodyType: BodyType): Promise<World> {
  const dir = await mkdtemp(path.join(tmpdir(), 'pg-lighter-torture-'))
  const closing: (() => Promise<unknown>)[] = [() => rm(dir, { recursive: true, force: true })]
  const close = async () => {
    for (const step of closing.splice(0).reverse()) await step()
  }
  try {
    let postgres: RunningPostgres = await startPostgres({ dataDir: path.join(dir, 'postgres') })
    closing.push(() => postgres.stop())
    const r2 = await startR2({ bucket: 'torture', persistDir: path.join(dir, 'r2') })
    closing.push(() => r2.stop())
    const urls = await prepare(postgres, bodyType)
    const pools = {
      admin: new pg.Pool({ connectionString: urls.admin, max: 6 }),
      app: new pg.Pool({ connectionString: urls.application, max: 12 }),
      worker: new pg.Pool({ connectionString: urls.daemon, max: 4 }),
    }
    for (const pool of Object.values(pools)) {
      pool.on('error', () => undefined)
      pool.on('connect', client => client.on('error', () => undefined))
      closing.push(() => pool.end())
    }
    const env = (endpoint: string) => ({
      DATABASE_URL: urls.daemon,
      ADMIN_DATABASE_URL: urls.admin,
      R2_ENDPOINT: endpoint,
      R2_BUCKET: r2.bucket,
      R2_ACCESS_KEY_ID: r2.accessKeyId,
      R2_SECRET_ACCESS_KEY: r2.secretAccessKey,
      R2_PREFIX: 'torture/',
      PACK_TARGET_BYTES: '131072',
      PACK_MIN_BYTES: '4096',
      ...daemonSettings,
    })
    return {
      dir,
      r2,
      urls,
      ...pools,
      env,
      config: endpoint => loadConfig(env(endpoint)),
      calmConfig: () => loadConfig({ ...env(r2.endpoint), STORE_TIMEOUT_MS: '30000' }),
      restartPostgres: async mode => {
        await postgres.stop(mode)
        postgres = await startPostgres({ dataDir: postgres.dataDir, port: postgres.port })
      },
      close,
    }
  } catch (error) {
    await close()
    throw error
  }
}

const readModel = (name: string) => readFile(path.join(import.meta.dirname, name), 'utf8')

async function prepare(postgres: RunningPostgres, bodyType: BodyType): Promise<EmbeddedUrls> {
  const server = new pg.Client({ connectionString: postgres.url() })
  await server.connect()
  const urls = await prepareEmbeddedDatabase(server, postgres, database, { withExampleTables: true }).finally(
    () => server.end(),
  )
  const admin = new pg.Client({ connectionString: urls.admin })
  await admin.connect()
  try {
    await admin.query(await readModel('model.sql'))
    await admin.query(await readModel('events.sql'))
    await admin.query(filesModelOf(await readModel('files.sql'), bodyType))
    // Long enough for a row to be written again meanwhile, short enough for much to leave.
    await admin.query(`select lighter.set_defaults(settle_for => '200 ms', max_wait => '3 seconds')`)
    // An artifact that expires takes its row's payload with it, as it should: the model has no rows that expire.
    await admin.query('update lighter.retention_policies set keep_days = null')
    await admin.query(
      "insert into lighter.retention_policies (plan, kind, keep_days) values ('standard', $1, 1)",
      [shortLivedKind],
    )
  } finally {
    await admin.end()
  }
  return urls
}
