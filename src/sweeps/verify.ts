// Verify: are payloads still what was stored? Reads them back, a random sample by the clock or all of them on
// request, and puts on record which are damaged, and which are well again.
import { setTimeout } from 'node:timers/promises'
import { messageOf } from '../errors.ts'
import { frameOf, type TenantId } from '../ids.ts'
import { requireOwnership } from '../store/ownership.ts'
import type { Counts, SweepContext } from './context.ts'
import { createPace } from './pace.ts'
import { type Checkable, nextArtifacts, sampleArtifacts } from './verify-choose.ts'
import { clearCursor, openCursor, saveCursor } from './verify-cursor.ts'
import { type Finding, readBack } from './verify-read.ts'

export interface DamagedArtifact {
  tenant_id: string
  id: string
  kind: string
  damage: string
}

export interface VerifyOptions {
  /** Every artifact, or only the sample that the configuration says. */
  all: boolean
  /** Of all: only this tenant's. */
  tenantId: TenantId | null
  /** Begins anew where an interrupted pass would go on. */
  restart: boolean
  onDamaged: (found: DamagedArtifact) => void
}

const scheduled: VerifyOptions = { all: false, tenantId: null, restart: false, onDamaged: () => undefined }

/** Waits before what could not be read is tried again; then it is left, or the store is down. */
const retryMs = [500, 2000]

/**
 * Purged artifacts are left out, tombstoned ones are not: they could be brought back.
 *
 * Only what proves damage is put on record (hash, length, object gone). When the store is down the sweep fails, and
 * nothing is said of any artifact.
 * @throws {OwnershipError} not our bucket; {StoreError} the store is down
 */
export async function sweepVerify(
  context: SweepContext,
  options: VerifyOptions = scheduled,
): Promise<Counts> {
  const counts: Counts = { checked: 0, checked_bytes: 0, damaged: 0, healed: 0, unread: 0 }
  await requireOwnership(context.pool, context.store)
  if (options.all) await verifyAll(context, options, counts)
  else await verifySample(context, options, counts)
  return counts
}

async function verifySample(context: SweepContext, options: VerifyOptions, counts: Counts): Promise<void> {
  const pace = createPace(context.config.rate, context.signal)
  const sample = await sampleArtifacts(context)
  for (let from = 0; from < sample.length && !context.signal.aborted; from += context.config.batchSize) {
    const batch = sample.slice(from, from + context.config.batchSize)
    await verifyBatch(context, options, batch, counts)
    context.onProgress(counts)
    await pace(batch.length)
  }
}

async function verifyAll(context: SweepContext, options: VerifyOptions, counts: Counts): Promise<void> {
  const pace = createPace(context.config.rate, context.signal)
  const cursor = await openCursor(context, options, counts)
  let after = cursor.after
  for (const known of cursor.damaged) options.onDamaged(known)
  while (!context.signal.aborted) {
    const batch = await nextArtifacts(context, options.tenantId, after)
    const last = batch.at(-1)
    if (last === undefined) {
      if (!context.dryRun) await clearCursor(context, options)
      return
    }
    // Cut short in the middle of a batch, the next run takes it from its beginning.
    if (!(await verifyBatch(context, options, batch, counts))) return
    after = { tenantId: last.tenantId, id: last.id }
    if (!context.dryRun) await saveCursor(context, options, after, counts)
    context.onProgress(counts)
    await pace(batch.length)
  }
}

/** @returns false if it was stopped before its end; then nothing of it was counted or put on record */
async function verifyBatch(
  context: SweepContext,
  options: VerifyOptions,
  batch: Checkable[],
  counts: Counts,
): Promise<boolean> {
  const findings = await readWithRetries(context, batch)
  if (findings === null) return false
  const damaged = findings.filter(f => f.outcome === 'damaged')
  const healed = findings.filter(f => f.outcome === 'well' && f.artifact.damagedAt !== null)
  const still = context.dryRun ? damaged : await recordDamage(context, damaged)
  if (!context.dryRun) await recordHealed(context, healed)
  const add = (name: string, n: number) => {
    counts[name] = (counts[name] ?? 0) + n
  }
  add('checked', findings.length)
  add(
    'checked_bytes',
    findings.reduce((sum, f) => sum + (f.outcome === 'well' ? (f.artifact.sizeBytes ?? 0) : 0), 0),
  )
  add('damaged', still.length)
  add('healed', healed.length)
  add('unread', findings.filter(f => f.outcome === 'unread').length)
  for (const { artifact, damage } of still) {
    options.onDamaged({
      tenant_id: artifact.tenantId,
      id: artifact.id,
      kind: artifact.kind,
      damage: damage ?? '',
    })
  }
  return true
}

/** @returns null when stopped. @throws {StoreError} nothing can be read: the store is down */
async function readWithRetries(context: SweepContext, batch: Checkable[]): Promise<Finding[] | null> {
  const findings = new Map<string, Finding>()
  let left = batch
  for (const waitMs of [0, ...retryMs]) {
    await setTimeout(waitMs, undefined, { signal: context.signal }).catch(() => undefined)
    const found = await readBack(context, left)
    if (found === null) return null
    for (const finding of found) findings.set(finding.artifact.id, finding)
    left = found.flatMap(f => (f.outcome === 'unread' && f.error.retryable ? [f.artifact] : []))
    if (left.length === 0) break
  }
  // Are it these objects, or is it the store? An object that is known to be there tells; if it can't be read either,
  // the sweep ends here, and the next run begins with this batch.
  if (left.length > 0) await requireOwnership(context.pool, context.store)
  for (const { outcome, artifact, error } of findings.values()) {
    if (outcome === 'unread') {
      context.log.warn({ artifact: artifact.id, error: messageOf(error) }, 'an artifact could not be checked')
    }
  }
  return [...findings.values()]
}

/**
 * What was purged or moved since it was looked up is left alone: whoever moved it has read it.
 * @returns those that were put on record
 */
async function recordDamage({ pool }: SweepContext, damaged: Finding[]): Promise<Finding[]> {
  if (damaged.length === 0) return []
  const { rows } = await pool.query<{ id: string }>(
    `update public.artifact_refs a
        set damaged_at = now(), damage = d.damage
       from unnest($1::uuid[], $2::uuid[], $3::text[], $4::bigint[], $5::text[]) d(tenant_id, id, r2_key, byte_offset, damage)
      where a.tenant_id = d.tenant_id and a.r2_key = d.r2_key and a.id = d.id and a.purged_at is null
        and a.byte_offset is not distinct from d.byte_offset
     returning a.id`,
    [
      damaged.map(d => d.artifact.tenantId),
      damaged.map(d => d.artifact.id),
      damaged.map(d => d.artifact.key),
      damaged.map(d => d.artifact.byteOffset),
      damaged.map(d => d.damage),
    ],
  )
  const recorded = new Set(rows.map(row => row.id))
  return damaged.filter(d => recorded.has(d.artifact.id))
}

async function recordHealed({ pool }: SweepContext, healed: Finding[]): Promise<void> {
  if (healed.length === 0) return
  await pool.query(
    `update public.artifact_refs a set damaged_at = null, damage = null
       from unnest($1::uuid[], $2::uuid[], $3::uuid[]) d(tenant_id, id, frame_id)
      where a.tenant_id = d.tenant_id and a.frame_id = d.frame_id and a.id = d.id`,
    [
      healed.map(h => h.artifact.tenantId),
      healed.map(h => h.artifact.id),
      healed.map(h => frameOf(h.artifact.id)),
    ],
  )
}
