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
  refs constant regclass := 'public.artifact_refs';
  table_owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = refs);
  missing text;
  unknown text;
  policies text;
  users text;
begin
  if not pg_has_role(current_user, table_owner, 'usage') then
    raise exception 'public.artifact_refs exists and belongs to "%", not to "%"', table_owner, current_user
      using errcode = 'insufficient_privilege', hint = 'Migrate as the owner of the table.';
  end if;
  -- Functions with our owner's rights write there, and would run its triggers, types and default values.
  if not (select r.rolsuper or pg_has_role(r.oid, current_user, 'member') from pg_roles r where r.rolname = table_owner) then
    raise exception 'public.artifact_refs exists and belongs to "%", who may not act as "%", who migrates', table_owner, current_user
      using errcode = 'insufficient_privilege',
            hint = format('Migrate as "%s", or: alter table public.artifact_refs owner to %I;', table_owner, current_user);
  end if;
  select string_agg(c.name || ' ' || c.type, ', ')
    into missing
    from (values ('id', 'uuid'), ('tenant_id', 'uuid'), ('kind', 'text'), ('entity_type', 'text'),
                 ('entity_id', 'uuid'), ('r2_key', 'text'), ('content_type', 'text'),
                 ('size_bytes', 'bigint'), ('sha256', 'text'), ('created_by', 'uuid'),
                 ('created_at', 'timestamp with time zone')) as c(name, type)
   where not exists (
     select from pg_attribute a
      where a.attrelid = refs
        and a.attname = c.name
        and format_type(a.atttypid, null) = c.type
        and not a.attisdropped);
  if missing is not null then
    raise exception 'public.artifact_refs exists but is not the documented table: lacks %', missing
      using errcode = 'invalid_table_definition',
            hint = 'Rename the table, or add (or alter) these columns, and run the migration again.';
  end if;
  -- The daemon inserts the documented columns but for created_by and created_at, and those added below.
  select string_agg(quote_ident(a.attname), ', ')
    into unknown
    from pg_attribute a
   where a.attrelid = refs and a.attnum > 0 and not a.attisdropped
     and a.attnotnull and not a.atthasdef and a.attidentity = ''
     and a.attname not in ('id', 'tenant_id', 'kind', 'entity_type', 'entity_id', 'r2_key', 'content_type',
                           'size_bytes', 'sha256', 'created_at');
  if unknown is not null then
    raise exception 'public.artifact_refs exists and demands values that pg-lighter does not have: %', unknown
      using errcode = 'invalid_table_definition',
            hint = 'Give these columns a default, or let them be null, and run the migration again.';
  end if;
  if not (select atthasdef from pg_attribute where attrelid = refs and attname = 'created_at') then
    alter table public.artifact_refs alter column created_at set default now();
  end if;
  select string_agg(quote_ident(polname), ', ' order by polname)
    into policies
    from pg_policy where polrelid = refs and polpermissive and 0 = any (polroles);
  if policies is not null then
    raise warning 'public.artifact_refs has policies for every role: %', policies
      using hint = 'Meant for one role, such as service_role? Then say so: alter policy ... to service_role;';
  end if;
  -- Whoever used a table without row-level security keeps what it could do; not everybody, and not the browser.
  -- A table that was created just now had no users.
  if exists (select from pg_class where oid = refs and not relrowsecurity and xmin <> pg_current_xact_id()::xid) then
    select string_agg(distinct quote_ident(r.rolname), ', ')
      into users
      from pg_class c
     cross join lateral aclexplode(c.relacl) a
      join pg_roles r on r.oid = a.grantee
     where c.oid = refs
       and r.rolname not in (table_owner, 'anon', 'authenticated', 'service_role', 'lighter_daemon', 'lighter_tenant');
    if users is not null then
      execute format('create policy lighter_existing on public.artifact_refs for all to %s using (true) with check (true)', users);
    end if;
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
  add column if not exists refers_to uuid[],
  add column if not exists released_at timestamptz,
  add column if not exists deleted_at timestamptz,
  add column if not exists deleted_reason text,
  add column if not exists purged_at timestamptz,
  add column if not exists damaged_at timestamptz,
  add column if not exists damage text;

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
comment on column public.artifact_refs.deleted_reason is
  'Why it has a tombstone: deleted, or the name of the policy under which it expired.';
