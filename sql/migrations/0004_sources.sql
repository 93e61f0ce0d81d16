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
  key_columns name[] not null check (cardinality(key_columns) > 0),
  key_types text[] not null check (cardinality(key_types) = cardinality(key_columns)),
  tenant_column name,
  tenant_namespace uuid,
  single_tenant uuid,
  parent_relations regclass[] not null default '{}',
  parent_key_columns name[] not null default '{}',
  parent_columns name[] not null default '{}',
  entity_type text,
  entity_column name,
  mode text not null default 'document' check (mode in ('document', 'stub', 'whole')),
  column_type text not null default 'jsonb' check (column_type in ('jsonb', 'json', 'text', 'bytea')),
  pointer_column name,
  made_pointer_column boolean not null default false,
  phase1_field text,
  phase1_kind text not null,
  phase2_kind text not null,
  envelope_keys text[] not null,
  threshold_bytes integer check (threshold_bytes between 1024 and 1000000000),
  min_bytes integer not null default 0 check (min_bytes between 0 and 1000000000),
  settle_for interval check (settle_for between '0' and '30 days'),
  max_wait interval check (max_wait between '0' and '90 days'),
  ship_alone_bytes integer check (ship_alone_bytes >= 1024),
  when_sql text,
  when_parts text[],
  when_columns name[],
  when_varies boolean not null default false,
  trigger boolean not null default true,
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
  key_attnums smallint[],
  tenant_attnum smallint,
  parent_key_attnums smallint[],
  parent_attnums smallint[],
  entity_attnum smallint,
  pointer_attnum smallint,
  when_attnums smallint[],
  check ((when_sql is null) = (when_parts is null) and (when_sql is null) = (when_columns is null)),
  check ((mode = 'whole') = (pointer_column is not null)),
  unique (relation, json_column),
  constraint sources_parents check (cardinality(parent_relations) = cardinality(parent_columns) and cardinality(parent_relations) = cardinality(parent_key_columns)),
  constraint sources_tenant check (num_nonnulls(tenant_column, single_tenant) = 1 and num_nonnulls(tenant_namespace, single_tenant) <= 1)
);
comment on table lighter.sources is 'Tables and columns that are watched; written by lighter.attach and lighter.detach.';
comment on column lighter.sources.relation_oid is
  'For which table the numbers of columns below hold; another one than relation: this database was restored from a dump, and its columns are known by their names.';
comment on column lighter.sources.relation_schema is 'Schema of the table when it was attached, or attached again.';
comment on column lighter.sources.relation_name is 'Name of the table when it was attached, or attached again. Another table of this name may hold its rows now.';
comment on column lighter.sources.json_attnum is 'Number of json_column: a column that is renamed is still the same one.';
comment on column lighter.sources.key_attnums is 'Numbers of key_columns.';
comment on column lighter.sources.tenant_attnum is 'Number of tenant_column.';
comment on column lighter.sources.parent_key_attnums is 'Numbers of parent_key_columns.';
comment on column lighter.sources.parent_attnums is 'Numbers of parent_columns.';
comment on column lighter.sources.entity_attnum is 'Number of entity_column.';
comment on column lighter.sources.key_columns is 'Columns of the primary key, or of another unique index, in its order: a row is known by them.';
comment on column lighter.sources.key_types is 'Types of key_columns.';
comment on column lighter.sources.pointer_attnum is 'Number of pointer_column.';
comment on column lighter.sources.mode is
  'What stays in the row. document: a jsonb document with pointers in it. stub: a small pointer in the place of the value. whole: null, and the artifact''s id in pointer_column.';
