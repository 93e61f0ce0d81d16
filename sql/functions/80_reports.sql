-- What every writer of artifacts and lighter.objects does for the reports: it appends what it has changed to
-- lighter.storage_changes. By triggers, since the application, the API's functions and an operator write there too.
-- As our owner, since none of them has rights on that table. Nothing here may fail a write, nor wait: an adopted
-- table may hold nulls where ours has none, and any number as a size. A size counts as 0 at least and 8 TiB at most,
-- which no object has, also in lighter.storage_recount: what is added for a row is taken off for it again. A sum that
-- is too large all the same is the largest there is.
create or replace function lighter.account_artifacts() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  most constant bigint := 8796093022208;
  top constant numeric := 9223372036854775807;
begin
  -- Before anything that reads the rows: types that another owner gave the columns would run code of theirs as us.
  if lighter.is_trusted((select c.relowner from pg_class c where c.oid = tg_relid)) is not true then
    raise warning 'pg-lighter: % belongs to a role that is not trusted; the reports do not count what is written there', tg_relid::regclass
      using hint = 'lighter migrate says what to do.';
    return null;
  end if;
  if tg_op = 'INSERT' then
    insert into lighter.storage_changes (tenant_id, kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes)
    select coalesce(a.tenant_id, '00000000-0000-0000-0000-000000000000'), coalesce(a.kind, ''),
           coalesce((a.created_at at time zone 'UTC')::date, '-infinity'),
           count(*) filter (where a.deleted_at is null),
           least(greatest(coalesce(sum(a.bytes) filter (where a.deleted_at is null), 0), -top), top),
           nullif(count(*) filter (where a.deleted_at is not null), 0),
           nullif(least(greatest(coalesce(sum(a.bytes) filter (where a.deleted_at is not null), 0), -top), top), 0)
      from (select n.tenant_id, n.kind, n.created_at, n.deleted_at, n.purged_at,
                   least(greatest(coalesce(n.size_bytes, 0), 0), most) as bytes
              from added n) a
     where a.deleted_at is null or a.purged_at is null
     group by 1, 2, 3;
  elsif tg_op = 'UPDATE' then
    -- Most updates, such as a move by the compaction, change nothing of this.
    insert into lighter.storage_changes (tenant_id, kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes)
    select s.tenant_id, s.kind, s.day, s.artifacts, least(greatest(s.bytes, -top), top), s.deleted_artifacts,
           least(greatest(s.deleted_bytes, -top), top)
      from (select coalesce(a.tenant_id, '00000000-0000-0000-0000-000000000000') as tenant_id, coalesce(a.kind, '') as kind,
                   coalesce((a.created_at at time zone 'UTC')::date, '-infinity') as day,
                   coalesce(sum(a.sign) filter (where a.deleted_at is null), 0) as artifacts,
                   coalesce(sum(a.sign * a.bytes) filter (where a.deleted_at is null), 0) as bytes,
                   coalesce(sum(a.sign) filter (where a.deleted_at is not null), 0) as deleted_artifacts,
                   coalesce(sum(a.sign * a.bytes) filter (where a.deleted_at is not null), 0) as deleted_bytes
              from (select 1 as sign, n.tenant_id, n.kind, n.created_at, n.deleted_at, n.purged_at,
                           least(greatest(coalesce(n.size_bytes, 0), 0), most) as bytes
                      from added n
                    union all
                    select -1, r.tenant_id, r.kind, r.created_at, r.deleted_at, r.purged_at,
                           least(greatest(coalesce(r.size_bytes, 0), 0), most)
                      from removed r) a
             where a.deleted_at is null or a.purged_at is null
             group by 1, 2, 3) s
     where s.artifacts <> 0 or s.bytes <> 0 or s.deleted_artifacts <> 0 or s.deleted_bytes <> 0;
  elsif tg_op = 'DELETE' then
    insert into lighter.storage_changes (tenant_id, kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes)
    select coalesce(a.tenant_id, '00000000-0000-0000-0000-000000000000'), coalesce(a.kind, ''),
           coalesce((a.created_at at time zone 'UTC')::date, '-infinity'),
           -count(*) filter (where a.deleted_at is null),
           -least(greatest(coalesce(sum(a.bytes) filter (where a.deleted_at is null), 0), -top), top),
           -count(*) filter (where a.deleted_at is not null),
           -least(greatest(coalesce(sum(a.bytes) filter (where a.deleted_at is not null), 0), -top), top)
      from (select r.tenant_id, r.kind, r.created_at, r.deleted_at, r.purged_at,
                   least(greatest(coalesce(r.size_bytes, 0), 0), most) as bytes
              from removed r) a
     where a.deleted_at is null or a.purged_at is null
     group by 1, 2, 3;
  else  -- TRUNCATE: what is on account, less what the frames hold
    insert into lighter.storage_changes (tenant_id, kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes)
    select e.tenant_id, e.kind, e.day,
           -sum(e.artifacts), -least(greatest(coalesce(sum(e.payload_bytes), 0), -top), top),
           -sum(e.deleted_artifacts), -least(greatest(coalesce(sum(e.deleted_bytes), 0), -top), top)
      from (select d.tenant_id, d.kind, d.day, d.artifacts, d.payload_bytes, d.deleted_artifacts, d.deleted_bytes
              from lighter.storage_days d
            union all
            select c.tenant_id, c.kind, c.day, c.artifacts, c.payload_bytes, c.deleted_artifacts, c.deleted_bytes
              from lighter.storage_changes c
            union all
            select f.tenant_id, f.kind, (f.created_at at time zone 'UTC')::date, -f.artifacts, -f.payload_bytes, -f.deleted_artifacts,
                   -f.deleted_bytes
              from lighter.frames f) e
     group by 1, 2, 3;
  end if;
  return null;
