// Objects that are on their way out and do not go.
import type { Queryable } from '../db/pool.ts'

export interface OverdueDeletions {
  /** Under our prefix: nobody sweeps, or the bucket keeps them. */
  ours: number
  /** Under another one, where nothing of ours is ever deleted. */
  elsewhere: { prefix: string | null; objects: number; example: string }[]
}

export async function findOverdueDeletions(db: Queryable, prefix: string): Promise<OverdueDeletions> {
  const { rows } = await db.query<OverdueDeletions['elsewhere'][number]>(
    'select prefix, objects::float8 as objects, example from lighter.overdue_deletions order by prefix nulls last',
  )
  return {
    ours: rows.find(row => row.prefix === prefix)?.objects ?? 0,
    elsewhere: rows.filter(row => row.prefix !== prefix),
  }
}
