-- Reports: what they are added up from.

-- Sums per tenant, kind and day. Never more rows than artifacts, and in practice a small part of them.
create table lighter.storage_days (
  tenant_id uuid not null,
  kind text not null,
  day date not null,
  artifacts bigint not null default 0,
  payload_bytes bigint not null default 0,
  deleted_artifacts bigint not null default 0,
  deleted_bytes bigint not null default 0,
  objects bigint not null default 0,
  object_bytes bigint not null default 0,
  packs bigint not null default 0,
  written_artifacts bigint not null default 0,
  written_bytes bigint not null default 0,
  live_artifacts bigint not null default 0,
  live_bytes bigint not null default 0,
  primary key (tenant_id, kind, day)
) with (fillfactor = 90);
comment on table lighter.storage_days is
  'What is stored, summed by tenant, kind and day (UTC): artifacts by the day of created_at, objects by that of stored_at. With lighter.storage_changes added it is exact.';
comment on column lighter.storage_days.artifacts is 'Live artifacts.';
comment on column lighter.storage_days.payload_bytes is 'Their uncompressed bytes.';
comment on column lighter.storage_days.deleted_artifacts is 'Artifacts with a tombstone whose grace period is not over.';
comment on column lighter.storage_days.deleted_bytes is 'Their uncompressed bytes.';
comment on column lighter.storage_days.objects is 'Stored objects.';
comment on column lighter.storage_days.object_bytes is 'Their bytes in the bucket.';
comment on column lighter.storage_days.packs is 'Those of them that were written with more than one artifact.';
comment on column lighter.storage_days.written_artifacts is 'Artifacts written into them.';
comment on column lighter.storage_days.written_bytes is 'Uncompressed bytes written into them, as far as known.';
comment on column lighter.storage_days.live_artifacts is 'Artifacts in them that are not purged.';
comment on column lighter.storage_days.live_bytes is 'Their uncompressed bytes, as far as known.';

-- The same without the tenants: a few rows for each day.
create table lighter.storage_totals (
  kind text not null,
  day date not null,
  artifacts bigint not null default 0,
  payload_bytes bigint not null default 0,
  deleted_artifacts bigint not null default 0,
  deleted_bytes bigint not null default 0,
  objects bigint not null default 0,
  object_bytes bigint not null default 0,
  packs bigint not null default 0,
  written_artifacts bigint not null default 0,
  written_bytes bigint not null default 0,
  live_artifacts bigint not null default 0,
  live_bytes bigint not null default 0,
  primary key (kind, day)
) with (fillfactor = 50);
comment on table lighter.storage_totals is
  'lighter.storage_days summed over all tenants. With lighter.storage_changes added it is exact.';

-- Triggers of loose_artifacts, frames and objects append here what a statement changed; the rollup sweep adds it to
-- storage_days and storage_totals. Appending locks nothing that another transaction wants, which counting up a row of storage_days
-- would. Keyed by its own number, not by the tenant: it is only ever read whole, and holds minutes.
create table lighter.storage_changes (
  id bigint generated always as identity primary key,
  tenant_id uuid not null,
  kind text not null,
  day date not null,
  artifacts bigint,
  payload_bytes bigint,
  deleted_artifacts bigint,
  deleted_bytes bigint,
  objects bigint,
  object_bytes bigint,
  packs bigint,
  written_artifacts bigint,
  written_bytes bigint,
  live_artifacts bigint,
  live_bytes bigint,
  class_a bigint
) with (
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 5000,
  autovacuum_vacuum_insert_scale_factor = 0,
  autovacuum_vacuum_insert_threshold = 50000,
  autovacuum_analyze_scale_factor = 0,
  autovacuum_analyze_threshold = 20000,
  autovacuum_vacuum_cost_delay = 0
);
comment on table lighter.storage_changes is 'What is to be added to lighter.storage_days, lighter.storage_totals and lighter.request_days; null counts as 0.';
comment on column lighter.storage_changes.class_a is 'Class A operations that it took to write the objects.';

-- Written objects stay counted when they are gone: they were paid for.
create table lighter.request_days (
  day date primary key,
  class_a bigint not null
);
comment on table lighter.request_days is
  'Class A operations (PUT, and of a multipart upload each part and two more) by day (UTC), of the objects that were stored.';

create table lighter.latency_hours (
  hour timestamptz not null,
  live boolean not null,
  bucket smallint not null,
  jobs bigint not null,
  primary key (hour, live, bucket)
);
comment on table lighter.latency_hours is
  'Offloaded rows by the hour of their commit and the time since they were queued. Kept for 31 days; with lighter.latency_changes added it is exact.';
comment on column lighter.latency_hours.live is 'True: written by the application (priority 0); false: queued by a backfill.';
comment on column lighter.latency_hours.bucket is 'n: more than 2^((n-1)/4) ms and at most 2^(n/4) ms.';

create table lighter.latency_changes (
  id bigint generated always as identity primary key,
  hour timestamptz not null,
  live boolean not null,
  bucket smallint not null,
  jobs bigint not null
) with (
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 5000,
  autovacuum_vacuum_insert_scale_factor = 0,
  autovacuum_vacuum_insert_threshold = 50000,
  autovacuum_vacuum_cost_delay = 0
);
comment on table lighter.latency_changes is 'What commits append, to be added to lighter.latency_hours.';

-- Counted once, here; from then on the triggers tell (functions/80_reports.sql, in this same transaction).
-- Nobody writes meanwhile, or it would be counted twice or never.
lock table lighter.loose_artifacts in share row exclusive mode;
insert into lighter.storage_days (tenant_id, kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes)
select coalesce(a.tenant_id, '00000000-0000-0000-0000-000000000000'), coalesce(a.kind, ''), coalesce((a.created_at at time zone 'UTC')::date, '-infinity'),
       count(*) filter (where a.deleted_at is null),
       coalesce(sum(a.size_bytes) filter (where a.deleted_at is null), 0),
       count(*) filter (where a.deleted_at is not null),
       coalesce(sum(a.size_bytes) filter (where a.deleted_at is not null), 0)
  from lighter.loose_artifacts a
 where a.deleted_at is null or a.purged_at is null
 group by 1, 2, 3;
insert into lighter.storage_totals (kind, day, artifacts, payload_bytes, deleted_artifacts, deleted_bytes)
select kind, day, sum(artifacts), sum(payload_bytes), sum(deleted_artifacts), sum(deleted_bytes)
  from lighter.storage_days
 group by kind, day;
