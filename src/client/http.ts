// The client over HTTP. It needs `fetch` and nothing of Node: the same in a browser, a Worker, Deno or Bun.
import { MalformedJsonError, splitArray, splitObject } from '../artifacts/raw-json.ts'
import { ArtifactError, type LighterError, StoreError } from '../errors.ts'
import type { LighterClient } from './client.ts'
import { LighterHttpError } from './errors.ts'
import { artifactOf, payloadOf } from './payload.ts'
import { counted, rangeOf, requireIntact, streamOf, verified } from './payload-stream.ts'
import { putBodyOf } from './put-body.ts'
import { type Answer, type ApiRequest, type Connection, download, exchange, open } from './request.ts'
import { hydrateRow, hydrateRows } from './rows.ts'
import { hydrateValueRow, hydrateValueRows } from './values.ts'

export interface HttpClientOptions {
  /** Where the API is, such as https://artifacts.example.com. */
  baseUrl: string
  /** Bearer token: a user's JWT, or a service key. A function is asked before every request, and may renew it. */
  token?: string | (() => string | Promise<string>) | undefined
  /** Needed with a service key. With a JWT, which names the tenant itself, it is only compared. */
  tenantId?: string | undefined
  /** Default: the global one. */
  fetch?: typeof fetch | undefined
  /** Longest silence of the server, in milliseconds; default 30,000. Uploads are given longer by their size. */
  timeoutMs?: number | undefined
  /**
   * How often a request is sent again after a network error, 429 or 503; default 3. After 200 ms, 400 ms … or what
   * the server asks for (Retry-After), if that is a minute at most.
   */
  retries?: number | undefined
}

const root = '/api/storage/artifacts'
/** Longer JSON goes the way of bytes, which are streamed into the store; the API takes no JSON body beyond 8 MiB. */
const maxJsonChars = 2 * 1024 * 1024

/** @throws {TypeError} an option can't be used */
export function createHttpClient(options: HttpClientOptions): LighterClient {
  const connection: Connection = {
    baseUrl: baseUrlOf(options.baseUrl),
    tenantId: options.tenantId,
    token: options.token,
    // Some fetches want to be called on nothing but the global object.
    fetch: options.fetch ?? ((input, init) => globalThis.fetch(input, init)),
    timeoutMs: count(options.timeoutMs ?? 30_000, 'timeoutMs'),
    retries: count(options.retries ?? 3, 'retries'),
  }
  const call = async <T>(request: ApiRequest): Promise<T> => answerOf(await exchange(connection, request))
  const hydrateTexts = (texts: string[], field: string, signal: AbortSignal | undefined) =>
    hydrateOverHttp(connection, texts, field, signal)

  const client: LighterClient = {
    hydrate: (row, hydrateOptions) =>
      hydrateOptions?.kind === undefined
        ? hydrateRow(hydrateTexts, row, hydrateOptions)
        : hydrateValueRow(client.get, row, hydrateOptions),
    hydrateMany: (rows, hydrateOptions) =>
      hydrateOptions?.kind === undefined
        ? hydrateRows(hydrateTexts, rows, hydrateOptions)
        : hydrateValueRows(client.get, rows, hydrateOptions),

    put: async artifact => {
      const { kind, entityType, entityId, signal } = artifact
      const body = await putBodyOf(artifact)
      const idempotencyKey = artifact.idempotencyKey ?? crypto.randomUUID()
      const common = { method: 'POST' as const, signal }
      if (body.shape === 'json' && body.text.length <= maxJsonChars) {
        const facts = JSON.stringify({
          kind,
          entity_type: entityType,
          entity_id: entityId,
          content_type: body.contentType,
        })
        const answer = await call<{ artifact: Parameters<typeof artifactOf>[0] }>({
          ...common,
          path: root,
          headers: { 'content-type': 'application/json', 'idempotency-key': idempotencyKey },
          // Beside the facts, as the text it is.
          body: `${facts.slice(0, -1)},"payload":${body.text}}`,
        })
        return artifactOf(answer.artifact)
      }
      const answer = await call<{ artifact: Parameters<typeof artifactOf>[0] }>({
        ...common,
        path: `${root}/raw`,
        query: { kind, entity_type: entityType, entity_id: entityId },
        headers: { 'content-type': body.contentType, 'idempotency-key': idempotencyKey },
        body:
          body.shape === 'json'
            ? new TextEncoder().encode(body.text)
            : body.shape === 'bytes'
              ? body.bytes
              : body.chunks,
      })
      return artifactOf(answer.artifact)
    },

    get: async (id, { signal } = {}) => {
      const path = `${root}/${encodeURIComponent(id)}`
      const bytes = await download(connection, { method: 'GET', path, signal })
      const members = membersOf(new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes))
      const artifact = artifactOf(JSON.parse(members.get('artifact') ?? 'null'))
      const text = members.get('payload')
      const base64 = members.get('payload_base64')
      let payload: Uint8Array
      // Bytes that are no UTF-8 in a payload that is called JSON do not survive as text.
      if (text !== undefined && !text.includes('\ufffd')) payload = new TextEncoder().encode(text)
      else if (base64 !== undefined) payload = fromBase64(JSON.parse(base64))
      else payload = await download(connection, { method: 'GET', path, query: { raw: '1' }, signal })
      requireIntact(payload, artifact)
      return { artifact, payload: payloadOf(payload) }
    },

    stream: async (id, { range, signal } = {}) => {
      const { start, end } = rangeOf(range)
      const answer = await open(connection, {
        method: 'GET',
        path: `${root}/${encodeURIComponent(id)}`,
        query: { raw: '1' },
        headers: range === undefined ? {} : { range: `bytes=${start}-${end === undefined ? '' : end - 1}` },
        signal,
      })
      const sha256 = /^(?:W\/)?"([0-9a-f]{64})"$/.exec(answer.headers.get('etag') ?? '')?.[1] ?? null
      const chunks =
        answer.status === 206
          ? counted(answer.chunks, { id, length: partLength(answer, id, start, end) })
          : verified(answer.chunks, { id, sha256, sizeBytes: lengthOf(answer.headers) }, start, end)
      return streamOf(chunks, answer.cancel)
    },

    list: async ({ kind, entityType, entityId, limit, cursor, signal } = {}) => {
      const answer = await call<{
        artifacts: Parameters<typeof artifactOf>[0][]
        next_cursor: string | null
      }>({
        method: 'GET',
        path: root,
        query: { kind, entity_type: entityType, entity_id: entityId, limit: limit?.toString(), cursor },
        signal,
      })
      return { artifacts: answer.artifacts.map(artifactOf), nextCursor: answer.next_cursor }
    },

    delete: async (id, { force, signal } = {}) => {
      try {
        const answer = await call<{ deleted_at: string }>({
          method: 'DELETE',
          path: `${root}/${encodeURIComponent(id)}`,
          query: { force: force ? 'true' : undefined },
          signal,
        })
        return { deletedAt: new Date(answer.deleted_at) }
      } catch (error) {
        // Also what a repeated request hears of itself.
        if (error instanceof LighterHttpError && error.status === 410) {
          const { deleted_at: at } = error.details
          if (typeof at === 'string') return { deletedAt: new Date(at) }
        }
        throw error
      }
    },

    url: async (id, { expiresInSeconds, signal } = {}) => {
      const answer = await call<{ url: string; expires_at: string }>({
        method: 'GET',
        path: `${root}/${encodeURIComponent(id)}/url`,
        query: { expires_in: expiresInSeconds?.toString() },
        signal,
      })
      return { url: answer.url, expiresAt: new Date(answer.expires_at) }
    },
  }
  return client
}

