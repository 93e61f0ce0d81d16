import pg from 'pg'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { migrate, planMigration, requireCurrentSchema } from '../../src/db/migrate.ts'
import type { TestPostgres } from '../support/backends/backend.ts'
import { startPostgresBeside } from '../support/backends/start.ts'
import { createEnvironment, type TestEnvironment } from '../support/environment.ts'
import {
  asRole,
  backendPid,
  column,
  connect,
  ensureSupabaseRoles,
  errorOf,
  grantLikeSupabase,
  originalArtifactRefs,
  originalTables,
  uniqueRole,
  untilBlocked,
  value,
} from '../support/sql.ts'

const migrations = [
  'migrations/0001_roles_and_settings.sql',
  'migrations/0002_artifacts.sql',
  'migrations/0003_objects.sql',
  'migrations/0004_sources.sql',
  'migrations/0005_queue.sql',
  'migrations/0006_retention_and_sweeps.sql',
  'migrations/0007_api.sql',
  'migrations/0008_reports.sql',
]
const names = (files: { name: string }[]) => files.map(file => file.name)

/** Which a request of the API calls to write, as its tenant. */
const apiFunctions = [
  'api_begin_idempotent',
  'api_delete_artifact',
  'api_end_idempotent',
  'api_extend_idempotent',
  'api_register_object',
  'api_store_artifact',
  'api_touch_object',
]
/** They append to a log that nobody who writes artifacts has rights on. */
const accountingTriggers = ['account_artifacts', 'account_frames', 'account_objects', 'count_frame']
const tenantFunctions = [
  ...apiFunctions,
  'artifact',
  'artifact_get',
  'artifact_list',
  'artifacts_for_entity',
  'artifacts_get',
  'artifacts_of',
  'as_uuid',
  'current_tenant',
  'entity_frames',
  'frame_of',
  'offloaded_rows',
  'own_entity_frames',
  'row_key',
  'row_key_parts',
  'tenant_of',
]

