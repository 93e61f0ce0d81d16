-- What a request of the HTTP API may do beside reading. It runs as lighter_tenant, which has no right to write
-- any table: these functions have their owner's rights, take the tenant from the transaction's setting and from
-- nowhere else, and touch only what is that tenant's.
create or replace function lighter.require_tenant() returns uuid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
  tenant constant uuid := lighter.current_tenant();
begin
  if tenant is null then
    raise exception 'no tenant is set'
      using errcode = 'insufficient_privilege',
            hint = 'set_config(''app.current_tenant_id'', <uuid>, true) in the same transaction.';
  end if;
  return tenant;
end
$$;
comment on function lighter.require_tenant() is 'The tenant on whose behalf the transaction runs; an error (42501) when there is none.';

-- A trigger, a default value or a type of the table's owner would run with our owner's rights.
create or replace function lighter.require_own_artifacts() returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if lighter.is_trusted((select c.relowner from pg_class c where c.oid = 'lighter.loose_artifacts'::regclass)) is not true then
    raise exception 'lighter.loose_artifacts belongs to a role that may not act as the owner of schema lighter'
      using errcode = 'insufficient_privilege', hint = 'lighter migrate says what to do.';
  end if;
end
$$;
comment on function lighter.require_own_artifacts() is 'Fails when lighter.loose_artifacts belongs to somebody who is not trusted.';
revoke all on function lighter.require_own_artifacts() from public;

create or replace function lighter.api_register_object(
  object_key text, of_kind text, of_content_type text, of_content_encoding text, bytes bigint, lease_ms integer
) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  tenant constant uuid := lighter.require_tenant();
begin
  perform lighter.require_own_artifacts();
  if substring('/' || object_key from '/tenants/([^/]+)/') is distinct from tenant::text
     or object_key ~ '(^|/)\.{0,2}(/|$)' then
    raise exception 'the key is outside the tenant''s prefix' using errcode = 'insufficient_privilege';
  end if;
  -- One that the application stored itself has no row here, and must not get one that says it is an orphan.
  if exists (select from public.artifact_refs a where a.tenant_id = tenant and a.r2_key = object_key) then
    raise exception 'the key is in use' using errcode = 'unique_violation';
  end if;
  insert into lighter.objects (tenant_id, r2_key, kind, state, content_type, content_encoding, artifact_count, byte_length, lease_until)
  values (tenant, object_key, of_kind, 'uploading', of_content_type, of_content_encoding, 1, bytes, now() + lease_ms * interval '1 ms');
end
$$;
comment on function lighter.api_register_object(text, text, text, text, bigint, integer) is
  'Registers an object of the current tenant before its first byte is sent; an orphan lease_ms from now unless it is committed or extended.';

create or replace function lighter.api_touch_object(object_key text, multipart_id text, lease_ms integer) returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update lighter.objects o
     set lease_until = now() + lease_ms * interval '1 ms', upload_id = coalesce(multipart_id, o.upload_id)
   where o.tenant_id = lighter.require_tenant() and o.r2_key = object_key and o.state = 'uploading';
  return found;
end
$$;
comment on function lighter.api_touch_object(text, text, integer) is
  'Extends the lease of an upload under way, and notes its multipart upload id; false when it was taken for an orphan. lease_ms 0 gives it up.';

create or replace function lighter.api_store_artifact(
  artifact uuid, object_key text, of_kind text, of_entity_type text, of_entity uuid, of_content_type text,
  of_content_encoding text, payload_bytes bigint, payload_sha256 text, object_bytes bigint, idempotency_key text,
  idempotency_attempt uuid
) returns setof public.artifact_refs
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  tenant constant uuid := lighter.require_tenant();
begin
  perform lighter.require_own_artifacts();
  update lighter.objects o
     set state = 'stored', stored_at = now(), lease_until = null, upload_id = null, byte_length = object_bytes
   where o.tenant_id = tenant and o.r2_key = object_key and o.state = 'uploading';
  if not found then
    raise exception 'the uploaded object was taken for an orphan before its commit'
      using errcode = 'object_not_in_prerequisite_state';
  end if;
  insert into lighter.loose_artifacts (id, tenant_id, kind, entity_type, entity_id, r2_key, content_type, size_bytes, sha256, content_encoding)
  values (artifact, tenant, of_kind, of_entity_type, of_entity, object_key, of_content_type, payload_bytes, payload_sha256, of_content_encoding);
  if idempotency_key is not null then
    update lighter.idempotency_keys k set artifact_id = artifact
     where k.tenant_id = tenant and k.key = idempotency_key and k.attempt = idempotency_attempt and k.artifact_id is null;
    if not found then
      raise exception 'another request with this idempotency key was faster' using errcode = 'lock_not_available';
    end if;
  end if;
  return query select a.* from lighter.artifact_get(tenant, artifact) a;
