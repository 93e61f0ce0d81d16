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
     where c.relnamespace = 'lighter'::regnamespace and c.relkind in ('r', 'p') and c.relname not in ('loose_artifacts', 'frames', 'frame_exceptions')
       and (c.relrowsecurity or c.relforcerowsecurity)
  loop
    execute format('alter table %s disable row level security, no force row level security', target);
  end loop;
  -- An event trigger may have switched it on again at once: then everybody who has rights may see all.
  for target in
    select c.oid from pg_class c
     where c.relnamespace = 'lighter'::regnamespace and c.relkind in ('r', 'p') and c.relname not in ('loose_artifacts', 'frames', 'frame_exceptions')
       and c.relrowsecurity
  loop
    execute format('drop policy if exists lighter_all on %s', target);
    execute format('create policy lighter_all on %s using (true) with check (true)', target);
  end loop;
end
$$;

-- The tables of public.artifact_refs have tenants' rows. FORCE binds the owner too; a back end that connects as the owner
-- must keep working. A table that was adopted may have the policies already: they are made anew.
do $$
declare
  -- A sub-select is evaluated once per statement, not per row. What spells no uuid is nobody.
  current_tenant constant text := $sql$(
    select case when s.tenant ~ '^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$'
                then s.tenant::uuid end
      from (select current_setting('app.current_tenant_id', true) as tenant) s)$sql$;
  target regclass;
  policy name;
begin
  foreach target in array array['lighter.loose_artifacts', 'lighter.frames', 'lighter.frame_exceptions']::regclass[] loop
    execute format('alter table %s enable row level security, force row level security', target);
    foreach policy in array array['lighter_owner', 'lighter_daemon', 'lighter_tenant', 'lighter_tenant_only', 'lighter_all'] loop
      execute format('drop policy if exists %I on %s', policy, target);
    end loop;
    execute format('create policy lighter_owner on %s for all to %I using (true) with check (true)', target,
      (select pg_get_userbyid(relowner) from pg_class where oid = target));
    execute format('create policy lighter_daemon on %s for all to lighter_daemon using (true) with check (true)', target);
    execute format('create policy lighter_tenant on %s for select to lighter_tenant using (tenant_id = %s)', target, current_tenant);
    -- An adopted table may have a policy for every role ("using (true)", meant for service_role). For a request
    -- of a tenant it must not widen anything. It does not narrow a login that merely may become lighter_tenant.
    execute format('create policy lighter_tenant_only on %s as restrictive for all to lighter_tenant '
      'using (current_user <> %L or tenant_id = %s)', target, 'lighter_tenant', current_tenant);
  end loop;
end
$$;
