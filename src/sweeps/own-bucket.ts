// Before objects are said to be missing: is this the right bucket?
import type pg from 'pg'
import { OwnershipError } from '../errors.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { checkOwnership } from '../store/ownership.ts'

/**
 * In a wrong bucket, or under a wrong prefix, everything looks missing. The owner object tells.
 * @throws {OwnershipError} it is another's, or not there
 */
export async function requireOwnBucket(pool: pg.Pool, store: ObjectStore): Promise<void> {
  if ((await checkOwnership(pool, store)) === 'mine') return
  throw new OwnershipError(
    'owner_object_missing',
    `${store.bucket}/${store.prefix} has no owner object, so it is hardly the bucket that this database knows`,
    {
      hint: 'Check R2_BUCKET, R2_ENDPOINT and R2_PREFIX. If it is the right one and has lost it: lighter adopt --yes',
    },
  )
}
