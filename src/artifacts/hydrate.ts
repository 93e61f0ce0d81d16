// Metadata as it was before offloading: pointers followed, payloads put back, as text from end to end.
import { isUtf8 } from 'node:buffer'
import type { Queryable } from '../db/pool.ts'
import { ArtifactError, LighterError } from '../errors.ts'
import { type ArtifactId, asArtifactId, type TenantId } from '../ids.ts'
import { fieldCountKey, fieldRefKey, metadataKindKey, metadataRefKey } from '../offload/source-sql.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { defaultFetchOptions, type FetchOptions } from './fetch.ts'
import { fetchCurrent } from './fetch-current.ts'
import { type Artifact, lookupArtifacts } from './lookup.ts'
import { checkJson, joinObject, overlay, rawKind, splitObject, uuidOf } from './raw-json.ts'

export interface HydrateContext {
  db: Queryable
  store: ObjectStore
  fetch?: FetchOptions
  /** Counts down the characters of what is put together; a row that no longer fits has `artifact_too_large`. */
  output?: { characters: number }
  /** Longest chain of pointers that is followed; default without limit. */
  maxDepth?: number
  /** Aborted: nobody waits for the result any more. */
  signal?: AbortSignal
}

export interface HydrateInput {
  tenantId: TenantId
  /** The column's text (`metadata::text`), null for SQL null. */
  metadata: string | null
  /** The source's phase 1 field. */
  field: string | null
}

export type HydrateResult = { metadata: string | null; error: null } | { metadata: null; error: LighterError }

/**
 * Hydrates many rows: per level of pointers one lookup per tenant and one read per frame.
 *
 * `base = payload(artifact_metadata_ref)`, hydrated in turn; the row's own keys are laid over it, since the
 * application may have changed them; then the field comes from its pointer, unless the row has it inline
 * again. For a row that was not touched since, the result equals the original jsonb.
 * @returns results in the order of the inputs; a row that can't be hydrated has its error, never wrong data
 */
export async function hydrateMany(context: HydrateContext, inputs: HydrateInput[]): Promise<HydrateResult[]> {
  const results = await hydrateLevel(context, inputs)
  return results.map(({ charged: _charged, ...result }) => result as HydrateResult)
}

/** One row. @throws {ArtifactError} a pointer leads nowhere, to another tenant, or to damaged bytes */
export async function hydrate(context: HydrateContext, input: HydrateInput): Promise<string | null> {
  const [result] = await hydrateMany(context, [input])
  if (result === undefined) throw new Error('hydrateMany lost its input')
  if (result.error !== null) throw result.error
  return result.metadata
}

type LevelInput = HydrateInput & {
  /** What this lies under has the field already, so the one it points to is not needed. */
  fieldKnown?: boolean
  /** The pointers that led here, the row's own. It may be offloaded again and again, each time on top of the last. */
  trail?: Set<ArtifactId>
}

interface Opened {
  input: LevelInput
  members: Map<string, string>
  metadataRef: ArtifactId | null
  fieldRef: ArtifactId | null
}

/** `charged`: characters that it was put together of; another one's text, handed through, costs nothing. */
type LevelResult = HydrateResult & { charged?: number }

async function hydrateLevel(context: HydrateContext, inputs: LevelInput[]): Promise<LevelResult[]> {
  const results = new Array<LevelResult | undefined>(inputs.length)
  const opened = new Map<number, Opened>()
  inputs.forEach((input, i) => {
    try {
      const open = openPointers(input)
      if (open === null) results[i] = { metadata: input.metadata, error: null }
      else opened.set(i, open)
    } catch (error) {
      results[i] = failed(error)
    }
  })
  if (opened.size > 0) {
    await hydrateOpened(context, opened, results)
  }
  return results.map(result => result ?? failed(new Error('hydrate lost a row')))
}

/** The row's pointers, or null when it has none. */
function openPointers(input: LevelInput): Opened | null {
  if (input.metadata === null || rawKind(input.metadata) !== 'object') return null
  // Cheap test first: most rows have no pointer, and splitting a long text is work.
  const mentionsField =
    input.field !== null && input.metadata.includes(JSON.stringify(fieldRefKey(input.field)))
  if (!mentionsField && !input.metadata.includes(`"${metadataRefKey}"`)) return null
  const members = splitObject(input.metadata)
  const metadataRef = uuidOf(members.get(metadataRefKey))
  const fieldRef = input.field === null ? null : uuidOf(members.get(fieldRefKey(input.field)))
  if (metadataRef === null && fieldRef === null) return null
  return {
    input,
    members,
    metadataRef: metadataRef === null ? null : asArtifactId(metadataRef),
    fieldRef: fieldRef === null ? null : asArtifactId(fieldRef),
  }
}

