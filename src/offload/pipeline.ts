// The way of a payload, step by step, for one batch of claimed jobs:
// claim → plan → pack → register → upload → commit. See the file of that name for each.
//
// Promises: every claimed job ends committed, back in the queue or a dead letter, unless the process dies,
// and then its lease runs out. Nothing is rewritten before its payload is stored.

import type { Source } from '../source/sources.ts'
import { addOutcome, type BatchOutcome, emptyResult, noteResult } from './batch-result.ts'
import { claimKeys, type Job } from './claim.ts'
import { commitAll, nothingUploaded, type Uploaded } from './commit-uploaded.ts'
import type { PipelineContext } from './context.ts'
import { keepLease } from './lease.ts'
import type { Work } from './observer.ts'
import type { BuiltObject } from './pack.ts'
import { packBatch } from './pack-batch.ts'
import type { PlannedRow } from './plan.ts'
import { planAll, sortRows } from './plan-batch.ts'
import { registerObjects } from './register.ts'
import { backoffMs, type Release } from './release.ts'
import { blameless, failure, finish, giveBack, notYet, release } from './return-jobs.ts'
import { outageOf } from './store-trouble.ts'
import { uploadObjects } from './upload.ts'

/**
 * After so many attempts a job is worked on alone. A row on which a daemon, or the database, dies takes the
 * rest of its batch down with it; alone it harms nobody, and the others are not given up on its account.
 */
const suspectAttempts = 3

/** A row whose object a store in part trouble did not take waits as long as after so many attempts. */
const partOfStoreAttempt = 4

/**
 * Works off one claimed batch but for its large rows, whose jobs stay claimed.
 * @throws only when the database is in trouble; the jobs come back when their lease runs out, if not sooner
 */
export function runBatch(
  context: PipelineContext,
  sources: Map<number, Source>,
  jobs: Job[],
  claimMs: number,
): Promise<BatchOutcome & { work: Work }> {
  return context.observer.batch(jobs.length, claimMs, async work => {
    const outcome = await workOff(context, work, sources, jobs)
    noteResult(work, outcome.result)
    return { ...outcome, work }
  })
}

async function workOff(
  context: PipelineContext,
  work: Work,
  sources: Map<number, Source>,
  jobs: Job[],
): Promise<BatchOutcome> {
  const { maxAttempts } = context.config
  // Attempts are counted at the claim: more of them than allowed means that daemons died on this job.
  const exhausted = jobs.filter(job => job.attempts > maxAttempts)
  const suspectAfter = Math.max(1, Math.min(suspectAttempts, maxAttempts - 1))
  const suspects = jobs.filter(job => job.attempts > suspectAfter && job.attempts <= maxAttempts)
  const others = jobs.filter(job => job.attempts <= suspectAfter)
  const alone = suspects.splice(Math.floor(Math.random() * suspects.length), 1)
  await release(context, [
    ...exhausted.map(job =>
      failure(
        job,
        `${job.attempts - 1} attempts ended without an answer: the daemon died or was stopped while it worked on this row`,
      ),
    ),
    ...suspects.map(job => notYet(job, backoffMs(1))),
    // Claimed again when it is its turn: a daemon that dies on the others must not count against it.
    ...(others.length > 0 ? alone.map(job => notYet(job)) : []),
  ])
  const outcome: BatchOutcome = { result: emptyResult(exhausted.length + suspects.length), large: [] }
  outcome.result.failed = exhausted.length
  outcome.result.deadLetters = exhausted.length
  outcome.result.deferred = suspects.length
  let left = others.length > 0 ? others : alone
  try {
    if (others.length > 0) addOutcome(outcome, await runTogether(context, work, sources, others))
    if (others.length > 0) {
      left = await claimKeys(context.pool, alone, context.config.leaseMs)
      context.observer.claimed(left.length)
    } else left = alone
    if (left.length > 0) addOutcome(outcome, await runTogether(context, work, sources, left))
  } catch (error) {
    await giveBack(context, left, error)
    throw error
  }
  return outcome
}

async function runTogether(
  context: PipelineContext,
  work: Work,
  sources: Map<number, Source>,
  jobs: Job[],
): Promise<BatchOutcome> {
  const { config } = context
  const result = emptyResult(jobs.length)
  const releases: Release[] = []
  const objectsInFlight: { tenantId: string; key: string }[] = []
  const stopHeartbeat = keepLease(context, jobs, objectsInFlight)
  try {
    let started = performance.now()
    const rows = await work.part('plan', () => planAll(context, sources, jobs, releases))
    result.planMs = performance.now() - started
    await context.signal('after-plan')
    const { small, large, other } = sortRows(context, rows, result, releases)

    work.holds(small.reduce((sum, row) => sum + textBytes(row), 0))
    started = performance.now()
    const { built, refused } =
      small.length === 0
        ? { built: [], refused: [] }
        : await work.part('pack', () => packBatch(small, config, context.store.prefix))
    result.packMs = performance.now() - started
    for (const { row, error } of refused) releases.push(failure(row.job, error.message))
    work.holds(built.reduce((sum, object) => sum + object.body.length, 0))

    started = performance.now()
    const uploaded = await uploadBuilt(context, work, built, objectsInFlight)
    result.uploadMs = performance.now() - started
    await context.signal('after-upload')

    const ready: PlannedRow[] = []
    result.outage = await outageOf(context, uploaded)
    const kept = new Set(refused.map(each => each.row))
    for (const row of small) {
      if (kept.has(row)) continue
      const error = row.payloads.map(p => uploaded.failures.get(p.artifactId)).find(e => e !== undefined)
      if (error === undefined) ready.push(row)
      else if (result.outage !== null) releases.push(blameless(row.job, error, backoffMs(1)))
      else if (error.retryable) releases.push(blameless(row.job, error, backoffMs(partOfStoreAttempt)))
      else releases.push(failure(row.job, error.message))
    }

    started = performance.now()
    await context.signal('before-commit')
    await commitAll(context, work, [...ready, ...other], uploaded, result, releases)
    result.commitMs = performance.now() - started
    await context.signal('after-commit')

    await finish(context, releases, result)
    return { result, large }
  } finally {
    stopHeartbeat()
  }
}

const textBytes = (row: PlannedRow) => row.payloads.reduce((sum, p) => sum + (p.bytes?.length ?? 0), 0)

async function uploadBuilt(
  context: PipelineContext,
  work: Work,
  built: BuiltObject[],
  inFlight: { tenantId: string; key: string }[],
): Promise<Uploaded> {
  const uploaded = nothingUploaded()
  if (built.length === 0) return uploaded
  await work.part('register', () =>
    registerObjects(
      context.pool,
      built.map(o => ({ ...o, byteLength: o.body.length })),
      context.config.leaseMs,
    ),
  )
  inFlight.push(...built.map(o => ({ tenantId: o.tenantId, key: o.key })))
  await context.signal('after-register')
  uploaded.failedObjects = await work.part('upload', upload =>
    uploadObjects(context.store, built, context.uploadLimit, upload),
  )
  for (const object of built) {
    uploaded.objects.push({ tenantId: object.tenantId, key: object.key, byteLength: object.body.length })
    const error = uploaded.failedObjects.get(object.key)
    for (const [artifactId, location] of object.locations) {
      if (error === undefined) uploaded.locations.set(artifactId, location)
      else uploaded.failures.set(artifactId, error)
    }
  }
  return uploaded
}
