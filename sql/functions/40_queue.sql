create or replace function lighter.wake_daemon() returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if pg_try_advisory_lock(lighter.awake_lock_key()) then
    perform pg_advisory_unlock(lighter.awake_lock_key());
    perform pg_notify('lighter_jobs', '{}');
  end if;
end
$$;
comment on function lighter.wake_daemon() is 'Notifies the daemons if all of them sleep.';
revoke all on function lighter.wake_daemon() from public;

create or replace function lighter.requeue(target regclass, row_ids text[], json_column name default 'metadata', priority smallint default 0)
returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  source_id integer := (select s.id from lighter.sources s where s.relation = target and s.json_column = requeue.json_column);
  queued bigint;
begin
  if source_id is null then
    raise exception '%.% is not attached', target, json_column using errcode = 'undefined_object';
  end if;
  insert into lighter.jobs (source_id, row_id, priority)
    select requeue.source_id, r, requeue.priority from unnest(row_ids) r where r is not null
    on conflict do nothing;
  get diagnostics queued = row_count;
  perform lighter.wake_daemon();
  return queued;
end
$$;
comment on function lighter.requeue(regclass, text[], name, smallint) is
  'Enqueues rows by primary key (as text); returns how many were not queued already. A row with nothing to offload costs one look.';
revoke all on function lighter.requeue(regclass, text[], name, smallint) from public;

create or replace function lighter.retry(target regclass default null, row_id text default null) returns bigint
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  moved bigint;
begin
  with taken as (
    delete from lighter.failed_jobs f
     using lighter.sources s
     where s.id = f.source_id
       and (target is null or s.relation = target)
       and (retry.row_id is null or f.row_id = retry.row_id)
    returning f.source_id, f.row_id, f.enqueued_at, f.last_error
  )
  insert into lighter.jobs (source_id, row_id, enqueued_at, last_error)
    select t.source_id, t.row_id, t.enqueued_at, t.last_error from taken t
    on conflict do nothing;
  get diagnostics moved = row_count;
  perform lighter.wake_daemon();
  return moved;
end
$$;
comment on function lighter.retry(regclass, text) is
  'Brings dead letters back into the queue with their attempts forgotten: all, those of a table, or of one row. Returns how many.';
revoke all on function lighter.retry(regclass, text) from public;
