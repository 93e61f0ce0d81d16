// What `lighter doctor` looks at: each check says what was found and, if it is amiss, what to do.

import pg from 'pg'
import { type Config, loadConfig } from '../config.ts'
import { compareCatalogue } from '../db/catalogue.ts'
import { clockSkewAdvice, clockSkewMs } from '../db/clock.ts'
import { requireCurrentSchema } from '../db/migrate.ts'
import { connectSession } from '../db/prepared.ts'
import { SteadyClient, tableNameSql } from '../db/settings.ts'
import { ConfigError, LighterError, messageOf } from '../errors.ts'
import { explainError } from '../explain-error.ts'
import { newArtifactId } from '../ids.ts'
import { describeMissing, findMissingParts } from '../offload/missing-parts.ts'
import { readDaemons } from '../reports/daemons.ts'
import { loadSources } from '../source/sources.ts'
import { type ObjectStore, openStore } from '../store/object-store.ts'
import { checkOwnership } from '../store/ownership.ts'
import { keepsSession } from '../wake/session.ts'
import { checkConditionalPuts } from './conditional-put.ts'
import { sampleLostPointers } from './lost-pointers.ts'
import { findMovedRows, type MovedRows } from './moved-rows.ts'
import { findOverdueDeletions } from './overdue-deletions.ts'

export interface Check {
  name: string
  status: 'ok' | 'warn' | 'fail' | 'skip'
  found: string
  /** What to do, when something is to be done. */
  advice?: string
}

/** Runs all checks in order; those that make no sense after a failure are skipped and say so. */
export async function* runChecks(
  env: Record<string, string | undefined>,
  options: { write: boolean },
): AsyncGenerator<Check> {
  let config: Config
  try {
    config = loadConfig(env)
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    for (const p of error.problems)
      yield fail(`configuration ${p.variable}`, `found ${p.found}`, `expected ${p.expected}`)
    yield skip('everything else', 'needs a configuration that can be used')
    return
  }
  yield ok('configuration', 'complete')
  yield* databaseChecks(config)
  yield* storeChecks(config, options.write)
}

async function* databaseChecks(config: Config): AsyncGenerator<Check> {
  const client = new SteadyClient({
    connectionString: config.databaseUrl,
    application_name: 'lighter doctor',
    connectionTimeoutMillis: 5000,
    query_timeout: 15_000,
  })
  client.on('error', () => undefined) // a lost connection fails the query that is waiting, which reports it
  try {
    await connectSession(client)
  } catch (error) {
    const { message, hint } = explainError(error)
    yield fail(
      'database',
      message,
      hint ?? 'Check DATABASE_URL, that Postgres runs, and that this machine may reach it.',
    )
    return
  }
  try {
    yield await serverCheck(client)
    yield await clockCheck(client)
    const schema = await schemaCheck(client)
    yield schema
    if (schema.status === 'fail') return
    yield await objectsCheck(client)
    yield* privilegeChecks(client)
    yield* sourceChecks(client, config)
    yield* sightChecks(client)
    yield await apiCheck(client, config)
    yield await queueCheck(client)
    yield await movedRowsCheck(client)
    yield* lostPointerChecks(client)
    yield await deletionsCheck(client, config)
    yield await horizonCheck(client)
    yield await listenCheck(config, client)
  } catch (error) {
    yield fail(
      'database',
      messageOf(error),
      error instanceof pg.DatabaseError && error.code === '42501'
        ? "Grant the daemon's login the role lighter_daemon: grant lighter_daemon to <login>;"
        : 'See the message.',
    )
  } finally {
    await client.end().catch(() => undefined)
  }
}

async function one<R extends pg.QueryResultRow>(client: pg.Client, sql: string): Promise<R> {
  const { rows } = await client.query<R>(sql)
  const row = rows[0]
  if (row === undefined) throw new Error('the query answered no row')
  return row
}

