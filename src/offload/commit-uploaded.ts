// Step 6 for what was uploaded of a batch: in one transaction, or in as many as failing rows make necessary.
import { StoreError } from '../errors.ts'
import type { ArtifactId } from '../ids.ts'
import type { Source } from '../source/sources.ts'
import type { BatchResult } from './batch-result.ts'
import { type CommitResult, commitBatch } from './commit.ts'
import type { PipelineContext } from './context.ts'
import { jobKey, LeaseLost } from './lease.ts'
import { blame, type Failed, narrowDown } from './narrow-down.ts'
import type { Committed, Observer, Work } from './observer.ts'
import type { Location } from './pack.ts'
import type { PlannedRow } from './plan.ts'
import { registerForDeletion } from './register.ts'
import type { Returned } from './settle.ts'

export interface Uploaded {
  locations: Map<ArtifactId, Location>
  failures: Map<ArtifactId, StoreError>
  failedObjects: Map<string, StoreError>
  objects: { tenantId: string; key: string; byteLength: number }[]
}

export const nothingUploaded = (): Uploaded => ({
  locations: new Map(),
  failures: new Map(),
  failedObjects: new Map(),
  objects: [],
})

/** Commits the rows, tells the observer, and adds to `result` and `returned` what became of them. */
export async function commitAll(
  context: PipelineContext,
  work: Work,
  rows: PlannedRow[],
  uploaded: Uploaded,
  result: BatchResult,
  returned: Returned[],
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
          context.config.maxAttempts,
        )
        tellCommit(context.observer, part, commit, uploaded, told)
        return [commit]
      },
      (row, error) => {
        swept ||= error instanceof StoreError && error.code === 'object_swept'
        failed.push({ job: row.job, error, source: row.source })
      },
      error => error instanceof LeaseLost,
    ),
  )
  for (const [source, ofSource] of Map.groupBy(failed, each => each.source)) {
    returned.push(...(await blame(context, source, ofSource, rows.length - failed.length)))
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
