-- Reports. All run with the rights of their owner: lighter_reporter, who reads them, has no rights on what they are
-- made from. They hold sums, and the names and errors of rows that were given up; grants.sql gives them to nobody
-- who acts for a tenant. No function of ours is called in them, since it would run with the reader's rights, but for
-- lighter.table_sizes, which runs with its owner's.

-- Byte sums end at the largest bigint: a report must not fail over a size_bytes that somebody has made up.

-- Rows to be added up. Each report adds them at once by what it shows, which a sum by day in between would double.
create or replace view lighter.storage_entries as
  select tenant_id, kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes, objects, object_bytes, packs,
         written_artifacts, written_bytes, live_artifacts, live_bytes
    from lighter.storage_days
  union all
  select tenant_id, kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes, objects, object_bytes, packs,
         written_artifacts, written_bytes, live_artifacts, live_bytes
    from lighter.storage_changes;
comment on view lighter.storage_entries is
  'What is stored, by tenant, kind and day (UTC), in several rows that are to be added up. Fresh: exact at every moment. Cost: a row per tenant, kind and day with artifacts, and what came since the last rollup sweep.';

create or replace view lighter.storage_total_entries as
  select kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes, objects, object_bytes, packs,
         written_artifacts, written_bytes, live_artifacts, live_bytes
    from lighter.storage_totals
  union all
  select kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes, objects, object_bytes, packs,
         written_artifacts, written_bytes, live_artifacts, live_bytes
    from lighter.storage_changes;
comment on view lighter.storage_total_entries is
  'What is stored, by kind and day (UTC), in several rows that are to be added up. Fresh: exact at every moment. Cost: a row per kind and day, and what came since the last rollup sweep.';

create or replace view lighter.storage_recount as
  select tenant_id, kind, day,
         sum(artifacts)::bigint as artifacts, least(coalesce(sum(payload_bytes), 0), 9223372036854775807)::bigint as payload_bytes,
         sum(deleted_artifacts)::bigint as deleted_artifacts, least(coalesce(sum(deleted_bytes), 0), 9223372036854775807)::bigint as deleted_bytes,
         sum(objects)::bigint as objects, least(coalesce(sum(object_bytes), 0), 9223372036854775807)::bigint as object_bytes, sum(packs)::bigint as packs,
         sum(written_artifacts)::bigint as written_artifacts, least(coalesce(sum(written_bytes), 0), 9223372036854775807)::bigint as written_bytes,
         sum(live_artifacts)::bigint as live_artifacts, least(coalesce(sum(live_bytes), 0), 9223372036854775807)::bigint as live_bytes
    from (select coalesce(a.tenant_id, '00000000-0000-0000-0000-000000000000') as tenant_id, coalesce(a.kind, '') as kind,
                 coalesce((a.created_at at time zone 'UTC')::date, '-infinity') as day,
                 count(*) filter (where a.deleted_at is null) as artifacts,
                 coalesce(sum(least(greatest(a.size_bytes, 0), 8796093022208)) filter (where a.deleted_at is null), 0) as payload_bytes,
                 count(*) filter (where a.deleted_at is not null) as deleted_artifacts,
                 coalesce(sum(least(greatest(a.size_bytes, 0), 8796093022208)) filter (where a.deleted_at is not null), 0) as deleted_bytes,
                 0 as objects, 0 as object_bytes, 0 as packs, 0 as written_artifacts, 0 as written_bytes, 0 as live_artifacts,
                 0 as live_bytes
            from lighter.artifacts a
           where a.deleted_at is null or a.purged_at is null
           group by 1, 2, 3
          union all
          select o.tenant_id, o.kind, (coalesce(o.stored_at, o.created_at) at time zone 'UTC')::date,
                 0, 0, 0, 0, count(*), coalesce(sum(least(greatest(o.byte_length, 0), 8796093022208)), 0),
                 count(*) filter (where o.artifact_count > 1), sum(o.artifact_count),
                 coalesce(sum(least(greatest(o.payload_bytes, 0), 8796093022208)), 0), sum(coalesce(o.live_artifacts, o.artifact_count)),
                 coalesce(sum(least(greatest(coalesce(o.live_bytes, o.payload_bytes), 0), 8796093022208)) filter (where o.payload_bytes is not null), 0)
            from lighter.objects o
           where o.state = 'stored'
           group by 1, 2, 3) x
   group by tenant_id, kind, day;
