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
    from unnest(array[source.relation, source.parent_relation]) r(relation)
    join pg_class c on c.oid = r.relation and c.relkind <> 'p'
    join pg_inherits i on i.inhparent = r.relation
   group by r.relation;
end;
comment on function lighter.inheritance_obstacles(lighter.sources) is 'Tables that inherit from the table of a source, or from the one with its tenants.';
revoke all on function lighter.inheritance_obstacles(lighter.sources) from public;

create or replace function lighter.source_obstacles(source lighter.sources) returns setof lighter.obstacle
language sql stable
set search_path = pg_catalog, pg_temp
begin atomic
  select o from lighter.inheritance_obstacles(source) o;
end;
comment on function lighter.source_obstacles(lighter.sources) is
  'All that stands in the way of watching the column of a source, now: what attach refuses and doctor reports.';
revoke all on function lighter.source_obstacles(lighter.sources) from public;
