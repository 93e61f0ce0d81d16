// What a restore would do, found out without reading a payload.
import type pg from 'pg'
import { createPageSize } from '../page-size.ts'
import type { Source } from '../source/sources.ts'
import { findOffloaded } from './find.ts'
import type { RestoreScope } from './hold.ts'

export interface RestoreEstimate {
  seen: number
  /** Rows with pointers. */
  rows: number
  /** Payload text that they lead to; what they hold by themselves is not counted. */
  bytes: number
  /** Of these rows: some artifact is not there, has a tombstone, or was found damaged. They would fail. */
  unreadable: number
  /** By tenant; rows without one under ''. */
  tenants: Map<string, { rows: number; bytes: number }>
}

export async function estimateRestore(
  pool: pg.Pool,
  source: Source,
  scope: RestoreScope,
  signal: AbortSignal,
  onProgress: (estimate: RestoreEstimate) => void,
): Promise<RestoreEstimate> {
  const estimate: RestoreEstimate = { seen: 0, rows: 0, bytes: 0, unreadable: 0, tenants: new Map() }
  const size = createPageSize(200, 5000)
  for (let after: string | null = null; !signal.aborted; ) {
    const limit = size.rows()
    const started = performance.now()
    const page = await findOffloaded(pool, source, scope, after, limit)
    size.took(performance.now() - started)
    for (const row of page.rows) {
      estimate.rows++
      estimate.bytes += row.bytes
      if (row.unreadable > 0 || row.tenantId === null) estimate.unreadable++
      const ofTenant = estimate.tenants.get(row.tenantId ?? '') ?? { rows: 0, bytes: 0 }
      estimate.tenants.set(row.tenantId ?? '', {
        rows: ofTenant.rows + 1,
        bytes: ofTenant.bytes + row.bytes,
      })
    }
    estimate.seen += page.seen
    onProgress(estimate)
    if (page.last === null || page.seen < limit) break
    after = page.last
  }
  return estimate
}
