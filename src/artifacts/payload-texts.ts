// Payloads as texts, for one request to hydrate: each artifact is looked up, read, checked and opened once, however
// many rows point to it.
import { isUtf8 } from 'node:buffer'
import { type Artifact, lookupArtifacts } from '../catalogue/lookup.ts'
import type { Queryable } from '../db/pool.ts'
import { ArtifactError, LighterError } from '../errors.ts'
import type { ArtifactId, TenantId } from '../ids.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { fetchCurrent } from './fetch-current.ts'
import type { Work } from './hydrate-limits.ts'
import { checkJsonSteps } from './json-check.ts'
import { type Opened, openSteps } from './layers.ts'

export interface PayloadTexts {
  /** Looks the artifacts up. */
  find(wanted: Iterable<{ tenantId: TenantId; id: ArtifactId }>): Promise<void>
  /** Of what was looked up: whether the tenant has it. */
  has(tenantId: TenantId, id: ArtifactId): boolean
  /** Reads those of them that are there. */
  read(wanted: Iterable<{ tenantId: TenantId; id: ArtifactId }>): Promise<void>
  /** @throws {LighterError} why there is no text */
  text(tenantId: TenantId, id: ArtifactId): Promise<string>
  /** The text with its pointers. @throws as `text` */
  open(tenantId: TenantId, id: ArtifactId, field: string | null): Promise<Opened>
}

interface Entry {
  artifact: Artifact | null
  payload: Buffer | LighterError | null
  text: string | null
  opened: Map<string | null, Opened>
}

export function createPayloadTexts(
  db: Queryable,
  store: ObjectStore,
  work: Work,
  concurrency: number,
): PayloadTexts {
  const entries = new Map<string, Entry>()
  const keyOf = (tenantId: TenantId, id: ArtifactId) => `${tenantId}/${id}`
  const entryOf = (tenantId: TenantId, id: ArtifactId) => entries.get(keyOf(tenantId, id))

  const text = async (tenantId: TenantId, id: ArtifactId): Promise<string> => {
    const entry = entryOf(tenantId, id)
    // Said of another tenant's artifact and of none at all alike.
    if (entry === undefined || entry.artifact === null)
      throw new ArtifactError(
        'artifact_not_found',
        `the row points to artifact ${id}, which its tenant does not have`,
      )
    if (entry.payload instanceof LighterError) throw entry.payload
    if (entry.text !== null) return entry.text
    if (entry.payload === null) throw new Error(`payload ${id} was not fetched`)
    try {
      entry.text = await textOf(entry.artifact, entry.payload, work)
    } catch (error) {
      // It would fail again for the next row that points to it.
      entry.payload =
        error instanceof LighterError
          ? error
          : new ArtifactError('hydrate_failed', String(error), { cause: error })
      throw error
    }
    entry.payload = Buffer.alloc(0)
    return entry.text
  }

  return {
    find: async wanted => {
      const unknown = [...wanted].filter(({ tenantId, id }) => entryOf(tenantId, id) === undefined)
      for (const [tenantId, ofTenant] of Map.groupBy(unknown, each => each.tenantId)) {
        const ids = [...new Set(ofTenant.map(each => each.id))]
        const found = await lookupArtifacts(db, tenantId, ids)
        for (const id of ids) {
          const artifact = found.get(id) ?? null
          entries.set(keyOf(tenantId, id), { artifact, payload: null, text: null, opened: new Map() })
        }
      }
    },

    has: (tenantId, id) => (entryOf(tenantId, id)?.artifact ?? null) !== null,

    read: async wanted => {
      const missing = new Map<Artifact, Entry>()
      for (const { tenantId, id } of wanted) {
        const entry = entryOf(tenantId, id)
        if (entry?.artifact && entry.payload === null) missing.set(entry.artifact, entry)
      }
      const { payloadBytes } = work.limits
      const options = { concurrency, maxPayloadBytes: payloadBytes, budget: work.budget }
      const payloads = await fetchCurrent(db, store, [...missing.keys()], options)
      for (const [artifact, entry] of missing) entry.payload = payloads.get(artifact) ?? null
    },

    text,

    open: async (tenantId, id, field) => {
      const known = entryOf(tenantId, id)?.opened.get(field)
      if (known !== undefined) return known
      const opened = await work.run(openSteps(await text(tenantId, id), field))
      entryOf(tenantId, id)?.opened.set(field, opened)
      return opened
    },
  }
}

/**
 * Whatever its row says of it, an artifact may have been written by anybody: put into an answer as it is, what is not
 * JSON could write the answer.
 */
async function textOf(artifact: Artifact, payload: Buffer, work: Work): Promise<string> {
  const text = payload.toString('utf8')
  if (!isUtf8(payload)) throw new ArtifactError('hydrate_failed', `artifact ${artifact.id} is not UTF-8`)
  await work.run(checkJsonSteps(text, Number.POSITIVE_INFINITY))
  return text
}
