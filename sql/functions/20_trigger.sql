-- A NOTIFY takes a lock on the whole database at commit, so it is sent only when it is worth that: every daemon that says
-- something of itself sleeps and listens (src/wake/notice.ts). With no daemon at all, writes just queue.
--
-- A full queue of notifications would make the commit fail, and a transaction that has notified can not be prepared for a
-- two-phase commit: where that is in use the poll finds what is queued.
create or replace function lighter.wake_daemon() returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if clock_timestamp() < to_timestamp(pg_sequence_last_value('lighter.notify_until'::regclass) / 1000::double precision)
     and current_setting('max_prepared_transactions') = '0' and pg_notification_queue_usage() < 0.5 then
    perform pg_notify('lighter_jobs', '{}');
  end if;
end
$$;
comment on function lighter.wake_daemon() is 'Notifies the daemons if none is awake and one sleeps; never where max_prepared_transactions is over 0.';
revoke all on function lighter.wake_daemon() from public;

-- Alone, so that the number is that of what all have said.
create or replace function lighter.daemon_says(daemon uuid, sleeps boolean, for_ms double precision) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  lock table lighter.daemons in share row exclusive mode;
  if sleeps is null then
    delete from lighter.daemons d where d.id = daemon;
  else
    insert into lighter.daemons (id, asleep, until) values (daemon, sleeps, clock_timestamp() + for_ms * interval '1 ms')
      on conflict (id) do update set asleep = excluded.asleep, until = excluded.until;
  end if;
  perform setval('lighter.notify_until', coalesce((
    select case when bool_and(d.asleep) then (extract(epoch from max(d.until)) * 1000)::bigint end
      from lighter.daemons d where d.until > clock_timestamp()), 0));
end
$$;
comment on function lighter.daemon_says(uuid, boolean, double precision) is
  'Notes of a daemon that for for_ms milliseconds it sleeps and hears a NOTIFY, or is awake and needs none; null: it is gone. Writers then notify if all that have said something sleep.';
revoke all on function lighter.daemon_says(uuid, boolean, double precision) from public;

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

-- What the trigger's condition asks: may there be something to offload? A function, since Postgres reads a condition anew
-- for each statement that writes, and this one once a session. (At a small row 4.8 us instead of 8.1.) It runs with the
-- rights of who writes, and finds nothing by their search_path.
--
-- The value is never rendered: 31 KB of numbers like 1e131071 are 460 MB of text. Numbers apart, a text is at most six
-- times as long as its binary form (control characters), so what is smaller than a sixth of the threshold is not over it.
-- A value that was not written just now may be compressed, and its size tells nothing. Rows that are queued and have nothing
-- to offload cost one look. Sizes come first: `?` opens the value.
--
-- The length of a text and of bytes is known without opening them, that of json is told by its copy.
create or replace function lighter.heavy_body(source lighter.sources) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  threshold constant integer := lighter.effective_threshold(source);
  heavy text := case source.column_type
    when 'jsonb' then format('pg_catalog.pg_column_size(doc) operator(pg_catalog.>) %s or pg_catalog.pg_column_compression(doc) is not null', threshold / 6)
    when 'json' then format('(pg_catalog.pg_column_size(doc) operator(pg_catalog.>) %1$s or pg_catalog.pg_column_compression(doc) is not null)'
      ' and pg_catalog.octet_length(doc::pg_catalog.text) operator(pg_catalog.>) %1$s', threshold)
    else format('pg_catalog.octet_length(doc) operator(pg_catalog.>) %s', threshold) end;
begin
  if source.phase1_field is not null then
    heavy := format('%s or doc operator(pg_catalog.?) %L', heavy, source.phase1_field)
      || case when source.min_bytes > 0
           then format(' and pg_catalog.pg_column_size(doc operator(pg_catalog.->) %L) operator(pg_catalog.>=) %s', source.phase1_field, source.min_bytes)
           else '' end;
  end if;
  return format('begin return %s; end', heavy);
end
$$;
comment on function lighter.heavy_body(lighter.sources) is 'Text of the function that tells which rows of a source are queued, see lighter.build_heavy.';
revoke all on function lighter.heavy_body(lighter.sources) from public;

create or replace function lighter.build_heavy(source lighter.sources) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  signature constant text := format('lighter.heavy_%s(%s)', source.id, source.column_type);
begin
  execute format('create or replace function lighter.heavy_%s(doc %s) returns boolean language plpgsql stable parallel safe as %L',
    source.id, source.column_type, lighter.heavy_body(source));
  execute format('comment on function %s is %L', signature,
    format('Whether a row of %s may hold something to offload; made by lighter.attach.', source.relation));
  -- Whoever writes to the table calls it.
  execute format('grant execute on function %s to public', signature);
  perform lighter.own_function(signature::regprocedure);
