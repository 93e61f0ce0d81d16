// What a client can do, whichever way it reaches the artifacts: over HTTP or over pg and the store.
import type { LighterError } from '../errors.ts'

/**
 * One tenant's artifacts, and the rows that point to them.
 *
 * Every method rejects with a `LighterError` (its `code` says why, `retryable` whether trying again can help): over
 * HTTP a `LighterHttpError` when the request as a whole failed, an `ArtifactError` for one artifact or row. When
 * `signal` is aborted the promise rejects with the signal's reason. What is not a valid argument is a `TypeError`.
 */
export interface LighterClient {
  /**
   * A copy of the row with its metadata as it was before offloading. A row without pointers is returned as it is, at
   * once, and nothing is asked of anybody: rows from before pg-lighter need no case of their own.
   * @throws {LighterError} the row's own error: a pointer leads nowhere (`artifact_not_found`, also for what is
   *   another tenant's), to what was deleted (`artifact_gone`), to damaged bytes (`artifact_corrupt`)
   */
  hydrate<R extends object>(row: R, options?: HydrateOptions): Promise<R>
  /**
   * Many rows, in their order; only those with pointers are sent, 200 at once, or with `kind` one by one.
   * @throws {HydrateError} when a row can't be hydrated and there is no `onError`; it holds all the others
   */
  hydrateMany<R extends object>(rows: readonly R[], options?: HydrateManyOptions<R>): Promise<R[]>
  /** Stores a payload. Safe to repeat under the same `idempotencyKey`. */
  put(artifact: NewArtifact): Promise<StoredArtifact>
  /**
   * An artifact with its payload, checked against its sha256; for what fits in memory.
   * @throws {LighterError} `artifact_not_found`, `artifact_deleted`, `artifact_expired`, `artifact_corrupt`,
   *   `artifact_object_missing`, `artifact_too_large`
   */
  get(id: string, options?: CallOptions): Promise<ArtifactWithPayload>
  /**
   * A payload as a stream. Of a payload read whole the last piece comes only when the sha256 was right: who got all
   * the bytes got the right ones, else the stream errors (`artifact_corrupt`).
   * @throws {LighterError} as `get`; `range_not_satisfiable`
   */
  stream(id: string, options?: StreamOptions): Promise<PayloadStream>
  /** Artifacts that can be read, newest first, a page at a time. */
  list(filter?: ListFilter): Promise<ArtifactPage>
  /**
   * Deletes an artifact; one that is gone already is no error. It can't be read from then on, its bytes go later.
   * @throws {LighterError} `artifact_not_found`; `artifact_in_use`: a row may point to it, and there is no `force`
   */
  delete(id: string, options?: DeleteOptions): Promise<{ deletedAt: Date }>
  /** A URL that reads the payload without credentials until it expires. */
  url(id: string, options?: UrlOptions): Promise<{ url: string; expiresAt: Date }>
}

export interface CallOptions {
  /** Ends the call; its promise rejects with the signal's reason. */
  signal?: AbortSignal | undefined
}

export interface HydrateOptions extends CallOptions {
  /** Property of the row with the metadata: an object, JSON text, or null. Default `metadata`. */
  column?: string | undefined
  /**
   * For a column of mode stub or whole: the kind of its artifacts (`lighter attach --kind`). JSON comes back parsed, or as
   * text where the row has text, text as a string, bytes as a Uint8Array. An artifact of another kind is not read.
   */
  kind?: string | undefined
  /** Mode whole: property of the row with the artifact's id. It stays in the row. */
  pointerColumn?: string | undefined
  /** Field of the metadata that phase 1 offloads. Default `tool_interactions`. */
  field?: string | undefined
  /**
   * Makes a value of the exact text, for rows whose metadata is an object. Default JSON.parse, which rounds numbers
   * beyond a double; a lossless parser keeps them. Rows whose metadata is text get text, untouched.
   */
  parse?: ((text: string) => unknown) | undefined
  /** Inverse of `parse`, where its values need one. Default JSON.stringify. */
  stringify?: ((value: unknown) => string) | undefined
}

