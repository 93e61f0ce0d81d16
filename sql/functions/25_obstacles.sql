-- What is judged about an attached column: by attach before it watches it, and by doctor ever after.
--
-- Each check is a function of a source. A new one is written here, called in lighter.source_obstacles, and let be
-- called by lighter_daemon (grants.sql), for doctor. A source that attach only describes may lack what was not found.

create or replace function lighter.new_obstacle(code text, problem text, hint text default null, is_fatal boolean default true)
returns lighter.obstacle
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  return row(code, problem, hint, is_fatal)::lighter.obstacle;
end
$$;
comment on function lighter.new_obstacle(text, text, text, boolean) is 'An obstacle; not fatal: a warning.';
revoke all on function lighter.new_obstacle(text, text, text, boolean) from public;

-- From the column's own to the one that is made of no other; none where the type is no domain.
create or replace function lighter.domains_of(target regclass, column_name name)
returns table (type oid, is_not_null boolean, made_of oid)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive domains (type, is_not_null, made_of) as (
    select t.oid, t.typnotnull, t.typbasetype
      from pg_attribute a join pg_type t on t.oid = a.atttypid and t.typtype = 'd'
     where a.attrelid = target and a.attname = column_name and a.attnum > 0 and not a.attisdropped
    union all
    select t.oid, t.typnotnull, t.typbasetype from domains d join pg_type t on t.oid = d.made_of and t.typtype = 'd'
  )
  select d.type, d.is_not_null, d.made_of from domains d;
$$;
comment on function lighter.domains_of(regclass, name) is 'The domains that a column''s type is made of.';
revoke all on function lighter.domains_of(regclass, name) from public;

create or replace function lighter.envelope_obstacle(source lighter.sources) returns lighter.obstacle
language sql stable
set search_path = pg_catalog, pg_temp
return lighter.new_obstacle('invalid_parameter_value',
  format('threshold of %s bytes leaves no room for %s envelope keys', lighter.effective_threshold(source), cardinality(source.envelope_keys)),
  'Raise threshold_bytes or pass fewer envelope_keys.');
comment on function lighter.envelope_obstacle(lighter.sources) is
  'Said when the envelope keys of a source cannot fit below its threshold.';
revoke all on function lighter.envelope_obstacle(lighter.sources) from public;

-- Keys are not unique over an inheritance tree, and its children have no trigger of ours.
create or replace function lighter.inheritance_obstacles(source lighter.sources) returns setof lighter.obstacle
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  select lighter.new_obstacle('feature_not_supported',
           format('%s has children by inheritance: %s. Their rows may have the keys of its own', r.relation,
             string_agg(i.inhrelid::regclass::text, ', ' order by i.inhrelid::regclass::text)),
           format('Take them out (alter table %s no inherit %s;), or partition the table instead.',
             min(i.inhrelid::regclass::text), r.relation))
    from unnest(array[source.relation] || source.parent_relations) r(relation)
    join pg_class c on c.oid = r.relation and c.relkind <> 'p'
    join pg_inherits i on i.inhparent = r.relation
   group by r.relation;
end;
comment on function lighter.inheritance_obstacles(lighter.sources) is 'Tables that inherit from the table of a source, or from the one with its tenants.';
revoke all on function lighter.inheritance_obstacles(lighter.sources) from public;

-- Rows are found by their key: jobs, pins and commands name one by it.
create or replace function lighter.key_obstacles(source lighter.sources) returns setof lighter.obstacle
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  select lighter.new_obstacle('invalid_table_definition',
           format('no valid unique index keeps %s (%s) from being there twice%s', source.relation, array_to_string(source.key_columns, ', '),
             coalesce((select format(': of %s, %s', k.index, k.problem) from lighter.key_candidates(source.relation) k
                        where k.columns @> source.key_columns and k.columns <@ source.key_columns order by k.index::text limit 1), '')),
           format('Create it again (alter table %s add primary key (%s);), or validate it: reindex, or attach the indexes of all partitions.',
             source.relation, (select string_agg(quote_ident(c), ', ' order by n) from unnest(source.key_columns) with ordinality k(c, n))))
    from pg_class c
   where c.oid = source.relation and source.key_columns is not null
     and not exists (
       select from lighter.key_candidates(source.relation) k
        where k.problem is null and k.columns @> source.key_columns and k.columns <@ source.key_columns);
