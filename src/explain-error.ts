// Advice for errors that are not our own: those of Postgres and of the network. For people, at the edges.
import pg from 'pg'
import { LighterError, messageOf } from './errors.ts'

/** What went wrong and, where that is known, what to do next. */
export function explainError(error: unknown): { message: string; hint: string | undefined } {
  const message = messageOf(error)
  if (error instanceof LighterError) return { message, hint: error.hint }
  if (error instanceof pg.DatabaseError) return { message, hint: error.hint ?? databaseHint(error) }
  return { message, hint: networkHint(error instanceof AggregateError ? error.errors[0] : error) }
}

/** By SQLSTATE, what can be said without knowing the statement. */
function databaseHint(error: pg.DatabaseError): string | undefined {
  switch (error.code) {
    case '3F000': // no such schema
    case '42P01': // no such table
    case '42883': // no such function
      return /\blighter\b/.test(error.message) ? 'Run: lighter migrate' : undefined
    case '42501':
      return /\blighter\b/.test(error.message)
        ? "Use the owner's login (ADMIN_DATABASE_URL), or for the daemon: grant lighter_daemon to <login>;"
        : "Use the owner's login (ADMIN_DATABASE_URL)."
    case '28P01':
    case '28000':
      return 'Check user and password in DATABASE_URL (or ADMIN_DATABASE_URL). A running daemon takes a new password from DATABASE_URL_FILE by itself, else restart it.'
    case '25006':
      return 'The server is read-only (a standby, or a primary that was demoted): point DATABASE_URL at the primary.'
    case '53300':
      return 'The server, the database or the login is out of connections: raise the limit, or lower DATABASE_POOL_SIZE.'
    case '3D000':
      return 'Create the database, or correct its name in DATABASE_URL (or ADMIN_DATABASE_URL).'
    default:
      return undefined
  }
}

function networkHint(error: unknown): string | undefined {
  const code = typeof error === 'object' && error !== null && 'code' in error ? String(error.code) : ''
  if (code === 'ECONNREFUSED') return 'Nothing answers there: is Postgres running, and is DATABASE_URL right?'
  if (/^(ENOTFOUND|EAI_)/.test(code)) return 'No such host: check DATABASE_URL.'
  if (/^timeout expired$|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH/.test(`${messageOf(error)}${code}`)) {
    return 'No answer from there: check DATABASE_URL, and that a firewall lets this machine through.'
  }
  return undefined
}
