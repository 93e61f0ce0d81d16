-- Functions of ours run with our owner's rights beside tables of others, and the daemon reads and rewrites those. Who
-- owns a table decides what runs there: casts and checks of its columns' types, policies, index expressions, triggers,
-- default values. So it must be somebody who could act as our owner anyway.
create or replace function lighter.is_trusted(role oid) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
return (select r.rolsuper or pg_has_role(r.oid, n.nspowner, 'member')
          from pg_roles r, pg_namespace n where r.oid = role and n.nspname = 'lighter');
comment on function lighter.is_trusted(oid) is 'Whether a role may act as the owner of schema lighter: itself, a member, or a superuser. Null when there is no such role.';
revoke all on function lighter.is_trusted(oid) from public;

create or replace function lighter.as_uuid(value text) returns uuid
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
return case
  -- The length first: a pattern is matched on a copy of four times the text's length.
  when octet_length(value) = 36 and value ~ '^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$' then value::uuid
end;
comment on function lighter.as_uuid(text) is 'The uuid that the text spells in canonical form, else null; never an error.';

-- Not by ->>, which renders whatever is there: an array of numbers of 31 KB can have 460 MB of text.
create or replace function lighter.as_uuid(value jsonb) returns uuid
language sql immutable strict parallel safe
set search_path = pg_catalog, pg_temp
return case jsonb_typeof(value) when 'string' then lighter.as_uuid(value #>> '{}') end;
comment on function lighter.as_uuid(jsonb) is 'The uuid that a JSON string spells in canonical form, else null; never an error.';

create or replace function lighter.effective_threshold(source lighter.sources) returns integer
language sql stable
set search_path = pg_catalog, pg_temp
return coalesce(source.threshold_bytes, (select s.threshold_bytes from lighter.settings s));
comment on function lighter.effective_threshold(lighter.sources) is
  'Phase 2 threshold of a source in bytes: its own, else the one of lighter.settings.';

-- What waits for company is not to wake a daemon.
create or replace function lighter.waits_for_others(source lighter.sources) returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
return (select coalesce(source.settle_for, s.settle_for) > interval '0' or coalesce(source.max_wait, s.max_wait) > interval '0'
          from lighter.settings s);
comment on function lighter.waits_for_others(lighter.sources) is
  'Whether rows of a source wait before they leave: until they are settled, or until their pack is worth a PUT.';

-- Room for each envelope value such that an envelope with all its keys stays below the threshold: what is left
-- after the pointers (names as JSON spells them, two uuids, the kind), shared evenly. The count of phase 1 has a
-- share: a row that the application has copied may have anything there.
create or replace function lighter.envelope_value_limit(source lighter.sources) returns integer
language sql stable
set search_path = pg_catalog, pg_temp
return (
  select (lighter.effective_threshold(source)
          - 200 - octet_length(source.phase2_kind) - 2 * coalesce(octet_length(to_json(source.phase1_field)::text), 0)
          - coalesce(sum(octet_length(to_json(k)::text) + 4), 0)::integer)
         / (count(*) + 1)::integer
    from unnest(source.envelope_keys) k
);
comment on function lighter.envelope_value_limit(lighter.sources) is
  'Longest envelope value in bytes of text; a longer one stays only in the artifact, so that an envelope never exceeds the threshold.';

create or replace function lighter.current_tenant() returns uuid
language sql stable
set search_path = pg_catalog, pg_temp
return lighter.as_uuid(current_setting('app.current_tenant_id', true));
comment on function lighter.current_tenant() is
  'The tenant on whose behalf the transaction runs: app.current_tenant_id; null when that names none.';
