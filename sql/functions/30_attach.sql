create or replace function lighter.check_envelope(source lighter.sources) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if lighter.envelope_value_limit(source) < 40 then
    perform lighter.raise_obstacles(source.relation, source.json_column, array[lighter.envelope_obstacle(source)]);
  end if;
end
$$;
comment on function lighter.check_envelope(lighter.sources) is
  'Fails when the envelope keys of a source can not fit below its threshold.';
revoke all on function lighter.check_envelope(lighter.sources) from public;

-- Single-column foreign keys of a table.
create or replace function lighter.foreign_keys(target regclass)
returns table (column_name name, parent regclass, parent_key name)
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  select a.attname, c.confrelid::regclass, pa.attname
    from pg_constraint c
    join pg_attribute a on a.attrelid = c.conrelid and a.attnum = c.conkey[1]
    join pg_attribute pa on pa.attrelid = c.confrelid and pa.attnum = c.confkey[1]
   where c.conrelid = target and c.contype = 'f' and cardinality(c.conkey) = 1 and c.confrelid <> c.conrelid
   order by a.attnum;
end;
comment on function lighter.foreign_keys(regclass) is
  'One-column foreign keys of a table.';
revoke all on function lighter.foreign_keys(regclass) from public;

-- To tables with a column of that name, the nearest first.
create or replace function lighter.tenant_paths(target regclass, column_name name) returns table (path name[], relation regclass)
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  with recursive steps as (
    select fk.parent as relation, array[fk.column_name] as path from lighter.foreign_keys(target) fk
    union all
    select fk.parent, s.path || fk.column_name
      from steps s cross join lateral lighter.foreign_keys(s.relation) fk
     where cardinality(s.path) < 4
  )
  select s.path, s.relation from steps s
   where exists (select from pg_attribute a where a.attrelid = s.relation and a.attname = tenant_paths.column_name and a.attnum > 0 and not a.attisdropped)
   order by cardinality(s.path), s.path limit 10;
end;
comment on function lighter.tenant_paths(regclass, name) is 'Foreign keys, one after the other, that lead to tables with a column of that name.';
revoke all on function lighter.tenant_paths(regclass, name) from public;

create or replace function lighter.column_type(target regclass, column_name name) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
  select format_type(a.atttypid, null) from pg_attribute a
   where a.attrelid = target and a.attname = column_name and a.attnum > 0 and not a.attisdropped
);
comment on function lighter.column_type(regclass, name) is
  'Type of a column; null when there is none of that name.';
revoke all on function lighter.column_type(regclass, name) from public;

create or replace function lighter.column_kind(target regclass, column_name name) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
  select case k.name when 'character varying' then 'text' else k.name end
    from (select coalesce(
             (select format_type(d.made_of, null) from lighter.domains_of(target, column_name) d
               where (select t.typtype from pg_type t where t.oid = d.made_of) <> 'd'),
             lighter.column_type(target, column_name)) as name) k
   where k.name in ('jsonb', 'json', 'text', 'character varying', 'bytea')
);
comment on function lighter.column_kind(regclass, name) is
  'What a column''s type counts as: jsonb, json, text or bytea, also through domains; null of any other.';
revoke all on function lighter.column_kind(regclass, name) from public;

-- What was said, over what the source has already, over what is the default. Null means "not said", everywhere.
create or replace function lighter.attach_options(existing lighter.sources, said jsonb) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
return jsonb_build_object(
    'phase1_field', 'tool_interactions',
    'phase1_kind', 'assistant_message_tool_interactions',
    'phase2_kind', 'assistant_message_metadata',
    'envelope_keys', array['tenant_id', 'model', 'iterations', 'reason', 'usage', 'lead_id', 'contact_id',
      'account_id', 'opportunity_id', 'activity_id', 'project_id', 'site_id'],
    'min_bytes', 0,
    'skip_triggers', true,
    'allow_dependents', false,
    'trust_owner', false,
    'guard', 'off',
    'trigger', true)
  || case when existing.id is null then '{}' else
       -- A field or entity that the source does not have was decided too.
       jsonb_build_object('phase1_field', '', 'entity_column', '', 'entity_type', '') || jsonb_strip_nulls(to_jsonb(existing)) end
  || jsonb_build_object('tenant_path', case when said ? 'tenant_column' then '[]' else to_jsonb(existing.parent_columns) end)
  -- What is said of the one takes back the other; and a boolean is said where a tenant is recorded.
  || jsonb_build_object('single_tenant', existing.single_tenant is not null and not said ?| array['tenant_column', 'tenant_path'])
  || case when said ? 'tenant_column' or said ? 'tenant_path' then '{"tenant_namespace": null}' else '{}'::jsonb end
  || jsonb_strip_nulls(said);
comment on function lighter.attach_options(lighter.sources, jsonb) is
  'The options of attach that hold: what was said, else what the source has, else the default.';
revoke all on function lighter.attach_options(lighter.sources, jsonb) from public;

-- The key of a table's rows: the columns that were said, else those that it has already, else the primary key, else the
-- narrowest unique index that fits. No row: there is none.
create or replace function lighter.choose_key(target regclass, said text[], existing name[])
returns table (key_columns name[], key_types text[])
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  -- What it has stays in its order: queue and pins name rows by that.
  select case when c.is_known then existing else k.columns end,
         case when c.is_known then array(select k.types[array_position(k.columns, e.name)] from unnest(existing) with ordinality e(name, n) order by e.n)
              else k.types end
    from lighter.key_candidates(target) k
   cross join lateral (select coalesce(k.columns @> existing and k.columns <@ existing, false) as is_known) c
   where k.problem is null
     and (cardinality(said) = 0 or k.columns::text[] @> said and k.columns::text[] <@ said)
   order by c.is_known desc, k.is_primary desc, cardinality(k.columns), k.width, k.index::text
   limit 1;
end;
comment on function lighter.choose_key(regclass, text[], name[]) is
  'Columns of the key that lighter.attach takes, of those that were said, or of any.';
revoke all on function lighter.choose_key(regclass, text[], name[]) from public;

create or replace function lighter.choice_obstacles(source lighter.sources, said text[]) returns setof lighter.obstacle
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  with indexes as (
    select k.* from lighter.key_candidates(source.relation) k
     where cardinality(said) = 0 or k.columns::text[] @> said and k.columns::text[] <@ said
  ),
  found as (
    select (select string_agg(format('%s (%s) cannot be it: %s', k.index, array_to_string(k.columns, ', '), k.problem), '; '
                     order by k.is_primary desc, k.index::text)
              from indexes k where k.problem is not null) as problems,
           (select k.columns from indexes k where k.problem like '%deferrable%' order by k.is_primary desc, k.index::text limit 1) as deferrable,
           (select string_agg(quote_ident(c), ', ' order by n) from unnest(said) with ordinality x(c, n)) as wanted
  )
  select lighter.new_obstacle('invalid_table_definition',
           case when cardinality(said) > 0
                then format('no unique index of %s over the columns %s can be its key', source.relation, f.wanted)
                else format('%s has no key: neither a primary key nor a unique index tells its rows apart', source.relation) end
             || coalesce('. ' || f.problems, ''),
           case when f.deferrable is not null then format('create unique index concurrently on %s (%s); (not deferrable).', source.relation,
                  (select string_agg(quote_ident(c), ', ' order by n) from unnest(f.deferrable) with ordinality x(c, n)))
                when cardinality(said) > 0 then format('alter table %s add unique (%s); with columns that are not null.', source.relation, f.wanted)
                else format('alter table %s add column lighter_key uuid not null default gen_random_uuid() unique;', source.relation) end
             || ' A key has columns of the types uuid, smallint, integer, bigint, text, varchar, date, timestamp, timestamptz, an enum, or domains of those.')
    from found f where source.key_columns is null
  union all
  select lighter.new_obstacle('object_in_use',
           format('the rows of %s are known by (%s) for column %s, and would be by (%s) for this one', source.relation,
             array_to_string(other.key_columns, ', '), other.json_column, array_to_string(source.key_columns, ', ')),
           format('Pass no key_columns; or first: select lighter.detach(%L, %L);', source.relation, other.json_column))
    from (select (lighter.with_current_names(o)).* from lighter.sources o where o.relation = source.relation) other
   where source.key_columns is not null and other.json_column <> source.json_column and other.key_columns <> source.key_columns;
