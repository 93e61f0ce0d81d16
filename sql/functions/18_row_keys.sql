-- Which columns can be the key of a row, and how a key is written and read. A key's text must be the same whatever the
-- writer has set, and two values that Postgres calls equal must have one text: numeric has 1.0 and 1.00, citext has A and a.

create or replace function lighter.base_type(type oid) returns oid
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  with recursive types as (
    select t.oid, t.typtype, t.typbasetype from pg_type t where t.oid = base_type.type
    union all
    select b.oid, b.typtype, b.typbasetype from types d join pg_type b on b.oid = d.typbasetype where d.typtype = 'd'
  )
  select t.oid from types t where t.typtype <> 'd';
end;
comment on function lighter.base_type(oid) is 'The type itself, or of a domain the type that it is made of.';

-- What `format_type` writes depends on the search_path of who asks.
create or replace function lighter.type_name(type oid) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (select case when t.typnamespace = 'pg_catalog'::regnamespace then format_type(t.oid, null) else format('%I.%I', n.nspname, t.typname) end
          from pg_type t join pg_namespace n on n.oid = t.typnamespace where t.oid = type_name.type);
comment on function lighter.type_name(oid) is 'Name of a type, with its schema unless that is pg_catalog.';

create or replace function lighter.key_form(type oid) returns text
language sql stable
set search_path = pg_catalog, pg_temp
return (select case when t.oid = 'uuid'::regtype then 'uuid'
                    when t.oid in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype) then 'integer'
                    when t.oid in ('text'::regtype, 'character varying'::regtype) then 'text'
                    when t.oid = 'date'::regtype then 'date'
                    when t.oid = 'timestamp without time zone'::regtype then 'timestamp'
                    when t.oid = 'timestamp with time zone'::regtype then 'timestamptz'
                    when t.typtype = 'e' then 'enum' end
          from pg_type t where t.oid = lighter.base_type(key_form.type));
comment on function lighter.key_form(oid) is
  'How values of a type are written in a row''s key: uuid, integer, text, date, timestamp, timestamptz or enum; null: the type cannot be part of a key.';

-- Types whose values have the same texts. A column may change from one to another and its keys stay.
create or replace function lighter.same_key_types(type_name text) returns text[]
language sql immutable
set search_path = pg_catalog, pg_temp
return case when type_name in ('smallint', 'integer', 'bigint') then array['smallint', 'integer', 'bigint']
            when type_name in ('text', 'character varying') then array['text', 'character varying']
            else array[type_name] end;
comment on function lighter.same_key_types(text) is 'Types that a key column may have in the place of one, since they write its values in the same way.';
revoke all on function lighter.same_key_types(text) from public;

-- SQL that writes a value of a form. It stands in the trigger, which runs with our rights: it must not call what the
-- owner of a type can define. So there is no cast to text, and JSON functions see built-in types and their domains only.
create or replace function lighter.key_part_sql(value text, form text) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return case
  when form in ('date', 'timestamp') then format('(pg_catalog.to_jsonb(%s) operator(pg_catalog.#>>) ''{}'')', value)
  -- As it is written in UTC. Infinity has no zone, and BC stands at the end.
  when form = 'timestamptz' then format(
    'case when %1$s operator(pg_catalog.>=) pg_catalog.timestamptz ''0001-01-01 00:00:00+00'' and pg_catalog.isfinite(%1$s)'
    ' then pg_catalog.concat(pg_catalog.to_jsonb(pg_catalog.timezone(''UTC'', %1$s)) operator(pg_catalog.#>>) ''{}'', ''+00:00'')'
    ' else pg_catalog.replace(pg_catalog.to_jsonb(pg_catalog.timezone(''UTC'', %1$s)) operator(pg_catalog.#>>) ''{}'', '' BC'', ''+00:00 BC'') end', value)
  else format('pg_catalog.format(''%%s'', %s)', value) end;
