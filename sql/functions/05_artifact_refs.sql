-- Without a search_path, as lighter.artifact: that would keep them from becoming a part of the statement that calls them.
-- Names in their bodies were resolved when they were made.
create or replace function lighter.frame_of(artifact uuid) returns uuid
language sql immutable parallel safe
return case when get_byte(uuid_send(artifact), 6) >> 4 = 8
            then encode(overlay(uuid_send(artifact) placing '\x0000'::bytea from 15), 'hex')::uuid
            else artifact end;
comment on function lighter.frame_of(uuid) is
  'What public.artifact_refs has as frame_id for an artifact of this id: in a condition it makes a search by id fast.'
  ' Example: select * from public.artifact_refs where tenant_id = ''<tenant>'' and id = ''<id>'' and frame_id = lighter.frame_of(''<id>'');';

-- Every artifact, of packs and loose. Each branch computes only what a statement asks for; conditions on tenant_id, kind,
-- created_at, r2_key, source_id and frame_id reach the tables' indexes.
--
-- Each column of the second branch has its name: a dump would give it another one, and doctor would see a difference.
--
-- Under the documented name with the rights of whoever asks, so that the policies of the tables hold for them; and
-- once more for our own reports, which run with the rights of their owner, for nobody else.
do $$
declare
  artifacts constant text := $sql$
  select encode(overlay(uuid_send(f.id) placing int2send((p.place - 1)::smallint) from 15), 'hex')::uuid as id,
         f.tenant_id,
         f.kind,
         f.entity_type,
         f.entities[p.entity_place] as entity_id,
         f.r2_key,
         coalesce(f.content_type, 'application/json') as content_type,
         p.size::bigint as size_bytes,
         encode(substr(f.hashes, 32 * (p.place::integer - 1) + 1, 32), 'hex') as sha256,
         null::uuid as created_by,
         f.created_at,
         f.byte_offset,
         f.byte_length,
         nullif(p.frame_offset, -1)::bigint as frame_offset,
         f.content_encoding,
         f.source_id,
         coalesce(p.row_uuid::text, p.row_text) as row_id,
         f.field,
         x.expires_at,
         case when f.refers_to = '{}' then f.refers_to
              else array(select r.artifact from unnest(f.refers_from, f.refers_to) r(ordinal, artifact) where r.ordinal = p.place - 1)
         end as refers_to,
         x.released_at,
         x.deleted_at,
         x.deleted_reason,
         x.purged_at,
         x.damaged_at,
         x.damage,
         f.id as frame_id,
         (p.place - 1)::smallint as ordinal,
         f.entities as frame_entities,
         f.refers_to as frame_refers_to
    from lighter.frames f
   cross join lateral %s
           as p(size, frame_offset, row_uuid, row_text, entity_place, place)
    left join lighter.frame_exceptions x on x.tenant_id = f.tenant_id and x.frame_id = f.id and (p.place - 1)::smallint = any (x.ordinals)
   where (p.place - 1)::smallint <> all (f.voids) %s
  union all
  select l.id, l.tenant_id, l.kind, l.entity_type, l.entity_id, l.r2_key, l.content_type, l.size_bytes, l.sha256, l.created_by,
         l.created_at, null as byte_offset, null as byte_length, null as frame_offset, l.content_encoding, l.source_id, l.row_id, l.field, l.expires_at, l.refers_to, l.released_at,
         l.deleted_at, l.deleted_reason, l.purged_at, l.damaged_at, l.damage, l.id, null as ordinal, null as frame_entities, l.refers_to
    from lighter.loose_artifacts l %s
$sql$;
  every constant text := format(artifacts,
    'unnest(f.sizes, f.places, f.row_uuids, f.row_texts, f.entity_places) with ordinality', '', '');
begin
  execute 'create or replace view public.artifact_refs with (security_invoker = true) as ' || every;
  execute 'create or replace view lighter.artifacts as ' || every;
  -- Of one artifact only its own place in each array.
  execute 'create or replace function lighter.artifact(tenant uuid, artifact uuid) returns setof public.artifact_refs
    language sql stable begin atomic ' || format(artifacts,
      '(select f.sizes[o.n], f.places[o.n], f.row_uuids[o.n], f.row_texts[o.n], f.entity_places[o.n], o.n::bigint
          from (select get_byte(uuid_send(artifact), 14) * 256 + get_byte(uuid_send(artifact), 15) + 1 as n) o
         where o.n <= cardinality(f.sizes))',
      'and f.tenant_id = tenant and f.id = lighter.frame_of(artifact)',
      'where l.tenant_id = tenant and l.id = artifact') || '; end';
