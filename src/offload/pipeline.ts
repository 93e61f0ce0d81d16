// The way of a payload, step by step, for one lease:
// claim → group → plan → pack → register → upload → commit. See the file of that name for each.
//
// Promises: every row of the lease ends committed, returned to the queue or a dead letter, unless the process dies,
// and then the lease runs out. Nothing is rewritten before its payload is stored.

import { requireAllRows } from '../db/all-rows.ts'
import type { Source } from '../source/sources.ts'
import { addOutcome, type BatchOutcome, emptyResult, noteResult } from './batch-result.ts'
import { commitAll, nothingUploaded, type Uploaded } from './commit-uploaded.ts'
import type { PipelineContext } from './context.ts'
import { groupRows, holdBack, isWaiting } from './group.ts'
import { type Job, keepLease, type Lease, LeaseLost } from './lease.ts'
import { nameTenants } from './name-tenants.ts'
import type { Work } from './observer.ts'
import type { BuiltObject } from './pack.ts'
import { packBatch } from './pack-batch.ts'
import { newTokens, type PlannedRow, textBytes } from './plan.ts'
import { planAll, sortRows } from './plan-batch.ts'
import { registerObjects } from './register.ts'
import { blameless, failure, finish, giveBack, notYet, returnJobs } from './return-jobs.ts'
import { backoffMs, closeJobs, type Returned, settle } from './settle.ts'
import { outageOf } from './store-trouble.ts'
import { uploadObjects } from './upload.ts'

/** A row whose object a store in part trouble did not take waits as long as after so many attempts. */
const partOfStoreAttempt = 4

/** A source that was attached just now is known to this daemon by then. */
const newSourceRetryMs = 5000

/**
 * Works off one lease but for its large rows, which stay in it.
 * @throws only when the database is in trouble; the rows come back when their lease runs out, if not sooner
 */
export function runBatch(
  context: PipelineContext,
  sources: Map<number, Source>,
  lease: Lease,
  claimMs: number,
): Promise<BatchOutcome & { work: Work }> {
  return context.observer.batch(lease.jobs.length, claimMs, async work => {
    const outcome: BatchOutcome = { result: emptyResult(lease.jobs.length), large: [] }
    const objectsInFlight: { tenantId: string; key: string }[] = []
    const stopHeartbeat = keepLease(context, lease, objectsInFlight)
    try {
      await workOff(context, work, sources, lease, outcome, objectsInFlight)
    } catch (error) {
      if (!(error instanceof LeaseLost)) {
        // The large ones too: none of them has begun.
        await giveBack(context, lease.jobs, error)
        throw error
      }
      outcome.result.leaseLost = true
      outcome.large = []
    } finally {
      stopHeartbeat()
    }
    noteResult(work, outcome.result)
    return { ...outcome, work }
  })
}

/** In as many rounds as the bytes of a batch make necessary. */
async function workOff(
  context: PipelineContext,
  work: Work,
  sources: Map<number, Source>,
  lease: Lease,
  outcome: BatchOutcome,
  objectsInFlight: { tenantId: string; key: string }[],
): Promise<void> {
  await putAside(context, sources, lease)
  let left = lease.jobs.filter(job => sources.get(job.sourceId)?.paused === false)
  // Daemons died on it while it was alone.
  const exhausted = left.filter(job => job.attempts > context.config.maxAttempts)
  if (exhausted.length > 0) {
    await finish(
      context,
      exhausted.map(job =>
        failure(
          job,
          `${job.attempts - 1} attempts ended without an answer: the daemon died or was stopped while it worked on this row`,
        ),
      ),
      outcome.result,
    )
    left = left.filter(job => !exhausted.includes(job))
  }
  if (left.some(job => isWaiting(sources, job))) {
    const claimed = left
    left = await work.part('group', () => groupRows(context, sources, lease, claimed))
    outcome.result.waiting += claimed.length - left.length
    await context.signal('after-group')
  }
  while (left.length > 0) {
    const before = left.length
    const round = left.slice(0, context.config.batchRows)
    const later = await runRound(context, work, sources, lease, round, outcome, objectsInFlight)
    outcome.result.deferred += later.length
    left = [...later, ...left.slice(round.length)]
    if (
      left.length > 0 &&
      (context.stopping.aborted || outcome.result.outage !== null || left.length === before)
    ) {
      await returnJobs(
        context,
        left.map(job => notYet(job)),
      )
      return
    }
  }
}