end;
comment on function lighter.key_obstacles(lighter.sources) is 'Said when nothing keeps the key of a source unique any more.';
revoke all on function lighter.key_obstacles(lighter.sources) from public;

-- True of an expression that looks at more of a document than stays in its row: `kept` are the keys that do. What
-- stays true of any document that was offloaded (its type, whether it is null, whether it was changed) is no look
-- inside. By the text that Postgres itself writes for an expression; in doubt it reads beyond.
create or replace function lighter.reads_beyond(expression text, column_name name, kept text[], mode text default 'document') returns boolean
language sql immutable
set search_path = pg_catalog, pg_temp
begin atomic
  with recursive names as (
    select regexp_replace(quote_ident(column_name), '[^[:alnum:]_]', '\\\&', 'g') collate "default" as escaped
  ),
  patterns as (
    -- With or without its table's name before it.
    select n.escaped, '(?<![[:alnum:]_"])(?:(?:[[:alnum:]_]+|"[^"]+")\.)?' || n.escaped || '(?![[:alnum:]_"])' as a_column from names n
  ),
  keys as (
    select k.place, regexp_replace(replace(k.key, '''', ''''''), '[^[:alnum:]_]', '\\\&', 'g') as key
      from unnest(kept) with ordinality k(key, place)
  ),
  steps(place, rest) as (
    select 0::bigint, regexp_replace(regexp_replace(regexp_replace(regexp_replace(expression,
             '\mold\.' || p.escaped || ' (?:IS DISTINCT FROM|<>) new\.' || p.escaped, '', 'gi'),
             '\mold\.\* IS DISTINCT FROM new\.\*', '', 'gi'),
             case when mode = 'document' then '\mjsonb_typeof\(' || p.a_column || '\)' else '$.' end, '', 'g'),
             -- Nothing follows the end.
             case when mode <> 'whole' then p.a_column || ' IS (?:NOT )?NULL' else '$.' end, '', 'g')
      from patterns p
    union all
    select k.place, regexp_replace(regexp_replace(regexp_replace(regexp_replace(s.rest,
             p.a_column || ' (?:->>?|\?) ''' || k.key || '''::text', '', 'g'),
             p.a_column || '\[''' || k.key || '''::text\]', '', 'g'),
             p.a_column || ' #>>? ''\{' || k.key || '(?:,[[:alnum:]_,]*)?\}''::text\[\]', '', 'g'),
             '\mjsonb_extract_path(?:_text)?\(' || p.a_column || ', (?:VARIADIC ARRAY\[)?''' || k.key || '''::text', '', 'g')
      from steps s join keys k on k.place = s.place + 1 cross join patterns p
  ),
  ended as (
    -- The column's name inside of a text is none.
    select regexp_replace(s.rest, 'E?''(?:[^'']|'''')*''', '', 'g') as rest from steps s order by s.place desc limit 1
  )
  -- Nothing was recognised: it is read under another name.
  select coalesce(expression, '') <> ''
         and (e.rest ~ p.a_column or e.rest ~ '\.\*' or not expression ~ p.a_column and not expression ~ '\.\*')
    from ended e cross join patterns p;
end;
comment on function lighter.reads_beyond(text, name, text[], text) is
  'True of an expression that reads more of a column than the keys that stay in its row.';
revoke all on function lighter.reads_beyond(text, name, text[], text) from public;

-- Partitions may have indexes, constraints and policies of their own.
create or replace function lighter.source_relations(source lighter.sources) returns setof oid
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  select source.relation::oid
  union
  select relid::oid from pg_partition_tree(source.relation);
end;
comment on function lighter.source_relations(lighter.sources) is 'The table of a source, and its partitions.';
revoke all on function lighter.source_relations(lighter.sources) from public;

-- What Postgres works out from the column when a row is written or read. After an offload it sees what stays.
create or replace function lighter.dependents(source lighter.sources)
returns table (what text, expression text, consequence text)
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  with tables as (
    select r as relid from lighter.source_relations(source) r
  ),
  columns as (
    select a.attrelid, a.attnum
      from tables t join pg_attribute a on a.attrelid = t.relid and a.attname = source.json_column and not a.attisdropped
  ),
  -- A whole row in an expression depends on no column in the eyes of Postgres, so texts are looked at too.
  depending as (
    select distinct d.classid, d.objid
      from columns c
      join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = c.attrelid and d.refobjsubid = c.attnum
  )
  select format('the generated column %s.%I', a.attrelid::regclass, a.attname), pg_get_expr(ad.adbin, ad.adrelid),
         'is worked out again from what stays' as consequence
    from tables t
    join pg_attribute a on a.attrelid = t.relid and a.attgenerated <> '' and a.attname <> source.json_column and (a.attislocal or t.relid = source.relation)
    join pg_attrdef ad on ad.adrelid = a.attrelid and ad.adnum = a.attnum
   where exists (select from depending d where d.classid = 'pg_attrdef'::regclass and d.objid = ad.oid)
  union all
  select format('the %s %s', case when i.indisunique then 'unique index' when i.indisexclusion then 'exclusion constraint' else 'index' end, i.indexrelid::regclass),
         concat_ws(' ', x.direct, pg_get_expr(i.indexprs, i.indrelid), pg_get_expr(i.indpred, i.indrelid)),
         case when i.indisunique or i.indisexclusion then 'accepts what it should refuse' else 'finds fewer rows' end
    from tables t
    join pg_index i on i.indrelid = t.relid
    join pg_class c on c.oid = i.indexrelid and (not c.relispartition or t.relid = source.relation)
    join columns col on col.attrelid = t.relid
   cross join lateral (
           select case when exists (select from generate_series(0, i.indnkeyatts - 1) n where i.indkey[n] = col.attnum)
                       then quote_ident(source.json_column) end as direct) x
   where x.direct is not null or (i.indexprs is not null or i.indpred is not null)
     and exists (select from depending d where d.classid = 'pg_class'::regclass and d.objid = i.indexrelid)
      or pg_get_expr(i.indexprs, i.indrelid) ~ '\.\*' or pg_get_expr(i.indpred, i.indrelid) ~ '\.\*'
  union all
  select format('the check constraint %I of %s', con.conname, con.conrelid::regclass), pg_get_expr(con.conbin, con.conrelid),
         'is asked of what stays' as consequence
    from tables t
    join pg_constraint con on con.conrelid = t.relid and con.contype = 'c' and (con.coninhcount = 0 or t.relid = source.relation)
   where exists (select from depending d where d.classid = 'pg_constraint'::regclass and d.objid = con.oid)
      or pg_get_expr(con.conbin, con.conrelid) ~ '\.\*'
  union all
  select format('the policy %I of %s', p.polname, p.polrelid::regclass),
         concat_ws(' ', pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)),
         'may show or hide rows that it should not' as consequence
    from pg_policy p
   where exists (select from depending d where d.classid = 'pg_policy'::regclass and d.objid = p.oid)
      or p.polrelid in (select relid from tables)
         and concat_ws(' ', pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)) ~ '\.\*'
  union all
  select format('the check constraint %I of domain %s', con.conname, d.type::regtype), replace(pg_get_constraintdef(con.oid), 'VALUE', quote_ident(source.json_column)),
         'is asked of what stays' as consequence
    from lighter.domains_of(source.relation, source.json_column) d
    join pg_constraint con on con.contypid = d.type and con.contype = 'c'
  union all
  -- One of inserts only sees documents as they are written.
  select format('the condition of trigger %I of %s', tg.tgname, tg.tgrelid::regclass),
         substring(pg_get_triggerdef(tg.oid) from ' WHEN \((.*)\) EXECUTE '), 'is asked of what stays' as consequence
    from tables t
    join pg_trigger tg on tg.tgrelid = t.relid and tg.tgqual is not null and not tg.tgisinternal and tg.tgparentid = 0
         and (tg.tgtype & 24) <> 0 and tg.tgname not like 'lighter\_%'
   where exists (select from depending d where d.classid = 'pg_trigger'::regclass and d.objid = tg.oid)
      or pg_get_triggerdef(tg.oid) ~ ' WHEN .*\.\*'
  union all
  select format('the row filter of publication %I', pub.pubname), pg_get_expr(pr.prqual, pr.prrelid),
         'may publish an update as a deletion' as consequence
    from tables t
    join pg_publication_rel pr on pr.prrelid = t.relid and pr.prqual is not null
    join pg_publication pub on pub.oid = pr.prpubid
   where exists (select from depending d where d.classid = 'pg_publication_rel'::regclass and d.objid = pr.oid);