comment on column lighter.sources.column_type is 'Type of json_column: jsonb, json, text (also varchar) or bytea. Of a domain the type that it is made of.';
comment on column lighter.sources.pointer_column is 'Mode whole: the uuid column with the artifact''s id.';
comment on column lighter.sources.made_pointer_column is 'lighter.attach made pointer_column, and lighter.detach drops it once no row has an id there.';
comment on column lighter.sources.tenant_column is 'Holds the tenant: of the table itself, or of the last of parent_relations.';
comment on column lighter.sources.tenant_namespace is 'Set: the tenant column holds names, not uuids, and a row''s tenant is lighter.tenant_of(tenant_namespace, the name).';
comment on column lighter.sources.single_tenant is 'Tenant of all rows, where the operator said that there is one; then there is no tenant_column.';
comment on column lighter.sources.parent_relations is 'Tables over which the tenant is found, one after the other; none when the table has the tenant itself.';
comment on column lighter.sources.parent_columns is 'For each of parent_relations the column that refers to it, of the table before it.';
comment on column lighter.sources.entity_column is 'Column whose value becomes artifact_refs.entity_id.';
comment on column lighter.sources.phase1_field is 'Field that is offloaded whatever its size; null: no phase 1.';
comment on column lighter.sources.envelope_keys is 'Keys that stay in the row after phase 2, when their values are small.';
comment on column lighter.sources.threshold_bytes is 'Phase 2 threshold of this source; null: lighter.settings.threshold_bytes.';
comment on column lighter.sources.min_bytes is 'A phase 1 field whose stored form, uncompressed, is smaller stays in the row.';
comment on column lighter.sources.settle_for is 'A row leaves no sooner than so long after it was last written; null, as of the next two: lighter.settings has it.';
comment on column lighter.sources.max_wait is 'How long a row may wait for its pack to fill, from when it was first seen.';
comment on column lighter.sources.ship_alone_bytes is 'A payload of so many bytes waits for no others.';
comment on column lighter.sources.when_sql is 'A row leaves only while this holds of it, as Postgres writes it; null: always. What is run is the function lighter.when_<id>.';
comment on column lighter.sources.when_parts is 'The text of when_sql around the columns that it reads.';
comment on column lighter.sources.when_columns is 'The columns that when_sql reads, one between each two of when_parts.';
comment on column lighter.sources.when_attnums is 'Numbers of when_columns.';
comment on column lighter.sources.when_varies is 'when_sql may come to hold without a write, as one with now() does: the sweep scan looks for such rows.';
comment on column lighter.sources.trigger is 'False: the table has no trigger of ours, and only the sweep scan finds rows.';
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

-- A table that is detached and attached again is another source. What came off it before is still its own.
create table lighter.former_sources (
  id integer primary key,
  relation regclass not null,
  json_column name not null,
  json_attnum smallint,
  relation_oid oid,
  mode text not null default 'document',
  pointer_column name,
  pointer_attnum smallint,
  made_pointer_column boolean not null default false,
  phase1_field text,
  tenant_namespace uuid,
  rows_deleted boolean not null default false,
  detached_at timestamptz not null default now()
);
comment on table lighter.former_sources is
  'Sources that were detached, so that the artifacts of their rows are released again once the same column is attached. Written by lighter.detach.';
comment on column lighter.former_sources.id is 'lighter.sources.id as it was; artifact_refs.source_id of what came off it.';
comment on column lighter.former_sources.tenant_namespace is 'As in lighter.sources: attached again, its tenants are the same.';
comment on column lighter.former_sources.json_attnum is 'Number of json_column in the table relation_oid.';
comment on column lighter.former_sources.relation_oid is 'For which table json_attnum holds.';
comment on column lighter.former_sources.rows_deleted is
  'Somebody said so, by lighter.forget_missing: what came off its rows is released, unless another row points to it.';
comment on column lighter.former_sources.mode is 'Its lighter.sources.mode. Only a source of the same mode finds the pointers in its rows.';
comment on column lighter.former_sources.pointer_column is 'Mode whole: the column with the artifacts'' ids.';
comment on column lighter.former_sources.pointer_attnum is 'Number of pointer_column in the table relation_oid.';
comment on column lighter.former_sources.made_pointer_column is 'As in lighter.sources: attached again, detach drops the column.';
comment on column lighter.former_sources.phase1_field is 'Rows may still hold the pointer of this name.';

-- What a release sweep has come across: rows that point to another tenant's artifacts.
create table lighter.moved_row_records (
  source_id integer not null,
  row_id text not null,
  tenant_id uuid,
  artifact_tenant_id uuid not null,
  artifact_id uuid not null,
  found_at timestamptz not null default now(),
  primary key (source_id, row_id)
);
comment on table lighter.moved_row_records is
  'Rows that point to an artifact of another tenant, as the last release sweep found them, a thousand at most. See lighter.moved_rows.';
comment on column lighter.moved_row_records.tenant_id is 'Of the row now; null when none is found.';

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

create table lighter.scans (
  source_id integer primary key,
  position text,
  rows_seen bigint not null default 0,
  rows_queued bigint not null default 0,
  started_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
comment on table lighter.scans is 'How far the sweep scan is in each table that it looks through: it goes on there, and begins again after the last row.';
comment on column lighter.scans.position is 'Primary key, as text, of the last row that was looked at; null: it begins.';
comment on column lighter.scans.rows_seen is 'Rows looked at since it last began.';
comment on column lighter.scans.rows_queued is 'Rows queued since then.';
comment on column lighter.scans.started_at is 'When it last began.';

create table lighter.when_failures (
  source_id integer primary key,
  row_id text,
  error text not null,
  failed_at timestamptz not null default now()
);
comment on table lighter.when_failures is 'Sources whose when_sql failed on a row, and how it last did: such rows stay inline. Attaching the table again forgets it.';
comment on column lighter.when_failures.row_id is 'Primary key of the row, as text; null: it fails on any row.';
comment on column lighter.when_failures.error is 'What Postgres said.';
comment on column lighter.when_failures.failed_at is 'When it last failed.';

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
