// Payloads that may have moved since they were looked up.

import { type Artifact, lookupArtifacts } from '../catalogue/lookup.ts'
import type { Queryable } from '../db/pool.ts'
import { ArtifactError, type LighterError } from '../errors.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { defaultFetchOptions, type FetchOptions, fetchPayloads } from './fetch.ts'

/**
 * As `fetchPayloads`. What is no longer where it was is looked up once more: its pack may have been written anew
 * since, by a compaction or for the erasure of what lay beside it, and a reader with much to read may come so late
 * that the old one is gone.
 */
export async function fetchCurrent(
  db: Queryable,
  store: ObjectStore,
  artifacts: Artifact[],
  options: FetchOptions = defaultFetchOptions,
): Promise<Map<Artifact, Buffer | LighterError>> {
  const payloads = await fetchPayloads(store, artifacts, options)
  const missing = artifacts.filter(artifact => isMissing(payloads.get(artifact)))
  for (const [tenantId, ofTenant] of Map.groupBy(missing, artifact => artifact.tenantId)) {
    const now = await lookupArtifacts(
      db,
      tenantId,
      ofTenant.map(artifact => artifact.id),
    )
    const moved = ofTenant.flatMap(was => {
      const is = now.get(was.id)
      return is === undefined || (is.key === was.key && is.byteOffset === was.byteOffset) ? [] : [{ was, is }]
    })
    const again = await fetchPayloads(
      store,
      moved.map(({ is }) => is),
      options,
    )
    for (const { was, is } of moved) {
      const payload = again.get(is)
      if (payload !== undefined) payloads.set(was, payload)
    }
  }
  return payloads
}

const isMissing = (payload: Buffer | LighterError | undefined) =>
  payload instanceof ArtifactError && payload.code === 'artifact_object_missing'
