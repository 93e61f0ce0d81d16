// Somebody changes objects of ours behind our back: doctor names each, migrate brings back what it can, and what it
// cannot it says.
import { randomUUID } from 'node:crypto'
import { expect, onTestFinished, test } from 'vitest'
import { attach, createTable, lighter, lighterOk, settled } from '../support/black-box.ts'
import { startDaemon, useFreshEnvironment } from '../support/environment.ts'
import { ensureSupabaseRoles, originalArtifactRefs } from '../support/sql.ts'

/** Many commands, each a process of its own. */
const slow = { timeout: 180_000 }

const environment = useFreshEnvironment()

const change = (sql: string) => environment.admin.query(sql)

/** Doctor's line about our objects. */
async function objects(): Promise<{ status: string; found: string; advice?: string }> {
  const { stdout } = await lighter(environment, ['doctor', '--json'])
  const { checks } = JSON.parse(stdout)
  return checks.find((check: { name: string }) => check.name === 'schema objects')
}

test(
  'a schema that nobody has changed is all as it should be, and migrate has nothing to do',
  slow,
  async () => {
    expect(await objects()).toMatchObject({ status: 'ok' })
    expect(await lighterOk(environment, ['migrate'])).toMatch(/nothing to apply/)
  },
)

test(
  'the original migration, run once more, changes nothing, and migrate drops its unique index',
  slow,
  async () => {
    await ensureSupabaseRoles(environment.admin)
    // As such migrations are written, so that they can be run again. On a view it fails, and changes nothing.
    const again = originalArtifactRefs
      .replaceAll('create table', 'create table if not exists')
      .replaceAll('index artifact', 'index if not exists artifact')
    await expect(change(again)).rejects.toMatchObject({ code: '42809' })
    expect(await objects()).toMatchObject({ status: 'ok' })
    // Somebody helps it along.
    await change(
      'create unique index artifact_refs_tenant_key on lighter.loose_artifacts (tenant_id, r2_key)',
    )
    expect(await objects()).toMatchObject({
      status: 'fail',
      found: expect.stringContaining('artifact_refs_tenant_key'),
    })
    expect(await lighterOk(environment, ['migrate'])).toMatch(/mended +index .*artifact_refs_tenant_key/)
    await createTable(environment, 'notes', '(id bigint primary key, tenant_id uuid, metadata jsonb)')
    await attach(environment, 'notes')
    const daemon = await startDaemon(environment)
    onTestFinished(() => daemon.stop().then(() => undefined))
    await environment.app.query(
      `insert into notes select n, $1, '{"tool_interactions": [1]}' from generate_series(1, 5) n`,
      [randomUUID()],
    )
    await settled(environment)
    expect((await change('select from lighter.failed_jobs')).rowCount).toBe(0)
    expect((await change('select from public.artifact_refs')).rowCount).toBe(5)
  },
)

test(
  'objects that were dropped or changed are named by doctor, and migrate brings them back',
  slow,
  async () => {
    await change(`
    drop index lighter.objects_dead;
    alter table lighter.retention_policies drop constraint retention_policies_keep_days_check;
    alter table lighter.tenants alter column legal_hold drop not null, alter column legal_hold drop default, drop column plan cascade;
    drop view lighter.moved_rows;
    create or replace function lighter.as_uuid(value text) returns uuid language sql as 'select null::uuid';
    drop policy lighter_daemon on lighter.loose_artifacts;
    drop policy lighter_tenant_only on lighter.frames;
    drop trigger lighter_write on public.artifact_refs;
    alter view public.artifact_refs reset (security_invoker);
    drop trigger if exists account_objects on lighter.objects;
    revoke select on lighter.legal_holds from lighter_daemon;
    grant select on lighter.tenants to public;
    alter table lighter.inbox enable row level security`)
    const named = await lighter(environment, ['migrate', '--status'])
    expect(named.code).toBe(2)
    for (const name of [
      'index lighter.objects_dead is missing',
      'lighter.retention_policies: retention_policies_keep_days_check is missing',
      'column lighter.tenants.plan is missing',
      'view lighter.moved_rows is missing',
      'function lighter.as_uuid(value text) differs',
      'lighter.loose_artifacts: lighter_daemon is missing',
      'lighter.frames: lighter_tenant_only is missing',
      'public.artifact_refs: lighter_write is missing',
      'view public.artifact_refs differs',
      'lighter.legal_holds to lighter_daemon',
      'grant table lighter.tenants to public was not given',
      'row-level security lighter.inbox differs',
      'column lighter.tenants.legal_hold is boolean, not boolean not null default false',
    ])
      expect(named.stdout).toContain(name)
    const migrated = await lighter(environment, ['migrate'])
    // What may not be done by itself, since rows may contradict it, is left, with what to run.
    expect(migrated.code).toBe(1)
    expect(migrated.stdout).toMatch(/mended +index lighter\.objects_dead/)
    expect(migrated.stdout).toMatch(
      /differs +column lighter\.tenants\.legal_hold .*run: alter table lighter\.tenants/,
    )
    await change(
      'alter table lighter.tenants alter column legal_hold set default false, alter column legal_hold set not null',
    )
    expect(await objects()).toMatchObject({ status: 'ok' })
  },
)

test(
  'row-level security on every new table, by an event trigger, hides nothing of ours after migrate',
  slow,
  async () => {
    await change(`
    create function public.always_secure() returns event_trigger language plpgsql as $$
    declare command record;
    begin
      for command in select * from pg_event_trigger_ddl_commands() where object_type = 'table' loop
        execute format('alter table %s enable row level security', command.objid::regclass);
      end loop;
    end $$;
    create event trigger always_secure on ddl_command_end when tag in ('CREATE TABLE') execute function public.always_secure();
    drop schema lighter cascade`)
    await lighterOk(environment, ['migrate'])
    expect(await objects()).toMatchObject({ status: 'ok' })
    for (const name of ['tenants', 'legal_holds', 'inbox', 'waiting', 'leases'])
      await change(`alter table lighter.${name} enable row level security, force row level security`)
    const migrated = await lighterOk(environment, ['migrate'])
    for (const name of ['inbox', 'waiting', 'leases'])
      expect(migrated).toMatch(new RegExp(`mended +row-level security lighter\\.${name}`))
    await lighterOk(environment, ['sweep', 'retention'])
  },
)

test(
  'what on the table of loose artifacts contradicts what we write is named with the statement that removes it',
  slow,
  async () => {
    await change(`
    create unique index one_hash on lighter.loose_artifacts (tenant_id, sha256);
    alter table lighter.loose_artifacts add column reviewed boolean not null default false;
    alter table lighter.loose_artifacts alter column reviewed drop default;
    create rule never as on delete to lighter.loose_artifacts do instead nothing`)
    const found = await objects()
    expect(found).toMatchObject({ status: 'fail' })
    expect(found.advice).toContain('drop index lighter.one_hash;')
    expect(found.advice).toContain('alter column reviewed drop not null;')
    expect(found.advice).toContain('drop rule never on lighter.loose_artifacts;')
    await change(
      'drop index lighter.one_hash; drop rule never on lighter.loose_artifacts; alter table lighter.loose_artifacts alter column reviewed drop not null',
    )
    expect(await objects()).toMatchObject({ status: 'ok' })
  },
)
