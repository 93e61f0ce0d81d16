// Every error that pg-lighter throws on purpose: a small closed set, each with a stable code, the facts
// needed to act, and whether trying again can help. The edges (CLI, API, log) render them.

/** Base of all of them. `hint` says what to do next. */
export class LighterError extends Error {
  readonly code: string
  readonly retryable: boolean
  readonly hint: string | undefined

  constructor(
    code: string,
    message: string,
    options: { cause?: unknown; hint?: string | undefined; retryable?: boolean } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = new.target.name
    this.code = code
    this.hint = options.hint
    this.retryable = options.retryable ?? false
  }
}

/** One thing that is wrong with the configuration. */
export interface ConfigProblem {
  variable: string
  found: string
  expected: string
}

/** The configuration can't be used; names every problem at once. */
export class ConfigError extends LighterError {
  readonly problems: ConfigProblem[]

  constructor(problems: ConfigProblem[]) {
    const lines = problems.map(p => `  ${p.variable}: found ${p.found}, expected ${p.expected}`)
    super('invalid_config', `${problems.length} problem(s) in the configuration\n${lines.join('\n')}`, {
      hint: 'See .env.example for every variable with its default.',
    })
    this.problems = problems
  }
}

/** A migration can't be applied, or the schema is not the one this version needs. */
export class MigrationError extends LighterError {}

/** Something that the SQL side refused, or a row that can't be offloaded as it is. */
export class RowError extends LighterError {}

/** The object store failed or answered what it should not. Retryable when it may be well a moment later. */
export class StoreError extends LighterError {}

/** Of several objects some could not be deleted; the others were. */
export class DeleteError extends StoreError {
  readonly failedKeys: string[]

  constructor(failedKeys: string[], message: string) {
    super('store_delete_failed', message, { retryable: true })
    this.failedKeys = failedKeys
  }
}

/** An artifact can't be read: not there, gone, damaged. Never retryable, never answered with wrong data. */
export class ArtifactError extends LighterError {}

/** The bucket prefix belongs to another installation, or this database is a copy. */
export class OwnershipError extends LighterError {}

export function asError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : new Error(String(thrown))
}

/** The message of whatever was thrown. */
export function messageOf(error: unknown): string {
  // A host with several addresses fails with one error for each, and without a message of its own.
  if (error instanceof AggregateError && error.message === '') {
    return [...new Set(error.errors.map(messageOf))].join('; ')
  }
  return error instanceof Error ? error.message : String(error)
}

/** SQLSTATE of an error of node-postgres, if it is one. Some of the system's codes look like one: EPIPE. */
export function sqlState(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null || 'errno' in error) return undefined
  if (!('code' in error) || typeof error.code !== 'string') return undefined
  return /^[0-9A-Z]{5}$/.test(error.code) ? error.code : undefined
}

/**
 * True when the database, not the statement, is at fault: connection lost or refused, shutting down, read-only, out of
 * connections, memory or disk (SQLSTATE classes 08, 28, 53, 57P and 58), or an error of the socket.
 */
export function isDatabaseOutage(error: unknown): boolean {
  const state = sqlState(error)
  if (state !== undefined) return /^(08|28|3D|53|57P|58|25006)/.test(state)
  if (typeof error !== 'object' || error === null) return false
  const code = 'code' in error && typeof error.code === 'string' ? error.code : ''
  if (/^(ECONN|EPIPE|ETIMEDOUT|ENOTFOUND|EHOSTUNREACH|ENETUNREACH|EAI_)/.test(code)) return true
  return /connection terminated|timeout exceeded when trying to connect|query read timeout|client has encountered a connection error|connection error and is not queryable/i.test(
    messageOf(error),
  )
}

/**
 * True of trouble that no row can have caused: out of disk or connections, a login refused, a read-only server, a lock
 * that somebody else holds, rows that row-level security hides, a lost conflict. (A connection that is lost may have been lost on a row.)
 */
export function isNoRowsFault(error: unknown): boolean {
  const state = sqlState(error)
  return state !== undefined && /^(28|3D|40|53[^2]|57P03|25006|55P03|55L01)/.test(state)
}

/**
 * Postgres gave up on what a statement asked for: too long for it or nested too deeply, out of memory, out of time. When
 * the statement was for a single row, trying again would only cost the same again.
 */
export function isRowsLimit(error: unknown): boolean {
  const state = sqlState(error)
  return state !== undefined && /^(54|53200|57014)/.test(state)
}

/** The statement does not fit the table, or may not be run on it: no row can have caused that. */
export function isSourceFault(error: unknown): boolean {
  return sqlState(error)?.startsWith('42') === true
}

/** A lock was waited for in vain: of a table that is being altered, as a rule. */
export function isLockTimeout(error: unknown): boolean {
  return sqlState(error) === '55P03'
}

/** Deadlock or serialization failure: the same transaction may well succeed when run again. */
export function isTransactionConflict(error: unknown): boolean {
  const state = sqlState(error)
  return state === '40P01' || state === '40001'
}
