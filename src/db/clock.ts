// The clock that counts is the database's: leases, back-offs, graces and expiry are all computed there. Ours is used
// only where a token or a URL says when it ends.
import type { Queryable } from './pool.ts'

/** More than this, and tokens and URLs begin or end when they should not. */
const tolerableMs = 5000

/** By how much this machine's clock is ahead of the database's; null when it is not worth a word. */
export async function clockSkewMs(db: Queryable): Promise<number | null> {
  const before = Date.now()
  const { rows } = await db.query<{ now: number }>(
    'select extract(epoch from clock_timestamp())::float8 * 1000 as now',
  )
  const skewMs = Math.round((before + Date.now()) / 2 - (rows[0]?.now ?? before))
  return Math.abs(skewMs) <= tolerableMs ? null : skewMs
}

export const clockSkewAdvice =
  "Synchronise this machine's clock: the API refuses good tokens, or takes expired ones, and URLs that it signs end at the wrong time. What is stored, and when it goes, is not touched by it."
