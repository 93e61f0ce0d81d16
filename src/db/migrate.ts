// Brings the database's schema up to this version: numbered migrations once each, then the repeatable
// files (functions, views, grants) whenever one of them has changed. All in one transaction.

import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import pg from 'pg'
import { MigrationError, messageOf, sqlState } from '../errors.ts'
import { requireAllRows } from './all-rows.ts'
import { compareCatalogue, type Difference } from './catalogue.ts'
import { lockAloneSql, lockTables } from './locks.ts'
import type { Queryable } from './pool.ts'
import { requireRights } from './rights.ts'

const sqlDir = path.join(import.meta.dirname, '..', '..', 'sql')

/**
 * A migration that begins with this locks a table into which the triggers write (lighter.inbox). It then has the attached
 * tables locked first: a write that has one of those, and waits for ours, would keep us from making its triggers anew.
 */
const lockSourcesFirst = '-- lock the attached tables first'

/** So often a migration is tried that could not get its locks. */
const lockTries = 4
/** So long it waits for another migration. */
const migrationWaitMs = 60_000

interface SqlFile {
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
  /** Objects that somebody had changed, and that are as they should be again (or would be). */
  mended: Difference[]
  /** Those that need a person. */
  left: Difference[]
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
  for (let attempt = 1; ; attempt++) {
    try {
      return await migrateOnce(client, options)
    } catch (error) {
      const busy =
        error instanceof MigrationError &&
        (sqlState(error.cause) === '55P03' || error.code === 'migration_raced')
      if (!busy || error.code === 'migration_busy' || attempt === lockTries) throw error
      await delay(500)
    }
  }
}

async function migrateOnce(client: pg.Client, options: MigrateOptions): Promise<MigrationPlan> {
  // Whatever the role's default is: a snapshot from before the lock would not see what another one has applied.
  await client.query('begin isolation level read committed read write')
  try {
    // Nothing in these files may be resolved to an object that somebody put into a schema of the path.
    await client.query('set local search_path = pg_catalog, pg_temp')
    await checkServer(client)
    await becomeSchemaOwner(client)
    await requireRights(client)
    if (!options.dryRun) await keepOthersOut(client)
    await showMigrations(client)
    const plan = await planMigration(client)
    // Right after it is made, the schema is what the files say.
    const found = plan.pending.length > 0 ? [] : await compareCatalogue(client)
    if (options.dryRun) {
      await client.query('rollback')
      const [mended, left] = [found.filter(isMendable), found.filter(d => !isMendable(d))]
      return { ...plan, mended, left }
    }
    // A migration locks tables that the application writes to, and its writes queue behind a lock that is waited
    // for: rather fail, and before Postgres looks for a deadlock and chooses the application's transaction to fail.
    await client.query(
      `select set_config('lock_timeout', (setting::int * 3 / 4)::text, true) from pg_settings where name = 'deadlock_timeout'`,
    )
    await client.query(`set local client_min_messages = warning`)
    if (plan.pending.length + plan.repeatable.length > 0) await applyPlan(client, plan)
    const mended = await mend(client, found)
    if (options.withExampleTables) await applyExampleTables(client)
    await client.query('set local role none')
    await allowQuietRewrite(client)
    await client.query('commit')
    return { ...plan, ...mended }
  } catch (error) {
    await client.query('rollback').catch(() => undefined)
    throw error
  }
}

/** With its rows hidden, all migrations would look like not applied, and be applied again. */
async function showMigrations(client: pg.ClientBase): Promise<void> {
  await client.query(`do $$ begin
    if row_security_active(to_regclass('lighter.schema_migrations')) then
      alter table lighter.schema_migrations disable row level security, no force row level security;
    end if;
  end $$`)
}

const isMendable = (difference: Difference): boolean => difference.mend.by !== 'hand'

/** Brings objects back that somebody has changed. What cannot be is left as it is, and reported. */
async function mend(
  client: pg.ClientBase,
  found: Difference[],
): Promise<Pick<MigrationPlan, 'mended' | 'left'>> {
  if (!found.some(isMendable)) return { mended: [], left: found }
  for (const { mend } of found) {
    if (mend.by !== 'statement') continue
    await client.query('savepoint mending')
    // Two rows where there may be one, say: the second look finds that it is still missing.
    await client.query(mend.sql).catch(() => client.query('rollback to savepoint mending'))
  }
  for (const file of await readRepeatable()) await applyFile(client, file.name, file.text)
  const left = await compareCatalogue(client)
  const remain = new Set(left.map(difference => difference.object))
  return { mended: found.filter(difference => !remain.has(difference.object)), left }
}

