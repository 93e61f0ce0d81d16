// What became of a batch.
import type { StoreError } from '../errors.ts'
import type { Work } from './observer.ts'
import type { PlannedRow } from './plan.ts'

/** What became of a batch, for the log and the metrics. */
export interface BatchResult {
  claimed: number
  offloadedRows: number
  nothing: number
  gone: number
  changed: number
  deferred: number
  /** Left in their rows for now: they wait for others of their tenant. */
  waiting: number
  failed: number
  deadLetters: number
  artifacts: number
  objects: number
  payloadBytes: number
  objectBytes: number
  planMs: number
  packMs: number
  uploadMs: number
  commitMs: number
  /** Set when the store, not a row, was at fault: the caller should pause before it claims again. */
  outage: StoreError | null
  /** It ran out, or was taken away: what was not committed before is another daemon's. */
  leaseLost: boolean
  /** The first error of a row, if any. */
  rowError: string | null
}

/** A batch's rows with large payloads are handed back: they are worked on one by one, beside other batches. */
export interface BatchOutcome {
  result: BatchResult
  large: PlannedRow[]
}

export function emptyResult(claimed: number): BatchResult {
  return {
    claimed,
    offloadedRows: 0,
    nothing: 0,
    gone: 0,
    changed: 0,
    deferred: 0,
    waiting: 0,
    failed: 0,
    deadLetters: 0,
    artifacts: 0,
    objects: 0,
    payloadBytes: 0,
    objectBytes: 0,
    planMs: 0,
    packMs: 0,
    uploadMs: 0,
    commitMs: 0,
    outage: null,
    leaseLost: false,
    rowError: null,
  }
}

export function addOutcome(sum: BatchOutcome, { result, large }: BatchOutcome): void {
  const { outage, rowError, leaseLost, ...counts } = result
  for (const [name, count] of Object.entries(counts)) sum.result[name as keyof typeof counts] += count
  sum.result.outage ??= outage
  sum.result.rowError ??= rowError
  sum.result.leaseLost ||= leaseLost
  sum.large.push(...large)
}

export function noteResult(work: Work, { outage, rowError, ...counts }: BatchResult): void {
  work.note({
    offloaded_rows: counts.offloadedRows,
    changed_rows: counts.changed,
    failed_rows: counts.failed,
    artifacts: counts.artifacts,
    objects: counts.objects,
    payload_bytes: counts.payloadBytes,
    object_bytes: counts.objectBytes,
    ...(outage !== null && { outage: outage.code }),
  })
}