end
$$;
comment on function lighter.artifact(uuid, uuid) is
  'One artifact of a tenant, tombstoned ones included, as public.artifact_refs has it. It becomes a part of the statement: for joins.';
comment on view lighter.artifacts is 'public.artifact_refs, with the rights of its owner: for the views of the reports.';

-- Its plan is made once for all calls: making one takes many times as long as finding an artifact.
create or replace function lighter.artifacts_get(tenant uuid, artifacts uuid[]) returns setof public.artifact_refs
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan
as $$
begin
  return query
    select a.* from (select distinct w.id from unnest(artifacts) w(id)) wanted
     cross join lateral lighter.artifact(artifacts_get.tenant, wanted.id) a;
end
$$;
comment on function lighter.artifacts_get(uuid, uuid[]) is
  'Several artifacts of a tenant, each once, tombstoned ones included; those that are not the tenant''s are simply not there.'
  ' Example: select id, r2_key from lighter.artifacts_get(''<tenant>'', array[''<artifact>'', ''<another>'']::uuid[]);';

-- An adopted table may have defaults of its own, for any column.
do $$
declare
  of_column name;
  value text;
begin
  for of_column, value in
    select v.attname, coalesce(pg_get_expr(d.adbin, d.adrelid), case v.attname when 'id' then 'gen_random_uuid()' when 'created_at' then 'now()' end)
      from pg_attribute v
      join pg_attribute t on t.attrelid = 'lighter.loose_artifacts'::regclass and t.attname = v.attname and t.attgenerated = ''
      left join pg_attrdef d on d.adrelid = t.attrelid and d.adnum = t.attnum
     where v.attrelid = 'public.artifact_refs'::regclass and v.attnum > 0
  loop
    execute format('alter view public.artifact_refs alter column %I %s', of_column, coalesce('set default ' || value, 'drop default'));
  end loop;
end
$$;
comment on view public.artifact_refs is
  'Every artifact: payloads in the object store, by tenant. Immutable but for their location and tombstone. Insert stores an artifact of your own, delete takes one away.'
  ' By id alone it reads all of a tenant; the fast ways are lighter.artifact_get(tenant, id), and the condition: frame_id = lighter.frame_of(<id>).'
  ' What a view can not: foreign keys to it, on conflict, truncate.';

create or replace function lighter.is_frame_id(artifact uuid) returns boolean
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
return get_byte(uuid_send(artifact), 6) >> 4 = 8 and get_byte(uuid_send(artifact), 8) >> 6 = 2;
comment on function lighter.is_frame_id(uuid) is 'Whether an id has the form of an artifact of a pack: version 8.';

-- Writes to the view. With the rights of whoever writes. A row that somebody else has changed since the statement
-- looked at it is left as it is, and is not among those that the statement returns.
create or replace function lighter.write_artifact() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  place constant smallint := case when tg_op <> 'INSERT' then old.ordinal end;
  given lighter.frame_exceptions;