async function serverCheck(client: pg.Client): Promise<Check> {
  const row = await one<{
    version: string
    number: number
    encoding: string
    login: string
    superuser: boolean
    bypass: boolean
  }>(
    client,
    `select current_setting('server_version') as version, current_setting('server_version_num')::int as number,
            pg_encoding_to_char(d.encoding) as encoding, current_user as login, r.rolsuper as superuser, r.rolbypassrls as bypass
       from pg_database d, pg_roles r where d.datname = current_database() and r.rolname = current_user`,
  )
  // Where: an environment variable that wins over --env-file has led to another one than was meant.
  const place = `${client.database} at ${client.host}:${client.port}`
  const found = `Postgres ${row.version}, ${row.encoding}, ${place} as ${row.login}`
  if (row.number < 150000) return fail('database', found, 'Postgres 15 or later is needed.')
  if (row.encoding !== 'UTF8') return fail('database', found, 'The database must have encoding UTF8.')
  if (row.superuser || row.bypass) {
    return warn(
      'database',
      `${found}, which bypasses row-level security`,
      'Let the daemon log in as a role that only is a member of lighter_daemon.',
    )
  }
  return ok('database', found)
}

async function clockCheck(client: pg.Client): Promise<Check> {
  const skewMs = await clockSkewMs(client)
  if (skewMs === null) return ok('clock', "the database's, within some seconds")
  const seconds = Math.round(Math.abs(skewMs) / 1000)
  return warn('clock', `${seconds} s ${skewMs > 0 ? 'ahead of' : 'behind'} the database's`, clockSkewAdvice)
}

async function schemaCheck(client: pg.Client): Promise<Check> {
  try {
    await requireCurrentSchema(client)
    return ok('schema', 'up to date')
  } catch (error) {
    if (!(error instanceof LighterError))
      return fail(
        'schema',
        messageOf(error),
        "Grant the daemon's login the role: grant lighter_daemon to <login>;",
      )
    return fail('schema', error.message, error.hint ?? 'Run: lighter migrate')
  }
}

/** Whether every object of ours is as `lighter migrate` makes it. */
async function objectsCheck(client: pg.Client): Promise<Check> {
  const differences = await compareCatalogue(client)
  if (differences.length === 0) return ok('schema objects', 'all as this version makes them')
  const shown = differences.slice(0, 10).map(({ object, found }) => `${object} ${found}`)
  const by = differences.flatMap(({ mend }) => (mend.by === 'hand' ? [mend.advice] : []))
  return fail(
    'schema objects',
    `${differences.length} differ: ${shown.join('; ')}${differences.length > shown.length ? '; …' : ''}`,
    by.length === 0
      ? 'Run: lighter migrate'
      : `By hand: ${by.slice(0, 10).join(' ')} Then run: lighter migrate`,
  )
}

async function* privilegeChecks(client: pg.Client): AsyncGenerator<Check> {
  const { rows } = await client.query<{ thing: string; privilege: string }>(`
    select t.thing, t.privilege
      from (values ('lighter.inbox', 'select'), ('lighter.inbox', 'delete'), ('lighter.waiting', 'insert'), ('lighter.leases', 'insert'), ('lighter.leases', 'update'),
                   ('lighter.failed_jobs', 'insert'), ('lighter.objects', 'insert'), ('lighter.objects', 'update'),
                   ('lighter.sources', 'select'), ('lighter.settings', 'select'), ('lighter.installation', 'select'),
                   ('public.artifact_refs', 'select'), ('lighter.frames', 'insert'), ('lighter.frames', 'update'),
                   ('lighter.frame_exceptions', 'insert'), ('lighter.loose_artifacts', 'insert')) as t(thing, privilege)
     where not has_table_privilege(t.thing, t.privilege)
    union all
    select ${tableNameSql('c.relation')} || '.' || c.column_name, c.privilege
      from lighter.sources stored
      cross join lateral lighter.with_current_names(stored) s
      cross join lateral (values
             (s.relation, s.json_column, 'select'), (s.relation, s.json_column, 'update'),
             (s.relation, s.pointer_column, 'select'), (s.relation, s.pointer_column, 'update'),
             (s.relation, 'xmin', 'select'), (s.relation, 'ctid', 'select'), (s.relation, 'tableoid', 'select'),
             (s.relation, s.entity_column, 'select'),
             (coalesce(s.parent_relations[cardinality(s.parent_relations)], s.relation), s.tenant_column, 'select')
             union all select p.relation, p.name, 'select' from unnest(s.parent_relations, s.parent_key_columns) p(relation, name)
             union all select p.relation, p.name, 'select' from unnest(lighter.child_relations(s), s.parent_columns) p(relation, name)
             union all select s.relation, w.name, 'select' from unnest(s.when_columns) w(name)
             union all select s.relation, k.name, 'select' from unnest(s.key_columns) k(name)) as c(relation, column_name, privilege)
     -- one that is gone is told of with its source
     where case when exists (select from pg_attribute a where a.attrelid = c.relation and a.attname = c.column_name)
                then not has_column_privilege(c.relation, c.column_name, c.privilege) else false end`)
  if (rows.length === 0) yield ok('privileges', 'all that the daemon needs')
  else {
    yield fail(
      'privileges',
      `missing: ${rows.map(r => `${r.privilege} on ${r.thing}`).join(', ')}`,
      "Grant the daemon's login the role (grant lighter_daemon to <login>;), and run: lighter migrate; lighter attach <table>",
    )
  }
}

