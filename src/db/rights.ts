// The rights that the migrating role lacks: found before anything is changed, and listed all at once.
import type pg from 'pg'
import { MigrationError } from '../errors.ts'

/** In the order in which they must be run. Row-level security keeps tenants apart, so it must bind our roles. */
const missingRightsSql = `
  with me as (
    select r.oid, r.rolname as name, r.rolsuper or r.rolcreaterole as makes_roles from pg_roles r where r.rolname = current_user
  ),
  ours as (
    select o.ord, o.name, r.oid, r.rolsuper or r.rolbypassrls as unbound
      from unnest(array['lighter_daemon', 'lighter_tenant', 'lighter_reporter']) with ordinality as o(name, ord)
      left join pg_roles r on r.rolname = o.name
  ),
  refs as (select c.relowner, c.oid::regclass as name from pg_class c where c.oid = coalesce(to_regclass('lighter.loose_artifacts'), to_regclass('public.artifact_refs')))
  select 'role ' || o.name || ' does not exist' as lack, format('create role %I nologin;', o.name) as remedy, o.ord
    from ours o, me where o.oid is null and not me.makes_roles
  union all
  select 'role ' || o.name || ' is a superuser or bypasses row-level security',
         format('alter role %I nosuperuser nobypassrls;', o.name), o.ord
    from ours o where o.unbound
  union all
  select 'lighter_daemon may not become lighter_tenant', 'grant lighter_tenant to lighter_daemon'
           || case when current_setting('server_version_num')::int >= 160000 then ' with inherit false, set true;' else ';' end, 4
    from me where not me.makes_roles and exists (select from ours o where o.oid is null and o.name <> 'lighter_reporter')
  union all
  select format('%I may not create a schema in this database', me.name),
         format('grant create on database %I to %I;', current_database(), me.name), 5
    from me where to_regnamespace('lighter') is null and not has_database_privilege(current_database(), 'create')
  union all
  select format('%I may not create tables in schema public', me.name), format('grant create on schema public to %I;', me.name), 6
    from me where to_regnamespace('lighter') is null and not has_schema_privilege('public', 'create')
  union all
  select format('%s belongs to "%s", not to "%s"', refs.name, pg_get_userbyid(refs.relowner), me.name),
         format('alter table %s owner to %I;', refs.name, me.name), 7
    from me, refs where not pg_has_role(refs.relowner, 'usage')
  order by ord`

/** @throws {MigrationError} `rights_missing`: everything that is missing, with the statements that give it */
export async function requireRights(client: pg.ClientBase): Promise<void> {
  const { rows } = await client.query<{ lack: string; remedy: string }>(missingRightsSql)
  if (rows.length === 0) return
  throw new MigrationError('rights_missing', rows.map(row => row.lack).join('; '), {
    hint: `Run this as a superuser (for the roles CREATEROLE is enough), then migrate again:\n${rows.map(row => row.remedy).join('\n')}`,
  })
}
