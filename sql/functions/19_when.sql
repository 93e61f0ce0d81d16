-- When rows of a source may leave: its when_sql, a condition over the row's columns.
--
-- The condition is bound to its functions and columns once, at attach, and kept as the function lighter.when_<id>, which
-- takes the columns. So it means the same whatever the search_path is, and whatever columns are called later. The daemon
-- calls it in its own statements, with its own rights; Postgres makes it a part of the statement. No trigger calls it.

-- Postgres itself reads the expression, as a check of an empty table with the same columns: what it allows there cannot look
-- into other rows or tables. The table is gone when this returns.
create or replace function lighter.parse_when(
  target regclass,
  expression text,
  trust_owner boolean,
  out parts text[],
  out columns name[],
  out printed text,
  out varies boolean,
  out obstacles lighter.obstacle[]
)
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  -- So that columns can be written with the table's name before them.
  copy_name constant name := (select c.relname from pg_class c where c.oid = target);
  -- No expression can contain it.
  mark constant text := 'lighter_' || replace(gen_random_uuid()::text, '-', '') || '_';
  names name[];
  copy oid;
  condition record;
  each record;
  marked text;
begin
  obstacles := '{}';
  begin
    execute format('create temporary table %I (like %s)', copy_name, target);
    copy := format('pg_temp.%I', copy_name)::regclass;
    -- Not valid: Postgres would run what it can of it, before anybody has looked whose functions it calls.
    execute format(E'alter table pg_temp.%I add constraint lighter_when check (\n%s\n) not valid', copy_name, expression);
    if (select count(*) from pg_constraint c where c.conrelid = copy and c.contype = 'c') <> 1 then
      raise exception 'it must be one expression' using errcode = 'syntax_error';
    end if;
    select c.oid, c.conbin::text as nodes, pg_get_expr(c.conbin, copy) as printed into condition
      from pg_constraint c where c.conrelid = copy and c.contype = 'c';
    printed := condition.printed;
    names := array(select a.attname from pg_attribute a where a.attrelid = copy and a.attnum > 0 order by a.attnum);
    if exists (select from regexp_matches(condition.nodes, ':varattno (-?\d+)', 'g') v where v[1]::integer <= 0) then
      raise exception 'it reads the whole row, or a system column' using errcode = 'feature_not_supported';
    end if;

    obstacles := obstacles || array(
      select lighter.new_obstacle('invalid_object_definition', format('when_sql calls %s, which is volatile: it may answer differently each time', p.oid::regprocedure),
               'Use functions that are immutable or stable.')
        from lighter.called_functions(condition.nodes) f join pg_proc p on p.oid = f
       where p.provolatile = 'v' order by p.oid);
    varies := exists (select from lighter.called_functions(condition.nodes) f join pg_proc p on p.oid = f where p.provolatile <> 'i')
      -- current_date and its like
      or condition.nodes ~ '\{SQLVALUEFUNCTION '
      -- A cast over text: of a time it depends on settings, and to text nobody knows from what.
      or condition.nodes ~ '\{COERCEVIAIO '
         and exists (select from regexp_matches(condition.nodes, ':resulttype (\d+)', 'g') c
                   join pg_type t on t.oid = c[1]::oid join pg_proc p on p.oid = t.typinput
                  where t.typcategory = 'S' or p.provolatile <> 'i');
    obstacles := obstacles || array(select o from lighter.when_use_obstacles('pg_constraint'::regclass, condition.oid, trust_owner) o);

    for each in
      select distinct v[1]::integer as n from regexp_matches(condition.nodes, ':varattno (\d+)', 'g') v
    loop
      execute format('alter table pg_temp.%I rename column %I to %I', copy_name, names[each.n], mark || each.n || '_');
    end loop;
    marked := (select pg_get_expr(c.conbin, copy) from pg_constraint c where c.oid = condition.oid);
    parts := regexp_split_to_array(marked, mark || '\d+_');
    columns := array(
      select names[m[1]::integer] from regexp_matches(marked, mark || '(\d+)_', 'g') with ordinality x(m, n) order by n);
    if cardinality(columns) > 90 then
      raise exception 'it names columns % times, and may 90 times', cardinality(columns) using errcode = 'program_limit_exceeded';
    end if;
    raise exception using errcode = 'LW001';
  exception
    when sqlstate 'LW001' then
      null;
    when others then
      parts := null;
      columns := null;
      printed := null;
      obstacles := array[lighter.new_obstacle(sqlstate,
        format('when_sql cannot be used: %s', regexp_replace(replace(sqlerrm, 'argument of CHECK', 'it'), 'check constraints?', 'when_sql', 'g')),
        'It must be one boolean expression over the columns of the table, such as status = ''finished''. Functions and types outside of pg_catalog need their schemas.')];
  end;
end
$$;
comment on function lighter.parse_when(regclass, text, boolean) is
  'Reads a when_sql: its text around the columns that it reads, whether it may come to hold without a write, and what is wrong with it. Changes nothing.';
revoke all on function lighter.parse_when(regclass, text, boolean) from public;

create or replace function lighter.called_functions(nodes text) returns setof oid
language sql immutable
set search_path = pg_catalog, pg_temp
begin atomic
  select f[1]::oid from regexp_matches(nodes, ':(?:op)?funcid (\d+)', 'g') f
  union
  -- Comparisons of rows name operators only.
  select o.oprcode::oid
    from regexp_matches(nodes, ':opnos \(o ([\d ]+)\)', 'g') r
   cross join lateral regexp_split_to_table(btrim(r[1]), ' +') n
    join pg_operator o on o.oid = n::oid;
