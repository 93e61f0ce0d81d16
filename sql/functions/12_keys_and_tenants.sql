-- The text form of a row's key, and the uuid of a tenant that is named by a text. Both are formats: docs/formats.md. Also in
-- src/source/row-key.ts and src/source/tenant-id.ts.

create or replace function lighter.row_key(variadic parts text[]) returns text
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
return case when array_position(parts, null) is not null or cardinality(parts) = 0 then null
            when cardinality(parts) = 1 then parts[1]
            else array_to_json(parts)::text end;
comment on function lighter.row_key(text[]) is
  'Text form of a row''s key: of one column its text, of several a JSON array of their texts. Null where one is null: ["acme","7"] in the example.'
  ' Example: select lighter.row_key(''acme'', ''7'');';

-- By a pattern, not by catching what json says: a sub-transaction is refused where a plan runs in parallel.
create or replace function lighter.row_key_parts(key text, columns integer) returns text[]
language plpgsql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
  parts text[];
begin
  if columns = 1 then
    return array[key];
  end if;
  if key !~ '^\["(?:[^"\\\x01-\x1f]|\\["\\bfnrt]|\\u00(?:0[1-9a-f]|1[0-9a-f]))*"(?:,"(?:[^"\\\x01-\x1f]|\\["\\bfnrt]|\\u00(?:0[1-9a-f]|1[0-9a-f]))*")*\]$' then
    return null;
  end if;
  -- Without escapes nothing but the separators has a quote.
  if position('\' in key) = 0 then
    parts := string_to_array(substr(key, 3, length(key) - 4), '","');
    -- Of an empty text string_to_array makes no element.
    if parts = '{}' then
      parts := '{""}';
    end if;
  else
    parts := array(select p.value from json_array_elements_text(key::json) with ordinality p(value, n) order by p.n);
  end if;
  -- One key has one text form: what is written in another way is none.
  return case when cardinality(parts) = columns and lighter.row_key(variadic parts) = key then parts end;
end
$$;
comment on function lighter.row_key_parts(text, integer) is
  'The texts of a key''s columns, of which there are so many, in their order; null when it is not the text form of such a key.';

-- Without a search_path of its own, which a body that is parsed now does not need: so it is inlined, and takes 2 us, not 17.
create or replace function lighter.tenant_of(namespace uuid, name text) returns uuid
language sql immutable strict parallel safe
return overlay(overlay(encode(substr(sha256(uuid_send(namespace) || convert_to(name, 'UTF8')), 1, 16), 'hex') placing '8' from 13 for 1)
  placing translate(substr(encode(substr(sha256(uuid_send(namespace) || convert_to(name, 'UTF8')), 9, 1), 'hex'), 1, 1),
                    '0123456789abcdef', '89ab89ab89ab89ab') from 17 for 1)::uuid;
comment on function lighter.tenant_of(uuid, text) is
  'The uuid of a tenant that is named by a text, within a namespace: UUIDv8 of the SHA-256 of both (RFC 9562, B.2).';
