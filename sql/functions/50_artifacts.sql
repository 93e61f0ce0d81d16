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
  'One artifact of a tenant, tombstoned ones included; no row when there is none or it is another tenant''s.';

create or replace function lighter.artifact_list(
  tenant uuid,
  of_kind text default null,
  of_entity_type text default null,
  of_entity uuid default null,
  max_rows integer default 50,
  before timestamptz default null,
  before_id uuid default null
) returns setof public.artifact_refs
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select a.* from public.artifact_refs a
   where a.tenant_id = tenant
     and a.deleted_at is null
     and (of_kind is null or a.kind = of_kind)
     and (of_entity_type is null or a.entity_type = of_entity_type)
     and (of_entity is null or a.entity_id = of_entity)
     and (before is null
          or a.created_at < before
          or a.created_at = before and a.id < before_id)
   order by a.created_at desc, a.id desc
   limit least(greatest(max_rows, 0), 1000);
$$;
comment on function lighter.artifact_list(uuid, text, text, uuid, integer, timestamptz, uuid) is
  'Artifacts of a tenant, newest first, at most 1000; continue with before and before_id of the last row.';

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
  'Artifacts that belong to one entity of a tenant, such as a conversation; newest first, at most 1000.';