end;
comment on function lighter.dependents(lighter.sources) is
  'Generated columns, indexes, constraints, policies, trigger conditions and row filters that depend on the column of a source.';
revoke all on function lighter.dependents(lighter.sources) from public;

create or replace function lighter.dependent_obstacles(source lighter.sources) returns setof lighter.obstacle
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  select lighter.new_obstacle('dependent_objects_still_exist',
           format('%s reads inside %s.%s and %s after an offload: %s', d.what, source.relation, source.json_column, d.consequence,
             left(regexp_replace(d.expression, '\s+', ' ', 'g'), 300)),
           case when coalesce(source.allow_dependents, false) then 'It was accepted (allow_dependents).' else
             'Let it read keys that stay in the row only (envelope_keys), move what it reads into a column of its own, or pass allow_dependents => true (--allow-dependents).' end,
           not coalesce(source.allow_dependents, false))
    from lighter.dependents(source) d
   where lighter.reads_beyond(d.expression, source.json_column, source.envelope_keys, source.mode)
   order by d.what;
end;
comment on function lighter.dependent_obstacles(lighter.sources) is
  'What reads inside the column of a source more than stays in the row.';
revoke all on function lighter.dependent_obstacles(lighter.sources) from public;

-- What the mode asks of the columns.
create or replace function lighter.mode_obstacles(source lighter.sources) returns setof lighter.obstacle
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  label constant text := format('%s.%I', source.relation, source.json_column);
  pointer constant text := source.relation::text || '.' || quote_ident(source.pointer_column);
  column_type constant text := lighter.column_type(source.relation, source.json_column);
  pointer_type constant text := lighter.column_type(source.relation, source.pointer_column);
  foreign_key text;
