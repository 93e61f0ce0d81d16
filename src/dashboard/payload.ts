// The beginning of a payload, for a person to look at: checked as a whole, shown up to a limit, as text or not at all.

import type { ApiContext } from '../api/context.ts'
import { ApiError, notFound } from '../api/errors.ts'
import { fetchPayloads } from '../artifacts/fetch.ts'
import { hydrate } from '../artifacts/hydrate.ts'
import { requestLimits } from '../artifacts/hydrate-limits.ts'
import { streamRange, type VerifiedObjects } from '../artifacts/range.ts'
import { readRows } from '../artifacts/rows.ts'
import { hydrateValue, readValues } from '../artifacts/values.ts'
import type { Artifact } from '../catalogue/lookup.ts'
import { findArtifact } from '../catalogue/record.ts'
import { tenantDatabase } from '../db/tenant.ts'
import { LighterError } from '../errors.ts'
import { asArtifactId, asTenantId, type TenantId } from '../ids.ts'
import type { Source } from '../source/sources.ts'
import type { ObjectStore } from '../store/object-store.ts'

/** More of it is for a download. */
export const shownBytes = 256 * 1024

export interface ShownPayload {
  /** Null: it is no text. */
  text: string | null
  /** Of the whole; null: not known before it is read. */
  bytes: number | null
  truncated: boolean
}

/** @throws {ApiError} 404, 410; {ArtifactError} it can't be read as it was stored */
export async function requireArtifact(
  context: ApiContext,
  tenantId: TenantId,
  id: string,
): Promise<Artifact> {
  const found = await findArtifact(tenantDatabase(context.pool, tenantId), tenantId, asArtifactId(id))
  if (found === null) throw notFound()
  return found.artifact
}

/** @param isLarge too long to be held whole */
export async function showArtifact(
  store: ObjectStore,
  verified: VerifiedObjects,
  artifact: Artifact,
  isLarge: boolean,
): Promise<ShownPayload> {
  if (isLarge) {
    const head = await streamRange(store, artifact, { start: 0, end: shownBytes + 1 }, verified)
    const chunks: Buffer[] = []
    for await (const chunk of head) chunks.push(chunk)
    return show(Buffer.concat(chunks), artifact.sizeBytes)
  }
  const payload = (await fetchPayloads(store, [artifact])).get(artifact)
  if (payload === undefined) throw new Error('the payload was not fetched')
  if (payload instanceof LighterError) throw payload
  return show(payload, payload.length)
}

/** The row's metadata as the application wrote it. @throws {ApiError} 404 */
export async function showRow(context: ApiContext, source: Source, rowId: string): Promise<ShownPayload> {
  const { hydrateLimitBytes, fetchConcurrency } = context.config
  const contextOf = ({ tenantId }: { tenantId: TenantId }) => ({
    db: tenantDatabase(context.pool, asTenantId(tenantId)),
    store: context.store,
    concurrency: fetchConcurrency,
    limits: requestLimits(hydrateLimitBytes),
    pause: () => context.pause(tenantId),
  })
  if (source.mode !== 'document') {
    const stored = (await readValues(context.pool, source, [rowId])).values().next().value
    if (stored === undefined) throw noSuchRow(source)
    const value = await hydrateValue(contextOf(stored), source, stored)
    return show(value ?? Buffer.from('null'), value?.length ?? null)
  }
  const row = (await readRows(context.pool, source, [rowId])).values().next().value
  if (row === undefined) throw noSuchRow(source)
  const bytes = Buffer.from((await hydrate(contextOf(row), row)) ?? 'null')
  return show(bytes, bytes.length)
}

const noSuchRow = (source: Source) =>
  new ApiError(404, 'row_not_found', `${source.tableSql} has no such row with a tenant`, {
    field: 'row_id',
  })

function show(payload: Buffer, bytes: number | null): ShownPayload {
  const shown = payload.subarray(0, shownBytes)
  const truncated = payload.length > shownBytes
  try {
    // A character that the cut has split is left out; any other that is none makes the whole no text.
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(shown, {
      stream: truncated,
    })
    return { text: text.includes('\0') ? null : text, bytes, truncated }
  } catch {
    return { text: null, bytes, truncated }
  }
}
