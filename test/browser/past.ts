// Gives what was offloaded a minute ago a past of a month, so that there is something to see in the charts. The
// payloads, sizes and latencies are those that were measured; only when it was is made up.
import type { TestEnvironment } from '../support/environment.ts'

/** How busy the hours of a day are, from midnight (UTC) on. */
const rhythm = '{2,1,1,1,1,2,4,8,14,19,22,21,18,20,22,21,18,14,10,8,7,6,4,3}'

/** SQL: more of it in later days, as square roots of evenly spread numbers are. */
const sometime = (id: string) =>
  `now() - (1 - sqrt(((hashtext(${id}::text)::bigint + 2147483648) % 10000) / 10000.0)) * interval '29 days'`

export async function makePast({ admin }: TestEnvironment): Promise<void> {
  await admin.query(`
    update lighter.frames set created_at = ${sometime('coalesce(entities[1], id)')};
    update lighter.loose_artifacts set created_at = ${sometime('coalesce(entity_id, id)')};
    update lighter.objects o set stored_at = a.at
      from (select r2_key, max(created_at) as at from artifact_refs group by r2_key) a
     where a.r2_key = o.r2_key;
    with real as (
      select bucket, sum(jobs) as jobs, sum(sum(jobs)) over () as total
        from (select live, bucket, jobs from lighter.latency_hours
              union all select live, bucket, jobs from lighter.latency_changes) l
       where live group by bucket
    ),
    hours as (
      select h, 90 * ('${rhythm}'::int[])[extract(hour from h at time zone 'UTC')::int + 1]
                  * case when extract(isodow from h at time zone 'UTC') > 5 then 0.3 else 1 end
                  * (0.75 + (abs(hashtext(h::text)) % 500) / 1000.0) as jobs
        from generate_series(date_trunc('hour', now()) - interval '30 days', date_trunc('hour', now()) - interval '1 hour', '1 hour') h
    )
    insert into lighter.latency_hours (hour, live, bucket, jobs)
      -- A busy hour is a slower one, by a bucket or two.
      select h, true, (bucket + case when hours.jobs > 1600 then 3 when hours.jobs > 900 then 1 else 0 end)::smallint,
             round(hours.jobs * real.jobs / real.total)
        from hours cross join real
       where round(hours.jobs * real.jobs / real.total) > 0
      on conflict do nothing;
    insert into lighter.sweep_runs (sweep, started_at, finished_at, heartbeat_at, dry_run, counts, error)
      select s.sweep, at, at + s.seconds * interval '1 s', at + s.seconds * interval '1 s', false, s.counts::jsonb,
             case when s.sweep = 'verify' and n = 4 then 'the store can not be reached: connect ETIMEDOUT' end
        from (values ('orphans', interval '10 minutes', 0.1, '{"deleted": 0}'), ('rollup', interval '15 minutes', 0.2, '{"storage_entries": 812, "latency_entries": 96}'),
                     ('compaction', interval '1 hour', 3.4, '{"packs": 12, "rewritten": 3}'), ('retention', interval '1 day', 1.9, '{"expired": 214}'),
                     ('verify', interval '1 day', 21.0, '{"checked": 1000, "damaged": 0}'), ('vacuum', interval '1 day', 6.2, '{"tables": 1}'),
                     ('release', interval '7 days', 44.0, '{"released": 31}')) s(sweep, every, seconds, counts)
       cross join generate_series(1, 14) n
       cross join lateral (select now() - n * s.every as at) a
       where n * s.every < interval '80 days';`)
}
