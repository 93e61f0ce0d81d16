// A database and a bucket prefix of a test file's own, and what tests do with them.
import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { pino } from 'pino'
import { afterAll, afterEach, beforeEach, inject } from 'vitest'
import { hydrateMany } from '../../src/artifacts/hydrate.ts'
import { readRows } from '../../src/artifacts/rows.ts'
import { type Config, loadConfig } from '../../src/config.ts'
import { createDaemon, type Daemon } from '../../src/daemon.ts'
import type { BatchResult } from '../../src/offload/batch-result.ts'
import type { Signal } from '../../src/offload/signals.ts'
import { loadSources } from '../../src/source/sources.ts'
import { type ObjectStore, openStore } from '../../src/store/object-store.ts'
import type { Servers } from './global-setup.ts'
import { keepLog } from './logs.ts'

export interface TestEnvironment {
  database: string
  /** Superuser. */
  admin: pg.Pool
  /** As an application writes: no rights on our schema. */
  app: pg.Pool
  /** As the daemon. */
  worker: pg.Pool
  urls: { admin: string; daemon: string; application: string }
  store: ObjectStore
  /** The environment variables of a daemon on this database and prefix. */
  env: Record<string, string>
  config(overrides?: Record<string, string>): Config
  close(): Promise<void>
}

export interface EnvironmentOptions {
  /** An empty database, not a clone of the migrated one with the example tables. */
  empty?: boolean
  /** Other servers than those that all test files share. */
  servers?: Servers
}

export async function createEnvironment(options: EnvironmentOptions = {}): Promise<TestEnvironment> {
  const servers = options.servers ?? inject('servers')
  const database = `test_${randomUUID().replaceAll('-', '')}`
  const template = options.empty ? 'template0' : servers.templateDatabase
  await onServer(servers, `create database ${database} template ${template}`)
  const environment = environmentOn(servers, database)
  if (!options.empty) await environment.admin.query('update lighter.installation set id = gen_random_uuid()')
  return {
    ...environment,
    close: async () => {
      await environment.close()
      await onServer(servers, `drop database ${database} with (force)`)
    },
  }
}

/** `createEnvironment` for a whole test file: closed after its last test. Called at the top of the file. */
export async function useEnvironment(options: EnvironmentOptions = {}): Promise<TestEnvironment> {
  const environment = await createEnvironment(options)
  afterAll(() => environment.close())
  return environment
}

/** An environment of each test's own, under one name: the object stays, what is in it is new for each test. */
export function useFreshEnvironment(options: EnvironmentOptions = {}): TestEnvironment {
  const environment = {} as TestEnvironment
  beforeEach(async () => void Object.assign(environment, await createEnvironment(options)))
  afterEach(() => environment.close())
  return environment
}

/** On a database that is there, such as a replica's. It stays when this is closed. */
export function environmentOn(servers: Servers, database: string): TestEnvironment {
  const inDatabase = (url: string) => url.replace(/[^/]+$/, database)
  const urls = {
    admin: inDatabase(servers.urls.admin),
    daemon: inDatabase(servers.urls.daemon),
    application: inDatabase(servers.urls.application),
  }
  const env = {
    DATABASE_URL: urls.daemon,
    ADMIN_DATABASE_URL: urls.admin,
    R2_ENDPOINT: servers.store.endpoint,
    R2_BUCKET: servers.store.bucket,
    R2_ACCESS_KEY_ID: servers.store.accessKeyId,
    R2_SECRET_ACCESS_KEY: servers.store.secretAccessKey,
    R2_PREFIX: `${database}/`,
    POLL_INTERVAL_MS: '500',
    API_PORT: '0',
    LOG_LEVEL: 'silent',
    // Those that come several times a day: one must not fall into a test that counts its own.
    SWEEP_ORPHANS_CRON: 'off',
    SWEEP_ROLLUP_CRON: 'off',
    SWEEP_SCAN_CRON: 'off',
    SWEEP_COMPACTION_CRON: 'off',
  }
  const config = (overrides: Record<string, string> = {}) => loadConfig({ ...env, ...overrides })
  const pools = {
    admin: new pg.Pool({ connectionString: urls.admin, max: 4 }),
    app: new pg.Pool({ connectionString: urls.application, max: 16 }),
    worker: new pg.Pool({ connectionString: urls.daemon, max: 4 }),
  }
  for (const pool of Object.values(pools)) pool.on('error', () => undefined) // tests kill the server's backends
  const store = openStore(config().store)
  return {
    database,
    ...pools,
    urls,
    store,
    env,
    config,
    close: async () => {
      await Promise.all(Object.values(pools).map(pool => pool.end()))
      store.close()
    },
  }
}

async function onServer(servers: Servers, sql: string): Promise<void> {
  const client = new pg.Client({
    connectionString: servers.urls.admin.replace(/[^/]+$/, 'postgres'),
  })
  await client.connect()
  try {
    await client.query(sql)
  } finally {
    await client.end()
  }
}

