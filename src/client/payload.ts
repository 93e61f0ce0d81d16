// A payload that is in memory: its bytes, and what can be made of them.
import { LighterError } from '../errors.ts'
import type { Payload, StoredArtifact } from './client.ts'

export function payloadOf(bytes: Uint8Array): Payload {
  const text = () => {
    try {
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    } catch (error) {
      throw new LighterError('payload_not_text', 'the payload is not UTF-8', { cause: error })
    }
  }
  return {
    bytes,
    text,
    json: (parse = JSON.parse) => parse(text()),
  }
}

/** An artifact under the names of the API and of artifact_refs. */
interface ArtifactColumns {
  id: string
  tenant_id: string
  kind: string
  entity_type: string | null
  entity_id: string | null
  r2_key: string
  content_type: string | null
  size_bytes: number | null
  sha256: string | null
  created_at: string | Date
}

export function artifactOf(columns: ArtifactColumns): StoredArtifact {
  return {
    id: columns.id,
    tenantId: columns.tenant_id,
    kind: columns.kind,
    entityType: columns.entity_type,
    entityId: columns.entity_id,
    key: columns.r2_key,
    contentType: columns.content_type,
    sizeBytes: columns.size_bytes,
    sha256: columns.sha256,
    createdAt: new Date(columns.created_at),
  }
}
