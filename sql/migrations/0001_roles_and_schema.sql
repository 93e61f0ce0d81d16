-- Roles are cluster-wide, so another database of this cluster may already have made them.
-- They are group roles: the operator gives a login to lighter_daemon (or grants it to one), see docs.
do $$
declare
  role_name text;
begin
  foreach role_name in array array['lighter_daemon', 'lighter_tenant'] loop
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
  owner_etag text
);
comment on table lighter.installation is 'The identity of this installation, repeated in the bucket''s owner object.';
comment on column lighter.installation.owner_epoch is 'Epoch of the owner object as this database last wrote it; a stale one marks a copy.';
comment on column lighter.installation.owner_etag is 'ETag of the owner object as this database last wrote it.';
insert into lighter.installation default values;

create table lighter.settings (
  singleton boolean primary key default true check (singleton),
  threshold_bytes integer not null default 8000 check (threshold_bytes between 1024 and 1000000000)
);
comment on table lighter.settings is 'Settings that triggers need; the daemon writes them from its configuration.';
comment on column lighter.settings.threshold_bytes is
  'Phase 2 offloads metadata whose text is longer than this (AI_ARTIFACT_META_THRESHOLD_BYTES), for sources without a threshold of their own.';
insert into lighter.settings default values;