interface SourceRow {
  id: number
  table: string
  column: string
  triggerName: string
  hasTrigger: boolean
  trigger: string | null
  isHeavyRight: boolean
  columnType: string
  /** Of mode whole: a trigger that clears the pointer column, and does not. */
  clearsNot: { trigger: string; state: string } | null
  mayAsk: boolean
  enabled: string | null
  threshold: number
  ownThreshold: boolean
  skip: boolean
  maySkip: boolean
  others: string | null
  paused: boolean
  missesEdits: boolean
  guard: string
  guardEnabled: string | null
  hidden: string | null
  remedy: string | null
}

async function* sourceChecks(client: pg.Client, config: Config): AsyncGenerator<Check> {
  const { rows } = await client.query<SourceRow>(`
    select s.id, ${tableNameSql('s.relation')} as table, s.json_column as column,
           'lighter_enqueue_' || s.id as "triggerName", s.trigger as "hasTrigger", pg_get_triggerdef(t.oid) as trigger, t.tgenabled as enabled,
           coalesce(h.prosrc = lighter.heavy_body(s), false) as "isHeavyRight", s.column_type as "columnType",
           case when s.mode = 'whole' then (
             select json_build_object('trigger', n.name, 'state', coalesce(g.tgenabled::text, 'gone'))
               from unnest(array['lighter_clear_' || s.id, 'lighter_clear_null_' || s.id]) n(name)
               left join pg_trigger g on g.tgrelid = s.relation and g.tgname = n.name
              where coalesce(g.tgenabled, 'D') in ('D', 'R') order by g.tgenabled nulls first, n.name limit 1) end as "clearsNot",
           coalesce(has_function_privilege('public', h.oid, 'execute'), false) as "mayAsk",
           lighter.effective_threshold(s) as threshold, s.threshold_bytes is not null as "ownThreshold",
           s.skip_triggers as skip, has_parameter_privilege('session_replication_role', 'set') as "maySkip",
           (select string_agg(o.tgname, ', ' order by o.tgname) from pg_trigger o
             where o.tgrelid = s.relation and not o.tgisinternal and o.tgname not like 'lighter\\_%' and (o.tgtype & 16) <> 0) as others,
           s.paused,
           c.oid is not null and lighter.has_before_trigger(s.relation) and pg_get_triggerdef(t.oid) like '% UPDATE OF %' as "missesEdits",
           s.guard, (select g.tgenabled from pg_trigger g where g.tgrelid = s.relation and g.tgname = 'lighter_guard_' || s.id) as "guardEnabled",
           (select string_agg(${tableNameSql('h.relation')}, ', ') from lighter.hidden_tables(array[s.id]) h where h.source_id = s.id) as hidden,
           (select min(h.remedy) from lighter.hidden_tables(array[s.id]) h where h.source_id = s.id) as remedy
      from lighter.sources stored
     cross join lateral lighter.with_current_names(stored) s
      left join pg_class c on c.oid = s.relation
      left join pg_trigger t on t.tgrelid = s.relation and t.tgname = 'lighter_enqueue_' || s.id
      left join pg_proc h on h.pronamespace = 'lighter'::regnamespace and h.proname = 'heavy_' || s.id
     where c.oid is not null
       and not exists (select from lighter.missing_parts p where p.source_id = s.id and p.stops_offload)
     order by s.id`)
  if (rows.length === 0 && !(await hasSources(client))) {
    yield {
      name: 'sources',
      status: 'warn',
      found: 'no table is attached',
      advice: 'Run: lighter attach public.conversation_messages',
    }
  }
  for (const row of rows) yield checkSource(row, config.thresholdBytes)
  yield* whenChecks(client)
  yield* obstacleChecks(client)
}

