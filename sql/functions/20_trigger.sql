-- A NOTIFY takes a lock on the whole database at commit, so it is sent only when it is worth that: no daemon says that
-- it is awake, and one says that it sleeps and listens (src/wake/notice.ts). With no daemon at all, writes just queue.
-- A full queue of notifications would make the commit fail. A transaction with an old snapshot may miss what a daemon
-- says: the daemon's poll finds its rows.
--
-- The triggers call this inside the application's transaction: it must neither fail nor wait. Any login may take any
-- advisory lock, so none is used here: one that is taken would stop the notifications.
create or replace function lighter.wake_daemon() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  -- A transaction that has notified can not be prepared for a two-phase commit. Where that is in use the poll finds
  -- what is queued.
  if current_setting('max_prepared_transactions') <> '0' then
    return;
  end if;
  if (select bool_and(d.asleep) from lighter.daemons d where d.until > clock_timestamp())
     and pg_notification_queue_usage() < 0.5 then
    perform pg_notify('lighter_jobs', '{}');
  end if;
end
$$;
comment on function lighter.wake_daemon() is 'Notifies the daemons if none is awake and one sleeps; never where max_prepared_transactions is over 0.';
revoke all on function lighter.wake_daemon() from public;

-- Of the table or of a partition: a trigger that may change a row before it is updated.
create or replace function lighter.has_before_trigger(target regclass) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
return exists (
  select from pg_trigger t
   where (t.tgrelid = target or t.tgrelid in (select p.relid from pg_partition_tree(target) p))
     and not t.tgisinternal and t.tgname not like 'lighter\_%'
     -- for each row, before, update (pg_trigger.h)
     and t.tgtype & 1 = 1 and t.tgtype & 2 = 2 and t.tgtype & 16 = 16
);
comment on function lighter.has_before_trigger(regclass) is
  'Whether a BEFORE UPDATE trigger of a table, which is not ours, may change rows: then our trigger looks at every update.';

-- Creates (again) the enqueue function and the trigger of one source. The threshold is baked into the
-- trigger's WHEN, which is evaluated on the tuple in memory: on a small plain row nothing is called.
create or replace function lighter.build_trigger(source lighter.sources) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $build$
declare
  function_name text := format('lighter.enqueue_%s', source.id);
  trigger_name text := format('lighter_enqueue_%s', source.id);
  document text;
  schema_owner name := (select pg_get_userbyid(nspowner) from pg_namespace where nspname = 'lighter');
  heavy text;
