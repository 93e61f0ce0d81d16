-- What every writer of artifact_refs and lighter.objects does for the reports: it appends what it has changed to
-- lighter.storage_changes. By triggers, since the application, the API's functions and an operator write there too.
-- As our owner, since none of them has rights on that table. Nothing here may fail a write, nor wait: an adopted
-- table may hold nulls where ours has none.
create or replace function lighter.account_artifacts() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if tg_op = 'INSERT' then
    insert into lighter.storage_changes (tenant_id, kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes)
    select coalesce(a.tenant_id, '00000000-0000-0000-0000-000000000000'), coalesce(a.kind, ''),
           coalesce((a.created_at at time zone 'UTC')::date, '-infinity'),
           count(*) filter (where a.deleted_at is null), sum(a.size_bytes) filter (where a.deleted_at is null),
           nullif(count(*) filter (where a.deleted_at is not null), 0), sum(a.size_bytes) filter (where a.deleted_at is not null)
      from added a
     where a.deleted_at is null or a.purged_at is null
     group by 1, 2, 3;
  elsif tg_op = 'UPDATE' then
    -- Most updates, such as a move by the compaction, change nothing of this.
    insert into lighter.storage_changes (tenant_id, kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes)
    select coalesce(a.tenant_id, '00000000-0000-0000-0000-000000000000'), coalesce(a.kind, ''),
           coalesce((a.created_at at time zone 'UTC')::date, '-infinity'),
           coalesce(sum(a.sign) filter (where a.deleted_at is null), 0),
           coalesce(sum(a.sign * a.size_bytes) filter (where a.deleted_at is null), 0),
           coalesce(sum(a.sign) filter (where a.deleted_at is not null), 0),
           coalesce(sum(a.sign * a.size_bytes) filter (where a.deleted_at is not null), 0)
      from (select 1 as sign, n.tenant_id, n.kind, n.created_at, n.size_bytes, n.deleted_at, n.purged_at from added n
            union all
            select -1, r.tenant_id, r.kind, r.created_at, r.size_bytes, r.deleted_at, r.purged_at from removed r) a
     where a.deleted_at is null or a.purged_at is null
     group by 1, 2, 3
    having coalesce(sum(a.sign) filter (where a.deleted_at is null), 0) <> 0
        or coalesce(sum(a.sign * a.size_bytes) filter (where a.deleted_at is null), 0) <> 0
        or coalesce(sum(a.sign) filter (where a.deleted_at is not null), 0) <> 0
        or coalesce(sum(a.sign * a.size_bytes) filter (where a.deleted_at is not null), 0) <> 0;
  elsif tg_op = 'DELETE' then
    insert into lighter.storage_changes (tenant_id, kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes)
    select coalesce(a.tenant_id, '00000000-0000-0000-0000-000000000000'), coalesce(a.kind, ''),
           coalesce((a.created_at at time zone 'UTC')::date, '-infinity'),
           -count(*) filter (where a.deleted_at is null), -sum(a.size_bytes) filter (where a.deleted_at is null),
           -count(*) filter (where a.deleted_at is not null), -sum(a.size_bytes) filter (where a.deleted_at is not null)
      from removed a
     where a.deleted_at is null or a.purged_at is null
     group by 1, 2, 3;
  else  -- TRUNCATE
    insert into lighter.storage_changes (tenant_id, kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes)
    select e.tenant_id, e.kind, e.day, -sum(e.artifacts), -sum(e.payload_bytes), -sum(e.deleted_artifacts), -sum(e.deleted_bytes)
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
begin
  if tg_op <> 'INSERT' and old.state = 'stored' then
    insert into lighter.storage_changes (tenant_id, kind, day, objects, object_bytes, packs, written_artifacts, written_bytes,
        live_artifacts, live_bytes)
    values (old.tenant_id, old.kind, (coalesce(old.stored_at, old.created_at) at time zone 'UTC')::date,
            -1, -coalesce(old.byte_length, 0), -(old.artifact_count > 1)::int, -old.artifact_count, -coalesce(old.payload_bytes, 0),
            -coalesce(old.live_artifacts, old.artifact_count),
            -case when old.payload_bytes is null then 0 else coalesce(old.live_bytes, old.payload_bytes) end);
  end if;
  if tg_op <> 'DELETE' and new.state = 'stored' then
    insert into lighter.storage_changes (tenant_id, kind, day, objects, object_bytes, packs, written_artifacts, written_bytes,
        live_artifacts, live_bytes, class_a)
    values (new.tenant_id, new.kind, (coalesce(new.stored_at, new.created_at) at time zone 'UTC')::date,
            1, coalesce(new.byte_length, 0), (new.artifact_count > 1)::int, new.artifact_count, coalesce(new.payload_bytes, 0),
            coalesce(new.live_artifacts, new.artifact_count),
            case when new.payload_bytes is null then 0 else coalesce(new.live_bytes, new.payload_bytes) end,
            -- Only what we have just written. Of an upload in parts, those of the default size, and two more.
            case when tg_op <> 'UPDATE' or old.state <> 'uploading' then null
                 when old.upload_id is null then 1
                 else ceil(coalesce(new.byte_length, 0) / 8388608.0) + 2 end);
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