begin
  if source.mode not in ('document', 'stub', 'whole') then
    return next lighter.new_obstacle('invalid_parameter_value', format('mode must be document, stub or whole, got "%s"', source.mode));
    return;
  end if;
  -- That there is none, or none that can be watched, is an obstacle already.
  if column_type is null then
    return;
  end if;
  if source.mode = 'document' and source.column_type <> 'jsonb' then
    return next lighter.new_obstacle('datatype_mismatch',
      format('%s is of type %s, and mode document needs jsonb', label, column_type),
      format('Leave mode out; or: alter table %s alter column %I type jsonb using %I::jsonb;', source.relation, source.json_column, source.json_column));
  end if;
  if source.mode = 'stub' and source.column_type = 'bytea' then
    return next lighter.new_obstacle('feature_not_supported',
      format('%s is of type bytea, where a stub is no value of the application''s', label),
      'Attach it in mode whole: mode => ''whole'', create_pointer_column => true (--mode whole --create-pointer-column).');
  end if;
  if source.json_column = any (source.key_columns) or source.json_column in (source.parent_columns[1], source.entity_column)
     or source.parent_relations = '{}' and source.json_column = source.tenant_column then
    return next lighter.new_obstacle('invalid_parameter_value', format('%s tells the key, tenant or entity of a row, so it stays', label),
      'Attach another column.');
  end if;
  select string_agg(format('%I of %s', c.conname, c.conrelid::regclass), ', ' order by c.conname) into foreign_key
    from pg_constraint c
    join pg_attribute a on a.attname = source.json_column and a.attrelid = source.relation
   where c.contype = 'f'
     and (c.conrelid = source.relation and a.attnum = any (c.conkey) or c.confrelid = source.relation and a.attnum = any (c.confkey));
  if foreign_key is not null then
    return next lighter.new_obstacle('feature_not_supported', format('%s is part of a foreign key: %s', label, foreign_key),
      'Attach another column.');
  end if;
  if source.mode <> 'document' and source.guard <> 'off' then
    return next lighter.new_obstacle('invalid_parameter_value', format('guard is for mode document: in mode %s nothing of the value stays in the row', source.mode),
      'Leave guard out.');
  end if;
  if source.mode <> 'whole' then
    return;
  end if;

  if (select bool_or(a.attnotnull) from lighter.source_relations(source) t(relid)
        join pg_attribute a on a.attrelid = t.relid and a.attname = source.json_column) then
    return next lighter.new_obstacle('not_null_violation', format('%s is not null, and mode whole makes it null', label),
      format('alter table %s alter column %I drop not null;%s', source.relation, source.json_column,
        case when source.column_type <> 'bytea' then ' or attach it in mode stub.' else '' end));
  end if;
  if exists (select from lighter.domains_of(source.relation, source.json_column) d where d.is_not_null) then
    return next lighter.new_obstacle('not_null_violation', format('the domain of %s is not null, and mode whole makes it null', label),
      'Drop the constraint of the domain, or attach the column in mode stub.');
  end if;
  if source.pointer_column is null then
    return next lighter.new_obstacle('invalid_parameter_value', format('mode whole of %s needs a column for the artifacts'' ids', label),
      'Pass create_pointer_column => true (--create-pointer-column), or pointer_column => a uuid column of the table (--pointer-column).');
    return;
  end if;
  if pointer_type is null then
    if not source.made_pointer_column then
      return next lighter.new_obstacle('undefined_column', format('%s has no column "%s"', source.relation, source.pointer_column),
        format('Pass create_pointer_column => true (--create-pointer-column), or: alter table %s add column %I uuid;', source.relation, source.pointer_column));
    end if;
    return;
  end if;
  if pointer_type <> 'uuid' then
    return next lighter.new_obstacle('datatype_mismatch', format('the pointer column %s is of type %s, not uuid', pointer, pointer_type),
      'Pass another pointer_column, or create_pointer_column => true with a new name.');
  end if;
  if source.pointer_column = any (source.key_columns) or source.pointer_column in (source.parent_columns[1], source.entity_column)
     or source.parent_relations = '{}' and source.pointer_column = source.tenant_column
     or exists (
       select from lighter.sources o
        where o.relation = source.relation and o.json_column <> source.json_column
          and (source.pointer_column = any (o.key_columns) or source.pointer_column in (o.pointer_column, o.parent_columns[1], o.entity_column,
                 case when o.parent_relations = '{}' then o.tenant_column end))) then
    return next lighter.new_obstacle('object_in_use', format('the column %s has another use already', pointer),
      'Pass another pointer_column.');
    return;
  end if;
  return query select (found.o).* from (
    select lighter.new_obstacle('not_null_violation', format('the pointer column %s.%I is not null', a.attrelid::regclass, a.attname),
             format('alter table %s alter column %I drop not null;', a.attrelid::regclass, a.attname)) as o
      from lighter.source_relations(source) t(relid)
      join pg_attribute a on a.attrelid = t.relid and a.attname = source.pointer_column and a.attnotnull
    union all
    select lighter.new_obstacle('wrong_object_type', format('the pointer column %s.%I is generated', a.attrelid::regclass, a.attname),
             'Pass another pointer_column.')
      from lighter.source_relations(source) t(relid)
      join pg_attribute a on a.attrelid = t.relid and a.attname = source.pointer_column and a.attgenerated <> ''
    union all
    select lighter.new_obstacle('feature_not_supported', format('the pointer column %s.%I has a default, and a new row needs none', a.attrelid::regclass, a.attname),
             format('alter table %s alter column %I drop default;', a.attrelid::regclass, a.attname))
      from lighter.source_relations(source) t(relid)
      join pg_attribute a on a.attrelid = t.relid and a.attname = source.pointer_column and a.atthasdef and a.attgenerated = ''
    union all
    -- An artifact of a pack has no row that a foreign key could refer to.
    select lighter.new_obstacle('feature_not_supported', format('the pointer column %s is part of the foreign key %I of %s', pointer, c.conname, c.conrelid::regclass),
             format('alter table %s drop constraint %I;', c.conrelid::regclass, c.conname))
      from lighter.source_relations(source) t(relid)
      join pg_attribute a on a.attrelid = t.relid and a.attname = source.pointer_column
      join pg_constraint c on c.contype = 'f' and c.conparentid = 0
       and (c.conrelid = t.relid and a.attnum = any (c.conkey) or c.confrelid = t.relid and a.attnum = any (c.confkey))) found;
