create or replace function lighter.requeue(target regclass, row_ids text[], json_column name default 'metadata') returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  source lighter.sources;
  keys text[];
  queued bigint;
begin
  select s.* into source from lighter.sources s where s.relation = target and (lighter.with_current_names(s)).json_column = requeue.json_column;
  if source.id is null then
    raise exception '%.% is not attached', target, json_column
      using errcode = 'undefined_object', hint = 'See select relation, json_column from lighter.sources;';
  end if;
  -- As the trigger writes them: a claim compares keys as text, and one that is no key would fail its whole batch.
  keys := array(select distinct lighter.canonical_key(source.id, k) from unnest(row_ids) k where k is not null);
  insert into lighter.inbox (source_id, row_id)
    select source.id, k from unnest(keys) k where octet_length(k) <= lighter.longest_key();
  get diagnostics queued = row_count;
  perform lighter.wake_daemon();
  return queued;
end
$$;
comment on function lighter.requeue(regclass, text[], name) is
  'Enqueues rows by primary key (as text), as a write to them would; returns how many. A row with nothing to offload costs one look.';
revoke all on function lighter.requeue(regclass, text[], name) from public;

create or replace function lighter.retry(target regclass default null, row_id text default null) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  moved bigint;
begin
  if target is not null and not exists (select from lighter.sources s where s.relation = target) then
    raise exception '% is not attached', target
      using errcode = 'undefined_object', hint = 'See select relation, json_column from lighter.sources;';
  end if;
  with taken as (
    delete from lighter.failed_jobs f
     using lighter.sources s
     where s.id = f.source_id
       and (target is null or s.relation = target)
       and (retry.row_id is null or f.row_id = retry.row_id)
    returning f.source_id, f.row_id, f.enqueued_at, f.last_error
  )
  insert into lighter.waiting (source_id, row_id, enqueued_at, last_error)
    select t.source_id, t.row_id, t.enqueued_at, t.last_error from taken t order by t.source_id, t.row_id collate "C"
    on conflict on constraint waiting_pkey do update
      set available_at = least(waiting.available_at, excluded.available_at), attempts = 0, priority = 0;
  get diagnostics moved = row_count;
  perform lighter.wake_daemon();
  return moved;
end
$$;
comment on function lighter.retry(regclass, text) is
  'Brings dead letters back into the queue with their attempts forgotten: all, those of a table, or of one row. Returns how many.';
revoke all on function lighter.retry(regclass, text) from public;

create or replace function lighter.flush(target regclass default null, tenant uuid default null) returns timestamptz
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  asked constant timestamptz := clock_timestamp();
begin
  if target is not null and not exists (select from lighter.sources s where s.relation = target) then
    raise exception '% is not attached', target
      using errcode = 'undefined_object', hint = 'See select relation, json_column from lighter.sources;';
  end if;
  insert into lighter.flushes as f (source_id, tenant_id, flushed_at)
    select s.id, tenant, asked from lighter.sources s where target is null or s.relation = target order by s.id
    on conflict (source_id, tenant_id) do update set flushed_at = greatest(f.flushed_at, excluded.flushed_at);
  perform lighter.wake_daemon();
  return asked;
end
$$;
comment on function lighter.flush(regclass, uuid) is
  'Lets all rows that wait now leave without waiting on: those of all tables, or of one, and of all tenants, or of one. Returns the moment: rows that are queued later wait as ever. Pins and paused sources stay. A running daemon does the work; see lighter.jobs.';
revoke all on function lighter.flush(regclass, uuid) from public;

-- A queue that was long once keeps the files of its indexes for ever: VACUUM frees their pages for the next entries, and
-- gives none back. So what is empty is truncated. Nobody waits for that: the lock is taken only where nobody has one, which
-- is to say that no entry is uncommitted, and held for as long as making new files takes.
--
-- A transaction with an older snapshot sees an empty table then, also of what was in it by that snapshot. pg_dump locks
-- its tables first, and is thereby not one of them.
create or replace function lighter.give_back_space(target regclass, at_least bigint default 262144) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  before constant bigint := pg_total_relation_size(target);
  is_empty boolean;
begin
  if target::oid <> all (array['lighter.inbox', 'lighter.waiting', 'lighter.leases', 'lighter.storage_changes', 'lighter.latency_changes']::regclass[]) then
    raise exception '% is not a table that is filled and emptied again', target
      using errcode = 'invalid_parameter_value', hint = 'One of lighter.inbox, lighter.waiting, lighter.leases, lighter.storage_changes and lighter.latency_changes.';
  end if;
  if before < at_least then
    return 0;
  end if;
  begin
    execute format('lock table %s in access exclusive mode nowait', target);
  exception when lock_not_available then
    return 0;
  end;
  -- Rows that are hidden would be truncated too.
  perform lighter.require_all_rows('{}');
  execute format('select not exists (select from %s)', target) into is_empty;
  if is_empty then
    execute format('truncate %s', target);
  end if;
  return before - pg_total_relation_size(target);
end
$$;
comment on function lighter.give_back_space(regclass, bigint) is
  'Truncates a table of the queue, or a log of the reports, if it is empty, has at_least so many bytes of files, and nobody uses it just now; waits for nobody. Returns how many bytes that gave back. For the sweep rollup.';
revoke all on function lighter.give_back_space(regclass, bigint) from public;
