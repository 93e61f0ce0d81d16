-- Who sees which rows. Stated whole on every run, as grants.sql states the rights: `lighter migrate` applies it again
-- when it finds something else than this.
--
-- Our own tables name no tenant to whom they could be shown: nobody but us has rights on them. Some databases switch
-- row-level security on for every new table, by an event trigger; then the daemon would see none of ours.
do $$
declare
  target regclass;
begin
  for target in
    select c.oid from pg_class c
     where c.relnamespace = 'lighter'::regnamespace and c.relkind in ('r', 'p') and (c.relrowsecurity or c.relforcerowsecurity)
  loop
    execute format('alter table %s disable row level security, no force row level security', target);
  end loop;
  -- An event trigger may have switched it on again at once: then everybody who has rights may see all.
  for target in
    select c.oid from pg_class c
     where c.relnamespace = 'lighter'::regnamespace and c.relkind in ('r', 'p') and c.relrowsecurity
  loop
    execute format('drop policy if exists lighter_all on %s', target);
    execute format('create policy lighter_all on %s using (true) with check (true)', target);
  end loop;
end
$$;

alter table public.artifact_refs enable row level security;
alter table public.artifact_refs force row level security;

-- FORCE binds the owner too; a back end that connects as the owner must keep working.
-- A table that outlived an earlier schema lighter has the policies already: they are made anew.
do $$
declare
  -- A sub-select is evaluated once per statement, not per row. What spells no uuid is nobody.
  current_tenant constant text := $sql$(
    select case when s.tenant ~ '^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$'
                then s.tenant::uuid end
      from (select current_setting('app.current_tenant_id', true) as tenant) s)$sql$;
  policy name;
begin
  foreach policy in array array['lighter_owner', 'lighter_daemon', 'lighter_tenant', 'lighter_tenant_only'] loop
    execute format('drop policy if exists %I on public.artifact_refs', policy);
  end loop;
  execute format('create policy lighter_owner on public.artifact_refs for all to %I using (true) with check (true)',
    (select pg_get_userbyid(relowner) from pg_class where oid = 'public.artifact_refs'::regclass));
  create policy lighter_daemon on public.artifact_refs for all to lighter_daemon using (true) with check (true);
  execute format('create policy lighter_tenant on public.artifact_refs for select to lighter_tenant using (tenant_id = %s)',
    current_tenant);
  -- An adopted table may have a policy for every role ("using (true)", meant for service_role). For a request
  -- of a tenant it must not widen anything. It does not narrow a login that merely may become lighter_tenant.
  execute format('create policy lighter_tenant_only on public.artifact_refs as restrictive for all to lighter_tenant '
    'using (current_user <> %L or tenant_id = %s)', 'lighter_tenant', current_tenant);
end
$$;
