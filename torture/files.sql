-- What every file must read as: rows with a text key and a column of mode whole. The functions do what applications do to
-- such a column, and the model follows what docs/sql.md says of it: null over null changes nothing, the pointer decides.
create table public.files (
  name text primary key,
  tenant_id uuid not null,
  note text,
  body :body_type
);
grant all on public.files to public;
select lighter.attach('public.files', 'body', mode => 'whole', pointer_column => 'body_artifact_id', create_pointer_column => true);

create table torture.file_rows (
  row_id uuid primary key,
  name text not null unique,
  tenant_id uuid not null,
  version integer not null default 1,
  -- To the last byte.
  body bytea,
  -- The application has written an id that names nothing of its tenant's: reading must say so.
  astray boolean not null default false,
  unqueued boolean not null default false
);

create function torture.body_of(bytes bytea) returns :body_type language sql immutable return :from_bytes;
create function torture.bytes_of(body :body_type) returns bytea language sql immutable return :to_bytes;

create function torture.note_file(id uuid, operation text) returns void
language sql
begin atomic
  select torture.note_row(f.row_id, f.version, operation, octet_length(f.body)) from torture.file_rows f where f.row_id = note_file.id;
end;

create function torture.insert_file(id uuid, name text, tenant uuid, body bytea, pointer uuid) returns boolean
language plpgsql as $$
begin
  insert into torture.file_rows (row_id, name, tenant_id, body, astray)
  values (insert_file.id, insert_file.name, tenant, insert_file.body, insert_file.body is null and pointer is not null);
  insert into public.files (name, tenant_id, body, body_artifact_id)
  values (insert_file.name, tenant, torture.body_of(insert_file.body), pointer);
  perform torture.note_file(id, 'insert');
  return true;
end
$$;

-- The row of the table, locked: what a save means depends on whether it is offloaded.
create function torture.hold_file(id uuid) returns public.files
language plpgsql as $$
declare
  file public.files;
begin
  select m.* into file from torture.file_rows f join public.files m on m.name = f.name where f.row_id = hold_file.id for update;
  if file.name is null then
    perform torture.require_found(not exists (select from torture.file_rows f where f.row_id = hold_file.id), id);
  end if;
  return file;
end
$$;

create function torture.expect_file(id uuid, body bytea, astray boolean, operation text) returns boolean
language plpgsql as $$
begin
  update torture.file_rows f set body = expect_file.body, astray = expect_file.astray, version = f.version + 1, unqueued = false
   where f.row_id = expect_file.id;
  perform torture.note_file(id, operation);
  return true;
end
$$;

create function torture.keep_file(id uuid, operation text) returns boolean
language plpgsql as $$
begin
  update torture.file_rows f set version = f.version + 1 where f.row_id = keep_file.id;
  perform torture.note_file(id, operation);
  return true;
end
$$;

-- A value wins over whatever pointer is written with it.
create function torture.write_file(id uuid, body bytea, pointer uuid) returns boolean
language plpgsql as $$
declare
  file public.files := torture.hold_file(id);
begin
  if file.name is null then return false; end if;
  update public.files m set body = torture.body_of(write_file.body), body_artifact_id = coalesce(pointer, m.body_artifact_id) where m.name = file.name;
  return torture.expect_file(id, write_file.body, false, 'write');
end
$$;

-- An ORM that saves what it has in hand, without knowing of the pointer.
create function torture.save_null(id uuid) returns boolean
language plpgsql as $$
declare
  file public.files := torture.hold_file(id);
begin
  if file.name is null then return false; end if;
  update public.files m set body = null, note = 'saved' where m.name = file.name;
  if file.body is null then return torture.keep_file(id, 'null over null'); end if;
  return torture.expect_file(id, null, false, 'null over a value');
end
$$;

create function torture.save_whole(id uuid) returns boolean
language plpgsql as $$
declare
  file public.files := torture.hold_file(id);
begin
  if file.name is null then return false; end if;
  update public.files m set (tenant_id, note, body, body_artifact_id) = (file.tenant_id, 'saved whole', file.body, file.body_artifact_id)
   where m.name = file.name;
  return torture.keep_file(id, 'full save');
end
$$;

create function torture.write_back_file(id uuid, body bytea, pointer uuid) returns boolean
language plpgsql as $$
declare
  file public.files := torture.hold_file(id);
