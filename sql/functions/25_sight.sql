-- What of the attached tables can be looked at. Columns are known by their numbers and tables by their oids, so a rename
-- is followed. What can not be looked at is not taken for deleted: see the view lighter.missing_parts.

create or replace function lighter.name_of_column(target oid, wanted_attnum smallint, wanted_name name, numbered boolean)
returns name
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select a.attname from pg_attribute a
   where a.attrelid = target and a.attnum > 0 and not a.attisdropped
     and case when numbered and wanted_attnum is not null then a.attnum = wanted_attnum else a.attname = wanted_name end;
$$;
comment on function lighter.name_of_column(oid, smallint, name, boolean) is
  'Name that a column has now: found by its number, or by the name where numbers do not hold; null when it is gone.';
revoke all on function lighter.name_of_column(oid, smallint, name, boolean) from public;

-- The tables that the columns of parent_columns are of.
create or replace function lighter.child_relations(source lighter.sources) returns regclass[]
language sql stable
set search_path = pg_catalog, pg_temp
return (array[source.relation] || source.parent_relations)[1 : cardinality(source.parent_relations)];
comment on function lighter.child_relations(lighter.sources) is 'For each of parent_relations of a source the table that refers to it.';
revoke all on function lighter.child_relations(lighter.sources) from public;

-- A dump keeps names, and gives tables other oids and columns other numbers.
create or replace function lighter.with_current_names(source lighter.sources) returns lighter.sources
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  numbered constant boolean := coalesce(source.relation_oid = source.relation::oid, false);
  tenant_relation constant oid := coalesce(source.parent_relations[cardinality(source.parent_relations)], source.relation);
begin
  source.json_column := lighter.name_of_column(source.relation, source.json_attnum, source.json_column, numbered);
  source.key_columns := (
    select case when bool_and(c.name is not null) then array_agg(c.name order by k.n) end
      from unnest(source.key_columns, source.key_attnums) with ordinality k(name, attnum, n)
     cross join lateral (select lighter.name_of_column(source.relation, k.attnum, k.name, numbered) as name) c);
  source.tenant_column := lighter.name_of_column(tenant_relation, source.tenant_attnum, source.tenant_column, numbered);
  source.parent_key_columns := array(
    select lighter.name_of_column(p.relation, p.attnum, p.name, numbered)
      from unnest(source.parent_relations, source.parent_key_columns, source.parent_key_attnums) with ordinality p(relation, name, attnum, n) order by p.n);
  source.parent_columns := array(
    select lighter.name_of_column(p.relation, p.attnum, p.name, numbered)
      from unnest(lighter.child_relations(source), source.parent_columns, source.parent_attnums) with ordinality p(relation, name, attnum, n) order by p.n);
  source.entity_column := lighter.name_of_column(source.relation, source.entity_attnum, source.entity_column, numbered);
  source.pointer_column := lighter.name_of_column(source.relation, source.pointer_attnum, source.pointer_column, numbered);
  if source.when_parts is not null then
    source.when_columns := array(
      select lighter.name_of_column(source.relation, w.attnum, w.name, numbered)
        from unnest(source.when_columns, source.when_attnums) with ordinality w(name, attnum, n) order by w.n);
    source.when_sql := coalesce(lighter.when_text(source), source.when_sql);
  end if;
  -- An integer key that became a bigint spells the same ids, and more of them.
  source.key_types := array(
    select case when c.type_name = any (lighter.same_key_types(k.type_name)) then c.type_name else k.type_name end
      from unnest(source.key_types, source.key_columns) with ordinality k(type_name, name, n)
     cross join lateral (
       select (select lighter.type_name(a.atttypid) from pg_attribute a
                where a.attrelid = source.relation and a.attname = k.name and a.attnum > 0) as type_name) c
     order by k.n);
  return source;
end
$$;
comment on function lighter.with_current_names(lighter.sources) is
  'A source with the names that its columns have now; null where one is gone.';
revoke all on function lighter.with_current_names(lighter.sources) from public;

-- What it finds gone keeps its old name and number, so that it is still reported.
create or replace function lighter.refresh_sources(target regclass default null) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  source lighter.sources;
  current lighter.sources;
  tenant_relation oid;
  refreshed integer := 0;
  changed integer;
