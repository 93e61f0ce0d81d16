// Whether an upload failed because of the store or because of what was uploaded.
import type { StoreError } from '../errors.ts'
import type { ObjectStore } from '../store/object-store.ts'
import type { Uploaded } from './commit-uploaded.ts'
import type { PipelineContext } from './context.ts'

/**
 * Whether what failed is the store's fault: the error to blame it by, or null when it is the objects'. One that fails
 * by halves goes on being used. What it refuses for good may be the row's fault or, with expired credentials say, its
 * own, and that is asked.
 */
export async function outageOf(context: PipelineContext, uploaded: Uploaded): Promise<StoreError | null> {
  const failed = [...uploaded.failedObjects.values()]
  const [first] = failed
  if (first === undefined || failed.length * 2 <= uploaded.objects.length) return null
  const passing = failed.find(error => error.retryable)
  if (passing !== undefined) return passing
  return failed.length < uploaded.objects.length || (await takesWrites(context.store)) ? null : first
}

/** Asks the store, by a PUT on a condition that can't hold. */
export function takesWrites(store: ObjectStore): Promise<boolean> {
  return store.proveWrites().then(
    () => true,
    () => false,
  )
}
