// When rows of a table leave it, in words: "settled, then due" (docs/architecture.md).
import { formatBytes } from '../cli/output.ts'
import type { Source } from '../source/sources.ts'

export interface Timing extends Pick<Source, 'settleMs' | 'maxWaitMs' | 'shipAloneBytes'> {
  /** PACK_TARGET_BYTES and PACK_MIN_BYTES of the daemon that started last. */
  packTargetBytes: number
  packMinBytes: number
}

/** Of the source that parameter 1 names. */
export const timingSql = `
  select extract(epoch from coalesce(s.settle_for, d.settle_for))::float8 * 1000 as "settleMs",
         extract(epoch from coalesce(s.max_wait, d.max_wait))::float8 * 1000 as "maxWaitMs",
         coalesce(s.ship_alone_bytes, d.ship_alone_bytes) as "shipAloneBytes",
         d.pack_target_bytes as "packTargetBytes", d.pack_min_bytes as "packMinBytes"
    from lighter.sources s cross join lighter.settings d
   where s.id = $1`

/** What happens to rows that were just written, in one or two sentences. */
export function describeDeparture(who: 'They' | 'Rows written from now on', timing: Timing): string {
  const { settleMs, maxWaitMs, shipAloneBytes, packTargetBytes, packMinBytes } = timing
  const first =
    settleMs === 0
      ? `${who} leave`
      : `${who} stay for ${formatDuration(settleMs)} after their last write, then leave`
  if (maxWaitMs === 0) return settleMs === 0 ? `${first} as soon as a daemon sees them.` : `${first}.`
  return `${first} when their tenant has ${formatBytes(packTargetBytes)} of a kind, or after ${formatDuration(Math.max(maxWaitMs, settleMs))} if it has ${formatBytes(packMinBytes)} by then. A row with ${formatBytes(shipAloneBytes)} or more waits for no others.`
}

const units: [string, number][] = [
  ['day', 86_400_000],
  ['hour', 3_600_000],
  ['minute', 60_000],
  ['second', 1000],
]

/** In the largest unit of which it is a whole number from two on, or one. */
function formatDuration(ms: number): string {
  const [name, unitMs] = units.find(([, size]) => ms >= size && ms % size === 0) ?? ['second', 1000]
  // 24 hours is what the setting says.
  if (name === 'day' && ms === unitMs) return '24 hours'
  const count = Math.round((ms / unitMs) * 10) / 10
  return `${count} ${name}${count === 1 ? '' : 's'}`
}

/** How long until then, rounded. */
export function formatSpan(ms: number): string {
  const [name, unitMs] = units.find(([, size]) => ms >= 2 * size) ?? ['second', 1000]
  const count = Math.max(0, Math.round(ms / unitMs))
  return `${count} ${name}${count === 1 ? '' : 's'}`
}
