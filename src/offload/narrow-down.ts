// One row that a statement fails on must not fail the others of its batch.
import {
  isDatabaseOutage,
  isNoRowsFault,
  isRowsLimit,
  isSourceFault,
  messageOf,
  RowError,
} from '../errors.ts'
import type { Source } from '../source/sources.ts'
import type { PipelineContext } from './context.ts'
import type { Job } from './lease.ts'
import { describeMissing, findMissingParts } from './missing-parts.ts'
import { blameless, failure, faultRetryMs } from './return-jobs.ts'
import type { Returned } from './settle.ts'

export interface Failed {
  job: Job
  error: unknown
}

/**
 * Runs `work` on all items, or, where the statement fails for a reason other than the database itself,
 * on halves of them, until the item that makes it fail stands alone and is reported.
 */
export async function narrowDown<T, R>(
  items: T[],
  work: (items: T[]) => Promise<R[]>,
  onFailure: (item: T, error: unknown) => void,
  isEverybodys: (error: unknown) => boolean = () => false,
): Promise<R[]> {
  try {
    return await work(items)
  } catch (error) {
    if (isTrouble(error) || isEverybodys(error)) throw error
    const [only] = items
    if (items.length === 1 && only !== undefined) {
      onFailure(only, error)
      return []
    }
    const middle = Math.ceil(items.length / 2)
    const left = await narrowDown(items.slice(0, middle), work, onFailure, isEverybodys)
    return left.concat(await narrowDown(items.slice(middle), work, onFailure, isEverybodys))
  }
}

/**
 * What fails alone is the row's fault, unless its table has one, or is changed while we work on it.
 * @param others rows of the same statement that did not fail
 * @throws when memory was short for all of several rows, which is the database's fault
 */
export async function blame(
  context: PipelineContext,
  source: Source,
  failed: Failed[],
  others: number,
): Promise<Returned[]> {
  const [first] = failed
  if (first === undefined) return []
  if (failed.length > 1 && others === 0 && failed.every(({ error }) => isDatabaseOutage(error))) {
    throw first.error
  }
  const missing = await findMissingParts(context.pool)
  const fault = missing.find(part => part.sourceId === source.id && part.stopsOffload)
  return failed.map(({ job, error }) => {
    if (fault !== undefined)
      return blameless(job, new RowError('source_fault', describeMissing(fault)), faultRetryMs)
    if (isSourceFault(error)) return blameless(job, error, faultRetryMs)
    return failure(job, messageOf(error), isRowsLimit(error))
  })
}

/** The database's, not a row's. Memory may be short because of a row. */
export function isTrouble(error: unknown): boolean {
  return !isRowsLimit(error) && (isDatabaseOutage(error) || isNoRowsFault(error))
}
