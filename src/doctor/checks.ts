// What `lighter doctor` looks at: each check says what was found and, if it is amiss, what to do.
import pg from 'pg'
import { type Config, loadConfig } from '../config.ts'
import { requireCurrentSchema } from '../db/migrate.ts'
import { ConfigError, LighterError, messageOf } from '../errors.ts'
import { newArtifactId } from '../ids.ts'
import { type ObjectStore, openStore } from '../store/object-store.ts'
import { checkOwnership } from '../store/ownership.ts'

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
    yield { name: 'everything else', status: 'skip', found: 'needs a configuration that can be used' }
    return
  }
  yield ok('configuration', 'complete')
  yield* databaseChecks(config)
  yield* storeChecks(config, options.write)
}

async function* databaseChecks(config: Config): AsyncGenerator<Check> {
  const client = new pg.Client({
    connectionString: config.databaseUrl,
    application_name: 'lighter doctor',
    connectionTimeoutMillis: 5000,
    query_timeout: 15_000,
  })
  client.on('error', () => undefined) // a lost connection fails the query that is waiting, which reports it
  try {
    await client.connect()
  } catch (error) {
    yield fail(
      'database',
      messageOf(error) || 'no answer',
      'Check DATABASE_URL, that Postgres runs, and that this machine may reach it.',
    )
    return
  }
  try {
    yield await serverCheck(client)
    const schema = await schemaCheck(client)
    yield schema
    if (schema.status === 'fail') return
    yield* privilegeChecks(client)
    yield* sourceChecks(client, config)
    yield await queueCheck(client)
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
  const found = `Postgres ${row.version}, ${row.encoding}, as ${row.login}`
  if (row.number < 150000) return fail('database', found, 'Postgres 15 or later is needed.')
  if (row.encoding !== 'UTF8') return fail('database', found, 'The database must have encoding UTF8.')
  if (row.superuser || row.bypass) {
    return {
      name: 'database',
      status: 'warn',
      found: `${found}, which bypasses row-level security`,
      advice: 'Let the daemon log in as a role that only is a member of lighter_daemon.',
    }
  }
  return ok('database', found)
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

async function* privilegeChecks(client: pg.Client): AsyncGenerator<Check> {
  const { rows } = await client.query<{ thing: string; privilege: string }>(`
    select t.thing, t.privilege
      from (values ('lighter.jobs', 'select'), ('lighter.jobs', 'update'), ('lighter.jobs', 'delete'),
                   ('lighter.failed_jobs', 'insert'), ('lighter.objects', 'insert'), ('lighter.objects', 'update'),
                   ('public.artifact_refs', 'select'), ('public.artifact_refs', 'insert')) as t(thing, privilege)
     where not has_table_privilege(t.thing, t.privilege)
    union all
    select s.relation::text || '.' || s.json_column, p.privilege
      from lighter.sources s cross join (values ('select'), ('update')) as p(privilege)
     where not has_column_privilege(s.relation, s.json_column, p.privilege)`)
  if (rows.length === 0) yield ok('privileges', 'all that the daemon needs')
  else {
    yield fail(
      'privileges',
      `missing: ${rows.map(r => `${r.privilege} on ${r.thing}`).join(', ')}`,
      "Grant the daemon's login the role (grant lighter_daemon to <login>;), and run: lighter migrate; lighter attach <table>",
    )
  }
}

async function* sourceChecks(client: pg.Client, config: Config): AsyncGenerator<Check> {
  const { rows } = await client.query<{
    name: string
    trigger: string | null
    enabled: string | null
    threshold: number
    own_threshold: boolean
    skip: boolean
    may_skip: boolean
    others: string | null
    paused: boolean
    hidden: boolean
  }>(`
    select s.relation::text || '.' || s.json_column as name,
           pg_get_triggerdef(t.oid) as trigger, t.tgenabled as enabled,
           lighter.effective_threshold(s) as threshold, s.threshold_bytes is not null as own_threshold,
           s.skip_triggers as skip, has_parameter_privilege('session_replication_role', 'set') as may_skip,
           (select string_agg(o.tgname, ', ' order by o.tgname) from pg_trigger o
             where o.tgrelid = s.relation and not o.tgisinternal and o.tgname not like 'lighter\\_enqueue\\_%' and (o.tgtype & 16) <> 0) as others,
           s.paused,
           c.relrowsecurity and not exists (select from pg_policy p where p.polrelid = s.relation and p.polname = 'lighter_daemon') as hidden
      from lighter.sources s
      join pg_class c on c.oid = s.relation
      left join pg_trigger t on t.tgrelid = s.relation and t.tgname = 'lighter_enqueue_' || s.id
     order by s.id`)
  if (rows.length === 0) {
    yield {
      name: 'sources',
      status: 'warn',
      found: 'no table is attached',
      advice: 'Run: lighter attach public.conversation_messages',
    }
  }
  for (const row of rows) {
    const name = `source ${row.name}`
    if (row.trigger === null)
      yield fail(name, 'its trigger is gone', 'Attach it again, with the same settings: that mends it.')
    else if (row.enabled === 'D' || row.enabled === 'R')
      yield fail(name, 'its trigger is disabled', `alter table … enable trigger …; on ${row.name}`)
    else if (!row.trigger.includes(` > ${row.threshold})`))
      yield fail(
        name,
        `its trigger does not have the threshold ${row.threshold}`,
        'Attach it again, with the same settings: that mends it.',
      )
    else if (row.hidden)
      yield fail(
        name,
        'row-level security hides its rows from the daemon',
        'Attach it again, with the same settings: that adds the policy.',
      )
    else if (
      config.thresholdBytes !== undefined &&
      !row.own_threshold &&
      row.threshold !== config.thresholdBytes
    ) {
      yield {
        name,
        status: 'warn',
        found: `threshold ${row.threshold}, configuration says ${config.thresholdBytes}`,
        advice: 'The daemon changes it when it starts: restart it.',
      }
    } else if (row.paused)
      yield {
        name,
        status: 'warn',
        found: 'paused: jobs are kept but not worked on',
        advice: 'update lighter.sources set paused = false where …;',
      }
    else if (row.skip && !row.may_skip && row.others !== null) {
      yield {
        name,
        status: 'warn',
        found: `its triggers fire on our rewrite too: ${row.others}`,
        advice:
          'If that matters, as a superuser: grant set on parameter session_replication_role to lighter_daemon;',
      }
    } else yield ok(name, `trigger in place, threshold ${row.threshold} bytes`)
  }
}

async function queueCheck(client: pg.Client): Promise<Check> {
  const row = await one<{ depth: string; failed: string; oldest: number | null }>(
    client,
    'select coalesce(sum(depth), 0)::text as depth, coalesce(sum(failed), 0)::text as failed, max(oldest_seconds) as oldest from lighter.queue_health',
  )
  const found = `${row.depth} waiting${row.oldest === null ? '' : `, oldest ${Math.round(row.oldest)} s`}, ${row.failed} dead letters`
  if (Number(row.failed) > 0)
    return {
      name: 'queue',
      status: 'warn',
      found,
      advice: 'See select * from lighter.failures; then lighter retry',
    }
  if ((row.oldest ?? 0) > 300)
    return { name: 'queue', status: 'warn', found, advice: 'Is a daemon running? lighter start' }
  return ok('queue', found)
}

/** Old snapshots keep dead rows of the queue from being vacuumed. */
async function horizonCheck(client: pg.Client): Promise<Check> {
  const row = await one<{ age: number | null; usage: number }>(
    client,
    `select max(extract(epoch from now() - xact_start))::float8 as age, pg_notification_queue_usage() as usage
       from pg_stat_activity where backend_xmin is not null and pid <> pg_backend_pid() and datname = current_database()`,
  )
  const age = row.age ?? 0
  const found = `oldest transaction ${age.toFixed(0)} s, NOTIFY queue ${(row.usage * 100).toFixed(1)} % full`
  if (age > 600)
    return {
      name: 'vacuum horizon',
      status: 'warn',
      found,
      advice: 'A transaction this old keeps queue rows from being vacuumed: see pg_stat_activity.xact_start.',
    }
  if (row.usage > 0.5)
    return {
      name: 'vacuum horizon',
      status: 'warn',
      found,
      advice: 'Some listener does not read: see pg_stat_activity for idle LISTEN sessions in a transaction.',
    }
  return ok('vacuum horizon', found)
}

/** A pooler in transaction mode takes LISTEN and delivers nothing, so only a notification that arrives proves it. */
async function listenCheck(config: Config, sender: pg.Client): Promise<Check> {
  const listener = new pg.Client({
    connectionString: config.listenDatabaseUrl,
    application_name: 'lighter doctor',
    connectionTimeoutMillis: 5000,
    query_timeout: 5000,
  })
  listener.on('error', () => undefined) // shows as a notification that does not arrive
  try {
    await listener.connect()
    const heard = new Promise<boolean>(resolve => {
      listener.on('notification', () => resolve(true))
      setTimeout(() => resolve(false), 2000).unref()
    })
    await listener.query('listen lighter_doctor')
    await sender.query(`select pg_notify('lighter_doctor', '')`)
    if (await heard) return ok('LISTEN', 'a notification arrived')
    return {
      name: 'LISTEN',
      status: 'warn',
      found: 'no notification arrived within 2 s; jobs are found by polling',
      advice: 'A pooler in transaction mode? Set LISTEN_DATABASE_URL to a direct connection.',
    }
  } catch (error) {
    return {
      name: 'LISTEN',
      status: 'warn',
      found: messageOf(error),
      advice: 'Check LISTEN_DATABASE_URL; jobs are found by polling.',
    }
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
    yield await ownerCheck(config, store)
    if (write) yield await roundTrip(store)
    else
      yield {
        name: 'bucket write',
        status: 'skip',
        found: 'run with --write to write, read and delete an object',
      }
  } finally {
    store.close()
  }
}

async function ownerCheck(config: Config, store: ObjectStore): Promise<Check> {
  const client = new pg.Client({
    connectionString: config.databaseUrl,
    connectionTimeoutMillis: 5000,
    query_timeout: 5000,
  })
  client.on('error', () => undefined)
  try {
    await client.connect()
    return ok(
      'bucket owner',
      (await checkOwnership(client, store)) === 'mine'
        ? 'this installation'
        : 'nobody yet; the daemon claims it when it starts',
    )
  } catch (error) {
    if (!(error instanceof LighterError))
      return { name: 'bucket owner', status: 'skip', found: 'needs the database' }
    return fail('bucket owner', error.message, error.hint ?? 'See the message.')
  } finally {
    await client.end().catch(() => undefined)
  }
}

async function roundTrip(store: ObjectStore): Promise<Check> {
  const key = `${store.prefix}pg-lighter-doctor/${newArtifactId()}`
  const body = Buffer.from(`lighter doctor ${new Date().toISOString()}\n`)
  try {
    const started = performance.now()
    await store.put(key, body, { contentType: 'text/plain' })
    const read = (await store.get(key, { offset: 0, length: body.length })).body
    await store.delete([key])
    if (!read.equals(body))
      return fail('bucket write', 'what was read is not what was written', 'Do not use this store.')
    if ((await store.head(key)) !== null)
      return fail(
        'bucket write',
        'the object is still there after its deletion',
        'Does the token allow deleting? Does the bucket have a lock rule?',
      )
    return ok('bucket write', `written, read and deleted in ${Math.round(performance.now() - started)} ms`)
  } catch (error) {
    return fail(
      'bucket write',
      messageOf(error),
      (error instanceof LighterError && error.hint) || 'The token needs Object Read & Write on the bucket.',
    )
  }
}

const ok = (name: string, found: string): Check => ({ name, status: 'ok', found })
const fail = (name: string, found: string, advice: string): Check => ({ name, status: 'fail', found, advice })
