// What must stay in its rows, as the steps ask for it; and how to know that no offload is past having asked.
import type { Queryable } from '../db/pool.ts'
import type { Source } from './sources.ts'

/**
 * Every commit of an offload holds this lock, shared, from before it looks whether a row may go until its end.
 * Whoever has forbidden something and then has had the lock to himself knows: what is committed from now on has seen it.
 */
const commitGateKey = '7809632190540'

/** To be run in a transaction of its own statement: the next one's snapshot must be younger than the lock. */
export const enterCommitGateSql = `select pg_advisory_xact_lock_shared(${commitGateKey})`

/** Waits for the commits that are under way: milliseconds, and those that begin meanwhile wait as long. */
export async function passCommitGate(db: Queryable): Promise<void> {
  // Given back with the statement's transaction.
  await db.query(`select pg_advisory_xact_lock(${commitGateKey})`)
}

/** True of a row that is to stay as it is, by itself or with all of its tenant's. Two looks into indexes of few rows. */
export function isPinnedSql(source: Source, rowId: string, tenant: string): string {
  return `(exists (select from lighter.pins pin where pin.source_id = ${source.id} and pin.row_id = ${rowId})
      or exists (select from lighter.pins pin where pin.source_id = ${source.id} and pin.tenant_id = ${tenant}))`
}