comment on view lighter.storage_recount is
  'What lighter.storage_entries must add up to, counted anew. Cost: reads every artifact and every object; for lighter sweep rollup --full.';

create or replace view lighter.storage_by_kind as
  select kind,
         sum(artifacts)::bigint as artifacts,
         least(coalesce(sum(payload_bytes), 0), 9223372036854775807)::bigint as payload_bytes,
         min(day) filter (where artifacts > 0)::timestamp at time zone 'UTC' as oldest,
         max(day) filter (where artifacts > 0)::timestamp at time zone 'UTC' as newest,
         sum(objects)::bigint as objects,
         least(coalesce(sum(object_bytes), 0), 9223372036854775807)::bigint as object_bytes,
         sum(deleted_artifacts)::bigint as deleted_artifacts,
         least(coalesce(sum(deleted_bytes), 0), 9223372036854775807)::bigint as deleted_bytes
    from (select kind, day, coalesce(sum(artifacts), 0) as artifacts, coalesce(sum(payload_bytes), 0) as payload_bytes,
                 coalesce(sum(objects), 0) as objects, coalesce(sum(object_bytes), 0) as object_bytes,
                 coalesce(sum(deleted_artifacts), 0) as deleted_artifacts, coalesce(sum(deleted_bytes), 0) as deleted_bytes
            from lighter.storage_total_entries
           group by kind, day) by_day
   group by kind
  having sum(artifacts) <> 0 or sum(objects) <> 0 or sum(deleted_artifacts) <> 0;
comment on view lighter.storage_by_kind is
  'By kind: live artifacts, their uncompressed bytes, the days (UTC) of the oldest and the newest, the objects and bytes that hold them, and what was deleted and could still be brought back. Fresh: exact at every moment. Cost: the rollup, lighter.storage_total_entries.';

create or replace view lighter.storage_by_tenant as
  select s.tenant_id,
         coalesce(t.plan, 'standard') as plan,
         s.artifacts,
         s.payload_bytes,
         s.objects,
         s.object_bytes,
         s.deleted_artifacts,
         s.deleted_bytes,
         coalesce(t.legal_hold, false) as legal_hold,
         t.external_id
    from (select tenant_id, coalesce(sum(artifacts), 0)::bigint as artifacts, least(coalesce(sum(payload_bytes), 0), 9223372036854775807)::bigint as payload_bytes,
                 coalesce(sum(objects), 0)::bigint as objects, least(coalesce(sum(object_bytes), 0), 9223372036854775807)::bigint as object_bytes,
                 coalesce(sum(deleted_artifacts), 0)::bigint as deleted_artifacts, least(coalesce(sum(deleted_bytes), 0), 9223372036854775807)::bigint as deleted_bytes
            from lighter.storage_entries
           group by tenant_id) s
    left join lighter.tenants t using (tenant_id)
   where s.artifacts <> 0 or s.objects <> 0 or s.deleted_artifacts <> 0;
comment on view lighter.storage_by_tenant is
  'By tenant: plan, live artifacts, their uncompressed bytes, the objects and bytes that hold them, and what was deleted and could still be brought back. Fresh: exact at every moment. Cost: the rollup, lighter.storage_entries; of one tenant, by its key.';

create or replace view lighter.storage_by_day as
  select day,
         kind,
         coalesce(sum(artifacts), 0)::bigint as artifacts,
         least(coalesce(sum(payload_bytes), 0), 9223372036854775807)::bigint as payload_bytes,
         coalesce(sum(objects), 0)::bigint as objects,
         least(coalesce(sum(object_bytes), 0), 9223372036854775807)::bigint as object_bytes
    from lighter.storage_total_entries
   group by day, kind
  having coalesce(sum(artifacts), 0) <> 0 or coalesce(sum(objects), 0) <> 0;
comment on view lighter.storage_by_day is
  'By day (UTC) and kind: live artifacts created on it, their uncompressed bytes, and the objects stored on it. Fresh: exact at every moment. Cost: the rollup, lighter.storage_total_entries.';

