// Whose prefix is this? An owner object in the bucket carries the installation's id, so that a copy of the
// database, or a second installation by mistake, does not write among another's objects.
import { randomUUID } from 'node:crypto'
import { z } from 'zod'
import type { Queryable } from '../db/pool.ts'
import { OwnershipError, StoreError } from '../errors.ts'
import { ownerKey } from './keys.ts'
import type { ObjectStore } from './object-store.ts'

const ownerSchema = z.object({
  installation: z.uuid(),
  epoch: z.int().min(0),
  database: z.string(),
  /** By which an epoch is recognised whose writer did not live, or did not hear, that it was written. */
  nonce: z.uuid().optional(),
  /**
   * Set by a database that has the same identity and found itself displaced: one of the two is a physical copy, and
   * nobody but their operator knows which. Nothing is deleted until `lighter adopt`.
   */
  contested: z.boolean().optional(),
})

interface Installation {
  id: string
  epoch: number
  etag: string | null
  /** Which database of which cluster this is. A copy has the same id, but not the same place. */
  database: string
  /** An epoch that was about to be written when this was last heard of. */
  next: { epoch: number; nonce: string } | null
}

/**
 * Makes sure that the prefix is ours: claims it when nobody has, checks it otherwise.
 * @throws {OwnershipError} another installation, or a newer epoch than this database knows: nothing was written
 */
export async function claimOwnership(db: Queryable, store: ObjectStore): Promise<void> {
  const mine = await readInstallation(db)
  if ((await checkOwnership(db, store)) === 'nobody') {
    // Where this database has been the owner before, a place without an owner object is another place.
    if (mine.etag !== null || mine.epoch > 0) throw ownerObjectMissing(store)
    try {
      const etag = await writeOwner(store, mine, mine.epoch, null)
      await remember(db, mine.epoch, etag)
      return
    } catch (error) {
      if (!(error instanceof StoreError && error.code === 'precondition_failed')) throw error
      // Another daemon was faster, or our own answer was lost: look again at who it was.
      await checkOwnership(db, store)
    }
  }
  if (mine.etag !== null) return
  // Written by us, but the process ended, or the answer was lost, before it was remembered.
  const owner = await readOwner(store)
  if (owner?.installation === mine.id && owner.epoch === mine.epoch)
    await remember(db, owner.epoch, owner.etag)
}

/**
 * @param mayObject whether a database that finds itself displaced says so in the bucket, see `contested`
 * @returns whether the prefix is ours or nobody's. @throws {OwnershipError} it is another's
 */
export async function checkOwnership(
  db: Queryable,
  store: ObjectStore,
  mayObject = true,
): Promise<'mine' | 'nobody'> {
  const { mine, found } = await compareOwner(db, store)
  if (found === null) return 'nobody'
  if (found.installation !== mine.id) {
    throw new OwnershipError(
      'foreign_prefix',
      `${store.bucket}/${store.prefix} belongs to installation ${found.installation}, this database is ${mine.id}`,
      {
        hint: 'Use another R2_PREFIX (or bucket), or, if the other installation is gone for good, run: lighter adopt',
      },
    )
  }
  if (
    found.epoch !== mine.epoch &&
    mine.next !== null &&
    found.epoch === mine.next.epoch &&
    found.nonce === mine.next.nonce &&
    found.database === mine.database
  ) {
    // Written by us, but the process ended, or the answer was lost, before it was remembered.
    await remember(db, found.epoch, found.etag)
    return 'mine'
  }
  if (found.epoch !== mine.epoch) {
    if (mayObject && found.database === mine.database) await contest(store, found)
    throw new OwnershipError(
      'stale_copy',
      `${store.bucket}/${store.prefix} is at epoch ${found.epoch}, this database remembers ${mine.epoch}: it is a copy of the one that owns the prefix`,
      {
        hint: 'Give the copy a prefix of its own (R2_PREFIX), or, if the original is gone for good, run: lighter adopt',
      },
    )
  }
  if (found.database !== mine.database) {
    throw new OwnershipError(
      'copied_database',
      `${store.bucket}/${store.prefix} belongs to this installation as database ${found.database}, and this is ${mine.database}: a copy, or the original after a move`,
      {
        hint: 'Give a copy a prefix of its own (R2_PREFIX). If this is the original, moved or upgraded, run: lighter adopt',
      },
    )
  }
  return 'mine'
}