end
$$;
comment on function lighter.account_artifacts() is 'Trigger of lighter.loose_artifacts: appends to lighter.storage_changes what the statement has changed.';
revoke all on function lighter.account_artifacts() from public;

-- A frame has the sums of its artifacts, kept here whoever writes: from its arrays and from lighter.frame_exceptions.
-- Without a search_path, so that it becomes a part of the statement that calls it.
create or replace function lighter.frame_sums(
  of_tenant uuid, frame uuid, sizes integer[], voids smallint[],
  out artifacts bigint, out payload_bytes bigint, out deleted_artifacts bigint, out deleted_bytes bigint
) returns setof record
language sql stable
begin atomic
  select every.n - coalesce(dead.n, 0), every.bytes - coalesce(dead.bytes, 0), coalesce(dead.kept, 0), coalesce(dead.kept_bytes, 0)
    from (select count(*) as n, coalesce(sum(p.size), 0)::bigint as bytes
            from unnest(sizes) with ordinality p(size, place)
           where voids = '{}' or (p.place - 1)::smallint <> all (voids)) every
   cross join (select count(*) as n, sum(sizes[o + 1])::bigint as bytes,
                      count(*) filter (where x.purged_at is null) as kept, (sum(sizes[o + 1]) filter (where x.purged_at is null))::bigint as kept_bytes
                 from lighter.frame_exceptions x cross join lateral unnest(x.ordinals) o
                where x.tenant_id = of_tenant and x.frame_id = frame and x.deleted_at is not null and o <> all (voids)) dead;
end;
comment on function lighter.frame_sums(uuid, uuid, integer[], smallint[]) is
  'Of a frame: its live artifacts, and those with a tombstone whose grace period is not over, with the bytes of either.';
revoke all on function lighter.frame_sums(uuid, uuid, integer[], smallint[]) from public;

create or replace function lighter.count_frame() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  select s.* into new.artifacts, new.payload_bytes, new.deleted_artifacts, new.deleted_bytes
    from lighter.frame_sums(new.tenant_id, new.id, new.sizes, new.voids) s;
  return new;
end
$$;
comment on function lighter.count_frame() is 'Trigger of lighter.frames: the sums of its artifacts.';
revoke all on function lighter.count_frame() from public;

-- The frames are locked first, in one order, and counted in a second statement: that one sees what was committed by
-- whoever held a lock. What only was released, or is damaged, changes no sum.
create or replace function lighter.recount_frames() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  tenants uuid[];
  ids uuid[];