begin
  if tg_op = 'INSERT' then
    if lighter.is_frame_id(new.id) then
      raise exception 'id % has the form of an artifact of a pack', new.id
        using errcode = 'check_violation', hint = 'Leave it out, or give a UUID of version 4 or 7.';
    end if;
    if num_nonnulls(new.byte_offset, new.byte_length, new.frame_offset) > 0 then
      raise exception 'byte_offset, byte_length and frame_offset are for artifacts of packs only'
        using errcode = 'check_violation', hint = 'Leave them out: the artifact is all of its object.';
    end if;
    insert into lighter.loose_artifacts (id, tenant_id, kind, entity_type, entity_id, r2_key, content_type, size_bytes, sha256, created_by,
        created_at, content_encoding, source_id, row_id, field, expires_at, refers_to, released_at, deleted_at, deleted_reason,
        purged_at, damaged_at, damage)
    values (new.id, new.tenant_id, new.kind, new.entity_type, new.entity_id, new.r2_key, new.content_type, new.size_bytes, new.sha256, new.created_by,
        new.created_at, new.content_encoding, new.source_id, new.row_id, new.field, new.expires_at, new.refers_to, new.released_at, new.deleted_at,
        new.deleted_reason, new.purged_at, new.damaged_at, new.damage);
    new.frame_id := new.id;
    new.frame_refers_to := new.refers_to;
    return new;
  end if;
  if old.ordinal is null then
    if tg_op = 'DELETE' then
      delete from lighter.loose_artifacts l where l.tenant_id = old.tenant_id and l.id = old.id;
      return case when found then old end;
    end if;
    update lighter.loose_artifacts l
       set (id, tenant_id, kind, entity_type, entity_id, r2_key, content_type, size_bytes, sha256, created_by, created_at,
            content_encoding, source_id, row_id, field, expires_at, refers_to, released_at, deleted_at, deleted_reason, purged_at, damaged_at, damage)
         = (new.id, new.tenant_id, new.kind, new.entity_type, new.entity_id, new.r2_key, new.content_type, new.size_bytes, new.sha256, new.created_by,
            new.created_at, new.content_encoding, new.source_id, new.row_id, new.field, new.expires_at, new.refers_to, new.released_at,
            new.deleted_at, new.deleted_reason, new.purged_at, new.damaged_at, new.damage)
     where l.tenant_id = old.tenant_id and l.id = old.id and l.r2_key is not distinct from old.r2_key
       and (l.deleted_at, l.purged_at, l.released_at, l.damaged_at)
           is not distinct from (old.deleted_at, old.purged_at, old.released_at, old.damaged_at);
    return case when found then new end;
  end if;

  -- One at a time: who deletes, who purges, and the compaction.
  perform from lighter.frames f
    where f.tenant_id = old.tenant_id and f.id = old.frame_id and f.r2_key = old.r2_key and place <> all (f.voids)
      for no key update;
  if not found then
    return null;
  end if;
  if tg_op = 'DELETE' then
    update lighter.frame_exceptions x
       set ordinals = array_remove(x.ordinals, place), ordinal = (array_remove(x.ordinals, place))[1]
     where x.tenant_id = old.tenant_id and x.frame_id = old.frame_id and place = any (x.ordinals) and cardinality(x.ordinals) > 1;
    delete from lighter.frame_exceptions x
     where x.tenant_id = old.tenant_id and x.frame_id = old.frame_id and x.ordinals = array[place];
    update lighter.frames f set voids = f.voids || place where f.tenant_id = old.tenant_id and f.id = old.frame_id;
    return old;
  end if;
  if (new.id, new.tenant_id, new.kind, new.entity_type, new.entity_id, new.r2_key, new.content_type, new.size_bytes, new.sha256, new.created_by,
      new.created_at, new.byte_offset, new.byte_length, new.frame_offset, new.content_encoding, new.source_id, new.row_id, new.field, new.refers_to)
     is distinct from
     (old.id, old.tenant_id, old.kind, old.entity_type, old.entity_id, old.r2_key, old.content_type, old.size_bytes, old.sha256, old.created_by,
      old.created_at, old.byte_offset, old.byte_length, old.frame_offset, old.content_encoding, old.source_id, old.row_id, old.field, old.refers_to)
  then
    raise exception 'artifact % came off a row, and can not be changed', old.id
      using errcode = 'feature_not_supported',
            hint = 'Only expires_at, released_at, deleted_at, deleted_reason, purged_at, damaged_at and damage can.';
  end if;
  select x.* into given from lighter.frame_exceptions x
   where x.tenant_id = old.tenant_id and x.frame_id = old.frame_id and place = any (x.ordinals);
  if (given.deleted_at, given.purged_at, given.released_at, given.damaged_at)
     is distinct from (old.deleted_at, old.purged_at, old.released_at, old.damaged_at) then
    return null;
  end if;
  -- Out of those that it was alike, and to those that it is alike from now on.
  if cardinality(given.ordinals) > 1 then
    update lighter.frame_exceptions x
       set ordinals = array_remove(x.ordinals, place), ordinal = (array_remove(x.ordinals, place))[1]
     where x.tenant_id = old.tenant_id and x.frame_id = old.frame_id and x.ordinal = given.ordinal;
  elsif given.ordinals is not null then
    delete from lighter.frame_exceptions x
     where x.tenant_id = old.tenant_id and x.frame_id = old.frame_id and x.ordinal = given.ordinal;
  end if;
  if num_nonnulls(new.expires_at, new.released_at, new.deleted_at, new.deleted_reason, new.purged_at, new.damaged_at, new.damage) > 0 then
    update lighter.frame_exceptions x
       set ordinals = array(select unnest(x.ordinals || place) order by 1), ordinal = least(x.ordinal, place)
     where x.tenant_id = old.tenant_id and x.frame_id = old.frame_id and x.ordinal = (
       select s.ordinal from lighter.frame_exceptions s
        where s.tenant_id = old.tenant_id and s.frame_id = old.frame_id
          and (s.expires_at, s.released_at, s.deleted_at, s.deleted_reason, s.purged_at, s.damaged_at, s.damage)
              is not distinct from
              (new.expires_at, new.released_at, new.deleted_at, new.deleted_reason, new.purged_at, new.damaged_at, new.damage)
        order by s.ordinal limit 1);
    if not found then
      insert into lighter.frame_exceptions (tenant_id, frame_id, ordinal, ordinals, expires_at, released_at, deleted_at, deleted_reason,
          purged_at, damaged_at, damage)
      values (old.tenant_id, old.frame_id, place, array[place], new.expires_at, new.released_at, new.deleted_at, new.deleted_reason,
          new.purged_at, new.damaged_at, new.damage);
    end if;
  end if;
  return new;