end
$$;
comment on function lighter.mode_obstacles(lighter.sources) is
  'What the mode of a source asks of its columns and is not so.';
revoke all on function lighter.mode_obstacles(lighter.sources) from public;

-- Views and functions read like the application: they find pointers where values were, and nothing goes wrong by itself.
create or replace function lighter.reader_obstacles(source lighter.sources) returns setof lighter.obstacle
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  with readers as (
    select distinct case d.classid
             when 'pg_rewrite'::regclass then
               (select format(case c.relkind when 'v' then 'view %s' when 'm' then 'materialized view %s' else 'rule of %s' end, c.oid::regclass)
                  from pg_rewrite r join pg_class c on c.oid = r.ev_class where r.oid = d.objid)
             when 'pg_proc'::regclass then format('function %s', d.objid::regprocedure)
             when 'pg_statistic_ext'::regclass then
               (select format('statistics %I.%I', s.stxnamespace::regnamespace::text, s.stxname) from pg_statistic_ext s where s.oid = d.objid)
           end as name
      from lighter.source_relations(source) t(relid)
      join pg_attribute a on a.attrelid = t.relid and a.attname = source.json_column and not a.attisdropped
      join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = a.attrelid and d.refobjsubid = a.attnum
     where d.classid in ('pg_rewrite'::regclass, 'pg_proc'::regclass, 'pg_statistic_ext'::regclass)
  )
  select lighter.new_obstacle('warning', format('read %s.%s, and find pointers in rows that are offloaded: %s', source.relation,
           source.json_column, string_agg(name, ', ' order by name)),
           'Let those that need the whole document hydrate it.', false)
    from readers where name is not null having count(*) > 0;
