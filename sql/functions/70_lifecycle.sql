create or replace function lighter.retention_policy_of(tenant uuid, of_kind text)
returns table (policy_id integer, keep_days integer, policy text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  -- (more days than Postgres has time for are as good as for ever)
  select p.id, least(p.keep_days, 1000000),
         concat_ws(', ',
           case when p.tenant_id is not null then 'this tenant' end,
           case when p.plan is not null then p.plan || ' plan' end,
           case when p.kind is not null then 'kind ' || p.kind end,
           case when p.keep_days is null then 'kept for ever' else p.keep_days || ' days' end)
    from lighter.retention_policies p
   where (p.tenant_id is null or p.tenant_id = tenant)
     and (p.plan is null
          or p.plan = coalesce((select t.plan from lighter.tenants t where t.tenant_id = tenant), 'standard'))
     and (p.kind is null or p.kind = of_kind)
   order by p.tenant_id is null, p.plan is null, p.kind is null
   limit 1;
$$;
comment on function lighter.retention_policy_of(uuid, text) is
  'The retention policy that holds for a tenant''s artifacts of a kind: the most specific (tenant before plan, kind before none); no row: kept for ever.'
  ' Example: select policy, keep_days from lighter.retention_policy_of(''<tenant>'', ''agent_trace'');';