end
$$;
comment on function lighter.write_artifact() is 'Trigger of public.artifact_refs: insert makes a loose artifact; of an artifact of a pack only what is in lighter.frame_exceptions can be changed, and a delete leaves a hole in its frame.';
revoke all on function lighter.write_artifact() from public;

create or replace trigger lighter_write instead of insert or update or delete on public.artifact_refs
  for each row execute function lighter.write_artifact();

-- Of what is forgotten nothing is kept: no hash, no key of a row, no entity.
create or replace function lighter.forget_artifacts(tenants uuid[], frames uuid[], ordinals smallint[]) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  forgotten integer;
  of_frames integer;
begin
  delete from lighter.loose_artifacts l
   using unnest(tenants, frames, ordinals) d(tenant_id, id, ordinal)
   where d.ordinal is null and l.tenant_id = d.tenant_id and l.id = d.id and l.purged_at is not null;
  get diagnostics forgotten = row_count;
  perform from lighter.frames f
    join (select distinct tenant_id, frame_id from unnest(tenants, frames, ordinals) d(tenant_id, frame_id, ordinal) where ordinal is not null) d
      on f.tenant_id = d.tenant_id and f.id = d.frame_id
   order by f.tenant_id, f.id for update of f;
  with due as (
    select d.tenant_id, d.frame_id, array_agg(d.ordinal) as ordinals
      from unnest(tenants, frames, ordinals) d(tenant_id, frame_id, ordinal)
      join lighter.frames g on g.tenant_id = d.tenant_id and g.id = d.frame_id
     where d.ordinal = any (g.voids)
        or exists (select from lighter.frame_exceptions x
                    where x.tenant_id = d.tenant_id and x.frame_id = d.frame_id and d.ordinal = any (x.ordinals) and x.purged_at is not null)
     group by d.tenant_id, d.frame_id
  )
  update lighter.frames f
     set voids = array(select unnest(f.voids) union select unnest(d.ordinals)),
         hashes = (select string_agg(case when n::smallint = any (d.ordinals) then decode(repeat('00', 32), 'hex')
                                          else substr(f.hashes, 32 * n + 1, 32) end, '' order by n)
                     from generate_series(0, cardinality(f.sizes) - 1) n),
         row_uuids = case when f.row_uuids is not null then
           array(select case when (p.n - 1)::smallint <> all (d.ordinals) then p.id end from unnest(f.row_uuids) with ordinality p(id, n) order by p.n) end,
         row_texts = case when f.row_texts is not null then
           array(select case when (p.n - 1)::smallint <> all (d.ordinals) then p.id end from unnest(f.row_texts) with ordinality p(id, n) order by p.n) end,
         entity_places = case when f.entity_places is not null then
           array(select case when (p.n - 1)::smallint <> all (d.ordinals) then p.place end from unnest(f.entity_places) with ordinality p(place, n) order by p.n) end,
         entities = array(
           select case when exists (select from unnest(f.entity_places) with ordinality p(place, n)
                                     where p.place = e.n and (p.n - 1)::smallint <> all (d.ordinals)) then e.id end
             from unnest(f.entities) with ordinality e(id, n) order by e.n),
         refers_from = array(select r.ordinal from unnest(f.refers_from, f.refers_to) with ordinality r(ordinal, id, n)
                              where r.ordinal <> all (d.ordinals) order by r.n),
         refers_to = array(select r.id from unnest(f.refers_from, f.refers_to) with ordinality r(ordinal, id, n)
                            where r.ordinal <> all (d.ordinals) order by r.n)
    from due d
   where f.tenant_id = d.tenant_id and f.id = d.frame_id;
  with gone as materialized (
    select x.tenant_id, x.frame_id, x.ordinal, cardinality(x.ordinals) as n,
           array(select o from unnest(x.ordinals) o where o <> all (d.ordinals) order by o) as rest
      from (select d.tenant_id, d.frame_id, array_agg(d.ordinal) as ordinals
              from unnest(tenants, frames, ordinals) d(tenant_id, frame_id, ordinal)
             where d.ordinal is not null group by d.tenant_id, d.frame_id) d
      join lighter.frame_exceptions x on x.tenant_id = d.tenant_id and x.frame_id = d.frame_id and x.ordinals && d.ordinals
     where x.purged_at is not null
  ),
  shrunk as (
    update lighter.frame_exceptions x set ordinals = g.rest, ordinal = g.rest[1] from gone g
     where x.tenant_id = g.tenant_id and x.frame_id = g.frame_id and x.ordinal = g.ordinal and g.rest <> '{}'
  ),
  deleted as (
    delete from lighter.frame_exceptions x using gone g
     where x.tenant_id = g.tenant_id and x.frame_id = g.frame_id and x.ordinal = g.ordinal and g.rest = '{}'
  )
  select coalesce(sum(g.n - cardinality(g.rest)), 0) into of_frames from gone g;
  return forgotten + of_frames;