end;
comment on function lighter.reader_obstacles(lighter.sources) is
  'Views, functions and statistics that read the column of a source.';
revoke all on function lighter.reader_obstacles(lighter.sources) from public;

-- Whatever the owner of a table has made of its columns, policies and indexes runs when the daemon reads and rewrites it.
create or replace function lighter.owner_obstacles(source lighter.sources) returns setof lighter.obstacle
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select lighter.new_obstacle('insufficient_privilege',
           format('%s belongs to "%s", who may not act as "%s", the owner of schema lighter. Its triggers, policies, types and indexes run with the rights of the daemon, which reads the rows of every tenant',
             t.relation, pg_get_userbyid(t.relowner), pg_get_userbyid(n.nspowner)),
           format('alter table %s owner to %I; or, if that role may do whatever the daemon may: trust_owner => true (lighter attach --trust-owner).',
             t.relation, pg_get_userbyid(n.nspowner)),
           not coalesce(source.trust_owner, false))
    from (select c.oid::regclass as relation, c.relowner
            from pg_class c
           where c.oid = source.relation or c.oid = any (source.parent_relations)
              or c.oid in (select p.relid from pg_partition_tree(source.relation) p union all
                           select p.relid from unnest(source.parent_relations) r(relation) cross join lateral pg_partition_tree(r.relation) p)) t
    join pg_namespace n on n.nspname = 'lighter'
   where not lighter.is_trusted(t.relowner)
   order by t.relation::text;
$$;
comment on function lighter.owner_obstacles(lighter.sources) is
  'Tables of a source, its partitions and its parent that belong to somebody who may not act as our owner.';
revoke all on function lighter.owner_obstacles(lighter.sources) from public;

-- A trigger runs with the rights of who writes: on our rewrite, the daemon's. Those of others than the owner keep quiet
-- where the daemon may set session_replication_role; their functions are somebody's, who may replace them at any time.
create or replace function lighter.trigger_obstacles(source lighter.sources) returns setof lighter.obstacle
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with tables as (
    select c.oid, c.oid::regclass as relation, c.relowner, c.relacl
      from pg_class c
     where c.oid = source.relation or c.oid in (select p.relid from pg_partition_tree(source.relation) p)
  ),
  quiet as (
    select source.skip_triggers and has_parameter_privilege('lighter_daemon', 'session_replication_role', 'set') as is_so
  )
  select lighter.new_obstacle('insufficient_privilege',
           format('%s may put triggers on %s, which would run with the rights of the daemon', g.names, g.relation),
           format('revoke trigger on %s from %s;', g.relation, g.names), false)
    from (select t.relation, string_agg(distinct case a.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end, ', ') as names
            from tables t cross join lateral aclexplode(t.relacl) a
           where a.privilege_type = 'TRIGGER' and a.grantee <> t.relowner
             and not coalesce(lighter.is_trusted(a.grantee), false)
           group by t.relation) g, quiet
   where not quiet.is_so
  union all
  select lighter.new_obstacle('insufficient_privilege',
           format('the trigger %I on %s runs %s with the rights of the daemon, and that function belongs to "%s"', r.tgname, t.relation,
             p.oid::regprocedure, pg_get_userbyid(p.proowner)),
           format('alter function %s owner to %I;', p.oid::regprocedure, pg_get_userbyid(t.relowner)), false)
    from tables t
    join pg_trigger r on r.tgrelid = t.oid and not r.tgisinternal
    join pg_proc p on p.oid = r.tgfoid
   cross join quiet
   where p.proowner <> t.relowner and not coalesce(lighter.is_trusted(p.proowner), false)
     and not p.prosecdef
     and (r.tgtype & 16) <> 0 and (r.tgenabled in ('A', 'R') or r.tgenabled = 'O' and not quiet.is_so)