describe('an empty database', () => {
  let environment: TestEnvironment
  let client: pg.Client

  beforeEach(async () => {
    environment = await createEnvironment({ empty: true })
    client = await connect(environment.urls.admin)
    return async () => {
      await client.end()
      await environment.close()
    }
  })

  test('gets tables, functions, views and grants, and a record of each file', async () => {
    const plan = await migrate(client)
    expect(names(plan.pending)).toEqual(expect.arrayContaining(migrations))
    expect(plan.applied).toEqual([])
    const tables = await column<string>(
      client,
      `select c.oid::regclass::text from pg_class c
        where c.relkind = 'r' and c.relnamespace in ('lighter'::regnamespace, 'public'::regnamespace)`,
    )
    expect(tables.sort()).toEqual(
      [
        'lighter.backfills',
        'lighter.daemons',
        'lighter.erasures',
        'lighter.failed_jobs',
        'lighter.flushes',
        'lighter.former_sources',
        'lighter.frame_exceptions',
        'lighter.frames',
        'lighter.idempotency_keys',
        'lighter.inbox',
        'lighter.installation',
        'lighter.latency_changes',
        'lighter.latency_hours',
        'lighter.leases',
        'lighter.legal_holds',
        'lighter.locks',
        'lighter.loose_artifacts',
        'lighter.moved_row_records',
        'lighter.objects',
        'lighter.pins',
        'lighter.prices',
        'lighter.request_days',
        'lighter.retention_policies',
        'lighter.scans',
        'lighter.schema_migrations',
        'lighter.settings',
        'lighter.source_partitions',
        'lighter.sources',
        'lighter.storage_changes',
        'lighter.storage_days',
        'lighter.storage_totals',
        'lighter.sweep_cursors',
        'lighter.sweep_runs',
        'lighter.tenants',
        'lighter.waiting',
        'lighter.when_failures',
      ].sort(),
    )
    expect(await column(client, 'select name from lighter.schema_migrations order by applied_at')).toEqual(
      names([...plan.pending, ...plan.repeatable]),
    )
    expect(await value(client, 'select count(*)::int from lighter.queue_health')).toBe(0)
    expect(await column(client, 'select lighter.artifact_list(gen_random_uuid())')).toEqual([])
    await requireCurrentSchema(environment.worker)
  })

  test('is not touched by a second run', async () => {
    await migrate(client)
    const before = await client.query('select * from lighter.schema_migrations order by name')
    const plan = await migrate(client)
    expect([...plan.pending, ...plan.repeatable]).toEqual([])
    expect(names(plan.applied)).toEqual(expect.arrayContaining(migrations))
    const after = await client.query('select * from lighter.schema_migrations order by name')
    expect(after.rows).toEqual(before.rows)
  })

  test('is not touched by a dry run, which says what would be applied', async () => {
    const plan = await migrate(client, { dryRun: true, withExampleTables: true })
    expect(names(plan.pending)).toEqual(expect.arrayContaining(migrations))
    expect(names(plan.repeatable)).toContain('grants.sql')
    expect(await column(client, `select nspname from pg_namespace where nspname = 'lighter'`)).toEqual([])
    expect(
      await column(client, `select relname from pg_class where relnamespace = 'public'::regnamespace`),
    ).toEqual([])
    await migrate(client)
    const later = await migrate(client, { dryRun: true })
    expect([...later.pending, ...later.repeatable]).toEqual([])
  })

  test('plans everything before, nothing after, and knows when each file was applied', async () => {
    const before = await planMigration(client)
    expect(before.applied).toEqual([])
    await migrate(client)
    const after = await planMigration(client)
    expect([...after.pending, ...after.repeatable]).toEqual([])
    expect(names(after.applied)).toEqual(names([...before.pending, ...before.repeatable]))
    for (const file of after.applied) expect(file.appliedAt).toBeInstanceOf(Date)
  })

  test('refuses when an applied migration was edited since, whether to migrate or to start', async () => {
    await migrate(client)
    await client.query(`update lighter.schema_migrations set checksum = 'other' where name = $1`, [
      migrations[1],
    ])
    for (const attempt of [() => migrate(client), () => requireCurrentSchema(environment.worker)]) {
      expect(await errorOf(attempt())).toEqual({
        code: 'migration_edited',
        message: expect.stringContaining('migrations/0002_artifacts.sql'),
        hint: expect.stringContaining('new migration'),
      })
    }
  })

  test('refuses when a newer version has migrated it, whether to migrate or to start', async () => {
    await migrate(client)
    await client.query(
      `insert into lighter.schema_migrations (name, checksum) values ('migrations/9999_future.sql', 'x')`,
    )
    for (const attempt of [() => migrate(client), () => requireCurrentSchema(environment.worker)]) {
      expect(await errorOf(attempt())).toEqual({
        code: 'schema_newer',
        message: expect.stringContaining('migrations/9999_future.sql'),
        hint: expect.stringContaining('upgrade'),
      })
    }
  })

  test.each([
    ['read committed', false],
    ['read committed', true],
    ['serializable', false],
    ['serializable', true],
  ])(
    'is migrated once by two at the same time, with %s as the default, the schema there: %s',
    async (isolation, hasSchema) => {
      await client.query(
        `alter database ${environment.database} set default_transaction_isolation = '${isolation}'`,
      )
      const [gate, one, two] = await Promise.all([
        connect(environment.urls.admin),
        connect(environment.urls.admin),
        connect(environment.urls.admin),
      ])
      try {
        // Both wait for a third that makes the schema, so that neither can be done before the other has begun.
        if (hasSchema) await gate.query('create schema lighter')
        await gate.query(
          `begin; create ${hasSchema ? 'table lighter.schema_migrations (n int)' : 'schema lighter'}`,
        )
        const pids = [await backendPid(one), await backendPid(two)]
        const runs = [migrate(one), migrate(two)]
        for (const pid of pids) await untilBlocked(environment.admin, pid)
        await gate.query('rollback')
        const counts = (await Promise.all(runs)).map(plan => plan.pending.length)
        expect(counts.sort()).toEqual([0, expect.any(Number)])
        expect(Math.max(...counts)).toBeGreaterThanOrEqual(migrations.length)
        expect(await value(client, 'select count(*)::int from lighter.installation')).toBe(1)
      } finally {
        await Promise.all([gate.end(), one.end(), two.end()])
      }
    },
  )

  test('is left as it was when a statement fails, and the error names file and line', async () => {
    // In the way of the fourth file.
    await client.query('create schema lighter; create table lighter.sources (mine int)')
    const error = await errorOf(migrate(client, { withExampleTables: true }))
    expect(error.code).toBe('migration_failed')
    expect(error.message).toMatch(/^migrations\/0004_sources\.sql: .*"sources" already exists/)
    expect(await value(client, `select to_regclass('public.artifact_refs')`)).toBeNull()
    expect(
      await column(client, `select relname from pg_class where relnamespace = 'lighter'::regnamespace`),
    ).toEqual(['sources'])
    await client.query('drop schema lighter cascade')
    await migrate(client)
  })

  test('of another encoding is refused', async () => {
    const latin = `${environment.database}_latin1`
    await client.query(
      `create database ${latin} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0`,
    )
    const other = await connect(environment.urls.admin.replace(/[^/]+$/, latin))
    try {
      expect(await errorOf(migrate(other))).toMatchObject({
        code: 'database_not_utf8',
        message: expect.stringContaining('LATIN1'),
      })
    } finally {
      await other.end()
      await client.query(`drop database ${latin}`)
    }
  })

  test('gets and attaches the example tables when asked, again and again', async () => {
    for (let run = 0; run < 2; run++) {
      await migrate(client, { withExampleTables: true })
      expect(await column(client, 'select relation::text from lighter.sources')).toEqual([
        'conversation_messages',
      ])
    }
    expect(
      await column(
        client,
        `select tgname from pg_trigger where tgrelid = 'conversation_messages'::regclass and not tgisinternal`,
      ),
    ).toEqual(['lighter_enqueue_1'])
  })

  test('is not fooled by functions that somebody put into the search path', async () => {
    await client.query(`
      create schema traps;
      create function traps.format(text, text) returns text language plpgsql as
        $$ begin raise exception 'trapped by format(text, text)'; end $$;
      create function traps.quote_ident(name) returns text language plpgsql as
        $$ begin raise exception 'trapped by quote_ident(name)'; end $$;
      alter database ${environment.database} set search_path = traps, public`)
    const trapped = await connect(environment.urls.admin)
    try {
      // The trap is set, outside of migrate.
      expect((await errorOf(trapped.query(`select format('%s'::text, 'x'::text)`))).message).toContain(
        'trapped',
      )
      await migrate(trapped, { withExampleTables: true })
      expect(await value(trapped, `select lighter.set_threshold(9000)`)).toBe(1)
    } finally {
      await trapped.end()
    }
  })

  test('keeps one owner, even when a superuser migrates what another role has made', async () => {
    const owner = uniqueRole('schema_owner')
    await client.query(`create role ${owner}; alter database ${environment.database} owner to ${owner}`)
    try {
      await client.query(`set role ${owner}`)
      await migrate(client)
      await client.query('reset role')
      await client.query(`update lighter.schema_migrations set checksum = 'x' where name = 'grants.sql'`)
      await client.query('drop view lighter.failures')
      await migrate(client, { withExampleTables: true })
      const owners = await column(
        client,
        `select pg_get_userbyid(relowner) from pg_class where relnamespace = 'lighter'::regnamespace
         union select pg_get_userbyid(proowner) from pg_proc where pronamespace = 'lighter'::regnamespace`,
      )
      expect(owners).toEqual([owner])
      expect(await value(client, `select to_regclass('lighter.failures') is not null`)).toBe(true)
    } finally {
      await client.query(
        `reset role; reassign owned by ${owner} to current_user; drop owned by ${owner}; drop role ${owner}`,
      )
    }
  })

  test('refuses a role that is not, and may not become, the owner of the schema', async () => {
    await migrate(client)
    const login = uniqueRole('login')
    await client.query(`create role ${login} login password 'x' in role lighter_daemon`)
    const url = new URL(environment.urls.admin)
    url.username = login
    url.password = 'x'
    const other = await connect(url.href)
    try {
      expect(await errorOf(migrate(other))).toMatchObject({
        code: 'not_schema_owner',
        hint: expect.stringContaining(login),
      })
    } finally {
      await other.end()
      await client.query(`drop role ${login}`)
    }
  })
})

