-- What long passes over everything must remember, and what they look things up by.
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

-- The bucket is listed in the byte order of its keys, so the account of it must be read in that order too.
create index objects_by_key on lighter.objects (r2_key collate "C");

-- A table of the application's may have a primary key of the id alone: a pass in the order of tenant and id would
-- sort all of it for each page.
do $$
declare
  refs constant regclass := 'public.artifact_refs';
begin
  if not exists (
    select from pg_index i
     where i.indrelid = refs and i.indisvalid and i.indpred is null
       and i.indkey[0] = (select attnum from pg_attribute where attrelid = refs and attname = 'tenant_id')
       and i.indkey[1] = (select attnum from pg_attribute where attrelid = refs and attname = 'id'))
  then
    create index artifact_refs_tenant_id on public.artifact_refs (tenant_id, id);
  end if;
end
$$;