/** A daemon in this process, started. */
export async function startDaemon(
  environment: TestEnvironment,
  options: {
    env?: Record<string, string>
    signal?: Signal
    onResult?: (result: BatchResult) => void
    log?: (line: Record<string, unknown>) => void
    worker?: boolean
    api?: boolean
    dashboard?: boolean
  } = {},
): Promise<Daemon> {
  const { env, log, ...rest } = options
  const daemon = createDaemon({
    config: environment.config(env),
    log: pino(
      { level: 'debug' },
      {
        write: (line: string) => {
          keepLog(line)
          log?.(JSON.parse(line))
        },
      },
    ),
    ...rest,
  })
  await daemon.start()
  return daemon
}

/** `startDaemon` for a whole test file: stopped after its last test, before the environment is closed. */
export async function useDaemon(
  environment: TestEnvironment,
  options: Parameters<typeof startDaemon>[1] = {},
): Promise<Daemon> {
  const daemon = await startDaemon(environment, options)
  afterAll(() => daemon.stop())
  return daemon
}

/** A conversation of a tenant. */
export async function newConversation(
  environment: TestEnvironment,
  tenantId: string = randomUUID(),
): Promise<{ tenantId: string; conversationId: string }> {
  const conversationId = randomUUID()
  await environment.app.query('insert into conversations (id, tenant_id) values ($1, $2)', [
    conversationId,
    tenantId,
  ])
  return { tenantId, conversationId }
}

/** Writes a message as the application does. `metadata` is JSON text. */
export async function insertMessage(
  environment: TestEnvironment,
  conversationId: string,
  metadata: string | null,
  db: Pick<pg.Pool, 'query'> = environment.app,
): Promise<string> {
  const id = randomUUID()
  await db.query(
    `insert into conversation_messages (id, conversation_id, role, content, metadata) values ($1, $2, 'assistant', '', $3)`,
    [id, conversationId, metadata],
  )
  return id
}

/** The column's text as it stands in the row. */
export async function rawMetadata(environment: TestEnvironment, id: string): Promise<string | null> {
  const { rows } = await environment.admin.query<{ metadata: string | null }>(
    'select metadata::text as metadata from conversation_messages where id = $1',
    [id],
  )
  if (rows[0] === undefined) throw new Error(`no row ${id}`)
  return rows[0].metadata
}

/** What the row hydrates to; throws what hydrating it throws. */
export async function hydrated(environment: TestEnvironment, id: string): Promise<string | null> {
  const [result] = await hydratedMany(environment, [id])
  if (result === undefined) throw new Error(`no row ${id}`)
  if (result instanceof Error) throw result
  return result
}

/** As `hydrated`; undefined for a row that is not there, an Error where hydrating failed. */
export async function hydratedMany(
  environment: TestEnvironment,
  ids: string[],
): Promise<(string | null | undefined | Error)[]> {
  const source = [...(await loadSources(environment.worker)).values()].find(s =>
    s.tableSql.endsWith('.conversation_messages'),
  )
  if (source === undefined) throw new Error('conversation_messages is not attached')
  const rows = await readRows(environment.worker, source, ids)
  const present = ids.flatMap(id => rows.get(id) ?? [])
  const results = await hydrateMany({ db: environment.worker, store: environment.store }, present)
  const byInput = new Map(present.map((input, i) => [input, results[i]]))
  return ids.map(id => {
    const input = rows.get(id)
    const result = input === undefined ? undefined : byInput.get(input)
    return result === undefined ? undefined : (result.error ?? result.metadata)
  })
}

/** How Postgres writes the jsonb that `text` spells. */
export async function asJsonbText(environment: TestEnvironment, text: string | null): Promise<string | null> {
  const { rows } = await environment.admin.query<{ text: string | null }>('select $1::jsonb::text as text', [
    text,
  ])
  return rows[0]?.text ?? null
}

/** Waits until the condition holds; for what has no signal, such as another process's commit. */
export async function until(
  condition: () => Promise<boolean> | boolean,
  what: string,
  timeoutMs = 30_000,
): Promise<void> {
  const deadline = performance.now() + timeoutMs
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(`timed out waiting until ${what}`)
    await new Promise(resolve => setTimeout(resolve, 20))
  }
}

/** Waits until the queue is empty. */
export function drained(environment: TestEnvironment, timeoutMs = 30_000): Promise<void> {
  return until(
    async () => {
      const { rows } = await environment.admin.query<{ n: string }>('select count(*) as n from lighter.jobs')
      return rows[0]?.n === '0'
    },
    'the queue is empty',
    timeoutMs,
  )
}

/** Waits on points of the pipeline, and holds it there. */
export function createSignals() {
  const waiting = new Map<
    string,
    { reached: PromiseWithResolvers<void>; release: PromiseWithResolvers<void> }
  >()
  const signal: Signal = async point => {
    const hold = waiting.get(point)
    if (hold === undefined) return
    waiting.delete(point)
    hold.reached.resolve()
    await hold.release.promise
  }
  return {
    signal,
    /** The next time the pipeline comes to the point it stays there until `release()`. */
    holdAt: (point: Parameters<Signal>[0]) => {
      const hold = { reached: Promise.withResolvers<void>(), release: Promise.withResolvers<void>() }
      waiting.set(point, hold)
      return { reached: hold.reached.promise, release: () => hold.release.resolve() }
    },
  }
}