create or replace view lighter.jobs as
  select i.source_id, i.row_id, 'inbox'::text as place, 0::smallint as priority, i.enqueued_at as available_at, 0 as attempts,
         0::smallint as conflicts, i.enqueued_at, null::text as last_error, null::uuid as tenant_id, null::integer as bytes
    from lighter.inbox i
  union all
  select w.source_id, w.row_id, 'waiting'::text as place, w.priority, w.available_at, w.attempts, w.conflicts, w.enqueued_at, w.last_error,
         w.tenant_id, w.bytes
    from lighter.waiting w
  union all
  select j.source_id, j.row_id, 'lease'::text as place, coalesce(j.priority, 0::smallint) as priority, l.until as available_at,
         coalesce(j.attempts, 0) as attempts, coalesce(j.conflicts, 0::smallint) as conflicts, j.enqueued_at, j.last_error,
         null::uuid as tenant_id, null::integer as bytes
    from lighter.leases l
   cross join lateral unnest(l.source_ids, l.row_ids, l.enqueued_at, l.priorities, l.attempts, l.conflicts, l.errors)
                        with ordinality j(source_id, row_id, enqueued_at, priority, attempts, conflicts, last_error, ord)
   where j.ord <> all (l.done);
comment on view lighter.jobs is
  'The queue: every row that is in the inbox, waits or is worked on. One that was written twice may be there twice. Fresh: as it is. Cost: reads all of the queue, also for one row.';

create or replace view lighter.waiting_groups as
  select g.tenant_id, g.kind, g.rows, g.bytes, g.oldest, g.settled_rows,
         case when g.bytes >= s.pack_min_bytes then g.leaves_at end as leaves_at
    from (select w.tenant_id, case w.phase when 1 then src.phase1_kind else src.phase2_kind end as kind,
                 count(*) as rows, sum(w.bytes) as bytes, min(w.enqueued_at) as oldest,
                 count(*) filter (where w.available_at <= now()) as settled_rows,
                 min(w.enqueued_at + greatest(coalesce(src.max_wait, d.max_wait), coalesce(src.settle_for, d.settle_for))) as leaves_at
            from lighter.waiting w
            join lighter.sources src on src.id = w.source_id
           cross join lighter.settings d
           where w.tenant_id is not null
           group by 1, 2) g
   cross join lighter.settings s;
comment on view lighter.waiting_groups is
  'Rows that wait for others of their tenant and kind: how many, about how many bytes would leave them, since when the oldest waits, and when they leave at the latest; null: not before they have PACK_MIN_BYTES. They leave sooner when they have PACK_TARGET_BYTES, or by lighter.flush. Fresh: exact at every moment. Cost: reads an index entry of every row that waits.';