/** Conditions that failed on a row. */
async function* whenChecks(client: pg.Client): AsyncGenerator<Check> {
  const { rows } = await client.query<{
    table: string
    when: string
    rowId: string | null
    error: string
    at: string
  }>(`
    select s.relation::text as table, s.when_sql as when, f.row_id as "rowId", f.error, to_char(f.failed_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI') as at
      from lighter.when_failures f
      join lighter.sources s on s.id = f.source_id
      join pg_class c on c.oid = s.relation
     order by s.id`)
  for (const { table, when, rowId, error, at } of rows)
    yield warn(
      `when_sql ${table}`,
      `${when} failed ${rowId === null ? '' : `on row ${rowId} `}at ${at} UTC: ${error}. Such rows stay inline`,
      `Mend the rows, or attach with another condition (lighter attach ${table} --when <condition>), then: lighter retry --table ${table}`,
    )
}

/** What attach would say of them today: schemas change under what is attached. */
async function* obstacleChecks(client: pg.Client): AsyncGenerator<Check> {
  const { rows } = await client.query<{
    name: string
    problem: string
    hint: string | null
    isFatal: boolean
  }>(`
    select ${tableNameSql('s.relation')} || '.' || s.json_column as name, o.problem, o.hint, o.is_fatal as "isFatal"
      from lighter.sources s
      join pg_class c on c.oid = s.relation
     cross join lateral lighter.source_obstacles(s) o
     order by s.id, o.is_fatal desc`)
  for (const { name, problem, hint, isFatal } of rows)
    yield (isFatal ? fail : warn)(`obstacle ${name}`, problem, hint ?? 'See the message.')
}

async function hasSources(client: pg.Client): Promise<boolean> {
  return (await one<{ any: boolean }>(client, 'select exists (select from lighter.sources) as any')).any
}

/** Tables, partitions and columns that can't be looked at any more. */
async function* sightChecks(client: pg.Client): AsyncGenerator<Check> {
  for (const missing of await findMissingParts(client)) {
    const found = `${describeMissing(missing)}; no payload is given up meanwhile${missing.stopsOffload ? ', and its rows stay inline' : ''}`
    yield missing.stopsOffload
      ? fail('out of sight', found, missing.advice)
      : warn('out of sight', found, missing.advice)
  }
}

function checkSource(row: SourceRow, configuredThreshold: number | undefined): Check {
  const { table, column } = row
  const name = `source ${table}.${column}`
  const attach = `Attach it again, with the settings it has: lighter attach ${table} --column ${column}`
  if (!row.hasTrigger) return ok(name, 'has no trigger, as it was attached: the sweep scan finds its rows')
  if (row.trigger === null) return fail(name, 'its trigger is gone', attach)
  if (row.enabled === 'D' || row.enabled === 'R') {
    return fail(name, 'its trigger is disabled', `alter table ${table} enable trigger ${row.triggerName};`)
  }
  if (!row.isHeavyRight) {
    return fail(name, `its trigger does not have the threshold ${row.threshold}`, attach)
  }
  if (!row.mayAsk) {
    return fail(
      name,
      `who writes to it may not call lighter.heavy_${row.id}, and fails`,
      `grant execute on function lighter.heavy_${row.id}(${row.columnType}) to public;`,
    )
  }
  if (row.clearsNot !== null) {
    const isGone = row.clearsNot.state === 'gone'
    return fail(
      name,
      `its trigger that clears the pointer column is ${isGone ? 'gone' : 'disabled'}: after a value is written, a null may bring back the one before`,
      isGone ? attach : `alter table ${table} enable trigger ${row.clearsNot.trigger};`,
    )
  }
  if (row.guard !== 'off' && (row.guardEnabled === null || row.guardEnabled === 'D')) {
    return fail(
      name,
      `its guard (${row.guard}) is ${row.guardEnabled === null ? 'gone' : 'disabled'}`,
      attach,
    )
  }
  if (row.missesEdits) {
    return warn(
      name,
      'a BEFORE trigger of the table may change the column without our trigger noticing',
      attach,
    )
  }
  if (row.hidden !== null) {
    return fail(name, `row-level security hides rows of ${row.hidden} from the daemon`, row.remedy ?? attach)
  }
  if (configuredThreshold !== undefined && !row.ownThreshold && row.threshold !== configuredThreshold) {
    return warn(
      name,
      `threshold ${row.threshold}, configuration says ${configuredThreshold}`,
      'The daemon changes it when it starts: restart it.',
    )
  }
  if (row.paused) {
    return warn(
      name,
      'paused: jobs are kept but not worked on',
      `update lighter.sources set paused = false where id = ${row.id};`,
    )
  }
  if (row.skip && !row.maySkip && row.others !== null) {
    return warn(
      name,
      `its triggers fire on our rewrite too: ${row.others}`,
      'If that matters, as a superuser: grant set on parameter session_replication_role to lighter_daemon;',
    )
  }
  return ok(name, `trigger in place, threshold ${row.threshold} bytes`)
}

