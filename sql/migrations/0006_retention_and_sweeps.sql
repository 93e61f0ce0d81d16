create table lighter.tenants (
  tenant_id uuid primary key,
  plan text not null default 'standard' check (plan in ('standard', 'premium')),
  legal_hold boolean not null default false,
  namespace uuid,
  external_id text,
  constraint tenants_name check (num_nonnulls(namespace, external_id) in (0, 2))
);
create index tenants_external_id on lighter.tenants using hash (external_id) where external_id is not null;
comment on table lighter.tenants is 'What is known of a tenant: its plan, a legal hold, its name. A tenant without a row is on the standard plan.';
comment on column lighter.tenants.namespace is 'lighter.sources.tenant_namespace of what names it.';
comment on column lighter.tenants.external_id is 'What the application calls it, where that is no uuid: tenant_id is lighter.tenant_of(namespace, external_id). Written by the daemon.';

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

create table lighter.legal_holds (
  tenant_id uuid not null,
  entity_type text not null,
  entity_id uuid not null,
  reason text not null,
  created_at timestamptz not null default now(),
  primary key (tenant_id, entity_type, entity_id)
);
comment on table lighter.legal_holds is
  'Entities nothing of which may be deleted or expire while their row is here. For a whole tenant: lighter.tenants.legal_hold.';

create table lighter.sweep_runs (
  id bigint generated always as identity primary key,
  sweep text not null,
  started_at timestamptz not null default now(),
  finished_at timestamptz,
  dry_run boolean not null default false,
  counts jsonb not null default '{}',
  error text,
  heartbeat_at timestamptz
);
create index sweep_runs_recent on lighter.sweep_runs (sweep, started_at desc);
comment on table lighter.sweep_runs is 'History of sweeps.';
comment on column lighter.sweep_runs.heartbeat_at is 'When it last said how far it is.';

create table lighter.sweep_cursors (
  sweep text not null,
  scope text not null default '',
  tenant_id uuid not null,
  id uuid not null,
  counts jsonb not null default '{}',
  started_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  primary key (sweep, scope)
);
comment on table lighter.sweep_cursors is 'How far a pass over all artifacts has come that was interrupted; its row goes when the pass is complete.';
comment on column lighter.sweep_cursors.scope is 'The tenant that the pass is limited to; empty: all of them.';
comment on column lighter.sweep_cursors.tenant_id is 'With id: the last artifact that was dealt with.';
comment on column lighter.sweep_cursors.counts is 'What the pass has counted up to there.';

create table lighter.erasures (
  id bigint generated always as identity primary key,
  tenant_id uuid not null,
  entity_type text,
  entity_id uuid,
  requested_by text not null default session_user,
  started_at timestamptz not null default now(),
  finished_at timestamptz,
  counts jsonb not null default '{}',
  proof jsonb,
  check ((entity_type is null) = (entity_id is null))
);
create index erasures_of on lighter.erasures (tenant_id, started_at desc);
comment on table lighter.erasures is 'Erasures on request, for the auditor: what was to go, who asked, when it was done, what was found afterwards. Never deleted by pg-lighter.';
comment on column lighter.erasures.entity_type is 'With entity_id: only what belonged to this entity; null: everything of the tenant.';
comment on column lighter.erasures.requested_by is 'Database login under which it ran.';
comment on column lighter.erasures.finished_at is 'Null: under way, or interrupted; the next run of the same goes on with this row.';
comment on column lighter.erasures.proof is 'What was looked for at the end, and how much of it was found; complete: nothing.';
