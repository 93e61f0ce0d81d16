// Jobs on their way back into the queue, or out of it as dead letters: why, and when they are tried again.
import { setTimeout as delay } from 'node:timers/promises'
import { isNoRowsFault, messageOf } from '../errors.ts'
import type { BatchResult } from './batch-result.ts'
import type { Job } from './claim.ts'
import type { PipelineContext } from './context.ts'
import { backoffMs, type Release, releaseJobs } from './release.ts'

/** A source that does not fit our statements any more is left alone for so long: a column is gone, a right was revoked. */
export const faultRetryMs = 30_000
/** A database that refused a batch is asked again, until it takes that back. */
const giveBackRetryMs = 250

/** @param final trying again can not help: it becomes a dead letter at once */
export function failure(job: Job, error: string, final = false): Release {
  return {
    job,
    error: error.slice(0, 2000),
    countsAsAttempt: true,
    final,
    delayMs: backoffMs(job.attempts),
  }
}

/** Nothing went wrong: it is claimed again after the delay. */
export function notYet(job: Job, delayMs = 0): Release {
  return { job, error: null, countsAsAttempt: false, final: false, delayMs }
}

/** Something went wrong that is not the row's fault: it uses up no attempt. */
export function blameless(job: Job, error: unknown, delayMs: number): Release {
  return { ...notYet(job, delayMs), error: messageOf(error).slice(0, 2000) }
}

/** At the end of a batch: what goes back, and what the batch says of it. */
export async function finish(
  context: PipelineContext,
  releases: Release[],
  result: BatchResult,
): Promise<void> {
  result.deadLetters = await release(context, releases)
  const failures = releases.filter(r => r.countsAsAttempt)
  result.failed = failures.length
  result.rowError = failures[0]?.error ?? null
}

/** @returns how many became dead letters */
export async function release(context: PipelineContext, releases: Release[]): Promise<number> {
  const dead = await releaseJobs(context.pool, releases, context.config.maxAttempts)
  const failures = releases.filter(r => r.countsAsAttempt).length
  context.observer.released({
    retried: failures - dead.length,
    deadLetters: dead.length,
    putBack: releases.length - failures,
  })
  return dead.length
}

/**
 * Trouble that is no row's fault uses up no attempts. Where that can't be written for half a lease either, the leases run
 * out, and it does: as when the connection was lost, which a row may have done.
 */
export async function giveBack(context: PipelineContext, jobs: Job[], error: unknown): Promise<void> {
  if (!isNoRowsFault(error)) return
  const releases = jobs.map(job => blameless(job, error, backoffMs(1)))
  const deadline = performance.now() + context.config.leaseMs / 2
  while (performance.now() < deadline) {
    try {
      await releaseJobs(context.pool, releases, context.config.maxAttempts)
      return
    } catch (again) {
      if (!isNoRowsFault(again) || context.stopping.aborted) return
    }
    await delay(giveBackRetryMs, undefined, { ref: false })
  }
}
