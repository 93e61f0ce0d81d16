// Rollup: adds up what triggers and commits have appended to the logs of the reports. The reports add the logs to
// the sums by themselves, so they are exact before, after and without it; it keeps them fast. And it gives back the space
// of what is empty then.
//
// Each batch is one transaction that takes entries out of a log and adds them to the sums: whoever reads sees them
// here or there, a run that dies has done whole batches or nothing of them, and one that runs twice finds nothing.
import { inTransactionWithRetry, type Queryable } from '../db/pool.ts'
import { beginSql } from '../db/prepared.ts'
import type { Counts, SweepContext } from './context.ts'

/** Entries of a log taken at once. */
const batchEntries = 10_000
/** What lighter.offload_latency and lighter.sweep_history go back to. */
const latencyDays = 31
const historyDays = 90

/** What an entry and a sum consist of. */
const sums = [
  'artifacts',
  'payload_bytes',
  'deleted_artifacts',
  'deleted_bytes',
  'objects',
  'object_bytes',
  'packs',
  'written_artifacts',
  'written_bytes',
  'live_artifacts',
  'live_bytes',
]
const each = (of: (name: string) => string, separator = ', ') => sums.map(of).join(separator)
/** A sum of bytes that somebody has made up may be any number: it ends where bigint does, and the rollup goes on. */
const bounded = (sum: string) => `least(greatest(${sum}, -9223372036854775807), 9223372036854775807)::bigint`

export interface RollupOptions {
  /** Counts all artifacts and objects anew and corrects what differs: after somebody has kept the triggers from firing. */
  full?: boolean
}

export async function sweepRollup(context: SweepContext, options: RollupOptions = {}): Promise<Counts> {
  const counts: Counts = {}
  if (options.full) counts.corrected = await correct(context)
  if (context.dryRun) {
    const { rows } = await context.pool.query<{ storage: number; latency: number }>(
      `select (select count(*)::int from lighter.storage_changes) as storage,
              (select count(*)::int from lighter.latency_changes) as latency`,
    )
    counts.storage_entries = rows[0]?.storage ?? 0
    counts.latency_entries = rows[0]?.latency ?? 0
    return counts
  }
  await repeat(context, counts, 'storage_entries', addStorage)
  await repeat(context, counts, 'latency_entries', addLatency)
  if (!context.signal.aborted) await forget(context, counts)
  if (!context.signal.aborted) await giveBackSpace(context, counts)
  return counts
}

async function repeat(
  context: SweepContext,
  counts: Counts,
  name: string,
  batch: (db: Queryable) => Promise<number>,
): Promise<void> {
  counts[name] = 0
  while (!context.signal.aborted) {
    const entries = await inTransactionWithRetry(context.pool, batch)
    counts[name] += entries
    context.onProgress(counts)
    if (entries < batchEntries) return
  }
}

async function addStorage(db: Queryable): Promise<number> {
  const { rows } = await db.query<{ entries: number; empty: boolean }>({
    text: `
      with taken as (
        delete from lighter.storage_changes c
         where c.id in (select id from lighter.storage_changes order by id limit $1)
        returning c.*
      ),
      added as (
        insert into lighter.storage_days as d (tenant_id, kind, day, ${each(name => name)})
        select tenant_id, kind, day, ${each(name => bounded(`coalesce(sum(${name}), 0)`))}
          from taken
         group by tenant_id, kind, day
         order by tenant_id, kind, day
            on conflict (tenant_id, kind, day) do update
           set ${each(name => `${name} = ${bounded(`d.${name}::numeric + excluded.${name}`)}`)}
        returning ${each(name => `${name} = 0`, ' and ')} as empty
      ),
      totals as (
        insert into lighter.storage_totals as d (kind, day, ${each(name => name)})
        select kind, day, ${each(name => bounded(`coalesce(sum(${name}), 0)`))}
          from taken
         group by kind, day
         order by kind, day
            on conflict (kind, day) do update
           set ${each(name => `${name} = ${bounded(`d.${name}::numeric + excluded.${name}`)}`)}
      ),
      requests as (
        insert into lighter.request_days as r (day, class_a)
        select day, sum(class_a) from taken where class_a is not null group by day order by day
            on conflict (day) do update set class_a = r.class_a + excluded.class_a
      )
      select (select count(*)::int from taken) as entries, (select coalesce(bool_or(empty), false) from added) as empty`,
    values: [batchEntries],
  })
  // A day of which nothing is left, or a tenant. Rare: it reads all sums.
  if (rows[0]?.empty === true) {
    await db.query(`delete from lighter.storage_days where ${each(name => `${name} = 0`, ' and ')}`)
    await db.query(`delete from lighter.storage_totals where ${each(name => `${name} = 0`, ' and ')}`)
  }
  return rows[0]?.entries ?? 0
}

