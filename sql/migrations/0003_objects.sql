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
  payload_bytes bigint,
  live_artifacts integer,
  live_bytes bigint,
  dead_since timestamptz,
  delete_after timestamptz,
  first_deleted_at timestamptz,
  other_kinds text[],
  primary key (tenant_id, r2_key),
  check (state <> 'uploading' or lease_until is not null),
  constraint objects_deleting_when check (state <> 'deleting' or delete_after is not null)
);
create index objects_uploading on lighter.objects (lease_until) where state = 'uploading';
create index objects_deleting on lighter.objects (delete_after) where state = 'deleting';
create index objects_stored on lighter.objects (stored_at) where state = 'stored';
create index objects_dead on lighter.objects (dead_since) where dead_since is not null and state = 'stored';
-- The bucket is listed in the byte order of its keys, so the account of it must be read in that order too.
create index objects_by_key on lighter.objects (r2_key collate "C");
comment on table lighter.objects is 'Every object of ours in the bucket, registered before its first byte is sent.';
comment on column lighter.objects.state is 'uploading: may or may not exist; stored: committed and used by artifacts; deleting: on its way out.';
comment on column lighter.objects.byte_length is 'Length of the object as stored, in bytes; null while a stream is under way.';
comment on column lighter.objects.artifact_count is 'Artifacts written into the object, whether or not all of them were committed.';
comment on column lighter.objects.upload_id is 'Multipart upload id while one is open.';
comment on column lighter.objects.lease_until is 'Past this, an object still uploading is an orphan.';
comment on column lighter.objects.payload_bytes is 'Uncompressed bytes of all artifacts written into it; null: not known.';
comment on column lighter.objects.live_artifacts is 'Artifacts in it that are not purged; null: none was yet.';
comment on column lighter.objects.live_bytes is 'Their uncompressed bytes.';
comment on column lighter.objects.dead_since is 'When the first of its artifacts was purged.';
comment on column lighter.objects.delete_after is 'Of an object being deleted: not before this, for readers that still know it.';
comment on column lighter.objects.other_kinds is 'Kinds of the rest of it; null: all is of one. An erasure asks for what was in it when nothing else tells any more.';
comment on column lighter.objects.first_deleted_at is
  'When it was first deleted from the bucket. It is deleted again before its row goes: a PUT that timed out may land late.';
