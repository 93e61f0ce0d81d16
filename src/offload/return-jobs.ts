// Jobs on their way back into the queue, or out of it as dead letters: why, and when they are tried again.
import { setTimeout as delay } from 'node:timers/promises'
import { isNoRowsFault, messageOf } from '../errors.ts'
import type { Source } from '../source/sources.ts'
import type { BatchResult } from './batch-result.ts'
import type { PipelineContext } from './context.ts'
import type { Job, Waited } from './lease.ts'
import { backoffMs, closeJobs, isDeadLetter, type Returned, settle } from './settle.ts'

/** A source that does not fit our statements any more is left alone for so long: a column is gone, a right was revoked. */
export const faultRetryMs = 30_000
/** A database that refused a batch is asked again, until it takes that back. */
const giveBackRetryMs = 250

/** @param final trying again can not help: it becomes a dead letter at once */
export function failure(job: Job, error: string, final = false): Returned {
  return {
    job,
    error: error.slice(0, 2000),
    countsAsAttempt: true,
    conflicted: false,
    final,
    delayMs: backoffMs(job.attempts),
    waits: null,
  }
}

/** Nothing went wrong: it is claimed again after the delay. */
export function notYet(job: Job, delayMs = 0): Returned {
  return { job, error: null, countsAsAttempt: false, conflicted: false, final: false, delayMs, waits: null }
}

/** It waits for others of its tenant and kind. @param delayMs until it is settled, unless it is written again */
export function wait(job: Job, waits: Waited, delayMs: number): Returned {
  return { ...notYet(job, delayMs), waits }
}

/** Something went wrong that is not the row's fault: it uses up no attempt. */
export function blameless(job: Job, error: unknown, delayMs: number): Returned {
  return { ...notYet(job, delayMs), error: messageOf(error).slice(0, 2000) }
}

/** It had changed, or was locked, when it was to be committed: tried ever less often, if that goes on, and not before it is settled. */
export function conflict(job: Job, { settleMs }: Pick<Source, 'settleMs'>): Returned {
  return { ...notYet(job, Math.max(Math.min(25 * 2 ** job.conflicts, 60_000), settleMs)), conflicted: true }
}

/** At the end of a batch: what goes back, and what the batch says of it. */
export async function finish(
  context: PipelineContext,
  returned: Returned[],
  result: BatchResult,
): Promise<void> {
  result.deadLetters += await returnJobs(context, returned)
  const failures = returned.filter(r => r.countsAsAttempt)
  result.failed += failures.length
  result.rowError = failures[0]?.error ?? null
}

/** @returns how many became dead letters */
export async function returnJobs(context: PipelineContext, returned: Returned[]): Promise<number> {
  const [first] = returned
  if (first === undefined) return 0
  const { maxAttempts } = context.config
  await settle(context.pool, first.job.lease, [], returned, maxAttempts)
  closeJobs(returned.map(({ job }) => job))
  await context.signal('after-return')
  const dead = returned.filter(each => isDeadLetter(each, maxAttempts)).length
  const failures = returned.filter(r => r.countsAsAttempt).length
  context.observer.returned({
    retried: failures - dead,
    deadLetters: dead,
    putBack: returned.filter(r => !r.countsAsAttempt && r.waits === null).length,
    waiting: returned.filter(r => r.waits !== null).length,
  })
  return dead
}

/**
 * Trouble that is no row's fault uses up no attempts, and what is left of the batch need not wait for its lease to run
 * out. Where that can't be written for half a lease either, it does: as when the connection was lost, which a row may have
 * done.
 */
export async function giveBack(context: PipelineContext, jobs: Job[], error: unknown): Promise<void> {
  if (!isNoRowsFault(error)) return
  const deadline = performance.now() + context.config.leaseMs / 2
  while (performance.now() < deadline) {
    const left = jobs.filter(job => job.lease.open.has(job.position))
    const [first] = left
    if (first === undefined) return
    try {
      const returned = left.map(job => blameless(job, error, backoffMs(1)))
      await settle(context.pool, first.lease, [], returned, context.config.maxAttempts)
      closeJobs(left)
      return
    } catch (again) {
      if (!isNoRowsFault(again) || context.stopping.aborted) return
    }
    await delay(giveBackRetryMs, undefined, { ref: false })
  }
}
