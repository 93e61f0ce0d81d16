-- What is hidden is not absent. Row-level security takes rows out of sight without an error: a hold that nobody sees
-- holds nothing, and an artifact that nobody sees keeps no object. So every decision to delete, or to refuse, first
-- proves that its role sees all rows of the tables that it reads.
create or replace function lighter.policies_hide(target oid, command "char") returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
return row_security_active(target) and (
  select not coalesce(bool_or(p.polpermissive and p.condition = 'true'), false)
         or coalesce(bool_or(not p.polpermissive and p.condition <> 'true'), false)
    from (select x.polpermissive, pg_get_expr(x.polqual, x.polrelid) as condition
            from pg_policy x
           where x.polrelid = target and x.polcmd in (command, '*')
             and exists (select from unnest(x.polroles) r where r = 0 or pg_has_role(r, 'usage'))) p
   -- Ours: it binds only who has become lighter_tenant.
   where not (not p.polpermissive and current_user <> 'lighter_tenant'
              and starts_with(p.condition, '((CURRENT_USER <> ''lighter_tenant''::name) OR '))
);
comment on function lighter.policies_hide(oid, "char") is
  'Whether row-level security may hide rows of a table from the current role, for select (r) or update (w).';

-- Runs with the rights of who calls it, whose sight is asked for.
create or replace function lighter.hidden_tables(of_sources integer[] default null)
returns table (relation regclass, source_id integer, reason text, remedy text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return query
    select c.oid::regclass, null::integer,
           case when not has_table_privilege(c.oid, 'select') then format('"%s" may not read it', current_user)
                else format('row-level security may hide rows from "%s"', current_user) end,
           coalesce('Let the restrictive policies on it except lighter_daemon: ' || (
             select string_agg(quote_ident(p.polname), ', ' order by p.polname) from pg_policy p
              where p.polrelid = c.oid and not p.polpermissive and p.polname <> 'lighter_tenant_only')
             || '; then run: lighter migrate', 'Run: lighter migrate (as the owner of schema lighter).')
      from pg_class c
     where c.relnamespace = 'lighter'::regnamespace
       and c.relkind in ('r', 'p')
       -- Asked of each batch: nearly all tables are done with the first look.
       and (row_security_active(c.oid) and (lighter.policies_hide(c.oid, 'r') or lighter.policies_hide(c.oid, 'w'))
            -- The others fail by themselves where they are read.
            or c.relname in ('loose_artifacts', 'frames', 'frame_exceptions', 'tenants', 'legal_holds', 'retention_policies', 'sources', 'former_sources',
                             'objects', 'inbox', 'waiting', 'leases', 'pins', 'installation')
               and not has_table_privilege(c.oid, 'select'));
  if not has_table_privilege('lighter.sources', 'select') then
    return;
  end if;
  return query
    select t.relation, s.id,
           format('row-level security may hide rows from "%s"', current_user),
           coalesce('Let the restrictive policies on it except lighter_daemon: ' || (
             select string_agg(quote_ident(p.polname), ', ' order by p.polname) from pg_policy p
              where p.polrelid = t.relation and not p.polpermissive),
             format('Attach the table again, which adds a policy: lighter attach %s --column %s',
                    s.relation, quote_ident(s.json_column)))
      from lighter.sources s
     cross join lateral (select s.relation, true union select p.p, false from unnest(s.parent_relations) p(p)) t(relation, rewritten)
     where (of_sources is null or s.id = any (of_sources))
       and exists (select from pg_class c where c.oid = t.relation)
       and row_security_active(t.relation)
       and (lighter.policies_hide(t.relation, 'r') or t.rewritten and lighter.policies_hide(t.relation, 'w'));
end
$$;
comment on function lighter.hidden_tables(integer[]) is
  'Tables of which the current role may not see all rows, and what to do: ours, and those of the sources (all, or the named ones). No row: it sees everything.'
  ' Example: select relation, reason, remedy from lighter.hidden_tables();';

create or replace function lighter.require_all_rows(of_sources integer[] default null) returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  hidden record;
begin
  select string_agg(distinct h.relation::text, ', ') as relations, min(h.reason) as reason, min(h.remedy) as remedy
    into hidden from lighter.hidden_tables(of_sources) h;
  if hidden.relations is not null then
    raise exception 'cannot see all rows of %: %', hidden.relations, hidden.reason
      -- A code of our own: see isNoRowsFault in src/errors.ts.
      using errcode = '55L01', hint = hidden.remedy;
  end if;
  return true;
end
$$;
comment on function lighter.require_all_rows(integer[]) is
  'True when the current role sees all rows of our tables and of the sources (all, or the named ones); else an error (55L01). Whatever deletes, or refuses, calls it in the same transaction.';
