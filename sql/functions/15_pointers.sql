-- Pointers inside documents. The offload, its commit, the sweeps and restore all ask these, so that they agree on what
-- a pointer is. Also in src/artifacts/pointer-elements.ts, for readers.

-- At any depth: applications wrap documents into others. Each path finds the values of one pointer's name.
create or replace function lighter.pointers_in(doc jsonb, paths jsonpath[]) returns uuid[]
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  path jsonpath;
  found jsonb;
  ids uuid[] := '{}';
  id uuid;
begin
  if doc is null then
    return ids;
  end if;
  foreach path in array paths loop
    found := jsonb_path_query_array(doc, path);
    -- Of few, as nearly always, expressions alone take a fifth of the time of a query.
    if jsonb_array_length(found) > 20 then
      return array(
        select distinct p.id
          from unnest(paths) each_path cross join jsonb_path_query(doc, each_path) v
         cross join lateral (select coalesce(lighter.as_uuid(v #>> '{}'), lighter.stub_id(v #>> '{}')) as id) p
         where p.id is not null);
    end if;
    for i in 0 .. jsonb_array_length(found) - 1 loop
      id := coalesce(lighter.as_uuid(found ->> i), lighter.stub_id(found ->> i));
      -- (What is null is unequal to all of nothing.)
      if id is not null and id <> all (ids) then
        ids := ids || id;
      end if;
    end loop;
  end loop;
  return ids;
exception when statement_too_complex then
  -- Nested deeper than a path can follow (some 10,000 levels). Its text tells of at least as many pointers.
  return array(
    select distinct lighter.as_uuid(m[1])
      from regexp_matches(doc::text, '": \\*"([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})', 'g') m);
end
$$;
comment on function lighter.pointers_in(jsonb, jsonpath[]) is
  'Ids that the pointers in a document spell, at any depth, each once.';

-- An element of an array is a pointer when it is an object with a uuid under artifact_metadata_ref. Strict: a lax path
-- would take nested arrays apart.
create or replace function lighter.array_pointers(doc jsonb) returns uuid[]
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select array(
    select distinct lighter.as_uuid(e ->> 'artifact_metadata_ref')
      from jsonb_path_query(doc, 'strict $[*] ? (@.type() == "object" && @.artifact_metadata_ref like_regex "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$")') e)
   where jsonb_typeof(doc) = 'array';
$$;
comment on function lighter.array_pointers(jsonb) is 'Ids of the elements of an array that are pointers, each once; null when it is no array.';

create or replace function lighter.array_rest(doc jsonb) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select case
    when cardinality(lighter.array_pointers(doc)) = 0 then doc
    else jsonb_path_query_array(doc, 'strict $[*] ? (!(@.type() == "object" && @.artifact_metadata_ref like_regex "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$")
      || (@.type() == "object" && @.artifact_metadata_ref like_regex "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$") is unknown)')
  end;
$$;
comment on function lighter.array_rest(jsonb) is 'The elements of an array that are no pointers: what is offloaded of it.';

-- Each run of elements between pointers becomes one pointer: to the whole artifact, or, of several runs, to its share.
create or replace function lighter.array_envelope(doc jsonb, artifact uuid, kind text) returns jsonb
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select case when cardinality(lighter.array_pointers(doc)) = 0
    then jsonb_build_array(jsonb_build_object('artifact_metadata_ref', artifact, 'artifact_metadata_kind', kind,
                                              'artifact_metadata_count', jsonb_array_length(doc)))
    else (
      with elements as (
        select e.n, p.pointer,
               count(*) filter (where p.pointer is null) over (order by e.n) as taken,
               count(*) filter (where p.pointer is not null) over (order by e.n) as run
          from jsonb_array_elements(doc) with ordinality e(value, n)
         cross join lateral (
           select case when jsonb_typeof(e.value) = 'object' and jsonb_typeof(e.value -> 'artifact_metadata_ref') = 'string'
                        and lighter.as_uuid(e.value ->> 'artifact_metadata_ref') is not null then e.value end as pointer) p
      ),
      runs as (
        select min(n) as n, count(*) as elements, min(taken) - 1 as skipped, count(*) over () as all_runs
          from elements where pointer is null group by run
      )
      select jsonb_agg(parts.part order by parts.n)
        from (
          select n, pointer as part from elements where pointer is not null
          union all
          select n, jsonb_build_object('artifact_metadata_ref', artifact, 'artifact_metadata_kind', kind,
                                       'artifact_metadata_count', elements)
                    || case when all_runs > 1 then jsonb_build_object('artifact_metadata_from', skipped) else '{}' end
            from runs) parts)
  end;
$$;
comment on function lighter.array_envelope(jsonb, uuid, text) is
  'What stays of an array in its row: its pointers, and in the place of each run between them a pointer to the artifact.';

-- Along payloads that point on, each artifact once. A row that has its own field does not read that of its payloads.
create or replace function lighter.payload_bytes(tenant uuid, ids uuid[], with_fields boolean) returns bigint
language sql stable
set search_path = pg_catalog, pg_temp
as $$
  with recursive needed (id) as (
    select unnest(ids)
     union
    select next.id
      from needed n
      join public.artifact_refs a on a.tenant_id = tenant and a.id = n.id and a.frame_id = lighter.frame_of(n.id)
     cross join lateral unnest(a.refers_to) r(id)
      join public.artifact_refs next on next.tenant_id = tenant and next.id = r.id and next.frame_id = lighter.frame_of(r.id)
     where with_fields or next.field is null
  )
  select coalesce(sum(a.size_bytes), 0)::bigint
    from needed n join public.artifact_refs a on a.tenant_id = tenant and a.id = n.id and a.frame_id = lighter.frame_of(n.id);
$$;
comment on function lighter.payload_bytes(uuid, uuid[], boolean) is 'Length of all payloads of a tenant that these ids lead to, in bytes.';

-- A column that holds values, not documents. A stub is this text, so that little else is taken for one; whether it counts is
-- told by the artifact. A program that reads JSON and saves it again writes other white space, so that may be any. By its
-- length first: of a long value nothing is opened. Also in src/artifacts/stub.ts.
create or replace function lighter.stub_of(artifact uuid) returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
return '{"artifact_ref": "' || artifact || '"}';
comment on function lighter.stub_of(uuid) is 'What stays of a value in a column of mode stub: its text.';

create or replace function lighter.stub_id(value text) returns uuid
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
return case
  when octet_length(value) between 55 and 128
  then (substring(value collate "C" from
    '^[ \t\n\r]*\{[ \t\n\r]*"artifact_ref"[ \t\n\r]*:[ \t\n\r]*"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"[ \t\n\r]*\}[ \t\n\r]*$'))::uuid
end;
comment on function lighter.stub_id(text) is 'The id in a text that is a stub, with any white space, else null; never an error.';

-- As src/artifacts/pointers-in-payload.ts does it of payloads. More may be found than is a pointer: that keeps an
-- artifact longer than it need be. Names that are written with escapes may be any.
create or replace function lighter.pointers_in_text(value text, columns text[]) returns uuid[]
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  -- A pattern is matched on a copy of four times the text's length, so a long text is searched in pieces.
  piece_bytes constant integer := 8 * 1024 * 1024;
  overlap constant integer := 1024;
  has_escapes constant boolean := strpos(value collate "C", '\u') > 0;
  pattern constant text := case when has_escapes then '' else
      '(?:' || array_to_string(array['_ref'] || array(select regexp_replace(c, '[^[:alnum:]_]', '\\\&', 'g') from unnest(columns) c), '|') || ')\\*"\s*' end
    || ':\s*\\*"([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})\\*"';
  bytes bytea;
begin
  if value is null or not has_escapes and not exists (
       select from unnest(array['_ref'] || columns) name
        where strpos(value collate "C", name || '"') > 0 or strpos(value collate "C", name || '\') > 0) then
    return case when value is not null then '{}'::uuid[] end;
  end if;
  if octet_length(value) <= piece_bytes then
    return array(select distinct lighter.as_uuid(m[1]) from regexp_matches(value collate "C", pattern, 'g') m);
  end if;
  -- As bytes: the n-th character of a text is found by counting. What is no ASCII comes out as digits.
  bytes := convert_to(value, 'UTF8');
  return array(
    select distinct lighter.as_uuid(m[1])
      from generate_series(1, octet_length(bytes), piece_bytes) as pieces(first_byte)
     cross join lateral regexp_matches(encode(substr(bytes, pieces.first_byte, piece_bytes + overlap), 'escape') collate "C", pattern, 'g') m);
end
$$;
comment on function lighter.pointers_in_text(text, text[]) is 'Ids that pointers in a text of JSON may spell, at any depth, also in JSON that is a string of it, each once; null of null. columns: names of pointer columns.';