async function hydrateOpened(
  context: HydrateContext,
  opened: Map<number, Opened>,
  results: (LevelResult | undefined)[],
): Promise<void> {
  const artifacts = await lookupAll(context.db, [...opened.values()])
  const artifactOf = (open: Opened, id: ArtifactId) => artifacts.get(open.input.tenantId)?.get(id)

  // A field that is inline again stands for itself: its pointer is stale and need not be read.
  const inline = (open: Opened) => open.input.field !== null && open.members.has(open.input.field)
  const wanted = new Set<Artifact>()
  for (const open of opened.values()) {
    for (const id of [open.metadataRef, inline(open) || open.input.fieldKnown ? null : open.fieldRef]) {
      const artifact = id === null ? undefined : artifactOf(open, id)
      if (artifact !== undefined) wanted.add(artifact)
    }
  }
  context.signal?.throwIfAborted()
  const payloads = await fetchCurrent(
    context.db,
    context.store,
    [...wanted],
    context.fetch ?? defaultFetchOptions,
  )
  // Of an artifact that many rows point to there is one text.
  const texts = new Map<Artifact, string>()
  const payloadOf = (open: Opened, id: ArtifactId): string => {
    const artifact = artifactOf(open, id)
    // Said of another tenant's artifact and of none at all alike.
    if (artifact === undefined)
      throw new ArtifactError(
        'artifact_not_found',
        `the row points to artifact ${id}, which its tenant does not have`,
      )
    const payload = payloads.get(artifact)
    if (payload instanceof LighterError) throw payload
    if (payload === undefined) throw new Error(`payload ${id} was not fetched`)
    const text = texts.get(artifact) ?? textOf(artifact, payload)
    texts.set(artifact, text)
    return text
  }

  // All bases of this level go on together, so that a chain costs a round per level, not per row.
  const bases: { index: number; input: LevelInput }[] = []
  for (const [index, open] of opened) {
    if (open.metadataRef === null) continue
    try {
      if (open.input.trail?.has(open.metadataRef)) {
        throw new ArtifactError('pointer_cycle', `artifact ${open.metadataRef} leads back to itself`)
      }
      const trail = (open.input.trail ?? new Set()).add(open.metadataRef)
      if (trail.size > (context.maxDepth ?? Number.POSITIVE_INFINITY)) {
        throw new ArtifactError(
          'pointer_chain_too_long',
          `more than ${context.maxDepth} payloads lie on top of each other`,
        )
      }
      const fieldKnown = open.input.fieldKnown === true || open.fieldRef !== null || inline(open)
      bases.push({
        index,
        input: { ...open.input, metadata: payloadOf(open, open.metadataRef), fieldKnown, trail },
      })
    } catch (error) {
      results[index] = failed(error)
    }
  }
  const hydrated = await hydrateLevel(
    context,
    bases.map(base => base.input),
  )
  const baseOf = new Map(bases.map((base, i) => [base.index, hydrated[i]]))

  for (const [index, open] of opened) {
    if (results[index] !== undefined) continue
    try {
      const base = baseOf.get(index)
      if (base !== undefined && base.error !== null) throw base.error
      const own = new Map(open.members)
      if (open.metadataRef !== null) {
        own.delete(metadataRefKey)
        own.delete(metadataKindKey)
      }
      const { field } = open.input
      if (field !== null && open.fieldRef !== null) {
        if (!inline(open)) {
          if (!open.input.fieldKnown) own.set(field, payloadOf(open, open.fieldRef))
          own.delete(fieldRefKey(field))
          own.delete(fieldCountKey(field))
        } else if (artifactOf(open, open.fieldRef) !== undefined) {
          own.delete(fieldRefKey(field))
          own.delete(fieldCountKey(field))
        }
        // else: inline, beside something under our names that is no pointer; the application's own data.
      }
      // What this is made of is needed no more when it is made.
      if (context.output !== undefined) context.output.characters += base?.charged ?? 0
      const charged = charge(context, own, base?.metadata ?? '')
      const metadata = base === undefined ? joinObject(own) : overlay(base.metadata ?? 'null', own)
      results[index] = { metadata, error: null, charged }
    } catch (error) {
      results[index] = failed(error)
    }
  }
}

/** What did not come off a row was never looked at; put into an answer as it is, it could write the answer. */
function textOf(artifact: Artifact, payload: Buffer): string {
  if (artifact.fromRow) return payload.toString('utf8')
  const text = payload.toString('utf8')
  if (!isUtf8(payload)) throw new ArtifactError('hydrate_failed', `artifact ${artifact.id} is not UTF-8`)
  checkJson(text, Number.POSITIVE_INFINITY)
  return text
}

/** Before it is put together: what is refused must not have been made. */
function charge(context: HydrateContext, own: Map<string, string>, base: string): number {
  if (context.output === undefined) return 0
  let characters = base.length
  for (const [key, raw] of own) characters += key.length + raw.length + 6
  if (characters > context.output.characters) {
    throw new ArtifactError(
      'artifact_too_large',
      'the row does not fit into what may still be answered at once',
      {
        hint: 'Ask for fewer rows at once.',
      },
    )
  }
  context.output.characters -= characters
  return characters
}

async function lookupAll(db: Queryable, opened: Opened[]): Promise<Map<TenantId, Map<ArtifactId, Artifact>>> {
  const found = new Map<TenantId, Map<ArtifactId, Artifact>>()
  for (const [tenantId, ofTenant] of Map.groupBy(opened, open => open.input.tenantId)) {
    const ids = new Set(ofTenant.flatMap(open => [open.metadataRef, open.fieldRef]).filter(id => id !== null))
    found.set(tenantId, await lookupArtifacts(db, tenantId, [...ids]))
  }
  return found
}

function failed(error: unknown): HydrateResult {
  if (error instanceof LighterError) return { metadata: null, error }
  return {
    metadata: null,
    error: new ArtifactError('hydrate_failed', error instanceof Error ? error.message : String(error), {
      cause: error,
    }),
  }
}