/** Whether requests can be answered in the way that keeps tenants apart. */
async function apiCheck(client: pg.Client, config: Config): Promise<Check> {
  const { auth, host, port } = config.api
  if (auth.mode === 'off') {
    return ok('HTTP API', 'off, but for /healthz, /readyz and the check of the store: AUTH_MODE is not set')
  }
  try {
    await client.query('begin; set local role lighter_tenant; rollback')
  } catch (error) {
    await client.query('rollback')
    return fail(
      'HTTP API',
      `requests can not be answered as lighter_tenant: ${messageOf(error)}`,
      'As a superuser: grant lighter_tenant to lighter_daemon;',
    )
  }
  const found = `http://${host}:${port}, AUTH_MODE=${auth.mode}, as lighter_tenant`
  return auth.mode === 'dev'
    ? warn(
        'HTTP API',
        `${found}: whoever can connect is believed to be any tenant`,
        'Set AUTH_MODE to jwt or service where others than you can connect.',
      )
    : ok('HTTP API', found)
}

/** A row is due for this long only when nobody works on the queue, or not fast enough. */
const stuckSeconds = 300
/** Likewise when no daemon is known; one behind a pooler may not be. */
const waitingSeconds = 60

async function queueCheck(client: pg.Client): Promise<Check> {
  const row = await one<{
    depth: string
    retrying: string
    failed: string
    oldest: number | null
    settling: string
    waiting: string
    strays: boolean
  }>(
    client,
    `select coalesce(sum(depth), 0)::text as depth, coalesce(sum(retrying), 0)::text as retrying,
            coalesce(sum(failed), 0)::text as failed, max(oldest_seconds) as oldest,
            coalesce(sum(settling), 0)::text as settling, coalesce(sum(waiting), 0)::text as waiting,
            exists (select from lighter.jobs j where not exists (select from lighter.sources s where s.id = j.source_id))
              or exists (select from lighter.failed_jobs j where not exists (select from lighter.sources s where s.id = j.source_id)) as strays
       from lighter.queue_health`,
  )
  const age = row.oldest === null ? '' : `, oldest ${Math.round(row.oldest)} s`
  const onPurpose =
    row.settling === '0' && row.waiting === '0'
      ? ''
      : `; besides, ${row.settling} settle and ${row.waiting} wait for others, which is as it should be (lighter status)`
  const found = `${row.depth} queued${age}, ${row.retrying} of them after an error, ${row.failed} dead letters${onPurpose}`
  if (Number(row.failed) > 0)
    return warn('queue', found, 'See: lighter retry --dry-run; mend the cause; then: lighter retry')
  if (Number(row.retrying) > 0)
    return warn(
      'queue',
      found,
      'See: select row_id, attempts, last_error from lighter.jobs where last_error is not null;',
    )
  if (row.strays)
    return warn(
      'queue',
      `${found}, and jobs of a source that does not exist`,
      'Remove them: delete from lighter.inbox j where not exists (select from lighter.sources s where s.id = j.source_id); and likewise from lighter.waiting and lighter.failed_jobs.',
    )
  const oldest = row.oldest ?? 0
  if (oldest > stuckSeconds || (oldest > waitingSeconds && (await readDaemons(client)).length === 0))
    return warn('queue', `${found}: it does not move`, 'Is a daemon running? lighter start')
  return ok('queue', found)
}

