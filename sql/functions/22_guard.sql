-- Edits inside an offloaded document. `jsonb_set(metadata, '{nested,a}', '2')` finds no "nested" in the row and changes
-- nothing; what is worked out from a value that left is null. Postgres calls neither an error. Where a source has a guard,
-- a trigger notices such updates, and warns or fails.

-- Creates (again) the guard of one source, or drops it.
--
-- AFTER and not BEFORE: with a BEFORE UPDATE trigger Postgres locks each row before it updates it, whatever the update
-- writes, and other BEFORE triggers may still change the row. UPDATE OF always: an update that does not name the column
-- leaves it unchanged, and means to. Postgres does not fire it on an update that moves a row to another partition.
create or replace function lighter.build_guard(source lighter.sources) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  function_name text := format('lighter.guard_%s', source.id);
  trigger_name text := format('lighter_guard_%s', source.id);
  schema_owner name := (select pg_get_userbyid(nspowner) from pg_namespace where nspname = 'lighter');
begin
  source := lighter.with_current_names(source);
  -- lighter.missing_parts tells of it.
  if source.json_column is null then
    return;
  end if;
  if source.guard = 'off' then
    -- Only the table's owner may drop a trigger, so not for nothing.
    if exists (select from pg_trigger where tgrelid = source.relation and tgname = trigger_name) then
      execute format('drop trigger %I on %s', trigger_name, source.relation);
    end if;
    if to_regprocedure(function_name || '()') is not null then
      execute format('drop function %s()', function_name);
    end if;
    return;
  end if;

  execute format('create or replace function %s() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as %L',
    function_name, lighter.guard_body(source));
  execute format('revoke all on function %s() from public', function_name);
  execute format('comment on function %s() is %L', function_name,
    format('Notices edits inside offloaded documents of %s; made by lighter.attach.', source.relation));
  if current_user <> schema_owner then
    execute format('alter function %s() owner to %I', function_name, schema_owner);
  end if;
  -- The path finds pointers in an object and in the elements of an array.
  execute format('create or replace trigger %I after update of %I on %s for each row when (%s) execute function %s()',
    trigger_name, source.json_column, source.relation,
    format('old.%I @? %L', source.json_column, '$.artifact_metadata_ref')
      || coalesce(format(' or old.%I ? %L', source.json_column, source.phase1_field || '_ref'), ''),
    function_name);
end
$$;
comment on function lighter.build_guard(lighter.sources) is
  'Creates, replaces or drops the trigger that notices edits inside offloaded documents of a source.';
revoke all on function lighter.build_guard(lighter.sources) from public;

