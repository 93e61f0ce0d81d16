-- The documented table. A database that already has it keeps its rows, its primary key and its policies.
-- Where it is new, the primary key leads with the tenant, so that it can be distributed or partitioned.
create table if not exists public.artifact_refs (
  id uuid not null default gen_random_uuid(),
  tenant_id uuid not null,
  kind text not null,
  entity_type text,
  entity_id uuid,
  r2_key text not null,
  content_type text,
  size_bytes bigint,
  sha256 text,
  created_by uuid,
  created_at timestamptz not null default now(),
  primary key (tenant_id, id)
);

do $$
declare
  missing text;
begin
  select string_agg(c.name || ' ' || c.type, ', ')
    into missing
    from (values ('id', 'uuid'), ('tenant_id', 'uuid'), ('kind', 'text'), ('entity_type', 'text'),
                 ('entity_id', 'uuid'), ('r2_key', 'text'), ('content_type', 'text'),
                 ('size_bytes', 'bigint'), ('sha256', 'text'), ('created_by', 'uuid'),
                 ('created_at', 'timestamp with time zone')) as c(name, type)
   where not exists (
     select from pg_attribute a
      where a.attrelid = 'public.artifact_refs'::regclass
        and a.attname = c.name
        and format_type(a.atttypid, null) = c.type
        and not a.attisdropped);
  if missing is not null then
    raise exception 'public.artifact_refs exists but is not the documented table: lacks %', missing
      using hint = 'Rename the table, or add (or alter) these columns, and run the migration again.';
  end if;
end
$$;

alter table public.artifact_refs
  add column if not exists byte_offset bigint,
  add column if not exists byte_length bigint,
  add column if not exists frame_offset bigint,
  add column if not exists content_encoding text,
  add column if not exists source_id integer,
  add column if not exists row_id text,
  add column if not exists field text,
  add column if not exists expires_at timestamptz,
  add column if not exists deleted_at timestamptz;

comment on table public.artifact_refs is 'Artifacts: payloads in the object store, by tenant. Immutable but for their location and tombstone.';
comment on column public.artifact_refs.r2_key is 'Key of the object that holds the payload; a pack is the r2_key of many artifacts.';
comment on column public.artifact_refs.size_bytes is 'Length of the uncompressed payload, in bytes.';
comment on column public.artifact_refs.sha256 is 'SHA-256 of the uncompressed payload, lower-case hex.';
comment on column public.artifact_refs.byte_offset is 'Where the artifact''s frame begins in the object; null: the whole object is the artifact.';
comment on column public.artifact_refs.byte_length is 'Length of the frame in the object, in bytes.';
comment on column public.artifact_refs.frame_offset is 'Where the payload begins in the decompressed frame, in bytes.';
comment on column public.artifact_refs.content_encoding is 'zstd, gzip, or null when stored as it is.';
comment on column public.artifact_refs.source_id is 'lighter.sources.id of the row it came from; null when stored through the API or by the application.';
comment on column public.artifact_refs.row_id is 'Primary key of the row it came from, as text.';
comment on column public.artifact_refs.field is 'The field it was taken from; null when it is the whole metadata.';
comment on column public.artifact_refs.deleted_at is 'Tombstone: no longer readable, bytes go after the grace period.';

-- The original unique index says one artifact per object, which packs are not.
do $$
declare
  old record;
begin
  for old in
    select i.indexrelid::regclass as index_name, c.conname
      from pg_index i
      left join pg_constraint c on c.conindid = i.indexrelid and c.contype = 'u'
     where i.indrelid = 'public.artifact_refs'::regclass
       and i.indisunique and not i.indisprimary
       and i.indnkeyatts = 2
       and (select array_agg(a.attname::text order by a.attname)
              from pg_attribute a
             where a.attrelid = i.indrelid and a.attnum = any (i.indkey::int2[])) = array['r2_key', 'tenant_id']
  loop
    if old.conname is not null then
      execute format('alter table public.artifact_refs drop constraint %I', old.conname);
    else
      execute format('drop index %s', old.index_name);
    end if;
  end loop;
end
$$;

create unique index if not exists artifact_refs_location
  on public.artifact_refs (tenant_id, r2_key, byte_offset, frame_offset) nulls not distinct;
create index if not exists idx_artifact_refs_tenant_kind_created
  on public.artifact_refs (tenant_id, kind, created_at desc);
create index if not exists idx_artifact_refs_entity
  on public.artifact_refs (tenant_id, entity_type, entity_id, created_at desc);

alter table public.artifact_refs enable row level security;
alter table public.artifact_refs force row level security;

-- FORCE binds the owner too; a back end that connects as the owner must keep working.
do $$
begin
  execute format('create policy lighter_owner on public.artifact_refs for all to %I using (true) with check (true)',
    (select tableowner from pg_tables where schemaname = 'public' and tablename = 'artifact_refs'));
end
$$;
create policy lighter_daemon on public.artifact_refs for all to lighter_daemon using (true) with check (true);
create policy lighter_tenant on public.artifact_refs for select to lighter_tenant
  using (tenant_id = nullif(current_setting('app.current_tenant_id', true), '')::uuid);
