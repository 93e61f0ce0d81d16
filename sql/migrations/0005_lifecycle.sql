-- What becomes of artifacts and objects after they were stored.
alter table public.artifact_refs
  add column if not exists refers_to uuid[],
  add column if not exists released_at timestamptz,
  add column if not exists purged_at timestamptz,
  add column if not exists damaged_at timestamptz,
  add column if not exists damage text;
comment on column public.artifact_refs.refers_to is
  'Artifacts that its payload points to: a row may be offloaded again and again, each time on top of the last. Null: not known.';
comment on column public.artifact_refs.released_at is 'When a release sweep first found that no row points to it; null: one does.';
comment on column public.artifact_refs.expires_at is 'When it expires whatever the retention policies say; null: as they say.';
comment on column public.artifact_refs.purged_at is 'The grace period after deleted_at is over: its bytes may be taken out of the bucket from then on.';
comment on column public.artifact_refs.damaged_at is 'When a verify sweep last found that its payload can not be read back as it was stored; null: it can, or nobody looked.';
comment on column public.artifact_refs.damage is 'What the verify sweep found.';
create index if not exists artifact_refs_tombstones
  on public.artifact_refs (deleted_at) where deleted_at is not null and purged_at is null;
create index if not exists artifact_refs_purged
  on public.artifact_refs (purged_at) where purged_at is not null;
create index if not exists artifact_refs_expiring
  on public.artifact_refs (expires_at) where expires_at is not null and deleted_at is null;
-- What lives on an artifact. Only rows that were offloaded on top of themselves, or in both phases, are in it.
create index if not exists artifact_refs_refers_to
  on public.artifact_refs using gin (refers_to) where refers_to <> '{}' and deleted_at is null;
create index if not exists artifact_refs_released
  on public.artifact_refs (released_at) where released_at is not null and deleted_at is null;
create index if not exists artifact_refs_damaged
  on public.artifact_refs (tenant_id, id) where damaged_at is not null;

alter table lighter.objects
  add column payload_bytes bigint,
  add column live_artifacts integer,
  add column live_bytes bigint,
  add column dead_since timestamptz,
  add column delete_after timestamptz,
  add column first_deleted_at timestamptz;
comment on column lighter.objects.payload_bytes is 'Uncompressed bytes of all artifacts written into it; null: not known.';
comment on column lighter.objects.live_artifacts is 'Artifacts in it that are not purged; null: none was yet.';
comment on column lighter.objects.live_bytes is 'Their uncompressed bytes.';
comment on column lighter.objects.dead_since is 'When the first of its artifacts was purged.';
comment on column lighter.objects.delete_after is 'Of an object being deleted: not before this, for readers that still know it.';
comment on column lighter.objects.first_deleted_at is
  'When it was first deleted from the bucket. It is deleted again before its row goes: a PUT that timed out may land late.';
update lighter.objects set delete_after = now() where state = 'deleting';
alter table lighter.objects add constraint objects_deleting_when check (state <> 'deleting' or delete_after is not null);
create index objects_deleting on lighter.objects (delete_after) where state = 'deleting';
create index objects_stored on lighter.objects (stored_at) where state = 'stored';
create index objects_dead on lighter.objects (dead_since) where dead_since is not null and state = 'stored';

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

alter table lighter.installation
  add column next_epoch bigint,
  add column next_nonce uuid;
comment on column lighter.installation.next_epoch is 'Epoch that is being written into the owner object; null when none is.';
comment on column lighter.installation.next_nonce is 'What is written with it, by which it is recognised when the answer was lost.';

alter table lighter.sweep_runs add column heartbeat_at timestamptz;
update lighter.sweep_runs set heartbeat_at = started_at;
comment on column lighter.sweep_runs.heartbeat_at is 'When it last said how far it is.';
