// From where a daemon takes its next rows: what others left behind, the inbox, and what has waited for its turn.
import type pg from 'pg'
import { backfillPriority, claimExpired, claimInbox, claimWaiting } from '../offload/claim.ts'
import type { Lease } from '../offload/lease.ts'

/** How often the inbox is read from its beginning: entries of transactions that ended late lie before what was taken. */
const rescanMs = 2000
/** Of so many claims that a full inbox takes up, one is for rows that wait for another attempt. */
const turnOfWaiting = 4
/** How often leases that have run out are looked for, in parts of a lease. */
const expiredLooksPerLease = 4

export interface Claims {
  /**
   * @param isProbe few rows, to see whether all is well again
   * @returns leases, each to be worked off by itself; `full`: there is more of their kind
   */
  next(sourceIds: number[], limit: number, isProbe: boolean): Promise<{ leases: Lease[]; full: boolean }>
}

export function createClaims(pool: pg.Pool, leaseMs: number): Claims {
  let mark = 0
  let scannedAt = Number.NEGATIVE_INFINITY
  let expiredAt = Number.NEGATIVE_INFINITY
  let claims = 0

  const fromInbox = async (sourceIds: number[], limit: number) => {
    if (performance.now() - scannedAt > rescanMs) mark = 0
    for (;;) {
      if (mark === 0) scannedAt = performance.now()
      const claim = await claimInbox(pool, sourceIds, limit, leaseMs, mark)
      if (claim.lease === null && mark > 0) {
        mark = 0
        continue
      }
      mark = claim.lastId
      return claim
    }
  }

  const fromExpired = async () => {
    if (performance.now() - expiredAt < leaseMs / expiredLooksPerLease) return null
    const lease = await claimExpired(pool, leaseMs)
    if (lease === null) expiredAt = performance.now()
    return lease
  }

  return {
    next: async (sourceIds, limit, isProbe) => {
      claims++
      const expired = isProbe ? null : await fromExpired()
      const written = await fromInbox(sourceIds, limit)
      let full = written.entries === limit
      let waiting: Lease | null = null
      if (!full && !(isProbe && written.lease !== null)) {
        waiting = await claimWaiting(pool, sourceIds, limit, leaseMs)
        full = waiting?.jobs.length === limit
      } else if (claims % turnOfWaiting === 0) {
        waiting = await claimWaiting(pool, sourceIds, limit, leaseMs, backfillPriority)
      }
      const leases = [expired, written.lease, waiting].filter(lease => lease !== null)
      if (leases.length > 0) return { leases, full: full || expired !== null }
      // Nothing else is to be done: then what was left behind is looked for at once.
      expiredAt = Number.NEGATIVE_INFINITY
      const left = await fromExpired()
      return { leases: left === null ? [] : [left], full: left !== null }
    },
  }
}