-- Counting a million entries takes some hundred milliseconds, and a watcher asks every few seconds. So the first 100,000
-- of the inbox are counted, and as many of each kind of those that wait; the rest is reckoned by the size of the table.
--
-- How late a row is counts from when its turn came: that it has settled and waited before, for a day perhaps, is no lag.
-- Of one that failed, or is worked on, after it has waited, nobody knows when that was; then it is when it is tried again,
-- or when its lease ran out.
create or replace view lighter.queue_health as
  with timing as (
    select s.id as source_id, coalesce(s.settle_for, d.settle_for) as settle_for, coalesce(s.max_wait, d.max_wait) as max_wait,
           coalesce(s.settle_for, d.settle_for) > '0' or coalesce(s.max_wait, d.max_wait) > '0' as waits,
           (select max(f.flushed_at) from lighter.flushes f where f.source_id = s.id) as flushed_at
      from lighter.sources s
     cross join lighter.settings d
  ),
  written as (
    select h.source_id, count(*) as entries, count(*) filter (where h.due_at <= now()) as settled, min(h.due_at) filter (where h.due_at <= now()) as oldest,
           min(h.enqueued_at) as first
      from (select i.source_id, i.enqueued_at,
                   case when i.enqueued_at <= t.flushed_at then least(i.enqueued_at + t.settle_for, t.flushed_at)
                        else i.enqueued_at + t.settle_for end as due_at
              from (select x.source_id, x.enqueued_at from lighter.inbox x order by x.id limit 100001) i
              left join timing t on t.source_id = i.source_id) h
     group by h.source_id
  ),
  turns as (
    select h.source_id, count(*) as entries, count(*) filter (where h.available_at <= now()) as due,
           min(case when t.waits then least(h.available_at, now()) else h.enqueued_at end) as oldest
      from (select w.source_id, w.available_at, w.enqueued_at from lighter.waiting w
             where w.tenant_id is null order by w.priority, w.available_at limit 100001) h
      left join timing t on t.source_id = h.source_id
     group by h.source_id
  ),
  groups as (
    select g.source_id, sum(g.entries) as entries, sum(g.bytes) as bytes, min(g.oldest) as oldest,
           -- One that has too little waits for more, whatever its age.
           min(g.oldest) filter (where g.bytes >= d.pack_min_bytes) as oldest_to_leave
      from (select h.source_id, count(*) as entries, sum(h.bytes) as bytes, min(h.enqueued_at) as oldest
              from (select w.source_id, w.tenant_id, w.phase, w.bytes, w.enqueued_at from lighter.waiting w
                     where w.tenant_id is not null limit 100001) h
             group by h.source_id, h.tenant_id, h.phase) g
     cross join lighter.settings d
     group by g.source_id
  ),
  leased as (
    select j.source_id, count(*) as entries, count(j.last_error) as retrying,
           min(case when not t.waits then j.enqueued_at when j.available_at < now() then j.available_at end) as oldest
      from lighter.jobs j left join timing t on t.source_id = j.source_id where j.place = 'lease' group by j.source_id
  ),
  -- How many there are for each that was counted, at as many a page as the last vacuum or analyze found.
  scale as (
    select t.name, t.counted > 100000 as long,
           case when t.counted > 100000
                then greatest(greatest(c.reltuples, 0) / greatest(c.relpages, 1)
                       * (pg_relation_size(c.oid) / current_setting('block_size')::double precision) / t.counted, 1)
                else 1 end as factor
      from (select 'written' as name, 'lighter.inbox'::regclass as target, coalesce(sum(w.entries), 0) as counted from written w
            union all
            select 'turns' as name, 'lighter.waiting_due'::regclass as target, coalesce(sum(w.entries), 0) as counted from turns w
            union all
            select 'groups' as name, 'lighter.waiting_groups_key'::regclass as target, coalesce(sum(w.entries), 0) as counted from groups w) t
      join pg_class c on c.oid = t.target
  )
  select s.id as source_id,
         regexp_replace(s.relation::text, '^public\.', '') as source,
         (coalesce(i.settled, 0) * i_scale.factor)::bigint + (coalesce(w.entries, 0) * w_scale.factor)::bigint + coalesce(l.entries, 0) as depth,
         (coalesce(i.settled, 0) * i_scale.factor)::bigint + (coalesce(w.due, 0) * w_scale.factor)::bigint as due,
         coalesce(l.entries, 0) as in_flight,
         (select count(*) from lighter.waiting x where x.source_id = s.id and x.last_error is not null) + coalesce(l.retrying, 0) as retrying,
         extract(epoch from now() - least(i.oldest, w.oldest, l.oldest))::double precision as oldest_seconds,
         (select count(*) from lighter.failed_jobs f where f.source_id = s.id) as failed,
         not (i_scale.long or w_scale.long or g_scale.long) as exact,
         s.paused,
         ((coalesce(i.entries, 0) - coalesce(i.settled, 0)) * i_scale.factor)::bigint as settling,
         (coalesce(g.entries, 0) * g_scale.factor)::bigint as waiting,
         (coalesce(g.bytes, 0) * g_scale.factor)::bigint as waiting_bytes,
         extract(epoch from now() - least(g.oldest, case when i.settled < i.entries then i.first end))::double precision as waiting_seconds,
         g.oldest_to_leave + greatest(t.max_wait, t.settle_for) as next_departure
    from lighter.sources s
    left join timing t on t.source_id = s.id
    left join written i on i.source_id = s.id
    left join turns w on w.source_id = s.id
    left join groups g on g.source_id = s.id
    left join leased l on l.source_id = s.id
    join scale i_scale on i_scale.name = 'written'
    join scale w_scale on w_scale.name = 'turns'
    join scale g_scale on g_scale.name = 'groups';
comment on view lighter.queue_health is
  'Queued rows by source. depth, due, in_flight, retrying, failed, oldest_seconds: those whose turn it is, or that failed. settling, waiting, waiting_bytes, waiting_seconds, next_departure: those that wait on purpose, since they were just written, or until their pack is worth a PUT; that is no lag. Fresh: exact at every moment up to 100,000 of each; of more (exact is false) the figures are estimates by the size of the tables and the shares of the first 100,000, and the oldest is among those. Cost: reads at most 300,003 entries.';