/** What this database remembers, and what the bucket says, of one moment. */
async function compareOwner(
  db: Queryable,
  store: ObjectStore,
): Promise<{ mine: Installation; found: (Owner & { etag: string }) | null }> {
  for (let before = await readInstallation(db); ; ) {
    const found = await readOwner(store)
    if (found === null || found.epoch === before.epoch) return { mine: before, found }
    const mine = await readInstallation(db)
    if (mine.epoch === before.epoch) return { mine, found }
    // A sweep has advanced the epoch in between, perhaps more than once: what the bucket said may be older.
    before = mine
  }
}

/**
 * Before anything is deleted: the next epoch goes into the owner object, on condition that it is still the one this
 * database remembers, and is then remembered. A physical copy of the database, which has the same id and the same
 * rows, has the same memory only until one of the two has done this; then the other fails.
 *
 * An epoch that somebody of this database had begun to write is written as it was begun, not anew: whoever that was
 * may have died, or have lost its lock, with the request still on its way, and which of the two lands first is all the
 * same.
 * @throws {OwnershipError} the prefix is another's, or this is the copy: nothing may be deleted
 */
export async function advanceEpoch(db: Queryable, store: ObjectStore): Promise<void> {
  await claimOwnership(db, store)
  if ((await readOwner(store))?.contested === true) throw contested(store)
  const mine = await readInstallation(db)
  const epoch = mine.epoch + 1
  const nonce = await beginEpoch(db, epoch)
  let etag: string
  try {
    etag = await writeOwner(store, { ...mine, nonce }, epoch, mine.etag)
  } catch (error) {
    if (!(error instanceof StoreError && error.code === 'precondition_failed')) throw error
    // Either our own first try was answered unheard, which this finds out and remembers, or somebody else's.
    await checkOwnership(db, store)
    if ((await readInstallation(db)).epoch === epoch) return
    throw new OwnershipError(
      'epoch_taken',
      `the owner object of ${store.bucket}/${store.prefix} changed while it was to be written`,
      { hint: 'Another sweep at the same moment? Then the next run goes through. Else see lighter doctor.' },
    )
  }
  await remember(db, epoch, etag)
}

/** As `checkOwnership`, where the prefix has been ours. @throws {OwnershipError} also where there is no owner object */
export async function requireOwner(db: Queryable, store: ObjectStore): Promise<void> {
  if ((await checkOwnership(db, store)) === 'nobody') throw ownerObjectMissing(store)
}

/** As `requireOwner`, before objects are deleted, or said to be missing. @throws {OwnershipError} also where a copy has objected */
export async function requireOwnership(db: Queryable, store: ObjectStore): Promise<void> {
  await requireOwner(db, store)
  if ((await readOwner(store))?.contested === true) throw contested(store)
}

/** Best effort: whoever has displaced us must not delete before somebody has looked who of the two is the copy. */
async function contest(store: ObjectStore, found: Owner & { etag: string }): Promise<void> {
  if (found.contested === true) return
  const { etag, ...owner } = found
  const body = Buffer.from(`${JSON.stringify({ ...owner, contested: true })}\n`)
  await store
    .put(ownerKey(store.prefix), body, { contentType: 'application/json' }, etag)
    .catch(() => undefined)
}

function ownerObjectMissing(store: ObjectStore): OwnershipError {
  return new OwnershipError(
    'owner_object_missing',
    `${store.bucket}/${store.prefix} has no owner object, so it is hardly the bucket that this database knows`,
    {
      hint: 'Check R2_BUCKET, R2_ENDPOINT and R2_PREFIX. If it is the right one and has lost it: lighter adopt --yes',
    },
  )
}

function contested(store: ObjectStore): OwnershipError {
  return new OwnershipError(
    'contested',
    `${store.bucket}/${store.prefix} is claimed by two databases of one identity: one of them is a copy of the other's files`,
    {
      hint: 'Stop the copy, or give it a prefix of its own, and then, on the original: lighter adopt --yes',
    },
  )
}