end;
comment on function lighter.choice_obstacles(lighter.sources, text[]) is 'Said when a table has no key by which its rows can be told apart, with what is wrong with each of its unique indexes.';
revoke all on function lighter.choice_obstacles(lighter.sources, text[]) from public;

-- What attach would write, found from its arguments and the catalogue, and all that stands in the way of it. One
-- obstacle does not keep the next from being found: whoever attaches mends them all at once.
create or replace function lighter.describe_source(
  target regclass,
  json_column name,
  said jsonb,
  out source lighter.sources,
  out existing lighter.sources,
  out obstacles lighter.obstacle[]
)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  s lighter.sources;
  options jsonb;
  relation record;
  schema_owner name;
  parents record;
  path name[] := '{}';
  step record;
  position integer;
  column_type text;
  column_kind text;
  tenant_table regclass;
  is_single boolean;
  parsed record;
  current lighter.sources;
begin
  if target is null or json_column is null then
    raise exception 'table and column must be given' using errcode = 'null_value_not_allowed';
  end if;
  select relkind, relpersistence, relnamespace, relowner into relation from pg_class where oid = target;
  -- Of what is no table of the application's nothing else can be said.
  if relation.relkind is null or relation.relkind not in ('r', 'p') then
    obstacles := array[lighter.new_obstacle('wrong_object_type', format('%s is not a table', target),
      'Attach the table that the view or other relation reads from.')];
    return;
  end if;
  if relation.relpersistence = 't' then
    obstacles := array[lighter.new_obstacle('wrong_object_type', format('%s is a temporary table, which no other session sees', target))];
    return;
  end if;
  if relation.relnamespace in ('lighter'::regnamespace, 'pg_catalog'::regnamespace) then
    obstacles := array[lighter.new_obstacle('wrong_object_type', format('%s belongs to pg-lighter itself, or to Postgres', target))];
    return;
  end if;
  obstacles := '{}';
  select * into existing from lighter.sources e where e.relation = target and e.json_column = describe_source.json_column;
  options := lighter.attach_options(existing, said);
  s.relation := target;
  s.json_column := json_column;

  -- set_threshold rebuilds the trigger with the rights of our owner.
  schema_owner := (select pg_get_userbyid(nspowner) from pg_namespace where nspname = 'lighter');
  if (options ->> 'trigger')::boolean and not has_table_privilege(schema_owner, target, 'trigger') then
    obstacles := obstacles || lighter.new_obstacle('insufficient_privilege',
      format('"%s", the owner of schema lighter, may not create a trigger on %s', schema_owner, target),
      format('grant trigger on %s to %I;', target, schema_owner));
  end if;

  select c.key_columns, c.key_types into s.key_columns, s.key_types
    from lighter.choose_key(target, array(select jsonb_array_elements_text(said -> 'key_columns')),
           coalesce((lighter.with_current_names(existing)).key_columns,
             -- Pins and commands name a row of a table, whichever of its columns they mean.
             (select (lighter.with_current_names(o)).key_columns from lighter.sources o where o.relation = target and existing.id is null order by o.id limit 1))) c;
  obstacles := obstacles || array(select o from lighter.choice_obstacles(s, array(select jsonb_array_elements_text(said -> 'key_columns'))) o);

  column_type := lighter.column_type(target, json_column);
  column_kind := lighter.column_kind(target, json_column);
  s.column_type := coalesce(column_kind, existing.column_type, 'jsonb');
  s.mode := coalesce(options ->> 'mode',
    case when said ? 'pointer_column' or coalesce((said ->> 'create_pointer_column')::boolean, false) then 'whole'
         else case s.column_type when 'jsonb' then 'document' when 'bytea' then 'whole' else 'stub' end end);
  s.made_pointer_column := false;
  if s.mode = 'whole' then
    s.pointer_column := coalesce(options ->> 'pointer_column',
      case when (said ->> 'create_pointer_column')::boolean then left(json_column, 50) || '_artifact_id' end);
    s.made_pointer_column := coalesce(existing.pointer_column = s.pointer_column and existing.made_pointer_column, false)
      -- It stayed when the column was detached, since rows had ids in it. One that was made since has another number.
      or existing.id is null and exists (
        select from lighter.former_sources f
         where f.relation = target and f.json_column = describe_source.json_column and f.made_pointer_column
           and f.relation_oid = target::oid and f.pointer_attnum = lighter.number_of_column(target, s.pointer_column))
      or coalesce((said ->> 'create_pointer_column')::boolean, false) and lighter.column_type(target, s.pointer_column) is null;
  elsif said ? 'pointer_column' or coalesce((said ->> 'create_pointer_column')::boolean, false) then
    obstacles := obstacles || lighter.new_obstacle('invalid_parameter_value', format('a pointer column is for mode whole, not %s', s.mode),
      'Leave pointer_column and create_pointer_column out, or pass mode => ''whole''.');
  end if;
  if column_type is null then
    obstacles := obstacles || lighter.new_obstacle('undefined_column', format('%s has no column "%s"', target, json_column));
  elsif column_kind is null then
    obstacles := obstacles || lighter.new_obstacle('datatype_mismatch',
      format('%s.%s is of type %s, not jsonb, json, text or bytea', target, json_column, column_type),
      format('alter table %s alter column %I type text using %I::text;', target, json_column, json_column));
  elsif (select attgenerated <> '' from pg_attribute a where a.attrelid = target and a.attname = json_column) then
    obstacles := obstacles || lighter.new_obstacle('wrong_object_type',
      format('%s.%s is generated, so nothing can be taken off it', target, json_column), 'Attach the column that it is generated from.');
  end if;

  -- The tenant: a column of the table, else of the one parent that has it.
  is_single := (options ->> 'single_tenant')::boolean;
  if is_single then
    s.single_tenant := lighter.single_tenant();
    if said ?| array['tenant_column', 'tenant_path', 'tenant_namespace'] then
      obstacles := obstacles || lighter.new_obstacle('invalid_parameter_value',
        'single_tenant says that all rows have one tenant, and tenant_column, tenant_path or tenant_namespace where to find theirs',
        'Pass single_tenant => true alone, or leave it out.');
    end if;
  else
    s.tenant_column := coalesce(options ->> 'tenant_column', 'tenant_id');
    path := array(select jsonb_array_elements_text(nullif(options -> 'tenant_path', 'null')));
  end if;
  if not is_single and path = '{}' and lighter.column_type(target, s.tenant_column) is null then
    select count(*) as found, min(fk.column_name::text)::name as column_name,
           string_agg(format('%s (over %s)', fk.parent, fk.column_name), ', ') as names
      into parents
      from lighter.foreign_keys(target) fk
     where lighter.column_type(fk.parent, s.tenant_column) is not null;
    if parents.found = 0 then
      obstacles := obstacles || lighter.new_obstacle('undefined_column',
        format('cannot tell the tenant of a row of %s: neither it nor a table it refers to has a column "%s"', target, s.tenant_column),
        coalesce((select format('Pass tenant_path => %L, which leads to %s.%I', t.path, t.relation, s.tenant_column) from lighter.tenant_paths(target, s.tenant_column) t limit 1)
          || ', or tenant_column => another column; or', 'Pass tenant_column => another column, or tenant_path => the foreign keys that lead to the table with the tenant; or')
          || ' single_tenant => true, if all rows have one.');
    elsif parents.found > 1 then
      obstacles := obstacles || lighter.new_obstacle('ambiguous_column',
        format('the tenant of a row of %s can be found in several tables: %s', target, parents.names),
        format('Pass tenant_path => the column to follow, such as %L.', array[parents.column_name]));
    else
      path := array[parents.column_name];
    end if;
  end if;
  s.parent_relations := '{}';
  s.parent_key_columns := '{}';
  s.parent_columns := '{}';
  tenant_table := target;
  for position in 1 .. cardinality(path) loop
    -- A column may refer to several tables: the one where the path goes on is meant.
    select fk.parent, fk.parent_key into step
      from lighter.foreign_keys(tenant_table) fk
     where fk.column_name = path[position]
     order by lighter.column_type(fk.parent, coalesce(path[position + 1], s.tenant_column)) is not null desc,
              lighter.column_type(fk.parent, s.tenant_column) = 'uuid' desc nulls last
     limit 1;
    if step.parent is null then
      obstacles := obstacles || lighter.new_obstacle('undefined_object',
        format('%s.%s is not a foreign key of one column', tenant_table, path[position]),
        'tenant_path must lead to the table that has the tenant.'
          || coalesce((select format(' Such as: tenant_path => %L', t.path) from lighter.tenant_paths(target, s.tenant_column) t limit 1), ''));
      tenant_table := null;
      exit;
    end if;
    s.parent_columns := s.parent_columns || path[position];
    s.parent_relations := s.parent_relations || step.parent;
    s.parent_key_columns := s.parent_key_columns || step.parent_key;
    tenant_table := step.parent;
  end loop;
  column_type := lighter.column_type(tenant_table, s.tenant_column);
  -- One that was not found is an obstacle already.
  if column_type in ('text', 'character varying', 'smallint', 'integer', 'bigint') then
    s.tenant_namespace := coalesce((options ->> 'tenant_namespace')::uuid,
      -- Attached again, its rows have the tenants that they had.
      (select f.tenant_namespace from lighter.former_sources f where f.relation = target and f.json_column = describe_source.json_column order by f.id desc limit 1),
      lighter.tenant_of('00000000-0000-0000-0000-000000000000', lighter.tenant_origin(tenant_table, s.tenant_column)));
    if not (select coalesce((select o.collisdeterministic from pg_collation o where o.oid = a.attcollation), true)
              from pg_attribute a where a.attrelid = tenant_table and a.attname = s.tenant_column) then
      obstacles := obstacles || lighter.new_obstacle('feature_not_supported',
        format('the tenant column %s.%I has a nondeterministic collation, so one tenant could have several names', tenant_table, s.tenant_column),
        format('alter table %s alter column %I type %s collate "C";', tenant_table, s.tenant_column, column_type));
    end if;
  elsif column_type <> 'uuid' or column_type is null and s.parent_relations <> '{}' and tenant_table is not null then
    obstacles := obstacles || lighter.new_obstacle('datatype_mismatch',
      format('the tenant column %s.%s is %s, not uuid, text, varchar, smallint, integer or bigint', tenant_table, s.tenant_column, coalesce('of type ' || column_type, 'missing')),
      'Pass tenant_column => another column, or single_tenant => true, if all rows have one tenant.');
  elsif said ? 'tenant_namespace' then
    obstacles := obstacles || lighter.new_obstacle('invalid_parameter_value',
      format('tenant_namespace is for tenants that have names, and %s.%s is of type %s', tenant_table, s.tenant_column, coalesce(column_type, 'none')),
      'Leave tenant_namespace out.');
  end if;

  -- The entity: what was passed, else the parent, else the first table referred to by a uuid.
  s.entity_column := options ->> 'entity_column';
  s.entity_type := options ->> 'entity_type';
  if s.entity_column is null and s.entity_type is null then
    select fk.column_name, regexp_replace(c.relname, 's$', '') into s.entity_column, s.entity_type
      from lighter.foreign_keys(target) fk
      join pg_class c on c.oid = fk.parent
     where fk.column_name is distinct from s.tenant_column
       and (s.parent_columns = '{}' or fk.column_name = s.parent_columns[1])
       and lighter.column_type(target, fk.column_name) = 'uuid'
     limit 1;
  end if;
  s.entity_column := nullif(s.entity_column, '');
  s.entity_type := nullif(s.entity_type, '');
  column_type := lighter.column_type(target, s.entity_column);
  if s.entity_column is not null and column_type is distinct from 'uuid' then
    obstacles := obstacles || lighter.new_obstacle('datatype_mismatch',
      format('the entity column %s.%s is %s, not uuid', target, s.entity_column, coalesce('of type ' || column_type, 'missing')));
  end if;

  s.phase1_kind := options ->> 'phase1_kind';
  s.phase2_kind := options ->> 'phase2_kind';
  if s.mode <> 'document' then
    -- There is one phase, and its artifact is the value.
    if existing.id is null and not said ? 'phase2_kind' then
      s.phase2_kind := 'column_value';
    end if;
    if coalesce(said ->> 'phase1_field', '') <> '' or coalesce(jsonb_array_length(said -> 'envelope_keys'), 0) > 0 then
      obstacles := obstacles || lighter.new_obstacle('invalid_parameter_value',
        format('phase1_field and envelope_keys are for mode document: in mode %s the value leaves as a whole', s.mode),
        'Leave them out, or pass mode => ''document''.');
    end if;
    options := options || '{"phase1_field": "", "envelope_keys": [], "min_bytes": 0}';
  end if;
  if not (s.phase1_kind ~ '^[a-z][a-z0-9_]{0,62}$' and s.phase2_kind ~ '^[a-z][a-z0-9_]{0,62}$') then
    obstacles := obstacles || lighter.new_obstacle('invalid_parameter_value',
      format('a kind is snake_case, at most 63 characters: %s, %s', s.phase1_kind, s.phase2_kind));
  end if;
  s.phase1_field := nullif(options ->> 'phase1_field', '');
  -- "artifact_metadata" because its pointer would be artifact_metadata_ref.
  if s.phase1_field = any (array['artifact_metadata', 'artifact_metadata_ref', 'artifact_metadata_kind'])
     or octet_length(s.phase1_field) > 200 then
    obstacles := obstacles || lighter.new_obstacle('invalid_parameter_value',
      format('phase1_field "%s" is reserved, or too long', s.phase1_field));
  end if;
  s.envelope_keys := array(
    select distinct k from jsonb_array_elements_text(options -> 'envelope_keys') k
     where k is not null
       and k not in ('artifact_metadata_ref', 'artifact_metadata_kind')
       and k is distinct from s.phase1_field
       and k is distinct from s.phase1_field || '_ref' and k is distinct from s.phase1_field || '_count'
     order by k);
  -- 0: what the settings say.
  s.threshold_bytes := nullif((options ->> 'threshold_bytes')::integer, 0);
  s.min_bytes := (options ->> 'min_bytes')::integer;
  -- Negative, and 0 for bytes: what the settings say.
  s.settle_for := case when (options ->> 'settle_for')::interval >= '0' then (options ->> 'settle_for')::interval end;
  s.max_wait := case when (options ->> 'max_wait')::interval >= '0' then (options ->> 'max_wait')::interval end;
  s.ship_alone_bytes := nullif((options ->> 'ship_alone_bytes')::integer, 0);
  if s.min_bytes not between 0 and 1000000000 then
    obstacles := obstacles || lighter.new_obstacle('invalid_parameter_value',
      format('min_bytes must be between 0 and 1000000000, got %s', s.min_bytes));
  end if;
  if s.settle_for > '30 days' or s.max_wait > '90 days' then
    obstacles := obstacles || lighter.new_obstacle('invalid_parameter_value',
      format('settle_for can be 30 days at most, max_wait 90 days; got %s and %s', coalesce(s.settle_for::text, 'none'), coalesce(s.max_wait::text, 'none')));
  end if;
  if s.ship_alone_bytes < 1024 then
    obstacles := obstacles || lighter.new_obstacle('invalid_parameter_value',
      format('ship_alone_bytes must be 1024 or more, got %s', s.ship_alone_bytes));
  end if;
  s.skip_triggers := (options ->> 'skip_triggers')::boolean;
  s.allow_dependents := (options ->> 'allow_dependents')::boolean;
  s.trust_owner := (options ->> 'trust_owner')::boolean;
  s.guard := options ->> 'guard';
  if s.guard not in ('off', 'warn', 'error') then
    obstacles := obstacles || lighter.new_obstacle('invalid_parameter_value',
      format('guard must be off, warn or error, got "%s"', s.guard));
  end if;
  if s.threshold_bytes not between 1024 and 1000000000 then
    obstacles := obstacles || lighter.new_obstacle('invalid_parameter_value',
      format('threshold_bytes must be between 1024 and 1000000000, got %s', s.threshold_bytes));
  elsif lighter.envelope_value_limit(s) < 40 then
    obstacles := obstacles || lighter.envelope_obstacle(s);
  end if;
  s.trigger := (options ->> 'trigger')::boolean;
  s.when_varies := false;
  if btrim(said ->> 'when_sql') <> '' then
    parsed := lighter.parse_when(target, said ->> 'when_sql', s.trust_owner);
    s.when_sql := parsed.printed;
    s.when_parts := parsed.parts;
    s.when_columns := parsed.columns;
    s.when_varies := coalesce(parsed.varies, false);
    obstacles := obstacles || parsed.obstacles;
    -- Code of somebody who is not trusted is not run to see how long it takes.
    if not exists (select from unnest(parsed.obstacles) o where o.is_fatal) then
      obstacles := obstacles || lighter.try_when(target, s.when_sql);
    end if;
  elsif not said ? 'when_sql' and existing.when_parts is not null then
    current := lighter.with_current_names(existing);
    s.when_sql := current.when_sql;
    s.when_parts := existing.when_parts;
    s.when_columns := current.when_columns;
    s.when_varies := existing.when_varies;
    -- By it the function that it has is found.
    s.id := existing.id;
  end if;
  if existing.when_sql is not null and existing.when_parts is distinct from s.when_parts then
    obstacles := obstacles || lighter.new_obstacle('warning',
      'rows that the former when_sql has kept in place, and this one does not, are queued when they are written again',
      format('Queue them now: lighter backfill --table %s', target), false);
  end if;
  source := s;
  obstacles := obstacles || array(select o from lighter.source_obstacles(s) o) || array(select o from lighter.when_warnings(s) o)
    || array(select o from lighter.change_obstacles(existing, s) o);
