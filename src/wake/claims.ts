// From where a daemon takes its next rows: what others left behind, the inbox, groups that are worth a PUT, and what has
// waited for its turn.
import type pg from 'pg'
import type { OffloadConfig } from '../config.ts'
import {
  backfillPriority,
  claimExpired,
  claimInbox,
  claimSettled,
  claimWaiting,
  hasDueJobs,
  type InboxClaim,
} from '../offload/claim.ts'
import { claimGroups, dueGroups, type From, type Group, type Share } from '../offload/claim-groups.ts'
import type { Lease } from '../offload/lease.ts'
import { type Source, waitsForOthers } from '../source/sources.ts'

/** How often the inbox is read from its beginning: entries of transactions that ended late lie before what was taken. */
const rescanMs = 2000
/** Of so many claims that a full inbox takes up, one is for rows that wait for another attempt. */
const turnOfWaiting = 4
/** How often leases that have run out are looked for, in parts of a lease. */
const expiredLooksPerLease = 4
/** Entries that are grouped at once: nothing of their rows is held, and the more there are, the sooner packs are full. */
export const runRows = 10_000
/** Settled entries are taken so far apart, unless a run of them is full; nobody is in a hurry. */
const runsMs = 1000
/** How often the groups are added up. */
const groupsMs = 5000
/** Of the time, what adding them up may take; so may looking through entries that are not settled yet. */
const looksShare = 1 / 20

export interface Claims {
  /**
   * @param limit rows to be worked off at once
   * @param isProbe few rows, to see whether all is well again
   * @returns leases, each to be worked off by itself; `full`: there is more of their kind
   */
  next(sources: Source[], limit: number, isProbe: boolean): Promise<{ leases: Lease[]; full: boolean }>
  /** Whether `next` would find something. */
  hasDue(sources: Source[]): Promise<boolean>
  /** Somebody says that there is something. */
  wake(): void
}

export function createClaims(pool: pg.Pool, config: OffloadConfig): Claims {
  const { leaseMs } = config
  let expiredAt = Number.NEGATIVE_INFINITY
  let claims = 0
  let runAt = Number.NEGATIVE_INFINITY
  let runTookMs = 0
  let isRunWoken = false
  let groups: Group[] = []
  let groupsAt = Number.NEGATIVE_INFINITY
  /** Where the look at them goes on. */
  let groupsFrom: From | null = null
  let groupsTookMs = 0
  let woken = true

  const fromInbox = inboxReader((sources, limit, after) =>
    claimInbox(
      pool,
      sources.map(source => source.id),
      limit,
      leaseMs,
      after,
    ),
  )
  const fromSettled = inboxReader((sources, limit, after) =>
    claimSettled(pool, sources, limit, leaseMs, after),
  )

  const fromExpired = async () => {
    if (performance.now() - expiredAt < leaseMs / expiredLooksPerLease) return null
    const lease = await claimExpired(pool, leaseMs)
    if (lease === null) expiredAt = performance.now()
    return lease
  }

  const isTimeForRun = () =>
    performance.now() - runAt >= Math.max(isRunWoken ? 0 : runsMs, runTookMs / looksShare)
  /** All that was settled is taken, or there was nothing. */
  const noteRun = (started: number) => {
    runAt = performance.now()
    runTookMs = runAt - started
    isRunWoken = false
  }

  /** Of those that wait for others. */
  const fromRun = async (sources: Source[]) => {
    if (sources.length === 0 || !isTimeForRun()) return nothingClaimed
    const started = performance.now()
    const claim = await fromSettled(sources, runRows)
    if (claim.entries < runRows) noteRun(started)
    return claim
  }

  const lookAtGroups = async (sources: Source[]) => {
    const since = performance.now() - groupsAt
    if (
      groups.length > 0 ||
      sources.length === 0 ||
      since < groupsTookMs / looksShare ||
      (since < groupsMs && !woken && groupsFrom === null)
    )
      return
    woken = false
    const started = performance.now()
    const look = await dueGroups(pool, sources, config, groupsFrom)
    groups = look.groups
    groupsFrom = look.next
    groupsAt = performance.now()
    groupsTookMs = groupsAt - started
  }

  const fromGroups = async (sources: Source[], isProbe: boolean): Promise<Lease | null> => {
    while (groups.length > 0) {
      const chosen = isProbe ? groups.slice(0, 1) : firstGroups(groups, config)
      groups = groups.slice(chosen.length)
      const shares = chosen.map(group => shareOf(group, config))
      const lease = await claimGroups(
        pool,
        sources,
        isProbe ? shares.map(share => ({ ...share, most: 1, leastBytes: 0, leastOfOthers: null })) : shares,
        leaseMs,
      )
      if (lease === null) continue
      // It is to be sent, whether that pays or not.
      if (isProbe) for (const { waited } of lease.jobs) if (waited !== null) waited.isFree = true
      const [first] = chosen
      const rest = first === undefined || chosen.length > 1 ? null : restOf(first, lease)
      // The others have their turn first.
      if (rest !== null && isDue(rest, config)) groups.push(rest)
      return lease
    }
    return null
  }

  return {
    wake: () => {
      woken = true
      isRunWoken = true
    },
    hasDue: async sources => {
      const waiters = sources.filter(waitsForOthers)
      const looksForRun = isTimeForRun()
      const started = performance.now()
      if (await hasDueJobs(pool, sources, looksForRun ? waiters : [])) return true
      if (looksForRun) noteRun(started)
      await lookAtGroups(sources)
      return groups.length > 0
    },
    next: async (sources, limit, isProbe) => {
      claims++
      // First of all: if that fails, nothing is claimed yet.
      await lookAtGroups(sources)
      const ids = sources.map(source => source.id)
      const waiters = sources.filter(waitsForOthers)
      const expired = isProbe ? null : await fromExpired()
      const written = await fromInbox(
        sources.filter(source => !waitsForOthers(source)),
        limit,
      )
      let full = written.entries === limit
      const isProbed = () => isProbe && written.lease !== null
      // Those of a source that waits no more, too: what it has left there goes.
      const group = isProbed() ? null : await fromGroups(sources, isProbe)
      const run = isProbed() || (isProbe && group !== null) ? nothingClaimed : await fromRun(waiters)
      let waiting: Lease | null = null
      if (!full && !(isProbe && (written.lease ?? group) !== null)) {
        waiting = await claimWaiting(pool, ids, limit, leaseMs)
        full = waiting?.jobs.length === limit
      } else if (claims % turnOfWaiting === 0) {
        waiting = await claimWaiting(pool, ids, limit, leaseMs, backfillPriority)
      }
      full ||= run.entries === runRows || groups.length > 0
      const leases = [expired, written.lease, group, run.lease, waiting].filter(lease => lease !== null)
      if (leases.length > 0) return { leases, full: full || expired !== null }
      // Nothing else is to be done: then what was left behind is looked for at once.
      expiredAt = Number.NEGATIVE_INFINITY
      const left = await fromExpired()
      return { leases: left === null ? [] : [left], full: left !== null }
    },
  }
}

