-- What every message must hydrate to, kept by the database itself: each function writes the message as the
-- application does, and the same change to the model, in one transaction. Whatever becomes of a connection, both are
-- there or neither, and one snapshot of both tells what must be read.
create schema torture;

create table torture.expected (
  row_id uuid primary key,
  conversation_id uuid not null,
  tenant_id uuid not null,
  -- Of a conversation that is moved to this tenant, and back: it can be read as one of the two.
  other_tenant_id uuid,
  version integer not null default 1,
  metadata jsonb,
  -- Written whole and not patched since: hydrates to this very text. Else to an equal jsonb, its keys in any order.
  exact boolean not null default true
);
create index expected_conversation on torture.expected (conversation_id);

-- Tenants whose conversations are moved to another one, and back.
create table torture.wanderers (tenant_id uuid primary key, other_tenant_id uuid not null);

create table torture.history (
  id bigint generated always as identity primary key,
  row_id uuid not null,
  at timestamptz not null default clock_timestamp(),
  version integer not null,
  operation text not null,
  bytes bigint
);
create index history_row on torture.history (row_id, id);

-- Rows, or all rows of a tenant, that were restored and pinned: they may be inline until a backfill.
create table torture.restored (id uuid primary key);
-- Keys of rows of the other tables that were, and names of tenants.
create table torture.restored_keys (row_key text primary key);

create function torture.note(id uuid, operation text) returns void
language sql
begin atomic
  insert into torture.history (row_id, version, operation, bytes)
  select e.row_id, e.version, note.operation, octet_length(e.metadata::text) from torture.expected e where e.row_id = note.id;
end;

-- A message that the model has and the table has not is lost: nobody but these functions deletes one.
create function torture.require_found(there boolean, id uuid) returns void
language plpgsql as $$
begin
  if not there then
    raise exception 'message % is gone, and nobody has deleted it', id using errcode = 'XL057';
  end if;
end
$$;

create function torture.insert_message(id uuid, conversation uuid, tenant uuid, doc jsonb) returns boolean
language plpgsql as $$
begin
  insert into public.conversations values (conversation, tenant) on conflict do nothing;
  insert into torture.expected (row_id, conversation_id, tenant_id, other_tenant_id, metadata)
    values (id, conversation, tenant, (select w.other_tenant_id from torture.wanderers w where w.tenant_id = tenant), doc);
  insert into public.conversation_messages (id, conversation_id, role, content, metadata)
    values (id, conversation, 'assistant', '', doc);
  perform torture.note(id, 'insert');
  return true;
end
$$;

create function torture.replace_message(id uuid, doc jsonb) returns boolean
language plpgsql as $$
begin
  update torture.expected e set metadata = doc, version = e.version + 1, exact = true where e.row_id = id;
  if not found then return false; end if;
  update public.conversation_messages m set metadata = doc where m.id = replace_message.id;
  perform torture.require_found(found, id);
  perform torture.note(id, 'replace');
  return true;
end
$$;

create function torture.patch_message(id uuid, patch jsonb, operation text) returns boolean
language plpgsql as $$
begin
  update torture.expected e set metadata = e.metadata || patch, version = e.version + 1, exact = false
   -- Laid over an object, appended to an array; to a scalar it would be no patch.
   where e.row_id = id and jsonb_typeof(e.metadata) in ('object', 'array');
  if not found then return false; end if;
  update public.conversation_messages m set metadata = m.metadata || patch where m.id = patch_message.id;
  perform torture.require_found(found, id);
  perform torture.note(id, operation);
  return true;
end
$$;

-- As documented: who wants a key gone hydrates, removes it and writes the whole.
create function torture.remove_key(id uuid, place double precision) returns boolean
language plpgsql as $$
declare
  rest jsonb;
begin
  select e.metadata - k.keys[1 + floor(place * cardinality(k.keys))::int] into rest
    from torture.expected e
   cross join lateral (select array(select jsonb_object_keys(e.metadata) order by 1) as keys) k
   where e.row_id = id and jsonb_typeof(e.metadata) = 'object' and e.metadata <> '{}';
  if not found then return false; end if;
  return torture.replace_message(id, rest);
end
$$;

-- The message with its pointers, under another id. Not where conversations are moved to other tenants: a copy keeps no
-- artifact there (docs/operations.md, rows that were moved).
create function torture.copy_message(source uuid, id uuid) returns boolean
language plpgsql as $$
begin
  insert into torture.expected (row_id, conversation_id, tenant_id, other_tenant_id, metadata, exact)
    select copy_message.id, e.conversation_id, e.tenant_id, e.other_tenant_id, e.metadata, false from torture.expected e where e.row_id = source and e.other_tenant_id is null;
  if not found then return false; end if;
  insert into public.conversation_messages (id, conversation_id, role, content, metadata)
    select copy_message.id, m.conversation_id, m.role, m.content, m.metadata
      from public.conversation_messages m where m.id = source;
  perform torture.require_found(found, source);
  perform torture.note(id, 'copy of ' || source);
  return true;
end
$$;

-- What was in the row a moment ago, pointers and all, written back.
create function torture.write_back(id uuid, raw jsonb) returns boolean
language plpgsql as $$
begin
  update torture.expected e set version = e.version + 1, exact = false where e.row_id = id;
  if not found then return false; end if;
  update public.conversation_messages m set metadata = raw where m.id = write_back.id;
  perform torture.require_found(found, id);
  perform torture.note(id, 'write back');
  return true;
end
$$;

create function torture.delete_message(id uuid) returns boolean
language plpgsql as $$
begin
  perform torture.note(id, 'delete');
  delete from torture.expected e where e.row_id = id;
  if not found then return false; end if;
  delete from public.conversation_messages m where m.id = delete_message.id;
  perform torture.require_found(found, id);
  return true;
end
$$;

-- Of a field that is inline beside its pointer.
create function torture.without_pointers(doc jsonb) returns jsonb
language sql immutable
return case when jsonb_typeof(doc) = 'object' and doc ? 'tool_interactions'
            then doc - 'tool_interactions_ref' - 'tool_interactions_count' else doc end;

-- Between the two tenants of a wanderer: from the one that it is of to the other.
create function torture.move_conversation(conversation uuid) returns boolean
language plpgsql as $$
begin
  update public.conversations c
     set tenant_id = case when c.tenant_id = w.tenant_id then w.other_tenant_id else w.tenant_id end
    from torture.wanderers w
   where c.id = conversation and c.tenant_id in (w.tenant_id, w.other_tenant_id);
  return found;
end
$$;

create function torture.delete_conversation(conversation uuid) returns boolean
language plpgsql as $$
begin
  -- First: it waits for whoever is inserting into it, whose messages are deleted too.
  delete from public.conversations c where c.id = conversation;
  perform torture.note(e.row_id, 'delete with its conversation') from torture.expected e where e.conversation_id = conversation;
  delete from torture.expected e where e.conversation_id = conversation;
  return true;
end
$$;

grant usage on schema torture to public;
grant all on all tables in schema torture to public;