create or replace view lighter.offload_latency as
  select h.hour,
         case when h.live then 'live' else 'backfill' end as queue,
         max(h.total)::bigint as rows,
         min(h.upper_ms) filter (where h.below >= 0.50 * h.total) as p50_ms,
         min(h.upper_ms) filter (where h.below >= 0.95 * h.total) as p95_ms,
         min(h.upper_ms) filter (where h.below >= 0.99 * h.total) as p99_ms,
         max(h.upper_ms) as max_ms
    from (select x.hour, x.live, power(2, x.bucket / 4.0)::double precision as upper_ms,
                 sum(x.jobs) over (partition by x.hour, x.live order by x.bucket) as below,
                 sum(x.jobs) over (partition by x.hour, x.live) as total
            from (select e.hour, e.live, e.bucket, sum(e.jobs) as jobs
                    from (select hour, live, bucket, jobs from lighter.latency_hours
                          union all
                          select hour, live, bucket, jobs from lighter.latency_changes) e
                   group by e.hour, e.live, e.bucket) x) h
   group by h.hour, h.live;
comment on view lighter.offload_latency is
  'From when a row was due (the begin of the transaction that wrote it, later by settle_for, or when it was taken from those that wait) to the commit that offloaded it, in ms, by hour of the commit; rows of a backfill apart. Each figure is the upper end of its bucket: up to 19 % above the true one, never below. Fresh: exact at every moment, for the last 31 days. Cost: some ten rows an hour, and what came since the last rollup sweep.';

create or replace view lighter.failures as
  select f.source_id, regexp_replace(s.relation::text, '^public\.', '') as source, f.row_id, f.attempts, f.enqueued_at, f.failed_at, f.last_error
    from lighter.failed_jobs f
    left join lighter.sources s on s.id = f.source_id;
comment on view lighter.failures is
  'Dead letters with their errors; select lighter.retry() brings them back. An error is what Postgres or the store said of the row. Fresh: as it is. Cost: reads the dead letters.';

