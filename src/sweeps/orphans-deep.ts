// The deep look for orphans: the bucket is listed and compared with the account of it, both in the order of their
// keys. Finds what the account can't tell: objects that it does not know (written by something else, or after the
// backup was taken from which this database was restored), and objects that it says are stored and that are gone.
import pLimit from 'p-limit'
import { isNamedSql } from '../catalogue/in-object.ts'
import { seesAllRowsSql } from '../db/all-rows.ts'
import { isTenantKey } from '../store/keys.ts'
import { requireOwnership } from '../store/ownership.ts'
import type { Counts, SweepContext } from './context.ts'
import { createPace } from './pace.ts'

export interface UnknownObject {
  key: string
  size: number
  last_modified: string | null
  /** Why it stays, if it is one that --delete-unknown would not delete. */
  kept: 'too young' | 'over the limit' | null
}

export interface MissingObject {
  tenant_id: string
  key: string
  kind: string
  artifacts: number
  /** The first of them. */
  artifact_ids: string[]
}

export interface DeepOptions {
  /** Deletes objects that nobody knows, at most `maxDeletions` of them. */
  deleteUnknown: boolean
  maxDeletions: number
  onUnknown: (found: UnknownObject) => void
  onMissing: (found: MissingObject) => void
}

interface Listed {
  key: string
  size: number
  lastModified: Date | null
}

interface Known {
  tenantId: string
  key: string
  kind: string
  state: 'uploading' | 'stored' | 'deleting'
}

/** What is younger may belong to a transaction, a backup or a clock that we do not see. */
const minimumAgeMs = 24 * 3_600_000
/** S3's limit for one DeleteObjects. */
const batchObjects = 1000
const headsAtOnce = 8
const listedIds = 20

/**
 * Memory: a page of the listing, a page of the account, and a batch of differences.
 * @throws {OwnershipError} not our bucket: nothing in it would be known, everything in the account missing
 */
export async function sweepOrphansDeep(context: SweepContext, options: DeepOptions): Promise<Counts> {
  const { config, store, signal } = context
  const counts: Counts = {
    objects_listed: 0,
    objects_foreign: 0,
    objects_unknown: 0,
    bytes_unknown: 0,
    objects_missing: 0,
    artifacts_affected: 0,
    unknown_deleted: 0,
  }
  await requireOwnership(context.pool, store)
  const pace = createPace(config.rate, signal)
  const isOurs = tenantKeys(store.prefix)
  const unknown = inBatches<Listed>(Math.min(batchObjects, config.batchSize), found =>
    dealWithUnknown(context, options, found, counts),
  )
  const missing = inBatches<Known>(config.batchSize, found =>
    dealWithMissing(context, options, found, counts),
  )
  const account = readAccount(context)
  let known = await account.next()
  let sincePace = 0
  // Up to this key the account has been compared with what was listed.
  const missingBefore = async (key: Buffer | null) => {
    while (
      !known.done &&
      !signal.aborted &&
      (key === null || Buffer.from(known.value.key).compare(key) < 0)
    ) {
      if (known.value.state === 'stored') await missing.add(known.value)
      known = await account.next()
    }
  }
  for await (const listed of store.list(store.prefix)) {
    if (signal.aborted) break
    counts.objects_listed = (counts.objects_listed ?? 0) + 1
    if (++sincePace === config.batchSize) {
      context.onProgress(counts)
      await pace(sincePace)
      sincePace = 0
    }
    if (!isOurs(listed.key)) {
      // The owner object, and what others keep in the same bucket.
      counts.objects_foreign = (counts.objects_foreign ?? 0) + 1
      continue
    }
    const key = Buffer.from(listed.key)
    await missingBefore(key)
    if (!known.done && known.value.key === listed.key) known = await account.next()
    else await unknown.add(listed)
  }
  // A listing that was cut short says nothing of what comes after.
  if (!signal.aborted) await missingBefore(null)
  await account.return(undefined)
  await unknown.flush()
  await missing.flush()
  return counts
}

/**
 * Whether a key is one that we could have written: under the prefix, of a tenant, with kind, day and name as objectKey
 * makes them. What the application keeps beside is not ours to know.
 */
function tenantKeys(prefix: string): (key: string) => boolean {
  const id = '[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}'
  const uuid = new RegExp(`^${id}/[^/]+/\\d{4}/\\d\\d/\\d\\d/${id}\\.(?:jsonl?|bin)(?:\\.(?:zst|gz))?$`)
  const start = `${prefix}tenants/`
  return key => key.startsWith(start) && uuid.test(key.slice(start.length))
}

