// The object store: Cloudflare R2 or any S3 store, behind the few calls that pg-lighter makes.
import { Agent as HttpAgent } from 'node:http'
import { Agent as HttpsAgent } from 'node:https'
import type { Readable } from 'node:stream'
import {
  AbortMultipartUploadCommand,
  GetObjectCommand,
  HeadBucketCommand,
  HeadObjectCommand,
  ListObjectsV2Command,
  PutObjectCommand,
  S3Client,
  S3ServiceException,
} from '@aws-sdk/client-s3'
import { getSignedUrl } from '@aws-sdk/s3-request-presigner'
import { NodeHttpHandler } from '@smithy/node-http-handler'
import { maxPayloadBytes, type StoreConfig } from '../config.ts'
import { LighterError, messageOf, StoreError } from '../errors.ts'
import { bodyOf, boundAnswers, collect, isPart } from './bounded-answer.ts'
import { nothingOfTheEnvironment } from './client-settings.ts'
import { storedBytesAtMost } from './codec.ts'
import { deleter } from './delete-keys.ts'
import { probeKey } from './keys.ts'
import { type SendOptions, sendStream } from './send-stream.ts'

/** What is sent with an object. `contentEncoding` only where the object as a whole is one encoded payload. */
interface ObjectHeaders {
  contentType: string
  contentEncoding?: string | undefined
}

export interface ObjectStore {
  readonly bucket: string
  readonly prefix: string
  /** @param ifMatch ETag that must be there, or null: the key must not exist; undefined: unconditional */
  put(
    key: string,
    body: Uint8Array,
    headers: ObjectHeaders,
    ifMatch?: string | null,
  ): Promise<{ etag: string }>
  /** One object from a stream, see `sendStream`. @returns the object's length in bytes */
  sendStream(key: string, headers: ObjectHeaders, body: Readable, options: SendOptions): Promise<number>
  abortMultipart(key: string, uploadId: string): Promise<void>
  /**
   * The whole object, or `length` bytes from `offset`.
   * @param maxBytes a longer answer is not read to its end; default `length`, or what a payload can have at most
   * @throws {StoreError} `object_not_found`, `object_too_large`
   */
  get(
    key: string,
    range?: { offset: number; length: number },
    maxBytes?: number,
  ): Promise<{ body: Buffer; etag: string }>
  /**
   * As `get`, streamed; the caller must read it to its end or destroy it, else its socket leaks. A body that goes on
   * after `maxBytes` errors (`object_too_large`) before the byte that is too much.
   * @param part a range, of the object with that ETag only: else StoreError `precondition_failed`
   */
  getStream(
    key: string,
    options: { maxBytes: number; part?: { offset: number; length: number; etag: string } | undefined },
  ): Promise<{ body: Readable; etag: string }>
  /**
   * A URL that fetches the object without credentials until it expires.
   * @param answer headers that the store is to answer with
   */
  presign(
    key: string,
    expiresInSeconds: number,
    answer: { contentType: string; contentDisposition: string },
  ): Promise<string>
  head(key: string): Promise<{ size: number } | null>
  /** At most 1,000 keys; keys that do not exist are no error. @throws {DeleteError} some could not be deleted */
  delete(keys: string[]): Promise<void>
  /** In the order of the keys' bytes in UTF-8. */
  list(prefix: string): AsyncGenerator<{ key: string; size: number; lastModified: Date | null }>
  /** Proves that the bucket can be reached; returns which call did it. */
  check(): Promise<'HeadBucket' | 'ListObjectsV2'>
  /**
   * Proves that objects can be written now, without writing one: tells one bad upload from a store that is down.
   * @throws {StoreError} they can not
   */
  proveWrites(): Promise<void>
  close(): void
}

/** How one request to the store ended; repeated ones are told each by itself. */
export interface StoreAnswer {
  /** S3's name for it, such as PutObject. */
  operation: string
  outcome:
    | 'ok'
    | 'not_found'
    | 'precondition_failed'
    | 'denied'
    | 'throttled'
    | 'refused'
    | 'server_error'
    | 'no_answer'
  /** 1 for the first. */
  attempt: number
  /** To the head of the answer. */
  seconds: number
}

