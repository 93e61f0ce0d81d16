-- A request that is sent again under the same key gets the first one's artifact, not a second one.
create table lighter.idempotency_keys (
  tenant_id uuid not null,
  key text not null check (octet_length(key) between 1 and 255),
  fingerprint text not null,
  artifact_id uuid,
  attempt uuid not null default gen_random_uuid(),
  locked_until timestamptz not null,
  created_at timestamptz not null default now(),
  primary key (tenant_id, key)
);
create index idempotency_keys_created on lighter.idempotency_keys (tenant_id, created_at);
comment on table lighter.idempotency_keys is 'Idempotency-Key headers of the last 24 hours, by tenant.';
comment on column lighter.idempotency_keys.fingerprint is 'SHA-256 of what was asked for: the same key for something else is refused.';
comment on column lighter.idempotency_keys.artifact_id is 'What the first request made; null while it is under way.';
comment on column lighter.idempotency_keys.attempt is 'Which of several requests holds the key: one that has lost it can not end what another has begun.';
comment on column lighter.idempotency_keys.locked_until is 'Past this, a request under way is taken for dead and the key may be used again.';
