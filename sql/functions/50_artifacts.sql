-- Readers. They run with the caller's rights, so that row-level security applies beside their WHERE.
-- Bodies are text, not BEGIN ATOMIC: that would freeze the list of columns, and artifact_refs may be a table of
-- the application's, which may add a column or drop one of its own.
create or replace function lighter.artifact_get(tenant uuid, artifact uuid) returns setof public.artifact_refs
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select a.* from public.artifact_refs a where a.tenant_id = tenant and a.id = artifact;
$$;
comment on function lighter.artifact_get(uuid, uuid) is
  'One artifact of a tenant, tombstoned ones included; no row when there is none or it is another tenant''s.'
  ' Example: select r2_key, size_bytes from lighter.artifact_get(''<tenant>'', ''<artifact>'');';

-- One statement for each set of filters, so that each has an index: of one statement with "or null" the plan
-- is made once for all calls, and is none of the indexes'.
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
begin
  if of_entity is not null then
    return query
      -- The index leads with the type: without one, all that the tenant has are tried, and none.
      with recursive types(t) as (
        (select case when of_entity_type is null
                     then (select min(x.entity_type) from public.artifact_refs x where x.tenant_id = tenant)
                     else of_entity_type end)
        union all
        select (select min(x.entity_type) from public.artifact_refs x where x.tenant_id = tenant and x.entity_type > t)
          from types where t is not null and of_entity_type is null
      ),
      found as (
        select a.* from types
         cross join lateral (
           select x.* from public.artifact_refs x
            where x.tenant_id = tenant and x.entity_type = t and x.entity_id = of_entity
              and (of_kind is null or x.kind = of_kind)
              and x.deleted_at is null
              and (x.created_at, x.id) < (last_at, last_id)
            order by x.created_at desc, x.id desc
            limit rows_wanted) a
        union all
        select a.* from (
          select x.* from public.artifact_refs x
           where of_entity_type is null and x.tenant_id = tenant and x.entity_type is null and x.entity_id = of_entity
             and (of_kind is null or x.kind = of_kind)
             and x.deleted_at is null
             and (x.created_at, x.id) < (last_at, last_id)
           order by x.created_at desc, x.id desc
           limit rows_wanted) a
      )
      select f.* from found f order by f.created_at desc, f.id desc limit rows_wanted;
  else
    return query
      with recursive kinds(k) as (
        (select case when of_kind is null
                     then (select min(x.kind) from public.artifact_refs x where x.tenant_id = tenant and x.deleted_at is null)
                     else of_kind end)
        union all
        select (select min(x.kind) from public.artifact_refs x
                 where x.tenant_id = tenant and x.kind > k and x.deleted_at is null)
          from kinds where k is not null and of_kind is null
      )
      select page.*
        from kinds
       cross join lateral (
         select a.* from public.artifact_refs a
          where a.tenant_id = tenant and a.kind = k
            and (of_entity_type is null or a.entity_type = of_entity_type)
            and a.deleted_at is null
            and (a.created_at, a.id) < (last_at, last_id)
          order by a.created_at desc, a.id desc
          limit rows_wanted
       ) page
       order by page.created_at desc, page.id desc
       limit rows_wanted;
  end if;
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
  select a.* from public.artifact_refs a
   where a.tenant_id = tenant and a.entity_type = of_entity_type and a.entity_id = of_entity and a.deleted_at is null
   order by a.created_at desc, a.id desc
   limit least(greatest(max_rows, 0), 1000);
$$;
comment on function lighter.artifacts_for_entity(uuid, text, uuid, integer) is
  'Artifacts that belong to one entity of a tenant, such as a conversation; newest first, at most 1000.'
  ' Example: select * from lighter.artifacts_for_entity(''<tenant>'', ''conversation'', ''<conversation>'');';

create or replace function lighter.artifacts_of(tenant uuid, metadata jsonb) returns setof public.artifact_refs
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select a.*
    from public.artifact_refs a
   where a.tenant_id = tenant
     -- As an array it is computed once, and first: as_uuid is not leakproof, so under row-level security a join with
     -- its results could use no index.
     and a.id = any (array(
       select lighter.as_uuid(e.value)
         from jsonb_path_query(metadata, case jsonb_typeof(metadata) when 'array' then jsonpath 'strict $[*] ? (@.type() == "object")'
                                                                     else 'strict $ ? (@.type() == "object")' end) doc
        cross join jsonb_each_text(doc) e
        where e.key like '%\_ref'));
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
    from public.artifact_refs a
   where a.tenant_id = tenant and a.entity_type = of_entity_type and a.entity_id = of_entity
     and a.source_id is not null and a.deleted_at is null
   group by a.source_id, a.row_id
   order by max(a.created_at) desc, a.row_id
   limit least(greatest(max_rows, 0), 1000);
$$;
comment on function lighter.offloaded_rows(uuid, text, uuid, integer) is
  'Which rows of an entity, such as the messages of a conversation, have offloaded payloads, newest first, at most 1000.'
  ' A row that was written and offloaded again counts the artifacts of both until they are released.'
  ' Example: select row_id, payload_bytes from lighter.offloaded_rows(''<tenant>'', ''conversation'', ''<conversation>'');';