comment on function lighter.key_part_sql(text, text) is 'SQL for the text of a value of a key column; form as lighter.key_form says.';
revoke all on function lighter.key_part_sql(text, text) from public;

-- Only texts can have what JSON escapes.
create or replace function lighter.row_key_sql(alias text, columns name[], forms text[]) returns text
language sql immutable
set search_path = pg_catalog, pg_temp
return (
  select case when count(*) = 1 then min(p.part)
              else format('pg_catalog.format(%L, %s)', '[' || string_agg(p.place, ',' order by p.n) || ']',
                     string_agg(p.element, ', ' order by p.n)) end
    from (select c.n, lighter.key_part_sql(format('%s.%I', alias, c.name), c.form) as part,
                 case when c.form in ('text', 'enum') then '%s' else '"%s"' end as place,
                 case when c.form in ('text', 'enum')
                      then format('pg_catalog.to_json(%s)', lighter.key_part_sql(format('%s.%I', alias, c.name), c.form))
                      -- format writes it anyway
                      when c.form in ('uuid', 'integer') then format('%s.%I', alias, c.name)
                      else lighter.key_part_sql(format('%s.%I', alias, c.name), c.form) end as element
            from unnest(columns, forms) with ordinality c(name, form, n)) p);
comment on function lighter.row_key_sql(text, name[], text[]) is 'SQL for the key of a row, as lighter.row_key writes it.';
revoke all on function lighter.row_key_sql(text, name[], text[]) from public;

-- The columns of a source's key as they are now, in its order.
create or replace function lighter.key_parts_of(source lighter.sources)
returns table (place integer, column_name name, type oid, base oid, form text)
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  select k.n::integer, k.name, a.atttypid, lighter.base_type(a.atttypid), lighter.key_form(a.atttypid)
    from unnest(source.key_columns) with ordinality k(name, n)
    join pg_attribute a on a.attrelid = source.relation and a.attname = k.name and a.attnum > 0 and not a.attisdropped
   order by k.n;
end;
comment on function lighter.key_parts_of(lighter.sources) is 'The columns of a source''s key, with the types that they have now.';

-- Of texts that anybody may have written. Not parallel safe: a sub-transaction is refused there.
create or replace function lighter.as_timestamp(value text) returns timestamp
language plpgsql immutable
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY'
as $$
begin
  return case when value ~ '^(?:-?infinity|\d{4,7}-\d\d-\d\d(?:T\d\d:\d\d:\d\d(?:\.\d{1,6})?)?(?: BC)?)$' then value::timestamp end;
exception when invalid_datetime_format or datetime_field_overflow then
  return null;
end
$$;
comment on function lighter.as_timestamp(text) is 'The time that the text spells as lighter.row_key has it, else null; never an error.';

create or replace function lighter.as_timestamptz(value text) returns timestamptz
language sql immutable
set search_path = pg_catalog, pg_temp
return case when value ~ '^-?infinity$' then timezone('UTC', lighter.as_timestamp(value))
            when value ~ '\+00:00( BC)?$' then timezone('UTC', lighter.as_timestamp(replace(value, '+00:00', ''))) end;
comment on function lighter.as_timestamptz(text) is 'The time in UTC that the text spells as lighter.row_key has it, else null; never an error.';

-- Another spelling of the same key, such as a uuid in capitals, is the same row.
create or replace function lighter.canonical_key(source_id integer, key text) returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, MDY'
set timezone = 'UTC'
as $$
declare
  source constant lighter.sources := (select lighter.with_current_names(s) from lighter.sources s where s.id = canonical_key.source_id);
  parts constant text[] := lighter.row_key_parts(key, cardinality(source.key_columns));
  each record;
  part text;
  canonical text[];
