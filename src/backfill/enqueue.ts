// A page of rows into lighter.waiting.
import { arrayText } from '../db/array-text.ts'
import type { Queryable } from '../db/pool.ts'
import { backfillPriority } from '../offload/claim.ts'

/**
 * Rows that do not wait yet, to be worked on when nothing newer is to be done. Then wakes a daemon.
 * @returns how many
 */
export async function enqueueRows(db: Queryable, sourceId: number, rowIds: string[]): Promise<number> {
  if (rowIds.length === 0) return 0
  const { rowCount } = await db.query({
    text: `insert into lighter.waiting (source_id, row_id, priority)
           select $1, r, ${backfillPriority} from unnest($2::text[]) r order by r collate "C"
               on conflict do nothing`,
    values: [sourceId, arrayText(rowIds)],
  })
  if ((rowCount ?? 0) > 0) await db.query({ text: 'select lighter.wake_daemon()' })
  return rowCount ?? 0
}
