-- Mode whole: the value's column is null while its artifact's id stands in the pointer column beside it. An application that
-- writes a value into an offloaded row knows nothing of that id, and saves it again with all other columns. So a trigger
-- takes the id away in the application's own statement: else a later null in the column would bring the old value back.
--
-- A value beside an id wins wherever rows are read, so nothing is lost where this trigger does not fire: in a session that
-- switches triggers off, or on a subscriber. When such a value becomes null, the id that stood beside it goes with it.

-- Creates (again) the trigger of one source, or drops it. Ours has null in one of the two columns, and passes.
create or replace function lighter.build_clear(source lighter.sources) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $build$
declare
  function_name constant text := format('lighter.clear_%s', source.id);
  trigger_name constant text := format('lighter_clear_%s', source.id);
  null_trigger_name constant text := format('lighter_clear_null_%s', source.id);
begin
  source := lighter.with_current_names(source);
  if source.json_column is null or source.pointer_column is null then
    -- Only the table's owner may drop a trigger, so not for nothing.
    if source.mode <> 'whole' and exists (select from pg_trigger where tgrelid = source.relation and tgname = trigger_name) then
      execute format('drop trigger %I on %s', trigger_name, source.relation);
      execute format('drop trigger if exists %I on %s', null_trigger_name, source.relation);
      execute format('drop function if exists %s()', function_name);
    end if;
    return;
  end if;
  -- It runs as whoever writes, and must not fail: a column that was renamed since is found by its number. First, since the
  -- application may have given its name to another column. In a database that was restored from a dump the number says nothing.
  execute format('create or replace function %s() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as %L',
    function_name, format(
    $body$
    declare
      root constant oid := coalesce(pg_partition_root(tg_relid), tg_relid);
      name constant name := (
        select a.attname from pg_attribute a
         where a.attrelid = root and a.atttypid = 'uuid'::regtype and not a.attisdropped
           and case when root = %3$s then a.attnum = %2$s else a.attname = %1$L end);
    begin
      if name = %1$L then
        new.%1$I := null;
      elsif name is not null then
        return jsonb_populate_record(new, jsonb_build_object(name, null));
      else
        raise warning 'pg-lighter: %% has no pointer column %% any more', tg_relid::regclass, %1$L
          using hint = 'Attach the column again: that makes this trigger again.';
      end if;
      return new;
    end
    $body$, source.pointer_column, lighter.number_of_column(source.relation, source.pointer_column), source.relation::oid));
  execute format('revoke all on function %s() from public', function_name);
  execute format('comment on function %s() is %L', function_name,
    format('Takes the artifact''s id away when a row of %s gets a value; made by lighter.attach.', source.relation));
  perform lighter.own_function(format('%s()', function_name)::regprocedure);
  execute format('create or replace trigger %I before insert or update on %s for each row when (new.%I is not null and new.%I is not null) execute function %s()',
    trigger_name, source.relation, source.json_column, source.pointer_column, function_name);
  -- An offload brings another id.
  execute format('create or replace trigger %1$I before update on %2$s for each row'
    ' when (old.%3$I is not null and new.%3$I is null and new.%4$I = old.%4$I) execute function %5$s()',
    null_trigger_name, source.relation, source.json_column, source.pointer_column, function_name);
end
$build$;
comment on function lighter.build_clear(lighter.sources) is
  'Creates, replaces or drops the triggers that take the artifact''s id away when the application writes a value into a column of mode whole, or removes one.';
revoke all on function lighter.build_clear(lighter.sources) from public;
