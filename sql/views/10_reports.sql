-- Every view runs with the rights of its reader (security_invoker): row-level security is not bypassed.
create or replace view lighter.storage_by_kind with (security_invoker = true) as
  select kind,
         count(*) as artifacts,
         sum(size_bytes)::bigint as payload_bytes,
         min(created_at) as oldest,
         max(created_at) as newest
    from public.artifact_refs
   where deleted_at is null
   group by kind;
comment on view lighter.storage_by_kind is 'Live artifacts and their uncompressed bytes, by kind.';

create or replace view lighter.storage_by_tenant with (security_invoker = true) as
  select a.tenant_id,
         coalesce(t.plan, 'standard') as plan,
         a.artifacts,
         a.payload_bytes,
         coalesce(o.objects, 0) as objects,
         coalesce(o.object_bytes, 0) as object_bytes
    from (select tenant_id, count(*) as artifacts, sum(size_bytes)::bigint as payload_bytes
            from public.artifact_refs where deleted_at is null group by tenant_id) a
    left join (select tenant_id, count(*) as objects, sum(byte_length)::bigint as object_bytes
                 from lighter.objects where state = 'stored' group by tenant_id) o using (tenant_id)
    left join lighter.tenants t using (tenant_id);
comment on view lighter.storage_by_tenant is 'Live artifacts, their uncompressed bytes, and the objects and bytes that hold them, by tenant.';

create or replace view lighter.storage_by_day with (security_invoker = true) as
  select (created_at at time zone 'UTC')::date as day,
         kind,
         count(*) as artifacts,
         sum(size_bytes)::bigint as payload_bytes
    from public.artifact_refs
   where deleted_at is null
   group by 1, 2;
comment on view lighter.storage_by_day is 'Live artifacts and their uncompressed bytes, by day (UTC) of creation and kind.';

create or replace view lighter.queue_health with (security_invoker = true) as
  select s.id as source_id,
         s.relation::text as source,
         count(j.row_id) as depth,
         count(j.row_id) filter (where j.available_at <= now()) as due,
         count(j.row_id) filter (where j.available_at > now() and j.last_error is null) as in_flight,
         count(j.row_id) filter (where j.last_error is not null) as retrying,
         extract(epoch from now() - min(j.enqueued_at))::double precision as oldest_seconds,
         (select count(*) from lighter.failed_jobs f where f.source_id = s.id) as failed
    from lighter.sources s
    left join lighter.jobs j on j.source_id = s.id
   group by s.id, s.relation;
comment on view lighter.queue_health is 'Jobs by source: waiting, due, in flight, retrying, given up, and the age of the oldest in seconds.';

create or replace view lighter.failures with (security_invoker = true) as
  select f.source_id, s.relation::text as source, f.row_id, f.attempts, f.enqueued_at, f.failed_at, f.last_error
    from lighter.failed_jobs f
    left join lighter.sources s on s.id = f.source_id;
comment on view lighter.failures is 'Dead letters with their errors; select lighter.retry() brings them back.';

create or replace view lighter.savings with (security_invoker = true) as
  with totals as (
    select (select coalesce(sum(size_bytes), 0)::bigint from public.artifact_refs where deleted_at is null) as payload_bytes,
           (select coalesce(sum(byte_length), 0)::bigint from lighter.objects where state = 'stored') as object_bytes,
           (select count(*) from lighter.objects where state = 'stored') as objects,
           (select count(*) from lighter.objects
             where state = 'stored' and stored_at > now() - interval '30 days') as objects_30_days
  )
  select payload_bytes,
         object_bytes,
         objects,
         round(object_bytes / 1e9 * 0.015, 4) as storage_usd_per_month,
         round(objects_30_days / 1e6 * 4.50, 4) as class_a_usd_last_30_days
    from totals;
comment on view lighter.savings is
  'Bytes taken out of Postgres and their monthly cost at R2''s list prices ($0.015 per GB-month, $4.50 per million class A operations, one per object).';

create or replace view lighter.retention_due with (security_invoker = true) as
  select a.tenant_id, a.kind, count(*) as artifacts, sum(a.size_bytes)::bigint as payload_bytes, min(a.created_at) as oldest
    from public.artifact_refs a
    left join lighter.tenants t on t.tenant_id = a.tenant_id
   cross join lateral (
     select p.keep_days
       from lighter.retention_policies p
      where (p.tenant_id is null or p.tenant_id = a.tenant_id)
        and (p.plan is null or p.plan = coalesce(t.plan, 'standard'))
        and (p.kind is null or p.kind = a.kind)
      order by p.tenant_id is null, p.plan is null, p.kind is null
      limit 1
   ) policy
   where a.deleted_at is null
     and not coalesce(t.legal_hold, false)
     and a.created_at < now() - make_interval(days => policy.keep_days)
   group by a.tenant_id, a.kind;
comment on view lighter.retention_due is 'Artifacts past their retention policy, by tenant and kind; legal holds left out.';