end;
comment on function lighter.called_functions(text) is 'The functions that an expression calls, of which Postgres has written the tree as text.';
revoke all on function lighter.called_functions(text) from public;

-- A statement_timeout that is set in here holds from the next statement on only, so the clock is looked at after each row.
create or replace function lighter.try_when(target regclass, expression text) returns lighter.obstacle[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  most_rows constant integer := 1000;
  most_seconds constant double precision := 2;
  slow_ms constant double precision := 1;
  began constant timestamptz := clock_timestamp();
  rows refcursor;
  holds boolean;
  tried integer := 0;
  seconds double precision;
begin
  begin
    open rows for execute format('select (%s) from %s limit %s', expression, target, most_rows);
    loop
      fetch rows into holds;
      exit when not found;
      tried := tried + 1;
      exit when extract(epoch from clock_timestamp() - began) > most_seconds;
    end loop;
    close rows;
  exception when others then
    return array[lighter.new_obstacle(sqlstate, format('when_sql fails on a row of %s: %s', target, sqlerrm),
      'Let it hold, or not, of every row: for instance by nullif, or by a case that looks first.')];
  end;
  seconds := extract(epoch from clock_timestamp() - began);
  if seconds > 0.1 and seconds * 1000 / greatest(tried, 1) > slow_ms then
    return array[lighter.new_obstacle('query_canceled',
      format('when_sql is slow: %s ms for each of %s rows of %s, and may take %s ms', round((seconds * 1000 / greatest(tried, 1))::numeric, 1), tried, target, slow_ms),
      'Let it compare columns with constants.')];
  end if;
  return '{}';
end
$$;
comment on function lighter.try_when(regclass, text) is
  'Tries a when_sql on at most 1000 rows, for 2 seconds or so: the obstacle where it fails or is slow.';
revoke all on function lighter.try_when(regclass, text) from public;

create or replace function lighter.when_text(source lighter.sources) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (
  select case when count(*) filter (where p.n <= cardinality(source.when_columns) and p.name is null) = 0
              then string_agg(p.part || coalesce(quote_ident(p.name), ''), '' order by p.n) end
    from unnest(source.when_parts, source.when_columns) with ordinality p(part, name, n)
);
comment on function lighter.when_text(lighter.sources) is 'The when_sql of a source with the names of its when_columns; null when one is gone, or there is none.';
revoke all on function lighter.when_text(lighter.sources) from public;

create or replace function lighter.when_function(source lighter.sources) returns regprocedure
language sql stable
set search_path = pg_catalog, pg_temp
return (
  select p.oid::regprocedure from pg_proc p where p.pronamespace = 'lighter'::regnamespace and p.proname = 'when_' || source.id
);
comment on function lighter.when_function(lighter.sources) is 'The function that tells whether a row of a source may leave; null when there is none.';
revoke all on function lighter.when_function(lighter.sources) from public;

create or replace function lighter.build_when(source lighter.sources) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  former regprocedure := lighter.when_function(source);
  types text[];
  signature text;
begin
  source := lighter.with_current_names(source);
  types := array(
    select format_type(a.atttypid, null)
      from unnest(source.when_columns) with ordinality w(name, n)
      join pg_attribute a on a.attrelid = source.relation and a.attname = w.name and a.attnum > 0 order by w.n);
  -- lighter.missing_parts tells of a column that is gone.
  if source.when_parts is not null and cardinality(types) < cardinality(source.when_columns) then
    return;
  end if;
  signature := format('lighter.when_%s(%s)', source.id, array_to_string(types, ', '));
  if former is not null and (source.when_parts is null or former::oid is distinct from to_regprocedure(signature)::oid) then
    execute format('drop function %s', former);
  end if;
  if source.when_parts is null then
    return;
  end if;
  execute format('create or replace function %s returns boolean language sql stable return coalesce(%s, false)', signature,
    (select string_agg(p.part || case when p.n <= cardinality(types) then format('$%s', p.n) else '' end, '' order by p.n)
       from unnest(source.when_parts) with ordinality p(part, n)));
  execute format('revoke all on function %s from public', signature);
  execute format('grant execute on function %s to lighter_daemon', signature);
  execute format('comment on function %s is %L', signature, format('Whether a row of %s may leave; made by lighter.attach.', source.relation));
  perform lighter.own_function(signature::regprocedure);
end
$$;
comment on function lighter.build_when(lighter.sources) is 'Creates, replaces or drops the function that tells whether a row of a source may leave; locks nothing.';
revoke all on function lighter.build_when(lighter.sources) from public;

-- One on the key, with a condition without which when_sql does not hold: then a scan reads the rows of that index only. Such a
-- condition is all of when_sql, or the first or the last of what its outermost AND joins, by the text that Postgres writes.
create or replace function lighter.scan_index(source lighter.sources) returns regclass
language sql stable
set search_path = pg_catalog, pg_temp
return (
  select i.indexrelid::regclass
    from pg_index i
   cross join lateral (select pg_get_expr(i.indpred, i.indrelid) as condition) c
   where i.indrelid = source.relation and i.indisvalid and i.indpred is not null and i.indexprs is null
     and (c.condition = source.when_sql
          or starts_with(source.when_sql, format('(%s AND ', c.condition))
          or right(source.when_sql, length(c.condition) + 6) = format(' AND %s)', c.condition))
     and array(select a.attname from generate_series(0, i.indnkeyatts - 1) n
                 join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[n] order by n)::name[] = source.key_columns
   order by i.indexrelid limit 1
);
comment on function lighter.scan_index(lighter.sources) is 'The index that the sweep scan uses on the table of a source; null: it goes by the key.';
revoke all on function lighter.scan_index(lighter.sources) from public;
