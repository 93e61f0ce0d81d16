-- Artifacts. Those of packs are in lighter.frames, many in a row; every other one has a row of its own in
-- lighter.loose_artifacts. public.artifact_refs, the documented name, is a view of both: sql/functions/05_artifact_refs.sql.

-- A database may have the documented table already: it becomes the table of loose artifacts, with its rows, its primary
-- key, its policies and the rights on it. Where it is new, the primary key leads with the tenant, so that it can be
-- distributed or partitioned.
do $$
begin
  if to_regclass('public.artifact_refs') is null then
    create table lighter.loose_artifacts (
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
  end if;
end
$$;

do $$
declare
  refs constant regclass := to_regclass('public.artifact_refs');
  table_owner constant name := (select pg_get_userbyid(relowner) from pg_class where oid = refs);
  dependents text;
  missing text;
  unknown text;
  policies text;
  users text;
begin
  if refs is null then
    return;
  end if;
  if (select relkind from pg_class where oid = refs) not in ('r', 'p') then
    raise exception 'public.artifact_refs exists and is no table'
      using errcode = 'wrong_object_type', hint = 'Rename it, and run the migration again.';
  end if;
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
  select string_agg(quote_ident(a.attname), ', ' order by a.attnum)
    into unknown
    from pg_attribute a
   where a.attrelid = refs and a.attnum > 0 and not a.attisdropped
     and a.attname not in ('id', 'tenant_id', 'kind', 'entity_type', 'entity_id', 'r2_key', 'content_type', 'size_bytes', 'sha256',
                           'created_by', 'created_at', 'content_encoding', 'source_id', 'row_id', 'field', 'expires_at', 'refers_to',
                           'released_at', 'deleted_at', 'deleted_reason', 'purged_at', 'damaged_at', 'damage');
  if unknown is not null then
    raise warning 'public.artifact_refs becomes a view, which does not show these columns of the table: %', unknown
      using hint = 'They are in lighter.loose_artifacts from now on, as the table is called then.';
  end if;
  -- A view of it would show loose artifacts only from now on, and nothing can refer to a view.
  select string_agg(d.statement, ' ')
    into dependents
    from (select distinct format('drop %s %s;', case v.relkind when 'm' then 'materialized view' else 'view' end, v.oid::regclass) as statement
            from pg_depend x
            join pg_rewrite w on w.oid = x.objid and x.classid = 'pg_rewrite'::regclass
            join pg_class v on v.oid = w.ev_class
           where x.refclassid = 'pg_class'::regclass and x.refobjid = refs and v.oid <> refs
          union all
          select format('alter table %s drop constraint %I;', c.conrelid::regclass, c.conname)
            from pg_constraint c where c.confrelid = refs and c.contype = 'f' and c.conrelid <> refs
          union all
          -- Whatever is declared with the type of its rows, which goes with the table.
          select format('drop %s %s;', case p.prokind when 'p' then 'procedure' else 'function' end, p.oid::regprocedure)
            from pg_proc p
           where exists (select from pg_type t
                          where t.typrelid = refs
                            and (p.prorettype in (t.oid, t.typarray) or t.oid = any (p.proargtypes) or t.typarray = any (p.proargtypes)))) d;
  if dependents is not null then
    raise exception 'views, functions or foreign keys depend on public.artifact_refs, which becomes a view: of more artifacts than the table has'
      using errcode = 'dependent_objects_still_exist',
            hint = format('Run these, run the migration again, and make views and functions again, of the same name: %s', dependents);
  end if;
  alter table public.artifact_refs set schema lighter;
  alter table lighter.artifact_refs rename to loose_artifacts;
end
$$;

alter table lighter.loose_artifacts
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

comment on table lighter.loose_artifacts is 'Artifacts that have an object each, and those that the application stored. See public.artifact_refs.';
comment on column lighter.loose_artifacts.r2_key is 'Key of the object that is the payload.';
comment on column lighter.loose_artifacts.size_bytes is 'Length of the uncompressed payload, in bytes.';
comment on column lighter.loose_artifacts.sha256 is 'SHA-256 of the uncompressed payload, lower-case hex.';
comment on column lighter.loose_artifacts.content_encoding is 'zstd, gzip, or null when stored as it is.';
comment on column lighter.loose_artifacts.source_id is 'lighter.sources.id of the row it came from; null when stored through the API or by the application.';
comment on column lighter.loose_artifacts.row_id is 'Primary key of the row it came from, as text.';
comment on column lighter.loose_artifacts.field is 'The field it was taken from; null when it is the whole metadata.';
comment on column lighter.loose_artifacts.deleted_at is 'Tombstone: no longer readable, bytes go after the grace period.';
comment on column lighter.loose_artifacts.deleted_reason is
  'Why it has a tombstone: deleted, or the name of the policy under which it expired.';
comment on column lighter.loose_artifacts.refers_to is
  'Artifacts that its payload points to: a row may be offloaded again and again, each time on top of the last. Null: not known.';
comment on column lighter.loose_artifacts.released_at is 'When a release sweep first found that no row points to it; null: one does.';
comment on column lighter.loose_artifacts.expires_at is 'When it expires whatever the retention policies say; null: as they say.';
comment on column lighter.loose_artifacts.purged_at is 'The grace period after deleted_at is over: its bytes may be taken out of the bucket from then on.';
comment on column lighter.loose_artifacts.damaged_at is 'When a verify sweep last found that its payload can not be read back as it was stored; null: it can, or nobody looked.';
comment on column lighter.loose_artifacts.damage is 'What the verify sweep found.';

-- The original unique index says one artifact per object. Nothing of ours needs it, and an application that copies rows would break it.
do $$
declare
  old record;
begin
  for old in
    select i.indexrelid::regclass as index_name, c.conname
      from pg_index i
      left join pg_constraint c on c.conindid = i.indexrelid and c.contype = 'u'
     where i.indrelid = 'lighter.loose_artifacts'::regclass
       and i.indisunique and not i.indisprimary
       and (select array_agg(coalesce(a.attname::text, '(expression)') order by a.attname)
              from unnest(i.indkey::int2[]) with ordinality k(attnum, place)
              left join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum and a.attnum > 0
             where k.place <= i.indnkeyatts) in (array['r2_key', 'tenant_id'], array['r2_key'])
  loop
    if old.conname is not null then
      execute format('alter table lighter.loose_artifacts drop constraint %I', old.conname);
    else
      execute format('drop index %s', old.index_name);
    end if;
  end loop;
end
$$;

create index if not exists loose_artifacts_object on lighter.loose_artifacts (tenant_id, r2_key);
-- What is alive, by tenant and kind in the order of time: for lists, and for the retention sweep, which with an index
-- of all walked past every tombstone that is still remembered, each night anew.
create index if not exists loose_artifacts_live
  on lighter.loose_artifacts (tenant_id, kind, created_at desc) where deleted_at is null;
create index if not exists idx_artifact_refs_entity
  on lighter.loose_artifacts (tenant_id, entity_type, entity_id, created_at desc);
create index if not exists loose_artifacts_tombstones
  on lighter.loose_artifacts (deleted_at) where deleted_at is not null and purged_at is null;
create index if not exists loose_artifacts_purged
  on lighter.loose_artifacts (purged_at) where purged_at is not null;
create index if not exists loose_artifacts_expiring
  on lighter.loose_artifacts (expires_at) where expires_at is not null and deleted_at is null;
-- What lives on an artifact. Only rows that were offloaded on top of themselves, or in both phases, are in it.
create index if not exists loose_artifacts_refers_to
  on lighter.loose_artifacts using gin (refers_to) where refers_to <> '{}' and deleted_at is null;
create index if not exists loose_artifacts_released
  on lighter.loose_artifacts (released_at) where released_at is not null and deleted_at is null;
create index if not exists loose_artifacts_damaged
  on lighter.loose_artifacts (tenant_id, id) where damaged_at is not null;

-- A table of the application's may have a primary key of the id alone: a pass in the order of tenant and id would
-- sort all of it for each page.
do $$
declare
  refs constant regclass := 'lighter.loose_artifacts';
begin
  if not exists (
    select from pg_index i
     where i.indrelid = refs and i.indisvalid and i.indpred is null
       and i.indkey[0] = (select attnum from pg_attribute where attrelid = refs and attname = 'tenant_id')
       and i.indkey[1] = (select attnum from pg_attribute where attrelid = refs and attname = 'id'))
  then
    create index loose_artifacts_tenant_id on lighter.loose_artifacts (tenant_id, id);
  end if;
end
$$;

-- Artifacts of packs. A row is a frame: a run of payloads that are compressed together, about 64 KiB of text. What they
-- have in common stands once, the rest in arrays, in the order of the payloads in the frame: the first has ordinal 0.
create table lighter.frames (
  tenant_id uuid not null,
  id uuid not null,
  kind text not null,
  created_at timestamptz not null default now(),
  r2_key text not null,
  byte_offset bigint not null,
  byte_length bigint not null,
  content_encoding text,
  source_id integer not null,
  field text,
  content_type text,
  entity_type text,
  sizes integer[] not null,
  places integer[] not null,
  hashes bytea not null,
  row_uuids uuid[],
  row_texts text[],
  entities uuid[] not null,
  entity_places smallint[],
  refers_from smallint[] not null default '{}',
  refers_to uuid[] not null default '{}',
  voids smallint[] not null default '{}',
  artifacts integer not null,
  payload_bytes bigint not null,
  deleted_artifacts integer not null,
  deleted_bytes bigint not null,
  primary key (tenant_id, id),
  check (substr(id::text, 15, 1) = '8' and right(id::text, 4) = '0000'),
  -- (Not "between": a dump writes that in another way, and doctor would see a difference.)
  check (cardinality(sizes) >= 1 and cardinality(sizes) <= 32767
         and cardinality(places) = cardinality(sizes) and length(hashes) = 32 * cardinality(sizes)
         and num_nonnulls(row_uuids, row_texts) = 1
         and coalesce(cardinality(row_uuids), cardinality(row_texts)) = cardinality(sizes)
         and coalesce(cardinality(entity_places), cardinality(sizes)) = cardinality(sizes)
         and cardinality(refers_from) = cardinality(refers_to))
);
create unique index frames_id on lighter.frames (id);
create index frames_object on lighter.frames (tenant_id, r2_key);
-- For lists, and for the retention sweep.
create index frames_live on lighter.frames (tenant_id, kind, created_at desc, id desc) where artifacts > 0;
-- What is to be forgotten once its bytes are gone.
create index frames_empty on lighter.frames (tenant_id, id) where artifacts = 0 and deleted_artifacts = 0;
create index frames_entities on lighter.frames using gin (entities) with (fastupdate = off);
create index frames_refers_to on lighter.frames using gin (refers_to) with (fastupdate = off) where refers_to <> '{}';
-- Neither compresses.
alter table lighter.frames alter column hashes set storage external, alter column row_uuids set storage external;
comment on table lighter.frames is
  'Artifacts of packs, a row for each frame: payloads that are compressed together. The artifact of an ordinal has the frame''s id with the ordinal as its last two bytes. See public.artifact_refs.';
comment on column lighter.frames.id is 'UUIDv8: the time in milliseconds (48 bits), random bits (58), and two bytes of 0 in which artifacts have their ordinals.';
comment on column lighter.frames.kind is 'Kind of its artifacts.';
comment on column lighter.frames.created_at is 'When its row was written; retention counts from here.';
comment on column lighter.frames.r2_key is 'Key of the pack.';
comment on column lighter.frames.byte_offset is 'Where the frame begins in the pack.';
comment on column lighter.frames.byte_length is 'Length of the frame in the pack, in bytes.';
comment on column lighter.frames.content_encoding is 'How the frame is compressed: zstd, gzip, or null when it is not.';
comment on column lighter.frames.source_id is 'lighter.sources.id of the rows they came from.';
comment on column lighter.frames.field is 'The field they were taken from; null: each is the whole metadata.';
comment on column lighter.frames.content_type is 'Media type of its payloads; null: application/json.';
comment on column lighter.frames.entity_type is 'What their entities are, such as conversation.';
comment on column lighter.frames.sizes is 'Length of each payload, in bytes.';
comment on column lighter.frames.places is 'Where each payload begins in the decompressed frame, in bytes; -1: its bytes are not in the pack any more.';
comment on column lighter.frames.hashes is 'SHA-256 of each payload, 32 bytes each, one after the other: an array would take 4 more for each.';
comment on column lighter.frames.row_uuids is 'Primary key of the row that each came from, where it is a uuid.';
comment on column lighter.frames.row_texts is 'Else as text.';
comment on column lighter.frames.entities is 'The entities that they belong to, each once.';
comment on column lighter.frames.entity_places is 'Which of them is whose, counted from 1; null: none has one.';
comment on column lighter.frames.refers_from is 'Ordinals of payloads that point to other artifacts: the n-th points to the n-th of refers_to.';
comment on column lighter.frames.refers_to is 'Artifacts that payloads of the frame point to.';
comment on column lighter.frames.voids is
  'Ordinals that are no artifacts: their rows changed before the commit, or somebody deleted the artifact. Row and entity stay, so that an erasure finds the bytes.';
comment on column lighter.frames.artifacts is 'Live artifacts in it.';
comment on column lighter.frames.payload_bytes is 'Their uncompressed bytes.';
comment on column lighter.frames.deleted_artifacts is 'Artifacts with a tombstone whose grace period is not over.';
comment on column lighter.frames.deleted_bytes is 'Their uncompressed bytes.';

-- What holds for some artifacts of a frame and not for the others. A row is the ordinals that are in the same state: what
-- a sweep does to many of a frame at once is one row. Of a frame no ordinal is in two. Whoever writes has the frame's lock.
create table lighter.frame_exceptions (
  tenant_id uuid not null,
  frame_id uuid not null,
  ordinals smallint[] not null check (cardinality(ordinals) > 0 and 0 <= all (ordinals)),
  -- Not generated: a publication does not have such columns, and refuses updates of a table whose key is one.
  ordinal smallint not null check (ordinal = ordinals[1]),
  expires_at timestamptz,
  released_at timestamptz,
  deleted_at timestamptz,
  deleted_reason text,
  purged_at timestamptz,
  damaged_at timestamptz,
  damage text,
  primary key (tenant_id, frame_id, ordinal),
  foreign key (tenant_id, frame_id) references lighter.frames (tenant_id, id) on delete cascade
);
create index frame_exceptions_tombstones on lighter.frame_exceptions (deleted_at) where deleted_at is not null and purged_at is null;
create index frame_exceptions_purged on lighter.frame_exceptions (purged_at) where purged_at is not null;
create index frame_exceptions_expiring on lighter.frame_exceptions (expires_at) where expires_at is not null and deleted_at is null;
create index frame_exceptions_released on lighter.frame_exceptions (released_at) where released_at is not null and deleted_at is null;
create index frame_exceptions_damaged on lighter.frame_exceptions (tenant_id, frame_id) where damaged_at is not null;
comment on table lighter.frame_exceptions is
  'Artifacts of lighter.frames that are deleted, unreferenced, damaged, or expire on a date of their own: a row for all of a frame that are in the same state. The columns are those of public.artifact_refs.';
comment on column lighter.frame_exceptions.ordinals is 'Which artifacts of the frame, counted from 0.';
comment on column lighter.frame_exceptions.ordinal is 'The first of them.';
