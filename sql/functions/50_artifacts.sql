-- Readers. They run with the caller's rights, so that row-level security applies beside their WHERE.
create or replace function lighter.artifact_get(tenant uuid, artifact uuid) returns setof public.artifact_refs
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select a.* from public.artifact_refs a where a.tenant_id = tenant and a.frame_id = lighter.frame_of(artifact) and a.id = artifact;
$$;
comment on function lighter.artifact_get(uuid, uuid) is
  'One artifact of a tenant, tombstoned ones included; no row when there is none or it is another tenant''s.'
  ' Example: select r2_key, size_bytes from lighter.artifact_get(''<tenant>'', ''<artifact>'');';

-- The frames in which an entity has live artifacts, one for each of them: the newest `rows_wanted` (null: all). Planned
-- anew for each call: a plan for tenants of the average size reads all of a large one.
create or replace function lighter.entity_frames(
  tenant uuid,
  of_entity uuid,
  of_kind text default null,
  of_entity_type text default null,
  rows_wanted integer default null,
  before timestamptz default 'infinity',
  before_frame uuid default '00000000-0000-0000-0000-000000000000'
) returns uuid[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_custom_plan
as $$
begin
  return array(
    select e.id
      from (select f.id from lighter.frames f
             where f.tenant_id = tenant and f.entities @> array[of_entity] and f.artifacts > 0
               and (of_kind is null or f.kind = of_kind)
               and (of_entity_type is null or f.entity_type = of_entity_type)
               and (f.created_at, f.id) < (before, before_frame)
             order by f.created_at desc, f.id desc) e
     -- One after the other, so that it ends with the last that is wanted.
     cross join lateral (select f.entities, f.entity_places, f.voids from lighter.frames f where f.tenant_id = tenant and f.id = e.id offset 0) f
     cross join lateral unnest(f.entity_places) with ordinality p(entity_place, place)
     where f.entities[p.entity_place] = of_entity
       and (p.place - 1)::smallint <> all (f.voids)
       and (select x.deleted_at from lighter.frame_exceptions x
             where x.tenant_id = tenant and x.frame_id = e.id and (p.place - 1)::smallint = any (x.ordinals)) is null
     limit rows_wanted);
end
$$;
comment on function lighter.entity_frames(uuid, uuid, text, text, integer, timestamptz, uuid) is 'Frames with live artifacts of an entity; for other functions of ours.';

-- For a session of the tenant, as our owner: whether an array contains something is not leakproof, so under row-level
-- security the search could use no index.
create or replace function lighter.own_entity_frames(
  of_entity uuid,
  of_kind text default null,
  of_entity_type text default null,
  rows_wanted integer default null,
  before timestamptz default 'infinity',
  before_frame uuid default '00000000-0000-0000-0000-000000000000'
) returns uuid[]
language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$
  select lighter.entity_frames(lighter.current_tenant(), of_entity, of_kind, of_entity_type, rows_wanted, before, before_frame);
$$;
comment on function lighter.own_entity_frames(uuid, text, text, integer, timestamptz, uuid) is
  'lighter.entity_frames of the tenant of the transaction (app.current_tenant_id); nothing without one.';

-- First which they are, with a statement for each set of filters, so that each has an index: of one statement with
-- "or null" the plan is made once for all calls, and is none of the indexes'. Then those, one by one ("offset 0"): with
-- all at once a plan for tenants of the average size reads all of a large one.
create or replace function lighter.artifact_list(
  tenant uuid,
  of_kind text default null,
  of_entity_type text default null,
  of_entity uuid default null,
  max_rows integer default 50,
  before timestamptz default null,
  before_id uuid default null
) returns setof public.artifact_refs
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  rows_wanted constant integer := least(greatest(max_rows, 0), 1000);
  -- Without a row to continue after, every row is before it; without its id, only older ones are.
  last_at constant timestamptz := coalesce(before, 'infinity');
  last_id constant uuid := coalesce(before_id, '00000000-0000-0000-0000-000000000000');
  -- Ids of one frame follow each other: before the last row come others of its frame, then whole frames.
  last_frame constant uuid := lighter.frame_of(last_id);
  kinds text[];
  loose uuid[];
  frames uuid[];
begin
  if of_entity is not null then
    loose := array(
      -- The index leads with the type: without one, all that the tenant has are tried, and none.
      with recursive types(t) as (
        (select case when of_entity_type is null
                     then (select min(x.entity_type) from lighter.loose_artifacts x where x.tenant_id = tenant)
                     else of_entity_type end)
        union all
        select (select min(x.entity_type) from lighter.loose_artifacts x where x.tenant_id = tenant and x.entity_type > t)
          from types where t is not null and of_entity_type is null
      ),
      found as (
        select l.id, l.created_at from types
         cross join lateral (
           select x.id, x.created_at from lighter.loose_artifacts x
            where x.tenant_id = tenant and x.entity_type = t and x.entity_id = of_entity
              and (of_kind is null or x.kind = of_kind)
              and x.deleted_at is null
              and (x.created_at, x.id) < (last_at, last_id)
            order by x.created_at desc, x.id desc
            limit rows_wanted) l
        union all
        (select x.id, x.created_at from lighter.loose_artifacts x
          where of_entity_type is null and x.tenant_id = tenant and x.entity_type is null and x.entity_id = of_entity
            and (of_kind is null or x.kind = of_kind)
            and x.deleted_at is null
            and (x.created_at, x.id) < (last_at, last_id)
          order by x.created_at desc, x.id desc
          limit rows_wanted)
      )
      select f.id from found f order by f.created_at desc, f.id desc limit rows_wanted);
    frames := case when tenant = lighter.current_tenant()
                   then lighter.own_entity_frames(of_entity, of_kind, of_entity_type, rows_wanted, last_at, last_frame)
                   else lighter.entity_frames(tenant, of_entity, of_kind, of_entity_type, rows_wanted, last_at, last_frame) end;
  else
    kinds := array(
      with recursive kinds(k) as (
        (select case when of_kind is null
                     then least((select min(f.kind) from lighter.frames f where f.tenant_id = tenant and f.artifacts > 0),
                                (select min(l.kind) from lighter.loose_artifacts l where l.tenant_id = tenant and l.deleted_at is null))
                     else of_kind end)
        union all
        select least((select min(f.kind) from lighter.frames f where f.tenant_id = tenant and f.kind > k and f.artifacts > 0),
                     (select min(l.kind) from lighter.loose_artifacts l where l.tenant_id = tenant and l.kind > k and l.deleted_at is null))
          from kinds where k is not null and of_kind is null
      )
      select k from kinds where k is not null);
    loose := array(
      select l.id from unnest(kinds) k
       cross join lateral (
         select x.id, x.created_at from lighter.loose_artifacts x
          where x.tenant_id = tenant and x.kind = k
            and (of_entity_type is null or x.entity_type = of_entity_type)
            and x.deleted_at is null
            and (x.created_at, x.id) < (last_at, last_id)
          order by x.created_at desc, x.id desc
          limit rows_wanted) l
       order by l.created_at desc, l.id desc limit rows_wanted);
    -- Each has one at least: as many as hold what is wanted.
    frames := array(
      select p.id
        from (select f.id, sum(f.artifacts) over (order by f.created_at desc, f.id desc rows between unbounded preceding and 1 preceding) as newer
                from unnest(kinds) k
               cross join lateral (
                 select x.id, x.created_at, x.artifacts from lighter.frames x
                  where x.tenant_id = tenant and x.kind = k and x.artifacts > 0
                    and (of_entity_type is null or x.entity_type = of_entity_type)
                    and (x.created_at, x.id) < (last_at, last_frame)
                  order by x.created_at desc, x.id desc
                  limit rows_wanted) f) p
       where coalesce(p.newer, 0) < rows_wanted);
  end if;
  return query
    select a.* from (select distinct u.id from unnest(loose || frames || last_frame) u(id)) w
     cross join lateral (
       select x.* from public.artifact_refs x
        where x.tenant_id = tenant and x.frame_id = w.id
          and (of_kind is null or x.kind = of_kind)
          and (of_entity_type is null or x.entity_type = of_entity_type)
          and (of_entity is null or x.entity_id = of_entity)
          and x.deleted_at is null
          and (x.created_at, x.id) < (last_at, last_id)
       offset 0) a
     order by a.created_at desc, a.id desc
     limit rows_wanted;
end
$$;
comment on function lighter.artifact_list(uuid, text, text, uuid, integer, timestamptz, uuid) is
  'Artifacts of a tenant, newest first, at most 1000; continue with before and before_id of the last row.'
  ' Example: select id, kind, size_bytes from lighter.artifact_list(''<tenant>'', of_kind => ''agent_trace'', max_rows => 20);';

create or replace function lighter.artifacts_for_entity(tenant uuid, of_entity_type text, of_entity uuid, max_rows integer default 200)
returns setof public.artifact_refs
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select a.* from lighter.artifact_list(tenant, of_entity_type => of_entity_type, of_entity => of_entity, max_rows => max_rows) a
   where of_entity_type is not null and of_entity is not null;
$$;
comment on function lighter.artifacts_for_entity(uuid, text, uuid, integer) is
  'Artifacts that belong to one entity of a tenant, such as a conversation; newest first, at most 1000.'
  ' Example: select * from lighter.artifacts_for_entity(''<tenant>'', ''conversation'', ''<conversation>'');';

create or replace function lighter.artifacts_of(tenant uuid, metadata jsonb) returns setof public.artifact_refs
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select a.*
    from lighter.artifacts_get(tenant, array(
      select lighter.as_uuid(e.value)
        from jsonb_path_query(metadata, case jsonb_typeof(metadata) when 'array' then jsonpath 'strict $[*] ? (@.type() == "object")'
                                                                    else 'strict $ ? (@.type() == "object")' end) doc
       cross join jsonb_each_text(doc) e
       where e.key like '%\_ref')) a;
$$;
comment on function lighter.artifacts_of(uuid, jsonb) is
  'The artifacts that a row''s value points to, itself or, of an array, with an element; tombstoned ones included. Only of the value itself: the field''s artifact'
  ' may also be named within the payload of the metadata''s.'
  ' Example: select a.* from conversation_messages m, lighter.artifacts_of(''<tenant>'', m.metadata) a where m.id = ''<message>'';';

create or replace function lighter.offloaded_rows(tenant uuid, of_entity_type text, of_entity uuid, max_rows integer default 200)
returns table (source_id integer, row_id text, artifacts bigint, payload_bytes bigint, fields text[], newest timestamptz)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select a.source_id, a.row_id, count(*),
         case when count(a.size_bytes) > 0 then least(sum(a.size_bytes), 9223372036854775807)::bigint end,
         array_agg(distinct coalesce(a.field, '(whole)')), max(a.created_at)
    from (select l.source_id, l.row_id, l.size_bytes, l.field, l.created_at
            from lighter.loose_artifacts l
           where l.tenant_id = tenant and l.entity_type = of_entity_type and l.entity_id = of_entity
             and l.source_id is not null and l.deleted_at is null
          union all
          select f.source_id, f.row_id, f.size_bytes, f.field, f.created_at
            from (select distinct u.id
                    from unnest(case when tenant = lighter.current_tenant()
                                     then lighter.own_entity_frames(of_entity, of_entity_type => of_entity_type)
                                     else lighter.entity_frames(tenant, of_entity, of_entity_type => of_entity_type) end) u(id)) w
           cross join lateral (
             select x.source_id, x.row_id, x.size_bytes, x.field, x.created_at from public.artifact_refs x
              where x.tenant_id = tenant and x.frame_id = w.id
                and x.entity_type = of_entity_type and x.entity_id = of_entity and x.ordinal is not null and x.deleted_at is null
             offset 0) f) a
   group by a.source_id, a.row_id
   order by max(a.created_at) desc, a.row_id
   limit least(greatest(max_rows, 0), 1000);
$$;
comment on function lighter.offloaded_rows(uuid, text, uuid, integer) is
  'Which rows of an entity, such as the messages of a conversation, have offloaded payloads, newest first, at most 1000.'
  ' A row that was written and offloaded again counts the artifacts of both until they are released.'
  ' Example: select row_id, payload_bytes from lighter.offloaded_rows(''<tenant>'', ''conversation'', ''<conversation>'');';
