create or replace function lighter.check_envelope(source lighter.sources) returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if lighter.envelope_value_limit(source) < 40 then
    raise exception 'threshold of % bytes leaves no room for % envelope keys', lighter.effective_threshold(source),
      cardinality(source.envelope_keys)
      using errcode = 'invalid_parameter_value', hint = 'Raise threshold_bytes or pass fewer envelope_keys.';
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

-- What attach would write, found from its arguments and the catalogue; raises when something is amiss.
create or replace function lighter.describe_source(
  target regclass,
  json_column name,
  tenant_column name,
  parent_column name,
  entity_type text,
  entity_column name,
  phase1_field text,
  phase1_kind text,
  phase2_kind text,
  envelope_keys text[],
  threshold_bytes integer,
  skip_triggers boolean
) returns lighter.sources
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  s lighter.sources;
  relation record;
  schema_owner name;
  keys name[];
  parents record;
begin
  if target is null or json_column is null then
    raise exception 'table and column must be given' using errcode = 'null_value_not_allowed';
  end if;
  select relkind, relpersistence, relnamespace, relowner into relation from pg_class where oid = target;
  if relation.relkind is null or relation.relkind not in ('r', 'p') then
    raise exception '% is not a table', target
      using errcode = 'wrong_object_type', hint = 'Attach the table that the view or other relation reads from.';
  end if;
  if relation.relpersistence = 't' then
    raise exception '% is a temporary table, which no other session sees', target using errcode = 'wrong_object_type';
  end if;
  if relation.relnamespace in ('lighter'::regnamespace, 'pg_catalog'::regnamespace) then
    raise exception '% belongs to pg-lighter itself, or to Postgres', target using errcode = 'wrong_object_type';
  end if;
  -- set_threshold rebuilds the trigger with the rights of our owner.
  schema_owner := (select pg_get_userbyid(nspowner) from pg_namespace where nspname = 'lighter');
  if not has_table_privilege(schema_owner, target, 'trigger') then
    raise exception '"%", the owner of schema lighter, may not create a trigger on %', schema_owner, target
      using errcode = 'insufficient_privilege', hint = format('grant trigger on %s to %I;', target, schema_owner);
  end if;

  -- Not from pg_index: that lists the columns of INCLUDE too.
  select array_agg(a.attname) into keys
    from pg_constraint c
    join pg_attribute a on a.attrelid = c.conrelid and a.attnum = any (c.conkey)
   where c.conrelid = target and c.contype = 'p';
  if keys is null then
    raise exception '% has no primary key', target
      using errcode = 'invalid_table_definition', hint = 'Add a primary key of one uuid, bigint or integer column.';
  elsif cardinality(keys) > 1 then
    raise exception 'the primary key of % has % columns, one is needed', target, cardinality(keys)
      using errcode = 'feature_not_supported';
  end if;
  s.relation := target;
  s.key_column := keys[1];
  s.key_type := lighter.column_type(target, s.key_column);
  if s.key_type not in ('uuid', 'bigint', 'integer') then
    raise exception 'the primary key %.% is of type %, not uuid, bigint or integer', target, s.key_column, s.key_type
      using errcode = 'feature_not_supported';
  end if;

  s.json_column := json_column;
  if lighter.column_type(target, json_column) is null then
    raise exception '% has no column "%"', target, json_column using errcode = 'undefined_column';
  elsif lighter.column_type(target, json_column) <> 'jsonb' then
    raise exception '%.% is of type %, not jsonb', target, json_column, lighter.column_type(target, json_column)
      using errcode = 'datatype_mismatch',
            hint = format('alter table %s alter column %I type jsonb using %I::jsonb;', target, json_column, json_column);
  elsif (select attgenerated <> '' from pg_attribute a where a.attrelid = target and a.attname = json_column) then
    raise exception '%.% is generated, so nothing can be taken off it', target, json_column
      using errcode = 'wrong_object_type', hint = 'Attach the column that it is generated from.';
  end if;

  -- The tenant: a column of the table, else of the one parent that has it.
  s.tenant_column := coalesce(tenant_column, 'tenant_id');
  if parent_column is null and lighter.column_type(target, s.tenant_column) is null then
    select count(*) as found, min(fk.column_name::text)::name as column_name,
           string_agg(format('%s (over %s)', fk.parent, fk.column_name), ', ') as names
      into parents
      from lighter.foreign_keys(target) fk
     where lighter.column_type(fk.parent, s.tenant_column) is not null;
    if parents.found = 0 then
      raise exception 'cannot tell the tenant of a row of %: neither it nor a table it refers to has a column "%"',
        target, s.tenant_column
        using errcode = 'undefined_column',
              hint = 'Pass tenant_column => ..., or parent_column => the column that refers to the table with the tenant.';
    elsif parents.found > 1 then
      raise exception 'the tenant of a row of % can be found in several tables: %', target, parents.names
        using errcode = 'ambiguous_column', hint = 'Pass parent_column => the column to follow.';
    end if;
    parent_column := parents.column_name;
  end if;
  if parent_column is not null then
    -- A column may refer to several tables: the one with the tenant is meant.
    select fk.parent, fk.parent_key into s.parent_relation, s.parent_key_column
      from lighter.foreign_keys(target) fk
     where fk.column_name = parent_column
     order by lighter.column_type(fk.parent, s.tenant_column) = 'uuid' desc nulls last
     limit 1;
    if s.parent_relation is null then
      raise exception '%.% is not a foreign key of one column', target, parent_column
        using errcode = 'undefined_object', hint = 'parent_column must refer to the table that has the tenant.';
    end if;
    s.parent_column := parent_column;
  end if;
  if lighter.column_type(coalesce(s.parent_relation, target), s.tenant_column) is distinct from 'uuid' then
    raise exception 'the tenant column %.% is %, not uuid', coalesce(s.parent_relation, target), s.tenant_column,
      coalesce('of type ' || lighter.column_type(coalesce(s.parent_relation, target), s.tenant_column), 'missing')
      using errcode = 'datatype_mismatch';
  end if;

  -- The entity: what was passed, else the parent, else the first table referred to by a uuid.
  if entity_column is null and entity_type is null then
    select fk.column_name, regexp_replace(c.relname, 's$', '') into entity_column, entity_type
      from lighter.foreign_keys(target) fk
      join pg_class c on c.oid = fk.parent
     where fk.column_name <> s.tenant_column
       and (s.parent_column is null or fk.column_name = s.parent_column)
       and lighter.column_type(target, fk.column_name) = 'uuid'
     limit 1;
  end if;
  if entity_column is not null and lighter.column_type(target, entity_column) is distinct from 'uuid' then
    raise exception 'the entity column %.% is %, not uuid', target, entity_column,
      coalesce('of type ' || lighter.column_type(target, entity_column), 'missing') using errcode = 'datatype_mismatch';
  end if;
  s.entity_column := entity_column;
  s.entity_type := entity_type;

  if (phase1_kind ~ '^[a-z][a-z0-9_]{0,62}$' and phase2_kind ~ '^[a-z][a-z0-9_]{0,62}$') is not true then
    raise exception 'a kind is snake_case, at most 63 characters: %, %', phase1_kind, phase2_kind
      using errcode = 'invalid_parameter_value';
  end if;
  -- "artifact_metadata" because its pointer would be artifact_metadata_ref.
  if phase1_field = any (array['', 'artifact_metadata', 'artifact_metadata_ref', 'artifact_metadata_kind'])
     or octet_length(phase1_field) > 200 then
    raise exception 'phase1_field "%" is reserved, empty or too long', phase1_field using errcode = 'invalid_parameter_value';
  end if;
  s.phase1_field := phase1_field;
  s.phase1_kind := phase1_kind;
  s.phase2_kind := phase2_kind;
  s.envelope_keys := array(
    select distinct k from unnest(envelope_keys) k
     where k is not null
       and k not in ('artifact_metadata_ref', 'artifact_metadata_kind')
       and k is distinct from phase1_field
       and k is distinct from phase1_field || '_ref' and k is distinct from phase1_field || '_count'
     order by k);
  if threshold_bytes not between 1024 and 1000000000 then
    raise exception 'threshold_bytes must be between 1024 and 1000000000, got %', threshold_bytes
      using errcode = 'invalid_parameter_value';
  end if;
  s.threshold_bytes := threshold_bytes;
  s.skip_triggers := coalesce(skip_triggers, true);
  perform lighter.check_envelope(s);
  return s;
