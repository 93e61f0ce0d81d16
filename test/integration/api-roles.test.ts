// What each role may do in the database, object by object, and what a session that serves requests can reach with
// any SQL it likes: nothing but its own tenant's. (What row-level security shows is in adoption.test.ts.)
import { randomBytes, randomUUID } from 'node:crypto'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { migrate } from '../../src/db/migrate.ts'
import { asTenant } from '../../src/db/tenant.ts'
import { asTenantId, newFrameId } from '../../src/ids.ts'
import { useEnvironment } from '../support/environment.ts'
import {
  asRole,
  column,
  connect,
  ensureSupabaseRoles,
  errorOf,
  grantLikeSupabase,
  uniqueRole,
  value,
} from '../support/sql.ts'

const environment = await useEnvironment({ empty: true })
let admin: pg.Client
const mine = randomUUID()
const theirs = randomUUID()

beforeAll(async () => {
  admin = await connect(environment.urls.admin)
  // As on Supabase: its roles are there, and get everything on whatever is made in schema public.
  await ensureSupabaseRoles(admin)
  await grantLikeSupabase(admin, await value(admin, 'select current_user::text'))
  await migrate(admin, { withExampleTables: true })
})
afterAll(async () => {
  await admin.end()
})

describe('privileges', () => {
  const roles = [
    'public',
    'anon',
    'authenticated',
    'service_role',
    'lighter_tenant',
    'lighter_daemon',
    'lighter_reporter',
  ] as const
  type Privileges = Record<string, Partial<Record<(typeof roles)[number], string>>>

  const write = 'SELECT INSERT UPDATE DELETE'
  const readers = { service_role: 'SELECT', lighter_daemon: 'SELECT' }
  const reports = { ...readers, lighter_reporter: 'SELECT' }
  const daemonWrites = { service_role: 'SELECT', lighter_daemon: write }

  // A new object is refused here until somebody has decided who may use it.
  const expectedRelations: Privileges = {
    'public.artifact_refs': {
      // No triggers: see below.
      service_role: write,
      lighter_tenant: 'SELECT',
      lighter_daemon: write,
    },
    // The tables that it is made of, for the same: a view with its reader's rights.
    'lighter.loose_artifacts': { service_role: write, lighter_tenant: 'SELECT', lighter_daemon: write },
    'lighter.frame_exceptions': { service_role: write, lighter_tenant: 'SELECT', lighter_daemon: write },
    // A delete makes a hole in a frame; what is in it nobody but the daemon says.
    'lighter.frames': {
      service_role: 'SELECT UPDATE(voids)',
      lighter_tenant: 'SELECT',
      lighter_daemon: write,
    },
    // With its owner's rights, for the reports.
    'lighter.artifacts': readers,
    'lighter.backfills': daemonWrites,
    'lighter.backfills_id_seq': {},
    // Rows of one tenant each, not sums.
    'lighter.damaged_artifacts': readers,
    // For the auditor: nobody but the owner takes any of it away.
    'lighter.erasures': { service_role: 'SELECT', lighter_daemon: 'SELECT INSERT UPDATE' },
    'lighter.erasures_id_seq': {},
    'lighter.failed_jobs': { service_role: write, lighter_daemon: write },
    'lighter.failures': reports,
    // What release trusts: only detach, which is the owner's, writes it.
    'lighter.former_sources': readers,
    // An erasure takes the tenant's.
    'lighter.idempotency_keys': { service_role: 'SELECT', lighter_daemon: 'SELECT DELETE' },
    // Which epoch of the owner object is this database's.
    'lighter.installation': {
      service_role: 'SELECT',
      lighter_daemon: 'SELECT UPDATE(next_epoch,next_nonce,owner_epoch,owner_etag)',
    },
    // What is empty gives back its space.
    'lighter.inbox': { service_role: write, lighter_daemon: `${write} TRUNCATE` },
    'lighter.inbox_id_seq': {},
    'lighter.waiting': { service_role: write, lighter_daemon: `${write} TRUNCATE` },
    'lighter.waiting_groups': reports,
    'lighter.flushes': { service_role: write, lighter_daemon: write },
    'lighter.flushes_id_seq': {},
    // Whoever knows a lease's id could commit in its holder's name.
    'lighter.leases': { service_role: 'SELECT', lighter_daemon: `${write} TRUNCATE` },
    'lighter.jobs': readers,
    // By lighter.daemon_says. Whoever set it could make every write notify.
    'lighter.notify_until': { lighter_daemon: 'SELECT UPDATE' },
    // Logs: appended to and added up, never changed.
    'lighter.latency_changes': { service_role: 'SELECT', lighter_daemon: 'SELECT INSERT DELETE TRUNCATE' },
    'lighter.latency_changes_id_seq': {},
    'lighter.latency_hours': daemonWrites,
    // The back end decides, the sweeps obey.
    'lighter.legal_holds': { service_role: write, lighter_daemon: 'SELECT' },
    'lighter.missing_parts': { lighter_daemon: 'SELECT', lighter_reporter: 'SELECT', service_role: 'SELECT' },
    'lighter.source_partitions': { lighter_daemon: 'SELECT INSERT', service_role: 'SELECT' },
    'lighter.daemons': { service_role: 'SELECT', lighter_daemon: write },
    'lighter.locks': { service_role: 'SELECT', lighter_daemon: write },
    'lighter.held_locks': { service_role: 'SELECT', lighter_daemon: 'SELECT' },
    'lighter.moved_row_records': { service_role: 'SELECT', lighter_daemon: 'SELECT INSERT DELETE' },
    'lighter.moved_rows': reports,
    'lighter.objects': daemonWrites,
    'lighter.offload_latency': reports,
    'lighter.overdue_deletions': reports,
    'lighter.pack_health': reports,
    'lighter.pins_id_seq': {},
    'lighter.pins': { service_role: 'SELECT', lighter_daemon: 'SELECT INSERT DELETE' },
    // What savings says of them is in that view.
    'lighter.prices': readers,
    'lighter.queue_health': reports,
    // Kept: they were paid for.
    'lighter.request_days': { service_role: 'SELECT', lighter_daemon: 'SELECT INSERT UPDATE' },
    'lighter.retention_due': reports,
    // An erasure takes the tenant's, by forget_tenant.
    'lighter.retention_policies': { service_role: write, lighter_daemon: 'SELECT' },
    'lighter.retention_policies_id_seq': {},
    'lighter.savings': reports,
    'lighter.schema_migrations': readers,
    'lighter.settings': readers,
    // Functions of the owner's trust its other columns.
    'lighter.sources': { service_role: 'SELECT', lighter_daemon: 'SELECT UPDATE(paused)' },
    'lighter.sources_id_seq': {},
    'lighter.storage_by_day': reports,
    'lighter.storage_by_kind': reports,
    'lighter.storage_by_tenant': reports,
    'lighter.storage_changes': { service_role: 'SELECT', lighter_daemon: 'SELECT INSERT DELETE TRUNCATE' },
    'lighter.storage_changes_id_seq': {},
    'lighter.storage_days': daemonWrites,
    'lighter.storage_entries': reports,
    // Reads every artifact: for the rollup, not for a dashboard.
    'lighter.storage_recount': readers,
    'lighter.storage_total_entries': reports,
    'lighter.storage_totals': daemonWrites,
    'lighter.sweep_cursors': daemonWrites,
    'lighter.sweep_history': reports,
    'lighter.sweep_runs': daemonWrites,
    'lighter.scans': daemonWrites,
    'lighter.when_failures': daemonWrites,
    'lighter.sweep_runs_id_seq': {},
    'lighter.tenants': {
      service_role: write,
      lighter_daemon: 'SELECT INSERT(external_id,namespace,tenant_id) UPDATE(external_id,namespace)',
    },
  }

  const everybody = ['service_role', 'lighter_tenant', 'lighter_daemon']
  const backEnd = ['service_role', 'lighter_daemon']
  const expectedFunctions: Record<string, string[]> = {
    'account_artifacts()': [],
    'account_frames()': [],
    'account_objects()': [],
    'api_begin_idempotent(text,text,integer)': ['lighter_tenant'],
    'api_delete_artifact(uuid)': ['lighter_tenant'],
    'api_end_idempotent(text,uuid)': ['lighter_tenant'],
    'api_extend_idempotent(text,uuid,integer)': ['lighter_tenant'],
    'api_register_object(text,text,text,text,bigint,integer)': ['lighter_tenant'],
    'api_store_artifact(uuid,text,text,text,uuid,text,text,bigint,text,bigint,text,uuid)': ['lighter_tenant'],
    'api_touch_object(text,text,integer)': ['lighter_tenant'],
    'artifact(uuid,uuid)': everybody,
    'artifact_get(uuid,uuid)': everybody,
    'artifact_list(uuid,text,text,uuid,integer,timestamp with time zone,uuid)': everybody,
    'artifacts_for_entity(uuid,text,uuid,integer)': everybody,
    'artifacts_get(uuid,uuid[])': everybody,
    'artifacts_of(uuid,jsonb)': everybody,
    'as_uuid(jsonb)': everybody,
    'as_uuid(text)': everybody,
    'attach(regclass,name,name,name[],text,name,text,text,text,text[],integer,integer,interval,interval,integer,boolean,boolean,boolean,text,name[],uuid,boolean,text,name,boolean,text,boolean,integer)':
      [],
    'attach_options(lighter.sources,jsonb)': [],
    'attach_report(lighter.sources,lighter.sources,lighter.obstacle[])': [],
    'attach_said(name,name[],text,name,text,text,text,text[],integer,integer,interval,interval,integer,boolean,boolean,boolean,text,name[],uuid,boolean,text,name,boolean,text,boolean)':
      [],
    'build_guard(lighter.sources)': [],
    'build_heavy(lighter.sources)': [],
    'build_trigger(lighter.sources)': [],
    'build_when(lighter.sources)': [],
    'called_functions(text)': [],
    'parse_when(regclass,text,boolean)': [],
    'try_when(regclass,text)': [],
    'when_warnings(lighter.sources)': [],
    'generated_from(regclass,name)': ['lighter_daemon'],
    'scan_index(lighter.sources)': ['lighter_daemon'],
    'when_function(lighter.sources)': ['lighter_daemon'],
    'when_obstacles(lighter.sources)': ['lighter_daemon'],
    'when_text(lighter.sources)': backEnd,
    'when_use_obstacles(oid,oid,boolean)': ['lighter_daemon'],
    'build_triggers()': [],
    'change_obstacles(lighter.sources,lighter.sources)': [],
    'check_attach(regclass,name,name,name[],text,name,text,text,text,text[],integer,integer,interval,interval,integer,boolean,boolean,boolean,text,name[],uuid,boolean,text,name,boolean,text,boolean)':
      [],
    'check_envelope(lighter.sources)': [],
    'column_type(regclass,name)': ['lighter_daemon'],
    'count_frame()': [],
    'current_tenant()': everybody,
    'daemon_says(uuid,boolean,double precision)': ['lighter_daemon'],
    'dependent_obstacles(lighter.sources)': ['lighter_daemon'],
    'dependents(lighter.sources)': ['lighter_daemon'],
    'describe_source(regclass,name,jsonb)': [],
    'as_timestamp(text)': ['lighter_daemon'],
    'as_timestamptz(text)': ['lighter_daemon'],
    'base_type(oid)': backEnd,
    'canonical_key(integer,text)': backEnd,
    'choice_obstacles(lighter.sources,text[])': [],
    'choose_key(regclass,text[],name[])': [],
    'key_candidates(regclass)': ['lighter_daemon'],
    'key_form(oid)': backEnd,
    'key_part_sql(text,text)': backEnd,
    'key_parts_of(lighter.sources)': backEnd,
    'row_key_sql(text,name[],text[])': backEnd,
    'same_key_types(text)': backEnd,
    'source_options(lighter.sources)': [],
    'type_name(oid)': backEnd,
    'single_tenant()': backEnd,
    'tenant_named(text)': backEnd,
    'tenant_origin(regclass,name)': [],
    'tenant_paths(regclass,name)': [],
    'child_relations(lighter.sources)': backEnd,
    'detach(regclass,name,integer)': [],
    'effective_threshold(lighter.sources)': backEnd,
    'enqueue_1()': [],
    'entity_frames(uuid,uuid,text,text,integer,timestamp with time zone,uuid)': everybody,
    'envelope_obstacle(lighter.sources)': [],
    'envelope_value_limit(lighter.sources)': backEnd,
    'option_text(text,text)': [],
    'set_defaults(interval,interval,integer)': [],
    'foreign_keys(regclass)': [],
    'forget_artifacts(uuid[],uuid[],smallint[])': ['lighter_daemon'],
    'forget_frames(uuid,integer)': ['lighter_daemon'],
    'forget_tenant(uuid)': ['lighter_daemon'],
    'frame_of(uuid)': everybody,
    'give_back_space(regclass,bigint)': ['lighter_daemon'],
    'row_key(text[])': everybody,
    'row_key_parts(text,integer)': everybody,
    'tenant_of(uuid,text)': everybody,
    'frame_sums(uuid,uuid,integer[],smallint[])': [],
    'array_envelope(jsonb,uuid,text)': ['lighter_daemon'],
    'array_pointers(jsonb)': ['lighter_daemon'],
    'array_rest(jsonb)': ['lighter_daemon'],
    'forget_missing(integer)': [],
    'guard_body(lighter.sources)': [],
    'has_before_trigger(regclass)': ['lighter_daemon'],
    // Asked by whoever writes to the table.
    'heavy_1(jsonb)': [...roles],
    'hidden_tables(integer[])': ['lighter_daemon'],
    'name_of_column(oid,smallint,name,boolean)': backEnd,
    'note_partitions()': ['lighter_daemon'],
    'number_of_column(oid,name)': [],
    'payload_bytes(uuid,uuid[],boolean)': ['lighter_daemon'],
    'pointers_in(jsonb,jsonpath[])': ['lighter_daemon'],
    'policies_hide(oid,"char")': ['lighter_daemon'],
    'recount_frames()': [],
    'refresh_sources(regclass)': [],
    'remove_source(lighter.sources)': [],
    'require_all_rows(integer[])': ['lighter_daemon'],
    'with_current_names(lighter.sources)': backEnd,
    'lock_attachments()': [],
    'longest_key()': backEnd,
    'lock_holders(regclass)': ['lighter_daemon'],
    'grant_source(lighter.sources)': [],
    'inheritance_obstacles(lighter.sources)': ['lighter_daemon'],
    'key_obstacles(lighter.sources)': ['lighter_daemon'],
    'is_frame_id(uuid)': backEnd,
    'is_trusted(oid)': ['lighter_daemon'],
    // Of the tenant of the transaction, whoever asks.
    'own_entity_frames(uuid,text,text,integer,timestamp with time zone,uuid)': everybody,
    'own_function(regprocedure)': [],
    'owner_obstacles(lighter.sources)': ['lighter_daemon'],
    'trigger_obstacles(lighter.sources)': ['lighter_daemon'],
    'new_obstacle(text,text,text,boolean)': ['lighter_daemon'],
    'offloaded_rows(uuid,text,uuid,integer)': everybody,
    'raise_obstacles(regclass,name,lighter.obstacle[])': [],
    'reader_obstacles(lighter.sources)': ['lighter_daemon'],
    'reads_beyond(text,name,text[],text)': ['lighter_daemon'],
    'mode_obstacles(lighter.sources)': ['lighter_daemon'],
    'domains_of(regclass,name)': ['lighter_daemon'],
    'column_kind(regclass,name)': [],
    'build_clear(lighter.sources)': [],
    'drop_pointer_column(lighter.sources)': [],
    'heavy_body(lighter.sources)': ['lighter_daemon'],
    'stub_of(uuid)': ['lighter_daemon'],
    'stub_id(text)': ['lighter_daemon'],
    'pointers_in_text(text,text[])': ['lighter_daemon'],
    'requeue(regclass,text[],name)': backEnd,
    'require_own_artifacts()': [],
    'require_tenant()': [],
    'retention_policy_of(uuid,text)': backEnd,
    'retry(regclass,text)': backEnd,
    'set_threshold(integer,integer)': ['lighter_daemon'],
    'set_pack_sizes(integer,integer)': ['lighter_daemon'],
    'flush(regclass,uuid)': backEnd,
    'build_enqueue(lighter.sources)': [],
    'waits_for_others(lighter.sources)': [],
    'source_obstacles(lighter.sources)': ['lighter_daemon'],
    'source_relations(lighter.sources)': ['lighter_daemon'],
    // Sizes, for the reports.
    'table_sizes()': ['service_role', 'lighter_daemon', 'lighter_reporter'],
    'wake_daemon()': backEnd,
    'write_artifact()': [],
  }

  test('on tables, views and sequences are these and no others', async () => {
    const { rows } = await admin.query<{ name: string; role: string; rights: string }>(
      `select n.nspname || '.' || c.relname as name, r.role, array_to_string(
                array(select p from unnest(array['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER'])
                               with ordinality as u(p, place)
                       where c.relkind <> 'S' and has_table_privilege(r.role, c.oid, p) order by place)
                || array(select p || '(' || string_agg(a.attname, ',' order by a.attname) || ')'
                           from unnest(array['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) p
                           join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                          where c.relkind <> 'S' and not has_table_privilege(r.role, c.oid, p)
                            and has_column_privilege(r.role, c.oid, a.attnum, p)
                          group by p order by p)
                || array(select p from unnest(array['USAGE', 'SELECT', 'UPDATE']) p
                          where c.relkind = 'S' and has_sequence_privilege(r.role, c.oid, p)), ' ') as rights
         from pg_class c
         join pg_namespace n on n.oid = c.relnamespace
        cross join unnest($1::text[]) as r(role)
        where (n.nspname = 'lighter' or c.oid = 'public.artifact_refs'::regclass)
          and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')`,
      [roles],
    )
    const found: Record<string, Record<string, string>> = {}
    for (const { name, role, rights } of rows) {
      found[name] ??= {}
      if (rights !== '') found[name][role] = rights
    }
    expect(found).toEqual(expectedRelations)
  })

  test('on functions are these and no others', async () => {
    const { rows } = await admin.query<{ name: string; callers: string[] }>(
      `select regexp_replace(p.oid::regprocedure::text, '^lighter\\.', '') as name,
              array(select r from unnest($1::text[]) with ordinality as u(r, place)
                     where has_function_privilege(r, p.oid, 'execute') order by place) as callers
         from pg_proc p where p.pronamespace = 'lighter'::regnamespace`,
      [roles],
    )
    expect(Object.fromEntries(rows.map(row => [row.name, row.callers]))).toEqual(expectedFunctions)
  })

  test('on the schemas and on types are these and no others', async () => {
    const { rows } = await admin.query<{ role: string; usage: boolean; create: boolean; public: boolean }>(
      `select r as role, has_schema_privilege(r, 'lighter', 'usage') as usage,
              has_schema_privilege(r, 'lighter', 'create') as create,
              has_schema_privilege(r, 'public', 'create') as public
         from unnest($1::text[]) with ordinality as u(r, place) order by place`,
      [roles],
    )
    expect(rows.filter(row => row.usage).map(row => row.role)).toEqual([...everybody, 'lighter_reporter'])
    expect(rows.filter(row => row.create || row.public)).toEqual([])
  })

  test('of the owner are lent by these functions alone, which look nowhere but in pg_catalog', async () => {
    const { rows } = await admin.query<{ name: string; owner: string; config: string[] }>(
      `select p.proname as name, pg_get_userbyid(p.proowner) as owner, p.proconfig as config
         from pg_proc p where p.pronamespace = 'lighter'::regnamespace and p.prosecdef order by 1`,
    )
    expect(rows.map(row => row.name)).toEqual([
      'account_artifacts',
      'account_frames',
      'account_objects',
      'api_begin_idempotent',
      'api_delete_artifact',
      'api_end_idempotent',
      'api_extend_idempotent',
      'api_register_object',
      'api_store_artifact',
      'api_touch_object',
      'count_frame',
      'enqueue_1',
      'forget_tenant',
      'own_entity_frames',
      'recount_frames',
      'set_pack_sizes',
      'set_threshold',
      'table_sizes',
      'wake_daemon',
    ])
    for (const { name, owner, config } of rows) {
      expect(config, name).toContain('search_path=pg_catalog, pg_temp')
      // Of nobody whose rights are less, or whom requests could become.
      expect(owner, name).toBe(await value(admin, 'select current_user::text'))
    }
  })

  test('make nobody a member of anything, but the daemon of lighter_tenant, whose rights it has only as such', async () => {
    const { rows } = await admin.query(
      `select r.rolname as role, m.rolname as member, a.admin_option, a.inherit_option, a.set_option
         from pg_auth_members a join pg_roles r on r.oid = a.roleid join pg_roles m on m.oid = a.member
        where m.rolname in ('lighter_tenant', 'lighter_daemon', 'lighter_reporter', 'anon', 'authenticated', 'service_role')`,
    )
    expect(rows).toEqual([
      {
        role: 'lighter_tenant',
        member: 'lighter_daemon',
        admin_option: false,
        inherit_option: false,
        set_option: true,
      },
    ])
    const attributes = await column(
      admin,
      `select rolname::text from pg_roles
        where rolname in ('lighter_tenant', 'lighter_daemon', 'lighter_reporter')
          and (rolsuper or rolcreaterole or rolcreatedb or rolcanlogin or rolreplication or rolbypassrls)`,
    )
    expect(attributes).toEqual([])
  })

  test('let the daemon take away what was decided about one tenant, never a hold, nor a policy of others', async () => {
    const [gone, held, partly] = [randomUUID(), randomUUID(), randomUUID()]
    await admin.query(
      `insert into lighter.tenants (tenant_id, plan, legal_hold) select t, 'premium', t = $2 from unnest(array[$1::uuid, $2, $3]) t`,
      [gone, held, partly],
    )
    await admin.query(
      `insert into lighter.retention_policies (tenant_id, keep_days) select t, 5 from unnest(array[$1::uuid, $2, $3]) t`,
      [gone, held, partly],
    )
    await admin.query(
      `insert into lighter.legal_holds (tenant_id, entity_type, entity_id, reason) values ($1, 'conversation', gen_random_uuid(), 'case')`,
      [partly],
    )
    try {
      await asRole(environment.admin, 'lighter_daemon', async db => {
        expect(await value(db, 'select lighter.forget_tenant($1)', [gone])).toBe(2)
        expect(await value(db, 'select lighter.forget_tenant($1)', [gone])).toBe(0)
      })
      for (const refused of [
        `select lighter.forget_tenant('${held}')`,
        `select lighter.forget_tenant('${partly}')`,
        `delete from lighter.tenants where tenant_id = '${held}'`,
        `update lighter.tenants set legal_hold = false where tenant_id = '${held}'`,
        `delete from lighter.retention_policies where tenant_id is null`,
        `delete from lighter.legal_holds`,
      ]) {
        const { code } = await errorOf(asRole(environment.admin, 'lighter_daemon', db => db.query(refused)))
        expect(code, refused).toBe(refused.startsWith('select') ? '55006' : '42501')
      }
      expect(
        await column(
          admin,
          `select coalesce(tenant_id::text, plan) from lighter.retention_policies order by tenant_id is null, tenant_id, plan`,
        ),
      ).toEqual([...[held, partly].sort(), 'premium', 'standard'])
      expect(await column(admin, 'select tenant_id from lighter.tenants order by 1')).toEqual(
        [held, partly].sort(),
      )
    } finally {
      await admin.query('delete from lighter.legal_holds')
      await admin.query('delete from lighter.tenants')
      await admin.query('delete from lighter.retention_policies where tenant_id is not null')
    }
  })

  // A trigger runs with the rights of whoever fires it: of the owner, where one of the functions above does.
  test('to put triggers on what those functions write are the owner’s alone', async () => {
    const id = randomUUID()
    await admin.query(
      `insert into artifact_refs (id, tenant_id, kind, r2_key) values ($1, $2, 'agent_trace', 'tenants/triggered')`,
      [id, mine],
    )
    const backEnd = await connect(environment.urls.admin)
    try {
      await backEnd.query('set role service_role')
      await backEnd.query(`create function pg_temp.tell() returns trigger language plpgsql as
        $$ begin raise exception 'ran as %', current_user; end $$`)
      for (const planted of [
        'before update on lighter.loose_artifacts',
        'before update on lighter.frames',
        'before insert or update on lighter.frame_exceptions',
        'instead of update on public.artifact_refs',
      ]) {
        const plant = backEnd.query(
          `create trigger planted ${planted} for each row execute function pg_temp.tell()`,
        )
        const fire = plant.then(() =>
          asTenant(environment.worker, asTenantId(mine), db =>
            db.query('select lighter.api_delete_artifact($1)', [id]),
          ),
        )
        const { code, message } = await errorOf(fire)
        expect([planted, code, message]).toEqual([
          planted,
          '42501',
          expect.stringContaining('permission denied'),
        ])
      }
    } finally {
      for (const name of [
        'public.artifact_refs',
        'lighter.loose_artifacts',
        'lighter.frames',
        'lighter.frame_exceptions',
      ])
        await admin.query(`drop trigger if exists planted on ${name}`)
      await backEnd.end()
      await admin.query('delete from artifact_refs where id = $1', [id])
    }
  })
})

