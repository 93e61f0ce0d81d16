// The queue as tests fill, empty and look at it. A row is in one of three places: see sql/migrations/0005_queue.sql.
import { randomUUID } from 'node:crypto'
import type { Queryable } from '../../src/db/pool.ts'
import { type Claimed, insertLease, type Lease, leaseOf } from '../../src/offload/lease.ts'
import type { TestEnvironment } from './environment.ts'

/** Nothing is queued any more, nor worked on. */
export async function emptyQueue({ admin }: Pick<TestEnvironment, 'admin'>): Promise<void> {
  await admin.query('delete from lighter.inbox; delete from lighter.waiting; delete from lighter.leases')
}

/** A batch of rows as a claim makes it, whether they were queued or not. */
export async function leaseRows(
  db: Queryable,
  sourceId: number,
  rowIds: string[],
  options: Partial<Omit<Claimed, 'sourceId' | 'rowId'>> & { leaseMs?: number } = {},
): Promise<Lease> {
  const { leaseMs = 60_000, ...rest } = options
  const claimed: Claimed[] = rowIds.map(rowId => ({
    sourceId,
    rowId,
    attempts: 1,
    conflicts: 0,
    priority: 0,
    enqueuedMs: Date.now(),
    dueMs: Date.now(),
    error: null,
    writtenBy: null,
    waited: null,
    ...rest,
  }))
  const id = randomUUID()
  await insertLease(db, id, claimed, leaseMs)
  return leaseOf(id, claimed)
}
