-- Tenants that the application names by texts or numbers. A name is one tenant within its namespace: that of the column
-- where it comes from, so that project 1 and account 1 are two.

-- Follows foreign keys: accounts.id is where messages.account_id comes from.
create or replace function lighter.tenant_origin(target regclass, column_name name) returns text
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  with recursive steps as (
    select target as relation, tenant_origin.column_name as name, 0 as step
    union all
    select fk.parent, fk.parent_key, s.step + 1
      from steps s
     cross join lateral (
       select f.parent, f.parent_key from lighter.foreign_keys(s.relation) f where f.column_name = s.name order by f.parent::text limit 1) fk
     where s.step < 10
  )
  select format('%I.%I.%I', n.nspname, c.relname, s.name)
    from steps s join pg_class c on c.oid = s.relation join pg_namespace n on n.oid = c.relnamespace
   order by s.step desc limit 1;
end;
comment on function lighter.tenant_origin(regclass, name) is 'The column that a tenant column''s values come from, over foreign keys of one column.';
revoke all on function lighter.tenant_origin(regclass, name) from public;

-- Two tables whose rows have one tenant each, and which one was not told, belong to the same one.
create or replace function lighter.single_tenant() returns uuid
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
return lighter.tenant_of('00000000-0000-0000-0000-000000000000', 'single');
comment on function lighter.single_tenant() is 'The tenant of the rows of a table that was attached with single_tenant.';

create or replace function lighter.tenant_named(name text) returns uuid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  as_id constant uuid := lighter.as_uuid(name);
  found uuid[] := array(select t.tenant_id from lighter.tenants t where t.external_id = name order by t.tenant_id);
begin
  if cardinality(found) = 0 and as_id is not null then
    return as_id;
  end if;
  if cardinality(found) = 0 then
    -- Nothing of it is stored yet.
    found := array(select distinct lighter.tenant_of(s.tenant_namespace, name) from lighter.sources s where s.tenant_namespace is not null order by 1);
  elsif as_id is not null and as_id <> all (found)
    and (exists (select from lighter.frames f where f.tenant_id = as_id) or exists (select from lighter.loose_artifacts l where l.tenant_id = as_id)
         or exists (select from lighter.tenants t where t.tenant_id = as_id)) then
    found := found || as_id;
  end if;
  if cardinality(found) = 1 then
    return found[1];
  end if;
  raise exception '% named "%"%', case when cardinality(found) > 1 then 'several tenants are' else 'no tenant is' end, name,
      case when cardinality(found) > 1 then ': ' || array_to_string(found, ', ') else '' end
    using errcode = case when cardinality(found) > 1 then 'ambiguous_parameter' else 'invalid_parameter_value' end,
          hint = case when cardinality(found) > 1 then 'Pass one of these uuids. Which is whose: select tenant_id, namespace from lighter.tenants where external_id = the name;'
                      else 'Pass the uuid of the tenant. A name is known only if an attached table has tenants with names.' end;
end
$$;
comment on function lighter.tenant_named(text) is
  'The tenant of a name that the application has for it, or of a uuid. Fails where there are several, or none: 42P08 or 22023.';
