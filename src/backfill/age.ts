// Which rows are old enough.
import type { Queryable } from '../db/pool.ts'
import { RowError } from '../errors.ts'
import type { Source } from '../source/sources.ts'

export const unitMs: Record<string, number> = {
  s: 1000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
  w: 7 * 86_400_000,
}

/** `7d`, `12h`, `30m`, `2w` before `now`, or a date or time as ISO 8601 has it; null when it is neither. */
export function parseAge(text: string, now: Date): Date | null {
  const age = /^(\d{1,6})([mhdw])$/.exec(text)
  if (age !== null) return new Date(now.getTime() - Number(age[1]) * (unitMs[age[2] ?? ''] ?? 0))
  if (!/^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?$/.test(text)) return null
  const date = new Date(text)
  return Number.isNaN(date.getTime()) ? null : date
}

/**
 * The column that tells a row's age.
 * @throws {RowError} `no_age_column`, `age_column_wrong`, `age_column_forbidden`, each with what to do
 */
export async function findAgeColumn(
  db: Queryable,
  source: Source,
  wanted: string | undefined,
): Promise<string> {
  const column = wanted ?? 'created_at'
  const { rows } = await db.query<{ type: string; readable: boolean }>({
    text: `select format_type(a.atttypid, null) as type,
                  has_column_privilege(a.attrelid, a.attnum, 'select') as readable
             from pg_attribute a
            where a.attrelid = $1::text::regclass and a.attname = $2 and a.attnum > 0 and not a.attisdropped`,
    values: [source.tableSql, column],
  })
  const [found] = rows
  if (found === undefined) {
    throw new RowError(
      wanted === undefined ? 'no_age_column' : 'age_column_wrong',
      `${source.tableSql} has no column "${column}", by which the age of a row could be told`,
      {
        hint: 'Pass --age-column with a column of type timestamptz, timestamp or date, or leave --older-than out.',
      },
    )
  }
  if (!/^(timestamp with(out)? time zone|date)$/.test(found.type)) {
    throw new RowError('age_column_wrong', `${source.tableSql}.${column} is of type ${found.type}`, {
      hint: 'Pass --age-column with a column of type timestamptz, timestamp or date.',
    })
  }
  if (!found.readable) {
    throw new RowError(
      'age_column_forbidden',
      `the daemon's login may not read ${source.tableSql}.${column}`,
      {
        hint: `As the table's owner: grant select (${column}) on ${source.tableSql} to lighter_daemon;`,
      },
    )
  }
  return column
}