-- The whole database: the attached tables and all of ours, as they are and as they would be had nothing left its row.
-- What is measured has a plain name, what is reckoned ends in _estimated. What the tables hold besides the payloads is on
-- both sides, so what is saved does not depend on it, and is known also where their statistics are not.
create or replace view lighter.savings as
  with totals as (
    select coalesce(sum(artifacts), 0)::bigint as artifacts,
           least(coalesce(sum(payload_bytes), 0), 9223372036854775807)::bigint as payload_bytes,
           least(coalesce(sum(object_bytes), 0), 9223372036854775807)::bigint as object_bytes,
           coalesce(sum(objects), 0)::bigint as objects
      from lighter.storage_total_entries
  ),
  -- One table that is not known makes the sum of the attached ones not known; one of ours counts as large as it is.
  sizes as (
    select coalesce(sum(t.bytes) filter (where t.ours), 0) as bookkeeping_bytes,
           coalesce(sum(coalesce(t.rewritten_bytes_estimated, t.bytes)) filter (where t.ours), 0) as bookkeeping_rewritten,
           coalesce(sum(t.reusable_bytes_estimated) filter (where t.ours), 0) as bookkeeping_reusable,
           case when count(*) filter (where not t.ours and t.bytes is null) = 0
                then coalesce(sum(t.bytes) filter (where not t.ours), 0) end as tables_bytes,
           case when count(*) filter (where not t.ours and t.rewritten_bytes_estimated is null) = 0
                then coalesce(sum(t.rewritten_bytes_estimated) filter (where not t.ours), 0) end as tables_rewritten,
           case when count(*) filter (where not t.ours and t.reusable_bytes_estimated is null) = 0
                then coalesce(sum(t.reusable_bytes_estimated) filter (where not t.ours), 0) end as tables_reusable,
           case when count(*) filter (where not t.ours and t.statistics_at is null) = 0
                then min(t.statistics_at) filter (where not t.ours) end as statistics_at,
           (array_agg(regexp_replace(t.relation::regclass::text, '^public\.', '') || ': ' || t.reason_not_known order by t.bytes desc nulls last)
              filter (where not t.ours and t.reason_not_known is not null))[1:5] as not_known
      from lighter.table_sizes() t
  ),
  still_inline as (
    select coalesce(sum(q.depth + q.settling + q.waiting), 0) as rows, coalesce(sum(q.waiting_bytes), 0) as bytes,
           coalesce(bool_and(q.exact), true) as exact
      from lighter.queue_health q
  ),
  requests as (
    select (select coalesce(sum(class_a), 0) from lighter.request_days
             where day > (now() at time zone 'UTC')::date - 30)
           + (select coalesce(sum(class_a), 0) from lighter.storage_changes
               where day > (now() at time zone 'UTC')::date - 30) as class_a
  ),
  costs as (
    select t.*, z.*, i.rows as still_inline_rows, i.bytes as still_inline_bytes, i.exact as still_inline_exact, r.class_a, p.*,
           t.payload_bytes * p.inline_ratio as inline_bytes,
           z.tables_bytes + z.bookkeeping_bytes as database_bytes,
           z.tables_reusable + z.bookkeeping_reusable as reusable_bytes,
           z.tables_rewritten + z.bookkeeping_rewritten as rewritten_bytes,
           t.object_bytes / 1e9 * p.r2_gb_month as storage_usd,
           r.class_a / 1e6 * p.r2_class_a_million as class_a_usd,
           z.bookkeeping_bytes / 1e9 * p.database_gb_month as bookkeeping_usd,
           t.payload_bytes * p.inline_ratio / 1e9 * p.database_gb_month as inline_usd
      from totals t, sizes z, still_inline i, requests r, lighter.prices p
  ),
  verdicts as (
    select c.*, c.storage_usd + c.class_a_usd + c.bookkeeping_usd as usd,
           c.inline_usd - c.storage_usd - c.class_a_usd - c.bookkeeping_usd as saved_usd,
           c.inline_bytes - c.bookkeeping_rewritten as saved_bytes
      from costs c
  )
  select artifacts,
         payload_bytes,
         objects,
         object_bytes,
         tables_bytes::bigint as tables_bytes,
         bookkeeping_bytes::bigint as bookkeeping_bytes,
         database_bytes::bigint as database_bytes,
         reusable_bytes::bigint as reusable_bytes_estimated,
         (database_bytes - rewritten_bytes)::bigint as rewrite_frees_bytes_estimated,
         rewritten_bytes::bigint as rewritten_bytes_estimated,
         statistics_at,
         not_known,
         least(inline_bytes, 9223372036854775807)::bigint as inline_bytes_estimated,
         case when tables_rewritten is not null then least(tables_rewritten + inline_bytes, 9223372036854775807) end::bigint as inline_database_bytes_estimated,
         least(saved_bytes, 9223372036854775807)::bigint as saved_bytes_estimated,
         case when artifacts > 0 then saved_bytes > 0 end as pays_bytes,
         least(still_inline_rows, 9223372036854775807)::bigint as still_inline_rows,
         still_inline_exact,
         least(still_inline_bytes, 9223372036854775807)::bigint as still_inline_bytes_estimated,
         class_a::bigint as class_a_last_30_days,
         round(storage_usd, 4) as storage_usd_per_month,
         round(class_a_usd, 4) as class_a_usd_last_30_days,
         round(bookkeeping_usd, 4) as bookkeeping_usd_per_month,
         round(usd, 4) as usd_per_month,
         round(inline_usd, 4) as inline_usd_per_month_estimated,
         round(saved_usd, 4) as saved_usd_per_month_estimated,
         case when artifacts > 0 then saved_usd > 0 end as pays_usd,
         case when r2_class_b_million > 0 then
           least(greatest(0, saved_usd / r2_class_b_million * 1e6), 9223372036854775807)::bigint
         end as break_even_reads_per_month_estimated,
         r2_gb_month, r2_class_a_million, r2_class_b_million, database_gb_month, inline_ratio
    from verdicts;
comment on view lighter.savings is
  'What offloading saves, the whole database considered: the attached tables and all of ours, with indexes and TOAST, as they are on disk, and as they would be had no payload left its row; and the bill of a month (the bucket, its class A operations of the last 30 days, our tables), at the prices of lighter.prices. Names that end in _estimated are no measurements; null: not known, and not_known says why. Rows that still wait in their tables are no savings, and are told apart. Reads are not counted: break_even_reads_per_month_estimated is how many (class B operations) would cost what is saved. Fresh: what was offloaded and the sizes of files, exact at every moment; estimates, as of statistics_at. Cost: the rollup, lighter.storage_total_entries, lighter.queue_health, and lighter.table_sizes().';

