// When rows were written, by a column of the table: how many come in a second, and for how long they are written again.
import { LighterError } from '../errors.ts'
import type { TableFacts } from './relation.ts'
import type { SampledRow } from './sample.ts'

export interface WriteRate {
  rowsPerSecond: number
  /** Such as `by created_at, the last 30 days of it`. */
  basis: string
}

export interface TimeColumns {
  /** When a row was written first; null: the table does not say. */
  written: string | null
  /** When it was written last. */
  rewritten: string | null
}

const daySeconds = 86_400
const windowDays = 30
/** A shorter span tells nothing of a month. */
const leastSpanSeconds = 60

const isOfRewrite = (name: string) => /^(updated|modified|changed)(_?(at|on|time))?$/i.test(name)

/** @param wanted null: found by type and name @throws {LighterError} `time_column_unusable` */
export function timeColumnsOf({ timeColumns, tableSql }: TableFacts, wanted: string | null): TimeColumns {
  if (wanted !== null && !timeColumns.includes(wanted))
    throw new LighterError(
      'time_column_unusable',
      `--time-column: ${tableSql} has no column "${wanted}" with a date or time`,
      {
        hint:
          timeColumns.length === 0
            ? 'Give --rows-per-second instead.'
            : `Name one of: ${timeColumns.join(', ')}`,
      },
    )
  const written = wanted ?? timeColumns.find(name => !isOfRewrite(name)) ?? null
  return { written, rewritten: timeColumns.find(name => name !== written && isOfRewrite(name)) ?? null }
}

/** Of the last days before the newest row: what was written then and is still there. */
export function rateOf(
  rows: SampledRow[],
  expansion: number,
  column: string | null,
  given: number | null,
): WriteRate | null {
  if (given !== null) return { rowsPerSecond: given, basis: 'as given by --rows-per-second' }
  const times = rows.flatMap(row => row.time ?? [])
  if (column === null || times.length < 2) return null
  const newest = times.reduce((a, b) => Math.max(a, b))
  const oldest = times.reduce((a, b) => Math.min(a, b))
  const span = Math.min(windowDays * daySeconds, newest - oldest)
  if (span < leastSpanSeconds) return null
  const recent = times.filter(time => time > newest - span).length
  const days = span / daySeconds
  return {
    rowsPerSecond: (recent * expansion) / span,
    basis: `by ${column}, ${days >= windowDays ? `the last ${windowDays} days of it` : `all of its ${days >= 2 ? `${days.toFixed(0)} days` : `${(days * 24).toFixed(1)} hours`}`}`,
  }
}

/** 95 of 100 rows were written last within so long of their first write. */
export function settleSecondsOf(rows: SampledRow[]): number | null {
  const spans = rows
    .flatMap(row => (row.time !== null && row.rewritten !== null ? [row.rewritten - row.time] : []))
    .sort((a, b) => a - b)
  return spans.length < 20 ? null : Math.max(0, spans[Math.floor(spans.length * 0.95)] ?? 0)
}
