-- What every event must hydrate to: rows of a table that is partitioned by time, with a key of three types, tenants that
-- are texts, a column of mode document and one of mode stub. As in model.sql, each function writes the table and the model
-- in one transaction. Partitions are in the model, too: a row of a detached one is read and written there.
create table public.events (
  tenant text not null,
  id bigint not null,
  created_at timestamptz not null,
  note text,
  metadata jsonb,
  detail jsonb,
  primary key (tenant, id, created_at)
) partition by range (created_at);
grant all on public.events to public;

create table torture.partitions (
  name text primary key,
  starts timestamptz not null unique,
  attached boolean not null default true
);

create table torture.event_rows (
  row_id uuid primary key,
  tenant text not null,
  id bigint not null,
  created_at timestamptz not null,
  row_key text not null,
  version integer not null default 1,
  metadata jsonb,
  -- As torture.expected.exact, of metadata.
  exact boolean not null default true,
  detail jsonb,
  -- Nothing has queued it under its key: it may be inline until a backfill.
  unqueued boolean not null default false
);
create index event_rows_key on torture.event_rows (row_key);
create index event_rows_time on torture.event_rows (created_at);

-- The text of the key, made without a function of the product.
create function torture.event_key(tenant text, id bigint, at timestamptz) returns text
language sql
return array_to_json(array[tenant, id::text, (to_jsonb(at at time zone 'UTC') #>> '{}') || '+00:00'])::text;

-- Of a table that is no message: into the history.
create function torture.note_row(id uuid, version integer, operation text, bytes bigint) returns void
language sql
begin atomic
  insert into torture.history (row_id, version, operation, bytes)
  values (note_row.id, note_row.version, note_row.operation, note_row.bytes);
end;

create function torture.note_event(id uuid, operation text) returns void
language sql
begin atomic
  select torture.note_row(e.row_id, e.version, operation, coalesce(octet_length(e.metadata::text), 0) + coalesce(octet_length(e.detail::text), 0))
    from torture.event_rows e where e.row_id = note_event.id;
end;

-- The partition stays as it is until the transaction ends. No row: there is none any more.
create function torture.hold_partition(at timestamptz) returns setof torture.partitions
language sql
begin atomic
  select p.* from torture.partitions p where p.starts = date_trunc('day', hold_partition.at, 'UTC') for share;
end;

-- A time in one of the attached partitions. Null: there is none, or the one that was chosen has just gone.
create function torture.time_in_partition(place double precision, share double precision) returns timestamptz
language plpgsql as $$
declare
  chosen timestamptz;
  held torture.partitions;
begin
  select p.starts into chosen from torture.partitions p where p.attached order by p.starts
  offset floor(place * (select count(*) from torture.partitions c where c.attached)) limit 1;
  select * into held from torture.hold_partition(chosen);
  return case when held.attached then held.starts + share * interval '23 hours' end;
end
$$;

-- Where a row of that time is written: the table, or its detached partition. Null: nowhere.
create function torture.table_of_event(at timestamptz) returns text
language sql
return (select case when p.attached then 'public.events' else 'public.' || p.name end from torture.hold_partition(at) p);

create function torture.insert_event(id uuid, tenant text, number bigint, place double precision, share double precision, metadata jsonb, detail jsonb) returns boolean
language plpgsql as $$
declare
  at timestamptz := torture.time_in_partition(place, share);
begin
  if at is null then return false; end if;
  insert into torture.event_rows (row_id, tenant, id, created_at, row_key, metadata, detail)
  values (insert_event.id, insert_event.tenant, number, at, torture.event_key(insert_event.tenant, number, at), insert_event.metadata, insert_event.detail);
  insert into public.events (tenant, id, created_at, metadata, detail)
  values (insert_event.tenant, number, at, insert_event.metadata, insert_event.detail);
  perform torture.note_event(id, 'insert');
  return true;
end
$$;

-- Runs an assignment on the row, wherever it is. $1 and $2 are the values.
create function torture.update_event(row_id uuid, assignment text, a jsonb, b jsonb, operation text) returns boolean
language plpgsql as $$
declare
  e torture.event_rows;
  relation text;
  changed bigint;
begin
  select * into e from torture.event_rows x where x.row_id = update_event.row_id for update;
  if e.row_id is null then return false; end if;
  relation := torture.table_of_event(e.created_at);
  if relation is null then return false; end if;
  execute format('update %s m set %s where m.tenant = $3 and m.id = $4 and m.created_at = $5', relation, assignment)
    using a, b, e.tenant, e.id, e.created_at;
  get diagnostics changed = row_count;
  perform torture.require_found(changed = 1, row_id);
  -- A write queues the columns that it writes.
  update torture.event_rows x
     set version = x.version + 1,
         unqueued = relation <> 'public.events' or x.unqueued and assignment not like 'metadata = %, detail = %'
   where x.row_id = update_event.row_id;
  perform torture.note_event(row_id, operation);
  return true;
end
$$;

create function torture.replace_event(row_id uuid, metadata jsonb, detail jsonb) returns boolean
language plpgsql as $$
begin
  update torture.event_rows e set metadata = replace_event.metadata, detail = replace_event.detail, exact = true where e.row_id = replace_event.row_id;
  return torture.update_event(row_id, 'metadata = $1, detail = $2', metadata, detail, 'replace');
end
$$;

create function torture.replace_metadata(row_id uuid, metadata jsonb) returns boolean
language plpgsql as $$
begin
  update torture.event_rows e set metadata = replace_metadata.metadata, exact = true where e.row_id = replace_metadata.row_id;
  return torture.update_event(row_id, 'metadata = $1', metadata, null, 'replace metadata');
end
$$;

create function torture.replace_detail(row_id uuid, detail jsonb) returns boolean
language plpgsql as $$
begin
  update torture.event_rows e set detail = replace_detail.detail where e.row_id = replace_detail.row_id;
  return torture.update_event(row_id, 'detail = $1', detail, null, 'replace detail');
end
$$;

create function torture.patch_event(row_id uuid, patch jsonb) returns boolean
language plpgsql as $$
begin
  update torture.event_rows e set metadata = e.metadata || patch, exact = false
   where e.row_id = patch_event.row_id and jsonb_typeof(e.metadata) in ('object', 'array');
  if not found then return false; end if;
  return torture.update_event(row_id, 'metadata = m.metadata || $1', patch, null, 'patch');
end
$$;

create function torture.write_back_event(row_id uuid, metadata jsonb, detail jsonb) returns boolean
language plpgsql as $$
begin
  update torture.event_rows e set exact = false where e.row_id = write_back_event.row_id;
  return torture.update_event(row_id, 'metadata = $1, detail = $2', metadata, detail, 'write back');
end
$$;

-- A save that has nothing of what is offloaded in it.
create function torture.touch_event(row_id uuid) returns boolean
language sql
return torture.update_event(row_id, 'note = md5(random()::text)', null, null, 'touch');

-- Gives it another time, mostly of another partition: it becomes a row of another key.
create function torture.move_event(row_id uuid, place double precision, share double precision) returns boolean
language plpgsql as $$
declare
  e torture.event_rows;
  at timestamptz;
begin
  select * into e from torture.event_rows x where x.row_id = move_event.row_id for update;
  if e.row_id is null or torture.table_of_event(e.created_at) is distinct from 'public.events' then return false; end if;
  at := torture.time_in_partition(place, share);
  if at is null then return false; end if;
  update public.events m set created_at = at where m.tenant = e.tenant and m.id = e.id and m.created_at = e.created_at;
  perform torture.require_found(found, row_id);
  update torture.event_rows x
     set created_at = at, row_key = torture.event_key(e.tenant, e.id, at), version = x.version + 1,
         -- What stays in its partition is an update of its key alone, which queues nothing.
         unqueued = x.unqueued or date_trunc('day', at, 'UTC') = date_trunc('day', e.created_at, 'UTC')
   where x.row_id = move_event.row_id;
  perform torture.note_event(row_id, 'move to ' || at);
  return true;
end
$$;

-- With its pointers, under another key of the same tenant.
create function torture.copy_event(source uuid, id uuid, number bigint, place double precision, share double precision) returns boolean
language plpgsql as $$
declare
  e torture.event_rows;
  relation text;
  at timestamptz;
  copied bigint;
begin
  select * into e from torture.event_rows x where x.row_id = source for update;
  relation := torture.table_of_event(e.created_at);
  at := torture.time_in_partition(place, share);
  if e.row_id is null or relation is null or at is null then return false; end if;
  insert into torture.event_rows (row_id, tenant, id, created_at, row_key, metadata, exact, detail)
  values (copy_event.id, e.tenant, number, at, torture.event_key(e.tenant, number, at), e.metadata, false, e.detail);
  execute format(
    'insert into public.events (tenant, id, created_at, metadata, detail) select m.tenant, $1, $2, m.metadata, m.detail from %s m where m.tenant = $3 and m.id = $4 and m.created_at = $5',
    relation) using number, at, e.tenant, e.id, e.created_at;
  get diagnostics copied = row_count;
  perform torture.require_found(copied = 1, source);
  perform torture.note_event(id, 'copy of ' || source);
  return true;
end
$$;

create function torture.delete_event(row_id uuid) returns boolean
language plpgsql as $$
declare
  e torture.event_rows;
  relation text;
  deleted bigint;
begin
  perform torture.note_event(row_id, 'delete');
  delete from torture.event_rows x where x.row_id = delete_event.row_id returning * into e;
  if e.row_id is null then return false; end if;
  relation := torture.table_of_event(e.created_at);
  execute format('delete from %s m where m.tenant = $1 and m.id = $2 and m.created_at = $3', relation)
    using e.tenant, e.id, e.created_at;
  get diagnostics deleted = row_count;
  perform torture.require_found(deleted = 1, row_id);
  return true;
end
$$;

-- What stands in the row now, wherever it is; no row: it is nowhere.
create function torture.raw_event(at timestamptz, tenant text, id bigint) returns table (metadata text, detail text)
language plpgsql as $$
declare
  relation text := torture.table_of_event(at);
begin
  if relation is null then return; end if;
  return query execute format(
    'select m.metadata::text, m.detail::text from %s m where m.created_at = $1 and m.tenant = $2 and m.id = $3',
    relation) using at, tenant, id;
end
$$;

create function torture.add_partition(day date) returns boolean
language plpgsql as $$
declare
  name text := 'events_' || to_char(day, 'YYYYMMDD');
begin
  insert into torture.partitions values (name, day::timestamp at time zone 'UTC');
  execute format('create table public.%I partition of public.events for values from (%L) to (%L)', name, day || ' 00:00+00', day + 1 || ' 00:00+00');
  -- Its rows are written to while it is detached.
  execute format('grant all on public.%I to public', name);
  return true;
end
$$;

create function torture.detach_partition(part text) returns boolean
language plpgsql as $$
begin
  update torture.partitions p set attached = false where p.name = part and p.attached;
  if not found then return false; end if;
  execute format('alter table public.events detach partition public.%I', part);
  -- Their entries in the queue may end meanwhile, as those of deleted rows do.
  update torture.event_rows e set unqueued = true from torture.partitions p
   where p.name = part and e.created_at >= p.starts and e.created_at < p.starts + interval '24 hours';
  return true;
end
$$;

create function torture.attach_partition(part text) returns boolean
language plpgsql as $$
declare
  p torture.partitions;
begin
  update torture.partitions x set attached = true where x.name = part and not x.attached returning * into p;
  if p.name is null then return false; end if;
  execute format('alter table public.events attach partition public.%I for values from (%L) to (%L)', part, p.starts, p.starts + interval '24 hours');
  return true;
end
$$;

create function torture.drop_partition(part text) returns boolean
language plpgsql as $$
declare
  p torture.partitions;
begin
  select * into p from torture.partitions x where x.name = part for update;
  if p.name is null then return false; end if;
  -- The table first: whoever is writing into it has written into the model, too.
  execute format('drop table public.%I', part);
  perform torture.note_event(e.row_id, 'drop of its partition') from torture.event_rows e
    where e.created_at >= p.starts and e.created_at < p.starts + interval '24 hours';
  delete from torture.event_rows e where e.created_at >= p.starts and e.created_at < p.starts + interval '24 hours';
  delete from torture.partitions x where x.name = part;
  return true;
end
$$;

select torture.add_partition(date '2026-01-01' + n) from generate_series(0, 4) n;
select lighter.attach('public.events', 'metadata', tenant_column => 'tenant');
select lighter.attach('public.events', 'detail', tenant_column => 'tenant', mode => 'stub');

grant all on torture.partitions, torture.event_rows to public;
