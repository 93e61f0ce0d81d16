// One object from a stream of unknown length, by @aws-sdk/lib-storage: a plain PUT if it fits a part, else a multipart
// upload of equal parts. What the library leaves open is settled by a middleware of the upload's own.
import type { Readable } from 'node:stream'
import { AbortMultipartUploadCommand, HeadObjectCommand, type S3Client } from '@aws-sdk/client-s3'
import { Upload } from '@aws-sdk/lib-storage'

export interface SendOptions {
  /** Size of every part but the last; R2 insists that they are equal. */
  partBytes: number
  /** Must put the upload's id on record: the first part is sent only after it has resolved. */
  onUploadId: (uploadId: string) => Promise<void>
  /** Told when the first part is on its way. */
  onFirstPart?: () => void | Promise<void>
  /** Told when all parts have been taken, and the object is not there yet. */
  onAllParts?: () => void | Promise<void>
}

/** Parts at once: being filled or under way. The library's copies of them come on top. */
const queueSize = 2

interface Target {
  Bucket: string
  Key: string
  ContentType: string
  ContentEncoding?: string
}

/**
 * Sends the stream with back-pressure; in memory are at most about twice `queueSize` parts, since the library joins the
 * pieces of each by a copy.
 * @param translate makes our error of one that a request failed with
 * @returns the object's length in bytes
 * @throws what the stream, the store or `onUploadId` throws; the multipart upload is then aborted, after the parts
 *   that were under way: a part that lands later would outlive the abort
 */
export async function sendStream(
  client: S3Client,
  target: Target,
  body: Readable,
  options: SendOptions,
  translate: (error: unknown, operation: string) => Error,
): Promise<number> {
  const underWay = new Set<Promise<unknown>>()
  let failure: { error: unknown } | undefined
  let uploadId: string | undefined
  let sentBytes = 0

  // Same configuration and sockets as the store's client, and the requests of this upload pass through here.
  const ours: S3Client = Object.create(client, { middlewareStack: { value: client.middlewareStack.clone() } })
  const upload = new Upload({
    client: ours,
    params: { ...target, Body: body },
    partSize: options.partBytes,
    queueSize,
    leavePartsOnError: true,
  })

  ours.middlewareStack.add(
    (next, context) => args => {
      const operation = (context.commandName ?? '').replace(/Command$/, '')
      const pass = async () => {
        if ('Body' in args.input && Buffer.isBuffer(args.input.Body)) sentBytes += args.input.Body.length
        if (operation === 'CompleteMultipartUpload') await options.onAllParts?.()
        const answer = next(args).catch(async error => {
          if (operation === 'CompleteMultipartUpload' && (await isComplete(client, target, sentBytes, error)))
            return { output: {}, response: undefined } as Awaited<ReturnType<typeof next>>
          throw translate(error, operation)
        })
        if ('PartNumber' in args.input && args.input.PartNumber === 1)
          await Promise.all([answer, options.onFirstPart?.()])
        const { output } = await answer
        if (operation === 'CreateMultipartUpload' && 'UploadId' in output && output.UploadId !== undefined) {
          uploadId = String(output.UploadId)
          await options.onUploadId(uploadId)
        }
        return answer
      }
      const request = pass().catch(async error => {
        failure ??= { error }
        // No further part is begun.
        await upload.abort()
        throw error
      })
      underWay.add(request)
      return request.finally(() => underWay.delete(request))
    },
    { step: 'initialize', name: 'sendStream' },
  )

  try {
    await upload.done()
    return sentBytes
  } catch (error) {
    await upload.abort()
    await Promise.allSettled(underWay)
    // Should the abort fail too, the object stays registered with its upload id, and the sweep aborts it.
    if (uploadId !== undefined) {
      const { Bucket, Key } = target
      await client
        .send(new AbortMultipartUploadCommand({ Bucket, Key, UploadId: uploadId }))
        .catch(() => undefined)
    }
    throw failure === undefined ? error : failure.error
  }
}

/** Whether the answer to a completion was lost, and its retry found no such upload any more: then the object is there. */
async function isComplete(
  client: S3Client,
  { Bucket, Key }: Target,
  bytes: number,
  error: unknown,
): Promise<boolean> {
  const { $metadata } = error as { $metadata?: { httpStatusCode?: number } }
  if ($metadata?.httpStatusCode !== 404) return false
  const head = await client.send(new HeadObjectCommand({ Bucket, Key })).catch(() => undefined)
  return head?.ContentLength === bytes
}