end
$$;
comment on function lighter.build_heavy(lighter.sources) is 'Creates or replaces the function that tells which rows of a source are queued; locks nothing.';
revoke all on function lighter.build_heavy(lighter.sources) from public;

-- A superuser may attach; what is made must still run as our owner, and be his to rebuild.
create or replace function lighter.own_function(signature regprocedure) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  schema_owner constant name := (select pg_get_userbyid(nspowner) from pg_namespace where nspname = 'lighter');
begin
  if (select pg_get_userbyid(proowner) from pg_proc where oid = signature) <> schema_owner then
    execute format('alter function %s owner to %I', signature, schema_owner);
  end if;
end
$$;
comment on function lighter.own_function(regprocedure) is 'Gives a function that was made just now to the owner of schema lighter.';
revoke all on function lighter.own_function(regprocedure) from public;

create or replace function lighter.build_enqueue(source lighter.sources) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $build$
declare
  function_name text := format('lighter.enqueue_%s', source.id);
  forms text[] := array(select k.form from lighter.key_parts_of(source) k);
  -- A key that grew from integer to bigint goes on. A domain, or an enum, is known by itself only.
  type_checks text[] := array(
    select string_agg(format('pg_typeof(%1$s.%2$I)::oid = any (%3$L::oid[]) and %1$s.%2$I is not null', alias, k.column_name,
             array(select k.type union select n::regtype::oid from unnest(lighter.same_key_types(lighter.type_name(k.type))) n where k.form in ('integer', 'text'))),
             ' and ' order by k.place)
      from unnest(array['new', 'n']) with ordinality a(alias, n) cross join lighter.key_parts_of(source) k
     group by a.n order by a.n);
begin
  -- Runs inside the application's transaction, as our owner, whatever role writes. It must neither fail nor wait, so it
  -- only appends.
  --
  -- A column of the key may have been renamed or given another type under us. Then the row stays inline, it is out of
  -- sight (see lighter.missing_parts), and the server's log says so once a transaction.
  --
  -- Nothing here may run code of the table's owner, since it runs with our rights: a cast from a type of the owner's
  -- would. So the types are compared first, and the text is made as lighter.key_part_sql says.
  execute format('create or replace function %s() returns trigger language plpgsql security definer '
    'set search_path = pg_catalog, pg_temp as %L', function_name, format(
    $body$
    declare
      key text;
    begin
      begin
        if %2$s then
          key := %3$s;
        end if;
      exception
        when undefined_column then null;
        when datatype_mismatch then
          -- This session has planned the expression for the former type.
          execute $look$ select case when %4$s then %5$s end from (select ($1).*) n $look$
            into key using new;
      end;
      if key is null then
        if coalesce(current_setting('lighter.warned', true), '') = '' then
          perform set_config('lighter.warned', 'on', true);
          raise warning 'pg-lighter: %% has no key (%%) of type %% any more, its rows are not offloaded',
              tg_relid::regclass, %6$L, %7$L
            using hint = 'Give the columns their names and types again, or detach the table and attach it again.';
        end if;
        return null;
      end if;
      insert into lighter.inbox (source_id, row_id) values (%1$s, key);%8$s
      return null;
    end
    $body$, source.id,
    type_checks[1], lighter.row_key_sql('new', source.key_columns, forms),
    type_checks[2], lighter.row_key_sql('n', source.key_columns, forms),
    array_to_string(source.key_columns, ', '), array_to_string(source.key_types, ', '),
    -- What is to wait for others wakes nobody.
    case when not lighter.waits_for_others(source) then $wake$
      if clock_timestamp() < to_timestamp(pg_sequence_last_value('lighter.notify_until'::regclass) / 1000::double precision) then
        perform lighter.wake_daemon();
      end if;$wake$ end));
  execute format('revoke all on function %s() from public', function_name);
  execute format('comment on function %s() is %L', function_name,
    format('Enqueues rows of %s for offload; made by lighter.attach.', source.relation));
  perform lighter.own_function(format('%s()', function_name)::regprocedure);
end
$build$;
comment on function lighter.build_enqueue(lighter.sources) is 'Creates or replaces the function that queues the rows of a source; locks nothing.';
revoke all on function lighter.build_enqueue(lighter.sources) from public;

