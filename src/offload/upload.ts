// Step 5: send built objects. Requests at once are limited by `limit`, shared by all batches.
import type { LimitFunction } from 'p-limit'
import { messageOf, StoreError } from '../errors.ts'
import type { ObjectStore } from '../store/object-store.ts'
import type { Work } from './observer.ts'
import type { BuiltObject } from './pack.ts'

/** Sends each object; returns the error of each that failed, by key. One failure does not stop the others. */
export async function uploadObjects(
  store: ObjectStore,
  objects: BuiltObject[],
  limit: LimitFunction,
  work: Work,
): Promise<Map<string, StoreError>> {
  const failures = new Map<string, StoreError>()
  await Promise.all(
    objects.map(object =>
      limit(async () => {
        try {
          await work.part('object', async part => {
            part.note({
              kind: object.kind,
              artifacts: object.locations.size,
              object_bytes: object.body.length,
            })
            part.noteTenant(object.tenantId)
            await store.put(object.key, object.body, {
              contentType: object.contentType,
              contentEncoding: object.contentEncoding ?? undefined,
            })
          })
        } catch (error) {
          failures.set(object.key, asStoreError(error, object.key))
        }
      }),
    ),
  )
  return failures
}

function asStoreError(error: unknown, key: string): StoreError {
  if (error instanceof StoreError) return error
  return new StoreError('store_unavailable', `${key}: ${messageOf(error)}`, { cause: error, retryable: true })
}