$$;
comment on function lighter.trigger_obstacles(lighter.sources) is
  'Who else than the owner could have code run on the rewrite of a row: holders of TRIGGER, and owners of the functions of its triggers.';
revoke all on function lighter.trigger_obstacles(lighter.sources) from public;

-- Objects of Postgres itself are not among what a constraint or function depends on. An enum runs no code of its owner's.
create or replace function lighter.when_use_obstacles(class oid, object oid, trust_owner boolean) returns setof lighter.obstacle
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  with uses as (
    select distinct format('function %s', p.oid::regprocedure) as name, p.proowner as owner, p.oid as function
      from pg_depend d join pg_proc p on d.refclassid = 'pg_proc'::regclass and p.oid = d.refobjid
     where d.classid = class and d.objid = object
    union
    select format('operator %s', o.oid::regoperator), p.proowner, p.oid
      from pg_depend d join pg_operator o on d.refclassid = 'pg_operator'::regclass and o.oid = d.refobjid join pg_proc p on p.oid = o.oprcode
     where d.classid = class and d.objid = object
    union
    select format('type %s', t.oid::regtype), t.typowner, null::oid as oid
      from pg_depend d join pg_type t on d.refclassid = 'pg_type'::regclass and t.oid = d.refobjid and t.typtype <> 'e'
     where d.classid = class and d.objid = object
  )
  select lighter.new_obstacle('insufficient_privilege',
           format('when_sql uses %s, which belongs to "%s", who may not act as the owner of schema lighter. It would run with the rights of the daemon, which reads the rows of every tenant',
             u.name, pg_get_userbyid(u.owner)),
           'Use what belongs to Postgres; or, if that role may do whatever the daemon may: trust_owner => true (--trust-owner).',
           not coalesce(trust_owner, false))
    from uses u where not coalesce(lighter.is_trusted(u.owner), false)
  union all
  select lighter.new_obstacle('insufficient_privilege', format('when_sql uses %s, which lighter_daemon may not call', u.name),
           format('grant execute on function %s to lighter_daemon;', u.function::regprocedure))
    from uses u where not has_function_privilege('lighter_daemon', u.function, 'execute');
end;
comment on function lighter.when_use_obstacles(oid, oid, boolean) is
  'What a when_sql uses, as a constraint or as its function, that belongs to somebody who is not trusted, or that the daemon may not call.';
revoke all on function lighter.when_use_obstacles(oid, oid, boolean) from public;

create or replace function lighter.generated_from(target regclass, column_name name) returns setof name
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  select b.attname
    from pg_attribute a
    join pg_attrdef f on f.adrelid = a.attrelid and f.adnum = a.attnum
    join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = f.oid and d.refclassid = 'pg_class'::regclass and d.refobjid = a.attrelid
    join pg_attribute b on b.attrelid = a.attrelid and b.attnum = d.refobjsubid and b.attnum <> a.attnum
   where a.attrelid = target and a.attname = column_name and a.attgenerated <> '';
end;
comment on function lighter.generated_from(regclass, name) is 'Columns that a generated column is made of.';
revoke all on function lighter.generated_from(regclass, name) from public;

