-- A row is queued in one place at a time: written to the inbox by a trigger, waiting for its turn, or leased to a daemon.
-- The view lighter.jobs shows all three. None of them is tenant data: they name rows only, and lead with the source, since
-- the trigger must not look a tenant up.

-- The triggers append here, look nothing up and wait for nobody; an entry is taken by deleting it. A row that is written
-- twice has two entries. No foreign key to sources: its check would lock one row of sources in every application write.
create table lighter.inbox (
  id bigint generated always as identity primary key,
  source_id integer not null,
  row_id text not null,
  enqueued_at timestamptz not null default now()
) with (
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 2000,
  autovacuum_vacuum_insert_scale_factor = 0,
  autovacuum_vacuum_insert_threshold = 20000,
  autovacuum_analyze_scale_factor = 0,
  autovacuum_analyze_threshold = 20000,
  autovacuum_vacuum_cost_delay = 0,
  -- That needs a lock that writers would wait behind.
  vacuum_truncate = false
);
comment on table lighter.inbox is 'Rows that were written and may hold something to offload, in the order in which they were; the triggers only append.';
comment on column lighter.inbox.id is 'In the order of the writes. A transaction that ends late leaves an id below those that were taken.';

create table lighter.waiting (
  source_id integer not null,
  row_id text not null,
  priority smallint not null default 0,
  available_at timestamptz not null default now(),
  attempts integer not null default 0,
  conflicts smallint not null default 0,
  enqueued_at timestamptz not null default now(),
  last_error text,
  tenant_id uuid,
  phase smallint check (phase in (1, 2)),
  bytes integer,
  row_xmin xid,
  entity_id uuid,
  primary key (source_id, row_id),
  constraint waiting_for_others check (num_nonnulls(tenant_id, phase, bytes, row_xmin) in (0, 4))
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
create index waiting_due on lighter.waiting (priority, available_at) where tenant_id is null;
-- What each tenant has is added up from this index alone.
create index waiting_groups_key on lighter.waiting (tenant_id, source_id, phase, enqueued_at) include (available_at, bytes)
  where tenant_id is not null;
-- What waits after an error is few among many.
create index waiting_retrying on lighter.waiting (source_id) where last_error is not null;
comment on table lighter.waiting is
  'Rows that wait: for others of their tenant, until their pack is worth a PUT (they have a tenant here); or for their turn, since they failed, changed while they were worked on, were put back, or were found by a backfill.';
comment on column lighter.waiting.priority is 'Lower goes first: 0 live, 10 backfill.';
comment on column lighter.waiting.available_at is 'Not claimed before this. Of a row that waits for others: when it is settled, unless it is written again.';
comment on column lighter.waiting.attempts is 'How often it failed, or its daemon died while it worked on this row alone.';
comment on column lighter.waiting.conflicts is 'Times the row had changed, or was locked, when its offload was to be committed.';

comment on column lighter.waiting.tenant_id is 'Whose it was when it was looked at. This and the next three are there to tell when it pays to take it: what is taken is decided then. Null: it does not wait for others.';
comment on column lighter.waiting.phase is 'Which phase takes most of it: by this its kind is known.';
comment on column lighter.waiting.bytes is 'About how much would leave it, in bytes of text.';
comment on column lighter.waiting.entity_id is 'What it belongs to, such as its conversation: rows of one leave together where that is possible.';
comment on column lighter.waiting.row_xmin is 'The transaction that had written the row when it was looked at: after another one it is not settled.';

-- What an operator asked for: see lighter.flush.
create table lighter.flushes (
  id bigint generated always as identity primary key,  -- a publication for all tables needs one
  source_id integer not null,
  tenant_id uuid,
  flushed_at timestamptz not null
);
create unique index flushes_scope on lighter.flushes (source_id, tenant_id) nulls not distinct;
comment on table lighter.flushes is 'What lighter.flush was last called for: rows that were queued before leave without waiting.';
comment on column lighter.flushes.id is 'The key, which a publication for all tables needs.';
comment on column lighter.flushes.tenant_id is 'Only rows of this tenant; null: all.';
comment on column lighter.flushes.flushed_at is 'When. Rows that are written later wait as ever.';

-- A batch is one row, however many rows of a table it is: taking it and ending it cost next to nothing.
create table lighter.leases (
  id uuid primary key,
  until timestamptz,
  done integer[] not null default '{}',
  source_ids integer[] not null,
  row_ids text[] not null,
  enqueued_at timestamptz[] not null,
  priorities smallint[],
  attempts integer[],
  conflicts smallint[],
  errors text[]
) with (
  fillfactor = 50,
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 200,
  autovacuum_vacuum_cost_delay = 0,
  vacuum_truncate = false
);
-- Keys do not compress well enough to be worth the time.
alter table lighter.leases alter column row_ids set storage external;
comment on table lighter.leases is
  'Batches that daemons work on. A daemon that dies leaves its lease to run out: its rows are tried again in two halves, so that one on which daemons die is alone in the end.';
comment on column lighter.leases.id is 'Known to its holder only: whoever takes the lease over gives it another one, and the former holder can commit nothing any more.';
comment on column lighter.leases.until is 'When it runs out, unless it is extended; null: nobody holds it.';
comment on column lighter.leases.done is 'Positions in the arrays of rows that are in it no more.';
comment on column lighter.leases.source_ids is 'lighter.sources.id, one for each row, as in all of the arrays.';
comment on column lighter.leases.row_ids is 'Primary keys of the rows, as text.';
comment on column lighter.leases.enqueued_at is 'When the transaction that queued the row began.';
comment on column lighter.leases.priorities is 'As in lighter.waiting, where the rows were; null: they come from the inbox.';
comment on column lighter.leases.attempts is 'Likewise.';
comment on column lighter.leases.conflicts is 'Likewise.';
comment on column lighter.leases.errors is 'Likewise: why the last attempt failed.';

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

-- What the triggers look at instead of the table below: one number, which no snapshot is too old for.
create sequence lighter.notify_until minvalue 0;
select setval('lighter.notify_until', 0);
comment on sequence lighter.notify_until is
  'Until when writers are to notify the daemons, in milliseconds since 1970: all that say something of themselves sleep. See lighter.daemon_says.';

-- Few rows, none changed more often than every 5 s. Under a snapshot that is held for a day the old versions would add up
-- all the same.
create table lighter.daemons (
  id uuid primary key,
  asleep boolean not null,
  until timestamptz not null
) with (fillfactor = 50, vacuum_truncate = false);
comment on table lighter.daemons is 'What each daemon that works off the queue says of itself: see lighter.notify_until.';
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