async function movedRowsCheck(client: pg.Client): Promise<Check> {
  let found: MovedRows
  try {
    await client.query(`begin read only; set local statement_timeout = '10s'`)
    found = await findMovedRows(client)
    await client.query('commit')
  } catch (error) {
    await client.query('rollback')
    return warn(
      'moved rows',
      `they could not be looked for: ${messageOf(error)}`,
      'Run it again when the database has less to do.',
    )
  }
  const { rows, lookedAt, all } = found
  const where = `of ${lookedAt} artifacts looked at${all ? ', all there are' : ', a sample, and those that the last release sweep named'}`
  if (rows.length === 0) return ok('moved rows', `none ${where}`)
  const named = rows
    .slice(0, 5)
    .map(
      row =>
        `${row.table} ${row.rowId} (now ${row.tenantId ?? 'without a tenant'}, its payload ${row.artifactTenantId})`,
    )
  return warn(
    'moved rows',
    `${rows.length} row(s) point to artifacts of another tenant and can not be read, ${where}: ${named.join('; ')}${rows.length > named.length ? '; …' : ''}`,
    'For each: move it back, lighter restore --row <id>, move it again, lighter unpin --row <id>. See "Rows that were moved" in docs/operations.md.',
  )
}

const namedRows = 5

/** Inside arrays and nested objects nothing follows a pointer: whoever reads the row gets the pointer. */
async function* lostPointerChecks(client: pg.Client): AsyncGenerator<Check> {
  for (const source of (await loadSources(client)).values()) {
    const name = `pointers ${source.tableSql}.${source.jsonColumn}`
    try {
      await client.query(`begin read only; set local statement_timeout = '10s'`)
      const { rowIds, all } = await sampleLostPointers(client, source, namedRows + 1)
      await client.query('commit')
      const where = all ? 'in all rows' : 'in a sample of the rows'
      yield rowIds.length === 0
        ? ok(name, `each is where it is followed, ${where}`)
        : warn(
            name,
            `rows hold pointers inside arrays or nested objects, where nothing follows them, ${where}: ${rowIds.slice(0, namedRows).join(', ')}${rowIds.length > namedRows ? ', …' : ''}`,
            'Their payloads are kept. Write the value in the place of each pointer. See "Pointers that nothing follows" in docs/troubleshooting.md.',
          )
    } catch (error) {
      await client.query('rollback')
      yield warn(
        name,
        `pointers that nothing follows could not be looked for: ${messageOf(error)}`,
        'Run it again when the database has less to do.',
      )
    }
  }
}

async function deletionsCheck(client: pg.Client, config: Config): Promise<Check> {
  const { ours, elsewhere } = await findOverdueDeletions(client, config.store.prefix)
  const [first] = elsewhere
  if (first !== undefined) {
    const objects = elsewhere.reduce((sum, other) => sum + other.objects, 0)
    return warn(
      'deletions',
      `${objects} object(s) that should be gone lie outside of ${config.store.prefix}tenants/, where nothing is deleted: ${elsewhere.map(e => (e.prefix === null ? `under no tenant, such as ${e.example}` : `under ${e.prefix}tenants/`)).join('; ')}`,
      'Delete them with another tool, then forget them. See "Objects that stay" in docs/operations.md.',
    )
  }
  if (ours > 0) {
    return warn(
      'deletions',
      `${ours} object(s) should have left the bucket more than a day ago`,
      'Does a daemon run, and do its sweeps? select * from lighter.sweep_history order by started_at desc; then: lighter sweep orphans',
    )
  }
  return ok('deletions', 'none is overdue')
}

/** Old snapshots keep dead rows of the queue from being vacuumed. */
async function horizonCheck(client: pg.Client): Promise<Check> {
  const row = await one<{ age: number | null; usage: number; all: boolean }>(
    client,
    `select max(extract(epoch from now() - xact_start))::float8 as age, pg_notification_queue_usage() as usage,
            pg_has_role('pg_read_all_stats', 'usage') as all
       from pg_stat_activity where backend_xmin is not null and pid <> pg_backend_pid() and datname = current_database()`,
  )
  const age = row.age ?? 0
  const whose = row.all ? '' : " (of this login's; grant pg_read_all_stats to see all)"
  const found = `oldest transaction ${age.toFixed(0)} s${whose}, NOTIFY queue ${(row.usage * 100).toFixed(1)} % full`
  if (age > 600)
    return warn(
      'vacuum horizon',
      found,
      'A transaction this old keeps queue rows from being vacuumed: see pg_stat_activity.xact_start.',
    )
  if (row.usage > 0.5)
    return warn(
      'vacuum horizon',
      found,
      'Some listener does not read: see pg_stat_activity for idle LISTEN sessions in a transaction.',
    )
  return ok('vacuum horizon', found)
}

