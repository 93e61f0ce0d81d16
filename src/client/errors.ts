// Errors of clients, beside those of the artifacts themselves.
import { LighterError } from '../errors.ts'
import type { HydrateFailure } from './client.ts'

/**
 * A request of the HTTP client failed as a whole. `code` is the API's (docs/api.md); of the client's own making are
 * `network_error`, `timeout`, `answer_broken` (it ended before its end), `bad_answer` (not one of this API) and
 * `http_<status>` (from something in between).
 */
export class LighterHttpError extends LighterError {
  /** 0: there was no answer. */
  readonly status: number
  /** Finds the request in the daemon's log. */
  readonly requestId: string | undefined
  /** Of the request, that the error is about. */
  readonly field: string | undefined
  /** After what time the server would like to be asked again. */
  readonly retryAfterMs: number | undefined
  /** What else the answer said, such as `deleted_at`. */
  readonly details: Readonly<Record<string, unknown>>

  constructor(
    code: string,
    message: string,
    facts: {
      status: number
      retryable: boolean
      requestId?: string | undefined
      field?: string | undefined
      retryAfterMs?: number | undefined
      details?: Record<string, unknown>
      cause?: unknown
    },
  ) {
    super(code, message, { cause: facts.cause, retryable: facts.retryable })
    this.status = facts.status
    this.requestId = facts.requestId
    this.field = facts.field
    this.retryAfterMs = facts.retryAfterMs
    this.details = facts.details ?? {}
  }
}

/** Some rows could not be hydrated. Code `rows_not_hydrated`; its cause is the first of their errors. */
export class HydrateError<R extends object = object> extends LighterError {
  /** All rows in their order; those that failed as they were handed in. */
  readonly rows: R[]
  readonly failures: HydrateFailure<R>[]

  constructor(rows: R[], failures: HydrateFailure<R>[]) {
    const [first] = failures
    super(
      'rows_not_hydrated',
      `${failures.length} of ${rows.length} rows can not be hydrated; row ${first?.index}: ${first?.error.message}`,
      { cause: first?.error, retryable: failures.every(failure => failure.error.retryable) },
    )
    this.rows = rows
    this.failures = failures
  }
}
