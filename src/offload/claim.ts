// Step 1: take a batch of due jobs.
import type { Queryable } from '../db/pool.ts'

export interface Job {
  sourceId: number
  /** Primary key of the row, as text. */
  rowId: string
  /** This claim included. */
  attempts: number
}

/** Which job, in the order that all statements on jobs take them. */
export interface JobKey {
  sourceId: number
  rowId: string
}

export const jobKey = (job: JobKey) => `${job.sourceId}:${job.rowId}`

/**
 * Takes up to `limit` due jobs of the given sources and hides them for `leaseMs` (visibility timeout), so
 * that no other daemon sees them. A daemon that dies simply lets the lease run out.
 *
 * One statement however many jobs, by the database's clock. It does not wait for its commit to be on disk: a
 * claim that a crash of the server undoes is only done again.
 */
export async function claimJobs(
  db: Queryable,
  sourceIds: number[],
  limit: number,
  leaseMs: number,
): Promise<Job[]> {
  const { rows } = await db.query<Job>({
    text: `
      with lazy as materialized (
        select set_config('synchronous_commit', 'off', true)
      ),
      due as (
        select source_id, row_id
          from lighter.jobs
         where available_at <= now()
           and source_id = any ($1::int[])
         order by priority, available_at
         limit $2
           for update skip locked
      )
      update lighter.jobs j
         set available_at = now() + $3 * interval '1 ms', attempts = j.attempts + 1
        from due, lazy
       where j.source_id = due.source_id and j.row_id = due.row_id
      returning j.source_id as "sourceId", j.row_id as "rowId", j.attempts`,
    values: [sourceIds, limit, leaseMs],
  })
  return rows
}

/** As `claimJobs`, of given jobs those that are still due and that nobody else is just claiming, in the order given. */
export async function claimKeys(db: Queryable, keys: JobKey[], leaseMs: number): Promise<Job[]> {
  const { rows } = await db.query<Job>({
    text: `
      with lazy as materialized (
        select set_config('synchronous_commit', 'off', true)
      ),
      due as (
        select j.source_id, j.row_id
          from lighter.jobs j
          join unnest($1::int[], $2::text[]) k(source_id, row_id) using (source_id, row_id)
         where j.available_at <= now()
           for update of j skip locked
      )
      update lighter.jobs j
         set available_at = now() + $3 * interval '1 ms', attempts = j.attempts + 1
        from due, lazy
       where j.source_id = due.source_id and j.row_id = due.row_id
      returning j.source_id as "sourceId", j.row_id as "rowId", j.attempts`,
    values: [keys.map(key => key.sourceId), keys.map(key => key.rowId), leaseMs],
  })
  const claimed = new Map(rows.map(job => [jobKey(job), job]))
  return keys.flatMap(key => claimed.get(jobKey(key)) ?? [])
}

/** True if a claim would find something. */
export async function hasDueJobs(db: Queryable, sourceIds: number[]): Promise<boolean> {
  const { rows } = await db.query<{ due: boolean }>({
    text: `select exists (
             select from lighter.jobs where available_at <= now() and source_id = any ($1::int[])) as due`,
    values: [sourceIds],
  })
  return rows[0]?.due === true
}

/** Hides claimed jobs, and the objects being uploaded for them, for another `leaseMs` from now. */
export async function extendLease(
  db: Queryable,
  jobs: JobKey[],
  objectKeys: { tenantId: string; key: string }[],
  leaseMs: number,
): Promise<void> {
  await db.query(
    `with mine as (
       -- skips what is being committed or released: those need no lease any more
       select j.source_id, j.row_id
         from lighter.jobs j
         join unnest($1::int[], $2::text[]) d(source_id, row_id) using (source_id, row_id)
          for update of j skip locked
     ),
     jobs as (
       update lighter.jobs j set available_at = now() + $3 * interval '1 ms'
         from mine d
        where j.source_id = d.source_id and j.row_id = d.row_id
     ),
     uploading as (
       select o.tenant_id, o.r2_key
         from lighter.objects o
         join unnest($4::uuid[], $5::text[]) d(tenant_id, r2_key) using (tenant_id, r2_key)
        where o.state = 'uploading'
          for update of o skip locked
     )
     update lighter.objects o set lease_until = now() + $3 * interval '1 ms'
       from uploading d
      where o.tenant_id = d.tenant_id and o.r2_key = d.r2_key`,
    [
      jobs.map(j => j.sourceId),
      jobs.map(j => j.rowId),
      leaseMs,
      objectKeys.map(o => o.tenantId),
      objectKeys.map(o => o.key),
    ],
  )
}