end
$$;
comment on function lighter.describe_source(regclass, name, jsonb) is
  'What lighter.attach is to record for its arguments, and all that stands in its way: what was not said is detected, what can not be is an obstacle.';
revoke all on function lighter.describe_source(regclass, name, jsonb) from public;

-- What may not be changed as long as rows are offloaded: what they are read by.
create or replace function lighter.change_obstacles(existing lighter.sources, wanted lighter.sources)
returns setof lighter.obstacle
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  -- In another mode, or under another pointer column, their pointers would not be seen, and be taken for gone. That
  -- holds of what came off the column when it was attached before, too.
  with attached as (
    select existing.id as id, existing.mode as mode, existing.pointer_column as pointer_column where existing.id is not null
    union all
    select f.id, f.mode, lighter.name_of_column(f.relation, f.pointer_attnum, f.pointer_column, f.relation_oid = f.relation::oid)
      from lighter.former_sources f
     where f.relation = wanted.relation and not f.rows_deleted
       and lighter.name_of_column(f.relation, f.json_attnum, f.json_column, f.relation_oid = f.relation::oid) = wanted.json_column
  ),
  former as (
    select existing.id as id where existing.id is not null
    union all
    select f.id from lighter.former_sources f where f.relation = wanted.relation and f.json_column = wanted.json_column and existing.id is not null
  ),
  taken as (
    select exists (select from former join public.artifact_refs a on a.source_id = former.id and a.deleted_at is null and a.released_at is null) as anything,
           (select a.field from former join public.artifact_refs a on a.source_id = former.id and a.deleted_at is null and a.released_at is null
             where a.field <> wanted.phase1_field or a.field is not null and wanted.phase1_field is null
             limit 1) as other_field
  ),
  remedy as (
    select format('Keep what it has; or restore its rows first: lighter restore --all --table %s, and an hour later lighter sweep release.', wanted.relation) as hint
  )
  select lighter.new_obstacle('object_in_use',
           format('rows of %s are offloaded under the field "%s": with phase1_field %s they could not be read',
             wanted.relation, other_field, coalesce('"' || wanted.phase1_field || '"', 'none')), hint)
    from taken cross join remedy where other_field is not null
  union all
  select lighter.new_obstacle('object_in_use',
           format('rows of %s are offloaded for the tenant in %s.%s: by %s.%s they could belong to another', wanted.relation,
             coalesce(existing.parent_relations[cardinality(existing.parent_relations)], existing.relation), coalesce(existing.tenant_column, 'single_tenant'),
             coalesce(wanted.parent_relations[cardinality(wanted.parent_relations)], wanted.relation), coalesce(wanted.tenant_column, 'single_tenant')), hint)
    from taken cross join remedy
   where anything and existing.id is not null and num_nonnulls(wanted.tenant_column, wanted.single_tenant) > 0
     and (existing.tenant_column is distinct from wanted.tenant_column
          or existing.tenant_namespace is distinct from wanted.tenant_namespace
          or existing.single_tenant is distinct from wanted.single_tenant
          or existing.parent_relations is distinct from wanted.parent_relations
          or existing.parent_columns is distinct from wanted.parent_columns
          or existing.parent_key_columns is distinct from wanted.parent_key_columns)
  union all
  select lighter.new_obstacle('object_in_use',
           format('rows of %s are offloaded under the key %s (%s): under %s (%s) they would not be found', wanted.relation,
             array_to_string(existing.key_columns, ', '), array_to_string(existing.key_types, ', '),
             array_to_string(wanted.key_columns, ', '), array_to_string(wanted.key_types, ', ')), hint)
    from taken cross join remedy
   -- A key of another name with the values that it had is the same key.
   where anything and existing.id is not null and wanted.key_columns is not null
     and (cardinality(existing.key_types) <> cardinality(wanted.key_types)
          or exists (select from unnest(existing.key_types, wanted.key_types) t(old, new) where t.new <> all (lighter.same_key_types(t.old))))
  union all
  (select lighter.new_obstacle('object_in_use',
            format('rows of %s.%I are offloaded in mode %s%s: in mode %s%s they could not be read', wanted.relation, wanted.json_column,
              was.mode, ' with pointer column ' || was.pointer_column, wanted.mode, ' with pointer column ' || wanted.pointer_column),
            format('Attach it as it was (mode => %L%s), restore its rows (lighter restore --all --table %s), and an hour later: lighter sweep release.',
              was.mode, ', pointer_column => ' || quote_literal(was.pointer_column), wanted.relation))
     from attached was
    where (was.mode, was.pointer_column) is distinct from (wanted.mode, wanted.pointer_column)
      and exists (select from public.artifact_refs a where a.source_id = was.id and a.deleted_at is null and a.released_at is null)
    order by was.id
    limit 1);