async function addLatency(db: Queryable): Promise<number> {
  const { rows } = await db.query<{ entries: number }>({
    text: `
      with taken as (
        delete from lighter.latency_changes c
         where c.id in (select id from lighter.latency_changes order by id limit $1)
        returning c.*
      ),
      added as (
        insert into lighter.latency_hours as h (hour, live, bucket, jobs)
        select hour, live, bucket, sum(jobs) from taken group by hour, live, bucket order by hour, live, bucket
            on conflict (hour, live, bucket) do update set jobs = h.jobs + excluded.jobs
      )
      select count(*)::int as entries from taken`,
    values: [batchEntries],
  })
  return rows[0]?.entries ?? 0
}

/** The queue, too: what was long once would keep its files for ever. A transaction for each: none holds the lock of two. */
async function giveBackSpace({ pool }: SweepContext, counts: Counts): Promise<void> {
  let bytes = 0
  for (const table of [
    'lighter.inbox',
    'lighter.waiting',
    'lighter.leases',
    'lighter.storage_changes',
    'lighter.latency_changes',
  ]) {
    const { rows } = await pool.query<{ bytes: number }>(
      'select lighter.give_back_space($1)::float8 as bytes',
      [table],
    )
    bytes += rows[0]?.bytes ?? 0
  }
  if (bytes > 0) counts.given_back_bytes = bytes
}

/** What was recorded for reports must not itself grow for ever. */
async function forget({ pool }: SweepContext, counts: Counts): Promise<void> {
  await pool.query(`delete from lighter.latency_hours where hour < now() - make_interval(days => $1)`, [
    latencyDays,
  ])
  // By then what was flushed has left, or a daemon has not run for as long.
  await pool.query(`delete from lighter.flushes where flushed_at < now() - make_interval(days => $1)`, [
    latencyDays,
  ])
  // The last run of each sweep stays, however old: it tells that there is such a sweep, and when it last ran.
  const { rowCount } = await pool.query(
    `delete from lighter.sweep_runs r
      where r.started_at < now() - make_interval(days => $1)
        and exists (select from lighter.sweep_runs later where later.sweep = r.sweep and later.started_at > r.started_at)`,
    [historyDays],
  )
  counts.runs_forgotten = rowCount ?? 0
}

/**
 * Counts everything anew and appends to the log what the sums lack. One statement, so one snapshot: artifacts and
 * their entries are committed together, so what is written meanwhile is in neither or in both.
 * @returns how many sums were wrong
 */
async function correct({ pool, dryRun }: SweepContext): Promise<number> {
  const client = await pool.connect()
  try {
    // All of it is read, which our sessions else avoid (src/db/prepared.ts).
    await client.query(`${beginSql(client)}; set local enable_seqscan = on; set local statement_timeout = 0`)
    const { rowCount } = await client.query({
      text: `
        with known as (
          select tenant_id, kind, day, ${each(name => `coalesce(sum(${name}), 0) as ${name}`)}
            from lighter.storage_entries
           group by tenant_id, kind, day
        ),
        missing as (
          select tenant_id, kind, day,
                 ${each(name => `coalesce(t.${name}, 0) - coalesce(k.${name}, 0) as ${name}`)}
            from lighter.storage_recount t
            full join known k using (tenant_id, kind, day)
        )
        insert into lighter.storage_changes (tenant_id, kind, day, ${each(name => name)})
        select tenant_id, kind, day, ${each(bounded)}
          from missing
         where ${each(name => `${name} <> 0`, ' or ')}`,
    })
    await client.query(dryRun ? 'rollback' : 'commit')
    return rowCount ?? 0
  } catch (error) {
    await client.query('rollback').catch(() => undefined)
    throw error
  } finally {
    client.release()
  }
}
