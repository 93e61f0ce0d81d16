// What is to be stored, in one of three shapes.
import { checkJson } from '../artifacts/json-check.ts'
import { MalformedJsonError } from '../artifacts/raw-json.ts'
import { LighterError } from '../errors.ts'
import type { NewArtifact } from './client.ts'

export type PutBody =
  | { shape: 'json'; text: string; contentType: string }
  | { shape: 'bytes'; bytes: Uint8Array<ArrayBuffer>; contentType: string }
  | { shape: 'stream'; chunks: AsyncIterable<Uint8Array>; contentType: string }

/** @throws {TypeError} none of payload, json and body, or not one that can be stored; {LighterError} `malformed_json` */
export async function putBodyOf(artifact: NewArtifact): Promise<PutBody> {
  const given = [artifact.payload, artifact.json, artifact.body].filter(value => value !== undefined)
  if (given.length !== 1) throw new TypeError('put needs one of payload, json and body')
  if (artifact.body !== undefined) {
    const contentType = artifact.contentType ?? 'application/octet-stream'
    const { body } = artifact
    if (typeof body === 'string')
      return { shape: 'bytes', bytes: new TextEncoder().encode(body), contentType }
    if (body instanceof Uint8Array)
      return { shape: 'bytes', bytes: body as Uint8Array<ArrayBuffer>, contentType }
    if (body instanceof Blob) {
      return { shape: 'bytes', bytes: new Uint8Array(await body.arrayBuffer()), contentType }
    }
    return { shape: 'stream', chunks: bytesOf(body), contentType }
  }
  const text = artifact.json ?? JSON.stringify(artifact.payload)
  if (typeof text !== 'string') throw new TypeError('payload is not a value that JSON has')
  // Sent as UTF-8, half a pair would silently become another character. JSON.stringify escapes it.
  if (!text.isWellFormed()) throw new LighterError('malformed_json', 'json: it has half a surrogate pair')
  if (artifact.json !== undefined) {
    try {
      // Also so that it can't reach into the request around it.
      checkJson(text, Number.POSITIVE_INFINITY)
    } catch (error) {
      if (!(error instanceof MalformedJsonError)) throw error
      throw new LighterError(error.code, `json: ${error.message}`, { cause: error })
    }
  }
  return { shape: 'json', text, contentType: artifact.contentType ?? 'application/json' }
}

async function* bytesOf(
  body: ReadableStream<Uint8Array> | AsyncIterable<Uint8Array | string>,
): AsyncGenerator<Uint8Array> {
  const chunks: AsyncIterable<unknown> = Symbol.asyncIterator in body ? body : chunksOf(body)
  for await (const chunk of chunks) {
    if (chunk instanceof Uint8Array) yield chunk
    else if (typeof chunk === 'string') yield new TextEncoder().encode(chunk)
    else throw new TypeError('a stream of bytes was expected')
  }
}

/** Not every browser can iterate over a ReadableStream by itself. */
async function* chunksOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array> {
  const reader = stream.getReader()
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      yield value
    }
  } finally {
    await reader.cancel()
  }
}
