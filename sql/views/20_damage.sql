create or replace view lighter.damaged_artifacts with (security_invoker = true) as
  select a.tenant_id, a.id, a.kind, a.entity_type, a.entity_id, regexp_replace(s.relation::text, '^public\.', '') as source, a.row_id, a.r2_key,
         a.size_bytes, a.damaged_at, a.damage
    from lighter.artifacts a
    left join lighter.sources s on s.id = a.source_id
   where a.damaged_at is not null and a.purged_at is null;
comment on view lighter.damaged_artifacts is
  'Artifacts that a verify sweep could not read back as they were stored, and what it found; one that is found well again leaves the view.';
