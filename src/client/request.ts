// One request to the API, its failures told apart.
import { LighterError, messageOf } from '../errors.ts'
import { LighterHttpError } from './errors.ts'
import { streamOf } from './payload-stream.ts'
import { retryAfterMs, withRetries } from './retry.ts'
import { startWatch, type Watch } from './watch.ts'

export interface Connection {
  baseUrl: string
  tenantId: string | undefined
  token: string | (() => string | Promise<string>) | undefined
  fetch: typeof fetch
  /** Longest silence of the server. */
  timeoutMs: number
  /** Of requests that may be sent twice. */
  retries: number
}

export interface ApiRequest {
  method: 'GET' | 'POST' | 'DELETE'
  path: string
  query?: Record<string, string | undefined>
  headers?: Record<string, string>
  /** A stream can be sent but once. */
  body?: string | Uint8Array<ArrayBuffer> | AsyncIterable<Uint8Array>
  signal: AbortSignal | undefined
}

export interface Answer {
  status: number
  headers: Headers
  /** The body; must be read to its end, or cancelled. */
  chunks: AsyncIterable<Uint8Array>
  cancel(): void
}

/** An upload's answer is awaited for as much longer as a line of 100 KB/s needs for it. */
const slowestBytesPerMs = 100

/** Sends the request, again where that is safe and can help, until there is the beginning of a good answer. */
export function open(connection: Connection, request: ApiRequest): Promise<Answer> {
  return withRetries(policyOf(connection, request), () => openOnce(connection, request))
}

/** As `open`, with the whole body of the answer as text. */
export function exchange(connection: Connection, request: ApiRequest): Promise<string> {
  return withRetries(policyOf(connection, request), async () => {
    const answer = await openOnce(connection, request)
    return new TextDecoder('utf-8', { ignoreBOM: true }).decode(await collect(answer.chunks))
  })
}

/** As `open`, with the whole body of the answer as bytes. */
export function download(connection: Connection, request: ApiRequest): Promise<Uint8Array> {
  return withRetries(policyOf(connection, request), async () =>
    collect((await openOnce(connection, request)).chunks),
  )
}

function policyOf(connection: Connection, { body, signal }: ApiRequest) {
  const once = typeof body === 'object' && !(body instanceof Uint8Array)
  return { retries: once ? 0 : connection.retries, signal }
}

async function openOnce(connection: Connection, request: ApiRequest): Promise<Answer> {
  const { signal } = request
  signal?.throwIfAborted()
  const watch = startWatch(signal)
  let sourceError: { error: unknown } | null = null
  const onSourceError = (error: unknown) => {
    sourceError = { error }
  }
  try {
    const init = await requestInit(connection, request, watch, onSourceError)
    const response = await connection.fetch(urlOf(connection, request), init)
    // The body is waited for when it is read.
    watch.pause()
    const answer = {
      status: response.status,
      headers: response.headers,
      chunks: chunksOf(response, watch, signal, connection.timeoutMs),
      cancel: watch.abort,
    }
    if (response.ok) return answer
    throw errorOf(answer, await collect(answer.chunks).catch(() => new Uint8Array()))
  } catch (error) {
    watch.abort()
    // Whoever's stream broke gets its own error back.
    if (sourceError !== null) throw (sourceError as { error: unknown }).error
    throw explain(error, watch, signal, 'network_error', connection)
  }
}

async function requestInit(
  connection: Connection,
  { method, headers, body, signal: callerSignal }: ApiRequest,
  watch: Watch,
  onSourceError: (error: unknown) => void,
): Promise<RequestInit> {
  const { token, tenantId, timeoutMs } = connection
  const bearer = typeof token === 'function' ? await callerFunction(token) : token
  callerSignal?.throwIfAborted()
  const common = {
    method,
    signal: watch.signal,
    headers: {
      ...headers,
      ...(bearer !== undefined && { authorization: `Bearer ${bearer}` }),
      ...(tenantId !== undefined && { 'x-tenant-id': tenantId }),
    },
  }
  if (body === undefined || typeof body === 'string' || body instanceof Uint8Array) {
    watch.expect(timeoutMs + (body?.length ?? 0) / slowestBytesPerMs)
    return body === undefined ? common : { ...common, body }
  }
  const chunks = watched(body, watch, timeoutMs, onSourceError)
  watch.expect(timeoutMs)
  return { ...common, body: streamOf(chunks, () => undefined), duplex: 'half' }
}