begin
  for source in
    select s.* from lighter.sources s join pg_class c on c.oid = s.relation
     where target is null or s.relation = target order by s.id
  loop
    current := lighter.with_current_names(source);
    tenant_relation := coalesce(source.parent_relations[cardinality(source.parent_relations)], source.relation);
    update lighter.sources s
       set (relation_oid, relation_schema, relation_name, json_column, key_columns, key_types, tenant_column,
            parent_key_columns, parent_columns, entity_column, json_attnum, key_attnums, tenant_attnum,
            parent_key_attnums, parent_attnums, entity_attnum, pointer_column, pointer_attnum, when_columns, when_attnums, when_sql)
         = (select n.oid, n.nspname, n.relname,
                   coalesce(current.json_column, s.json_column), coalesce(current.key_columns, s.key_columns), current.key_types,
                   coalesce(current.tenant_column, s.tenant_column), n.parent_key_columns,
                   n.parent_columns, coalesce(current.entity_column, s.entity_column),
                   n.json_attnum, n.key_attnums, n.tenant_attnum, n.parent_key_attnums, n.parent_attnums, n.entity_attnum,
                   coalesce(current.pointer_column, s.pointer_column), n.pointer_attnum, n.when_columns, n.when_attnums, current.when_sql)
      from (select c.oid, ns.nspname, c.relname,
                   coalesce(lighter.number_of_column(c.oid, current.json_column), source.json_attnum) as json_attnum,
                   coalesce((select array_agg(lighter.number_of_column(c.oid, k.name) order by k.n)
                               from unnest(current.key_columns) with ordinality k(name, n)), source.key_attnums) as key_attnums,
                   coalesce(lighter.number_of_column(tenant_relation, current.tenant_column), source.tenant_attnum) as tenant_attnum,
                   -- One that is gone keeps its name and number.
                   array(select coalesce(p.now, p.was) from unnest(current.parent_key_columns, source.parent_key_columns) with ordinality p(now, was, n) order by p.n) as parent_key_columns,
                   array(select coalesce(p.now, p.was) from unnest(current.parent_columns, source.parent_columns) with ordinality p(now, was, n) order by p.n) as parent_columns,
                   array(select coalesce(lighter.number_of_column(p.relation, p.name), p.attnum)
                           from unnest(source.parent_relations, current.parent_key_columns, source.parent_key_attnums) with ordinality p(relation, name, attnum, n) order by p.n) as parent_key_attnums,
                   array(select coalesce(lighter.number_of_column(p.relation, p.name), p.attnum)
                           from unnest(lighter.child_relations(source), current.parent_columns, source.parent_attnums) with ordinality p(relation, name, attnum, n) order by p.n) as parent_attnums,
                   coalesce(lighter.number_of_column(c.oid, current.entity_column), source.entity_attnum) as entity_attnum,
                   coalesce(lighter.number_of_column(c.oid, current.pointer_column), source.pointer_attnum) as pointer_attnum,
                   case when source.when_parts is not null then
                     array(select coalesce(w.now, w.was) from unnest(current.when_columns, source.when_columns) with ordinality w(now, was, n) order by w.n) end as when_columns,
                   case when source.when_parts is not null then
                     array(select coalesce(lighter.number_of_column(c.oid, w.name), w.attnum)
                             from unnest(current.when_columns, source.when_attnums) with ordinality w(name, attnum, n) order by w.n) end as when_attnums
              from pg_class c join pg_namespace ns on ns.oid = c.relnamespace where c.oid = source.relation) n
     where s.id = source.id
       and (s.relation_oid, s.relation_schema, s.relation_name, s.json_column, s.key_columns, s.key_types, s.tenant_column,
            s.parent_key_columns, s.parent_columns, s.entity_column, s.json_attnum, s.key_attnums, s.tenant_attnum,
            s.parent_key_attnums, s.parent_attnums, s.entity_attnum, s.pointer_column, s.pointer_attnum, s.when_columns, s.when_attnums, s.when_sql)
         is distinct from
           (n.oid, n.nspname, n.relname, coalesce(current.json_column, s.json_column), coalesce(current.key_columns, s.key_columns),
            current.key_types, coalesce(current.tenant_column, s.tenant_column), n.parent_key_columns,
            n.parent_columns, coalesce(current.entity_column, s.entity_column),
            n.json_attnum, n.key_attnums, n.tenant_attnum, n.parent_key_attnums, n.parent_attnums, n.entity_attnum,
            coalesce(current.pointer_column, s.pointer_column), n.pointer_attnum, n.when_columns, n.when_attnums, current.when_sql);
    get diagnostics changed = row_count;
    refreshed := refreshed + changed;
  end loop;
  perform lighter.note_partitions();
  return refreshed;
end
$$;
comment on function lighter.refresh_sources(regclass) is
  'Writes the names that tables and columns have now into lighter.sources, of one table or of all; returns how many sources changed. Called by attach and detach.';
revoke all on function lighter.refresh_sources(regclass) from public;

create or replace function lighter.number_of_column(target oid, column_name name) returns smallint
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  select a.attnum from pg_attribute a
   where a.attrelid = target and a.attname = column_name and a.attnum > 0 and not a.attisdropped;
$$;
comment on function lighter.number_of_column(oid, name) is 'Number of a column; null when there is none of that name.';
revoke all on function lighter.number_of_column(oid, name) from public;

