// Answers of the store are read up to a limit that is known before the first byte: whoever can write the bucket, or
// stands in for the store, decides how long they are.
import { Readable, Transform } from 'node:stream'
import type { GetObjectCommandOutput, S3Client } from '@aws-sdk/client-s3'
import { StoreError } from '../errors.ts'

/** A page of 1,000 keys of 1,024 bytes each, escaped, and what is said of each. */
const longestListBytes = 16 * 1024 * 1024
/** Errors, and what a PUT or a HEAD is answered. */
const longestOtherBytes = 1024 * 1024

/** Every answer but the bytes of an object: the SDK would hold it whole, whatever its length. */
export function boundAnswers(client: S3Client): void {
  client.middlewareStack.add(
    (next, { commandName }) =>
      async args => {
        const result = await next(args)
        const response = result.response as { statusCode?: number; body?: unknown }
        const { body, statusCode = 500 } = response
        if (!(body instanceof Readable)) return result
        if (commandName === 'GetObjectCommand' && statusCode < 300) return result
        const list = commandName === 'ListObjectsV2Command' || commandName === 'DeleteObjectsCommand'
        const maxBytes = list ? longestListBytes : longestOtherBytes
        response.body = limited(
          body,
          maxBytes,
          // Nobody's object: the store, or what stands in its place, is not well.
          new StoreError(
            'store_bad_answer',
            `the answer to ${commandName} is longer than ${maxBytes} bytes`,
            {
              retryable: true,
            },
          ),
        )
        return result
      },
    // Next to the one who sends it, before anything reads it.
    { step: 'deserialize', priority: 'low', name: 'boundAnswers' },
  )
}

/** The object's bytes. @throws {StoreError} `object_too_large`: it says of itself that it has more */
export function bodyOf(key: string, answer: GetObjectCommandOutput, maxBytes: number): Readable {
  // On Node it is a Readable (an http.IncomingMessage).
  const body = answer.Body as Readable | undefined
  if (body === undefined)
    throw new StoreError('store_bad_answer', 'GetObject answered without Body', { retryable: true })
  if ((answer.ContentLength ?? 0) <= maxBytes) return limited(body, maxBytes, tooLong(key, maxBytes))
  // Left unread it would keep its socket.
  body.destroy()
  throw tooLong(key, maxBytes)
}

function limited(body: Readable, maxBytes: number, error: StoreError): Readable {
  let bytes = 0
  const limit = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      bytes += chunk.length
      if (bytes > maxBytes) done(error)
      else done(null, chunk)
    },
  })
  // Whichever of the two ends before its time ends the other. (pipeline would let the socket live on.)
  body.once('error', cause => limit.destroy(cause))
  body.once('close', () => {
    if (!body.readableEnded) limit.destroy(new Error('the connection to the store was closed'))
  })
  limit.once('close', () => body.destroy())
  return body.pipe(limit)
}

function tooLong(name: string, maxBytes: number): StoreError {
  return new StoreError('object_too_large', `${name} has more than ${maxBytes} bytes`)
}

/** Whether it is that part of that object, to the byte. */
export function isPart(
  { ContentRange, ContentLength, ETag }: GetObjectCommandOutput,
  part: { offset: number; length: number; etag: string },
): boolean {
  const range = `bytes ${part.offset}-${part.offset + part.length - 1}/`
  return ETag === part.etag && ContentLength === part.length && ContentRange?.startsWith(range) === true
}

/** @param length that the answer says it has, so that it is gathered in one buffer */
export async function collect(body: Readable, length: number | undefined): Promise<Buffer> {
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of body as AsyncIterable<Buffer>) {
    chunks.push(chunk)
    bytes += chunk.length
  }
  if (length !== undefined && bytes !== length)
    throw new StoreError('store_bad_answer', `${bytes} bytes came instead of ${length}`, { retryable: true })
  return chunks.length === 1 && chunks[0] !== undefined ? chunks[0] : Buffer.concat(chunks, bytes)
}
