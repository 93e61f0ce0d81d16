create or replace function lighter.retention_policy_of(tenant uuid, of_kind text)
returns table (policy_id integer, keep_days integer, policy text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  -- (more days than Postgres has time for are as good as for ever; least() by itself would make a number of null)
  select p.id, case when p.keep_days is not null then least(p.keep_days, 1000000) end,
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
  'The retention policy that holds for a tenant''s artifacts of a kind: the most specific (tenant before plan, kind before none); keep_days null, or no row: kept for ever.'
  ' Example: select policy, keep_days from lighter.retention_policy_of(''<tenant>'', ''agent_trace'');';

-- The daemon reads policies, plans and holds, and may change none of them; an erasure must take a tenant's own away.
-- So it may do just that, of one tenant, and not of one on hold: it can neither lift a hold nor touch a policy that
-- others live by.
create or replace function lighter.forget_tenant(tenant uuid) returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  hold boolean;
  policies integer;
  tenants integer;
begin
  perform lighter.require_all_rows('{}');
  -- Waits for whoever is just changing it.
  select t.legal_hold into hold from lighter.tenants t where t.tenant_id = forget_tenant.tenant for update;
  if hold or exists (select from lighter.legal_holds h where h.tenant_id = forget_tenant.tenant) then
    raise exception 'tenant % is on legal hold', tenant
      using errcode = 'object_in_use', hint = 'Release the hold first: lighter.tenants.legal_hold, and the rows of lighter.legal_holds.';
  end if;
  delete from lighter.retention_policies p where p.tenant_id = forget_tenant.tenant;
  get diagnostics policies = row_count;
  delete from lighter.tenants t where t.tenant_id = forget_tenant.tenant;
  get diagnostics tenants = row_count;
  return policies + tenants;
end
$$;
comment on function lighter.forget_tenant(uuid) is
  'Takes away what was decided about one tenant: its retention policies and its row of lighter.tenants; returns how many rows that were. Fails (55006), having done nothing, while it or one of its entities is on legal hold. For lighter erase.';
revoke all on function lighter.forget_tenant(uuid) from public;