describe('a session of lighter_tenant', () => {
  const login = uniqueRole('tenant_login')
  const password = randomBytes(16).toString('hex')
  let session: pg.Client

  beforeAll(async () => {
    await admin.query(`create role ${login} login password '${password}' in role lighter_tenant`)
    const url = new URL(environment.urls.admin)
    url.username = login
    url.password = password
    session = await connect(url.href)
    for (const tenant of [mine, theirs]) {
      await admin.query(
        `insert into artifact_refs (tenant_id, kind, r2_key, entity_type, entity_id, source_id, row_id)
         select $1::uuid, 'agent_trace', 'tenants/' || $1::uuid || '/agent_trace/' || n, 'run', $1::uuid, 1, n
           from generate_series(1, 40) n`,
        [tenant],
      )
      await admin.query(
        `insert into lighter.frames (tenant_id, id, kind, r2_key, byte_offset, byte_length, source_id, entity_type,
                                     sizes, places, hashes, row_texts, entities, entity_places)
         values ($1, $2, 'agent_trace', 'tenants/' || $1::uuid || '/agent_trace/pack', 0, 100, 1, 'run',
                 array_fill(7, array[10]), array_fill(0, array[10]), decode(repeat('00', 320), 'hex'),
                 array_fill('m'::text, array[10]), array[$1::uuid], array_fill(1::smallint, array[10]))`,
        [tenant, newFrameId()],
      )
      await admin.query(`update artifact_refs set released_at = now() where tenant_id = $1 and ordinal = 3`, [
        tenant,
      ])
    }
  })
  afterAll(async () => {
    await session.end()
    await admin.query(`drop role ${login}`)
  })

  /** In a transaction that is undone, as the tenant or as nobody. */
  async function as<T>(tenant: string | null, work: () => Promise<T>): Promise<T> {
    await session.query('begin')
    try {
      if (tenant !== null)
        await session.query(`select set_config('app.current_tenant_id', $1, true)`, [tenant])
      return await work()
    } finally {
      await session.query('rollback')
    }
  }
  const codeOf = async (tenant: string | null, sql: string, values: unknown[] = []) =>
    (await errorOf(as(tenant, () => session.query(sql, values)))).code

  test('sees its tenant’s rows in a query that forgets to ask for them, and no others', async () => {
    const { rows } = await as(mine, () => session.query('select * from public.artifact_refs'))
    expect(new Set(rows.map(row => row.tenant_id))).toEqual(new Set([mine]))
    expect(rows).toHaveLength(50)
    const { rows: none } = await as(null, () => session.query('select * from public.artifact_refs'))
    expect(none).toEqual([])
  })

  test('does not carry a tenant over into the next transaction', async () => {
    await as(mine, () => session.query('select 1'))
    expect(await value(session, `select current_setting('app.current_tenant_id', true)`)).toBe('')
    expect(await column(session, 'select id from artifact_refs')).toEqual([])
  })

  test.each([
    `select * from artifact_refs where tenant_id = '${theirs}'`,
    `select * from artifact_refs a right join (values ('${theirs}'::uuid)) v(t) on a.tenant_id = v.t where a.id is not null`,
    `select * from lighter.artifact_list('${theirs}')`,
    `select * from lighter.artifact_list('${theirs}', of_entity => '${theirs}')`,
    `select * from lighter.artifacts_for_entity('${theirs}', 'run', '${theirs}')`,
    `select * from lighter.offloaded_rows('${theirs}', 'run', '${theirs}')`,
    `select * from unnest(lighter.entity_frames('${theirs}', '${theirs}'))`,
    `select * from unnest(lighter.own_entity_frames('${theirs}'))`,
    `table artifact_refs except select * from artifact_refs where tenant_id = '${mine}'`,
  ])('finds nothing of another tenant by %s', async sql => {
    expect((await as(mine, () => session.query(sql))).rows).toEqual([])
  })

  test('finds nothing of another tenant by the pointers that it knows', async () => {
    const ids = await column<string>(
      admin,
      'select min(id::text) from artifact_refs where tenant_id = $1 group by ordinal is null',
      [theirs],
    )
    expect(ids).toHaveLength(2)
    for (const id of ids) {
      for (const sql of [
        `select * from lighter.artifact_get('${theirs}', $1)`,
        `select * from lighter.artifacts_get('${theirs}', array[$1::uuid])`,
        `select * from lighter.artifact_get('${mine}', $1)`,
        `select * from lighter.artifacts_of('${theirs}', jsonb_build_object('x_ref', $1::uuid))`,
        `select * from lighter.artifacts_of('${mine}', jsonb_build_object('x_ref', $1::uuid))`,
      ]) {
        expect((await as(mine, () => session.query(sql, [id]))).rows).toEqual([])
      }
    }
  })

  test('shows no other tenant’s rows to a function of its own, however cheap that says it is', async () => {
    const seen: string[] = []
    const listener = (notice: { message?: string | undefined }) => seen.push(notice.message ?? '')
    session.on('notice', listener)
    await as(mine, async () => {
      await session.query(`create function pg_temp.tell(key text) returns boolean language plpgsql cost 0.0000001 as
        $$ begin raise notice '%', key; return true; end $$`)
      await session.query('select id from public.artifact_refs where pg_temp.tell(r2_key)')
      await session.query(
        `select id from public.artifact_refs where tenant_id = '${theirs}' and pg_temp.tell(r2_key)`,
      )
    })
    session.off('notice', listener)
    const rowIds: string[] = []
    const other = (notice: { message?: string | undefined }) => rowIds.push(notice.message ?? '')
    session.on('notice', other)
    await as(mine, async () => {
      await session.query(`create function pg_temp.tell(row_id text, tenant uuid) returns boolean language plpgsql cost 0.0000001 as
        $$ begin raise notice '%', tenant; return true; end $$`)
      await session.query('select id from public.artifact_refs where pg_temp.tell(row_id, tenant_id)')
    })
    session.off('notice', other)
    expect(rowIds).toEqual(Array.from({ length: 50 }, () => mine))
    // Of the ten in a frame it is asked once, of the frame.
    expect(seen).toHaveLength(41)
    expect(seen.filter(key => !key.startsWith(`tenants/${mine}/`))).toEqual([])
  })

  test('is told nothing of other tenants’ numbers by the planner', async () => {
    const { rows } = await as(mine, () =>
      session.query(`select * from pg_stats where tablename = 'artifact_refs' or schemaname = 'lighter'`),
    )
    expect(rows).toEqual([])
  })

  test('can write, lock or change nothing', async () => {
    for (const sql of [
      `insert into artifact_refs (tenant_id, kind, r2_key) values ('${mine}', 'k', 'x')`,
      'update artifact_refs set kind = kind',
      'delete from artifact_refs',
      'select * from artifact_refs for update',
      'select * from artifact_refs for key share',
      'lock table artifact_refs in access exclusive mode',
      `copy artifact_refs from stdin`,
      `copy (select 1) to '/tmp/x'`,
      `copy artifact_refs to program 'true'`,
      'alter view artifact_refs set (security_invoker = false)',
      'create or replace rule r as on delete to artifact_refs do instead nothing',
      ...['lighter.loose_artifacts', 'lighter.frames', 'lighter.frame_exceptions'].flatMap(table => [
        `update ${table} set tenant_id = tenant_id`,
        `delete from ${table}`,
        `truncate ${table} cascade`,
        `select * from ${table} for update`,
        `select * from ${table} for key share`,
        `lock table ${table} in access exclusive mode`,
        `merge into ${table} a using (values (1)) v on true when matched then delete`,
        `copy ${table} from stdin`,
        `copy ${table} to program 'true'`,
        `alter table ${table} disable row level security`,
        `alter table ${table} no force row level security`,
        `drop policy lighter_tenant on ${table}`,
        `create policy mine on ${table} for all to public using (true)`,
        `create trigger t before insert on ${table} for each row execute function suppress_redundant_updates_trigger()`,
        `create index on ${table} (tenant_id)`,
      ]),
      `insert into lighter.loose_artifacts (tenant_id, kind, r2_key) values ('${mine}', 'k', 'x')`,
      `insert into lighter.frame_exceptions (tenant_id, frame_id, ordinal, ordinals) values ('${mine}', '${mine}', 0, '{0}')`,
      'create table public.mine (x int)',
      'create table lighter.mine (x int)',
      'create function lighter.mine() returns int language sql return 1',
      'create or replace function lighter.current_tenant() returns uuid language sql return null',
      'set session_replication_role = replica',
      `select pg_read_file('/etc/passwd')`,
      `select lo_import('/etc/passwd')`,
    ]) {
      expect([sql, await codeOf(mine, sql)]).toEqual([sql, '42501'])
    }
    // This one is no error, only no way around.
    const hidden = as(mine, async () => {
      await session.query('set local row_security = off')
      return session.query('select * from artifact_refs')
    })
    expect((await errorOf(hidden)).code).toBe('42501')
  })

  test('can read no table and no view of schema lighter, but for the three that artifact_refs is made of', async () => {
    const relations = await column<string>(
      admin,
      `select format('lighter.%I', relname) from pg_class
        where relnamespace = 'lighter'::regnamespace and relkind in ('r', 'v', 'm', 'S')`,
    )
    expect(relations.length).toBeGreaterThan(15)
    const readable = ['lighter.loose_artifacts', 'lighter.frames', 'lighter.frame_exceptions']
    for (const relation of relations) {
      if (readable.includes(relation)) {
        const { rows } = await as(mine, () => session.query(`select * from ${relation}`))
        expect(rows.length, relation).toBeGreaterThan(0)
        expect(new Set(rows.map(row => row.tenant_id)), relation).toEqual(new Set([mine]))
        expect((await as(null, () => session.query(`select * from ${relation}`))).rows).toEqual([])
      } else expect([relation, await codeOf(mine, `select * from ${relation}`)]).toEqual([relation, '42501'])
      expect([relation, await codeOf(mine, `delete from ${relation}`)]).toEqual([
        relation,
        // Sequences and views with joins say so in words of their own, before rights are asked after.
        expect.stringMatching(/^(42501|55000|42809)$/),
      ])
    }
    expect(relations).toEqual(expect.arrayContaining(readable))
  })

  test('can call nothing of ours but what is for it', async () => {
    const { rows } = await admin.query<{ call: string }>(
      `select format('lighter.%I(%s)', p.proname, (select string_agg('null::' || format_type(t, null), ', ' order by place)
                                                     from unnest(p.proargtypes) with ordinality as a(t, place))) as call
         from pg_proc p
        where p.pronamespace = 'lighter'::regnamespace and p.prorettype <> 'trigger'::regtype
          and not has_function_privilege('lighter_tenant', p.oid, 'execute')`,
    )
    expect(rows.length).toBeGreaterThan(15)
    for (const { call } of rows) {
      expect([call, await codeOf(mine, `select ${call.replace('(null::)', '()')}`)]).toEqual([call, '42501'])
    }
  })

  test('can become nobody else', async () => {
    const others = await column<string>(
      admin,
      `select rolname::text from pg_roles where rolname not in ('lighter_tenant', $1) and rolname not like 'pg\\_%'`,
      [login],
    )
    expect(others).toEqual(expect.arrayContaining(['lighter_daemon', 'service_role', 'postgres']))
    for (const role of others) {
      const quoted = pg.escapeIdentifier(role)
      for (const sql of [
        `set role ${quoted}`,
        `select set_config('role', ${pg.escapeLiteral(role)}, true)`,
        `set session authorization ${quoted}`,
        `grant ${quoted} to ${login}`,
      ]) {
        expect([sql, await codeOf(mine, sql)]).toEqual([sql, '42501'])
      }
    }
    for (const sql of [
      `alter role ${login} superuser`,
      'alter role lighter_tenant bypassrls',
      'create role another',
      'grant lighter_tenant to anon',
    ]) {
      expect([sql, await codeOf(mine, sql)]).toEqual([sql, '42501'])
    }
  })

  describe('calling the functions of the API', () => {
    const key = (tenant: string, rest = 'agent_trace/new.json') => `prefix/tenants/${tenant}/${rest}`
    const register = (objectKey: string) =>
      session.query('select lighter.api_register_object($1, $2, $3, null, 1, 60000)', [
        objectKey,
        'agent_trace',
        'application/json',
      ])
    const storeArtifact = (
      objectKey: string,
      idempotency: { key: string; attempt: string } | null = null,
      id: string = randomUUID(),
    ) =>
      session.query(
        `select * from lighter.api_store_artifact($1, $2, 'agent_trace', null, null, 'application/json', null, 1, 'x', 1, $3, $4)`,
        [id, objectKey, idempotency?.key ?? null, idempotency?.attempt ?? null],
      )
    const calls: [string, () => Promise<pg.QueryResult>][] = [
      ['api_register_object', () => register(key(mine))],
      ['api_touch_object', () => session.query('select lighter.api_touch_object($1, null, 0)', [key(mine)])],
      ['api_store_artifact', () => storeArtifact(key(mine))],
      ['api_delete_artifact', () => session.query('select lighter.api_delete_artifact($1)', [randomUUID()])],
      [
        'api_begin_idempotent',
        () => session.query(`select * from lighter.api_begin_idempotent('k', 'f', 1000)`),
      ],
      [
        'api_end_idempotent',
        () => session.query(`select lighter.api_end_idempotent('k', gen_random_uuid())`),
      ],
      [
        'api_extend_idempotent',
        () => session.query(`select lighter.api_extend_idempotent('k', gen_random_uuid(), 1000)`),
      ],
    ]

    test.each(calls)('%s needs a tenant', async (_name, call) => {
      for (const tenant of [
        null,
        '',
        'rubbish',
        `{${mine}}`,
        `${mine} `,
        `${mine}\n`,
        mine.replaceAll('-', ''),
        `${mine},${theirs}`,
      ]) {
        const error = await errorOf(as(tenant, call))
        expect([tenant, error.code, error.message]).toEqual([tenant, '42501', 'no tenant is set'])
      }
    })

    test('a key must lie under the tenant’s prefix', async () => {
      await as(mine, () => register(key(mine)))
      await as(mine, () => register(`tenants/${mine}/agent_trace/new.json`))
      for (const foreign of [
        key(theirs),
        `tenants/${theirs}/x`,
        `tenants/${mine}`,
        `tenants/${mine}x/x`,
        `xtenants/${mine}/x`,
        `tenants/x${mine}/x`,
        `tenants/${mine.toUpperCase()}/x`,
        `/${mine}/x`,
        mine,
        'owner.json',
        '',
      ]) {
        const error = await errorOf(as(mine, () => register(foreign)))
        expect([foreign, error.code]).toEqual([foreign, '42501'])
      }
    })

    // The tenant's own prefix somewhere in it does not make it the tenant's.
    test('a key under another tenant’s prefix is not the tenant’s, whatever follows', async () => {
      for (const foreign of [
        `tenants/${theirs}/tenants/${mine}/x`,
        `prefix/tenants/${theirs}/agent_trace/tenants/${mine}/x`,
        `tenants/${mine}/../${theirs}/x`,
        `tenants/${mine}/./../../tenants/${theirs}/x`,
      ]) {
        const outcome = await as(mine, () => register(foreign)).then(
          () => 'registered',
          error => error.code,
        )
        expect([foreign, outcome]).toEqual([foreign, '42501'])
      }
    })

    test('nothing of another tenant changes, and its existence makes no difference', async () => {
      const artifact = randomUUID()
      await admin.query(
        `insert into artifact_refs (id, tenant_id, kind, r2_key) values ($2, $1::uuid, 'agent_trace', 'prefix/tenants/' || $1::uuid || '/stored')`,
        [theirs, artifact],
      )
      await admin.query(
        `insert into lighter.objects (tenant_id, r2_key, kind, state, content_type, artifact_count, lease_until)
         values ($1::uuid, 'prefix/tenants/' || $1::uuid || '/uploading', 'agent_trace', 'uploading', 'application/json', 1, now() + interval '1 hour'),
                ($1::uuid, 'prefix/tenants/' || $1::uuid || '/stored', 'agent_trace', 'stored', 'application/json', 1, null)`,
        [theirs],
      )
      await admin.query(
        `insert into lighter.idempotency_keys (tenant_id, key, fingerprint, artifact_id, locked_until, created_at)
         values ($1, 'done', 'f', $2, now(), now()), ($1, 'busy', 'f', null, now() + interval '1 hour', now()),
                ($1, 'lapsed', 'f', null, now() - interval '1 hour', now()), ($1, 'old', 'f', $2, now(), now() - interval '2 days')`,
        [theirs, artifact],
      )
      const snapshot = async () => {
        const found: unknown[][] = []
        for (const table of ['artifact_refs', 'lighter.objects', 'lighter.idempotency_keys']) {
          const sql = `select to_jsonb(t) as row from ${table} t where tenant_id = $1 order by 1`
          found.push(await column(admin, sql, [theirs]))
        }
        return found
      }
      const before = await snapshot()
      expect(before.map(rows => rows.length)).toEqual([51, 2, 4])

      // Committed, so that what it does can be seen.
      const commit = async (work: () => Promise<pg.QueryResult>) => {
        await session.query('begin')
        try {
          await session.query(`select set_config('app.current_tenant_id', $1, true)`, [mine])
          const { rows } = await work()
          await session.query('commit')
          return rows
        } catch (error) {
          await session.query('rollback')
          return error instanceof pg.DatabaseError ? [error.code, error.message] : error
        }
      }
      for (const state of ['uploading', 'stored']) {
        for (const lease of [0, 3_600_000]) {
          const touched = await commit(() =>
            session.query(`select lighter.api_touch_object($1, 'upload', $2) as touched`, [
              key(theirs, state),
              lease,
            ]),
          )
          expect(touched).toEqual([{ touched: false }])
        }
        expect(await commit(() => storeArtifact(key(theirs, state)))).toEqual(
          await commit(() => storeArtifact(key(theirs, 'no such object'))),
        )
      }
      const deleted = (id: string) =>
        commit(() => session.query('select lighter.api_delete_artifact($1) as at', [id]))
      expect(await deleted(artifact)).toEqual([{ at: null }])
      expect(await deleted(randomUUID())).toEqual([{ at: null }])
      const attempts = new Map<string, string>()
      for (const name of ['done', 'busy', 'lapsed', 'old']) {
        const theirAttempt = await value<string>(
          admin,
          'select attempt from lighter.idempotency_keys where tenant_id = $1 and key = $2',
          [theirs, name],
        )
        const extended = await commit(() =>
          session.query('select lighter.api_extend_idempotent($1, $2, 3600000) as extended', [
            name,
            theirAttempt,
          ]),
        )
        expect(extended).toEqual([{ extended: false }])
        await commit(() => session.query('select lighter.api_end_idempotent($1, $2)', [name, theirAttempt]))
        const begun = await commit(() =>
          session.query(`select * from lighter.api_begin_idempotent($1, 'g', 60000)`, [name]),
        )
        expect(begun).toMatchObject([{ outcome: 'new', artifact: null }])
        attempts.set(name, Array.isArray(begun) ? begun[0].attempt : '')
      }
      // With an id of theirs, under a key of ours: it is another artifact, and neither is in the other's way.
      await commit(() => register(key(mine)))
      const own = { key: 'done', attempt: attempts.get('done') ?? '' }
      expect(await commit(() => storeArtifact(key(mine), own, artifact))).toMatchObject([
        { id: artifact, tenant_id: mine },
      ])
      expect(await snapshot()).toEqual(before)
    })
  })
})

