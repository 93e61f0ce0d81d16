-- A table that is detached and attached again is another source. What came off it before is still its own.
create table lighter.former_sources (
  id integer primary key,
  relation regclass not null,
  json_column name not null,
  json_attnum smallint,
  relation_oid oid,
  phase1_field text,
  rows_deleted boolean not null default false,
  detached_at timestamptz not null default now()
);
comment on table lighter.former_sources is
  'Sources that were detached, so that the artifacts of their rows are released again once the same column is attached. Written by lighter.detach.';
comment on column lighter.former_sources.id is 'lighter.sources.id as it was; artifact_refs.source_id of what came off it.';
comment on column lighter.former_sources.json_attnum is 'Number of json_column in the table relation_oid.';
comment on column lighter.former_sources.relation_oid is 'For which table json_attnum holds.';
comment on column lighter.former_sources.rows_deleted is
  'Somebody said so, by lighter.forget_missing: what came off its rows is released, unless another row points to it.';
comment on column lighter.former_sources.phase1_field is 'Rows may still hold the pointer of this name.';

-- What a release sweep has come across: rows that point to another tenant's artifacts.
create table lighter.moved_row_records (
  source_id integer not null,
  row_id text not null,
  tenant_id uuid,
  artifact_tenant_id uuid not null,
  artifact_id uuid not null,
  found_at timestamptz not null default now(),
  primary key (source_id, row_id)
);
comment on table lighter.moved_row_records is
  'Rows that point to an artifact of another tenant, as the last release sweep found them, a thousand at most. See lighter.moved_rows.';
comment on column lighter.moved_row_records.tenant_id is 'Of the row now; null when none is found.';

-- What is alive, by tenant and kind in the order of time: for lists, and for the retention sweep, which with the full
-- index walked past every tombstone that is still remembered, each night anew. Where the table is ours it takes the
-- place of the full one, so that an insert writes as many indexes as before. Where it was the application's the full
-- one stays: statements of its own may count on it.
create index if not exists artifact_refs_live
  on public.artifact_refs (tenant_id, kind, created_at desc) where deleted_at is null;
do $$
begin
  if (select array_agg(a.attname::text order by k.place)
        from pg_index i
       cross join lateral unnest(i.indkey::int2[]) with ordinality k(attnum, place)
        join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
       where i.indrelid = 'public.artifact_refs'::regclass and i.indisprimary) = array['tenant_id', 'id']
  then
    drop index if exists public.idx_artifact_refs_tenant_kind_created;
  end if;
end
$$;