/** Null: it does not say, or not of the payload as it is. */
function lengthOf(headers: Headers): number | null {
  const text = headers.get('content-length')
  return text === null || headers.get('content-encoding') !== null ? null : Number(text)
}

/** @throws {ArtifactError} it is not the part that was asked for */
function partLength(answer: Answer, id: string, start: number, end: number | undefined): number {
  const said = answer.headers.get('content-range')
  const [, first, last, size] = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(said ?? '') ?? []
  if (Number(first) === start && Number(last) === Math.min(end ?? Number(size), Number(size)) - 1)
    return Number(last) + 1 - start
  answer.cancel()
  throw badAnswer(`of artifact ${id} the part from byte ${start} was expected, not ${said}`)
}

async function hydrateOverHttp(
  connection: Connection,
  texts: string[],
  field: string,
  signal: AbortSignal | undefined,
): Promise<(string | LighterError)[]> {
  const members = membersOf(
    await exchange(connection, {
      method: 'POST',
      path: '/api/storage/hydrate',
      headers: { 'content-type': 'application/json' },
      body: `{"field":${JSON.stringify(field)},"metadata":[${texts.join(',')}]}`,
      signal,
    }),
  )
  // Taken apart as text: a parser would round the numbers.
  const results: (string | LighterError)[] = splitArray(members.get('metadata') ?? '[]')
  if (results.length !== texts.length) throw badAnswer('as many rows as were sent were expected')
  const errors: { index: number; code: string; message: string }[] = JSON.parse(members.get('errors') ?? '[]')
  for (const { index, code, message } of errors) {
    results[index] = /^(store|database)_/.test(code)
      ? new StoreError(code, message, { retryable: true })
      : new ArtifactError(code, message)
  }
  return results
}

function answerOf<T>(text: string): T {
  try {
    return JSON.parse(text)
  } catch (error) {
    throw badAnswer('JSON was expected', error)
  }
}

function membersOf(text: string): Map<string, string> {
  try {
    return splitObject(text)
  } catch (error) {
    if (error instanceof MalformedJsonError) throw badAnswer('a JSON object was expected', error)
    throw error
  }
}

function badAnswer(what: string, cause?: unknown): LighterHttpError {
  return new LighterHttpError('bad_answer', `the answer is not one of this API: ${what}`, {
    status: 200,
    retryable: false,
    cause,
  })
}

function fromBase64(text: string): Uint8Array {
  const binary = atob(text)
  const bytes = new Uint8Array(binary.length)
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i)
  return bytes
}

function baseUrlOf(text: string): string {
  if (!URL.canParse(text) || !/^https?:$/.test(new URL(text).protocol)) {
    throw new TypeError(`baseUrl: a URL such as https://artifacts.example.com was expected, not ${text}`)
  }
  return text.replace(/\/+$/, '')
}

function count(value: number, name: string): number {
  if (Number.isInteger(value) && value >= 0) return value
  throw new TypeError(`${name}: a whole number of 0 or more was expected, not ${value}`)
}
