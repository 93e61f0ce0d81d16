-- The way in for rows that were there before, and the way out.

-- What is to stay in its rows. A whole source is held by sources.paused. Few rows, however much is held: one for a
-- tenant, not one for each of its messages.
create table lighter.pins (
  id bigint generated always as identity primary key,  -- a publication for all tables needs one
  source_id integer not null,
  tenant_id uuid,
  row_id text,
  pinned_at timestamptz not null default now(),
  check (num_nonnulls(tenant_id, row_id) = 1)
);
create unique index pins_row on lighter.pins (source_id, row_id) where row_id is not null;
create unique index pins_tenant on lighter.pins (source_id, tenant_id) where tenant_id is not null;
comment on table lighter.pins is
  'Rows, and tenants, of a source whose JSON stays in the row: their jobs end without an offload. Written by lighter restore, taken away by lighter unpin.';
comment on column lighter.pins.id is 'The key, which a publication for all tables needs.';
comment on column lighter.pins.tenant_id is 'All rows of the tenant, also those it will write; null: row_id says which.';
comment on column lighter.pins.row_id is 'Primary key of one row, as its text.';

create table lighter.backfills (
  id integer generated always as identity primary key,
  source_id integer not null,
  tenant_id uuid,
  older_than text,
  age_column name,
  cutoff timestamptz,
  position text,
  rows_seen bigint not null default 0,
  rows_queued bigint not null default 0,
  started_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  finished_at timestamptz
);
create unique index backfills_open on lighter.backfills (source_id, tenant_id, older_than) nulls not distinct
  where finished_at is null;
comment on table lighter.backfills is 'Passes of lighter backfill over the rows of a source: how far each is, or was when it ended.';
comment on column lighter.backfills.older_than is 'As it was asked for, such as 7d: by it a pass that was stopped is found again.';
comment on column lighter.backfills.cutoff is 'What that meant when the pass began; it stays so when it goes on.';
comment on column lighter.backfills.position is 'Primary key, as text, of the last row that was looked at.';
comment on column lighter.backfills.rows_seen is 'Rows looked at.';
comment on column lighter.backfills.rows_queued is 'Jobs made; rows that were queued already are not among them.';
