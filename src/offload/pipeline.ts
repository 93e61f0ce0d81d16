// The way of a payload, step by step, for one batch of claimed jobs:
// claim → plan → pack → register → upload → commit. See the file of that name for each.
//
// Promises: every claimed job ends committed, back in the queue or a dead letter, unless the process dies,
// and then its lease runs out. Nothing is rewritten before its payload is stored.
import { setTimeout as delay } from 'node:timers/promises'
import type { LimitFunction } from 'p-limit'
import type pg from 'pg'
import type { OffloadConfig } from '../config.ts'
import {
  isDatabaseOutage,
  isLockTimeout,
  isNoRowsFault,
  isRowsLimit,
  isSourceFault,
  messageOf,
  RowError,
  StoreError,
} from '../errors.ts'
import type { ArtifactId } from '../ids.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { claimKeys, extendLease, type Job, jobKey } from './claim.ts'
import { type CommitResult, commitBatch } from './commit.ts'
import { longNumbersTextBytes, longNumbersTimeoutMs } from './long-numbers.ts'
import { describeMissing, findMissingParts } from './missing-parts.ts'
import type { Committed, Observer, Work } from './observer.ts'
import { type BuiltObject, buildObjects, type Location } from './pack.ts'
import { type PlannedRow, planRows } from './plan.ts'
import { registerForDeletion, registerObjects } from './register.ts'
import { backoffMs, type Release, releaseJobs } from './release.ts'
import type { Signal } from './signals.ts'
import {
  documentSql,
  fieldSql,
  fromSql,
  ident,
  isVersionSql,
  literal,
  pointersInSql,
  restSql,
  tenantSql,
} from './source-sql.ts'
import type { Source } from './sources.ts'
import { payloadTooLarge, rowTooLarge, streamPayload } from './stream.ts'
import type { Turns } from './turns.ts'
import { uploadObjects } from './upload.ts'

export interface PipelineContext {
  pool: pg.Pool
  /** For the long reads of large payloads, beside the pool so that they never keep a commit waiting. */
  streamPool: pg.Pool
  store: ObjectStore
  config: OffloadConfig
  /** Requests to the store at once, shared by all batches. */
  uploadLimit: LimitFunction
  /** Large rows, shared by all batches. */
  turns: Turns
  signal: Signal
  observer: Observer
  /** Aborted when the daemon is to stop: what has not begun goes back into the queue. */
  stopping: AbortSignal
}

/**
 * After so many attempts a job is worked on alone. A row on which a daemon, or the database, dies takes the
 * rest of its batch down with it; alone it harms nobody, and the others are not given up on its account.
 */
const suspectAttempts = 3

/** A row whose object a store in part trouble did not take waits as long as after so many attempts. */
const partOfStoreAttempt = 4

/** A table that is locked as a whole, for an ALTER TABLE, is left alone for so long. */
const lockedRetryMs = 30_000

/** A database that refused a batch is asked again, until it takes that back. */
const giveBackRetryMs = 250

/** So is one of which row-level security hides rows: whoever mends that waits no longer. */
const hiddenRetryMs = 5000
/** So is one that does not fit our statements any more: a column is gone, a right was revoked. */
const faultRetryMs = 30_000

/** What became of a batch, for the log and the metrics. */
export interface BatchResult {
  claimed: number
  offloadedRows: number
  nothing: number
  gone: number
  changed: number
  deferred: number
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
  /** The first error of a row, if any. */
  rowError: string | null
}

/** A batch's rows with large payloads are handed back: they are worked on one by one, beside other batches. */
export interface BatchOutcome {
  result: BatchResult
  large: PlannedRow[]
}

function emptyResult(claimed: number): BatchResult {
  return {
    claimed,
    offloadedRows: 0,
    nothing: 0,
    gone: 0,
    changed: 0,
    deferred: 0,
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
    rowError: null,
  }
}

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