begin
  source := lighter.with_current_names(source);
  -- lighter.missing_parts tells of it; nothing can be watched.
  if source.json_column is null or source.key_column is null then
    return;
  end if;
  document := format('new.%I', source.json_column);
  -- Runs inside the application's transaction, as our owner, whatever role writes. It must neither fail nor wait.
  --
  -- READ COMMITTED, the usual case: a job that is there is left alone without being touched, so a claim or a
  -- commit that is just changing it is not waited for. It can't be on its way out: a commit deletes it only
  -- with the row locked, and we have the row. No subtransaction writes here (each would burn an xid per row).
  --
  -- Above READ COMMITTED the snapshot may be too old to tell whether the job is there, so the index must.
  -- That raises a serialization error when a claim has changed the job since: the job is there, all is well.
  --
  -- The key's column may have been renamed or given another type under us. Then the row stays inline, it is out of
  -- sight (see lighter.missing_parts), and the server's log says so once a transaction.
  --
  -- Nothing here may run code of the table's owner, since it runs with our rights: a cast from a type of the owner's
  -- would. So the type is compared first, and the text comes from the type's output function, which is Postgres's own.
  --
  -- One wake-up check per transaction.
  execute format('create or replace function %s() returns trigger language plpgsql security definer '
    'set search_path = pg_catalog, pg_temp as %L', function_name, format(
    $body$
    declare
      key text;
    begin
      begin
        if pg_typeof(new.%2$I)::oid = any (%3$L::oid[]) then
          key := format('%%s', new.%2$I);
        end if;
      exception
        when undefined_column then null;
        when datatype_mismatch then
          -- This session has planned the expression for the former type.
          execute $look$ select case when pg_typeof(($1).%2$I)::oid = any (%3$L::oid[]) then format('%%s', ($1).%2$I) end $look$
            into key using new;
      end;
      if key is null then
        if coalesce(current_setting('lighter.warned', true), '') = '' then
          perform set_config('lighter.warned', 'on', true);
          raise warning 'pg-lighter: %% has no key column %% of type %% any more, its rows are not offloaded',
              tg_relid::regclass, %2$L, %4$L
            using hint = 'Give the column its name and type again, or detach the table and attach it again.';
        end if;
        return null;
      end if;
      if current_setting('transaction_isolation') in ('read committed', 'read uncommitted') then
        insert into lighter.jobs (source_id, row_id)
          select %1$s, key
           where not exists (select from lighter.jobs j where j.source_id = %1$s and j.row_id = key)
          on conflict do nothing;
      else
        begin
          insert into lighter.jobs (source_id, row_id) values (%1$s, key) on conflict do nothing;
        exception when transaction_rollback or lock_not_available then null;
        end;
      end if;
      if coalesce(current_setting('lighter.woken', true), '') = '' then
        perform set_config('lighter.woken', 'on', true);
        perform lighter.wake_daemon();
      end if;
      return null;
    end
    $body$, source.id, source.key_column,
    -- A key that grew from integer to bigint goes on.
    case source.key_type when 'uuid' then array['uuid'::regtype::oid] else array['bigint'::regtype::oid, 'integer'::regtype::oid] end,
    source.key_type));
  execute format('revoke all on function %s() from public', function_name);
  execute format('comment on function %s() is %L', function_name,
    format('Enqueues rows of %s for offload; made by lighter.attach.', source.relation));
  -- A superuser may attach; the function must still run as our owner, and be his to rebuild.
  if current_user <> schema_owner then
    execute format('alter function %s() owner to %I', function_name, schema_owner);
  end if;

  -- The value is never rendered: 31 KB of numbers like 1e131071 are 460 MB of text. Numbers apart, a text is at most six
  -- times as long as its binary form (control characters), so what is smaller than a sixth of the threshold is not
  -- over it. A value that was not written just now may be compressed, and its size tells nothing. Rows that are queued
  -- and have nothing to offload cost one look; a longer condition costs every write, whatever it writes, since
  -- Postgres reads a trigger's condition anew for each statement. Sizes come first: `?` opens the value.
  heavy := format('pg_column_size(%1$s) > %2$s or pg_column_compression(%1$s) is not null', document,
    lighter.effective_threshold(source) / 6);
  if source.phase1_field is not null then
    heavy := format('%s or %s ? %L', heavy, document, source.phase1_field);
  end if;
  execute format('create or replace trigger %I after insert or update %s on %s for each row when (%s) execute function %s()',
    trigger_name,
    -- What a BEFORE trigger does to a column does not count as an update of that column.
    case when not lighter.has_before_trigger(source.relation) then format('of %I', source.json_column) end,
    source.relation, heavy, function_name);
end
$build$;
comment on function lighter.build_trigger(lighter.sources) is 'Creates or replaces the trigger of a source; takes a SHARE ROW EXCLUSIVE lock on its table.';
revoke all on function lighter.build_trigger(lighter.sources) from public;

create or replace function lighter.build_triggers() returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  source lighter.sources;
  built integer := 0;
begin
  perform lighter.refresh_sources();
  -- A source outlives its table until it is detached; there is nothing left to build for it.
  for source in select s.* from lighter.sources s join pg_class c on c.oid = s.relation order by s.id loop
    perform lighter.build_trigger(source);
    perform lighter.build_guard(source);
    built := built + 1;
  end loop;
  return built;
end
$$;
comment on function lighter.build_triggers() is 'Creates or replaces the triggers of all sources; returns how many.';
revoke all on function lighter.build_triggers() from public;

create or replace function lighter.set_threshold(bytes integer, lock_timeout_ms integer default 2000) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set lock_timeout = '2s'  -- whatever is set inside ends with the function
as $$
declare
  source lighter.sources;
  rebuilt integer := 0;
begin
  if bytes is null or bytes not between 1024 and 1000000000 then
    raise exception 'threshold must be between 1024 and 1000000000 bytes, got %', bytes
      using errcode = 'invalid_parameter_value';
  end if;
  -- Whoever waits for a table's lock makes its writers wait behind: not for long, and never without end.
  if lock_timeout_ms is null or lock_timeout_ms not between 1 and 60000 then
    raise exception 'lock_timeout_ms must be between 1 and 60000, got %', lock_timeout_ms
      using errcode = 'invalid_parameter_value';
  end if;
  perform set_config('lock_timeout', lock_timeout_ms::text, true);
  perform lighter.lock_attachments();
  if (select threshold_bytes from lighter.settings) = bytes then
    return 0;
  end if;
  update lighter.settings set threshold_bytes = bytes;
  for source in
    select s.* from lighter.sources s join pg_class c on c.oid = s.relation where s.threshold_bytes is null order by s.id
  loop
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