begin
  if tg_op = 'INSERT' then
    select array_agg(c.tenant_id), array_agg(c.frame_id) into tenants, ids
      from (select distinct a.tenant_id, a.frame_id from added a where a.deleted_at is not null) c;
  elsif tg_op = 'DELETE' then
    select array_agg(c.tenant_id), array_agg(c.frame_id) into tenants, ids
      from (select distinct r.tenant_id, r.frame_id from removed r where r.deleted_at is not null) c;
  else
    select array_agg(c.tenant_id), array_agg(c.frame_id) into tenants, ids
      from (select distinct s.tenant_id, s.frame_id
              from (select a.tenant_id, a.frame_id, a.ordinals, a.purged_at is null as is_kept from added a where a.deleted_at is not null
                    union all
                    select r.tenant_id, r.frame_id, r.ordinals, r.purged_at is null from removed r where r.deleted_at is not null) s
             group by s.tenant_id, s.frame_id, s.ordinals, s.is_kept
            having count(*) % 2 = 1) c;
  end if;
  if tenants is null then
    return null;
  end if;
  perform from lighter.frames f join unnest(tenants, ids) c(tenant_id, id) using (tenant_id, id)
    order by f.tenant_id, f.id for no key update of f;
  update lighter.frames f
     set artifacts = s.artifacts, payload_bytes = s.payload_bytes, deleted_artifacts = s.deleted_artifacts, deleted_bytes = s.deleted_bytes
    from unnest(tenants, ids) c(tenant_id, id)
    join lighter.frames g on g.tenant_id = c.tenant_id and g.id = c.id
   cross join lateral lighter.frame_sums(g.tenant_id, g.id, g.sizes, g.voids) s
   where f.tenant_id = c.tenant_id and f.id = c.id;
  return null;
end
$$;
comment on function lighter.recount_frames() is 'Trigger of lighter.frame_exceptions: brings the sums of their frames up to date.';
revoke all on function lighter.recount_frames() from public;

create or replace function lighter.account_frames() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op = 'INSERT' then
    insert into lighter.storage_changes (tenant_id, kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes)
    select f.tenant_id, f.kind, (f.created_at at time zone 'UTC')::date, sum(f.artifacts), sum(f.payload_bytes),
           nullif(sum(f.deleted_artifacts), 0), nullif(sum(f.deleted_bytes), 0)
      from added f group by 1, 2, 3;
  elsif tg_op = 'UPDATE' then
    insert into lighter.storage_changes (tenant_id, kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes)
    select * from (
      select f.tenant_id, f.kind, (f.created_at at time zone 'UTC')::date, sum(f.sign * f.artifacts) as artifacts,
             sum(f.sign * f.payload_bytes) as bytes, sum(f.sign * f.deleted_artifacts) as deleted_artifacts,
             sum(f.sign * f.deleted_bytes) as deleted_bytes
        from (select 1 as sign, a.* from added a union all select -1, r.* from removed r) f
       group by 1, 2, 3) s
     where s.artifacts <> 0 or s.bytes <> 0 or s.deleted_artifacts <> 0 or s.deleted_bytes <> 0;
  elsif tg_op = 'DELETE' then
    insert into lighter.storage_changes (tenant_id, kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes)
    select f.tenant_id, f.kind, (f.created_at at time zone 'UTC')::date, -sum(f.artifacts), -sum(f.payload_bytes),
           -sum(f.deleted_artifacts), -sum(f.deleted_bytes)
      from removed f group by 1, 2, 3;
  else  -- TRUNCATE: what is on account, less what is loose
    insert into lighter.storage_changes (tenant_id, kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes)
    select e.tenant_id, e.kind, e.day, -sum(e.artifacts), -sum(e.payload_bytes), -sum(e.deleted_artifacts), -sum(e.deleted_bytes)
      from (select x.tenant_id, x.kind, x.day, x.artifacts, x.payload_bytes, x.deleted_artifacts, x.deleted_bytes
              from lighter.storage_entries x
            union all
            select r.tenant_id, r.kind, r.day, -r.artifacts, -r.payload_bytes, -r.deleted_artifacts, -r.deleted_bytes
              from lighter.storage_recount r) e
     group by 1, 2, 3;
  end if;
  return null;
end
$$;
comment on function lighter.account_frames() is 'Trigger of lighter.frames: appends to lighter.storage_changes what the statement has changed.';
revoke all on function lighter.account_frames() from public;

