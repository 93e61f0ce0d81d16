-- Privileges, stated whole on every run: all are taken away first, so that an object made later gets them too,
-- and one that should not have them loses them.
do $$
declare
  -- Who may call what. Functions that are not here are the owner's, or only called by others of ours.
  callers constant jsonb := jsonb_build_object(
    'lighter_daemon', array['row_key', 'row_key_parts', 'tenant_of', 'frame_of', 'artifact', 'artifacts_get', 'is_frame_id', 'forget_artifacts', 'forget_frames', 'as_uuid', 'effective_threshold', 'envelope_value_limit', 'set_threshold',
      'policies_hide', 'hidden_tables', 'require_all_rows',
      'give_back_space', 'set_pack_sizes', 'wake_daemon', 'daemon_says', 'lock_holders', 'requeue', 'retry', 'flush', 'current_tenant', 'entity_frames', 'own_entity_frames', 'artifact_get', 'artifact_list', 'artifacts_for_entity', 'artifacts_of', 'offloaded_rows', 'retention_policy_of', 'forget_tenant',
      'source_obstacles', 'new_obstacle', 'inheritance_obstacles', 'owner_obstacles', 'trigger_obstacles', 'is_trusted', 'key_obstacles', 'dependent_obstacles', 'reader_obstacles',
      'base_type', 'type_name', 'key_form', 'same_key_types', 'key_part_sql', 'row_key_sql', 'key_parts_of', 'canonical_key', 'longest_key', 'tenant_named', 'single_tenant', 'child_relations', 'as_timestamp', 'as_timestamptz', 'key_candidates',
      'when_obstacles', 'generated_from', 'when_use_obstacles', 'when_function', 'when_text', 'scan_index', 'mode_obstacles', 'domains_of', 'column_type', 'dependents', 'source_relations', 'reads_beyond', 'heavy_body', 'stub_of', 'stub_id', 'pointers_in_text', 'with_current_names', 'name_of_column', 'note_partitions',
      'pointers_in', 'array_pointers', 'array_rest', 'array_envelope', 'payload_bytes', 'has_before_trigger', 'table_sizes'],
    -- For lighter.savings, which calls it.
    'lighter_reporter', array['table_sizes'],
    'service_role', array['row_key', 'row_key_parts', 'tenant_of', 'frame_of', 'artifact', 'artifacts_get', 'is_frame_id', 'as_uuid', 'effective_threshold', 'envelope_value_limit',
      'wake_daemon', 'requeue', 'retry', 'flush', 'current_tenant', 'entity_frames', 'own_entity_frames', 'artifact_get', 'artifact_list', 'artifacts_for_entity', 'artifacts_of', 'offloaded_rows', 'retention_policy_of',
      'base_type', 'type_name', 'key_form', 'same_key_types', 'key_part_sql', 'row_key_sql', 'key_parts_of', 'canonical_key', 'longest_key', 'tenant_named', 'single_tenant', 'child_relations', 'with_current_names', 'name_of_column', 'when_text', 'table_sizes'],
    'lighter_tenant', array['row_key', 'row_key_parts', 'tenant_of', 'frame_of', 'artifact', 'artifacts_get', 'as_uuid', 'current_tenant', 'entity_frames', 'own_entity_frames', 'artifact_get', 'artifact_list', 'artifacts_for_entity', 'artifacts_of', 'offloaded_rows',
      'api_register_object', 'api_touch_object', 'api_store_artifact', 'api_delete_artifact', 'api_begin_idempotent', 'api_extend_idempotent', 'api_end_idempotent']);
  table_owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = 'lighter.loose_artifacts'::regclass);
  role_name text;
  signature text;
  privileges text;
  target regclass;
