// Compaction: packs are written anew from what is alive in them. Packs of which too little is alive, or of which
// something has been dead for too long, so that deleted bytes really leave the bucket; and the small objects of one
// tenant, kind and day, folded into larger packs.
//
// Readers are never broken: the new place of the artifacts is committed first, and the old object stays for longer
// than the longest read.
import pLimit from 'p-limit'
import type { PackConfig } from '../config.ts'
import { asError, LighterError, messageOf } from '../errors.ts'
import type { Counts, SweepContext } from './context.ts'
import { deleteDueObjects } from './deletion.ts'
import { createPace } from './pace.ts'
import { type OldObject, rewriteObjects } from './rewrite.ts'

/** An object is small if this many of it would fit into one pack. */
const smallFraction = 8
/** Packs that are written at the same time: much of it is waiting for the store. */
const writtenAtOnce = 2
/** Fewer small packs of one tenant, kind and day are not worth a PUT. */
const foldAtLeast = 8
/** How far back days are looked at for objects to fold; what was not folded by then never is. */
const foldDays = 3

export async function sweepCompaction(context: SweepContext): Promise<Counts> {
  const pack = context.offload
  const counts: Counts = {
    objects_rewritten: 0,
    objects_folded: 0,
    objects_written: 0,
    artifacts_moved: 0,
    bytes_freed: 0,
  }
  const pace = createPace(context.config.rate, context.signal)
  const giveUp = (objects: string[], error: LighterError) => {
    counts.failed = (counts.failed ?? 0) + objects.length
    context.log.warn({ objects, error: messageOf(error) }, 'objects can not be compacted')
  }
  const work = async (old: OldObject[], count: string, atLeast: number) => {
    if (context.dryRun) {
      counts[count] = (counts[count] ?? 0) + old.length
      return
    }
    try {
      const { rewritten, left, moved, written, writtenBytes } = await rewriteObjects(context, old, atLeast)
      counts[count] = (counts[count] ?? 0) + rewritten.length
      for (const [key, error] of left) giveUp([key], error)
      counts.artifacts_moved = (counts.artifacts_moved ?? 0) + moved
      counts.objects_written = (counts.objects_written ?? 0) + written
      const bytes = rewritten.reduce((sum, o) => sum + o.byteLength, 0)
      counts.bytes_freed = (counts.bytes_freed ?? 0) + bytes - writtenBytes
      await pace(moved)
    } catch (error) {
      // One damaged object must not keep all others from being compacted; the verify sweep reports what it is.
      if (!(error instanceof LighterError) || error.retryable) throw error
      giveUp(
        old.map(o => o.key),
        error,
      )
    }
    context.onProgress(counts)
  }

  // None is under way any more when the sweep ends, whatever ended it.
  const limit = pLimit(writtenAtOnce)
  let failure: Error | null = null
  const fail = (error: unknown) => {
    failure ??= asError(error)
  }
  let after: OldObject | null = null
  while (!context.signal.aborted) {
    const due = await halfDead(context, after)
    await Promise.all(
      groupsOf(due, old => `${old.tenantId} ${old.kind}`, pack.maxPackBytes, context.config.batchSize).map(
        group =>
          limit(async () => {
            if (context.signal.aborted || failure !== null) return
            await work(group, 'objects_rewritten', 1).catch(fail)
          }),
      ),
    )
    if (failure !== null) throw failure
    after = due.at(-1) ?? null
    if (after === null) break
  }
  if (pack.packing) {
    for (const group of await smallObjects(context, pack)) {
      if (context.signal.aborted) break
      await work(group, 'objects_folded', foldAtLeast)
    }
  }
  if (!context.dryRun) await deleteDueObjects(context, counts)
  return counts
}

/** Packs of which something is dead: too much, or for too long. */
async function halfDead({ pool, config }: SweepContext, after: OldObject | null): Promise<OldObject[]> {
  const { rows } = await pool.query<OldObject>(
    `select o.tenant_id as "tenantId", o.r2_key as key, o.kind, coalesce(o.live_bytes, 0)::float8 as "liveBytes",
            coalesce(o.byte_length, 0)::float8 as "byteLength"
       from lighter.objects o
      where o.state = 'stored' and o.dead_since is not null and o.live_artifacts > 0
        and (o.tenant_id, o.r2_key) > ($1, $2)
        and (o.dead_since < now() - make_interval(days => $3)
             or o.live_bytes < $4::float8 * coalesce(o.payload_bytes,
                  (select sum(a.size_bytes) from public.artifact_refs a
                    where a.tenant_id = o.tenant_id and a.r2_key = o.r2_key)))
        -- (Of one out of which somebody has deleted all, the retention sweep takes notice.)
        and exists (select from lighter.frames f
                     where f.tenant_id = o.tenant_id and f.r2_key = o.r2_key and f.artifacts + f.deleted_artifacts > 0)
      order by o.tenant_id, o.r2_key
      limit $5`,
    [
      after?.tenantId ?? '00000000-0000-0000-0000-000000000000',
      after?.key ?? '',
      // The old object then stays for the grace period.
      Math.max(0, config.erasureDays - config.graceDays),
      config.compactLiveShare,
      config.batchSize,
    ],
  )
  return rows
}

/** Groups of small packs that fit into one together. */
async function smallObjects({ pool, config }: SweepContext, pack: PackConfig): Promise<OldObject[][]> {
  const { rows } = await pool.query<OldObject & { day: string }>(
    `with small as (
       select o.tenant_id, o.r2_key, o.kind, (o.stored_at at time zone 'UTC')::date as day, o.stored_at,
              coalesce(o.live_bytes, o.payload_bytes)::float8 as live_bytes, o.byte_length::float8 as byte_length,
              count(*) over (partition by o.tenant_id, o.kind, (o.stored_at at time zone 'UTC')::date) as siblings
         from lighter.objects o
        where o.state = 'stored'
          and o.stored_at > now() - make_interval(days => $1) and o.stored_at < now() - interval '1 hour'
          and o.payload_bytes < $2
          and exists (select from lighter.frames f where f.tenant_id = o.tenant_id and f.r2_key = o.r2_key)
     )
     select s.tenant_id as "tenantId", s.r2_key as key, s.kind, s.day::text, s.live_bytes as "liveBytes",
            s.byte_length as "byteLength"
       from small s
      where s.siblings >= $3
      order by s.tenant_id, s.kind, s.day, s.stored_at
      limit $4`,
    [
      foldDays,
      Math.floor(pack.maxPackBytes / smallFraction),
      foldAtLeast,
      Math.max(config.batchSize, foldAtLeast) * 100,
    ],
  )
  // Of a batch that is smaller than what is worth folding nothing would ever be.
  const most = Math.max(config.batchSize, foldAtLeast)
  return groupsOf(rows, row => `${row.tenantId} ${row.kind} ${row.day}`, pack.maxPackBytes, most).filter(
    group => group.length >= foldAtLeast,
  )
}

/** Objects of one name, as they come, that fit into one pack together. */
function groupsOf<T extends OldObject>(
  objects: T[],
  nameOf: (object: T) => string,
  maxBytes: number,
  most: number,
): T[][] {
  const groups: T[][] = []
  let name = ''
  let bytes = 0
  for (const object of objects) {
    const group = groups.at(-1)
    if (
      group === undefined ||
      nameOf(object) !== name ||
      bytes + object.liveBytes > maxBytes ||
      group.length >= most
    ) {
      groups.push([object])
      name = nameOf(object)
      bytes = 0
    } else {
      group.push(object)
    }
    bytes += object.liveBytes
  }
  return groups
}