/**
 * Opens a client for one bucket. Nothing is sent before the first call.
 * @param onRequest told of every request sent, retries included, by S3's name for it (`PutObject`)
 * @param onAnswer told of every request that has ended
 */
export function openStore(
  config: StoreConfig,
  onRequest?: (operation: string) => void,
  onAnswer?: (answer: StoreAnswer) => void,
): ObjectStore {
  const agentOptions = { keepAlive: true, maxSockets: config.concurrency }
  const client = new S3Client({
    endpoint: config.endpoint,
    region: 'auto',
    forcePathStyle: true,
    credentials: credentialsOf(config),
    // R2 and other S3 stores refuse or break on the SDK's default checksums; our own sha256 decides.
    requestChecksumCalculation: 'WHEN_REQUIRED',
    responseChecksumValidation: 'WHEN_REQUIRED',
    // 'adaptive' would hold back every request of the client after one throttled answer.
    retryMode: 'standard',
    maxAttempts: 4,
    // The body is sent at once in any case, since the agents are ours.
    expectContinueHeader: false,
    ...nothingOfTheEnvironment,
    requestHandler: new NodeHttpHandler({
      httpAgent: new HttpAgent(agentOptions),
      httpsAgent: new HttpsAgent(agentOptions),
      connectionTimeout: Math.min(config.timeoutMs, 10_000),
      // Silence on the socket is the time-out that matters; the other only ends a request that trickles for ever.
      socketTimeout: config.timeoutMs,
      requestTimeout: config.timeoutMs * 4,
      throwOnRequestTimeout: true,
      // More requests than sockets simply wait: that is the concurrency limit at work.
      socketAcquisitionWarningTimeout: 2 ** 31 - 1,
    }),
  })
  if (onRequest !== undefined || onAnswer !== undefined) {
    client.middlewareStack.add(
      (next, context) => {
        const operation = (context.commandName ?? '').replace(/Command$/, '')
        let attempts = 0
        return async args => {
          onRequest?.(operation)
          const began = performance.now()
          const attempt = ++attempts
          const ended = (outcome: StoreAnswer['outcome']) =>
            onAnswer?.({ operation, outcome, attempt, seconds: (performance.now() - began) / 1000 })
          try {
            const answer = await next(args)
            ended('ok')
            return answer
          } catch (error) {
            ended(outcomeOf(error))
            throw error
          }
        }
      },
      // Below the middleware that retries, so that each attempt passes through.
      { step: 'finalizeRequest', priority: 'low', name: 'onRequest' },
    )
  }
  boundAnswers(client)
  const Bucket = config.bucket
  const deleteKeys = deleter(client, Bucket)
  const probe = Buffer.from('Whether this can be written is all that anybody wants to know.')

  async function call<T>(operation: string, subject: string, send: () => Promise<T>): Promise<T> {
    try {
      return await send()
    } catch (error) {
      throw storeError(error, operation, subject)
    }
  }

  return {
    bucket: config.bucket,
    prefix: config.prefix,

    put: (Key, Body, headers, ifMatch) =>
      call('PutObject', Key, async () => {
        const answer = await client.send(
          new PutObjectCommand({
            Bucket,
            Key,
            Body,
            ...s3Headers(headers),
            ...(ifMatch === null ? { IfNoneMatch: '*' } : ifMatch === undefined ? {} : { IfMatch: ifMatch }),
          }),
        )
        return { etag: answer.ETag ?? '' }
      }),

    sendStream: (Key, headers, body, options) =>
      sendStream(client, { Bucket, Key, ...s3Headers(headers) }, body, options, (error, operation) =>
        storeError(error, operation, Key),
      ),

    abortMultipart: (Key, UploadId) =>
      call('AbortMultipartUpload', Key, async () => {
        await client.send(new AbortMultipartUploadCommand({ Bucket, Key, UploadId }))
      }),

    get: (Key, range, maxBytes) =>
      call('GetObject', Key, async () => {
        const answer = await client.send(
          new GetObjectCommand({
            Bucket,
            Key,
            ...(range && { Range: `bytes=${range.offset}-${range.offset + range.length - 1}` }),
          }),
        )
        const limit = maxBytes ?? range?.length ?? longestObjectBytes
        const body = bodyOf(Key, answer, limit)
        return { body: await collect(body, answer.ContentLength), etag: answer.ETag ?? '' }
      }),

    getStream: (Key, { maxBytes, part }) =>
      call('GetObject', Key, async () => {
        const answer = await client.send(
          new GetObjectCommand({
            Bucket,
            Key,
            ...(part && {
              Range: `bytes=${part.offset}-${part.offset + part.length - 1}`,
              IfMatch: part.etag,
            }),
          }),
        )
        const body = bodyOf(Key, answer, part?.length ?? maxBytes)
        if (part !== undefined && !isPart(answer, part)) {
          body.destroy()
          // A store that knows no conditions, or no ranges, has answered something else.
          throw new StoreError(
            'precondition_failed',
            `GetObject ${Key}: it is not the part that was asked for`,
          )
        }
        return { body, etag: answer.ETag ?? '' }
      }),

    presign: (Key, expiresIn, answer) =>
      getSignedUrl(
        client,
        new GetObjectCommand({
          Bucket,
          Key,
          ResponseContentType: answer.contentType,
          ResponseContentDisposition: answer.contentDisposition,
        }),
        // By the store's clock, as far as its answers have told: a URL must not be over before it is used.
        { expiresIn, signingDate: new Date(Date.now() + client.config.systemClockOffset) },
      ),

    head: Key =>
      call('HeadObject', Key, async () => {
        try {
          const answer = await client.send(new HeadObjectCommand({ Bucket, Key }))
          return { size: answer.ContentLength ?? 0 }
        } catch (error) {
          if (statusOf(error) === 404) return null
          throw error
        }
      }),

    delete: keys =>
      call('DeleteObjects', `${keys.length} keys`, async () => {
        if (keys.length > 0) await deleteKeys(keys)
      }),

    async *list(Prefix) {
      let token: string | undefined
      do {
        const page = await call('ListObjectsV2', Prefix, () =>
          client.send(
            new ListObjectsV2Command({ Bucket, Prefix, ...(token && { ContinuationToken: token }) }),
          ),
        )
        for (const entry of page.Contents ?? []) {
          if (entry.Key !== undefined) {
            yield { key: entry.Key, size: entry.Size ?? 0, lastModified: entry.LastModified ?? null }
          }
        }
        if (token !== undefined && token === page.NextContinuationToken)
          throw new StoreError('store_bad_answer', `ListObjectsV2 ${Prefix}: the same page came twice`, {
            retryable: true,
          })
        token = page.NextContinuationToken
      } while (token !== undefined)
    },

    async check() {
      try {
        await call('HeadBucket', Bucket, () => client.send(new HeadBucketCommand({ Bucket })))
        return 'HeadBucket'
      } catch (error) {
        // Tokens scoped to objects may not be allowed HeadBucket, yet may list.
        if (error instanceof StoreError && error.code === 'bucket_not_found') throw error
        await call('ListObjectsV2', Bucket, () =>
          client.send(new ListObjectsV2Command({ Bucket, Prefix: config.prefix, MaxKeys: 1 })),
        )
        return 'ListObjectsV2'
      }
    },

    async proveWrites() {
      const Key = probeKey(config.prefix)
      try {
        await call('PutObject', Key, () =>
          client.send(new PutObjectCommand({ Bucket, Key, Body: probe, IfMatch: '"no object has this"' })),
        )
      } catch (error) {
        // The condition is looked at last: whoever is told that it fails could have written.
        if (
          error instanceof StoreError &&
          (error.code === 'precondition_failed' || error.code === 'object_not_found')
        )
          return
        throw error
      }
      // A store that knows no conditions has written it.
      await call('DeleteObjects', Key, () => deleteKeys([Key]))
    },

    close: () => client.destroy(),
  }
}

