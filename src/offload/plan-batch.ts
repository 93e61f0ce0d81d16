// Step 2 for a whole batch: each source by itself, and the rows sorted by what is to be done with them.
import { isLockTimeout, isSourceFault, RowError } from '../errors.ts'
import type { Source } from '../source/sources.ts'
import type { PipelineContext } from './context.ts'
import { waitedOf } from './group.ts'
import type { Job } from './lease.ts'
import { blame, type Failed, narrowDown } from './narrow-down.ts'
import { type PlannedRow, planRows, type Tokens, textBytes } from './plan.ts'
import { ambiguousKey, lostPointer, noTenant, rowsHidden, tooLarge, whenFailed } from './reasons.ts'
import { blameless, failure, faultRetryMs, notYet, wait } from './return-jobs.ts'
import type { Returned } from './settle.ts'
import { noteWhenFailure } from './when-failures.ts'

/** A table that is locked as a whole, for an ALTER TABLE, is left alone for so long. */
const lockedRetryMs = 30_000
/** So is one of which row-level security hides rows: whoever mends that waits no longer. */
const hiddenRetryMs = 5000

/**
 * Plans each source's jobs. A statement that fails is narrowed down to the row that makes it fail.
 * @returns `later`: what is beyond the bytes of one round
 */
export async function planAll(
  context: PipelineContext,
  sources: Map<number, Source>,
  jobs: Job[],
  returned: Returned[],
  tokens: Tokens,
): Promise<{ rows: PlannedRow[]; later: Job[] }> {
  const rows: PlannedRow[] = []
  const later: Job[] = []
  let budgetBytes = context.config.batchBytes
  const leaving: Leaving = new Map()
  for (const [sourceId, allJobs] of Map.groupBy(jobs, job => job.sourceId)) {
    const source = sources.get(sourceId)
    if (source === undefined) throw new Error(`source ${sourceId} is not among those that are worked on`)
    const sourceJobs = putOff(source, allJobs, leaving, later, returned)
    if (budgetBytes <= 0) {
      later.push(...sourceJobs)
      continue
    }
    if (source.rowsHidden !== null) {
      // Neither gone nor without a tenant: not seen. Rows of other tables go on.
      const error = new RowError('rows_hidden', rowsHidden(source, source.rowsHidden))
      returned.push(...sourceJobs.map(job => blameless(job, error, hiddenRetryMs)))
      continue
    }
    const failures: Failed[] = []
    try {
      const planned = await narrowDown(
        sourceJobs,
        async part => {
          const limits = { ...context.config, budgetBytes: Math.max(budgetBytes, 0) }
          const partRows = await planRows(context.pool, source, part, limits, tokens)
          for (const row of partRows) budgetBytes -= textBytes(row)
          return partRows
        },
        (job, error) => failures.push({ job, error }),
        isSourceFault,
      )
      rows.push(...planned)
      for (const { outcome, job, payloads } of planned)
        if (outcome === 'offload')
          leaving.set(
            rowOf(source, job),
            payloads.some(payload => payload.bytes === null) ? 'streamed' : 'packed',
          )
      returned.push(
        ...(await blame(context, source, await nameWhen(context, source, failures), planned.length)),
      )
    } catch (error) {
      const retryMs = isLockTimeout(error) ? lockedRetryMs : isSourceFault(error) ? faultRetryMs : null
      if (retryMs === null) throw error
      if (isSourceFault(error)) await noteWhenFailure(context.pool, source, null)
      // Rows of other tables go on.
      returned.push(...sourceJobs.map(job => blameless(job, error, retryMs)))
    }
  }
  return { rows, later }
}

/** Says of those on which when_sql fails that it does. */
async function nameWhen(context: PipelineContext, source: Source, failures: Failed[]): Promise<Failed[]> {
  if (source.whenFunction === null) return failures
  const named: Failed[] = []
  for (const { job, error } of failures) {
    const message = await noteWhenFailure(context.pool, source, job.rowId)
    named.push({ job, error: message === null ? error : new RowError('when_failed', whenFailed(message)) })
  }
  return named
}

/** Rows of this round out of which a value leaves. */
type Leaving = Map<string, 'packed' | 'streamed'>

const rowOf = ({ tableSql }: Source, { rowId }: Job) => `${tableSql} ${rowId}`

/** While a value of another column is streamed, which rewrites the row. */
const streamedRowRetryMs = 5000

/**
 * Two columns of one row cannot leave in one round: the first rewrite makes another version of the row, so the upload of the
 * second would be wasted. @returns the others; adds to `later` and `returned`
 */
function putOff(source: Source, jobs: Job[], leaving: Leaving, later: Job[], returned: Returned[]): Job[] {
  if (leaving.size === 0) return jobs
  return jobs.filter(job => {
    const how = leaving.get(rowOf(source, job))
    if (how === 'packed') later.push(job)
    else if (how === 'streamed') returned.push(notYet(job, streamedRowRetryMs))
    return how === undefined
  })
}

/** By what is to be done with them. Adds to `later` and `returned`. */
export function sortRows(context: PipelineContext, rows: PlannedRow[], later: Job[], returned: Returned[]) {
  const { turns, config } = context
  const small: PlannedRow[] = []
  const large: PlannedRow[] = []
  const other: PlannedRow[] = []
  let turnedAway = 0
  for (const row of rows) {
    switch (row.outcome) {
      case 'offload':
        if (isUnsettled(row)) returned.push(waitAgain(row))
        else if (row.payloads.every(p => p.bytes !== null)) small.push(row)
        else if (
          turns.mayWait(
            row.tenantId ?? '',
            large.map(each => each.tenantId ?? ''),
          )
        )
          large.push(row)
        else returned.push(notYet(row.job, turns.returnMs(large.length + turnedAway++)))
        break
      case 'nothing':
      case 'gone':
        other.push(row)
        break
      case 'no-tenant':
        returned.push(
          failure(
            row.job,
            noTenant(row.source),
            // Waiting does not give it one.
            true,
          ),
        )
        break
      case 'lost-pointer':
        returned.push(failure(row.job, lostPointer()))
        break
      case 'ambiguous':
        returned.push(failure(row.job, ambiguousKey(row.source)))
        break
      case 'too-large':
        returned.push(failure(row.job, tooLarge(row, config.maxPayloadBytes), true))
        break
      case 'deferred':
        later.push(row.job)
        break
    }
  }
  return { small, large, other }
}

/** It has waited for others, and was written meanwhile. */
function isUnsettled({ job: { waited }, source, version }: PlannedRow): boolean {
  return waited !== null && !waited.mustGo && source.settleMs > 0 && waited.xmin !== xminOf(version)
}

function waitAgain(row: PlannedRow): Returned {
  const waited = waitedOf(row)
  if (waited === null) throw new Error('a row that did not wait can not wait again')
  return wait(row.job, { ...waited, xmin: xminOf(row.version) }, row.source.settleMs)
}

/** Of a version as `versionSql` names it. */
const xminOf = (version: string | null): string => version?.split(' ')[0] ?? '0'