async function listenCheck(config: Config, sender: pg.Client): Promise<Check> {
  const listener = new SteadyClient({
    connectionString: config.listenDatabaseUrl,
    application_name: 'lighter doctor',
    connectionTimeoutMillis: 5000,
    query_timeout: 5000,
  })
  listener.on('error', () => undefined) // shows as a notification that does not arrive
  try {
    await connectSession(listener)
    if (await keepsSession(listener, sender)) return ok('LISTEN', 'a notification arrived')
    return warn(
      'LISTEN',
      'no notification arrived within 2 s; jobs are found by polling',
      'A pooler in transaction mode? Set LISTEN_DATABASE_URL to a direct connection.',
    )
  } catch (error) {
    return warn(
      'LISTEN',
      explainError(error).message,
      'Check LISTEN_DATABASE_URL; jobs are found by polling.',
    )
  } finally {
    await listener.end().catch(() => undefined)
  }
}

async function* storeChecks(config: Config, write: boolean): AsyncGenerator<Check> {
  const store = openStore(config.store)
  try {
    try {
      yield ok('bucket', `${config.store.bucket} answers ${await store.check()}`)
    } catch (error) {
      yield fail(
        'bucket',
        messageOf(error),
        (error instanceof LighterError && error.hint) ||
          'Check R2_ENDPOINT (R2_ACCOUNT_ID), and that this machine may reach it.',
      )
      return
    }
    const owner = await ownerCheck(config, store)
    yield owner
    if (!write) yield skip('bucket write', 'run with --write to write, read and delete an object')
    else if (owner.status === 'fail')
      yield skip('bucket write', 'nothing is written under a prefix that is not ours')
    else {
      const written = await roundTrip(store)
      yield written
      yield written.status === 'fail'
        ? skip('bucket conditions', 'needs a bucket that can be written')
        : await checkConditionalPuts(store)
    }
  } finally {
    store.close()
  }
}

async function ownerCheck(config: Config, store: ObjectStore): Promise<Check> {
  const client = new SteadyClient({
    connectionString: config.databaseUrl,
    connectionTimeoutMillis: 5000,
    query_timeout: 5000,
  })
  client.on('error', () => undefined)
  try {
    await connectSession(client)
    return ok(
      'bucket owner',
      (await checkOwnership(client, store, false)) === 'mine'
        ? 'this installation'
        : 'nobody yet; the daemon claims it when it starts',
    )
  } catch (error) {
    if (!(error instanceof LighterError)) return skip('bucket owner', 'needs the database and its schema')
    return fail('bucket owner', error.message, error.hint ?? 'See the message.')
  } finally {
    await client.end().catch(() => undefined)
  }
}

async function roundTrip(store: ObjectStore): Promise<Check> {
  const name = 'bucket write'
  const key = `${store.prefix}pg-lighter-doctor/${newArtifactId()}`
  const body = Buffer.from(`lighter doctor ${new Date().toISOString()}\n`)
  let written = false
  try {
    const started = performance.now()
    await store.put(key, body, { contentType: 'text/plain' })
    written = true
    const read = (await store.get(key, { offset: 0, length: body.length })).body
    await store.delete([key])
    written = (await store.head(key)) !== null
    if (written)
      return fail(
        name,
        'the object is still there after its deletion',
        'Does the token allow deleting? Does the bucket have a lock rule?',
      )
    if (!read.equals(body))
      return fail(name, 'what was read is not what was written', 'Do not use this store.')
    return ok(name, `written, read and deleted in ${Math.round(performance.now() - started)} ms`)
  } catch (error) {
    return fail(
      name,
      messageOf(error),
      (error instanceof LighterError && error.hint) || 'The token needs Object Read & Write on the bucket.',
    )
  } finally {
    // No table knows of this object, so no sweep would ever remove it.
    if (written) await store.delete([key]).catch(() => undefined)
  }
}

const ok = (name: string, found: string): Check => ({ name, status: 'ok', found })
const warn = (name: string, found: string, advice: string): Check => ({ name, status: 'warn', found, advice })
const fail = (name: string, found: string, advice: string): Check => ({ name, status: 'fail', found, advice })
const skip = (name: string, found: string): Check => ({ name, status: 'skip', found })