-- The daemon calls it each minute. A partition that came and went in between, with rows in it, was never watched.
create or replace function lighter.note_partitions() returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  noted integer;
begin
  insert into lighter.source_partitions (source_id, relation, name)
  select s.id, t.relid, format('%I.%I', n.nspname, c.relname)
    from lighter.sources s
    join pg_class p on p.oid = s.relation and p.relkind = 'p'
   cross join lateral pg_partition_tree(s.relation) t
    join pg_class c on c.oid = t.relid
    join pg_namespace n on n.oid = c.relnamespace
   where t.isleaf and t.relid <> s.relation
     and not exists (select from lighter.source_partitions x where x.source_id = s.id and x.relation = t.relid)
      on conflict do nothing;
  get diagnostics noted = row_count;
  return noted;
end
$$;
comment on function lighter.note_partitions() is
  'Puts on record the partitions of attached tables; returns how many are new. Called by the daemon and by attach.';
revoke all on function lighter.note_partitions() from public;

create or replace function lighter.forget_missing(source_id integer) returns integer
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  source lighter.sources;
  current lighter.sources;
  partitions integer;
begin
  select s.* into source from lighter.sources s where s.id = forget_missing.source_id;
  if source.id is null then
    raise exception 'there is no source %', source_id
      using errcode = 'undefined_object', hint = 'See: select * from lighter.missing_parts;';
  end if;
  delete from lighter.source_partitions p
   where p.source_id = source.id
     and not exists (select from pg_partition_tree(source.relation) t where t.relid = p.relation);
  get diagnostics partitions = row_count;
  current := lighter.with_current_names(source);
  if current.json_column is not null and (source.mode <> 'whole' or current.pointer_column is not null) then
    return partitions;
  end if;
  -- The table, or one of its columns: nothing of the source is left.
  perform lighter.remove_source(source);
  delete from lighter.source_partitions p where p.source_id = source.id;
  insert into lighter.former_sources (id, relation, json_column, json_attnum, relation_oid, mode, pointer_column, pointer_attnum, phase1_field, tenant_namespace, rows_deleted)
  values (source.id, source.relation, source.json_column, source.json_attnum, source.relation_oid, source.mode, source.pointer_column, source.pointer_attnum, source.phase1_field, source.tenant_namespace, true);
  return partitions + 1;
end
$$;
comment on function lighter.forget_missing(integer) is
  'Says that the rows of a source''s missing partitions, table or column (lighter.missing_parts) were deleted on purpose: what came off them is released, unless another row points to it. Returns how many parts it forgot. For the owner.';
revoke all on function lighter.forget_missing(integer) from public;

-- The rows of ours about a source. What came off it is not touched, and the record of its partitions stays: see lighter.attach.
create or replace function lighter.remove_source(source lighter.sources) returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  -- The table may be gone, and its trigger with it; then its name is a number, as the views show it.
  if exists (select from pg_class where oid = source.relation) then
    execute format('drop trigger if exists %I on %s', format('lighter_enqueue_%s', source.id), source.relation);
    execute format('drop trigger if exists %I on %s', format('lighter_guard_%s', source.id), source.relation);
    execute format('drop trigger if exists %I on %s', format('lighter_clear_%s', source.id), source.relation);
    execute format('drop trigger if exists %I on %s', format('lighter_clear_null_%s', source.id), source.relation);
  end if;
  execute format('drop function if exists lighter.%I()', format('enqueue_%s', source.id));
  execute format('drop function if exists lighter.%I(%s)', format('heavy_%s', source.id), source.column_type);
  execute format('drop function if exists lighter.%I()', format('clear_%s', source.id));
  execute format('drop function if exists lighter.%I()', format('guard_%s', source.id));
  if lighter.when_function(source) is not null then
    execute format('drop function %s', lighter.when_function(source));
  end if;
  -- The leases first: what is just being returned from one is then waiting, and goes too. What is just being claimed its
  -- daemon finds out.
  update lighter.leases l
     set done = l.done || (select array_agg(j.ord::integer) from unnest(l.source_ids) with ordinality j(source_id, ord) where j.source_id = source.id)
   where source.id = any (l.source_ids);
  delete from lighter.waiting w where w.source_id = source.id;
  delete from lighter.inbox i where i.source_id = source.id;
  delete from lighter.failed_jobs f where f.source_id = source.id;
  delete from lighter.pins p where p.source_id = source.id;
  delete from lighter.backfills b where b.source_id = source.id;
  delete from lighter.flushes f where f.source_id = source.id;
  delete from lighter.scans x where x.source_id = source.id;
  delete from lighter.when_failures x where x.source_id = source.id;
  -- One that is out of sight may come back with pointers in its rows: attach takes it over.
  delete from lighter.source_partitions p
   where p.source_id = source.id
     and (not exists (select from pg_class c where c.oid = source.relation)
          or exists (select from pg_partition_tree(source.relation) t where t.relid = p.relation));
  delete from lighter.sources s where s.id = source.id;
end
$$;
comment on function lighter.remove_source(lighter.sources) is
  'Removes a source''s triggers, functions, jobs, dead letters, pins, flushes and backfills, and its row of lighter.sources.';
revoke all on function lighter.remove_source(lighter.sources) from public;