end;
comment on function lighter.change_obstacles(lighter.sources, lighter.sources) is
  'Changes of an attached column that its offloaded rows do not allow.';
revoke all on function lighter.change_obstacles(lighter.sources, lighter.sources) from public;

create or replace function lighter.attach_said(
  tenant_column name, tenant_path name[], entity_type text, entity_column name, phase1_field text, phase1_kind text,
  phase2_kind text, envelope_keys text[], threshold_bytes integer, min_bytes integer, settle_for interval, max_wait interval,
  ship_alone_bytes integer, skip_triggers boolean, allow_dependents boolean, trust_owner boolean, guard text, key_columns name[],
  tenant_namespace uuid, single_tenant boolean, mode text, pointer_column name, create_pointer_column boolean,
  when_sql text, trigger boolean
) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
return jsonb_strip_nulls(jsonb_build_object('tenant_column', tenant_column, 'tenant_path', tenant_path,
  'entity_type', entity_type, 'entity_column', entity_column, 'phase1_field', phase1_field, 'phase1_kind', phase1_kind,
  'phase2_kind', phase2_kind, 'envelope_keys', envelope_keys, 'threshold_bytes', threshold_bytes, 'min_bytes', min_bytes,
  'settle_for', settle_for, 'max_wait', max_wait, 'ship_alone_bytes', ship_alone_bytes, 'skip_triggers', skip_triggers, 'allow_dependents', allow_dependents, 'trust_owner', trust_owner,
  'guard', guard, 'key_columns', key_columns, 'tenant_namespace', tenant_namespace, 'single_tenant', single_tenant, 'mode', mode,
  'pointer_column', pointer_column, 'create_pointer_column', create_pointer_column, 'when_sql', when_sql, 'trigger', trigger));
