// What must stay in its rows, as the steps ask for it; and how to know that no offload is past having asked.
import type pg from 'pg'
import { lockAloneSql, lockTables, lockTogetherSql } from '../db/locks.ts'
import { inTransactionWithRetry } from '../db/pool.ts'
import { isLockTimeout, LighterError } from '../errors.ts'
import type { Source } from './sources.ts'

/**
 * Every commit of an offload holds this lock, with others of its kind, from before it looks whether a row may go until its
 * end. Whoever has forbidden something and then has had the table to himself knows: what is committed from now on has seen
 * it. To be run in a transaction of its own statement: the next one's snapshot must be younger than the lock.
 */
export const enterCommitGateSql = lockTogetherSql(lockTables.commits)

/** Commits that begin while we wait stand behind us: not for long at once, and less than their own limit. */
const gateWaitMs = 3000
const gateTries = 20

/**
 * Waits for the commits that are under way: milliseconds, and those that begin meanwhile wait as long.
 * @throws {LighterError} `busy` after a minute, naming who is in the way
 */
export async function passCommitGate(pool: pg.Pool): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await inTransactionWithRetry(pool, async db => {
        await db.query(`set local lock_timeout = ${gateWaitMs}`)
        await db.query(lockAloneSql(lockTables.commits))
      })
    } catch (error) {
      if (!isLockTimeout(error)) throw error
      const { rows } = await pool.query<{ holders: string | null }>(
        'select lighter.lock_holders($1) as holders',
        [lockTables.commits.table],
      )
      if (attempt === gateTries) {
        throw new LighterError(
          'busy',
          `a commit of the daemon does not end: ${rows[0]?.holders ?? 'unknown'}`,
          {
            cause: error,
            hint: 'Run it again, or end that session: select pg_terminate_backend(<pid>);',
          },
        )
      }
    }
  }
}

/** True of a row that is to stay as it is, by itself or with all of its tenant's. Two looks into indexes of few rows. */
export function isPinnedSql(source: Source, rowId: string, tenant: string): string {
  // The first look is made once a statement.
  return `((select exists (select from lighter.pins pin where pin.source_id = ${source.id}))
      and (exists (select from lighter.pins pin where pin.source_id = ${source.id} and pin.row_id = ${rowId})
        or exists (select from lighter.pins pin where pin.source_id = ${source.id} and pin.tenant_id = ${tenant})))`
}