test('a connection of the daemon is itself again after a request, answered or failed', async () => {
  const pool = new pg.Pool({ connectionString: environment.urls.daemon, max: 1 })
  try {
    const state = `select current_user::text as user, coalesce(current_setting('app.current_tenant_id', true), '') as tenant`
    const inside = await asTenant(pool, asTenantId(mine), db => db.query(state))
    expect(inside.rows).toEqual([{ user: 'lighter_tenant', tenant: mine }])
    const outside = { user: new URL(environment.urls.daemon).username, tenant: '' }
    expect((await pool.query(state)).rows).toEqual([outside])
    const code = (
      await errorOf(asTenant(pool, asTenantId(mine), db => db.query('select * from lighter.jobs')))
    ).code
    expect(code).toBe('42501')
    expect((await pool.query(state)).rows).toEqual([outside])
  } finally {
    await pool.end()
  }
})

test('the back end’s role reaches artifacts of all tenants, and not what the API keeps for itself', async () => {
  await asRole(environment.admin, 'service_role', async db => {
    expect(await value(db, 'select count(distinct tenant_id)::int from artifact_refs')).toBe(2)
  })
  for (const sql of [
    'delete from lighter.idempotency_keys',
    `update lighter.objects set state = 'deleting'`,
    'update lighter.installation set owner_etag = null',
    'select lighter.api_delete_artifact(gen_random_uuid())',
  ]) {
    const attempt = asRole(environment.admin, 'service_role', async db => {
      await db.query(`select set_config('app.current_tenant_id', $1, true)`, [mine])
      await db.query(sql)
    })
    expect([sql, (await errorOf(attempt)).code]).toEqual([sql, '42501'])
  }
})
