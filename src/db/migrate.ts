// Brings the database's schema up to this version: numbered migrations once each, then the repeatable
// files (functions, views, grants) whenever one of them has changed. All in one transaction.
import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import path from 'node:path'
import pg from 'pg'
import { MigrationError, messageOf } from '../errors.ts'
import type { Queryable } from './pool.ts'

const sqlDir = path.join(import.meta.dirname, '..', '..', 'sql')

/** Serialises migrations of one database, so that two daemons that start at once migrate once. */
const migrationLockKey = 7809632190520n

export interface SqlFile {
  name: string
  checksum: string
  text: string
}

export interface MigrationPlan {
  /** Numbered files that have not been applied. */
  pending: SqlFile[]
  /** All repeatable files, in order, if any of them changed (or something is pending); else none. */
  repeatable: SqlFile[]
  applied: { name: string; appliedAt: Date }[]
}

export interface MigrateOptions {
  /** Also creates `conversations` and `conversation_messages`, and attaches the latter. */
  withExampleTables?: boolean
  /** Finds out what would be done and does nothing. */
  dryRun?: boolean
}

/**
 * Applies what is missing and returns what was applied (or would be, with `dryRun`).
 * @throws {MigrationError} an applied migration was edited or is unknown to this version, or a statement
 *   failed; then nothing was changed
 */
export async function migrate(client: pg.Client, options: MigrateOptions = {}): Promise<MigrationPlan> {
  await client.query('begin')
  try {
    await checkServer(client)
    await client.query('select pg_advisory_xact_lock($1)', [migrationLockKey.toString()])
    const plan = await planMigration(client)
    if (options.dryRun) {
      await client.query('rollback')
      return plan
    }
    // A migration locks tables that the application writes to: rather fail than queue its writes behind us.
    await client.query(`set local lock_timeout = '10s'`)
    await client.query(`set local client_min_messages = warning`)
    if (plan.pending.length + plan.repeatable.length > 0) await applyPlan(client, plan)
    if (options.withExampleTables) await applyExampleTables(client)
    await client.query('commit')
    return plan
  } catch (error) {
    await client.query('rollback').catch(() => undefined)
    throw error
  }
}

/** What `migrate` would do now, without a lock. */
export async function planMigration(client: Queryable): Promise<MigrationPlan> {
  const [migrations, repeatable] = await Promise.all([readSqlDir('migrations'), readRepeatable()])
  const table = await client.query<{ exists: boolean }>(
    `select to_regclass('lighter.schema_migrations') is not null as exists`,
  )
  const applied = table.rows[0]?.exists
    ? (
        await client.query<{ name: string; checksum: string; applied_at: Date }>(
          'select name, checksum, applied_at from lighter.schema_migrations order by applied_at, name',
        )
      ).rows
    : []
  const checksums = new Map(applied.map(row => [row.name, row.checksum]))

  for (const row of applied) {
    if (!row.name.startsWith('migrations/')) continue
    const file = migrations.find(m => m.name === row.name)
    if (file === undefined) {
      throw new MigrationError(
        'schema_newer',
        `the database has ${row.name}, which this version does not know`,
        {
          hint: 'The database was migrated by a newer pg-lighter: upgrade this one.',
        },
      )
    }
    if (file.checksum !== row.checksum) {
      throw new MigrationError('migration_edited', `${row.name} was edited after it had been applied`, {
        hint: 'Restore the file as it was and put the change into a new migration.',
      })
    }
  }

  const pending = migrations.filter(m => !checksums.has(m.name))
  const changed = repeatable.some(f => checksums.get(f.name) !== f.checksum)
  return {
    pending,
    repeatable: pending.length > 0 || changed ? repeatable : [],
    applied: applied.map(row => ({ name: row.name, appliedAt: row.applied_at })),
  }
}