-- Runs as whoever updates the row, with no rights of ours: so it calls nothing outside pg_catalog, where every role may.
-- It must not fail by itself: a column that was renamed under it is no longer guarded until the table is attached again.
create or replace function lighter.guard_body(source lighter.sources) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return format(
  $body$
declare
  was jsonb;
  becomes jsonb;
  uuid_form constant text := '^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$';
  -- JSON strings: ids of pointers that were there. Those of the whole document, or of runs of an array; of the field.
  wholes jsonb[];
  field_pointer jsonb;
  is_kept boolean;
  has_nothing_new boolean;
  has_leftovers boolean;
  kind text;
  problem text;
  said text;
begin
  -- The daemon and restore say so; an application may, for an update that it means.
  if current_setting('lighter.guard', true) = 'off' then
    return null;
  end if;
  begin
    was := old.%1$I;
    becomes := new.%1$I;
  exception when undefined_column or datatype_mismatch then
    return null;
  end;

  wholes := array(
    select p from jsonb_path_query(was, '$.artifact_metadata_ref') p
     where jsonb_typeof(p) = 'string' and octet_length(p #>> '{}') = 36 and p #>> '{}' ~ uuid_form);
  if jsonb_typeof(was) = 'object' and jsonb_typeof(was -> %3$L) = 'string'
     and octet_length(was ->> %3$L) = 36 and was ->> %3$L ~ uuid_form then
    field_pointer := was -> %3$L;
  end if;
  if cardinality(wholes) = 0 and field_pointer is null then
    return null;
  end if;

  if becomes is null or jsonb_typeof(becomes) = 'null' then
    kind := 'null';
  elsif jsonb_typeof(becomes) = 'array' and exists (
      select from jsonb_array_elements(becomes) e
       where jsonb_typeof(e) = 'object' and e -> 'artifact_metadata_ref' = any (wholes)
         and (jsonb_typeof(was) <> 'array' or e not in (select w from jsonb_array_elements(was) w)))
     or jsonb_typeof(becomes) = 'object' and jsonb_typeof(was) = 'array' and becomes -> 'artifact_metadata_ref' = any (wholes) then
    kind := 'written into';
  else
    is_kept := not exists (
        select from unnest(wholes) p
         where p not in (select k from jsonb_path_query(becomes, '$.artifact_metadata_ref') k))
      -- The field written again takes the place of its pointer.
      and (field_pointer is null or coalesce(becomes -> %3$L = field_pointer or becomes ? %2$L, false));
    -- Containment first: it ends at the first difference, and a new document is not unfolded.
    has_nothing_new := becomes <@ was and case jsonb_typeof(becomes)
      when 'object' then jsonb_typeof(was) = 'object' and not exists (
        select from jsonb_each(becomes) e where was -> e.key is distinct from e.value)
      when 'array' then jsonb_typeof(was) = 'array' and not exists (
        select e from jsonb_array_elements(becomes) e except select w from jsonb_array_elements(was) w)
      else false end;
    -- Names of ours that go with a pointer, without it.
    has_leftovers := jsonb_typeof(becomes) = 'object' and (
      becomes ? 'artifact_metadata_kind' and not becomes ? 'artifact_metadata_ref'
      or field_pointer is not null and becomes ? %4$L and not becomes ?| array[%2$L, %3$L]);
    if is_kept then
      -- Of a whole document that left, a key that is taken out of the row is still in the payload.
      kind := case when becomes = was or jsonb_typeof(was) = 'object' and cardinality(wholes) > 0 and has_nothing_new
                   then 'unchanged' end;
    elsif has_nothing_new or has_leftovers then
      kind := 'removed';
    end if;
  end if;
  if kind is null then
    return null;
  end if;

  problem := format(case kind
      when 'unchanged' then 'an update of %%s.%%s changed nothing: what it edits was offloaded, as artifact %%s'
      when 'null' then 'an update made %%s.%%s null, and a part of it was offloaded, as artifact %%s'
      when 'written into' then 'an update of %%s.%%s wrote into the pointer to artifact %%s, or moved it'
      else 'an update of %%s.%%s removed the pointer to artifact %%s, and wrote nothing new' end,
    tg_relid::regclass, quote_ident(%1$L), coalesce(wholes[1], field_pointer) #>> '{}');
  if %5$L = 'error' then
    raise exception '%%', problem
      using errcode = 'check_violation', constraint = tg_name, schema = tg_table_schema, table = tg_table_name, column = %1$L,
        hint = 'Read the row back whole, change the document and write all of it. If you mean this update: set local lighter.guard = ''off''.';
  end if;
  -- Once a transaction for each kind: an update may have a million rows.
  said := coalesce(current_setting('lighter.guard_said', true), '');
  if strpos(said, format('%%s %%s;', tg_name, kind)) = 0 then
    perform set_config('lighter.guard_said', said || format('%%s %%s;', tg_name, kind), true);
    raise warning '%%', problem
      using hint = 'Read the row back whole, change the document and write all of it. Further warnings of this kind are left out until the transaction ends.';
  end if;
  return null;
end
$body$,
  source.json_column, source.phase1_field, source.phase1_field || '_ref', source.phase1_field || '_count', source.guard);
comment on function lighter.guard_body(lighter.sources) is 'Text of the trigger function of a guard, see lighter.build_guard.';
revoke all on function lighter.guard_body(lighter.sources) from public;