/** Errors of the caller's own function are none of the network's. */
async function callerFunction(token: () => string | Promise<string>): Promise<string> {
  try {
    return await token()
  } catch (error) {
    throw new LighterError('token_unavailable', `the token function failed: ${messageOf(error)}`, {
      cause: error,
    })
  }
}

/** While the source is asked, the time is the source's; in between it is the network's. */
async function* watched(
  body: AsyncIterable<Uint8Array>,
  watch: Watch,
  timeoutMs: number,
  onError: (error: unknown) => void,
): AsyncGenerator<Uint8Array> {
  try {
    watch.pause()
    for await (const chunk of body) {
      watch.expect(timeoutMs)
      yield chunk
      watch.pause()
    }
    watch.expect(timeoutMs)
  } catch (error) {
    onError(error)
    throw error
  }
}

function urlOf(connection: Connection, { path, query = {} }: ApiRequest): string {
  const parameters = new URLSearchParams()
  for (const [name, value] of Object.entries(query)) if (value !== undefined) parameters.set(name, value)
  const search = parameters.size === 0 ? '' : `?${parameters}`
  return `${connection.baseUrl}${path}${search}`
}

async function* chunksOf(
  response: Response,
  watch: Watch,
  signal: AbortSignal | undefined,
  timeoutMs: number,
): AsyncGenerator<Uint8Array> {
  const reader = response.body?.getReader()
  if (reader === undefined) {
    watch.pause()
    return
  }
  let ended = false
  try {
    for (;;) {
      watch.expect(timeoutMs)
      const { done, value } = await reader.read()
      watch.pause()
      if (done) {
        ended = true
        return
      }
      yield value
    }
  } catch (error) {
    throw explain(error, watch, signal, 'answer_broken')
  } finally {
    // Left early: the rest need not come.
    if (!ended) watch.abort()
  }
}

/** The whole of it. */
async function collect(chunks: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const pieces: Uint8Array[] = []
  let size = 0
  for await (const chunk of chunks) {
    pieces.push(chunk)
    size += chunk.length
  }
  const bytes = new Uint8Array(size)
  let at = 0
  for (const piece of pieces) {
    bytes.set(piece, at)
    at += piece.length
  }
  return bytes
}

/** What was thrown on the way, in our words. */
function explain(
  error: unknown,
  watch: Watch,
  signal: AbortSignal | undefined,
  code: 'network_error' | 'answer_broken',
  connection?: Connection,
): unknown {
  if (error instanceof LighterError) return error
  if (signal?.aborted) return signal.reason
  if (watch.expired()) {
    return new LighterHttpError('timeout', 'the server was silent for too long', {
      status: 0,
      retryable: true,
      cause: error,
    })
  }
  // "fetch failed" by itself says nothing: its cause does.
  const cause =
    error instanceof Error && error.cause !== undefined ? messageOf(error.cause) : messageOf(error)
  const what = connection === undefined ? 'the answer broke off' : `${connection.baseUrl} can not be reached`
  return new LighterHttpError(code, `${what}: ${cause}`, { status: 0, retryable: true, cause: error })
}

function errorOf(answer: Answer, body: Uint8Array): LighterHttpError {
  const { status, headers } = answer
  const retryAfter = retryAfterMs(headers.get('retry-after'))
  const said = errorBody(body)
  if (said === null) {
    // Not our API's: a proxy in between.
    return new LighterHttpError(`http_${status}`, `the server answered ${status} without saying why`, {
      status,
      retryable: [408, 429, 502, 503, 504].includes(status),
      retryAfterMs: retryAfter,
    })
  }
  const { status: _, code, message, request_id: requestId, field, ...details } = said
  const text = (value: unknown) => (typeof value === 'string' ? value : undefined)
  return new LighterHttpError(code, text(message) ?? code, {
    status,
    retryable:
      (status === 408 || status === 429 || status === 503 || code === 'idempotency_conflict') &&
      // That nobody may call it is not a matter of time.
      code !== 'auth_not_configured',
    requestId: text(requestId),
    field: text(field),
    retryAfterMs: retryAfter,
    details,
  })
}

function errorBody(body: Uint8Array): (Record<string, unknown> & { code: string }) | null {
  try {
    const value: unknown = JSON.parse(new TextDecoder().decode(body))
    if (typeof value !== 'object' || value === null) return null
    const members = value as Record<string, unknown>
    return typeof members.code === 'string' ? { ...members, code: members.code } : null
  } catch {
    return null
  }
}
