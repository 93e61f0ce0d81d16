// A batch while a daemon works on it: one row of lighter.leases, whose id only its holder knows.
import { arrayText } from '../db/array-text.ts'
import { parameters } from '../db/parameters.ts'
import type { Queryable } from '../db/pool.ts'
import { LighterError } from '../errors.ts'
import type { PipelineContext } from './context.ts'

export interface Lease {
  id: string
  jobs: Job[]
  /** Positions of the jobs that are neither committed nor returned yet. */
  open: Set<number>
  /** Its only row had a lease of its own before, in which a daemon died. */
  suspect: boolean
  /** Of one that ran out: the other half waits. */
  isHalf: boolean
  /** Left behind by a daemon, whole or in part. */
  ranOut: boolean
}

/** What was known of a row that waits, or has waited, for others of its tenant. */
export interface Waited {
  tenantId: string
  /** Which phase takes most of it. */
  phase: 1 | 2
  /** Of the artifact of that phase. */
  kind: string
  /** About how much would leave it, in bytes of text. */
  bytes: number
  /** The transaction that had written the row. */
  xmin: string
  /** Rows of one are better read from one pack. */
  entityId: string | null
  /** It goes whether or not it was written since. */
  mustGo: boolean
  /** It goes however few others there are. */
  isFree: boolean
}

/** A queued row that is being worked on. */
export interface Job {
  lease: Lease
  /** In the lease, from 1. */
  position: number
  sourceId: number
  /** Primary key of the row, as text. */
  rowId: string
  /** This one included. */
  attempts: number
  conflicts: number
  priority: number
  /** When the transaction that queued it began, in milliseconds since 1970 by the database's clock. */
  enqueuedMs: number
  /** When its turn came, likewise. */
  dueMs: number
  /** Why the last attempt failed. */
  error: string | null
  /** The transaction that queued it, and with that wrote it; null where that is not known. */
  writtenBy: string | null
  /** Null: it was not looked at, and need not wait. */
  waited: Waited | null
}

/** What a claim finds of a row. */
export type Claimed = Omit<Job, 'lease' | 'position'>

export const jobKey = (job: Pick<Job, 'sourceId' | 'rowId'>) => `${job.sourceId}:${job.rowId}`

/** @param claimed in the order of their positions */
export function leaseOf(
  id: string,
  claimed: Claimed[],
  {
    suspect = false,
    isHalf = false,
    ranOut = false,
  }: Partial<Pick<Lease, 'suspect' | 'isHalf' | 'ranOut'>> = {},
): Lease {
  const lease: Lease = { id, jobs: [], open: new Set(), suspect, isHalf, ranOut }
  lease.jobs = claimed.map((each, index) => ({ ...each, lease, position: index + 1 }))
  for (const job of lease.jobs) lease.open.add(job.position)
  return lease
}

/** The lease ran out while its holder was stopped or starved, and others have its rows. Nothing of them was changed. */
export class LeaseLost extends LighterError {
  constructor() {
    super('lease_lost', 'the lease of this batch ran out, or was taken away: others have its rows', {
      hint: 'Raise OFFLOAD_LEASE_MS if this daemon is often stopped or starved for that long.',
      retryable: true,
    })
  }
}

/** @param leaseMs null: nobody holds it, it is taken as it is */
export async function insertLease(
  db: Queryable,
  id: string,
  jobs: Claimed[],
  leaseMs: number | null,
): Promise<void> {
  const p = parameters()
  const array = (type: string, of: (job: Claimed) => string | number | null) =>
    `${p.one(arrayText(jobs.map(of)))}::${type}[]`
  await db.query({
    text: `insert into lighter.leases (id, until, source_ids, row_ids, enqueued_at, priorities, attempts, conflicts, errors)
           select ${p.one(id)}, now() + ${p.one(leaseMs)} * interval '1 ms', ${array('int', job => job.sourceId)}, ${array('text', job => job.rowId)},
                  array(select to_timestamp(ms / 1000) from unnest(${array('float8', job => job.enqueuedMs)}) with ordinality e(ms, ord) order by ord),
                  ${array('int2', job => job.priority)}, ${array('int', job => job.attempts - 1)}, ${array('int2', job => job.conflicts)},
                  ${array('text', job => job.error)}`,
    values: p.values,
  })
}

/** For another `leaseMs` from now, with the objects that are being uploaded for it. */
async function extendLease(
  db: Queryable,
  lease: Lease,
  objects: { tenantId: string; key: string }[],
  leaseMs: number,
): Promise<void> {
  await db.query(
    `with mine as (
       -- skips what is being committed or returned: that needs no lease any more
       select l.id from lighter.leases l where l.id = $1 for update skip locked
     ),
     extended as (
       update lighter.leases l set until = now() + $2 * interval '1 ms' from mine where l.id = mine.id
     ),
     uploading as (
       select o.tenant_id, o.r2_key
         from lighter.objects o
         join unnest($3::uuid[], $4::text[]) d(tenant_id, r2_key) using (tenant_id, r2_key)
        where o.state = 'uploading'
          for update of o skip locked
     )
     update lighter.objects o set lease_until = now() + $2 * interval '1 ms'
       from uploading d
      where o.tenant_id = d.tenant_id and o.r2_key = d.r2_key`,
    [lease.id, leaseMs, objects.map(o => o.tenantId), objects.map(o => o.key)],
  )
}

/** Extends the lease, and its objects', three times per lease for as long as the work goes on. */
export function keepLease(
  context: PipelineContext,
  lease: Lease,
  objects: { tenantId: string; key: string }[],
): () => void {
  const timer = setInterval(() => {
    // A lost lease is no harm: what was begun under it can not be committed.
    extendLease(context.pool, lease, objects, context.config.leaseMs).catch(() => undefined)
  }, context.config.leaseMs / 3)
  return () => clearInterval(timer)
}
