// What Postgres refuses to who reads a table of somebody else's, with the remedy.
import { isLockTimeout, LighterError, sqlState } from '../errors.ts'

export function explainReading(
  cause: unknown,
  table: string,
  { timeoutMs, lockTimeoutMs }: { timeoutMs: number; lockTimeoutMs: number },
): unknown {
  if (sqlState(cause) === '57014')
    return new LighterError(
      'reading_timed_out',
      `not even one sample of ${table} was read within ${timeoutMs / 1000} s`,
      {
        cause,
        hint: 'Raise --timeout.',
      },
    )
  if (isLockTimeout(cause))
    return new LighterError(
      'table_locked',
      `another session has locked ${table} against readers for ${lockTimeoutMs / 1000} s or more`,
      {
        cause,
        hint: `Try again when it is done: select pid from pg_locks where relation = '${table}'::regclass and mode = 'AccessExclusiveLock';`,
        retryable: true,
      },
    )
  if (sqlState(cause) === '42501')
    return new LighterError(
      'select_missing',
      `this login may not read ${table}, or the table with its tenants`,
      {
        cause,
        hint: `grant select on ${table} to <login>;`,
      },
    )
  return cause
}
