// What went wrong, as a client may know it: a status, a stable code, a sentence. Never a stack, SQL or a key.
import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify'
import { hasZodFastifySchemaValidationErrors } from 'fastify-type-provider-zod'
import { MalformedJsonError } from '../artifacts/raw-json.ts'
import { ArtifactError, isDatabaseOutage, LighterError, StoreError, sqlState } from '../errors.ts'

export class ApiError extends Error {
  readonly status: number
  readonly code: string
  /** Of the request, that the error is about. */
  readonly field: string | undefined
  /** Further facts for the client. */
  readonly facts: Record<string, string> | undefined

  constructor(
    status: number,
    code: string,
    message: string,
    options: { field?: string; facts?: Record<string, string>; cause?: unknown } = {},
  ) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'ApiError'
    this.status = status
    this.code = code
    this.field = options.field
    this.facts = options.facts
  }
}

/** One answer for all artifacts that the tenant does not have, whether they exist elsewhere or not. */
export function notFound(): ApiError {
  return new ApiError(404, 'artifact_not_found', 'Artifact not found')
}

interface ErrorBody {
  status: 'error'
  code: string
  message: string
  request_id: string
  field?: string
  [fact: string]: unknown
}

const artifactStatus: Record<string, [number, string]> = {
  artifact_gone: [410, 'the artifact was deleted'],
  artifact_not_found: [404, 'Artifact not found'],
  artifact_too_large: [413, 'the payload is too large to be answered whole: fetch it with ?raw=1'],
  payload_too_large: [413, 'the payload is too large'],
  artifact_corrupt: [502, 'the stored payload is damaged'],
  artifact_object_missing: [502, 'the stored payload is missing'],
  artifact_foreign_key: [502, 'the stored payload is not where it must be'],
  artifact_encoding_unknown: [502, 'the stored payload is in an unknown encoding'],
  pointer_chain_too_long: [422, 'too many payloads lie on top of each other'],
  pointer_not_mergeable: [422, 'a pointer was changed, so that what it stands for can not be put together'],
  object_swept: [503, 'the upload took too long: send it again'],
  idempotency_conflict: [409, 'a request with this Idempotency-Key is under way'],
}

/** About the request itself: their own message may be told. */
const requestFaults: Record<string, [number, string]> = {
  kind_not_allowed: [400, 'kind'],
  idempotency_mismatch: [422, 'idempotency-key'],
}

/** Turns whatever was thrown into what is answered. */
export function toApiError(error: unknown): ApiError {
  if (error instanceof ApiError) return error
  if (error instanceof MalformedJsonError)
    return new ApiError(400, 'malformed_json', error.message, { field: 'body' })
  if (error instanceof ArtifactError) {
    const fault = requestFaults[error.code]
    if (fault !== undefined) return new ApiError(fault[0], error.code, error.message, { field: fault[1] })
    const [status, message] = artifactStatus[error.code] ?? [502, 'the stored payload can not be read']
    return new ApiError(status, error.code, message, { cause: error })
  }
  if (error instanceof StoreError) {
    return new ApiError(503, 'store_unavailable', 'the object store can not be reached: try again later', {
      cause: error,
    })
  }
  // Node's own, of a request whose client is gone; by its code it could be anything's connection.
  if (
    error instanceof Error &&
    error.message === 'aborted' &&
    'code' in error &&
    error.code === 'ECONNRESET'
  ) {
    return new ApiError(400, 'upload_aborted', 'the body broke off', { cause: error })
  }
  if (isDatabaseOutage(error)) {
    return new ApiError(503, 'database_unavailable', 'the database can not be reached: try again later', {
      cause: error,
    })
  }
  // What a value of the request does in a cast.
  if (/^22/.test(sqlState(error) ?? '')) {
    return new ApiError(400, 'invalid_request', 'a value of the request is not one that the database takes', {
      cause: error,
    })
  }
  if (sqlState(error) === '57014') {
    return new ApiError(503, 'database_timeout', 'the database took too long', { cause: error })
  }
  if (hasZodFastifySchemaValidationErrors(error)) {
    const [first] = error.validation
    const field = `${error.validationContext}${(first?.instancePath ?? '').replaceAll('/', '.')}`.replace(
      /\.$/,
      '',
    )
    return new ApiError(400, 'invalid_request', `${field}: ${first?.message ?? 'not valid'}`, { field })
  }
  if (isFastifyError(error)) return fastifyError(error)
  return new ApiError(500, 'internal_error', 'something went wrong on our side', { cause: error })
}

function isFastifyError(error: unknown): error is FastifyError {
  return (
    error instanceof Error &&
    'statusCode' in error &&
    typeof error.statusCode === 'number' &&
    error.statusCode >= 400 &&
    error.statusCode < 500
  )
}

const fastifyCodes: Record<string, [number, string, string]> = {
  FST_ERR_CTP_BODY_TOO_LARGE: [413, 'body_too_large', 'the body is longer than the limit'],
  FST_ERR_CTP_INVALID_MEDIA_TYPE: [415, 'unsupported_media_type', 'the body must be application/json'],
  FST_ERR_CTP_EMPTY_JSON_BODY: [400, 'malformed_json', 'the body is empty'],
  FST_ERR_BAD_URL: [400, 'invalid_request', 'the URL is malformed'],
  FST_ERR_MAX_PARAM_LENGTH: [414, 'invalid_request', 'a part of the URL is too long'],
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: [
    400,
    'invalid_request',
    'the body is not as long as Content-Length says',
  ],
}

function fastifyError(error: FastifyError): ApiError {
  const known = fastifyCodes[error.code]
  if (known !== undefined) return new ApiError(...known)
  if (error.statusCode === 429) {
    return new ApiError(429, 'rate_limited', 'too many requests: see the RateLimit and Retry-After headers')
  }
  if (error.statusCode === 408)
    return new ApiError(408, 'request_timeout', 'the request took too long to arrive')
  return new ApiError(error.statusCode ?? 400, 'invalid_request', 'the request is not valid')
}

export function sendError(request: FastifyRequest, reply: FastifyReply, error: ApiError): void {
  const body: ErrorBody = {
    status: 'error',
    code: error.code,
    message: error.message,
    request_id: request.id,
    ...(error.field !== undefined && { field: error.field }),
    ...error.facts,
  }
  if (error.status !== 416) reply.removeHeader('content-range')
  if (error.status === 401) reply.header('www-authenticate', 'Bearer')
  if (error.status === 503) reply.header('retry-after', '5')
  // An error is of the moment, whatever the answer would have been.
  reply
    .header('cache-control', 'no-store')
    .removeHeader('etag')
    .removeHeader('content-length')
    .removeHeader('content-disposition')
    .removeHeader('accept-ranges')
    .code(error.status)
    .type('application/json; charset=utf-8')
    .send(JSON.stringify(body))
}

/** How much the operator should care, and what the log says. */
export function logError(request: FastifyRequest, error: ApiError): void {
  if (error.status < 500) return
  const { cause } = error
  request.log.error(
    {
      code: error.code,
      error: cause instanceof LighterError || cause instanceof Error ? cause.message : undefined,
      stack: error.code === 'internal_error' && cause instanceof Error ? cause.stack : undefined,
    },
    error.message,
  )
}