end
$$;
comment on function lighter.describe_source(regclass, name, name, name, text, name, text, text, text, text[], integer, boolean) is
  'What lighter.attach is to record for its arguments: what was not said is detected, what can not be is an error.';
revoke all on function lighter.describe_source(regclass, name, name, name, text, name, text, text, text, text[], integer, boolean) from public;

create or replace function lighter.attach(
  target regclass,
  json_column name default 'metadata',
  tenant_column name default null,
  parent_column name default null,
  entity_type text default null,
  entity_column name default null,
  phase1_field text default 'tool_interactions',
  phase1_kind text default 'assistant_message_tool_interactions',
  phase2_kind text default 'assistant_message_metadata',
  envelope_keys text[] default array['tenant_id', 'model', 'iterations', 'reason', 'usage', 'lead_id', 'contact_id',
    'account_id', 'opportunity_id', 'activity_id', 'project_id', 'site_id'],
  threshold_bytes integer default null,
  skip_triggers boolean default true,
  lock_timeout_ms integer default 5000
) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
set lock_timeout = '5s'  -- whatever is set inside ends with the function
as $$
declare
  wanted lighter.sources;
  existing lighter.sources;
  different text;
begin
  wanted := lighter.describe_source(target, json_column, tenant_column, parent_column, entity_type, entity_column,
    phase1_field, phase1_kind, phase2_kind, envelope_keys, threshold_bytes, skip_triggers);
  perform set_config('lock_timeout', lock_timeout_ms::text, true);
  perform pg_advisory_xact_lock(lighter.awake_lock_key() + 1);

  select * into existing from lighter.sources s where s.relation = target and s.json_column = wanted.json_column;
  if existing.id is not null then
    select string_agg(w.key, ', ') into different
      from jsonb_each(to_jsonb(wanted)) w
      join jsonb_each(to_jsonb(existing)) e using (key)
     where w.key not in ('id', 'paused', 'attached_at') and w.value <> e.value;
    if different is not null then
      raise exception '%.% is already attached with another %', target, wanted.json_column, different
        using errcode = 'duplicate_object', hint = format('select lighter.detach(%L, %L); first.', target, wanted.json_column);
    end if;
    wanted := existing;
    raise notice '%.% is already attached (source %)', target, wanted.json_column, wanted.id;
  else
    insert into lighter.sources (relation, json_column, key_column, key_type, tenant_column, parent_relation,
        parent_key_column, parent_column, entity_type, entity_column, phase1_field, phase1_kind, phase2_kind,
        envelope_keys, threshold_bytes, skip_triggers)
      select wanted.relation, wanted.json_column, wanted.key_column, wanted.key_type, wanted.tenant_column,
        wanted.parent_relation, wanted.parent_key_column, wanted.parent_column, wanted.entity_type,
        wanted.entity_column, wanted.phase1_field, wanted.phase1_kind, wanted.phase2_kind, wanted.envelope_keys,
        wanted.threshold_bytes, wanted.skip_triggers
      returning * into wanted;
  end if;

  -- Again for one already attached: mends what was lost, for instance in a dump restored without it.
  perform lighter.build_trigger(wanted);
  perform lighter.grant_source(wanted);
  return wanted.id;