begin
  if file.name is null then return false; end if;
  update public.files m set body = torture.body_of(write_back_file.body), body_artifact_id = pointer where m.name = file.name;
  return torture.keep_file(id, 'write back');
end
$$;

create function torture.clear_file(id uuid) returns boolean
language plpgsql as $$
declare
  file public.files := torture.hold_file(id);
begin
  if file.name is null then return false; end if;
  update public.files m set body = null, body_artifact_id = null where m.name = file.name;
  return torture.expect_file(id, null, false, 'clear');
end
$$;

create function torture.drop_pointer(id uuid) returns boolean
language plpgsql as $$
declare
  file public.files := torture.hold_file(id);
begin
  if file.name is null then return false; end if;
  update public.files m set body_artifact_id = null where m.name = file.name;
  if file.body is not null then return torture.keep_file(id, 'no pointer beside a value'); end if;
  return torture.expect_file(id, null, false, 'clear the pointer');
end
$$;

-- Null with anything appended is null, which over null changes nothing.
create function torture.append_file(id uuid, more bytea) returns boolean
language plpgsql as $$
declare
  file public.files := torture.hold_file(id);
begin
  if file.name is null then return false; end if;
  update public.files m set body = m.body || torture.body_of(more) where m.name = file.name;
  if file.body is null then return torture.keep_file(id, 'append to null'); end if;
  return torture.expect_file(id, (select f.body || more from torture.file_rows f where f.row_id = append_file.id), false, 'append');
end
$$;

-- An id that names nothing.
create function torture.point_file(id uuid, pointer uuid) returns boolean
language plpgsql as $$
declare
  file public.files := torture.hold_file(id);
begin
  if file.name is null then return false; end if;
  update public.files m set body = null, body_artifact_id = pointer where m.name = file.name;
  return torture.expect_file(id, null, true, 'an id of nothing');
end
$$;

-- The id of another row of the same tenant: both read the same from now on.
create function torture.adopt_file(id uuid) returns boolean
language plpgsql as $$
declare
  file public.files := torture.hold_file(id);
  theirs public.files;
  expected torture.file_rows;
begin
  select m.* into theirs from public.files m
   where m.tenant_id = file.tenant_id and m.name <> file.name and m.body is null and m.body_artifact_id is not null
   order by random() limit 1 for share skip locked;
  if theirs.name is null then return false; end if;
  select * into expected from torture.file_rows f where f.name = theirs.name;
  update public.files m set body = null, body_artifact_id = theirs.body_artifact_id where m.name = file.name;
  return torture.expect_file(id, expected.body, expected.astray, 'the id of ' || expected.row_id);
end
$$;

-- The id of another tenant's row: there is nothing to be read there.
create function torture.steal_file(id uuid) returns boolean
language plpgsql as $$
declare
  file public.files := torture.hold_file(id);
  stolen uuid;
begin
  select m.body_artifact_id into stolen from public.files m join torture.file_rows f on f.name = m.name
   where m.tenant_id <> file.tenant_id and m.body is null and m.body_artifact_id is not null and not f.astray limit 1;
  if file.name is null or stolen is null then return false; end if;
  update public.files m set body = null, body_artifact_id = stolen where m.name = file.name;
  return torture.expect_file(id, null, true, 'an id of another tenant');
end
$$;

create function torture.rename_file(id uuid, name text) returns boolean
language plpgsql as $$
declare
  file public.files := torture.hold_file(id);
begin
  if file.name is null then return false; end if;
  update public.files m set name = rename_file.name where m.name = file.name;
  update torture.file_rows f set name = rename_file.name, version = f.version + 1, unqueued = true where f.row_id = rename_file.id;
  perform torture.note_file(id, 'rename');
  return true;
end
$$;

create function torture.delete_file(id uuid) returns boolean
language plpgsql as $$
declare
  file public.files := torture.hold_file(id);
begin
  if file.name is null then return false; end if;
  perform torture.note_file(id, 'delete');
  delete from public.files m where m.name = file.name;
  delete from torture.file_rows f where f.row_id = delete_file.id;
  return true;
end
$$;

-- Deleted, and another one under its name.
create function torture.replace_file(id uuid, successor uuid, body bytea) returns boolean
language plpgsql as $$
declare
  file public.files := torture.hold_file(id);
begin
  if not torture.delete_file(id) then return false; end if;
  return torture.insert_file(successor, file.name, file.tenant_id, body, null);
end
$$;

grant all on torture.file_rows to public;