/** Longest object of ours that is read as a whole, compressed or not. */
const longestObjectBytes = storedBytesAtMost('zstd', maxPayloadBytes)

/** Renewed ones are asked for again after this: so soon is a rotation noticed. */
const credentialsMs = 5000
/** So long before they expire the SDK asks for others. */
const sdkRenewsBeforeMs = 300_000

function credentialsOf({ accessKeyId, secretAccessKey, renewed }: StoreConfig) {
  if (renewed === undefined) return { accessKeyId, secretAccessKey }
  return async () => ({
    ...renewed(),
    expiration: new Date(Date.now() + sdkRenewsBeforeMs + credentialsMs),
  })
}

/**
 * Of gzip the store is not told: R2, and others, undo it for a reader whose request does not say `Accept-Encoding: gzip`,
 * and R2's simulator does it once more. What comes back must be the bytes that were sent; what they are, their row tells.
 */
function s3Headers({ contentType, contentEncoding }: ObjectHeaders) {
  return {
    ContentType: contentType,
    ...(contentEncoding && contentEncoding !== 'gzip' && { ContentEncoding: contentEncoding }),
  }
}

function outcomeOf(error: unknown): StoreAnswer['outcome'] {
  const status = statusOf(error)
  const name = error instanceof Error ? error.name : ''
  if (status === undefined) return 'no_answer'
  if (status === 429 || status === 503 || name === 'SlowDown') return 'throttled'
  if (status === 404) return 'not_found'
  if (status === 412) return 'precondition_failed'
  if (status === 401 || status === 403) return 'denied'
  return status >= 500 ? 'server_error' : 'refused'
}