async function checkServer(client: pg.ClientBase): Promise<void> {
  const { rows } = await client.query<{ version: number; encoding: string }>(
    `select current_setting('server_version_num')::int as version, pg_encoding_to_char(encoding) as encoding
       from pg_database where datname = current_database()`,
  )
  const server = rows[0]
  if (server === undefined || server.version < 150000) {
    throw new MigrationError('postgres_too_old', `Postgres 15 or later is needed, this is ${server?.version}`)
  }
  if (server.encoding !== 'UTF8') {
    throw new MigrationError('database_not_utf8', `the database's encoding is ${server.encoding}, not UTF8`, {
      hint: 'Payloads are stored as UTF-8; use a database created with encoding UTF8.',
    })
  }
}

async function applyPlan(client: pg.ClientBase, plan: MigrationPlan): Promise<void> {
  for (const file of [...plan.pending, ...plan.repeatable]) {
    try {
      await client.query(file.text)
    } catch (error) {
      throw new MigrationError('migration_failed', `${file.name}: ${describeSqlError(error, file.text)}`, {
        cause: error,
        hint: error instanceof pg.DatabaseError ? error.hint : undefined,
      })
    }
    // The first migration creates the schema in which this table lives.
    await client.query(`create table if not exists lighter.schema_migrations (
      name text primary key, checksum text not null, applied_at timestamptz not null default clock_timestamp(), applied_by text not null default current_user)`)
    await client.query(
      `insert into lighter.schema_migrations (name, checksum) values ($1, $2)
       on conflict (name) do update set checksum = excluded.checksum, applied_at = clock_timestamp(), applied_by = current_user`,
      [file.name, file.checksum],
    )
  }
  await client.query('grant select on lighter.schema_migrations to lighter_daemon')
  // Triggers are made by functions, so a new version of those must be baked in again.
  await client.query('select lighter.build_trigger(s) from lighter.sources s order by s.id')
}

async function applyExampleTables(client: pg.ClientBase): Promise<void> {
  for (const file of await readSqlDir('example')) await client.query(file.text)
  await client.query(`select lighter.attach('public.conversation_messages')`)
}

function describeSqlError(error: unknown, sql: string): string {
  if (!(error instanceof pg.DatabaseError) || error.position === undefined) return messageOf(error)
  const line = sql.slice(0, Number(error.position)).split('\n').length
  return `line ${line}: ${error.message}`
}

async function readRepeatable(): Promise<SqlFile[]> {
  const grants = await readSqlFile('grants.sql')
  return [...(await readSqlDir('functions')), ...(await readSqlDir('views')), grants]
}

async function readSqlDir(folder: string): Promise<SqlFile[]> {
  const names = (await readdir(path.join(sqlDir, folder))).filter(name => name.endsWith('.sql')).sort()
  return Promise.all(names.map(name => readSqlFile(`${folder}/${name}`)))
}

async function readSqlFile(name: string): Promise<SqlFile> {
  const text = await readFile(path.join(sqlDir, name), 'utf8')
  return { name, text, checksum: createHash('sha256').update(text).digest('hex') }
}

/**
 * Makes sure that the database has exactly the schema of this version, as far as numbered migrations say.
 * @throws {MigrationError} with what to do
 */
export async function requireCurrentSchema(db: Queryable): Promise<void> {
  const exists = await db.query<{ exists: boolean }>(
    `select to_regclass('lighter.schema_migrations') is not null as exists`,
  )
  if (!exists.rows[0]?.exists) {
    throw new MigrationError(
      'schema_missing',
      'the database has no schema "lighter", or this role may not see it',
      {
        hint: 'Run: lighter migrate (as the owner of the tables), then start again.',
      },
    )
  }
  const plan = await planMigration(db)
  if (plan.pending.length > 0) {
    throw new MigrationError(
      'schema_older',
      `${plan.pending.length} migration(s) have not been applied: ${plan.pending.map(f => f.name).join(', ')}`,
      {
        hint: 'Run: lighter migrate',
      },
    )
  }
}