function addOutcome(sum: BatchOutcome, { result, large }: BatchOutcome): void {
  const { outage, rowError, ...counts } = result
  for (const [name, count] of Object.entries(counts)) sum.result[name as keyof typeof counts] += count
  sum.result.outage ??= outage
  sum.result.rowError ??= rowError
  sum.large.push(...large)
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

    const items = small.flatMap(row =>
      row.payloads.flatMap(p =>
        p.bytes === null || row.tenantId === null
          ? []
          : [{ tenantId: row.tenantId, kind: p.kind, artifactId: p.artifactId, bytes: p.bytes }],
      ),
    )
    work.holds(items.reduce((sum, item) => sum + item.bytes.length, 0))
    started = performance.now()
    const built =
      items.length === 0
        ? []
        : await work.part('pack', () => buildObjects(items, config, context.store.prefix, new Date()))
    result.packMs = performance.now() - started
    // Text is no longer needed once packed; a batch waiting for the store should not hold it.
    for (const row of small) for (const payload of row.payloads) payload.bytes = null
    items.length = 0
    work.holds(built.reduce((sum, object) => sum + object.body.length, 0))

    started = performance.now()
    const uploaded = await uploadBuilt(context, work, built, objectsInFlight)
    result.uploadMs = performance.now() - started
    await context.signal('after-upload')

    const ready: PlannedRow[] = []
    result.outage = await outageOf(context, uploaded)
    for (const row of small) {
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

/**
 * Works off one row with a large payload: each of its payloads is streamed into an object of its own.
 * @param batch that it came out of
 */
export async function runLargeRow(
  context: PipelineContext,
  row: PlannedRow,
  batch: Work,
): Promise<BatchResult> {
  const result = emptyResult(1)
  const releases: Release[] = []
  const objectsInFlight: { tenantId: string; key: string }[] = []
  // The lease must also last while the row waits for its turn.
  const stopHeartbeat = keepLease(context, [row.job], objectsInFlight)
  try {
    const tenantId = row.tenantId
    if (tenantId === null) throw new Error('a large row without a tenant can not be planned')
    const stream = async (work: Work) => {
      if (context.stopping.aborted) {
        releases.push(notYet(row.job))
        return
      }
      await context.signal('before-stream')
      let started = performance.now()
      const uploaded: Uploaded = {
        locations: new Map(),
        failures: new Map(),
        failedObjects: new Map(),
        objects: [],
      }
      let outcome: PlannedRow[] = [row]
      let rowBytes = row.heldBytes
      try {
        for (const payload of row.payloads) {
          const { location, objectBytes, refersTo } = await work.part('stream', async stream => {
            stream.note({ kind: payload.kind })
            stream.noteTenant(tenantId)
            const streamed = await streamPayload(
              context.pool,
              context.streamPool,
              context.store,
              {
                tenantId,
                kind: payload.kind,
                selectSql: selectPayloadSql(row, payload.phase, value => `${value}::text`),
                pointerNames: row.source.pointerNames.map(name => JSON.stringify(name)),
                pointersSql: selectPayloadSql(
                  row,
                  payload.phase,
                  value => `array_to_string(${pointersInSql(row.source, value)}, ',') as ids`,
                ),
              },
              {
                codec: context.config.codec,
                partBytes: context.config.partBytes,
                maxPayloadBytes: context.config.maxPayloadBytes,
                rowBytes,
                timeoutMs: row.longNumbers ? longNumbersTimeoutMs : 0,
                leaseMs: context.config.leaseMs,
                signal: context.signal,
                onRegister: object => objectsInFlight.push(object),
              },
            )
            stream.note({ payload_bytes: streamed.location.sizeBytes, object_bytes: streamed.objectBytes })
            return streamed
          })
          payload.refersTo = refersTo
          rowBytes += location.sizeBytes
          uploaded.locations.set(payload.artifactId, location)
          uploaded.objects.push({ tenantId, key: location.key, byteLength: objectBytes })
        }
      } catch (error) {
        if (error instanceof RowError && error.code === 'row_changed') {
          // Committed without payloads it counts as changed, and what was uploaded becomes an orphan.
          outcome = [{ ...row, outcome: 'nothing', payloads: [] }]
        } else if (isTrouble(error)) {
          throw error
        } else {
          outcome = []
          const final =
            isRowsLimit(error) || (error instanceof RowError && /^(payload|row)_too_large$/.test(error.code))
          if (error instanceof StoreError && !(await takesWrites(context.store))) {
            result.outage = error
            releases.push(blameless(row.job, error, backoffMs(1)))
          } else if (isSourceFault(error)) releases.push(blameless(row.job, error, faultRetryMs))
          else releases.push(failure(row.job, messageOf(error), final))
        }
      }
      result.uploadMs = performance.now() - started
      await context.signal('after-upload')
      started = performance.now()
      await context.signal('before-commit')
      await commitAll(context, work, outcome, uploaded, result, releases)
      result.commitMs = performance.now() - started
      await context.signal('after-commit')
      noteResult(work, result)
    }
    await context.turns.run(tenantId, () => batch.part('large row', stream))
    await finish(context, releases, result)
    return result
  } catch (error) {
    await giveBack(context, [row.job], error)
    throw error
  } finally {
    stopHeartbeat()
  }
}

/**
 * Whether what failed is the store's fault: the error to blame it by, or null when it is the objects'. One that fails
 * by halves goes on being used. What it refuses for good may be the row's fault or, with expired credentials say, its
 * own, and that is asked.
 */
async function outageOf(context: PipelineContext, uploaded: Uploaded): Promise<StoreError | null> {
  const failed = [...uploaded.failedObjects.values()]
  const [first] = failed
  if (first === undefined || failed.length * 2 <= uploaded.objects.length) return null
  const passing = failed.find(error => error.retryable)
  if (passing !== undefined) return passing
  return failed.length < uploaded.objects.length || (await takesWrites(context.store)) ? null : first
}

function takesWrites(store: ObjectStore): Promise<boolean> {
  return store.proveWrites().then(
    () => true,
    () => false,
  )
}

interface Uploaded {
  locations: Map<ArtifactId, Location>
  failures: Map<ArtifactId, StoreError>
  failedObjects: Map<string, StoreError>
  objects: { tenantId: string; key: string; byteLength: number }[]
}

/** Plans each source's jobs. A statement that fails is narrowed down to the row that makes it fail. */
async function planAll(
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

interface Failed {
  job: Job
  error: unknown
}

/**
 * What fails alone is the row's fault, unless its table has one, or is changed while we work on it.
 * @param others rows of the same statement that did not fail
 * @throws when memory was short for all of several rows, which is the database's fault
 */
async function blame(
  context: PipelineContext,
  source: Source,
  failed: Failed[],
  others: number,
): Promise<Release[]> {
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

/**
 * Runs `work` on all items, or, where the statement fails for a reason other than the database itself,
 * on halves of them, until the item that makes it fail stands alone and is reported.
 */
async function narrowDown<T, R>(
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

/** The database's, not a row's. Memory may be short because of a row. */
function isTrouble(error: unknown): boolean {
  return !isRowsLimit(error) && (isDatabaseOutage(error) || isNoRowsFault(error))
}

function sortRows(context: PipelineContext, rows: PlannedRow[], result: BatchResult, releases: Release[]) {
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

async function uploadBuilt(
  context: PipelineContext,
  work: Work,
  built: BuiltObject[],
  inFlight: { tenantId: string; key: string }[],
): Promise<Uploaded> {
  const uploaded: Uploaded = {
    locations: new Map(),
    failures: new Map(),
    failedObjects: new Map(),
    objects: [],
  }
  if (built.length === 0) return uploaded
  await work.part('register', () =>
    registerObjects(
      context.pool,
      built.map(o => ({
        ...o,
        artifactCount: o.locations.size,
        byteLength: o.body.length,
        payloadBytes: [...o.locations.values()].reduce((sum, l) => sum + l.sizeBytes, 0),
      })),
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

async function commitAll(
  context: PipelineContext,
  work: Work,
  rows: PlannedRow[],
  uploaded: Uploaded,
  result: BatchResult,
  releases: Release[],
): Promise<void> {
  if (rows.length === 0 && uploaded.objects.length === 0) return
  let swept = false
  const failed: (Failed & { source: Source })[] = []
  const told = new Set<string>()
  const commits: CommitResult[] = await work.part('commit', () =>
    narrowDown(
      rows,
      async part => {
        const commit = await commitBatch(
          context.pool,
          part,
          uploaded.locations,
          objectsOf(part, uploaded, rows.length === part.length),
        )
        tellCommit(context.observer, part, commit, uploaded, told)
        return [commit]
      },
      (row, error) => {
        swept ||= error instanceof StoreError && error.code === 'object_swept'
        failed.push({ job: row.job, error, source: row.source })
      },
    ),
  )
  for (const [source, ofSource] of Map.groupBy(failed, each => each.source)) {
    releases.push(...(await blame(context, source, ofSource, rows.length - failed.length)))
  }
  if (swept) await registerForDeletion(context.pool, uploaded.objects)
  for (const commit of commits) result.changed += commit.changed.length
  const done = new Set(commits.flatMap(commit => [...commit.done]))
  const keys = new Set<string>()
  for (const row of rows) {
    if (!done.has(jobKey(row.job))) continue
    if (row.outcome === 'gone') result.gone++
    else if (row.outcome === 'nothing') result.nothing++
    else result.offloadedRows++
    for (const payload of row.payloads) {
      result.artifacts++
      const location = uploaded.locations.get(payload.artifactId)
      result.payloadBytes += location?.sizeBytes ?? 0
      if (location !== undefined) keys.add(location.key)
    }
  }
  result.objects = keys.size
  for (const object of uploaded.objects) if (keys.has(object.key)) result.objectBytes += object.byteLength
}

/** @param told keys of the objects that were told of with an earlier part of the batch */
function tellCommit(
  observer: Observer,
  rows: PlannedRow[],
  commit: CommitResult,
  uploaded: Uploaded,
  told: Set<string>,
): void {
  const done = rows.filter(row => commit.done.has(jobKey(row.job)))
  const count = (outcome: PlannedRow['outcome']) => done.filter(row => row.outcome === outcome).length
  const artifacts: Committed['artifacts'] = []
  const kinds = new Map<string, string>()
  for (const { payloads, tenantId } of done) {
    for (const { artifactId, kind } of payloads) {
      const location = uploaded.locations.get(artifactId)
      artifacts.push({ kind, tenantId, payloadBytes: location?.sizeBytes ?? 0 })
      if (location !== undefined) kinds.set(location.key, kind)
    }
  }
  const objects: Committed['objects'] = []
  for (const { key, byteLength } of uploaded.objects) {
    const kind = kinds.get(key)
    if (kind === undefined || told.has(key)) continue
    told.add(key)
    objects.push({ kind, bytes: byteLength })
  }
  observer.committed({
    offloaded: count('offload'),
    nothing: count('nothing'),
    gone: count('gone'),
    changed: commit.changed.length,
    artifacts,
    objects,
    latencies: commit.latencies,
  })
}

/**
 * The objects whose fate a commit of `rows` decides: all of them when it commits the whole batch; when a batch
 * had to be narrowed down, only those that the rows use, lest one half's commit orphan the other half's object.
 */
function objectsOf(rows: PlannedRow[], uploaded: Uploaded, whole: boolean) {
  if (whole) return uploaded.objects
  const keys = new Set(rows.flatMap(row => row.payloads.map(p => uploaded.locations.get(p.artifactId)?.key)))
  return uploaded.objects.filter(object => keys.has(object.key))
}

async function finish(context: PipelineContext, releases: Release[], result: BatchResult): Promise<void> {
  result.deadLetters = await release(context, releases)
  const failures = releases.filter(r => r.countsAsAttempt)
  result.failed = failures.length
  result.rowError = failures[0]?.error ?? null
}

/** @returns how many became dead letters */
async function release(context: PipelineContext, releases: Release[]): Promise<number> {
  const dead = await releaseJobs(context.pool, releases, context.config.maxAttempts)
  const failures = releases.filter(r => r.countsAsAttempt).length
  context.observer.released({
    retried: failures - dead.length,
    deadLetters: dead.length,
    putBack: releases.length - failures,
  })
  return dead.length
}

function noteResult(work: Work, { outage, rowError, ...counts }: BatchResult): void {
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

/** @param final trying again can not help: it becomes a dead letter at once */
function failure(job: Job, error: string, final = false): Release {
  return {
    job,
    error: error.slice(0, 2000),
    countsAsAttempt: true,
    final,
    delayMs: backoffMs(job.attempts),
  }
}

function rowsHidden(source: Source, remedy: string): string {
  return `row-level security hides rows of ${source.tableSql}, or of its parent, from lighter_daemon. ${remedy}`
}

function ambiguousKey(source: Source): string {
  return `several rows have this key, or its row has several tenants: give ${source.tableSql} a valid unique index on ${source.keyColumn} again, then lighter retry`
}

function tooLarge(row: PlannedRow, maxPayloadBytes: number): string {
  if (row.longNumbers)
    return `a payload has numbers that would be written out to ${row.largestBytes} bytes of text, over ${longNumbersTextBytes}: it stays in the row`
  if (row.largestBytes > maxPayloadBytes) return payloadTooLarge(row.largestBytes, maxPayloadBytes).message
  const rowBytes = row.payloads.reduce((sum, p) => sum + p.sizeBytes, row.heldBytes)
  return rowTooLarge(rowBytes, maxPayloadBytes).message
}

function lostPointer(): string {
  return 'lost_pointer: the row points to an artifact that its tenant does not have: it was moved here from another tenant, or what it points to has expired, or the pointer was made up. What was put on top of it could not be read back, so the row stays as it is: take the pointer away, or move the row back and restore it, then lighter retry'
}

function notYet(job: Job, delayMs = 0): Release {
  return { job, error: null, countsAsAttempt: false, final: false, delayMs }
}

function blameless(job: Job, error: unknown, delayMs: number): Release {
  return { ...notYet(job, delayMs), error: messageOf(error).slice(0, 2000) }
}

/**
 * Trouble that is no row's fault uses up no attempts. Where that can't be written for half a lease either, the leases run
 * out, and it does: as when the connection was lost, which a row may have done.
 */
async function giveBack(context: PipelineContext, jobs: Job[], error: unknown): Promise<void> {
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

/** Extends the lease of jobs and objects three times per lease for as long as the work goes on. */
function keepLease(
  context: PipelineContext,
  jobs: Job[],
  objects: { tenantId: string; key: string }[],
): () => void {
  const timer = setInterval(() => {
    // A lost lease is no harm: another daemon does the work again, and the row's version lets only one of them commit.
    extendLease(context.pool, jobs, objects, context.config.leaseMs).catch(() => undefined)
  }, context.config.leaseMs / 3)
  return () => clearInterval(timer)
}

/** Something of one payload of the version that was planned, as a statement without parameters (COPY takes none). */
function selectPayloadSql(row: PlannedRow, phase: 1 | 2, something: (value: string) => string): string {
  const { source } = row
  const phase1 = row.payloads.find(p => p.phase === 1)
  const field = fieldSql(source, 'd.doc', 'd.tenant_id')
  const rest = restSql(
    source,
    'f.doc',
    'f.field',
    phase1 === undefined ? 'null::uuid' : `${literal(phase1.artifactId)}::uuid`,
  )
  return `
    select ${something(phase === 1 ? 'f.field' : `(${rest})`)}
      from (select d.doc, ${field} as field
              from (select ${documentSql(`m.${ident(source.jsonColumn)}`)} as doc, ${tenantSql(source)} as tenant_id
                      from ${fromSql(source)}
                     where m.${ident(source.keyColumn)} = ${literal(row.job.rowId)}::${source.keyType}
                       and ${isVersionSql('m', literal(row.version ?? ''))}
                    offset 0) d
            offset 0) f`
}