/** Takes the prefix over, whoever had it: the former owner finds a newer epoch and refuses to write. */
export async function adoptOwnership(
  db: Queryable,
  store: ObjectStore,
): Promise<{ previous: string | null; epoch: number }> {
  const mine = await readInstallation(db)
  const found = await readOwner(store)
  const epoch = Math.max(found?.epoch ?? 0, mine.epoch) + 1
  const etag = await writeOwner(store, mine, epoch, found?.etag ?? null)
  await remember(db, epoch, etag)
  return { previous: found?.installation ?? null, epoch }
}

async function readInstallation(db: Queryable): Promise<Installation> {
  const { rows } = await db.query<{
    id: string
    epoch: string
    etag: string | null
    database: string
    nextEpoch: string | null
    nextNonce: string | null
  }>(
    `select i.id, i.owner_epoch as epoch, i.owner_etag as etag, i.next_epoch as "nextEpoch", i.next_nonce as "nextNonce", c.system_identifier || '/' || d.oid as database
       from lighter.installation i, pg_control_system() c, pg_database d
      where d.datname = current_database()`,
  )
  const row = rows[0]
  if (row === undefined)
    throw new OwnershipError('no_installation', 'lighter.installation is empty', {
      hint: 'Restore its row from a backup, or: insert into lighter.installation default values; lighter adopt',
    })
  return {
    id: row.id,
    epoch: Number(row.epoch),
    etag: row.etag,
    database: row.database,
    next:
      row.nextEpoch === null || row.nextNonce === null
        ? null
        : { epoch: Number(row.nextEpoch), nonce: row.nextNonce },
  }
}

/** An owner object has some 200 bytes. */
const longestOwnerBytes = 16 * 1024

type Owner = z.infer<typeof ownerSchema>

async function readOwner(store: ObjectStore): Promise<(Owner & { etag: string }) | null> {
  try {
    const { body, etag } = await store.get(ownerKey(store.prefix), undefined, longestOwnerBytes)
    const parsed = ownerSchema.safeParse(parseJson(body.toString('utf8')))
    if (!parsed.success) throw ownerObjectDamaged(store)
    return { ...parsed.data, etag }
  } catch (error) {
    if (error instanceof StoreError && error.code === 'object_too_large') throw ownerObjectDamaged(store)
    if (error instanceof StoreError && error.code === 'object_not_found') return null
    throw error
  }
}

function ownerObjectDamaged(store: ObjectStore): OwnershipError {
  return new OwnershipError('owner_object_damaged', `${ownerKey(store.prefix)} is not an owner object`, {
    hint: 'If the prefix is yours, delete that object and start again.',
  })
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

async function writeOwner(
  store: ObjectStore,
  mine: Pick<Installation, 'id' | 'database'> & { nonce?: string },
  epoch: number,
  ifMatch: string | null,
): Promise<string> {
  const owner = {
    installation: mine.id,
    epoch,
    database: mine.database,
    ...(mine.nonce !== undefined && { nonce: mine.nonce }),
  }
  const body = Buffer.from(`${JSON.stringify(owner)}
`)
  return (await store.put(ownerKey(store.prefix), body, { contentType: 'application/json' }, ifMatch)).etag
}

async function beginEpoch(db: Queryable, epoch: number): Promise<string> {
  const { rows } = await db.query<{ nonce: string }>(
    `update lighter.installation
        set next_epoch = $1, next_nonce = case when next_epoch = $1 then next_nonce else $2 end
      where owner_epoch = $1 - 1
     returning next_nonce as nonce`,
    [epoch, randomUUID()],
  )
  if (rows[0] === undefined) {
    throw new OwnershipError(
      'epoch_taken',
      `another sweep has advanced to epoch ${epoch} at the same moment`,
      {
        hint: 'The next run goes through.',
      },
    )
  }
  return rows[0].nonce
}

/** Only ever forward: whoever was stopped in between comes back with what others have left behind since. */
async function remember(db: Queryable, epoch: number, etag: string): Promise<void> {
  await db.query(
    `update lighter.installation
        set owner_epoch = $1, owner_etag = $2,
            next_epoch = case when next_epoch > $1 then next_epoch end,
            next_nonce = case when next_epoch > $1 then next_nonce end
      where owner_epoch < $1 or owner_epoch = $1 and owner_etag is null`,
    [epoch, etag],
  )
}