comment on function lighter.attach_said(name, name[], text, name, text, text, text, text[], integer, integer, interval, interval, integer, boolean, boolean, boolean, text, name[], uuid, boolean, text, name, boolean, text, boolean) is
  'The options of attach that were said.';
revoke all on function lighter.attach_said(name, name[], text, name, text, text, text, text[], integer, integer, interval, interval, integer, boolean, boolean, boolean, text, name[], uuid, boolean, text, name, boolean, text, boolean) from public;

-- An option of attach as people read it: of one that follows lighter.settings, what holds.
create or replace function lighter.option_text(name text, value text) returns text
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  with holds as (
    select coalesce(value, case name when 'settle_for' then d.settle_for::text when 'max_wait' then d.max_wait::text
                                     when 'ship_alone_bytes' then d.ship_alone_bytes::text end) as value
      from lighter.settings d
  ),
  lasts as (
    select h.value, case when name in ('settle_for', 'max_wait') then extract(epoch from h.value::interval) end as seconds from holds h
  ),
  counted as (
    -- 24 hours is what the setting says.
    select l.value, u.unit, trim_scale(l.seconds / u.size) as count
      from lasts l
      left join lateral (
        select u.unit, u.size from (values ('day', 86400), ('hour', 3600), ('minute', 60), ('second', 1)) u(unit, size)
         where u.size = 1 or l.seconds >= u.size and l.seconds % u.size = 0 and l.seconds <> 86400 or l.seconds = 86400 and u.size = 3600
         order by u.size desc limit 1) u on l.seconds is not null
  )
  select coalesce(case when c.unit is null then c.value
                       when c.count = 1 then format('1 %s', c.unit) else format('%s %ss', c.count, c.unit) end
                    || case when option_text.value is null then ' (default)' else '' end, 'none')
    from counted c;
end;
comment on function lighter.option_text(text, text) is
  'An option of lighter.attach for people: durations in words, and what holds where the option follows lighter.settings.';
revoke all on function lighter.option_text(text, text) from public;

create or replace function lighter.source_options(source lighter.sources) returns jsonb
language sql stable
set search_path = pg_catalog, pg_temp
return to_jsonb(source) || jsonb_build_object('key_columns', array_to_string(source.key_columns, ', '), 'key_types', array_to_string(source.key_types, ', '),
  'parent_relations', nullif(array_to_string(source.parent_relations, ', '), ''), 'parent_columns', nullif(array_to_string(source.parent_columns, ', '), ''),
  'parent_key_columns', nullif(array_to_string(source.parent_key_columns, ', '), ''));
comment on function lighter.source_options(lighter.sources) is 'What is recorded of a source, with the lists in it as people read them.';
revoke all on function lighter.source_options(lighter.sources) from public;

