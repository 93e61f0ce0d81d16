-- Creates (again) the enqueue function and the trigger of one source. The threshold is baked into the
-- trigger's WHEN, which is evaluated on the tuple in memory: on a small plain row nothing is called.
create or replace function lighter.build_trigger(source lighter.sources) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $build$
declare
  function_name text := format('lighter.enqueue_%s', source.id);
  trigger_name text := format('lighter_enqueue_%s', source.id);
  document text := format('new.%I', source.json_column);
  heavy text;
begin
  -- Runs inside the application's transaction, as our owner, whatever role writes.
  -- READ COMMITTED, the usual case, needs no subtransaction (each would burn an xid per row). Above it a
  -- conflict with a claimed job raises a serialization error although the job is there: that is caught,
  -- since the application's write must not fail on our account.
  -- One wake-up check per transaction: try the lock that an awake daemon holds shared; only when it is
  -- free does every daemon sleep, and only then is a NOTIFY worth its commit-time lock.
  execute format($function$
    create or replace function %1$s() returns trigger
    language plpgsql security definer
    set search_path = pg_catalog, pg_temp
    as $body$
    begin
      if current_setting('transaction_isolation') = 'read committed' then
        insert into lighter.jobs (source_id, row_id) values (%2$s, new.%3$I::text) on conflict do nothing;
      else
        begin
          insert into lighter.jobs (source_id, row_id) values (%2$s, new.%3$I::text) on conflict do nothing;
        exception when serialization_failure then null;
        end;
      end if;
      if coalesce(current_setting('lighter.woken', true), '') = '' then
        perform set_config('lighter.woken', 'on', true);
        if pg_try_advisory_lock(%4$s) then
          perform pg_advisory_unlock(%4$s);
          perform pg_notify('lighter_jobs', '{}');
        end if;
      end if;
      return null;
    end
    $body$;
  $function$, function_name, source.id, source.key_column, lighter.awake_lock_key());
  execute format('revoke all on function %s() from public', function_name);
  execute format('comment on function %s() is %L', function_name,
    format('Enqueues rows of %s for offload; made by lighter.attach.', source.relation));

  heavy := format('octet_length(%s::text) > %s', document, lighter.effective_threshold(source));
  if source.phase1_field is not null then
    heavy := format(
      $when$jsonb_typeof(%1$s -> %2$L) in ('array', 'object') and %1$s -> %2$L not in ('[]', '{}') or %3$s$when$,
      document, source.phase1_field, heavy);
  end if;
  execute format('create or replace trigger %I after insert or update of %I on %s for each row when (%s) execute function %s()',
    trigger_name, source.json_column, source.relation, heavy, function_name);
end
$build$;
comment on function lighter.build_trigger(lighter.sources) is 'Creates or replaces the trigger of a source; takes a SHARE ROW EXCLUSIVE lock on its table.';
revoke all on function lighter.build_trigger(lighter.sources) from public;

create or replace function lighter.set_threshold(bytes integer, lock_timeout_ms integer default 2000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  source lighter.sources;
  rebuilt integer := 0;
begin
  if bytes is null or bytes not between 1024 and 1000000000 then
    raise exception 'threshold must be between 1024 and 1000000000 bytes, got %', bytes
      using errcode = 'invalid_parameter_value';
  end if;
  perform pg_advisory_xact_lock(lighter.awake_lock_key() + 1);
  if (select threshold_bytes from lighter.settings) = bytes then
    return 0;
  end if;
  perform set_config('lock_timeout', lock_timeout_ms::text, true);
  update lighter.settings set threshold_bytes = bytes;
  for source in select * from lighter.sources where threshold_bytes is null order by id loop
    perform lighter.check_envelope(source);
    perform lighter.build_trigger(source);
    rebuilt := rebuilt + 1;
  end loop;
  return rebuilt;
end
$$;
comment on function lighter.set_threshold(integer, integer) is
  'Sets the default phase 2 threshold in bytes and rebuilds the triggers of sources that follow it; returns how many. Fails with lock_not_available, having changed nothing, when a table stays locked for longer than lock_timeout_ms.';
revoke all on function lighter.set_threshold(integer, integer) from public;
