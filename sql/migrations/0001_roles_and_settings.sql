-- Roles are cluster-wide, so another database of this cluster may already have made them.
-- They are group roles: the operator gives a login to lighter_daemon (or grants it to one), see docs.
do $$
declare
  role_name text;
begin
  foreach role_name in array array['lighter_daemon', 'lighter_tenant', 'lighter_reporter'] loop
    if not exists (select from pg_roles where rolname = role_name) then
      begin
        execute format('create role %I nologin nosuperuser nobypassrls', role_name);
      exception
        when duplicate_object or unique_violation then null;  -- another database's migration was faster
      end;
    end if;
  end loop;
end
$$;

create schema if not exists lighter;
comment on schema lighter is 'pg-lighter: what takes heavy JSON off rows into an object store, and keeps account of it.';
revoke all on schema lighter from public;

-- One row: who this installation is. The owner object under the bucket prefix carries the same id, so that
-- a copy of this database (a fork, a restored backup) can be told from the original.
create table lighter.installation (
  singleton boolean primary key default true check (singleton),
  id uuid not null default gen_random_uuid(),
  created_at timestamptz not null default now(),
  owner_epoch bigint not null default 0,
  owner_etag text,
  next_epoch bigint,
  next_nonce uuid
);
comment on table lighter.installation is 'The identity of this installation, repeated in the bucket''s owner object.';
comment on column lighter.installation.owner_epoch is 'Epoch of the owner object as this database last wrote it; a stale one marks a copy.';
comment on column lighter.installation.owner_etag is 'ETag of the owner object as this database last wrote it.';
comment on column lighter.installation.next_epoch is 'Epoch that is being written into the owner object; null when none is.';
comment on column lighter.installation.next_nonce is 'What is written with it, by which it is recognised when the answer was lost.';
insert into lighter.installation default values;

create table lighter.settings (
  singleton boolean primary key default true check (singleton),
  threshold_bytes integer not null default 8000 check (threshold_bytes between 1024 and 1000000000),
  settle_for interval not null default '1 minute' check (settle_for between '0' and '30 days'),
  max_wait interval not null default '24 hours' check (max_wait between '0' and '90 days'),
  ship_alone_bytes integer not null default 65536 check (ship_alone_bytes >= 1024),
  pack_target_bytes integer not null default 4194304,
  pack_min_bytes integer not null default 65536
);
comment on table lighter.settings is 'Settings that triggers and reports need. Change them by lighter.set_defaults; threshold and packs the daemon writes from its configuration.';
comment on column lighter.settings.threshold_bytes is
  'Phase 2 offloads metadata whose text is longer than this (AI_ARTIFACT_META_THRESHOLD_BYTES), for sources without a threshold of their own.';
comment on column lighter.settings.settle_for is 'A row leaves no sooner than so long after it was last written. Of sources without one of their own, as the next two.';
comment on column lighter.settings.max_wait is
  'How long a row may wait for its pack to fill, from when it was first seen. With 0 rows leave as soon as they are settled, whatever their number.';
comment on column lighter.settings.ship_alone_bytes is 'A payload of so many bytes is worth a PUT of its own, and waits for no others.';
comment on column lighter.settings.pack_target_bytes is 'PACK_TARGET_BYTES of the daemon that started last: rows of one tenant and kind leave when they have so much.';
comment on column lighter.settings.pack_min_bytes is 'PACK_MIN_BYTES likewise: with less than that rows go on waiting, since a PUT would cost more than it saves.';
insert into lighter.settings default values;

create table lighter.prices (
  singleton boolean primary key default true check (singleton),
  r2_gb_month numeric not null default 0.015 check (r2_gb_month >= 0),
  r2_class_a_million numeric not null default 4.50 check (r2_class_a_million >= 0),
  r2_class_b_million numeric not null default 0.36 check (r2_class_b_million >= 0),
  database_gb_month numeric not null default 0.125 check (database_gb_month >= 0),
  inline_ratio numeric not null default 0.42 check (inline_ratio >= 0)
);
comment on table lighter.prices is 'Prices in US dollars that lighter.savings counts with. Change them to what you pay: update lighter.prices set database_gb_month = 0.23;';
comment on column lighter.prices.r2_gb_month is
  'One GB (10^9 bytes) in the bucket for a month. R2 standard storage, developers.cloudflare.com/r2/pricing.';
comment on column lighter.prices.r2_class_a_million is
  'A million class A operations, such as PUT. R2 standard storage, developers.cloudflare.com/r2/pricing.';
comment on column lighter.prices.r2_class_b_million is
  'A million class B operations, such as GET. R2 standard storage, developers.cloudflare.com/r2/pricing.';
comment on column lighter.prices.database_gb_month is
  'One GB of the database''s disk for a month, without replicas and backups. Default: Supabase gp3, supabase.com/docs/guides/platform/manage-your-usage/disk-size.';
comment on column lighter.prices.inline_ratio is
  'Bytes on the database''s disk per byte of payload text, were it still in its row. Default: measured on 3,121 messages of real conversations, whose 2.59 MB of payloads took 1.10 MB of table and TOAST with pglz.';
insert into lighter.prices default values;