-- What attach answers about a description, a line each: decided, changed, warning, obstacle.
create or replace function lighter.attach_report(wanted lighter.sources, existing lighter.sources, obstacles lighter.obstacle[])
returns table (what text, name text, found text, hint text)
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  with options as (
    select w.key, w.value, e.value as was, place
     from unnest(array['mode', 'column_type', 'pointer_column', 'key_columns', 'key_types', 'single_tenant', 'tenant_column', 'tenant_namespace', 'parent_relations', 'parent_columns', 'parent_key_columns',
             'entity_type', 'entity_column', 'phase1_field', 'phase1_kind', 'phase2_kind', 'envelope_keys', 'threshold_bytes',
             'min_bytes', 'settle_for', 'max_wait', 'ship_alone_bytes', 'when_sql', 'trigger', 'skip_triggers', 'allow_dependents', 'trust_owner', 'guard']) with ordinality n(name, place)
      join jsonb_each_text(lighter.source_options(wanted)) w on w.key = n.name
      join jsonb_each_text(lighter.source_options(existing)) e on e.key = n.name
     where wanted.relation is not null
  ),
  lines as (
    select 1 as part, place, 'decided' as what, key as name, lighter.option_text(key, value) as found, null as hint from options
    union all
    select 2, place, 'changed' as what, key, format('%s instead of %s', lighter.option_text(key, value), lighter.option_text(key, was)), null as hint
      from options where existing.id is not null and value is distinct from was
    union all
    select case when o.is_fatal then 4 else 3 end, o.place, case when o.is_fatal then 'obstacle' else 'warning' end, null as name, o.problem, o.hint
      from unnest(obstacles) with ordinality o(code, problem, hint, is_fatal, place)
  )
  select l.what, l.name, l.found, l.hint from lines l order by l.part, l.place;
end;
comment on function lighter.attach_report(lighter.sources, lighter.sources, lighter.obstacle[]) is
  'What lighter.check_attach answers, from what was found.';
revoke all on function lighter.attach_report(lighter.sources, lighter.sources, lighter.obstacle[]) from public;

create or replace function lighter.check_attach(
  target regclass,
  json_column name default 'metadata',
  tenant_column name default null,
  tenant_path name[] default null,
  entity_type text default null,
  entity_column name default null,
  phase1_field text default null,
  phase1_kind text default null,
  phase2_kind text default null,
  envelope_keys text[] default null,
  threshold_bytes integer default null,
  min_bytes integer default null,
  settle_for interval default null,
  max_wait interval default null,
  ship_alone_bytes integer default null,
  skip_triggers boolean default null,
  allow_dependents boolean default null,
  trust_owner boolean default null,
  guard text default null,
  key_columns name[] default null,
  tenant_namespace uuid default null,
  single_tenant boolean default null,
  mode text default null,
  pointer_column name default null,
  create_pointer_column boolean default null,
  when_sql text default null,
  trigger boolean default null
) returns table (what text, name text, found text, hint text)
language sql
set search_path = pg_catalog, pg_temp
begin atomic
  select r.*
    from lighter.describe_source(target, json_column, lighter.attach_said(tenant_column, tenant_path, entity_type, entity_column,
           phase1_field, phase1_kind, phase2_kind, envelope_keys, threshold_bytes, min_bytes, settle_for, max_wait,
           ship_alone_bytes, skip_triggers, allow_dependents, trust_owner, guard, key_columns, tenant_namespace, single_tenant, mode, pointer_column, create_pointer_column,
           when_sql, trigger)) d
   cross join lateral lighter.attach_report(d.source, d.existing, d.obstacles) r;
end;
comment on function lighter.check_attach(regclass, name, name, name[], text, name, text, text, text, text[], integer, integer, interval, interval, integer, boolean, boolean, boolean, text, name[], uuid, boolean, text, name, boolean, text, boolean) is
  'What lighter.attach would do with the same arguments, without doing it: what it decides, what it would change of an attached column, what it warns of, and every obstacle, each with its remedy.';
revoke all on function lighter.check_attach(regclass, name, name, name[], text, name, text, text, text, text[], integer, integer, interval, interval, integer, boolean, boolean, boolean, text, name[], uuid, boolean, text, name, boolean, text, boolean) from public;

-- Raises all of them as one error; with none that is fatal, only warns.
create or replace function lighter.raise_obstacles(target regclass, json_column name, obstacles lighter.obstacle[]) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  each lighter.obstacle;
  fatal lighter.obstacle[];
begin
  foreach each in array obstacles loop
    if each.is_fatal then
      fatal := fatal || each;
    else
      raise warning '%', each.problem using hint = coalesce(each.hint, '');
    end if;
  end loop;
  if cardinality(fatal) = 1 then
    raise exception '%', fatal[1].problem using errcode = fatal[1].code, hint = coalesce(fatal[1].hint, '');
  elsif cardinality(fatal) > 1 then
    raise exception '%.% cannot be attached, for % reasons:%', target, json_column, cardinality(fatal),
        (select string_agg(format(E'\n%s. %s%s', place, problem, E'\n   ' || hint), '' order by place)
           from unnest(fatal) with ordinality f(code, problem, hint, is_fatal, place))
      using errcode = fatal[1].code, hint = 'Mend all of them, then attach again. lighter.check_attach(...) names what is left.';
  end if;
end
$$;
comment on function lighter.raise_obstacles(regclass, name, lighter.obstacle[]) is
  'Raises all obstacles that are fatal as one error; warns of the others.';
revoke all on function lighter.raise_obstacles(regclass, name, lighter.obstacle[]) from public;

create or replace function lighter.attach(
  target regclass,
  json_column name default 'metadata',
  tenant_column name default null,
  tenant_path name[] default null,
  entity_type text default null,
  entity_column name default null,
  phase1_field text default null,
  phase1_kind text default null,
  phase2_kind text default null,
  envelope_keys text[] default null,
  threshold_bytes integer default null,
  min_bytes integer default null,
  settle_for interval default null,
  max_wait interval default null,
  ship_alone_bytes integer default null,
  skip_triggers boolean default null,
  allow_dependents boolean default null,
  trust_owner boolean default null,
  guard text default null,
  key_columns name[] default null,
  tenant_namespace uuid default null,
  single_tenant boolean default null,
  mode text default null,
  pointer_column name default null,
  create_pointer_column boolean default null,
  when_sql text default null,
  trigger boolean default null,
  lock_timeout_ms integer default 5000
) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '5s'  -- whatever is set inside ends with the function
as $$
declare
  described record;
  wanted lighter.sources;
  source_id integer;