comment on column public.artifact_refs.refers_to is
  'Artifacts that its payload points to: a row may be offloaded again and again, each time on top of the last. Null: not known.';
comment on column public.artifact_refs.released_at is 'When a release sweep first found that no row points to it; null: one does.';
comment on column public.artifact_refs.expires_at is 'When it expires whatever the retention policies say; null: as they say.';
comment on column public.artifact_refs.purged_at is 'The grace period after deleted_at is over: its bytes may be taken out of the bucket from then on.';
comment on column public.artifact_refs.damaged_at is 'When a verify sweep last found that its payload can not be read back as it was stored; null: it can, or nobody looked.';
comment on column public.artifact_refs.damage is 'What the verify sweep found.';

-- The original unique index says one artifact per object, which packs are not. So would one on r2_key alone.
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
       and (select array_agg(coalesce(a.attname::text, '(expression)') order by a.attname)
              from unnest(i.indkey::int2[]) with ordinality k(attnum, place)
              left join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum and a.attnum > 0
             where k.place <= i.indnkeyatts) in (array['r2_key', 'tenant_id'], array['r2_key'])
  loop
    if old.conname is not null then
      execute format('alter table public.artifact_refs drop constraint %I', old.conname);
    else
      execute format('drop index %s', old.index_name);
    end if;
  end loop;
end
$$;

-- What is in an object. Without the place in it: then each entry would hold a key of its own, here those of a pack
-- share one.
create index if not exists artifact_refs_object on public.artifact_refs (tenant_id, r2_key);
-- What is alive, by tenant and kind in the order of time: for lists, and for the retention sweep, which with an index
-- of all walked past every tombstone that is still remembered, each night anew.
create index if not exists artifact_refs_live
  on public.artifact_refs (tenant_id, kind, created_at desc) where deleted_at is null;
create index if not exists idx_artifact_refs_entity
  on public.artifact_refs (tenant_id, entity_type, entity_id, created_at desc);
create index if not exists artifact_refs_tombstones
  on public.artifact_refs (deleted_at) where deleted_at is not null and purged_at is null;
create index if not exists artifact_refs_purged
  on public.artifact_refs (purged_at) where purged_at is not null;
create index if not exists artifact_refs_expiring
  on public.artifact_refs (expires_at) where expires_at is not null and deleted_at is null;
-- What lives on an artifact. Only rows that were offloaded on top of themselves, or in both phases, are in it.
create index if not exists artifact_refs_refers_to
  on public.artifact_refs using gin (refers_to) where refers_to <> '{}' and deleted_at is null;
create index if not exists artifact_refs_released
  on public.artifact_refs (released_at) where released_at is not null and deleted_at is null;
create index if not exists artifact_refs_damaged
  on public.artifact_refs (tenant_id, id) where damaged_at is not null;

-- A table of the application's may have a primary key of the id alone: a pass in the order of tenant and id would
-- sort all of it for each page.
do $$
declare
  refs constant regclass := 'public.artifact_refs';
begin
  if not exists (
    select from pg_index i
     where i.indrelid = refs and i.indisvalid and i.indpred is null
       and i.indkey[0] = (select attnum from pg_attribute where attrelid = refs and attname = 'tenant_id')
       and i.indkey[1] = (select attnum from pg_attribute where attrelid = refs and attname = 'id'))
  then
    create index artifact_refs_tenant_id on public.artifact_refs (tenant_id, id);
  end if;
end
$$;
