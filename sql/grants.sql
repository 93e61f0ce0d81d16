-- Privileges, stated whole on every run, so that an object made later gets them too.
do $$
declare
  object record;
  role_name text;
begin
  grant usage on schema lighter to lighter_daemon, lighter_tenant;
  grant usage on schema public to lighter_daemon, lighter_tenant;

  grant select, insert, update, delete on public.artifact_refs to lighter_daemon;
  grant select, insert, update, delete on lighter.jobs, lighter.failed_jobs, lighter.objects, lighter.sweep_runs to lighter_daemon;
  grant select on all tables in schema lighter to lighter_daemon;
  grant update (owner_epoch, owner_etag) on lighter.installation to lighter_daemon;
  grant execute on all functions in schema lighter to lighter_daemon;

  -- A request of the API: only its own tenant's artifacts, by row-level security, and only to read.
  grant select on public.artifact_refs to lighter_tenant;

  for object in
    select p.oid::regprocedure as signature, p.proname from pg_proc p
     where p.pronamespace = 'lighter'::regnamespace
  loop
    execute format('revoke all on function %s from public', object.signature);
    if object.proname in ('artifact_get', 'artifact_list', 'artifacts_for_entity') then
      execute format('grant execute on function %s to lighter_tenant', object.signature);
    end if;
    -- What changes the schema is the owner's; set_threshold alone is lent to the daemon.
    if object.proname in ('attach', 'detach', 'build_trigger', 'grant_source', 'describe_source') then
      execute format('revoke all on function %s from lighter_daemon', object.signature);
    end if;
  end loop;

  -- Supabase: the browser's roles get nothing, the back end's everything.
  foreach role_name in array array['anon', 'authenticated'] loop
    if exists (select from pg_roles where rolname = role_name) then
      execute format('revoke all on public.artifact_refs from %I', role_name);
      execute format('revoke all on all tables in schema lighter from %I', role_name);
      execute format('revoke all on schema lighter from %I', role_name);
    end if;
  end loop;
  if exists (select from pg_roles where rolname = 'service_role') then
    grant all on public.artifact_refs to service_role;
    grant usage on schema lighter to service_role;
    grant all on all tables in schema lighter to service_role;
    grant execute on all functions in schema lighter to service_role;
    if not exists (select from pg_policies where schemaname = 'public' and tablename = 'artifact_refs' and 'service_role' = any (roles)) then
      create policy lighter_service_role on public.artifact_refs for all to service_role using (true) with check (true);
    end if;
  end if;

  -- Lets the daemon keep other triggers quiet while it rewrites; only a superuser may give it.
  if (select rolsuper from pg_roles where rolname = current_user) then
    grant set on parameter session_replication_role to lighter_daemon;
  end if;
end
$$;