begin
  perform set_config('lock_timeout', lock_timeout_ms::text, true);
  perform lighter.lock_attachments();
  perform lighter.refresh_sources(target);
  described := lighter.describe_source(target, json_column, lighter.attach_said(tenant_column, tenant_path, entity_type, entity_column,
    phase1_field, phase1_kind, phase2_kind, envelope_keys, threshold_bytes, min_bytes, settle_for, max_wait, ship_alone_bytes,
    skip_triggers, allow_dependents, trust_owner, guard, key_columns, tenant_namespace, single_tenant, mode, pointer_column, create_pointer_column,
    when_sql, trigger));
  perform lighter.raise_obstacles(target, json_column, described.obstacles);
  wanted := described.source;
  source_id := (described.existing).id;

  if wanted.made_pointer_column and lighter.column_type(target, wanted.pointer_column) is null then
    execute format('alter table %s add column %I uuid', target, wanted.pointer_column);
  end if;
  if source_id is null then
    insert into lighter.sources (relation, json_column, mode, column_type, pointer_column, made_pointer_column, key_columns, key_types,
        tenant_column, tenant_namespace, single_tenant, parent_relations,
        parent_key_columns, parent_columns, entity_type, entity_column, phase1_field, phase1_kind, phase2_kind,
        envelope_keys, threshold_bytes, min_bytes, settle_for, max_wait, ship_alone_bytes, skip_triggers, allow_dependents,
        trust_owner, guard, when_sql, when_parts, when_columns, when_varies, trigger)
      select wanted.relation, wanted.json_column, wanted.mode, wanted.column_type, wanted.pointer_column, wanted.made_pointer_column, wanted.key_columns, wanted.key_types,
             wanted.tenant_column, wanted.tenant_namespace, wanted.single_tenant,
        wanted.parent_relations, wanted.parent_key_columns, wanted.parent_columns, wanted.entity_type,
        wanted.entity_column, wanted.phase1_field, wanted.phase1_kind, wanted.phase2_kind, wanted.envelope_keys,
        wanted.threshold_bytes, wanted.min_bytes, wanted.settle_for, wanted.max_wait, wanted.ship_alone_bytes,
        wanted.skip_triggers, wanted.allow_dependents, wanted.trust_owner, wanted.guard,
        wanted.when_sql, wanted.when_parts, wanted.when_columns, wanted.when_varies, wanted.trigger
      returning id into source_id;
    raise notice '%.% is attached (source %): %', target, wanted.json_column, source_id,
      (select string_agg(format('%s %s', r.name, r.found), ', ')
         from lighter.attach_report(wanted, described.existing, '{}') r where r.what = 'decided' and r.found <> 'none');
  else
    raise notice '%.% is already attached (source %); %', target, wanted.json_column, source_id,
      coalesce((select 'changed: ' || string_agg(format('%s %s', r.name, r.found), ', ')
                  from lighter.attach_report(wanted, described.existing, '{}') r where r.what = 'changed'), 'its settings stay');
    -- Not touched when nothing changes: plans that are under way would be void.
    update lighter.sources s
       set mode = wanted.mode, column_type = wanted.column_type, pointer_column = wanted.pointer_column,
           made_pointer_column = wanted.made_pointer_column, pointer_attnum = null,
           key_columns = wanted.key_columns, key_types = wanted.key_types, tenant_column = wanted.tenant_column,
           tenant_namespace = wanted.tenant_namespace, single_tenant = wanted.single_tenant,
           parent_relations = wanted.parent_relations, parent_key_columns = wanted.parent_key_columns,
           parent_columns = wanted.parent_columns, entity_type = wanted.entity_type, entity_column = wanted.entity_column,
           key_attnums = null, tenant_attnum = null, parent_key_attnums = null, parent_attnums = null, entity_attnum = null,
           phase1_field = wanted.phase1_field, phase1_kind = wanted.phase1_kind, phase2_kind = wanted.phase2_kind,
           envelope_keys = wanted.envelope_keys, threshold_bytes = wanted.threshold_bytes,
           min_bytes = wanted.min_bytes, settle_for = wanted.settle_for, max_wait = wanted.max_wait,
           ship_alone_bytes = wanted.ship_alone_bytes,
           skip_triggers = wanted.skip_triggers, allow_dependents = wanted.allow_dependents, trust_owner = wanted.trust_owner,
           guard = wanted.guard, when_sql = wanted.when_sql, when_parts = wanted.when_parts, when_columns = wanted.when_columns,
           when_attnums = null, when_varies = wanted.when_varies, trigger = wanted.trigger
     where s.id = source_id
       and exists (select from lighter.attach_report(wanted, described.existing, '{}') r where r.what = 'changed');
  end if;
  if wanted.single_tenant is not null then
    insert into lighter.tenants (tenant_id, namespace, external_id)
      values (wanted.single_tenant, '00000000-0000-0000-0000-000000000000', 'single')
      on conflict do nothing;
  end if;
  perform lighter.refresh_sources(target);
  -- Partitions that were out of sight when it was detached still are, and their rows have its pointers.
  with former as (
    delete from lighter.source_partitions p
     using lighter.former_sources f
     where p.source_id = f.id and f.relation = target
       and lighter.name_of_column(f.relation, f.json_attnum, f.json_column, f.relation_oid = f.relation::oid) = attach.json_column
    returning p.relation, p.name, p.seen_at
  )
  insert into lighter.source_partitions (source_id, relation, name, seen_at)
    select source_id, f.relation, f.name, f.seen_at from former f
    on conflict do nothing;
  select * into wanted from lighter.sources s where s.id = source_id;

  -- Again for one already attached: mends what was lost, for instance in a dump restored without it.
  perform lighter.build_when(wanted);
  perform lighter.build_trigger(wanted);
  perform lighter.build_guard(wanted);
  perform lighter.grant_source(wanted);
  delete from lighter.when_failures f where f.source_id = wanted.id;
  -- It has another mode, or another pointer column, than before.
  if (described.existing).made_pointer_column and wanted.pointer_column is distinct from (described.existing).pointer_column then
    perform lighter.drop_pointer_column(described.existing);
  end if;
  return source_id;
end
$$;
comment on function lighter.attach(regclass, name, name, name[], text, name, text, text, text, text[], integer, integer, interval, interval, integer, boolean, boolean, boolean, text, name[], uuid, boolean, text, name, boolean, text, boolean, integer) is
  'Starts watching a column of a table: jsonb, json, text or bytea; returns the source''s id. The caller must own the table. Finds the key (key_columns: the columns of a unique index; by default the primary key, else the narrowest unique index that fits) and the tenant: a column of the table (tenant_column, default tenant_id) or of a table it refers to, over one foreign key or several (tenant_path), of type uuid, or with names (text, varchar, smallint, integer, bigint), which become uuids by lighter.tenant_of in a namespace of the column they come from, or in tenant_namespace; or, with single_tenant, one tenant for all rows. Null: not said, so it is detected, or stays as it is. Attaching again mends trigger and grants and changes the settings that are said; a notice names them. phase1_field , envelope_keys {}, entity_column : none; threshold_bytes 0, settle_for -1 s, max_wait -1 s, ship_alone_bytes 0: the default of lighter.settings. allow_dependents accepts indexes, constraints and policies that read what leaves the row. guard: what happens at an update that edits inside an offloaded document and so changes nothing, makes the column null or removes its pointer: off (default), warn or error. mode: document (jsonb, the default there: pointers in the document), stub (json and text: a small pointer in the place of the value) or whole (bytea: null, and the artifact''s id in pointer_column, which create_pointer_column makes). when_sql: a condition over the row''s columns, such as status = ''finished'': a row leaves only while it holds, which the daemon asks; empty: none. The trigger also fires on the columns that it reads. trigger: false makes none, and only the sweep scan finds rows; not in mode whole. Fails with all obstacles at once; lighter.check_attach names them without attaching. Takes an ACCESS EXCLUSIVE lock for a moment, waiting lock_timeout_ms at most.';
revoke all on function lighter.attach(regclass, name, name, name[], text, name, text, text, text, text[], integer, integer, interval, interval, integer, boolean, boolean, boolean, text, name[], uuid, boolean, text, name, boolean, text, boolean, integer) from public;

-- What the daemon needs on a source, and not more: the columns it reads, the one it rewrites.
create or replace function lighter.grant_source(source lighter.sources) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  target regclass;
  command text;
