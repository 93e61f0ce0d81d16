// Step 2 for a whole batch: each source by itself, and the rows sorted by what is to be done with them.
import { isLockTimeout, isSourceFault, RowError } from '../errors.ts'
import type { Source } from '../source/sources.ts'
import type { BatchResult } from './batch-result.ts'
import type { Job } from './claim.ts'
import type { PipelineContext } from './context.ts'
import { blame, type Failed, narrowDown } from './narrow-down.ts'
import { type PlannedRow, planRows } from './plan.ts'
import { ambiguousKey, lostPointer, rowsHidden, tooLarge } from './reasons.ts'
import type { Release } from './release.ts'
import { blameless, failure, faultRetryMs, notYet } from './return-jobs.ts'

/** A table that is locked as a whole, for an ALTER TABLE, is left alone for so long. */
const lockedRetryMs = 30_000
/** So is one of which row-level security hides rows: whoever mends that waits no longer. */
const hiddenRetryMs = 5000

/** Plans each source's jobs. A statement that fails is narrowed down to the row that makes it fail. */
export async function planAll(
  context: PipelineContext,
  sources: Map<number, Source>,
  jobs: Job[],
  releases: Release[],
): Promise<PlannedRow[]> {
  const rows: PlannedRow[] = []
  let budgetBytes = context.config.batchBytes
  for (const [sourceId, sourceJobs] of Map.groupBy(jobs, job => job.sourceId)) {
    const source = sources.get(sourceId)
    if (source === undefined) {
      releases.push(...sourceJobs.map(job => failure(job, `source ${sourceId} is not attached`)))
      continue
    }
    if (budgetBytes <= 0) {
      releases.push(...sourceJobs.map(job => notYet(job)))
      continue
    }
    if (source.rowsHidden !== null) {
      // Neither gone nor without a tenant: not seen. Rows of other tables go on.
      const error = new RowError('rows_hidden', rowsHidden(source, source.rowsHidden))
      releases.push(...sourceJobs.map(job => blameless(job, error, hiddenRetryMs)))
      continue
    }
    const failures: Failed[] = []
    try {
      const planned = await narrowDown(
        sourceJobs,
        async part => {
          const limits = { ...context.config, budgetBytes: Math.max(budgetBytes, 0) }
          const partRows = await planRows(context.pool, source, part, limits)
          for (const row of partRows) for (const p of row.payloads) budgetBytes -= p.bytes?.length ?? 0
          return partRows
        },
        (job, error) => failures.push({ job, error }),
        isSourceFault,
      )
      rows.push(...planned)
      releases.push(...(await blame(context, source, failures, planned.length)))
    } catch (error) {
      const retryMs = isLockTimeout(error) ? lockedRetryMs : isSourceFault(error) ? faultRetryMs : null
      if (retryMs === null) throw error
      // Rows of other tables go on.
      releases.push(...sourceJobs.map(job => blameless(job, error, retryMs)))
    }
  }
  return rows
}

export function sortRows(
  context: PipelineContext,
  rows: PlannedRow[],
  result: BatchResult,
  releases: Release[],
) {
  const { turns, config } = context
  const small: PlannedRow[] = []
  const large: PlannedRow[] = []
  const other: PlannedRow[] = []
  let turnedAway = 0
  for (const row of rows) {
    switch (row.outcome) {
      case 'offload':
        if (row.payloads.every(p => p.bytes !== null)) small.push(row)
        else if (
          turns.mayWait(
            row.tenantId ?? '',
            large.map(each => each.tenantId ?? ''),
          )
        )
          large.push(row)
        else releases.push(notYet(row.job, turns.returnMs(large.length + turnedAway++)))
        break
      case 'nothing':
      case 'gone':
        other.push(row)
        break
      case 'no-tenant':
        releases.push(
          failure(
            row.job,
            `no tenant: ${row.source.tenantColumn} of the row${row.source.parentSql === null ? '' : `'s ${row.source.parentSql}`} is null or missing`,
            // Waiting does not give it one.
            true,
          ),
        )
        break
      case 'lost-pointer':
        releases.push(failure(row.job, lostPointer()))
        break
      case 'ambiguous':
        releases.push(failure(row.job, ambiguousKey(row.source)))
        break
      case 'too-large':
        releases.push(failure(row.job, tooLarge(row, config.maxPayloadBytes), true))
        break
      case 'deferred':
        releases.push(notYet(row.job))
        result.deferred++
        break
    }
  }
  return { small, large, other }
}
