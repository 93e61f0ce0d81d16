// Deleting many objects: a thousand in one request, or one by one where the store does not take that request.
import {
  DeleteObjectCommand,
  DeleteObjectsCommand,
  type S3Client,
  S3ServiceException,
} from '@aws-sdk/client-s3'
import pLimit from 'p-limit'
import { DeleteError } from '../errors.ts'

/** Single deletes at once. */
const concurrency = 16

/** @returns a function that deletes up to 1,000 keys; keys that do not exist are no error */
export function deleter(client: S3Client, Bucket: string): (keys: string[]) => Promise<void> {
  /** Some stores demand a Content-MD5, which the SDK no longer sends; some have no such request. */
  let oneByOne = false

  const together = async (keys: string[]) => {
    const answer = await client.send(
      new DeleteObjectsCommand({ Bucket, Delete: { Objects: keys.map(Key => ({ Key })), Quiet: true } }),
    )
    const failed = answer.Errors?.filter(error => error.Code !== 'NoSuchKey') ?? []
    const [first] = failed
    if (first !== undefined)
      throw failure(
        failed.flatMap(error => error.Key ?? []),
        keys,
        `${first.Key}: ${first.Code} ${first.Message}`,
      )
  }

  const each = async (keys: string[]) => {
    const limit = pLimit(concurrency)
    const failed: { key: string; error: unknown }[] = []
    const deleteOne = async (Key: string) => {
      try {
        await client.send(new DeleteObjectCommand({ Bucket, Key }))
      } catch (error) {
        if (statusOf(error) === 404 && nameOf(error) !== 'NoSuchBucket') return
        failed.push({ key: Key, error })
      }
    }
    await Promise.all(keys.map(key => limit(() => deleteOne(key))))
    const [first] = failed
    if (first === undefined) return
    // Nothing at all could be deleted: the store is at fault, not these objects.
    if (failed.length === keys.length) throw first.error
    throw failure(
      failed.map(({ key }) => key),
      keys,
      `${first.key}: ${nameOf(first.error)}`,
    )
  }

  return async keys => {
    if (oneByOne) return each(keys)
    try {
      await together(keys)
    } catch (error) {
      if (!isRefusedRequest(error)) throw error
      await each(keys)
      // It was the request, then, and not what was in it.
      oneByOne = true
    }
  }
}

/** The request as such, not the credentials or the bucket. */
function isRefusedRequest(error: unknown): boolean {
  const status = statusOf(error)
  if (status === 405 || status === 501) return true
  return (
    status === 400 &&
    /MD5|MissingRequiredHeader|InvalidRequest|InvalidDigest|NotImplemented/i.test(textOf(error))
  )
}

function failure(failed: string[], keys: string[], first: string): DeleteError {
  return new DeleteError(failed, `DeleteObjects: ${failed.length} of ${keys.length} failed, ${first}`)
}

const statusOf = (error: unknown) =>
  error instanceof S3ServiceException ? error.$metadata.httpStatusCode : undefined
const nameOf = (error: unknown) => (error instanceof Error ? error.name : String(error))
const textOf = (error: unknown) => (error instanceof Error ? `${error.name} ${error.message}` : String(error))
