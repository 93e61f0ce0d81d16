// Step 1 under a backlog, beside the claims in order: a few of the newest jobs, by turns of their tenants, so that
// neither one tenant's million jobs nor those of a long outage keep the next row waiting.
import type { Queryable } from '../db/pool.ts'
import { isDatabaseOutage } from '../errors.ts'
import { fromSql, tenantSql } from '../source/expressions.ts'
import { isKeyedRowSql, partArrays, partList, partParameters } from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'
import { claimEntries } from './claim.ts'
import { jobKey, type Lease } from './lease.ts'

/** Newest entries that one look sees. More than these within the time between two looks, and some are missed. */
const fairLookRows = 2000

/** Rows of one look that are worked on: few, so that they are done soon. */
export const fairClaimRows = 250

export interface FairClaim {
  lease: Lease | null
  /** Tenants among the jobs that were seen; with a single one there is nothing to be fair about. */
  tenants: number
}

interface Entry {
  id: number
  sourceId: number
  rowId: string
}

/**
 * Looks at the newest entries of the inbox, and claims up to `limit` of them: the newest of each tenant, then the
 * second newest of each, and so on.
 *
 * The inbox does not know tenants, since a trigger that looked one up would slow every write of the application;
 * so they are read here, by a look that costs the same whatever the length of the queue: the tenants of 2,000 rows over the
 * parent table take 11 to 15 ms (9,500 buffers).
 *
 * Newest first also of one tenant: its oldest are what the claims in order take.
 */
export async function claimFairly(
  db: Queryable,
  sources: Source[],
  limit: number,
  leaseMs: number,
): Promise<FairClaim> {
  const newest = await newestEntries(
    db,
    sources.map(source => source.id),
  )
  const tenants = new Map<string, string | null>()
  for (const source of sources) {
    const rowIds = newest.filter(entry => entry.sourceId === source.id).map(entry => entry.rowId)
    if (rowIds.length === 0) continue
    const found = await tenantsOf(db, source, rowIds).catch(error => {
      if (isDatabaseOutage(error)) throw error
      // A key that is none, a table that has changed: the plan of these rows finds it out and says so.
      return []
    })
    for (const row of found) tenants.set(jobKey({ sourceId: source.id, rowId: row.rowId }), row.tenantId)
  }
  const seen = newest.map(entry => ({ ...entry, tenantId: tenants.get(jobKey(entry)) ?? null }))
  const ids = pickByTurns(seen, limit).map(entry => entry.id)
  return {
    lease: ids.length === 0 ? null : await claimEntries(db, ids, leaseMs),
    tenants: new Set(seen.map(entry => entry.tenantId)).size,
  }
}

/** The first of each tenant, then the second of each, and so on, up to `limit`. */
export function pickByTurns<T extends { tenantId: string | null }>(jobs: T[], limit: number): T[] {
  const picked: T[] = []
  const byTenant = [...Map.groupBy(jobs, job => job.tenantId).values()]
  for (let turn = 0; picked.length < limit; turn++) {
    const round = byTenant.flatMap(own => own[turn] ?? [])
    if (round.length === 0) break
    picked.push(...round.slice(0, limit - picked.length))
  }
  return picked
}

async function newestEntries(db: Queryable, sourceIds: number[]): Promise<Entry[]> {
  const { rows } = await db.query<Entry>({
    // The index gives them in order, from its end.
    text: `
      select id::float8 as id, source_id as "sourceId", row_id as "rowId"
        from lighter.inbox
       where source_id = any ($1::int[])
       order by id desc
       limit $2`,
    values: [sourceIds, fairLookRows],
  })
  return rows
}

async function tenantsOf(db: Queryable, source: Source, rowIds: string[]) {
  const { rows } = await db.query<{ rowId: string; tenantId: string | null }>({
    text: `
      select k.row_id as "rowId", ${tenantSql(source)}::text as "tenantId"
        from unnest($1::text[]${partParameters(source, 2)}) k(row_id${partList(source)})
        join ${fromSql(source)} on ${isKeyedRowSql(source, 'k')}`,
    values: [rowIds, ...partArrays(source, rowIds)],
  })
  return rows
}