function statusOf(error: unknown): number | undefined {
  return error instanceof S3ServiceException ? error.$metadata.httpStatusCode : undefined
}

/** What these do not find can only be the bucket. */
const needsBucketOnly = ['HeadBucket', 'ListObjectsV2', 'PutObject', 'CreateMultipartUpload', 'DeleteObjects']

/** Answered with 400 by some stores. */
const refusedCredentials = [
  'ExpiredToken',
  'InvalidToken',
  'TokenRefreshRequired',
  'AuthorizationHeaderMalformed',
  'RequestTimeTooSkewed',
]

/**
 * What went wrong, in our words. Everything but the caller's own fault is retryable: also refused
 * credentials and a missing bucket, since an operator mends them and no row is to blame.
 */
function storeError(error: unknown, operation: string, subject: string): LighterError {
  if (error instanceof LighterError) return error
  const status = statusOf(error)
  const name = error instanceof Error ? error.name : ''
  const text = `${operation} ${subject}: ${status === undefined ? '' : `${status} `}${name} ${messageOf(error)}`
  const options = { cause: error }
  if (name === 'NoSuchBucket') {
    return new StoreError('bucket_not_found', text, {
      ...options,
      retryable: true,
      hint: 'Create the bucket, or correct R2_BUCKET and R2_ACCOUNT_ID (R2_ENDPOINT).',
    })
  }
  if (name === 'NoSuchKey' || (status === 404 && !needsBucketOnly.includes(operation))) {
    return new StoreError('object_not_found', text, options)
  }
  if (status === 404) {
    return new StoreError('bucket_not_found', text, {
      ...options,
      retryable: true,
      hint: 'Create the bucket, or correct R2_BUCKET.',
    })
  }
  if (name === 'RequestTimeTooSkewed') {
    return new StoreError('store_clock_skew', text, {
      ...options,
      retryable: true,
      hint: "Synchronise this machine's clock: the store refuses requests that are signed with another time than its own.",
    })
  }
  if (status === 412) return new StoreError('precondition_failed', text, options)
  if (status === 401 || status === 403 || refusedCredentials.includes(name)) {
    return new StoreError('store_access_denied', text, {
      ...options,
      retryable: true,
      hint: 'Check R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY: the token needs Object Read & Write on the bucket. A running daemon takes new ones from R2_ACCESS_KEY_ID_FILE and R2_SECRET_ACCESS_KEY_FILE by itself, else restart it.',
    })
  }
  if (status === 416) return new StoreError('range_not_satisfiable', text, options)
  if (status !== undefined && status >= 400 && status < 500 && status !== 408 && status !== 429) {
    return new StoreError('store_refused', text, options)
  }
  return new StoreError('store_unavailable', text, { ...options, retryable: true })
}
