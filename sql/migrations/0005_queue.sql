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
-- What waits after an error is few among many.
create index jobs_retrying on lighter.jobs (source_id) where last_error is not null;
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

-- A job whose row is gone ends. But a transaction that is about to write that very row again may have seen the job,
-- and have added none: when all that were under way are over, the row is looked for once more.
create table lighter.gone_rows (
  source_id integer not null,
  row_id text not null,
  marker xid8,
  primary key (source_id, row_id)
);
comment on table lighter.gone_rows is 'Rows that were gone when their jobs were to be worked on; the orphan sweep queues those that are back.';
comment on column lighter.gone_rows.marker is 'No transaction before this one may have seen the job; null until a sweep has set it.';

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