/** What `migrate` would do now, without a lock. */
export async function planMigration(client: Queryable): Promise<MigrationPlan> {
  const [migrations, repeatable] = await Promise.all([readSqlDir('migrations'), readRepeatable()])
  const applied = (await hasMigrationsTable(client))
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
  const isChanged = (file: SqlFile) => checksums.get(file.name) !== file.checksum
  const changed = repeatable.some(isChanged)
  return {
    pending,
    // The policies of artifact_refs lock it against everybody: not for nothing.
    repeatable: (pending.length > 0 || changed ? repeatable : []).filter(
      file => file.name !== rowSecurityFile || isChanged(file),
    ),
    applied: applied.map(row => ({ name: row.name, appliedAt: row.applied_at })),
    mended: [],
    left: [],
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

/**
 * Everything of ours has one owner, whoever migrates: functions that run with their owner's rights count on it.
 * So a superuser who migrates a schema made by another role does it as that role.
 */
async function becomeSchemaOwner(client: pg.ClientBase): Promise<void> {
  const { rows } = await client.query<{ owner: string; me: string }>(
    `select pg_get_userbyid(nspowner) as owner, current_user as me from pg_namespace where nspname = 'lighter'`,
  )
  const schema = rows[0]
  if (schema === undefined || schema.owner === schema.me) return
  try {
    await client.query(`set local role ${pg.escapeIdentifier(schema.owner)}`)
  } catch (error) {
    throw new MigrationError('not_schema_owner', `schema "lighter" belongs to "${schema.owner}"`, {
      cause: error,
      hint: `Migrate as "${schema.owner}", or as a role that may become it; this is "${schema.me}".`,
    })
  }
}

/**
 * Migrates alone: two daemons that start at once migrate once. The lock is on a table of ours, which only its owner can
 * take; an advisory lock could be taken by any login. Two that both find no table can't both make it: one fails, and is
 * tried again.
 * @throws {MigrationError} `migration_busy`, naming who is in the way; `migration_raced`
 */
async function keepOthersOut(client: pg.ClientBase): Promise<void> {
  try {
    await client.query(`set local lock_timeout = ${migrationWaitMs}; set local client_min_messages = warning`)
    // Who may not create a schema may use one that is there.
    const { rowCount } = await client.query(`select from pg_namespace where nspname = 'lighter'`)
    if (rowCount === 0) await client.query('create schema lighter')
    await client.query(`create table if not exists lighter.schema_migrations (
      name text primary key, checksum text not null, applied_at timestamptz not null default clock_timestamp(), applied_by text not null default current_user)`)
    await client.query(lockAloneSql(lockTables.migrations))
  } catch (error) {
    if (/^(23505|42P06|42P07)$/.test(sqlState(error) ?? '')) {
      throw new MigrationError('migration_raced', 'another migration made the schema at the same moment', {
        cause: error,
        hint: 'Run it again.',
      })
    }
    if (sqlState(error) !== '55P03') throw error
    await client.query('rollback')
    throw new MigrationError('migration_busy', `another migration is under way: ${await holdersOf(client)}`, {
      cause: error,
      hint: 'Run it again later, or end that session: select pg_terminate_backend(<pid>);',
    })
  }
}

/** The function of the same purpose (lighter.lock_holders) may be missing: this is before the first migration too. */
async function holdersOf(client: pg.ClientBase): Promise<string> {
  const { rows } = await client.query<{ holder: string }>(
    `select format('pid %s, user %s%s', a.pid, a.usename, ', since ' || to_char(a.xact_start, 'YYYY-MM-DD HH24:MI:SSOF')) as holder
       from pg_locks l join pg_stat_activity a using (pid)
      where l.granted and l.mode <> 'AccessShareLock' and l.locktype in ('relation', 'transactionid') and a.datname = current_database() and a.pid <> pg_backend_pid()
        and (l.relation = to_regclass('lighter.schema_migrations')
             or to_regclass('lighter.schema_migrations') is null and a.xact_start is not null and l.locktype = 'transactionid')
      group by 1 order by 1 limit 3`,
  )
  return rows.map(row => row.holder).join('; ') || 'it has just ended'
}

/** Lets the daemon keep other triggers quiet while it rewrites. Only a superuser may give that. */
async function allowQuietRewrite(client: pg.ClientBase): Promise<void> {
  // Not granted twice: the entry is the cluster's, and databases migrated at once would trip over it.
  const { rows } = await client.query<{ grant: boolean }>(
    `select r.rolsuper and not has_parameter_privilege('lighter_daemon', 'session_replication_role', 'set') as grant
       from pg_roles r where r.rolname = current_user`,
  )
  if (rows[0]?.grant) await client.query('grant set on parameter session_replication_role to lighter_daemon')
}

async function applyPlan(client: pg.ClientBase, plan: MigrationPlan): Promise<void> {
  // A commit locks many tables, in an order of its own: none is under way beside what follows.
  if (plan.applied.length > 0) await applyFile(client, 'locks', lockAloneSql(lockTables.commits))
  if (plan.pending.some(file => file.text.startsWith(lockSourcesFirst))) {
    await applyFile(client, 'locks', lockSourcesSql)
  }
  for (const file of [...plan.pending, ...plan.repeatable]) {
    await applyFile(client, file.name, file.text)
    await client.query(
      `insert into lighter.schema_migrations (name, checksum) values ($1, $2)
       on conflict (name) do update set checksum = excluded.checksum, applied_at = clock_timestamp(), applied_by = current_user`,
      [file.name, file.checksum],
    )
  }
  // Triggers are made by functions, so a new version of those must be baked in again.
  await applyFile(client, 'triggers', 'select lighter.build_triggers()')
}

const lockSourcesSql = `do $$
declare source regclass;
begin
  for source in select s.relation from lighter.sources s join pg_class c on c.oid = s.relation order by s.id loop
    execute format('lock table %s in share row exclusive mode', source);
  end loop;
end $$`

async function applyFile(client: pg.ClientBase, name: string, sql: string): Promise<void> {
  try {
    await client.query(sql)
  } catch (error) {
    throw new MigrationError('migration_failed', `${name}: ${describeSqlError(error, sql)}`, {
      cause: error,
      hint: error instanceof pg.DatabaseError ? error.hint : undefined,
    })
  }
}

async function applyExampleTables(client: pg.ClientBase): Promise<void> {
  for (const file of await readSqlDir('example')) await applyFile(client, file.name, file.text)
  await applyFile(client, 'example', `select lighter.attach('public.conversation_messages')`)
}

function describeSqlError(error: unknown, sql: string): string {
  if (!(error instanceof pg.DatabaseError) || error.position === undefined) return messageOf(error)
  const line = sql.slice(0, Number(error.position)).split('\n').length
  return `line ${line}: ${error.message}`
}

const rowSecurityFile = 'row_security.sql'

async function readRepeatable(): Promise<SqlFile[]> {
  const access = await Promise.all([readSqlFile(rowSecurityFile), readSqlFile('grants.sql')])
  return [...(await readSqlDir('functions')), ...(await readSqlDir('views')), ...access]
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
 * Makes sure that the database has exactly the schema of this version, as far as numbered migrations say, and that
 * this role sees all rows of our tables.
 * @throws {LighterError} with what to do
 */
export async function requireCurrentSchema(db: Queryable): Promise<void> {
  if (!(await hasMigrationsTable(db))) {
    throw new MigrationError('schema_missing', 'the database has no schema "lighter"', {
      hint: 'Run: lighter migrate (as the owner of the tables), then start again.',
    })
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
  await requireAllRows(db, [])
}

/** @throws {MigrationError} it is there, and this role may not read it */
async function hasMigrationsTable(db: Queryable): Promise<boolean> {
  // From the catalogue, which everybody may read: to_regclass fails without rights on the schema.
  const { rows } = await db.query<{ readable: boolean; hidden: boolean; me: string }>(
    `select has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select') as readable,
            row_security_active(c.oid) as hidden, current_user as me
       from pg_catalog.pg_class c
       join pg_catalog.pg_namespace n on n.oid = c.relnamespace
      where n.nspname = 'lighter' and c.relname = 'schema_migrations'`,
  )
  if (rows[0] !== undefined && !rows[0].readable) {
    throw new MigrationError('schema_forbidden', `"${rows[0].me}" may not read schema "lighter"`, {
      hint: `Grant the daemon's login its role: grant lighter_daemon to ${pg.escapeIdentifier(rows[0].me)};`,
    })
  }
  // With its rows hidden, all migrations would look like not applied.
  if (rows[0]?.hidden) {
    throw new MigrationError(
      'rows_hidden',
      `row-level security hides rows of schema "lighter" from "${rows[0].me}"`,
      {
        hint: 'Run: lighter migrate (as the owner of schema lighter, or as a superuser).',
      },
    )
  }
  return rows.length > 0
}