-- Creates (again) the functions and the trigger of one source.
create or replace function lighter.build_trigger(source lighter.sources) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  former regprocedure;
begin
  source := lighter.with_current_names(source);
  -- lighter.missing_parts tells of it; nothing can be watched.
  if source.json_column is null or source.key_columns is null then
    return;
  end if;
  perform lighter.build_heavy(source);
  perform lighter.build_enqueue(source);
  if source.trigger then
    execute format('create or replace trigger %I after insert or update %s on %s for each row when (lighter.%I(new.%I)) execute function %s()',
      format('lighter_enqueue_%s', source.id),
      -- What a BEFORE trigger does to a column does not count as an update of that column.
      -- Not of the key's columns: Postgres would refuse to change their type then. It does so of those that when_sql
      -- reads; the condition itself is the daemon's to ask.
      case when not lighter.has_before_trigger(source.relation)
           then (select 'of ' || string_agg(quote_ident(c), ', ' order by c)
                   from (select source.json_column as c union select unnest(source.when_columns)) x where c is not null) end,
      source.relation, format('heavy_%s', source.id), source.json_column, format('lighter.enqueue_%s', source.id));
  -- Only the table's owner may drop a trigger, so not for nothing.
  elsif exists (select from pg_trigger where tgrelid = source.relation and tgname = format('lighter_enqueue_%s', source.id)) then
    execute format('drop trigger %I on %s', format('lighter_enqueue_%s', source.id), source.relation);
  end if;
  -- Of a column that had another type before.
  for former in
    select p.oid::regprocedure from pg_proc p
     where p.pronamespace = 'lighter'::regnamespace and p.proname = format('heavy_%s', source.id)
       and p.oid <> format('lighter.heavy_%s(%s)', source.id, source.column_type)::regprocedure
  loop
    execute format('drop function %s', former);
  end loop;
  perform lighter.build_clear(source);
end
$$;
comment on function lighter.build_trigger(lighter.sources) is 'Creates or replaces the trigger of a source and its functions; takes a SHARE ROW EXCLUSIVE lock on its table.';
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
    perform lighter.build_heavy(source);
    rebuilt := rebuilt + 1;
  end loop;
  return rebuilt;
end
$$;
comment on function lighter.set_threshold(integer, integer) is
  'Sets the default phase 2 threshold in bytes, also for the triggers of sources that follow it; returns how many do. Locks none of their tables. Fails with lock_not_available, having changed nothing, when an attach or detach takes longer than lock_timeout_ms.';
revoke all on function lighter.set_threshold(integer, integer) from public;

create or replace function lighter.set_defaults(
  settle_for interval default null,
  max_wait interval default null,
  ship_alone_bytes integer default null
) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  source lighter.sources;
  rebuilt integer := 0;
begin
  if settle_for not between interval '0' and interval '30 days' or max_wait not between interval '0' and interval '90 days'
     or ship_alone_bytes < 1024 then
    raise exception 'settle_for must be between 0 and 30 days, max_wait between 0 and 90 days, ship_alone_bytes 1024 or more; got %, % and %',
        coalesce(settle_for::text, 'none'), coalesce(max_wait::text, 'none'), coalesce(ship_alone_bytes::text, 'none')
      using errcode = 'invalid_parameter_value';
  end if;
  perform lighter.lock_attachments();
  update lighter.settings s
     set settle_for = coalesce(set_defaults.settle_for, s.settle_for), max_wait = coalesce(set_defaults.max_wait, s.max_wait),
         ship_alone_bytes = coalesce(set_defaults.ship_alone_bytes, s.ship_alone_bytes);
  for source in
    select s.* from lighter.sources s join pg_class c on c.oid = s.relation
     where s.settle_for is null or s.max_wait is null order by s.id
  loop
    source := lighter.with_current_names(source);
    if source.json_column is not null and source.key_columns is not null then
      perform lighter.build_enqueue(source);
      rebuilt := rebuilt + 1;
    end if;
  end loop;
  perform lighter.wake_daemon();
  return rebuilt;
end
$$;
comment on function lighter.set_defaults(interval, interval, integer) is
  'Sets when rows leave, for all sources without settings of their own: settle_for after the last write, after max_wait at the latest where their tenant has enough, payloads of ship_alone_bytes at once. Null: as it is. With ''0'' for both intervals rows leave as soon as they are written. Returns how many sources follow. Locks none of their tables.';
revoke all on function lighter.set_defaults(interval, interval, integer) from public;

create or replace function lighter.set_pack_sizes(target_bytes integer, min_bytes integer) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if target_bytes is null or min_bytes is null or target_bytes < 0 or min_bytes < 0 then
    raise exception 'sizes of packs must be 0 or more, got % and %', target_bytes, min_bytes
      using errcode = 'invalid_parameter_value';
  end if;
  update lighter.settings s set pack_target_bytes = target_bytes, pack_min_bytes = min_bytes
   where (s.pack_target_bytes, s.pack_min_bytes) <> (target_bytes, min_bytes);
end
$$;
comment on function lighter.set_pack_sizes(integer, integer) is
  'Notes PACK_TARGET_BYTES and PACK_MIN_BYTES of a daemon that starts, so that lighter.waiting_groups tells when rows leave.';
revoke all on function lighter.set_pack_sizes(integer, integer) from public;