export interface HydrateManyOptions<R extends object> extends HydrateOptions {
  /** With it nothing is thrown for a row that can't be hydrated: it comes back as it was, and this is told. */
  onError?: ((failure: HydrateFailure<R>) => void) | undefined
}

export interface HydrateFailure<R extends object = object> {
  /** Of the row among those handed in. */
  index: number
  row: R
  error: LighterError
}

/** What `put` stores: `payload`, `json` or `body`. */
export type NewArtifact = NewArtifactFacts & (JsonValue | JsonText | Bytes)

interface NewArtifactFacts extends CallOptions {
  /** What it is, in snake_case, such as `agent_trace`. */
  kind: string
  /** What it belongs to, such as `conversation`. */
  entityType?: string | undefined
  /** Uuid of what it belongs to. */
  entityId?: string | undefined
  /** Default `application/json`, with `body` `application/octet-stream`. */
  contentType?: string | undefined
  /**
   * The same artifact put again under it within 24 hours gives the first one: 1 to 255 visible ASCII characters.
   * Over HTTP each call makes one of its own, so that its retries store nothing twice.
   */
  idempotencyKey?: string | undefined
}

interface JsonValue {
  /** Any value that JSON.stringify takes; a string is stored as a JSON string. */
  payload: unknown
  json?: undefined
  body?: undefined
}

interface JsonText {
  /** JSON text, stored to the last character. */
  json: string
  payload?: undefined
  body?: undefined
}

interface Bytes {
  /** Bytes as they are; text is encoded as UTF-8. A stream is sent once: a failure in the middle is not retried. */
  body: Uint8Array | string | Blob | ReadableStream<Uint8Array> | AsyncIterable<Uint8Array | string>
  payload?: undefined
  json?: undefined
}

export interface StoredArtifact {
  id: string
  tenantId: string
  kind: string
  entityType: string | null
  entityId: string | null
  /** Of the object that holds the payload; many artifacts may be in one. */
  key: string
  contentType: string | null
  /** Of the payload, uncompressed. Null, like `sha256`, only for what the application registered without. */
  sizeBytes: number | null
  sha256: string | null
  createdAt: Date
}

export interface ArtifactWithPayload {
  artifact: StoredArtifact
  payload: Payload
}

export interface Payload {
  /** The exact bytes. */
  bytes: Uint8Array
  /** @throws {LighterError} `payload_not_text` when they are not UTF-8 */
  text(): string
  /** @param parse default JSON.parse. @throws what it throws */
  json<T = unknown>(parse?: (text: string) => T): T
}

export interface StreamOptions extends CallOptions {
  /** Bytes from `start` to `end`, `end` excluded; without `end`, to the last. */
  range?: { start: number; end?: number | undefined } | undefined
}

/** Can be read by `for await`, and handed to `pipeline`, `Readable.from` or `new Response`. */
export type PayloadStream = ReadableStream<Uint8Array> & AsyncIterable<Uint8Array>

export interface ListFilter extends CallOptions {
  kind?: string | undefined
  entityType?: string | undefined
  entityId?: string | undefined
  /** 1 to 200, default 50. */
  limit?: number | undefined
  /** `nextCursor` of the page before, from the same kind of client. */
  cursor?: string | undefined
}

export interface ArtifactPage {
  artifacts: StoredArtifact[]
  /** Null: that was the last page. */
  nextCursor: string | null
}

export interface DeleteOptions extends CallOptions {
  /** Also when it was taken off a row, which then can't be hydrated any more. */
  force?: boolean | undefined
}

export interface UrlOptions extends CallOptions {
  /** Seconds, 1 to 604,800 (a week). Default 900. */
  expiresInSeconds?: number | undefined
}
