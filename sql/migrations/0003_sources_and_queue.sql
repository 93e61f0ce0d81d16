create type lighter.obstacle as (
  code text,
  problem text,
  hint text,
  is_fatal boolean
);
comment on type lighter.obstacle is 'Something that stands in the way of watching a column; not fatal: a warning. code: SQLSTATE of the error that attach raises.';

create table lighter.sources (
  id integer generated always as identity primary key,
  relation regclass not null,
  json_column name not null,
  key_column name not null,
  key_type text not null check (key_type in ('uuid', 'bigint', 'integer')),
  tenant_column name not null,
  parent_relation regclass,
  parent_key_column name,
  parent_column name,
  entity_type text,
  entity_column name,
  phase1_field text,
  phase1_kind text not null,
  phase2_kind text not null,
  envelope_keys text[] not null,
  threshold_bytes integer check (threshold_bytes between 1024 and 1000000000),
  skip_triggers boolean not null,
  allow_dependents boolean not null default false,
  trust_owner boolean not null default false,
  guard text not null default 'off' check (guard in ('off', 'warn', 'error')),
  paused boolean not null default false,
  attached_at timestamptz not null default now(),
  relation_oid oid,
  relation_schema name,
  relation_name name,
  json_attnum smallint,
  key_attnum smallint,
  tenant_attnum smallint,
  parent_key_attnum smallint,
  parent_attnum smallint,
  entity_attnum smallint,
  unique (relation, json_column)
);
comment on table lighter.sources is 'Tables and jsonb columns that are watched; written by lighter.attach and lighter.detach.';
comment on column lighter.sources.relation_oid is
  'For which table the numbers of columns below hold; another one than relation: this database was restored from a dump, and its columns are known by their names.';
comment on column lighter.sources.relation_schema is 'Schema of the table when it was attached, or attached again.';
comment on column lighter.sources.relation_name is 'Name of the table when it was attached, or attached again. Another table of this name may hold its rows now.';
comment on column lighter.sources.json_attnum is 'Number of json_column: a column that is renamed is still the same one.';
comment on column lighter.sources.key_attnum is 'Number of key_column.';
comment on column lighter.sources.tenant_attnum is 'Number of tenant_column.';
comment on column lighter.sources.parent_key_attnum is 'Number of parent_key_column.';
comment on column lighter.sources.parent_attnum is 'Number of parent_column.';
comment on column lighter.sources.entity_attnum is 'Number of entity_column.';
comment on column lighter.sources.key_column is 'The single-column primary key.';
comment on column lighter.sources.tenant_column is 'Holds the tenant: of the table itself, or of parent_relation where that is set.';
comment on column lighter.sources.parent_relation is 'Table over which the tenant is found; null when the table has the tenant itself.';
comment on column lighter.sources.parent_column is 'Column of the table that refers to parent_relation (parent_key_column).';
comment on column lighter.sources.entity_column is 'Column whose value becomes artifact_refs.entity_id.';
comment on column lighter.sources.phase1_field is 'Field that is offloaded whatever its size; null: no phase 1.';
comment on column lighter.sources.envelope_keys is 'Keys that stay in the row after phase 2, when their values are small.';
comment on column lighter.sources.threshold_bytes is 'Phase 2 threshold of this source; null: lighter.settings.threshold_bytes.';
comment on column lighter.sources.skip_triggers is 'Keep the table''s other triggers from firing on our rewrite, where the role may do that.';
comment on column lighter.sources.trust_owner is 'The table may belong to a role that may not act as our owner: what it puts there runs with the rights of the daemon.';
comment on column lighter.sources.allow_dependents is 'The owner accepts that indexes, constraints and policies read inside the column and see only what stays in the row.';
comment on column lighter.sources.guard is 'What happens at an update that edits inside an offloaded document, to no effect: nothing, a warning or an error.';
comment on column lighter.sources.paused is 'Jobs are kept but not claimed.';

-- A partition that is detached takes its rows out of sight without deleting them. So it is on record which there were.
create table lighter.source_partitions (
  source_id integer not null,
  relation regclass not null,
  name text not null,
  seen_at timestamptz not null default now(),
  primary key (source_id, relation)
);
comment on table lighter.source_partitions is
  'Partitions in which rows of a source were seen: one that is not part of its table any more may still hold pointers. See lighter.missing_parts.';
comment on column lighter.source_partitions.relation is 'The partition.';
comment on column lighter.source_partitions.name is 'Its name when it was first seen.';
comment on column lighter.source_partitions.seen_at is 'When it was first seen.';

-- Not tenant data: it names rows only. Its key leads with the source, since the trigger must not look a tenant up.
-- No foreign key to sources: its check would lock one row of sources in every application write.
create table lighter.jobs (
  source_id integer not null,
  row_id text not null,
  priority smallint not null default 0,
  available_at timestamptz not null default now(),
  attempts integer not null default 0,
  conflicts smallint not null default 0,
  enqueued_at timestamptz not null default now(),
  last_error text,
  primary key (source_id, row_id)
) with (
  fillfactor = 80,
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 2000,
  autovacuum_vacuum_insert_scale_factor = 0,
  autovacuum_vacuum_insert_threshold = 20000,
  autovacuum_analyze_scale_factor = 0,
  autovacuum_analyze_threshold = 20000,
  autovacuum_vacuum_cost_delay = 0
);
create index jobs_due on lighter.jobs (priority, available_at);
comment on table lighter.jobs is 'The queue: rows that may hold something to offload.';
comment on column lighter.jobs.priority is 'Lower goes first: 0 live, 10 backfill.';
comment on column lighter.jobs.available_at is 'Not claimed before this; a claim moves it forward by the lease (visibility timeout).';
comment on column lighter.jobs.attempts is 'Claims that ended neither in a commit nor in a conflict.';
comment on column lighter.jobs.conflicts is 'Times the row had changed, or was locked, when its offload was to be committed.';

