-- What every writer of artifact_refs and lighter.objects does for the reports: it appends what it has changed to
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
  else  -- TRUNCATE
    insert into lighter.storage_changes (tenant_id, kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes)
    select e.tenant_id, e.kind, e.day,
           -sum(e.artifacts), -least(greatest(coalesce(sum(e.payload_bytes), 0), -top), top),
           -sum(e.deleted_artifacts), -least(greatest(coalesce(sum(e.deleted_bytes), 0), -top), top)
      from (select d.tenant_id, d.kind, d.day, d.artifacts, d.payload_bytes, d.deleted_artifacts, d.deleted_bytes
              from lighter.storage_days d
            union all
            select c.tenant_id, c.kind, c.day, c.artifacts, c.payload_bytes, c.deleted_artifacts, c.deleted_bytes
              from lighter.storage_changes c) e
     group by 1, 2, 3;
  end if;
  return null;
end
$$;
comment on function lighter.account_artifacts() is 'Trigger of public.artifact_refs: appends to lighter.storage_changes what the statement has changed.';
revoke all on function lighter.account_artifacts() from public;

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
  if not exists (select from pg_trigger where tgrelid = 'public.artifact_refs'::regclass and tgname = 'lighter_account_insert') then
    create trigger lighter_account_insert after insert on public.artifact_refs
      referencing new table as added for each statement execute function lighter.account_artifacts();
    create trigger lighter_account_update after update on public.artifact_refs
      referencing old table as removed new table as added for each statement execute function lighter.account_artifacts();
    create trigger lighter_account_delete after delete on public.artifact_refs
      referencing old table as removed for each statement execute function lighter.account_artifacts();
    create trigger lighter_account_truncate after truncate on public.artifact_refs
      for each statement execute function lighter.account_artifacts();
  end if;
  if not exists (select from pg_trigger where tgrelid = 'lighter.objects'::regclass and tgname = 'lighter_account_insert') then
    create trigger lighter_account_insert after insert on lighter.objects
      for each row when (new.state = 'stored') execute function lighter.account_objects();
    create trigger lighter_account_update after update on lighter.objects
      for each row when (
        old.state <> new.state and 'stored' in (old.state, new.state)
        or new.state = 'stored'
           and (old.tenant_id, old.kind, old.byte_length, old.artifact_count, old.payload_bytes, old.live_artifacts, old.live_bytes,
                old.stored_at)
               is distinct from
               (new.tenant_id, new.kind, new.byte_length, new.artifact_count, new.payload_bytes, new.live_artifacts, new.live_bytes,
                new.stored_at))
      execute function lighter.account_objects();
    create trigger lighter_account_delete after delete on lighter.objects
      for each row when (old.state = 'stored') execute function lighter.account_objects();
  end if;
end
$$;