begin
  foreach target in array array[source.relation] || source.parent_relations loop
    execute format('grant usage on schema %I to lighter_daemon',
      (select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = target));
  end loop;
  -- An enum is named where its rows are looked up.
  for command in
    select distinct format('grant usage on schema %I to lighter_daemon', n.nspname)
      from lighter.key_parts_of(source) k join pg_type t on t.oid = k.base join pg_namespace n on n.oid = t.typnamespace where k.form = 'enum'
  loop
    execute command;
  end loop;
  execute format('grant select (%s), update (%s) on %s to lighter_daemon',
    (select string_agg(distinct quote_ident(c), ', ')
       from unnest(array_remove(source.key_columns || coalesce(source.when_columns, '{}') || array[source.json_column, source.pointer_column, source.entity_column,
              source.parent_columns[1], case when source.parent_relations = '{}' then source.tenant_column end,
              -- by which a backfill tells how old a row is
              case when lighter.column_type(source.relation, 'created_at') in
                ('timestamp with time zone', 'timestamp without time zone', 'date') then 'created_at'::name end,
              -- which version of which row it is
              'xmin'::name, 'ctid'::name, 'tableoid'::name], null)) c),
    concat_ws(', ', quote_ident(source.json_column), quote_ident(source.pointer_column)), source.relation);
  for command in
    select format('grant select (%s) on %s to lighter_daemon',
             (select string_agg(distinct quote_ident(c), ', ')
                from unnest(array_remove(array[source.parent_key_columns[p.n], source.parent_columns[p.n + 1],
                       case when p.n = cardinality(source.parent_relations) then source.tenant_column end], null)) c), p.relation)
      from unnest(source.parent_relations) with ordinality p(relation, n)
  loop
    execute command;
  end loop;
  foreach target in array array[source.relation] || source.parent_relations loop
    -- Also where row-level security is off, and the policy does nothing: were it enabled later, the daemon would
    -- see no row any more, and take them all for deleted.
    command := (select polcmd from pg_policy where polrelid = target and polname = 'lighter_daemon');
    -- The policy of a table that was only a parent until now lets the daemon read, not rewrite.
    if command = 'r' and target = source.relation then
      execute format('drop policy lighter_daemon on %s', target);
      command := null;
    end if;
    if command is null then
      execute format('create policy lighter_daemon on %s for %s to lighter_daemon using (true) %s', target,
        case when target = source.relation then 'all' else 'select' end,
        case when target = source.relation then 'with check (true)' else '' end);
    end if;
  end loop;
end
$$;
comment on function lighter.grant_source(lighter.sources) is
  'Gives lighter_daemon the rights and the policy that it needs on the table of a source.';
revoke all on function lighter.grant_source(lighter.sources) from public;

-- No snapshot that is older than the lock on the table, and no policy, may hide an id from us.
create or replace function lighter.drop_pointer_column(source lighter.sources) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  is_used boolean := true;
begin
  if not source.made_pointer_column or lighter.column_type(source.relation, source.pointer_column) is distinct from 'uuid' then
    return false;
  end if;
  if current_setting('transaction_isolation') = 'read committed' and not row_security_active(source.relation)
     -- Rows of a partition that was detached have ids too, and it could not be attached again without the column.
     and not exists (
       select from lighter.source_partitions p
        where p.source_id = source.id and not exists (select from pg_partition_tree(source.relation) t where t.relid = p.relation)) then
    execute format('lock table %s in access exclusive mode', source.relation);
    execute format('select exists (select from %s m where m.%I is not null)', source.relation, source.pointer_column) into is_used;
  end if;
  if is_used then
    raise notice '%.% stays: rows have artifacts'' ids in it, or not all rows can be seen, such as those of a detached partition',
      source.relation, source.pointer_column;
    return false;
  end if;
  begin
    execute format('alter table %s drop column %I', source.relation, source.pointer_column);
  exception when dependent_objects_still_exist then
    raise notice '%.% stays: other objects depend on it', source.relation, source.pointer_column;
    return false;
  end;
  -- What came off it is in no row any more, and another attach makes another column.
  update lighter.former_sources f set rows_deleted = true
   where f.id = source.id
      or f.relation = source.relation and f.relation_oid = source.relation_oid and f.pointer_attnum = source.pointer_attnum;
  return true;
end
$$;
comment on function lighter.drop_pointer_column(lighter.sources) is
  'Drops the pointer column that attach made, when no row has an id in it; returns whether it did.';
revoke all on function lighter.drop_pointer_column(lighter.sources) from public;

create or replace function lighter.detach(
  target regclass,
  json_column name default 'metadata',
  lock_timeout_ms integer default 5000
) returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '5s'  -- whatever is set inside ends with the function
as $$
declare
  source lighter.sources;
  other lighter.sources;
  touched regclass;
  touched_schema regnamespace;
begin
  perform set_config('lock_timeout', lock_timeout_ms::text, true);
  perform lighter.lock_attachments();
  perform lighter.refresh_sources(target);
  select * into source from lighter.sources s
   where s.relation = target and s.json_column = detach.json_column;
  if source.id is null then
    raise notice '%.% is not attached', target, json_column;
    return false;
  end if;
  perform lighter.remove_source(source);
  -- What came off it stays in the bucket, and is its own again when it is attached again. Nobody can attach a table
  -- that is gone.
  insert into lighter.former_sources (id, relation, json_column, json_attnum, relation_oid, mode, pointer_column, pointer_attnum, made_pointer_column, phase1_field, tenant_namespace)
  select source.id, source.relation, source.json_column, source.json_attnum, source.relation_oid, source.mode, source.pointer_column, source.pointer_attnum, source.made_pointer_column, source.phase1_field, source.tenant_namespace
   where exists (select from pg_class c where c.oid = source.relation);

  -- All rights away, then again those that other sources need.
  foreach touched in array array[source.relation] || source.parent_relations loop
    touched_schema := (select relnamespace::regnamespace from pg_class where oid = touched);
    continue when touched_schema is null;
    execute format('drop policy if exists lighter_daemon on %s', touched);
    execute format('revoke all on %s from lighter_daemon', touched);
    -- Schema public holds artifact_refs.
    if touched_schema <> 'public'::regnamespace and not exists (
      select from lighter.sources s join pg_class c on c.oid = any (array[s.relation] || s.parent_relations)
       where c.relnamespace = touched_schema) then
      execute format('revoke usage on schema %s from lighter_daemon', touched_schema);
    end if;
  end loop;
  for other in
    select s.* from lighter.sources s join pg_class c on c.oid = s.relation
     where (array[s.relation] || s.parent_relations) && (array[source.relation] || source.parent_relations)
     order by s.id
  loop
    perform lighter.grant_source(other);
  end loop;
  perform lighter.drop_pointer_column(source);
  return true;
end
$$;
comment on function lighter.detach(regclass, name, integer) is
  'Stops watching a table''s column: drops trigger, jobs, policy and grants. Rows already offloaded keep their pointers; their artifacts are released again once the column is attached again. Returns false, with a notice, when it was not attached. Takes an ACCESS EXCLUSIVE lock on the table, waiting lock_timeout_ms at most.';
revoke all on function lighter.detach(regclass, name, integer) from public;