describe('a migrated database', () => {
  let environment: TestEnvironment
  let client: pg.Client

  beforeAll(async () => {
    environment = await createEnvironment()
    client = await connect(environment.urls.admin)
  })
  afterAll(async () => {
    await client.end()
    await environment.close()
  })

  const triggerOid = () =>
    column<number>(
      client,
      `select oid from pg_trigger where tgrelid = 'conversation_messages'::regclass and tgname like 'lighter%'`,
    )

  test('gets all repeatable files again when one has changed, and its triggers rebuilt', async () => {
    const all = (await planMigration(client)).applied
      .map(file => file.name)
      .filter(n => !n.startsWith('migrations/'))
    await client.query(
      `update lighter.schema_migrations set checksum = 'old' where name = 'functions/20_trigger.sql'`,
    )
    await client.query('drop trigger lighter_enqueue_1 on conversation_messages')
    // A source whose table was dropped is in nobody's way.
    await client.query(`
      create table dropped (id int primary key, tenant_id uuid, metadata jsonb);
      select lighter.attach('dropped');
      drop table dropped`)
    const plan = await migrate(client)
    expect(plan.pending).toEqual([])
    // But for the policies of artifact_refs, which would lock it against everybody.
    expect(names(plan.repeatable).sort()).toEqual(all.filter(name => name !== 'row_security.sql').sort())
    expect(await triggerOid()).toHaveLength(1)
    expect((await planMigration(client)).repeatable).toEqual([])
  })

  test('takes from its roles what this version does not give', async () => {
    await client.query(`
      grant insert, update on lighter.sources to lighter_daemon;
      grant execute on function lighter.attach to lighter_tenant;
      grant execute on all functions in schema lighter to public;
      grant select on lighter.jobs, lighter.inbox to public;
      grant usage on sequence lighter.notify_until to public;
      revoke execute on function lighter.heavy_1(jsonb) from public;
      update lighter.schema_migrations set checksum = 'old' where name = 'grants.sql'`)
    await migrate(client)
    expect(await callable('lighter_tenant')).toEqual(tenantFunctions)
    expect(
      await value(
        client,
        `select has_table_privilege('lighter_daemon', 'lighter.sources', 'insert, update')`,
      ),
    ).toBe(false)
    for (const table of ['lighter.jobs', 'lighter.inbox'])
      expect(await value(client, `select has_table_privilege('public', $1, 'select')`, [table])).toBe(false)
    expect(
      await value(
        client,
        `select has_sequence_privilege('public', 'lighter.notify_until', 'usage, select, update')`,
      ),
    ).toBe(false)
    // But what whoever writes to the table must call is given back.
    expect(
      await value(client, `select has_function_privilege('public', 'lighter.heavy_1(jsonb)', 'execute')`),
    ).toBe(true)
  })

  test('fails, and changes nothing, rather than wait long for a table that is locked', async () => {
    await client.query(`update lighter.schema_migrations set checksum = 'old' where name = 'grants.sql'`)
    const holder = await connect(environment.urls.admin)
    try {
      await holder.query('begin; lock table conversation_messages in row exclusive mode')
      const error = await errorOf(migrate(client))
      expect(error.code).toBe('migration_failed')
      expect(error.message).toContain('lock timeout')
      expect(
        await value(client, `select checksum from lighter.schema_migrations where name = 'grants.sql'`),
      ).toBe('old')
    } finally {
      await holder.end()
    }
    await migrate(client)
  })

  test('has roles that row-level security binds', async () => {
    const { rows } = await client.query(
      `select rolname, rolsuper, rolbypassrls, rolcanlogin, rolcreaterole from pg_roles
        where rolname in ('lighter_daemon', 'lighter_reporter', 'lighter_tenant') order by rolname`,
    )
    const harmless = { rolsuper: false, rolbypassrls: false, rolcanlogin: false, rolcreaterole: false }
    expect(rows).toEqual([
      { rolname: 'lighter_daemon', ...harmless },
      { rolname: 'lighter_reporter', ...harmless },
      { rolname: 'lighter_tenant', ...harmless },
    ])
  })

  test('has functions that all pin their search path', async () => {
    const unpinned = await column(
      client,
      `select oid::regprocedure::text from pg_proc
        where pronamespace = 'lighter'::regnamespace
          and not coalesce(proconfig, '{}') @> array['search_path=pg_catalog, pg_temp']
          -- These become a part of the statement that calls them, which a pinned path would prevent. Their names
          -- were resolved when they were made.
          and not (proname in ('artifact', 'frame_of', 'frame_sums', 'tenant_of') and prosqlbody is not null and not prosecdef)
          -- Called for each row that is written, where setting one costs more than the rest; they name every schema.
          and not (proname ~ '^heavy_[0-9]+$' and not prosecdef)`,
    )
    expect(unpinned).toEqual([])
  })

  /** But for the conditions of triggers, which everybody asks: they do nothing. */
  const callable = (role: string) =>
    column<string>(
      client,
      `select distinct proname::text from pg_proc
        where pronamespace = 'lighter'::regnamespace and has_function_privilege($1, oid, 'execute')
          and not (proname ~ '^heavy_[0-9]+$' and provolatile = 's' and not prosecdef) order by 1`,
      [role],
    )

  test('lets each role call what it needs and nothing else', async () => {
    expect(await callable('public')).toEqual([])
    expect(await callable('example_app')).toEqual([])
    expect(await callable('lighter_tenant')).toEqual(tenantFunctions)
    expect(await callable('lighter_daemon')).toEqual([
      'array_envelope',
      'array_pointers',
      'array_rest',
      'artifact',
      'artifact_get',
      'artifact_list',
      'artifacts_for_entity',
      'artifacts_get',
      'artifacts_of',
      'as_timestamp',
      'as_timestamptz',
      'as_uuid',
      'base_type',
      'canonical_key',
      'child_relations',
      'column_type',
      'current_tenant',
      'daemon_says',
      'dependent_obstacles',
      'dependents',
      'domains_of',
      'effective_threshold',
      'entity_frames',
      'envelope_value_limit',
      'flush',
      'forget_artifacts',
      'forget_frames',
      'forget_tenant',
      'frame_of',
      'generated_from',
      'give_back_space',
      'has_before_trigger',
      'heavy_body',
      'hidden_tables',
      'inheritance_obstacles',
      'is_frame_id',
      'is_trusted',
      'key_candidates',
      'key_form',
      'key_obstacles',
      'key_part_sql',
      'key_parts_of',
      'lock_holders',
      'longest_key',
      'mode_obstacles',
      'name_of_column',
      'new_obstacle',
      'note_partitions',
      'offloaded_rows',
      'own_entity_frames',
      'owner_obstacles',
      'payload_bytes',
      'pointers_in',
      'pointers_in_text',
      'policies_hide',
      'reader_obstacles',
      'reads_beyond',
      'requeue',
      'require_all_rows',
      'retention_policy_of',
      'retry',
      'row_key',
      'row_key_parts',
      'row_key_sql',
      'same_key_types',
      'scan_index',
      'set_pack_sizes',
      'set_threshold',
      'single_tenant',
      'source_obstacles',
      'source_relations',
      'stub_id',
      'stub_of',
      'table_sizes',
      'tenant_named',
      'tenant_of',
      'trigger_obstacles',
      'type_name',
      'wake_daemon',
      'when_function',
      'when_obstacles',
      'when_text',
      'when_use_obstacles',
      'with_current_names',
    ])
    // Which lighter.savings calls, with the rights of who reads it.
    expect(await callable('lighter_reporter')).toEqual(['table_sizes'])
  })

  test('has a comment on every function that somebody may call, on every table and every view', async () => {
    const silent = await column(
      client,
      `select oid::regprocedure::text from pg_proc
        where pronamespace = 'lighter'::regnamespace
          and (has_function_privilege('lighter_daemon', oid, 'execute') or proname in ('attach', 'detach'))
          and obj_description(oid, 'pg_proc') is null
       union all
       select oid::regclass::text from pg_class
        where relnamespace = 'lighter'::regnamespace and relkind in ('r', 'v')
          and relname <> 'schema_migrations' and obj_description(oid, 'pg_class') is null`,
    )
    expect(silent).toEqual([])
  })

  test('has views that run with the rights of their reader, or are open to nobody who acts for a tenant', async () => {
    // Reports hold sums of all tenants; lighter_reporter reads those without any right on what they are made from.
    const views = await client.query<{ name: string; invoker: boolean }>(
      `select oid::regclass::text as name, coalesce(reloptions, '{}') @> array['security_invoker=true'] as invoker from pg_class
        where relnamespace = 'lighter'::regnamespace and relkind = 'v'`,
    )
    expect(views.rows.length).toBeGreaterThanOrEqual(7)
    for (const { name } of views.rows.filter(view => !view.invoker)) {
      for (const role of ['public', 'lighter_tenant', 'example_app']) {
        expect(
          await value(client, `select has_table_privilege($1, $2, 'select')`, [role, name]),
          `${role} ${name}`,
        ).toBe(false)
      }
    }
  })

  test('has no function with the rights of its owner but those of the API, forget_tenant, own_entity_frames, set_pack_sizes, set_threshold, table_sizes, wake_daemon and the triggers', async () => {
    const definers = await column(
      client,
      `select proname::text from pg_proc
        where pronamespace = 'lighter'::regnamespace and prosecdef and proname !~ '^enqueue_[0-9]+$'`,
    )
    expect(definers.sort()).toEqual(
      [
        ...accountingTriggers,
        ...apiFunctions,
        'forget_tenant',
        'own_entity_frames',
        'recount_frames',
        'set_pack_sizes',
        'set_threshold',
        'table_sizes',
        'wake_daemon',
      ].sort(),
    )
  })

  test('does not let the daemon write what functions with more rights trust', async () => {
    const trusted = ['lighter.sources', 'lighter.settings', 'lighter.schema_migrations']
    for (const table of trusted) {
      for (const right of ['insert', 'update', 'delete', 'truncate', 'trigger']) {
        expect(
          await value(client, 'select has_table_privilege($1, $2, $3)', ['lighter_daemon', table, right]),
          `${right} on ${table}`,
        ).toBe(false)
      }
    }
    // Whether jobs are worked on is for the daemon to say, and no function asks.
    const written = await column(
      client,
      `select a.attrelid::regclass || '.' || a.attname from pg_attribute a
        where a.attrelid = any ($1::regclass[]) and a.attnum > 0 and not a.attisdropped
          and has_column_privilege('lighter_daemon', a.attrelid, a.attnum, 'insert, update')`,
      [trusted],
    )
    expect(written).toEqual(['lighter.sources.paused'])
  })

  test('can be started on by the daemon, not by a stranger, and not before it is complete', async () => {
    await requireCurrentSchema(environment.worker)
    expect(await errorOf(requireCurrentSchema(environment.app))).toEqual({
      code: 'schema_forbidden',
      message: '"example_app" may not read schema "lighter"',
      hint: expect.stringContaining('grant lighter_daemon to "example_app"'),
    })
    await client.query('delete from lighter.schema_migrations where name = $1', [migrations[2]])
    try {
      expect(await errorOf(requireCurrentSchema(environment.worker))).toEqual({
        code: 'schema_older',
        message: expect.stringContaining('migrations/0003_objects.sql'),
        hint: expect.stringContaining('lighter migrate'),
      })
    } finally {
      await client.query(`insert into lighter.schema_migrations (name, checksum) select $1, $2`, [
        migrations[2],
        (await planMigration(client)).pending.find(f => f.name === migrations[2])?.checksum,
      ])
    }
    await requireCurrentSchema(environment.worker)
  })

  test('is missing where nothing was migrated', async () => {
    const empty = await createEnvironment({ empty: true })
    try {
      expect(await errorOf(requireCurrentSchema(empty.worker))).toEqual({
        code: 'schema_missing',
        message: expect.stringContaining('no schema "lighter"'),
        hint: expect.stringContaining('lighter migrate'),
      })
    } finally {
      await empty.close()
    }
  })
})

