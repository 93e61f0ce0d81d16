-- What columns hold whose names are not all that is to be said, and that neither a migration nor a view describes.
-- The reference (docs/sql-reference.md) is made from these.
do $$
declare
  described record;
begin
  for described in
    select r.relation::regclass as relation, c.column_name, c.meaning
      from (values
        ('public.artifact_refs', 'id', 'What a pointer holds: a UUIDv7, so that ids grow with time.'),
        ('public.artifact_refs', 'tenant_id', 'The tenant. Its objects lie under tenants/<tenant>/ and nowhere else.'),
        ('public.artifact_refs', 'kind', 'What it is, such as assistant_message_tool_interactions.'),
        ('public.artifact_refs', 'entity_type', 'What it belongs to, such as conversation.'),
        ('public.artifact_refs', 'entity_id', 'The id of that.'),
        ('public.artifact_refs', 'content_type', 'Media type of the payload.'),
        ('public.artifact_refs', 'created_by', 'Who stored it, where the application or the API said so.'),
        ('public.artifact_refs', 'created_at', 'When its row was written; retention counts from here.'),

        ('lighter.sources lighter.erasures lighter.backfills lighter.sweep_runs lighter.retention_policies lighter.storage_changes lighter.latency_changes', 'id', 'The key.'),
        ('lighter.sources', 'relation', 'The table.'),
        ('lighter.sources', 'json_column', 'The jsonb column that is watched.'),
        ('lighter.sources', 'key_type', 'Type of the primary key.'),
        ('lighter.sources', 'parent_key_column', 'Column of parent_relation that parent_column refers to.'),
        ('lighter.sources', 'entity_type', 'What artifacts of this source belong to: artifact_refs.entity_type.'),
        ('lighter.sources', 'phase1_kind', 'Kind of the artifacts of that field.'),
        ('lighter.sources', 'phase2_kind', 'Kind of the artifacts that hold the whole metadata.'),
        ('lighter.sources', 'attached_at', 'When it was attached.'),

        ('lighter.jobs lighter.failed_jobs lighter.gone_rows lighter.backfills lighter.pins lighter.failures lighter.queue_health', 'source_id', 'lighter.sources.id.'),
        ('lighter.jobs lighter.failed_jobs lighter.gone_rows lighter.failures lighter.damaged_artifacts', 'row_id', 'Primary key of the row, as text.'),
        ('lighter.jobs lighter.failed_jobs lighter.failures', 'enqueued_at', 'When the transaction that queued it began.'),
        ('lighter.jobs', 'last_error', 'Why the last attempt failed; null: none has.'),
        ('lighter.failed_jobs lighter.failures', 'attempts', 'How often it was tried.'),
        ('lighter.failed_jobs lighter.failures', 'failed_at', 'When it was given up.'),
        ('lighter.failed_jobs lighter.failures', 'last_error', 'Why.'),
        ('lighter.failures lighter.queue_health lighter.damaged_artifacts', 'source', 'The table that it came from.'),
        ('lighter.pins', 'pinned_at', 'When it was restored.'),

        ('lighter.objects lighter.legal_holds lighter.idempotency_keys lighter.tenants lighter.erasures lighter.storage_days lighter.storage_changes lighter.storage_entries lighter.storage_recount lighter.storage_by_tenant lighter.retention_due lighter.damaged_artifacts', 'tenant_id', 'The tenant.'),
        ('lighter.objects', 'r2_key', 'The key, with the prefix.'),
        ('lighter.objects', 'kind', 'Kind of the artifacts in it.'),
        ('lighter.objects', 'content_type', 'As the store has it.'),
        ('lighter.objects', 'content_encoding', 'zstd, gzip, or null when stored as it is.'),
        ('lighter.objects', 'created_at', 'When it was registered, before its first byte was sent.'),
        ('lighter.objects', 'stored_at', 'When it was committed; null: it is not.'),

        ('lighter.tenants lighter.storage_by_tenant', 'plan', 'standard or premium: which retention policies hold.'),
        ('lighter.tenants lighter.storage_by_tenant', 'legal_hold', 'Nothing of the tenant may be deleted or expire.'),
        ('lighter.legal_holds lighter.erasures lighter.damaged_artifacts', 'entity_id', 'The id of the entity.'),
        ('lighter.legal_holds lighter.damaged_artifacts', 'entity_type', 'What the artifacts belong to, such as conversation.'),
        ('lighter.legal_holds', 'reason', 'Why, for people.'),
        ('lighter.legal_holds', 'created_at', 'Since when.'),
        ('lighter.retention_policies', 'plan', 'Only for tenants on this plan; null: all.'),
        ('lighter.retention_policies', 'tenant_id', 'Only for this tenant; null: all.'),
        ('lighter.retention_policies', 'kind', 'Only for artifacts of this kind; null: all.'),
        ('lighter.idempotency_keys', 'key', 'As the client sent it.'),
        ('lighter.idempotency_keys', 'created_at', 'When it was first used; after 24 hours it is forgotten.'),

        ('lighter.installation lighter.settings lighter.prices', 'singleton', 'Always true: there is one row.'),
        ('lighter.installation', 'id', 'Made when the schema was.'),
        ('lighter.installation', 'created_at', 'When the schema was made.'),
        ('lighter.schema_migrations', 'name', 'The file, with its folder.'),
        ('lighter.schema_migrations', 'checksum', 'SHA-256 of the file as it was applied.'),
        ('lighter.schema_migrations', 'applied_at', 'When it was applied last.'),
        ('lighter.schema_migrations', 'applied_by', 'As which role.'),

        ('lighter.backfills', 'tenant_id', 'Only rows of this tenant; null: of all.'),
        ('lighter.backfills', 'age_column', 'Column that older_than is about.'),
        ('lighter.backfills lighter.erasures lighter.sweep_cursors lighter.sweep_runs lighter.sweep_history', 'started_at', 'When it began.'),
        ('lighter.backfills lighter.sweep_cursors', 'updated_at', 'When it last came further.'),
        ('lighter.backfills lighter.sweep_runs lighter.sweep_history', 'finished_at', 'When it ended; null: it runs, or its process died.'),
        ('lighter.erasures lighter.sweep_runs lighter.sweep_history', 'counts', 'What it did, by name.'),
        ('lighter.sweep_cursors', 'sweep', 'The sweep.'),
        ('lighter.sweep_cursors', 'id', 'The last artifact that was looked at.'),
        ('lighter.sweep_runs lighter.sweep_history', 'sweep', 'Which one; orphans-deep for a listing of the bucket.'),
        ('lighter.sweep_runs lighter.sweep_history', 'dry_run', 'It only found out what it would do.'),
        ('lighter.sweep_runs lighter.sweep_history', 'error', 'Why it failed; null: it did not.'),
        ('lighter.sweep_history', 'seconds', 'How long it ran, or has run so far.'),
        ('lighter.sweep_history', 'outcome', 'done, failed, or running.'),

        ('lighter.latency_changes lighter.latency_hours lighter.offload_latency', 'hour', 'The hour of the commits.'),
        ('lighter.latency_changes', 'live', 'As in lighter.latency_hours.'),
        ('lighter.latency_changes', 'bucket', 'As in lighter.latency_hours.'),
        ('lighter.latency_changes lighter.latency_hours', 'jobs', 'How many rows.'),
        ('lighter.offload_latency', 'queue', 'live: written by the application; backfill: queued by lighter backfill.'),
        ('lighter.offload_latency', 'rows', 'Rows offloaded in that hour.'),
        ('lighter.offload_latency', 'p50_ms', 'Half of them took no longer.'),
        ('lighter.offload_latency', 'p95_ms', '95 of 100 took no longer.'),
        ('lighter.offload_latency', 'p99_ms', '99 of 100 took no longer.'),
        ('lighter.offload_latency', 'max_ms', 'None took longer.'),

        ('lighter.storage_days lighter.storage_totals lighter.storage_changes lighter.storage_entries lighter.storage_total_entries lighter.storage_recount lighter.storage_by_kind lighter.storage_by_day lighter.retention_due lighter.pack_health lighter.damaged_artifacts', 'kind', 'Kind of the artifacts.'),
        ('lighter.storage_days lighter.storage_totals lighter.storage_changes lighter.storage_entries lighter.storage_total_entries lighter.storage_recount lighter.storage_by_day', 'day', 'Day (UTC): of created_at for artifacts, of stored_at for objects.'),
        ('lighter.request_days', 'day', 'Day (UTC) on which the objects were stored.'),
        ('lighter.request_days', 'class_a', 'Class A operations.'),
        ('lighter.storage_totals lighter.storage_changes lighter.storage_entries lighter.storage_total_entries lighter.storage_recount lighter.storage_by_kind lighter.storage_by_tenant lighter.storage_by_day lighter.savings', 'artifacts', 'Live artifacts.'),
        ('lighter.storage_totals lighter.storage_changes lighter.storage_entries lighter.storage_total_entries lighter.storage_recount lighter.storage_by_kind lighter.storage_by_tenant lighter.storage_by_day lighter.savings', 'payload_bytes', 'Their uncompressed bytes.'),
        ('lighter.storage_totals lighter.storage_changes lighter.storage_entries lighter.storage_total_entries lighter.storage_recount lighter.storage_by_kind lighter.storage_by_tenant', 'deleted_artifacts', 'Artifacts with a tombstone that could still be brought back.'),
        ('lighter.storage_totals lighter.storage_changes lighter.storage_entries lighter.storage_total_entries lighter.storage_recount lighter.storage_by_kind lighter.storage_by_tenant', 'deleted_bytes', 'Their uncompressed bytes.'),
        ('lighter.storage_totals lighter.storage_changes lighter.storage_entries lighter.storage_total_entries lighter.storage_recount lighter.storage_by_kind lighter.storage_by_tenant lighter.storage_by_day lighter.savings lighter.pack_health', 'objects', 'Stored objects.'),
        ('lighter.storage_totals lighter.storage_changes lighter.storage_entries lighter.storage_total_entries lighter.storage_recount lighter.storage_by_kind lighter.storage_by_tenant lighter.storage_by_day lighter.savings lighter.pack_health', 'object_bytes', 'Their bytes in the bucket.'),
        ('lighter.storage_totals lighter.storage_changes lighter.storage_entries lighter.storage_total_entries lighter.storage_recount lighter.pack_health', 'packs', 'Those of them that were written with more than one artifact.'),
        ('lighter.storage_totals lighter.storage_changes lighter.storage_entries lighter.storage_total_entries lighter.storage_recount lighter.pack_health', 'written_artifacts', 'Artifacts written into them.'),
        ('lighter.storage_totals lighter.storage_changes lighter.storage_entries lighter.storage_total_entries lighter.storage_recount lighter.pack_health', 'written_bytes', 'Uncompressed bytes written into them, as far as known.'),
        ('lighter.storage_totals lighter.storage_changes lighter.storage_entries lighter.storage_total_entries lighter.storage_recount lighter.pack_health', 'live_artifacts', 'Artifacts in them that are not purged.'),
        ('lighter.storage_totals lighter.storage_changes lighter.storage_entries lighter.storage_total_entries lighter.storage_recount lighter.pack_health', 'live_bytes', 'Their uncompressed bytes, as far as known.'),
        ('lighter.storage_by_kind', 'oldest', 'First day (UTC) with a live artifact.'),
        ('lighter.storage_by_kind', 'newest', 'Last day (UTC) with a live artifact.'),
        ('lighter.retention_due', 'artifacts', 'How many the next retention sweep lets expire.'),
        ('lighter.retention_due', 'payload_bytes', 'Their uncompressed bytes.'),
        ('lighter.retention_due', 'oldest', 'Day (UTC) of the oldest.'),
        ('lighter.pack_health', 'loose', 'Objects that were written with one artifact.'),
        ('lighter.pack_health', 'avg_object_bytes', 'Bytes of an object in the bucket, on average.'),
        ('lighter.pack_health', 'artifacts_per_object', 'Artifacts written into an object, on average.'),
        ('lighter.pack_health', 'live_share', 'live_bytes of written_bytes.'),
        ('lighter.pack_health', 'partly_dead', 'Objects in which something is purged: work for compaction.'),
        ('lighter.pack_health', 'deleting', 'Objects on their way out.'),
        ('lighter.pack_health', 'deleting_bytes', 'Their bytes in the bucket.'),
        ('lighter.pack_health', 'uploading', 'Objects registered and not committed yet.'),
        ('lighter.pack_health', 'orphans', 'Those of them that are past their lease.'),
        ('lighter.queue_health', 'depth', 'Jobs, whatever their state.'),
        ('lighter.queue_health', 'due', 'Jobs that a daemon would claim now.'),
        ('lighter.queue_health', 'in_flight', 'Jobs that a daemon has claimed.'),
        ('lighter.queue_health', 'retrying', 'Jobs of which an attempt failed.'),
        ('lighter.queue_health', 'oldest_seconds', 'Age of the oldest job; null: there is none.'),
        ('lighter.queue_health', 'failed', 'Dead letters.'),
        ('lighter.queue_health', 'exact', 'False: depth and due are estimates, since the queue is long.'),
        ('lighter.queue_health', 'paused', 'Jobs are kept but not claimed.'),
        ('lighter.savings', 'storage_usd_per_month', 'The bucket, a month.'),
        ('lighter.savings', 'class_a_last_30_days', 'Class A operations of the last 30 days.'),
        ('lighter.savings', 'class_a_usd_last_30_days', 'What they cost.'),
        ('lighter.savings', 'bookkeeping_bytes', 'What Postgres holds instead: artifact_refs with its indexes, and all of ours.'),
        ('lighter.savings', 'bookkeeping_usd_per_month', 'What that costs.'),
        ('lighter.savings', 'inline_bytes', 'What the payloads would take in their rows.'),
        ('lighter.savings', 'inline_usd_per_month', 'What that would cost.'),
        ('lighter.savings', 'usd_per_month', 'All that it costs as it is.'),
        ('lighter.savings', 'saved_usd_per_month', 'inline_usd_per_month less that.'),
        ('lighter.savings', 'break_even_reads_per_month', 'As many reads from the bucket would cost what is saved.'),
        ('lighter.savings', 'r2_gb_month', 'Of lighter.prices.'),
        ('lighter.savings', 'r2_class_a_million', 'Of lighter.prices.'),
        ('lighter.savings', 'r2_class_b_million', 'Of lighter.prices.'),
        ('lighter.savings', 'database_gb_month', 'Of lighter.prices.'),
        ('lighter.savings', 'inline_ratio', 'Of lighter.prices.'),
        ('lighter.damaged_artifacts', 'id', 'The artifact.'),
        ('lighter.damaged_artifacts', 'r2_key', 'Key of the object that should hold it.'),
        ('lighter.damaged_artifacts', 'size_bytes', 'Length of the uncompressed payload, in bytes.'),
        ('lighter.damaged_artifacts', 'damaged_at', 'When that was found.'),
        ('lighter.damaged_artifacts', 'damage', 'What was found.')
      ) as c(relations, column_name, meaning)
     cross join string_to_table(c.relations, ' ') as r(relation)
  loop
    -- An adopted table may say what its columns are in its own words.
    continue when described.relation = 'public.artifact_refs'::regclass
      and exists (
        select from pg_attribute a
         where a.attrelid = described.relation and a.attname = described.column_name
           and col_description(a.attrelid, a.attnum) is not null);
    execute format('comment on column %s.%I is %L', described.relation, described.column_name, described.meaning);
  end loop;
end
$$;

comment on table lighter.schema_migrations is 'Which files of sql/ have been applied.';