/** Rows of sources that are paused, or that were attached since this daemon looked, wait; of detached ones they are done with. */
async function putAside(context: PipelineContext, sources: Map<number, Source>, lease: Lease): Promise<void> {
  const unknown = lease.jobs.filter(job => !sources.has(job.sourceId))
  if (unknown.length > 0) {
    // Hidden is not detached.
    await requireAllRows(context.pool, [])
    const { rows } = await context.pool.query<{ id: number }>('select id from lighter.sources')
    const attached = new Set(rows.map(row => row.id))
    const detached = unknown.filter(job => !attached.has(job.sourceId))
    await settle(context.pool, lease, detached, [], context.config.maxAttempts)
    closeJobs(detached)
    await returnJobs(
      context,
      unknown.filter(job => attached.has(job.sourceId)).map(job => notYet(job, newSourceRetryMs)),
    )
  }
  const paused = lease.jobs.filter(job => sources.get(job.sourceId)?.paused === true)
  await returnJobs(
    context,
    paused.map(job => notYet(job)),
  )
}

/** @returns what did not fit into it */
async function runRound(
  context: PipelineContext,
  work: Work,
  sources: Map<number, Source>,
  lease: Lease,
  jobs: Job[],
  outcome: BatchOutcome,
  objectsInFlight: { tenantId: string; key: string }[],
): Promise<Job[]> {
  const { config } = context
  const result = emptyResult(0)
  const returned: Returned[] = []
  const tokens = newTokens()
  let started = performance.now()
  const { rows, later } = await work.part('plan', () => planAll(context, sources, jobs, returned, tokens))
  result.planMs = performance.now() - started
  await context.signal('after-plan')
  const sorted = sortRows(context, rows, later, returned)
  const { large, other } = sorted
  await nameTenants(context.pool, [...sorted.small, ...large], context.namedTenants)
  // What was cut off by the limits of a round says nothing about its group.
  const held = later.length === 0 && jobs.length === lease.jobs.length ? holdBack(sorted.small, config) : []
  returned.push(...held)
  const heldJobs = new Set(held.map(({ job }) => job))
  const small = sorted.small.filter(row => !heldJobs.has(row.job))
  result.waiting += returned.filter(({ waits }) => waits !== null).length

  work.holds(small.reduce((sum, row) => sum + textBytes(row), 0))
  started = performance.now()
  const { built, refused } =
    small.length === 0
      ? { built: [], refused: [] }
      : await work.part('pack', () => packBatch(small, config, context.store.prefix, tokens))
  result.packMs = performance.now() - started
  for (const { row, error } of refused) returned.push(failure(row.job, error.message))
  work.holds(built.reduce((sum, object) => sum + object.body.length, 0))

  started = performance.now()
  const uploaded = await uploadBuilt(context, work, lease, built, objectsInFlight)
  result.uploadMs = performance.now() - started
  await context.signal('after-upload')

  const ready: PlannedRow[] = []
  result.outage = await outageOf(context, uploaded)
  const kept = new Set(refused.map(each => each.row))
  for (const row of small) {
    if (kept.has(row)) continue
    const error = row.payloads.map(p => uploaded.failures.get(p.artifactId)).find(e => e !== undefined)
    if (error === undefined) ready.push(row)
    else if (result.outage !== null) returned.push(blameless(row.job, error, backoffMs(1)))
    else if (error.retryable) returned.push(blameless(row.job, error, backoffMs(partOfStoreAttempt)))
    else returned.push(failure(row.job, error.message))
  }

  started = performance.now()
  await context.signal('before-commit')
  await commitAll(context, work, [...ready, ...other], uploaded, result, returned)
  result.commitMs = performance.now() - started
  await context.signal('after-commit')

  await finish(context, returned, result)
  addOutcome(outcome, { result, large })
  return later
}

async function uploadBuilt(
  context: PipelineContext,
  work: Work,
  lease: Lease,
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
      lease.id,
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