// A server of its own, since roles are the server's: here nothing of ours exists yet, and nobody is superuser
// but the host.
describe('a hosted server, as Supabase is', () => {
  let server: TestPostgres
  let host: pg.Client
  /** Logins that own a database each; the first as Supabase's `postgres`. */
  const platformOwner = { user: 'platform_owner', password: 'platform' }
  const secondOwner = { user: 'second_owner', password: 'second' }

  beforeAll(async () => {
    server = await startPostgresBeside()
    host = await connect(server.url())
    await ensureSupabaseRoles(host)
    await host.query('create role reporting')
    for (const { user, password } of [platformOwner, secondOwner]) {
      await host.query(`create role ${user} login password '${password}' nocreaterole`)
      await host.query(`create database ${user} owner ${user} encoding 'UTF8' template template0`)
      const inDatabase = await connect(server.url({ database: user }))
      await grantLikeSupabase(inDatabase, user)
      await inDatabase.end()
    }
  })
  afterAll(async () => {
    await host.end()
    await server.stop()
  })

  const login = (who: { user: string; password: string }, database = who.user) =>
    connect(server.url({ database, ...who }))

  test('says all rights at once that an owner lacks who may not create roles; what it says is enough', async () => {
    const { user } = secondOwner
    const inDatabase = await connect(server.url({ database: user }))
    await inDatabase.query(`create table artifact_refs (id uuid); alter table artifact_refs owner to reporting;
      alter database ${user} owner to current_user`)
    const client = await login(secondOwner)
    try {
      const dry = await errorOf(migrate(client, { dryRun: true }))
      expect(await errorOf(migrate(client))).toEqual(dry)
      expect(dry).toEqual({
        code: 'rights_missing',
        message:
          'role lighter_daemon does not exist; role lighter_tenant does not exist; role lighter_reporter does not exist; ' +
          'lighter_daemon may not become lighter_tenant; second_owner may not create a schema in this database; ' +
          'second_owner may not create tables in schema public; ' +
          'public.artifact_refs belongs to "reporting", not to "second_owner"',
        hint: expect.stringContaining('create role lighter_daemon nologin;\n'),
      })
      // The first line says who is to run the others.
      await inDatabase.query(dry.hint?.slice(dry.hint.indexOf('\n')) ?? '')
      expect(await errorOf(migrate(client))).toMatchObject({
        code: 'migration_failed',
        message: expect.stringContaining('public.artifact_refs'),
      })
      await inDatabase.query('drop table artifact_refs')
      await migrate(client)
      expect(await value(client, `select pg_has_role('lighter_daemon', 'lighter_tenant', 'member')`)).toBe(
        true,
      )
    } finally {
      await client.end()
      await inDatabase.query(`drop owned by ${user} cascade; drop schema if exists lighter cascade;
        alter database ${user} owner to ${user}; grant all on schema public to ${user}`)
      await inDatabase.query('drop role lighter_daemon, lighter_tenant, lighter_reporter')
      await inDatabase.end()
    }
  })

  test('is migrated by an owner who is no superuser, over tables with row-level security', async () => {
    await host.query('alter role platform_owner createrole')
    const client = await login(platformOwner)
    try {
      await client.query(originalTables({ tenantColumn: false }))
      await client.query(originalArtifactRefs)
      await client.query(`
        insert into artifact_refs (tenant_id, kind, r2_key)
        values ('11111111-1111-4111-8111-111111111111', 'assistant_message_metadata', 'old/key.json')`)
      await migrate(client)
      await client.query(`select lighter.attach('public.conversation_messages')`)
      expect(await value(client, 'select count(*)::int from artifact_refs')).toBe(1)
      expect(
        await value(client, `select rolsuper or rolbypassrls from pg_roles where rolname = 'lighter_daemon'`),
      ).toBe(false)
      // And again, with something to do.
      await client.query(`update lighter.schema_migrations set checksum = 'old' where name = 'grants.sql'`)
      await migrate(client)
    } finally {
      await client.end()
    }
  })

  test('gives the daemon a login of its own, which can do its work and change the threshold', async () => {
    const client = await login(platformOwner)
    const worker = { user: 'worker', password: 'worker' }
    await client.query(`create role worker login password 'worker'; grant lighter_daemon to worker`)
    const daemon = await login(worker, platformOwner.user)
    try {
      await requireCurrentSchema(daemon)
      const { rows } = await client.query<{ id: string }>(
        `with c as (insert into conversations (tenant_id) values (gen_random_uuid()) returning id)
         insert into conversation_messages (conversation_id, role, content, metadata)
         select id, 'assistant', '', '{"tool_interactions": [1]}' from c returning id`,
      )
      expect(await column(daemon, 'select row_id from lighter.jobs')).toEqual([rows[0]?.id])
      expect(
        await column(
          daemon,
          `update conversation_messages m set metadata = m.metadata from conversations c
            where c.id = m.conversation_id and c.tenant_id is not null and m.xmin is not null returning m.id`,
        ),
      ).toEqual([rows[0]?.id])
      await daemon.query(
        `insert into artifact_refs (tenant_id, kind, r2_key) values (gen_random_uuid(), 'k', 'packs/1')`,
      )
      expect(await value(daemon, 'select lighter.set_threshold(9000)')).toBe(1)
      expect((await errorOf(daemon.query(`select content from conversation_messages`))).code).toBe('42501')
      expect((await errorOf(daemon.query(`select lighter.detach('conversation_messages')`))).code).toBe(
        '42501',
      )
    } finally {
      await daemon.end()
      await client.end()
    }
  })

  test("gives the browser's roles nothing and the back end's role every artifact", async () => {
    const pool = new pg.Pool({ connectionString: server.url({ database: platformOwner.user }), max: 1 })
    try {
      for (const role of ['anon', 'authenticated']) {
        const rights = await column(
          pool,
          `select t::text from unnest(array(
               select oid::regclass from pg_class
                where (relnamespace = 'lighter'::regnamespace or relname = 'artifact_refs') and relkind in ('r', 'v'))) t
            where has_table_privilege($1, t, 'select, insert, update, delete, truncate, references, trigger')
               or has_any_column_privilege($1, t, 'select, insert, update, references')
           union all
           select oid::regprocedure::text from pg_proc
            where pronamespace = 'lighter'::regnamespace and has_function_privilege($1, oid, 'execute')
              and proname !~ '^heavy_[0-9]+$'
           union all
           select oid::regclass::text from pg_class
            where relnamespace = 'lighter'::regnamespace
              and case when relkind = 'S' then has_sequence_privilege($1, oid, 'usage, select, update') end
           union all
           select 'schema' where has_schema_privilege($1, 'lighter', 'usage, create')`,
          [role],
        )
        expect(rights, role).toEqual([])
      }
      await asRole(pool, 'service_role', async db => {
        await db.query(
          `insert into artifact_refs (tenant_id, kind, r2_key) values (gen_random_uuid(), 'k', 'own/key')`,
        )
        expect(
          await value(
            db,
            `select count(*)::int from artifact_refs where r2_key in ('own/key', 'old/key.json')`,
          ),
        ).toBe(2)
      })
      // What the owner's functions trust is not for a key that lies in a back end's environment.
      for (const table of ['sources', 'settings', 'installation', 'schema_migrations']) {
        const attempt = asRole(pool, 'service_role', db => db.query(`delete from lighter.${table}`))
        expect((await errorOf(attempt)).code, table).toBe('42501')
      }
    } finally {
      await pool.end()
    }
  })

  test('is migrated in a second database by an owner who has no say over our roles', async () => {
    const client = await login(secondOwner)
    try {
      await client.query(`alter default privileges in schema public grant select on tables to reporting`)
      await migrate(client, { withExampleTables: true })
      expect((await errorOf(client.query('grant lighter_daemon to second_owner'))).code).toBe('42501')
      // A new table has policies for the roles that are meant to use it, whatever rights others get by default.
      expect(
        await column(
          client,
          `select polname::text from pg_policy where polrelid = 'lighter.loose_artifacts'::regclass order by 1`,
        ),
      ).toEqual([
        'lighter_daemon',
        'lighter_owner',
        'lighter_service_role',
        'lighter_tenant',
        'lighter_tenant_only',
      ])
      expect(await column(client, 'select relation::text from lighter.sources')).toEqual([
        'conversation_messages',
      ])
    } finally {
      await client.end()
    }
  })

  test('refuses a daemon role that bypasses row-level security', async () => {
    await host.query(`create database third owner platform_owner; `)
    await host.query('alter role lighter_daemon bypassrls')
    const client = await login(platformOwner, 'third')
    try {
      expect(await errorOf(migrate(client))).toEqual({
        code: 'rights_missing',
        message: 'role lighter_daemon is a superuser or bypasses row-level security',
        hint: expect.stringContaining('alter role lighter_daemon nosuperuser nobypassrls'),
      })
    } finally {
      await client.end()
      await host.query('alter role lighter_daemon nobypassrls')
    }
  })
})
