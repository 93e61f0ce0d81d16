-- What of the attached tables can not be looked at. Rows that are there may still point to payloads, so while this view
-- has a row, no release sweep gives up anything. It calls no function of ours: it runs with the reader's rights.
create or replace view lighter.missing_parts as
  with known as (
    select s.*, c.oid is not null as there, coalesce(s.relation_oid = s.relation::oid, false) as numbered,
           case when c.oid is not null then s.relation::text
                else coalesce(format('%I.%I', s.relation_schema, s.relation_name), s.relation::text) end as label
      from lighter.sources s
      left join pg_class c on c.oid = s.relation
  ),
  -- Every column that was chosen at attach, and the one that it is now.
  chosen as (
    select k.id, k.label, w.part, w.name, w.relation, w.types, a.attname, a.atttypid,
           case when w.part = 'column' then base.type else a.atttypid end as base_type
      from known k
     cross join lateral (values
       ('column', k.relation::oid, k.json_column, k.json_attnum,
        case k.column_type when 'text' then array['text'::regtype::oid, 'varchar'::regtype::oid] else array[k.column_type::regtype::oid] end),
       ('pointer column', k.relation::oid, k.pointer_column, k.pointer_attnum, array['uuid'::regtype::oid]),
       ('tenant column', coalesce(k.parent_relations[cardinality(k.parent_relations)], k.relation)::oid, k.tenant_column, k.tenant_attnum,
        case when k.tenant_namespace is null then array['uuid'::regtype::oid]
             else array['text'::regtype::oid, 'character varying'::regtype::oid, 'smallint'::regtype::oid, 'integer'::regtype::oid, 'bigint'::regtype::oid] end),
       ('entity column', k.relation::oid, k.entity_column, k.entity_attnum, array['uuid'::regtype::oid])
     ) w(part, relation, name, attnum, types)
      left join pg_attribute a
        on a.attrelid = w.relation and a.attnum > 0 and not a.attisdropped
       and case when k.numbered and w.attnum is not null then a.attnum = w.attnum else a.attname = w.name end
      -- Of a domain the type that it is made of.
      left join lateral (
        with recursive made_of (type, level) as (
          select a.atttypid, 0
          union all
          select t.typbasetype, m.level + 1 from made_of m join pg_type t on t.oid = m.type where t.typtype = 'd'
        )
        select m.type from made_of m order by m.level desc limit 1) base on true
     where k.there and w.name is not null
    union all
    select k.id, k.label, w.part, w.name, w.relation::oid as relation, null::oid[] as types, a.attname, a.atttypid, a.atttypid
      from known k
     cross join lateral (
       select 'parent key column'::text as part, p.relation, p.name, p.attnum
         from unnest(k.parent_relations, k.parent_key_columns, k.parent_key_attnums) p(relation, name, attnum)
       union all
       select 'parent column'::text as part, p.relation, p.name, p.attnum
         from unnest((array[k.relation] || k.parent_relations)[1 : cardinality(k.parent_relations)], k.parent_columns, k.parent_attnums) p(relation, name, attnum)
     ) w(part, relation, name, attnum)
      left join pg_attribute a
        on a.attrelid = w.relation and a.attnum > 0 and not a.attisdropped
       and case when k.numbered and w.attnum is not null then a.attnum = w.attnum else a.attname = w.name end
     where k.there
    union all
    -- Its function takes them in their order, as they were.
    select k.id, k.label, 'column of when_sql'::text as part, w.name, k.relation::oid as relation,
           (select array[p.proargtypes[w.n - 1]] from pg_proc p where p.pronamespace = 'lighter'::regnamespace and p.proname = 'when_' || k.id) as types,
           a.attname, a.atttypid, a.atttypid
      from known k
     cross join lateral (select distinct on (c.name) c.name, c.attnum, c.n
                           from unnest(k.when_columns, k.when_attnums) with ordinality c(name, attnum, n) order by c.name, c.n) w
      left join pg_attribute a
        on a.attrelid = k.relation and a.attnum > 0 and not a.attisdropped
       and case when k.numbered and w.attnum is not null then a.attnum = w.attnum else a.attname = w.name end
     where k.there
    union all
    select k.id, k.label, 'key column'::text as part, w.name, k.relation::oid as relation,
           case when w.type in ('smallint', 'integer', 'bigint') then array['smallint'::regtype::oid, 'integer'::regtype::oid, 'bigint'::regtype::oid]
                when w.type in ('text', 'character varying') then array['text'::regtype::oid, 'character varying'::regtype::oid]
                else array(select t.oid from pg_type t join pg_namespace n on n.oid = t.typnamespace
                            where case when t.typnamespace = 'pg_catalog'::regnamespace then format_type(t.oid, null) = w.type
                                       else format('%I.%I', n.nspname, t.typname) = w.type end) end as types,
           a.attname, a.atttypid, a.atttypid
      from known k
     cross join lateral unnest(k.key_columns, k.key_types, k.key_attnums) w(name, type, attnum)
      left join pg_attribute a
        on a.attrelid = k.relation and a.attnum > 0 and not a.attisdropped
       and case when k.numbered and w.attnum is not null then a.attnum = w.attnum else a.attname = w.name end
     where k.there
  )
  select k.id as source_id, k.label as source, 'table' as part, k.label as name, 'the table does not exist any more' as reason,
         true as stops_offload,
         format('If its rows were deleted on purpose: select lighter.forget_missing(%s);', k.id) as advice
    from known k
   where not k.there
  union all
  -- Moved to a schema that the daemon may not use.
  select distinct k.id, k.label, 'table', r.relation::text, 'lighter_daemon may not use its schema', true,
         format('grant usage on schema %I to lighter_daemon;', n.nspname)
    from known k
   cross join lateral unnest(array[k.relation] || k.parent_relations) r(relation)
    join pg_class c on c.oid = r.relation
    join pg_namespace n on n.oid = c.relnamespace
   where not has_schema_privilege('lighter_daemon', n.oid, 'usage')
  union all
  -- Renamed, and another one took its name: its rows may have been copied there, pointers and all.
  select k.id, k.label, 'table', format('%I.%I', n.nspname, c.relname),
         format('a table of the name that %s had when it was attached is not attached', k.label), false,
         format('Attach it: lighter attach %I.%I. If it holds no copied rows, attach %s again instead.', n.nspname, c.relname, k.label)
    from known k
    join pg_namespace n on n.nspname = k.relation_schema
    join pg_class c on c.relnamespace = n.oid and c.relname = k.relation_name and c.relkind in ('r', 'p', 'f')
   where k.numbered and c.oid <> k.relation and not exists (select from lighter.sources o where o.relation = c.oid)
  union all
  select c.id, c.label, c.part, c.name,
         case when c.attname is null then 'the column does not exist any more'
              else format('the column is of type %s now', format_type(c.atttypid, null)) end, true,
         case when c.part in ('column', 'pointer column') and c.attname is null
              then format('If its values were deleted on purpose: select lighter.forget_missing(%s);', c.id)
              when c.part = 'column of when_sql'
              then format('Attach it again with another when_sql, or with none: lighter attach %s --when ''''', c.label)
              else 'Change it back, or detach the table and attach it again: payloads from before then stay until they expire.' end
    from chosen c
   where c.attname is null or c.base_type <> all (c.types)
  union all
  select k.id, k.label, 'when_sql', format('lighter.when_%s', k.id), 'its function does not exist any more', true,
         format('Attach it again with its when_sql: lighter attach %s --when <condition>', k.label)
    from known k
   where k.there and k.when_sql is not null
     and not exists (select from pg_proc p where p.pronamespace = 'lighter'::regnamespace and p.proname = 'when_' || k.id)
  union all
  select k.id, k.label, 'column', k.json_column::text,
         format('a column of the name that %s had when it was attached is not attached', a.attname), false,
         format('Attach it: lighter attach %s --column %s. If it holds no copied values, attach column %s again instead.', k.label, k.json_column, a.attname)
    from known k
    join pg_attribute a on a.attrelid = k.relation and a.attnum = k.json_attnum and not a.attisdropped
    join pg_attribute other
      on other.attrelid = k.relation and other.attname = k.json_column and other.attnum <> k.json_attnum
     and other.attnum > 0 and not other.attisdropped
   where k.numbered
     and not exists (select from lighter.sources o where o.relation = k.relation and o.json_attnum = other.attnum)
  union all
  select k.id, k.label, 'partition', p.name,
         case when c.oid is null then 'the partition does not exist any more' else 'the partition was detached' end, false,
         format('Attach it as a partition again, or by itself: lighter attach %s. If its rows were deleted on purpose: select lighter.forget_missing(%s);', p.name, k.id)
    from known k
    join lighter.source_partitions p on p.source_id = k.id
    left join pg_class c on c.oid = p.relation
   where k.there
     and not exists (select from pg_partition_tree(k.relation) t where t.relid = p.relation)
     and not exists (
       select from lighter.sources o
        where o.id <> k.id and o.json_column = k.json_column and exists (select from pg_class x where x.oid = o.relation)
          and (o.relation::oid = p.relation::oid or exists (select from pg_partition_tree(o.relation) t where t.relid = p.relation)));
comment on view lighter.missing_parts is
  'Tables, partitions and columns of sources that can not be looked at any more: detached, dropped, replaced by another one of the same name, or changed in type. While there is one, release sweeps keep all payloads. Cost: the catalogue.';