-- Whole days from the rollup; of the day in which a policy ends, and of entities on hold, the artifacts themselves,
-- each found by its index.
create or replace view lighter.retention_due as
  with days as materialized (
    select tenant_id, kind, day, sum(artifacts) as artifacts, sum(payload_bytes) as payload_bytes
      from lighter.storage_entries
     -- what the shortest policy leaves alone is of no interest
     where day <= (now() at time zone 'UTC')::date - (select min(r.keep_days) from lighter.retention_policies r)
     group by tenant_id, kind, day
    having sum(artifacts) <> 0
  ),
  groups as materialized (
    select g.tenant_id, g.kind, p.keep_days,
           now() - make_interval(days => p.keep_days) as cutoff,
           ((now() - make_interval(days => p.keep_days)) at time zone 'UTC')::date as cutoff_day
      from (select tenant_id, kind from days
            union
            select a.tenant_id, a.kind from lighter.artifacts a where a.expires_at < now() and a.deleted_at is null) g
      left join lighter.tenants t on t.tenant_id = g.tenant_id
      left join lateral (
        select r.keep_days
          from lighter.retention_policies r
         where (r.tenant_id is null or r.tenant_id = g.tenant_id)
           and (r.plan is null or r.plan = coalesce(t.plan, 'standard'))
           and (r.kind is null or r.kind = g.kind)
         order by r.tenant_id is null, r.plan is null, r.kind is null
         limit 1
      ) p on true
     where not coalesce(t.legal_hold, false)
  ),
  parts as (
    select d.tenant_id, d.kind, d.artifacts, d.payload_bytes, d.day
      from days d join groups g on g.tenant_id = d.tenant_id and g.kind = d.kind and d.day < g.cutoff_day
    union all
    select d.tenant_id, d.kind, a.artifacts, a.payload_bytes, d.day
      from days d
      join groups g on g.tenant_id = d.tenant_id and g.kind = d.kind and d.day = g.cutoff_day
     cross join lateral (
       select count(*) as artifacts, coalesce(sum(a.size_bytes), 0) as payload_bytes
         from lighter.artifacts a
        where a.tenant_id = g.tenant_id and a.kind = g.kind and a.deleted_at is null
          and a.created_at >= d.day::timestamp at time zone 'UTC' and a.created_at < g.cutoff
     ) a
    union all
    -- on hold by their entity: none of the above
    select g.tenant_id, g.kind, -count(*), -coalesce(sum(a.size_bytes), 0), null as day
      from lighter.legal_holds h
      join lighter.artifacts a
        on a.tenant_id = h.tenant_id and a.entity_type = h.entity_type and a.entity_id = h.entity_id and a.deleted_at is null
       and (a.frame_entities @> array[h.entity_id] or a.frame_entities is null)
      join groups g on g.tenant_id = a.tenant_id and g.kind = a.kind and a.created_at < g.cutoff
     group by g.tenant_id, g.kind
    union all
    -- with a date of their own, and not among those of the policy
    select a.tenant_id, a.kind, count(*), coalesce(sum(a.size_bytes), 0), (min(a.created_at) at time zone 'UTC')::date
      from lighter.artifacts a
      join groups g on g.tenant_id = a.tenant_id and g.kind = a.kind
     where a.expires_at < now() and a.expires_at is not null and a.deleted_at is null
       and (g.cutoff is null or a.created_at >= g.cutoff)
       and not exists (select from lighter.legal_holds h
                        where h.tenant_id = a.tenant_id and h.entity_type = a.entity_type and h.entity_id = a.entity_id)
     group by a.tenant_id, a.kind
  )
  select tenant_id, kind, sum(artifacts)::bigint as artifacts, least(coalesce(sum(payload_bytes), 0), 9223372036854775807)::bigint as payload_bytes,
         min(day) filter (where artifacts > 0)::timestamp at time zone 'UTC' as oldest
    from parts
   group by tenant_id, kind
  having sum(artifacts) > 0;
comment on view lighter.retention_due is
  'Artifacts that the next retention sweep lets expire, by tenant and kind, and the day (UTC) of the oldest; legal holds left out. (One that a live artifact''s payload points to waits until that has expired.) Fresh: exact at every moment. Cost: the rollup, lighter.storage_entries, and the artifacts of the one day in which each policy ends.';