end
$$;
comment on function lighter.forget_artifacts(uuid[], uuid[], smallint[]) is
  'Takes away artifacts that are purged, given as public.artifact_refs has them: tenant_id, frame_id, ordinal; also what is known of ordinals that are no artifacts. Returns how many artifacts there were. For the sweeps, once their bytes are on their way out.';
revoke all on function lighter.forget_artifacts(uuid[], uuid[], smallint[]) from public;

create or replace function lighter.forget_frames(of_tenant uuid default null, max_rows integer default 1000) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  forgotten integer;
begin
  -- An object that is hidden is not gone.
  perform lighter.require_all_rows('{}');
  delete from lighter.frames f
   using (select g.tenant_id, g.id from lighter.frames g
           where g.artifacts = 0 and g.deleted_artifacts = 0 and (of_tenant is null or g.tenant_id = of_tenant)
             and (select count(distinct v) from unnest(g.voids) v) = cardinality(g.sizes)
             -- Nothing of its bytes is in the bucket, or will stay there.
             and (-1 = all (g.places)
                  or not exists (select from lighter.objects o
                                  where o.tenant_id = g.tenant_id and o.r2_key = g.r2_key and o.state <> 'deleting'))
           limit max_rows) d
   where f.tenant_id = d.tenant_id and f.id = d.id;
  get diagnostics forgotten = row_count;
  return forgotten;
end
$$;
comment on function lighter.forget_frames(uuid, integer) is
  'Takes away frames in which there is no artifact any more, and whose bytes are gone or on their way out; of all tenants or of one, so many at most. Returns how many.';
revoke all on function lighter.forget_frames(uuid, integer) from public;