begin
  if parts is null then
    raise exception 'the key of %, written as JSON, is an array of % texts: got %', source.relation, cardinality(source.key_columns), key
      using errcode = 'invalid_text_representation',
            hint = format('Its columns: %s. Such as: %s', array_to_string(source.key_columns, ', '),
              lighter.row_key(variadic array(select format('<%s>', c) from unnest(source.key_columns) c)));
  end if;
  for each in select k.* from lighter.key_parts_of(source) k loop
    -- A literal is read by its type's input function: no cast is looked up.
    execute format('select %s from (select %L::%s as v) x', lighter.key_part_sql('x.v', each.form), parts[each.place], lighter.type_name(each.base))
      into part;
    canonical := canonical || part;
  end loop;
  return lighter.row_key(variadic canonical);
end
$$;
comment on function lighter.canonical_key(integer, text) is
  'The key of a row of a source as the queue writes it, from any spelling that its column types read. Fails where it is no key.';

-- Every unique index that could tell rows apart, and what is wrong with it.
create or replace function lighter.key_candidates(target regclass)
returns table (index regclass, is_primary boolean, columns name[], types text[], width integer, problem text)
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  select i.indexrelid::regclass, i.indisprimary, k.columns, k.types, k.width,
         case when i.indexprs is not null or 0 = any (i.indkey[0 : i.indnkeyatts - 1]) then 'it is over an expression'
              when i.indpred is not null then 'it is partial'
              when not i.indimmediate then 'it is deferrable, so two rows may have one key for a while'
              when not (i.indisvalid and i.indisready and i.indislive) then 'it is not valid'
              else k.problem end
    from pg_index i
   cross join lateral (
     select array_agg(a.attname order by n) as columns, array_agg(lighter.type_name(a.atttypid) order by n) as types,
            sum(case when t.typlen > 0 then t.typlen else 40 end)::integer as width,
            (array_agg(case
               when not a.attnotnull or exists (
                      select from pg_constraint c where c.conrelid = target and c.contype = 'n' and c.conkey = array[a.attnum] and not c.convalidated)
                 then format('%I may be null', a.attname)
               when lighter.key_form(a.atttypid) is null
                 then format('%I is of type %s, whose values have no text form that is the same for equal values under all settings', a.attname, lighter.type_name(a.atttypid))
               when not coalesce((select o.collisdeterministic from pg_collation o where o.oid = a.attcollation), true)
                 then format('%I has the nondeterministic collation %s', a.attname, (select o.collname from pg_collation o where o.oid = a.attcollation))
               when i.indcollation[n] <> a.attcollation then format('%I has another collation there than in the table', a.attname)
               -- pg_catalog's have the oids below: another one may call values equal that have two texts.
               when i.indclass[n] >= 16384 then format('%I has an operator class there that is not Postgres''s own', a.attname)
               -- Then Postgres cannot tell which `=` of its own is meant.
               when lighter.key_form(a.atttypid) = 'enum' and exists (
                      select from pg_cast c where c.castsource = lighter.base_type(a.atttypid) and c.castcontext = 'i')
                 then format('%I is of the enum %s, which has an implicit cast to another type', a.attname, lighter.type_name(a.atttypid))
             end order by n)) as problems
       from generate_series(0, i.indnkeyatts - 1) n
       join pg_attribute a on a.attrelid = target and a.attnum = i.indkey[n]
       join pg_type t on t.oid = lighter.base_type(a.atttypid)) c
   cross join lateral (
     select c.columns, c.types, c.width,
            (select string_agg(p, ' and ') from unnest(c.problems) p) as problem) k
   where i.indrelid = target and i.indisunique and k.columns is not null;
end;
comment on function lighter.key_candidates(regclass) is
  'The unique indexes of a table, with their columns, and why one cannot be the key of its rows; problem null: it can.';
revoke all on function lighter.key_candidates(regclass) from public;

-- A b-tree takes entries of 2,704 bytes. The key of a table of the application may be nearly as long by itself, or longer
-- where it has several columns.
create or replace function lighter.longest_key() returns integer
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
return 2600;
comment on function lighter.longest_key() is 'Longest key of a row in bytes, as lighter.row_key writes it. Rows with a longer one stay whole.';