create or replace view lighter.pack_health as
  select kind,
         coalesce(s.objects, 0) as objects,
         coalesce(s.packs, 0) as packs,
         coalesce(s.objects - s.packs, 0) as loose,
         coalesce(s.object_bytes, 0) as object_bytes,
         round(s.object_bytes / nullif(s.objects, 0), 0)::bigint as avg_object_bytes,
         round(s.written_artifacts / nullif(s.objects, 0), 1) as artifacts_per_object,
         least(coalesce(s.written_bytes, 0), 9223372036854775807)::bigint as written_bytes,
         least(coalesce(s.live_bytes, 0), 9223372036854775807)::bigint as live_bytes,
         round(s.live_bytes / nullif(s.written_bytes, 0), 4) as live_share,
         coalesce(s.written_artifacts, 0)::bigint as written_artifacts,
         coalesce(s.live_artifacts, 0)::bigint as live_artifacts,
         coalesce(d.objects, 0) as partly_dead,
         coalesce(x.objects, 0) as deleting,
         least(coalesce(x.bytes, 0), 9223372036854775807)::bigint as deleting_bytes,
         coalesce(u.objects, 0) as uploading,
         coalesce(u.orphans, 0) as orphans
    from (select kind, coalesce(sum(objects), 0)::bigint as objects, coalesce(sum(packs), 0)::bigint as packs,
                 least(coalesce(sum(object_bytes), 0), 9223372036854775807)::bigint as object_bytes,
                 coalesce(sum(written_artifacts), 0) as written_artifacts, coalesce(sum(written_bytes), 0) as written_bytes,
                 coalesce(sum(live_artifacts), 0) as live_artifacts, coalesce(sum(live_bytes), 0) as live_bytes
            from lighter.storage_total_entries group by kind having sum(objects) <> 0) s
    full join (select kind, count(*) as objects from lighter.objects where dead_since is not null and state = 'stored' group by kind) d using (kind)
    full join (select kind, count(*) as objects, sum(byte_length) as bytes from lighter.objects where state = 'deleting' group by kind) x using (kind)
    full join (select kind, count(*) as objects, count(*) filter (where lease_until < now()) as orphans
                 from lighter.objects where state = 'uploading' group by kind) u using (kind);
comment on view lighter.pack_health is
  'By kind: objects, how large and how full they are, what share of the bytes written into them is alive (of those whose size is known: not of streamed ones, nor those of the API), how many are partly dead, on their way out, uploading, or left behind by an upload. Fresh: exact at every moment. Cost: the rollup, lighter.storage_total_entries, and the index entries of objects that are partly dead, on their way in or out.';

create or replace view lighter.sweep_history as
  select r.sweep,
         r.started_at,
         r.finished_at,
         extract(epoch from coalesce(r.finished_at, r.heartbeat_at, r.started_at) - r.started_at)::double precision as seconds,
         case when r.error is not null then 'failed' when r.finished_at is null then 'running' else 'done' end as outcome,
         r.dry_run,
         r.counts,
         r.error
    from lighter.sweep_runs r;
comment on view lighter.sweep_history is
  'Runs of the sweeps, what each did, and its error. One whose process died is running until the sweep begins anew. Fresh: as it is; a run tells every few seconds how far it is. Cost: by the index on sweep and started_at. Kept for 90 days.';

create or replace view lighter.moved_rows as
  select r.source_id, regexp_replace(s.relation::text, '^public\.', '') as source, r.row_id, r.tenant_id, r.artifact_tenant_id, r.artifact_id, r.found_at
    from lighter.moved_row_records r
    left join lighter.sources s on s.id = r.source_id;
comment on view lighter.moved_rows is
  'Rows that do not hydrate, since they point to an artifact of another tenant (artifact_tenant_id): they were moved to tenant_id after their offload, or copied. Fresh: as the last release sweep found them, which looks at every row; lighter doctor looks at them again. Cost: a thousand rows at most.';

create or replace view lighter.overdue_deletions as
  select case when position('tenants/' || o.tenant_id || '/' in o.r2_key) > 0
              then left(o.r2_key, position('tenants/' || o.tenant_id || '/' in o.r2_key) - 1) end as prefix,
         count(*) as objects,
         least(coalesce(sum(o.byte_length), 0), 9223372036854775807)::bigint as bytes,
         min(o.delete_after) as oldest,
         min(o.r2_key) as example
    from lighter.objects o
   where o.state = 'deleting' and o.delete_after < now() - interval '1 day'
   group by 1;
comment on view lighter.overdue_deletions is
  'Objects that should have left the bucket more than a day ago, by the prefix (R2_PREFIX) under which their keys lie; null: not under tenants/<tenant>/. Of another prefix than the daemon''s nothing is ever deleted: what lies there can not be checked. Fresh: exact at every moment. Cost: the index entries of objects that are on their way out.';