-- By row, since few rows change state in one statement, and the triggers' conditions skip all others for next to nothing.
create or replace function lighter.account_objects() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  most constant bigint := 8796093022208;
begin
  if tg_op <> 'INSERT' and old.state = 'stored' then
    insert into lighter.storage_changes (tenant_id, kind, day, objects, object_bytes, packs, written_artifacts, written_bytes,
        live_artifacts, live_bytes)
    values (old.tenant_id, old.kind, (coalesce(old.stored_at, old.created_at) at time zone 'UTC')::date,
            -1, -least(greatest(coalesce(old.byte_length, 0), 0), most), -(old.artifact_count > 1)::int, -old.artifact_count,
            -least(greatest(coalesce(old.payload_bytes, 0), 0), most), -coalesce(old.live_artifacts, old.artifact_count)::bigint,
            case when old.payload_bytes is null then 0
                 else -least(greatest(coalesce(old.live_bytes, old.payload_bytes), 0), most) end);
  end if;
  if tg_op <> 'DELETE' and new.state = 'stored' then
    insert into lighter.storage_changes (tenant_id, kind, day, objects, object_bytes, packs, written_artifacts, written_bytes,
        live_artifacts, live_bytes, class_a)
    values (new.tenant_id, new.kind, (coalesce(new.stored_at, new.created_at) at time zone 'UTC')::date,
            1, least(greatest(coalesce(new.byte_length, 0), 0), most), (new.artifact_count > 1)::int, new.artifact_count,
            least(greatest(coalesce(new.payload_bytes, 0), 0), most), coalesce(new.live_artifacts, new.artifact_count),
            case when new.payload_bytes is null then 0
                 else least(greatest(coalesce(new.live_bytes, new.payload_bytes), 0), most) end,
            -- Only what we have just written. Of an upload in parts, those of the default size, and two more.
            case when tg_op <> 'UPDATE' or old.state <> 'uploading' then null
                 when old.upload_id is null then 1
                 else ceil(least(greatest(coalesce(new.byte_length, 0), 0), most) / 5242880.0) + 2 end);
  end if;
  return null;
end
$$;
comment on function lighter.account_objects() is 'Trigger of lighter.objects: appends to lighter.storage_changes what has changed.';
revoke all on function lighter.account_objects() from public;

-- Only where they are missing: making a trigger locks its table.
do $$
begin
  if not exists (select from pg_trigger where tgrelid = 'lighter.loose_artifacts'::regclass and tgname = 'lighter_account_insert') then
    create trigger lighter_account_insert after insert on lighter.loose_artifacts
      referencing new table as added for each statement execute function lighter.account_artifacts();
    create trigger lighter_account_update after update on lighter.loose_artifacts
      referencing old table as removed new table as added for each statement execute function lighter.account_artifacts();
    create trigger lighter_account_delete after delete on lighter.loose_artifacts
      referencing old table as removed for each statement execute function lighter.account_artifacts();
    create trigger lighter_account_truncate after truncate on lighter.loose_artifacts
      for each statement execute function lighter.account_artifacts();
  end if;
  if not exists (select from pg_trigger where tgrelid = 'lighter.frames'::regclass and tgname = 'lighter_account_insert') then
    create trigger lighter_count before insert or update of tenant_id, id, sizes, voids on lighter.frames
      for each row execute function lighter.count_frame();
    create trigger lighter_account_insert after insert on lighter.frames
      referencing new table as added for each statement execute function lighter.account_frames();
    create trigger lighter_account_update after update on lighter.frames
      referencing old table as removed new table as added for each statement execute function lighter.account_frames();
    create trigger lighter_account_delete after delete on lighter.frames
      referencing old table as removed for each statement execute function lighter.account_frames();
    create trigger lighter_account_truncate after truncate on lighter.frames
      for each statement execute function lighter.account_frames();
    create trigger lighter_recount_insert after insert on lighter.frame_exceptions
      referencing new table as added for each statement execute function lighter.recount_frames();
    create trigger lighter_recount_update after update on lighter.frame_exceptions
      referencing old table as removed new table as added for each statement execute function lighter.recount_frames();
    create trigger lighter_recount_delete after delete on lighter.frame_exceptions
      referencing old table as removed for each statement execute function lighter.recount_frames();
  end if;
  if not exists (select from pg_trigger where tgrelid = 'lighter.objects'::regclass and tgname = 'lighter_account_insert') then
    create trigger lighter_account_insert after insert on lighter.objects
      for each row when (new.state = 'stored') execute function lighter.account_objects();
    -- (Column by column: a dump writes rows that are compared in another way, and doctor would see a difference.)
    create trigger lighter_account_update after update on lighter.objects
      for each row when (
        old.state <> new.state and (old.state = 'stored' or new.state = 'stored')
        or new.state = 'stored'
           and (old.tenant_id is distinct from new.tenant_id
             or old.kind is distinct from new.kind
             or old.byte_length is distinct from new.byte_length
             or old.artifact_count is distinct from new.artifact_count
             or old.payload_bytes is distinct from new.payload_bytes
             or old.live_artifacts is distinct from new.live_artifacts
             or old.live_bytes is distinct from new.live_bytes
             or old.stored_at is distinct from new.stored_at))
      execute function lighter.account_objects();
    create trigger lighter_account_delete after delete on lighter.objects
      for each row when (old.state = 'stored') execute function lighter.account_objects();
  end if;
