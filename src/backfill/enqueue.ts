// Jobs for a page of rows, and how far the pass is, in one short transaction.
import type pg from 'pg'
import { arrayText } from '../db/array-text.ts'
import { inTransactionWithRetry } from '../db/pool.ts'
import { sqlState } from '../errors.ts'

/** Live jobs have 0 and go first. */
export const backfillPriority = 10

/**
 * Gives up long before Postgres looks for a deadlock (1 s): the application's transaction that wrote one of the rows
 * may be waiting for us in turn, and must not be the one that is chosen to fail.
 */
const lockTimeout = `set local lock_timeout = '100ms'`

/**
 * Enqueues rows that are not queued yet; one that is keeps its priority. Then wakes a daemon.
 * @returns how many were enqueued, and rows that an open transaction is just enqueueing itself
 */
export async function enqueueRows(
  pool: pg.Pool,
  sourceId: number,
  rowIds: string[],
): Promise<{ queued: number; contended: string[] }> {
  if (rowIds.length === 0) return { queued: 0, contended: [] }
  try {
    const queued = await inTransactionWithRetry(
      pool,
      async db => {
        const { rowCount } = await db.query({
          text: `insert into lighter.jobs (source_id, row_id, priority)
                 select $1, r, ${backfillPriority} from unnest($2::text[]) r order by r
                     on conflict do nothing`,
          values: [sourceId, arrayText(rowIds)],
        })
        if ((rowCount ?? 0) > 0) await db.query('select lighter.wake_daemon()')
        return rowCount ?? 0
      },
      lockTimeout,
    )
    return { queued, contended: [] }
  } catch (error) {
    if (sqlState(error) !== '55P03') throw error
    if (rowIds.length === 1) return { queued: 0, contended: rowIds }
    const middle = Math.ceil(rowIds.length / 2)
    const left = await enqueueRows(pool, sourceId, rowIds.slice(0, middle))
    const right = await enqueueRows(pool, sourceId, rowIds.slice(middle))
    return {
      queued: left.queued + right.queued,
      contended: [...left.contended, ...right.contended],
    }
  }
}