create table lighter.failed_jobs (
  source_id integer not null,
  row_id text not null,
  attempts integer not null,
  enqueued_at timestamptz not null,
  failed_at timestamptz not null default now(),
  last_error text not null,
  primary key (source_id, row_id)
);
comment on table lighter.failed_jobs is 'Dead letters: jobs given up after their last attempt. Their rows stay inline and whole; lighter.retry brings them back.';

create table lighter.objects (
  tenant_id uuid not null,
  r2_key text not null,
  kind text not null,
  state text not null default 'uploading' check (state in ('uploading', 'stored', 'deleting')),
  content_type text not null,
  content_encoding text,
  artifact_count integer not null check (artifact_count > 0),
  byte_length bigint,
  upload_id text,
  lease_until timestamptz,
  created_at timestamptz not null default now(),
  stored_at timestamptz,
  primary key (tenant_id, r2_key),
  check (state <> 'uploading' or lease_until is not null)
);
create index objects_uploading on lighter.objects (lease_until) where state = 'uploading';
comment on table lighter.objects is 'Every object of ours in the bucket, registered before its first byte is sent.';
comment on column lighter.objects.state is 'uploading: may or may not exist; stored: committed and used by artifacts; deleting: on its way out.';
comment on column lighter.objects.byte_length is 'Length of the object as stored, in bytes; null while a stream is under way.';
comment on column lighter.objects.artifact_count is 'Artifacts written into the object, whether or not all of them were committed.';
comment on column lighter.objects.upload_id is 'Multipart upload id while one is open.';
comment on column lighter.objects.lease_until is 'Past this, an object still uploading is an orphan.';

create table lighter.tenants (
  tenant_id uuid primary key,
  plan text not null default 'standard' check (plan in ('standard', 'premium')),
  legal_hold boolean not null default false
);
comment on table lighter.tenants is 'What retention must know of a tenant; a tenant without a row is on the standard plan.';

create table lighter.retention_policies (
  id integer generated always as identity primary key,
  plan text check (plan in ('standard', 'premium')),
  tenant_id uuid,
  kind text,
  keep_days integer check (keep_days > 0),
  unique nulls not distinct (plan, tenant_id, kind),
  check (plan is null or tenant_id is null)
);
comment on table lighter.retention_policies is 'How long artifacts are kept; the most specific policy wins (tenant before plan, kind before none).';
comment on column lighter.retention_policies.keep_days is 'Days after created_at; null: for ever.';
-- Storage keeps: that something expires is decided by whoever runs it, lighter retention set.
insert into lighter.retention_policies (plan, keep_days) values ('standard', null), ('premium', null);

create table lighter.sweep_runs (
  id bigint generated always as identity primary key,
  sweep text not null,
  started_at timestamptz not null default now(),
  finished_at timestamptz,
  dry_run boolean not null default false,
  counts jsonb not null default '{}',
  error text
);
create index sweep_runs_recent on lighter.sweep_runs (sweep, started_at desc);
comment on table lighter.sweep_runs is 'History of sweeps.';

-- A trigger reads all of it once a transaction: few rows, none changed more often than every 5 s. Under a snapshot that
-- is held for a day the old versions would add up all the same.
create table lighter.daemons (
  id uuid primary key,
  asleep boolean not null,
  until timestamptz not null
) with (fillfactor = 50, vacuum_truncate = false);
comment on table lighter.daemons is 'What each daemon that works off the queue says of itself to the triggers.';
comment on column lighter.daemons.id is 'Of one start of a daemon.';
comment on column lighter.daemons.asleep is 'true: it sleeps and hears a NOTIFY; false: it is awake and needs none.';
comment on column lighter.daemons.until is 'Until when that holds. A daemon that died says nothing more from then on.';

-- Locks that are held for longer than a transaction. Not advisory locks: any login could take those, and stop the sweeps.
create table lighter.locks (
  name text primary key,
  tag text not null,
  pid integer not null,
  login oid not null,
  place text not null,
  since timestamptz not null default clock_timestamp()
) with (vacuum_truncate = false);
comment on table lighter.locks is 'Who runs a sweep, a backfill, a restore or an export. A lock whose session is gone is free: see lighter.held_locks.';
comment on column lighter.locks.name is 'The sweep, or what is backfilled, restored or exported.';
comment on column lighter.locks.pid is 'Process of Postgres that serves the holder.';
comment on column lighter.locks.login is 'Whom it logged in as: pg_roles.oid.';
comment on column lighter.locks.since is 'Since when.';
comment on column lighter.locks.tag is 'application_name of the session that holds it, with a random part.';
comment on column lighter.locks.place is 'Host and process id of the holder.';