end
$$;

-- How large the attached tables and ours are, and what a rewrite would give back of that, by what VACUUM and ANALYZE have
-- left in the catalogue. As our owner: pg_stats shows widths of columns only to who may read the columns, and whoever
-- reads the reports may not. It tells nothing but sizes. Each guess errs towards less free space:
-- - pages that were added since the last VACUUM or ANALYZE count as full;
-- - of TOAST the catalogue knows the number of chunks, not their lengths: four fill a page, none is longer;
-- - indexes count as they are.
-- The size of a table waits for whoever locks it, which VACUUM FULL does for hours: one that is locked is not known.
create or replace function lighter.table_sizes()
returns table (relation oid, ours boolean, sources integer[], bytes bigint, reusable_bytes_estimated bigint, rewritten_bytes_estimated bigint,
               reason_not_known text, statistics_at timestamptz)
language sql stable security definer
set search_path = pg_catalog, pg_temp
begin atomic
  with recursive locked as materialized (
    select l.relation from pg_locks l
     where l.locktype = 'relation' and l.mode = 'AccessExclusiveLock' and l.pid is distinct from pg_backend_pid()
       and l.database = (select d.oid from pg_database d where d.datname = current_database())
  ),
  -- Not by pg_partition_tree, which waits for the lock of each partition.
  members as (
    select s.id as source_id, s.relation::oid as oid from lighter.sources s
    union
    select m.source_id, i.inhrelid from members m join pg_inherits i on i.inhparent = m.oid
  ),
  attached as (
    select m.oid, array_agg(m.source_id order by m.source_id) as sources from members m group by m.oid
  ),
  tables as (
    select c.oid, c.relnamespace = 'lighter'::regnamespace as ours, a.sources, c.relpages, c.reltuples, c.reltoastrelid,
           coalesce((select o.option_value::numeric from pg_options_to_table(c.reloptions) o where o.option_name = 'fillfactor'), 100) as fillfactor
      from pg_class c
      left join attached a on a.oid = c.oid
     where c.relkind in ('r', 'm') and (c.relnamespace = 'lighter'::regnamespace or a.oid is not null)
  ),
  -- The size of each part; null: locked, or dropped this moment.
  parts as (
    select t.*, i.block_size, m.bytes, m.heap_bytes, coalesce(toast.bytes, 0) as toast_bytes,
           toast.relpages as toast_relpages, toast.reltuples as toast_reltuples,
           case when t.reltoastrelid <> 0 then t.reltoastrelid end as toast_oid
      from tables t
     cross join (select current_setting('block_size')::numeric as block_size) i
     cross join lateral (
       select case when t.ours or not exists (select from locked l where l.relation = t.oid) then pg_total_relation_size(t.oid) end as bytes,
              case when t.ours or not exists (select from locked l where l.relation = t.oid) then pg_relation_size(t.oid) end as heap_bytes) m
      left join lateral (
       select case when m.bytes is not null then pg_relation_size(x.oid) end as bytes, x.relpages, x.reltuples
         from pg_class x where x.oid = t.reltoastrelid) toast on true
  ),
  -- At once, by the index on names: pg_stats asks for the rights on each column that it looks at.
  columns as materialized (
    select s.schemaname, s.tablename, s.attname, s.avg_width, s.null_frac
      from pg_stats s
     where s.tablename = any (array(select c.relname from tables t join pg_class c on c.oid = t.oid)) and not s.inherited
  ),
  -- What a row takes in its page: line pointer, header, null bitmap, columns and what aligns them.
  widths as (
    select a.attrelid as oid,
           case when count(*) = count(coalesce(s.avg_width, nullif(a.attlen, -1)))
                then 4 + 8 * ceil((23 + ceil(c.relnatts / 8.0)
                                      + sum(coalesce(s.avg_width, a.attlen) * (1 - coalesce(s.null_frac, 0)::numeric)
                                            + case a.attalign when 'd' then 4 when 'i' then 2 when 's' then 1 else 0 end)) / 8) end as row_bytes
      from tables t
      join pg_class c on c.oid = t.oid
      join pg_namespace n on n.oid = c.relnamespace
      join pg_attribute a on a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped
      left join columns s on s.schemaname = n.nspname and s.tablename = c.relname and s.attname = a.attname
     group by a.attrelid, c.relnatts
  ),
  -- In pages; null: not known. Not by greatest(): that would make 0 of it.
  pages as (
    select p.oid, p.ours, p.sources, p.bytes, p.block_size, p.reltuples,
           case when p.heap_bytes = 0 then 0
                when p.reltuples >= 0 then
                  least(p.relpages, p.heap_bytes / p.block_size)
                    - ceil(p.reltuples::numeric / case when w.row_bytes <= (p.block_size - 24) * p.fillfactor / 100
                                                       then floor((p.block_size - 24) * p.fillfactor / 100 / w.row_bytes)
                                                       when w.row_bytes is not null then 1 end) end as heap_free,
           case when p.toast_bytes = 0 then 0
                when p.toast_reltuples >= 0 then
                  least(p.toast_relpages, p.toast_bytes / p.block_size) - ceil(p.toast_reltuples::numeric / 4) end as toast_free,
           -- Rows that no VACUUM has removed yet; without a VACUUM on record the counters may have been lost with it.
           case when p.heap_bytes = 0 then 0
                when coalesce(h.last_vacuum, h.last_autovacuum) is not null then ceil(h.n_dead_tup * w.row_bytes / p.block_size) end as heap_dead,
           case when p.toast_bytes = 0 then 0
                when coalesce(x.last_vacuum, x.last_autovacuum) is not null then ceil(x.n_dead_tup / 4.0) end as toast_dead,
           -- Of an empty one there is nothing to estimate.
           case when p.heap_bytes = 0 then now() else greatest(h.last_vacuum, h.last_autovacuum, h.last_analyze, h.last_autoanalyze) end as statistics_at
      from parts p
      left join widths w on w.oid = p.oid
      left join pg_stat_all_tables h on h.relid = p.oid
      left join pg_stat_all_tables x on x.relid = p.toast_oid
  )
  select f.oid, f.ours, f.sources, f.bytes,
         case when f.heap_free - f.heap_dead + f.toast_free - f.toast_dead is not null
              then (greatest(0, f.heap_free - f.heap_dead) + greatest(0, f.toast_free - f.toast_dead)) * f.block_size end::bigint,
         case when f.heap_free + f.toast_free is not null
              then f.bytes - (greatest(0, f.heap_free) + greatest(0, f.toast_free)) * f.block_size end::bigint,
         case when f.bytes is null then 'locked by another session'
              when f.heap_free is null and f.reltuples < 0 then 'never vacuumed or analyzed'
              when f.heap_free is null then 'no statistics of its columns that the owner of schema lighter may see'
              when f.toast_free is null then 'its TOAST was never vacuumed, or not since its last rewrite'
              when f.heap_dead + f.toast_dead is null then 'no VACUUM on record: what is free for new rows is not known' end,
         f.statistics_at
    from pages f;
end;
comment on function lighter.table_sizes() is
  'Attached tables (of a partitioned one its partitions), with the ids of their sources, and all tables of ours: bytes on disk with indexes and TOAST, how much of that VACUUM has made free for new rows, and what they would take after VACUUM FULL or pg_repack. The last two are estimates by the statistics of the last VACUUM and ANALYZE, and err towards less free space; null: not known, for the reason given. Cost: the catalogue and the sizes of files.';
revoke all on function lighter.table_sizes() from public;