const nothingClaimed: InboxClaim = { lease: null, entries: 0, lastId: 0 }

/** Reads on from what it took last, and from the beginning now and then, or where nothing more is found. */
function inboxReader(
  claim: (sources: Source[], limit: number, after: number) => Promise<InboxClaim>,
): (sources: Source[], limit: number) => Promise<InboxClaim> {
  let mark = 0
  let scannedAt = Number.NEGATIVE_INFINITY
  return async (sources, limit) => {
    if (sources.length === 0) return nothingClaimed
    if (performance.now() - scannedAt > rescanMs) mark = 0
    for (;;) {
      if (mark === 0) scannedAt = performance.now()
      const claimed = await claim(sources, limit, mark)
      if (claimed.entries === 0 && mark > 0) {
        mark = 0
        continue
      }
      mark = claimed.lastId
      return claimed
    }
  }
}

/** As many as fit into a batch together; the first in any case. */
export function firstGroups(groups: Group[], { batchRows, batchBytes }: OffloadConfig): Group[] {
  let rows = 0
  let bytes = 0
  let count = 0
  for (const group of groups) {
    rows += group.rows
    bytes += group.bytes
    if (count > 0 && (rows > batchRows || bytes > batchBytes)) break
    count++
  }
  return groups.slice(0, count)
}

/** Of one group at once: as many as a batch holds. */
export function shareOf(
  { tenantId, kind, rows, bytes, isOverdue, isFree }: Group,
  config: OffloadConfig,
): Share {
  const { batchRows, batchBytes, packMinBytes, packTargetBytes } = config
  const fitting = bytes === 0 ? batchRows : Math.floor((batchBytes * rows) / bytes)
  return {
    tenantId,
    kind,
    most: Math.max(1, Math.min(batchRows, fitting)),
    leastBytes: isOverdue || isFree ? packMinBytes : packTargetBytes,
    // Less would only be held back.
    leastOfOthers: isOverdue || isFree ? null : packMinBytes,
  }
}

/** What was not taken of a group. */
function restOf(group: Group, { jobs }: Lease): Group | null {
  const rows = group.rows - jobs.length
  if (rows <= 0) return null
  return { ...group, rows, bytes: jobs.reduce((left, job) => left - (job.waited?.bytes ?? 0), group.bytes) }
}

const isDue = (
  { bytes, isOverdue, isFree }: Group,
  { packTargetBytes, packMinBytes }: OffloadConfig,
): boolean => isFree || bytes >= (isOverdue ? packMinBytes : packTargetBytes)