-- A row may leave by a condition that its leaving does not change.
create or replace function lighter.when_obstacles(source lighter.sources) returns setof lighter.obstacle
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  with reads as (
    select distinct c as name from unnest(source.when_columns) c
  ),
  taken as (
    select source.json_column as name
    union select source.pointer_column
    union select unnest(array[o.json_column, o.pointer_column]) from lighter.sources o where o.relation = source.relation
  )
  select lighter.new_obstacle('undefined_column', format('when_sql of %s reads a column that does not exist any more: %s', source.relation, source.when_sql),
           'Pass another when_sql (--when), or an empty one.')
   where exists (select from reads where name is null)
  union all
  select lighter.new_obstacle('invalid_parameter_value', format('when_sql reads %s.%I, which changes when a payload leaves', source.relation, r.name),
           'Let it read columns that stay as they are.')
    from reads r join taken t on t.name = r.name
  union all
  select lighter.new_obstacle('invalid_parameter_value', format('when_sql reads %s.%I, which is generated from %I and changes when a payload leaves', source.relation, r.name, source.json_column),
           'Let it read columns that stay as they are.')
    from reads r
   where source.json_column in (select lighter.generated_from(source.relation, r.name))
  union all
  select lighter.new_obstacle('invalid_parameter_value', format('mode whole of %s needs its trigger, which clears the pointer when a value is written', source.relation),
           'Leave trigger => false (--no-trigger) out, or attach the column in mode stub.')
   where source.mode = 'whole' and not source.trigger
  union all
  select lighter.new_obstacle('invalid_parameter_value', 'guard is a trigger, and there is to be none',
           'Leave trigger => false (--no-trigger) out, or pass guard => ''off''.')
   where source.guard <> 'off' and not source.trigger
  union all
  select o from lighter.when_use_obstacles('pg_proc'::regclass, lighter.when_function(source), source.trust_owner) o;
end;
comment on function lighter.when_obstacles(lighter.sources) is
  'What keeps when_sql, or the wish to have no trigger, from being used.';
revoke all on function lighter.when_obstacles(lighter.sources) from public;

-- What attach says once, and doctor not every time.
create or replace function lighter.when_warnings(source lighter.sources) returns setof lighter.obstacle
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  select lighter.new_obstacle('warning',
           format('the trigger also fires on the columns that when_sql reads (%s), so Postgres refuses to change their types or to drop them', x.names),
           format('To change one later, attach with trigger => false (--no-trigger), change it, and attach with trigger => true. Table: %s.', source.relation), false)
    from (select string_agg(distinct quote_ident(c), ', ') as names from unnest(source.when_columns) c) x
   where source.trigger and x.names is not null and not lighter.has_before_trigger(source.relation)
  union all
  select lighter.new_obstacle('warning',
           case when source.trigger then 'when_sql may come to hold without a write, so the sweep scan looks through the table for such rows'
                else 'there is no trigger, so only the sweep scan finds rows to offload' end,
           case when source.when_sql is null then 'See SWEEP_SCAN_CRON.'
                when lighter.scan_index(source) is not null then format('It uses the index %s. See SWEEP_SCAN_CRON.', lighter.scan_index(source))
                when source.when_varies then format('It goes through the whole table, a part at a time. An index makes it faster where a part of when_sql does not depend on time: create index concurrently on %s (%s) where <that part>; See SWEEP_SCAN_CRON.', source.relation, x.names)
                else format('It goes through the whole table, a part at a time. An index makes it faster: create index concurrently on %s (%s) where %s; See SWEEP_SCAN_CRON.', source.relation, x.names, source.when_sql) end, false)
    from (select string_agg(quote_ident(c), ', ' order by n) as names from unnest(source.key_columns) with ordinality k(c, n)) x
   where source.when_varies or not source.trigger;
end;
comment on function lighter.when_warnings(lighter.sources) is 'What whoever attaches with when_sql, or without a trigger, should know.';
revoke all on function lighter.when_warnings(lighter.sources) from public;

create or replace function lighter.source_obstacles(source lighter.sources) returns setof lighter.obstacle
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  select o from lighter.inheritance_obstacles(source) o
  union all
  select o from lighter.key_obstacles(source) o
  union all
  select o from lighter.mode_obstacles(source) o
  union all
  select o from lighter.dependent_obstacles(source) o
  union all
  select o from lighter.reader_obstacles(source) o
  union all
  select o from lighter.owner_obstacles(source) o
  union all
  select o from lighter.trigger_obstacles(source) o
  union all
  select o from lighter.when_obstacles(source) o;
end;
comment on function lighter.source_obstacles(lighter.sources) is
  'All that stands in the way of watching the column of a source, now: what attach refuses and doctor reports.';
revoke all on function lighter.source_obstacles(lighter.sources) from public;