/** The account under our prefix, in the byte order of keys, as the bucket is listed. */
async function* readAccount({ pool, config, store }: SweepContext): AsyncGenerator<Known> {
  const isOurs = tenantKeys(store.prefix)
  let after = store.prefix
  for (;;) {
    const { rows } = await pool.query<Known>(
      `select o.tenant_id as "tenantId", o.r2_key as key, o.kind, o.state
         from lighter.objects o
        where o.r2_key collate "C" > $1 and starts_with(o.r2_key, $2)
        order by o.r2_key collate "C"
        limit $3`,
      [after, store.prefix, config.batchSize],
    )
    for (const row of rows) if (isOurs(row.key)) yield row
    const last = rows.at(-1)
    if (last === undefined || rows.length < config.batchSize) return
    after = last.key
  }
}

async function dealWithUnknown(
  context: SweepContext,
  options: DeepOptions,
  listed: Listed[],
  counts: Counts,
): Promise<void> {
  // The page of the account may be older than the page of the listing; and objects that the application stored
  // itself, before us, only the artifacts know.
  const unknown = await notKnown(context, listed)
  const doomed: Listed[] = []
  for (const object of unknown) {
    counts.objects_unknown = (counts.objects_unknown ?? 0) + 1
    counts.bytes_unknown = (counts.bytes_unknown ?? 0) + object.size
    const old = object.lastModified !== null && Date.now() - object.lastModified.getTime() > minimumAgeMs
    const room = (counts.unknown_deleted ?? 0) + doomed.length < options.maxDeletions
    if (old && room && options.deleteUnknown) doomed.push(object)
    if (old && !room && options.deleteUnknown) counts.over_the_limit = (counts.over_the_limit ?? 0) + 1
    options.onUnknown({
      key: object.key,
      size: object.size,
      last_modified: object.lastModified?.toISOString() ?? null,
      kept: !old ? 'too young' : !room && options.deleteUnknown ? 'over the limit' : null,
    })
  }
  if (doomed.length > 0 && !context.signal.aborted) {
    if (!context.dryRun) {
      await context.mayDelete()
      // Once more, right before: proving the ownership may have taken its time.
      const still = await notKnown(context, doomed)
      await context.store.delete(still.map(o => o.key))
      doomed.splice(0, doomed.length, ...still)
    }
    counts.unknown_deleted = (counts.unknown_deleted ?? 0) + doomed.length
  }
  context.onProgress(counts)
}

async function notKnown({ pool, store }: SweepContext, listed: Listed[]): Promise<Listed[]> {
  const start = `${store.prefix}tenants/`.length
  const { rows } = await pool.query<{ key: string }>(
    `select k.key
       from unnest($1::uuid[], $2::text[]) k(tenant_id, key)
      -- An error where rows may be hidden: then all would be unknown, and deleted.
      where not ${seesAllRowsSql}
         or exists (select from lighter.objects o where o.tenant_id = k.tenant_id and o.r2_key = k.key)
         or ${isNamedSql('k.tenant_id', 'k.key')}`,
    [listed.map(o => o.key.slice(start, start + 36)), listed.map(o => o.key)],
  )
  const known = new Set(rows.map(row => row.key))
  return listed.filter(o => !known.has(o.key))
}

/** Asked of the store first and of the account then: what leaves on purpose is marked before it is deleted. */
async function dealWithMissing(
  context: SweepContext,
  options: DeepOptions,
  candidates: Known[],
  counts: Counts,
): Promise<void> {
  const limit = pLimit(headsAtOnce)
  // A row of the application may name a key that is none of its tenant's: nothing is asked about that.
  const own = candidates.filter(o => isTenantKey(context.store.prefix, o.tenantId, o.key))
  const heads = await Promise.all(own.map(o => limit(() => context.store.head(o.key))))
  const gone = own.filter((_, i) => heads[i] === null)
  if (gone.length === 0) return
  const { rows } = await context.pool.query<MissingObject>(
    `select o.tenant_id, o.r2_key as key, o.kind, count(a.id)::int as artifacts,
            coalesce((array_agg(a.id order by a.id) filter (where a.id is not null))[1:$3], '{}') as artifact_ids
       from unnest($1::uuid[], $2::text[]) k(tenant_id, key)
       join lighter.objects o on o.tenant_id = k.tenant_id and o.r2_key = k.key and o.state = 'stored'
       left join public.artifact_refs a
         on a.tenant_id = o.tenant_id and a.r2_key = o.r2_key and a.purged_at is null
      group by o.tenant_id, o.r2_key, o.kind
      order by o.r2_key collate "C"`,
    [gone.map(o => o.tenantId), gone.map(o => o.key), listedIds],
  )
  for (const found of rows) {
    counts.objects_missing = (counts.objects_missing ?? 0) + 1
    counts.artifacts_affected = (counts.artifacts_affected ?? 0) + found.artifacts
    options.onMissing(found)
  }
  context.onProgress(counts)
}

/** Gathers items and hands them on in batches. */
function inBatches<T>(size: number, work: (items: T[]) => Promise<void>) {
  let items: T[] = []
  const flush = async () => {
    const batch = items
    items = []
    if (batch.length > 0) await work(batch)
  }
  return {
    add: async (item: T) => {
      items.push(item)
      if (items.length >= size) await flush()
    },
    flush,
  }
}
