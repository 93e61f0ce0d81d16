// Artifacts as whoever has the service role may write them: an object in the bucket, and a row that says anything of it.
import { createHash, randomUUID } from 'node:crypto'
import { newFrameId } from '../../src/ids.ts'
import type { TestEnvironment } from './environment.ts'

export interface ArtifactRow {
  key?: string
  contentType?: string
  contentEncoding?: string | null
  sizeBytes?: number | null
  sha256?: string | null
  /** As one that came off a row. */
  sourceId?: number | null
}

export const sha256Of = (bytes: Buffer | string) => createHash('sha256').update(bytes).digest('hex')

/** Writes both, or only the row where there are no bytes. By default the row says the truth. */
export async function storeByHand(
  environment: TestEnvironment,
  tenantId: string,
  bytes: Buffer | null,
  row: ArtifactRow = {},
  id: string = randomUUID(),
): Promise<{ id: string; key: string }> {
  const key = row.key ?? keyOf(environment, tenantId, id)
  const contentType = row.contentType ?? 'application/json'
  if (bytes !== null) await environment.store.put(key, bytes, { contentType })
  const { sizeBytes = bytes?.length ?? null, sha256 = bytes === null ? null : sha256Of(bytes) } = row
  await environment.admin.query(
    `insert into artifact_refs (id, tenant_id, kind, r2_key, content_type, size_bytes, sha256, content_encoding,
                                source_id)
     values ($1, $2, 'attachment', $3, $4, $5, $6, $7, $8)`,
    [id, tenantId, key, contentType, sizeBytes, sha256, row.contentEncoding ?? null, row.sourceId ?? null],
  )
  return { id, key }
}

/** A frame of one artifact, of which the row says anything; without bytes nothing is stored. */
export async function storeFrameByHand(
  environment: TestEnvironment,
  tenantId: string,
  bytes: Buffer | null,
  row: {
    key?: string
    byteLength?: number
    contentEncoding?: string | null
    sizeBytes?: number
    sha256?: string
  } = {},
): Promise<{ id: string; key: string }> {
  const id = newFrameId()
  const key = row.key ?? keyOf(environment, tenantId, id)
  if (bytes !== null) await environment.store.put(key, bytes, { contentType: 'application/x-ndjson' })
  await environment.admin.query(
    `insert into lighter.frames (tenant_id, id, kind, r2_key, byte_offset, byte_length, content_encoding, source_id, sizes, places,
                                 hashes, row_texts, entities)
     values ($1, $2, 'attachment', $3, 0, $4, $5, 1, array[$6::int], array[0], decode($7, 'hex'), array['1'], '{}')`,
    [
      tenantId,
      id,
      key,
      row.byteLength ?? bytes?.length ?? 1,
      row.contentEncoding ?? null,
      row.sizeBytes ?? bytes?.length ?? 1,
      row.sha256 ?? sha256Of(bytes ?? ''),
    ],
  )
  return { id, key }
}

function keyOf(environment: TestEnvironment, tenantId: string, id: string): string {
  return `${environment.env.R2_PREFIX}tenants/${tenantId}/attachment/2026/01/01/${id}.json`
}

/** The longest time that a request which needs nothing of the store had to wait while `work` was done. */
export async function longestWaitDuring<T>(
  url: string,
  work: Promise<T>,
): Promise<{ result: T; waitMs: number }> {
  let over = false
  let waitMs = 0
  const watch = async () => {
    while (!over) {
      const began = performance.now()
      await (await fetch(`${url}/healthz`)).text()
      waitMs = Math.max(waitMs, performance.now() - began)
    }
  }
  const watching = watch()
  const result = await work.finally(() => {
    over = true
  })
  await watching
  return { result, waitMs }
}