end
$$;
comment on function lighter.api_store_artifact(uuid, text, text, text, uuid, text, text, bigint, text, bigint, text, uuid) is
  'Commits an uploaded object of the current tenant as an artifact; fails (55000) when the object was swept meanwhile.';

create or replace function lighter.api_delete_artifact(artifact uuid) returns timestamptz
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  tenant constant uuid := lighter.require_tenant();
  at timestamptz;
begin
  perform lighter.require_own_artifacts();
  -- Locked first, changed by a second statement, which sees what whoever held the lock has made of it.
  perform from lighter.frames f where f.tenant_id = tenant and f.id = lighter.frame_of(artifact) for no key update;
  update public.artifact_refs a set deleted_at = now(), deleted_reason = 'deleted'
   where a.tenant_id = tenant and a.id = artifact and a.frame_id = lighter.frame_of(artifact) and a.deleted_at is null
  returning a.deleted_at into at;
  return at;
end
$$;
comment on function lighter.api_delete_artifact(uuid) is
  'Puts a tombstone on an artifact of the current tenant; null when there is none to be deleted.';

create or replace function lighter.api_begin_idempotent(idempotency_key text, request_fingerprint text, lease_ms integer)
returns table (outcome text, artifact uuid, attempt uuid)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  tenant constant uuid := lighter.require_tenant();
begin
  -- A few old ones go with each new one: nobody else need look after the table.
  delete from lighter.idempotency_keys k
   where (k.tenant_id, k.key) in (
     select x.tenant_id, x.key from lighter.idempotency_keys x
      where x.tenant_id = tenant and x.created_at < now() - interval '24 hours'
      limit 10 for update skip locked);
  return query
    with taken as (
      insert into lighter.idempotency_keys as k (tenant_id, key, fingerprint, locked_until)
      values (tenant, idempotency_key, request_fingerprint, now() + lease_ms * interval '1 ms')
      on conflict (tenant_id, key) do update
        set fingerprint = excluded.fingerprint, locked_until = excluded.locked_until, created_at = now(), artifact_id = null,
            attempt = excluded.attempt
      where k.created_at < now() - interval '24 hours'
         or k.artifact_id is null and k.locked_until < now()
      returning k.attempt
    )
    select 'new', null::uuid, t.attempt from taken t;
  if found then return; end if;
  return query
    select case when k.fingerprint <> request_fingerprint then 'mismatch'
                when k.artifact_id is null then 'busy'
                else 'done' end,
           k.artifact_id, null::uuid
      from lighter.idempotency_keys k
     where k.tenant_id = tenant and k.key = idempotency_key;
end
$$;
comment on function lighter.api_begin_idempotent(text, text, integer) is
  'Takes an idempotency key for the current tenant: new (go on), done (with the artifact of the first request), busy (it is under way), mismatch (the key was used for another request).';

create or replace function lighter.api_extend_idempotent(idempotency_key text, idempotency_attempt uuid, lease_ms integer)
returns boolean
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  update lighter.idempotency_keys k
     set locked_until = now() + lease_ms * interval '1 ms'
   where k.tenant_id = lighter.require_tenant() and k.key = idempotency_key and k.attempt = idempotency_attempt
     and k.artifact_id is null;
  return found;
end
$$;
comment on function lighter.api_extend_idempotent(text, uuid, integer) is
  'Keeps an idempotency key for the request that took it while that is under way; false when another has it by now.';

create or replace function lighter.api_end_idempotent(idempotency_key text, idempotency_attempt uuid) returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  delete from lighter.idempotency_keys k
   where k.tenant_id = lighter.require_tenant() and k.key = idempotency_key and k.attempt = idempotency_attempt
     and k.artifact_id is null;
end
$$;
comment on function lighter.api_end_idempotent(text, uuid) is
  'Gives back an idempotency key whose request failed, so that it may be tried again at once.';