begin
  if not lighter.is_trusted((select relowner from pg_class where oid = 'lighter.loose_artifacts'::regclass)) then
    raise exception 'lighter.loose_artifacts belongs to "%", who may not act as "%", the owner of schema lighter', table_owner,
        (select pg_get_userbyid(nspowner) from pg_namespace where nspname = 'lighter')
      using errcode = 'insufficient_privilege',
            hint = format('Functions of ours write there, and would run whatever its owner puts there. alter table lighter.loose_artifacts owner to %I;',
              (select pg_get_userbyid(nspowner) from pg_namespace where nspname = 'lighter'));
  end if;

  -- anon, authenticated (the browser's) and service_role (the back end's) are Supabase's; its default privileges
  -- give all three everything on a new table in public.
  for role_name in
    select rolname from pg_roles
     where rolname in ('lighter_daemon', 'lighter_tenant', 'lighter_reporter', 'anon', 'authenticated', 'service_role')
    union all
    select 'public'
  loop
    role_name := case role_name when 'public' then role_name else quote_ident(role_name) end;
    execute format('revoke all on public.artifact_refs from %s', role_name);
    execute format('revoke all on all tables in schema lighter from %s', role_name);
    execute format('revoke all on all sequences in schema lighter from %s', role_name);
    execute format('revoke all on all functions in schema lighter from %s', role_name);
    execute format('revoke all on schema lighter from %s', role_name);
  end loop;
  -- In the same transaction: whoever writes to an attached table calls the one of its source.
  for signature in
    select p.oid::regprocedure from pg_proc p join lighter.sources s on p.proname = 'heavy_' || s.id
     where p.pronamespace = 'lighter'::regnamespace
  loop
    execute format('grant execute on function %s to public', signature);
  end loop;

  for signature in
    select p.oid::regprocedure from pg_proc p join lighter.sources s on p.proname = 'when_' || s.id
     where p.pronamespace = 'lighter'::regnamespace
  loop
    execute format('grant execute on function %s to lighter_daemon', signature);
  end loop;

  for role_name, signature in
    select r.rolname, p.oid::regprocedure
      from pg_proc p
      join pg_roles r on callers -> r.rolname::text ? p.proname::text
     where p.pronamespace = 'lighter'::regnamespace
  loop
    execute format('grant execute on function %s to %I', signature, role_name);
  end loop;

  -- Likewise of whoever else has the right to put triggers on an adopted table: functions of the owner's write there.
  for role_name in
    select distinct case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end
      from pg_class c cross join lateral aclexplode(c.relacl) a
     where c.oid = 'lighter.loose_artifacts'::regclass and a.privilege_type = 'TRIGGER' and a.grantee <> c.relowner
  loop
    execute format('revoke trigger on lighter.loose_artifacts from %s', role_name);
    raise warning 'took from % the right to put triggers on lighter.loose_artifacts', role_name
      using hint = 'They would run with the rights of its owner.';
  end loop;

  grant usage on schema lighter to lighter_daemon, lighter_tenant;
  grant usage on schema public to lighter_daemon, lighter_tenant;

  grant select, insert, update, delete on public.artifact_refs, lighter.loose_artifacts, lighter.frames, lighter.frame_exceptions
    to lighter_daemon;
  grant select on all tables in schema lighter to lighter_daemon;
  grant insert, update, delete on lighter.inbox, lighter.waiting, lighter.leases, lighter.failed_jobs, lighter.flushes, lighter.objects, lighter.sweep_runs to lighter_daemon;
  grant select, update on sequence lighter.notify_until to lighter_daemon;
  grant insert, update, delete on lighter.daemons, lighter.locks to lighter_daemon;
  grant update (owner_epoch, owner_etag, next_epoch, next_nonce) on lighter.installation to lighter_daemon;
  grant insert, update, delete on lighter.sweep_cursors to lighter_daemon;
  grant insert, delete on lighter.moved_row_records to lighter_daemon;
  grant insert on lighter.source_partitions to lighter_daemon;
  -- Erasing a tenant: everything that is kept of it goes, but for the record of the erasure. See also forget_tenant.
  grant insert, update on lighter.erasures to lighter_daemon;
  grant delete on lighter.idempotency_keys to lighter_daemon;
  grant insert, delete on lighter.pins to lighter_daemon;
  grant insert, update, delete on lighter.backfills, lighter.scans, lighter.when_failures to lighter_daemon;
  grant update (paused) on lighter.sources to lighter_daemon;
  grant insert (tenant_id, namespace, external_id), update (namespace, external_id) on lighter.tenants to lighter_daemon;
  -- Commits append to the logs of the reports, the rollup sweep adds them up.
  grant insert, delete on lighter.storage_changes, lighter.latency_changes to lighter_daemon;
  -- And gives back the space of what is empty.
  grant truncate on lighter.inbox, lighter.waiting, lighter.leases, lighter.storage_changes, lighter.latency_changes to lighter_daemon;
  grant insert, update, delete on lighter.storage_days, lighter.storage_totals, lighter.latency_hours to lighter_daemon;
  grant insert, update on lighter.request_days to lighter_daemon;

  -- Sums of all tenants, and nothing that they are made from: these views run with their owner's rights.
  grant usage on schema lighter to lighter_reporter;
  grant select on lighter.storage_entries, lighter.storage_total_entries, lighter.storage_by_kind, lighter.storage_by_tenant, lighter.storage_by_day,
    lighter.queue_health, lighter.waiting_groups, lighter.offload_latency, lighter.failures, lighter.savings, lighter.retention_due,
    lighter.pack_health, lighter.sweep_history, lighter.moved_rows, lighter.overdue_deletions, lighter.missing_parts to lighter_reporter;

  -- A request of the API: only its own tenant's artifacts, by row-level security, and only to read.
  grant select on public.artifact_refs, lighter.loose_artifacts, lighter.frames, lighter.frame_exceptions to lighter_tenant;
  -- The daemon serves such requests: it becomes lighter_tenant for each, and has none of its rights by itself.
  if not pg_has_role('lighter_daemon', 'lighter_tenant', 'member') then
    begin
      if current_setting('server_version_num')::integer >= 160000 then
        execute 'grant lighter_tenant to lighter_daemon with inherit false, set true';
      else
        grant lighter_tenant to lighter_daemon;
      end if;
    exception when insufficient_privilege then
      raise warning 'lighter_daemon can not become lighter_tenant, which the HTTP API needs'
        using hint = 'As a superuser, or whoever has lighter_tenant with admin option: grant lighter_tenant to lighter_daemon;';
    end;
  end if;

  -- The back end on Supabase: all of the artifacts and of what it may decide about them. Not what functions of the
  -- owner's trust (sources, settings), nor the account of objects.
  if exists (select from pg_roles where rolname = 'service_role') then
    grant usage on schema lighter to service_role;
    -- Not all: a trigger that it could put on the table would run with the rights of functions that write there.
    grant select, insert, update, delete on public.artifact_refs, lighter.loose_artifacts, lighter.frame_exceptions to service_role;
    grant select on all tables in schema lighter to service_role;
    grant update (voids) on lighter.frames to service_role;
    grant insert, update, delete on lighter.inbox, lighter.waiting, lighter.failed_jobs, lighter.flushes, lighter.tenants, lighter.retention_policies, lighter.legal_holds to service_role;
    foreach target in array array['lighter.loose_artifacts', 'lighter.frames', 'lighter.frame_exceptions']::regclass[] loop
      if not exists (
        select from pg_policy p
         where p.polrelid = target and 'service_role'::regrole = any (p.polroles) and p.polcmd = '*' and p.polpermissive
      ) then
        execute format('create policy lighter_service_role on %s for all to service_role using (true) with check (true)', target);
      end if;
    end loop;
  end if;

  -- Whoever else had rights on the table that was adopted has them on the view, and on what it is made of. Of the frames
  -- they see nothing, unless nothing was hidden from them before.
  for role_name, privileges in
    select quote_ident(r.rolname), string_agg(distinct lower(a.privilege_type), ', ')
      from pg_class c
     cross join lateral aclexplode(c.relacl) a
      join pg_roles r on r.oid = a.grantee
     where c.oid = 'lighter.loose_artifacts'::regclass and a.grantee <> c.relowner
       and a.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
       and r.rolname not in ('lighter_daemon', 'lighter_tenant', 'lighter_reporter', 'anon', 'authenticated', 'service_role')
     group by r.rolname
  loop
    execute format('grant %s on public.artifact_refs to %s', privileges, role_name);
    -- Which the view's trigger needs, and which gives nothing by itself.
    execute format('grant usage on schema lighter to %s', role_name);
    execute format('grant execute on function lighter.is_frame_id(uuid), lighter.frame_of(uuid) to %s', role_name);
    if privileges ~ 'select' then
      execute format('grant select on lighter.frames, lighter.frame_exceptions to %s', role_name);
    end if;
    if privileges ~ 'update|delete' then
      execute format('grant insert, update, delete on lighter.frame_exceptions to %s', role_name);
      execute format('grant update (voids) on lighter.frames to %s', role_name);
    end if;
  end loop;
  select string_agg(quote_ident(r.rolname), ', ')
    into role_name
    from pg_policy p cross join lateral unnest(p.polroles) x join pg_roles r on r.oid = x
   where p.polrelid = 'lighter.loose_artifacts'::regclass and p.polname = 'lighter_existing';
  foreach target in array array['lighter.frames', 'lighter.frame_exceptions']::regclass[] loop
    execute format('drop policy if exists lighter_existing on %s', target);
    if role_name is not null then
      execute format('create policy lighter_existing on %s for all to %s using (true) with check (true)', target, role_name);
    end if;
  end loop;

  -- Forced row-level security binds the owner by name; a table may have changed hands.
  foreach target in array array['lighter.loose_artifacts', 'lighter.frames', 'lighter.frame_exceptions']::regclass[] loop
    execute format('alter policy lighter_owner on %s to %I', target, (select pg_get_userbyid(relowner) from pg_class where oid = target));
  end loop;
end
$$;