end
$$;
comment on function lighter.attach(regclass, name, name, name, text, name, text, text, text, text[], integer, boolean, integer) is
  'Starts watching a table''s jsonb column; returns the source''s id. The caller must own the table. Finds the primary key (one uuid, bigint or integer column) and the tenant: a uuid column of the table (tenant_column, default tenant_id) or of a table it refers to (parent_column). Attaching again with the same settings mends trigger and grants, with others is an error. Takes an ACCESS EXCLUSIVE lock for a moment, waiting lock_timeout_ms at most.';
revoke all on function lighter.attach(regclass, name, name, name, text, name, text, text, text, text[], integer, boolean, integer) from public;

-- What the daemon needs on a source, and not more: the columns it reads, the one it rewrites.
create or replace function lighter.grant_source(source lighter.sources) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  target regclass;
  command text;
begin
  foreach target in array array_remove(array[source.relation, source.parent_relation], null) loop
    execute format('grant usage on schema %I to lighter_daemon',
      (select n.nspname from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = target));
  end loop;
  execute format('grant select (%s), update (%I) on %s to lighter_daemon',
    (select string_agg(distinct quote_ident(c), ', ')
       from unnest(array_remove(array[source.key_column, source.json_column, source.entity_column,
              source.parent_column, case when source.parent_relation is null then source.tenant_column end,
              -- by which a backfill tells how old a row is
              case when lighter.column_type(source.relation, 'created_at') in
                ('timestamp with time zone', 'timestamp without time zone', 'date') then 'created_at'::name end,
              'xmin'::name], null)) c),
    source.json_column, source.relation);
  if source.parent_relation is not null then
    execute format('grant select (%I, %I) on %s to lighter_daemon',
      source.parent_key_column, source.tenant_column, source.parent_relation);
  end if;
  foreach target in array array_remove(array[source.relation, source.parent_relation], null) loop
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
  perform pg_advisory_xact_lock(lighter.awake_lock_key() + 1);
  select * into source from lighter.sources s
   where s.relation = target and s.json_column = detach.json_column;
  if source.id is null then
    raise notice '%.% is not attached', target, json_column;
    return false;
  end if;
  -- The table may be gone, and its trigger with it; then its name is a number, as the views show it.
  if exists (select from pg_class where oid = source.relation) then
    execute format('drop trigger if exists %I on %s', format('lighter_enqueue_%s', source.id), source.relation);
  end if;
  execute format('drop function if exists lighter.%I()', format('enqueue_%s', source.id));
  delete from lighter.jobs j where j.source_id = source.id;
  delete from lighter.failed_jobs f where f.source_id = source.id;
  delete from lighter.pins p where p.source_id = source.id;
  delete from lighter.backfills b where b.source_id = source.id;
  -- What came off it stays in the bucket, and is its own again when it is attached again. Nobody can attach a table
  -- that is gone.
  insert into lighter.former_sources (id, relation, json_column, phase1_field)
  select source.id, source.relation, source.json_column, source.phase1_field
   where exists (select from pg_class c where c.oid = source.relation);
  delete from lighter.sources s where s.id = source.id;

  -- All rights away, then again those that other sources need.
  foreach touched in array array_remove(array[source.relation, source.parent_relation], null) loop
    touched_schema := (select relnamespace::regnamespace from pg_class where oid = touched);
    continue when touched_schema is null;
    execute format('drop policy if exists lighter_daemon on %s', touched);
    execute format('revoke all on %s from lighter_daemon', touched);
    -- Schema public holds artifact_refs.
    if touched_schema <> 'public'::regnamespace and not exists (
      select from lighter.sources s join pg_class c on c.oid in (s.relation, s.parent_relation)
       where c.relnamespace = touched_schema) then
      execute format('revoke usage on schema %s from lighter_daemon', touched_schema);
    end if;
  end loop;
  for other in
    select s.* from lighter.sources s join pg_class c on c.oid = s.relation
     where s.relation in (source.relation, source.parent_relation)
        or s.parent_relation in (source.relation, source.parent_relation)
     order by s.id
  loop
    perform lighter.grant_source(other);
  end loop;
  return true;
end
$$;
comment on function lighter.detach(regclass, name, integer) is
  'Stops watching a table''s jsonb column: drops trigger, jobs, policy and grants. Rows already offloaded keep their pointers; their artifacts are released again once the column is attached again. Returns false, with a notice, when it was not attached. Takes an ACCESS EXCLUSIVE lock on the table, waiting lock_timeout_ms at most.';
revoke all on function lighter.detach(regclass, name, integer) from public;
