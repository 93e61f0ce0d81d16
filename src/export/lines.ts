// One line of JSON for each artifact: its row under the documented names, and its payload as it is.
import { isUtf8 } from 'node:buffer'
import type pg from 'pg'
import { streamPayload } from '../artifacts/fetch.ts'
import { fetchCurrent } from '../artifacts/fetch-current.ts'
import { checkJson } from '../artifacts/json-check.ts'
import { type Artifact, lookupArtifacts } from '../catalogue/lookup.ts'
import { LighterError } from '../errors.ts'
import { type ArtifactId, asTenantId, frameOf, type TenantId } from '../ids.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { requireOwnership } from '../store/ownership.ts'
import { isDamage } from '../sweeps/verify-read.ts'
import { readList } from './list.ts'
import type { ExportTarget } from './target.ts'

/** What became of one artifact of the list. */
export interface ExportedArtifact {
  id: ArtifactId
  /** How many of the list are dealt with, this one among them. */
  position: number
  /** Null: it is gone since it was listed, and nothing of it is exported. */
  kind: string | null
  payloadBytes: number
  /** Null when it is damaged, or gone. */
  line: Buffer | null
  blob: { name: string; bytes: number; sha256: string } | null
  damage: string | null
}

export interface LinesContext {
  pool: pg.Pool
  store: ObjectStore
  target: ExportTarget
  /** Payloads together in memory. */
  batchBytes: number
  batchSize: number
}

/** A longer payload, and one of which the row does not say how long it is, is a file of its own. */
const maxInlineBytes = 64 * 1024 * 1024
const concurrency = 8

interface Row {
  id: ArtifactId
  tenant_id: string
  kind: string
  entity_type: string | null
  entity_id: string | null
  r2_key: string
  content_type: string | null
  size_bytes: number | null
  sha256: string | null
  created_by: string | null
  created_at: string
  byte_offset: number | null
  byte_length: number | null
  frame_offset: number | null
  content_encoding: string | null
  source_id: number | null
  from_row: boolean
}

/**
 * The artifacts of the list from the `from`-th on, each verified.
 * @throws {StoreError} the store is down; {OwnershipError} objects are missing, since this is another bucket
 */
export async function* exportLines(
  context: LinesContext,
  tenantId: TenantId,
  from: number,
): AsyncGenerator<ExportedArtifact> {
  for (let position = from; ; ) {
    const ids = await readList(context.target, position, context.batchSize)
    if (ids.length === 0) return
    const rows = await readRows(context, tenantId, ids)
    for (const chunk of chunksOf(ids, rows, context.batchBytes)) {
      for await (const exported of exportChunk(context, tenantId, chunk, rows))
        yield { ...exported, position: ++position }
    }
  }
}

/** Those of them that are still there; where their payloads are by now, too. */
async function readRows(
  { pool }: LinesContext,
  tenantId: TenantId,
  ids: ArtifactId[],
): Promise<Map<ArtifactId, Row>> {
  // Times as text: they have microseconds, a Date has not.
  const { rows } = await pool.query<Row>(
    `select a.id, a.tenant_id, a.kind, a.entity_type, a.entity_id, a.r2_key, a.content_type,
            a.size_bytes::float8 as size_bytes, a.sha256, a.created_by,
            to_char(a.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as created_at,
            a.byte_offset::float8 as byte_offset, a.byte_length::float8 as byte_length,
            a.frame_offset::float8 as frame_offset, a.content_encoding, a.source_id, a.source_id is not null as from_row
       from public.artifact_refs a
      where a.tenant_id = $1 and a.frame_id = any ($3::uuid[]) and a.id = any ($2::uuid[]) and a.deleted_at is null`,
    [tenantId, ids, [...new Set(ids.map(frameOf))]],
  )
  return new Map(rows.map(row => [row.id, row]))
}

const isInline = (row: Row) => row.size_bytes !== null && row.size_bytes <= maxInlineBytes

function* chunksOf(ids: ArtifactId[], rows: Map<ArtifactId, Row>, maxBytes: number): Generator<ArtifactId[]> {
  let chunk: ArtifactId[] = []
  let bytes = 0
  for (const id of ids) {
    const row = rows.get(id)
    const rowBytes = row !== undefined && isInline(row) ? (row.size_bytes ?? 0) : 0
    if (chunk.length > 0 && bytes + rowBytes > maxBytes) {
      yield chunk
      chunk = []
      bytes = 0
    }
    chunk.push(id)
    bytes += rowBytes
  }
  if (chunk.length > 0) yield chunk
}

async function* exportChunk(
  context: LinesContext,
  tenantId: TenantId,
  ids: ArtifactId[],
  rows: Map<ArtifactId, Row>,
): AsyncGenerator<Omit<ExportedArtifact, 'position'>> {
  const { pool, store } = context
  const inline = new Map(
    ids.flatMap(id => {
      const row = rows.get(id)
      return row !== undefined && isInline(row) ? [[id, artifactOf(row)] as const] : []
    }),
  )
  const payloads = await fetchCurrent(pool, store, [...inline.values()], {
    concurrency,
    maxPayloadBytes: maxInlineBytes,
  })
  for (const id of ids) {
    const row = rows.get(id)
    const nothing = { id, payloadBytes: 0, line: null, blob: null, damage: null }
    if (row === undefined) {
      yield { ...nothing, kind: null }
      continue
    }
    const artifact = inline.get(id)
    const payload = artifact === undefined ? null : payloads.get(artifact)
    try {
      if (payload instanceof LighterError) throw payload
      if (Buffer.isBuffer(payload)) {
        const line = lineOf(row, payload)
        yield { id, kind: row.kind, payloadBytes: payload.length, line, blob: null, damage: null }
        continue
      }
      const blob = await exportBlob(context, row)
      const line = textLine(row, `"payload_file":${JSON.stringify(blob.name)}`)
      yield { id, kind: row.kind, payloadBytes: blob.bytes, line, blob, damage: null }
    } catch (error) {
      if (!(error instanceof LighterError && (isDamage(error) || error.code === 'artifact_gone'))) throw error
      const now = (await lookupArtifacts(pool, tenantId, [id])).get(id)
      if (now === undefined || now.deletedAt !== null) {
        yield { ...nothing, kind: null }
        continue
      }
      if (error.code === 'artifact_object_missing') await requireOwnership(pool, store)
      yield { ...nothing, kind: row.kind, damage: `${error.code}: ${error.message}` }
    }
  }
}

async function exportBlob(context: LinesContext, row: Row) {
  const name = `blobs/${row.id}`
  let bytes = 0
  const body = await streamPayload(context.store, artifactOf(row))
  async function* counted() {
    for await (const chunk of body as AsyncIterable<Buffer>) {
      bytes += chunk.length
      yield chunk
    }
  }
  await context.target.write(name, counted())
  return { name, bytes, sha256: row.sha256 ?? '' }
}

function lineOf(row: Row, payload: Buffer): Buffer {
  if (!isOneLineOfJson(row, payload)) return textLine(row, `"payload_base64":"${payload.toString('base64')}"`)
  return Buffer.concat([Buffer.from(`{"artifact":${recordOf(row)},"payload":`), payload, Buffer.from('}\n')])
}

const textLine = (row: Row, member: string) => Buffer.from(`{"artifact":${recordOf(row)},${member}}\n`)

/**
 * Whether the payload can stand in a line as it is, byte by byte. What Postgres has written is JSON on one line; what
 * a program stored may be anything, whatever its row says, or have line ends in it.
 */
function isOneLineOfJson(row: Row, payload: Buffer): boolean {
  if (!/^application\/json\b/.test(row.content_type ?? '')) return false
  if (payload.includes(0x0a) || payload.includes(0x0d) || !isUtf8(payload)) return false
  try {
    checkJson(payload.toString('utf8'), Number.POSITIVE_INFINITY)
    return true
  } catch {
    return false
  }
}

function recordOf(row: Row): string {
  const { id, tenant_id, kind, entity_type, entity_id, r2_key, content_type, size_bytes, sha256 } = row
  return JSON.stringify({
    id,
    tenant_id,
    kind,
    entity_type,
    entity_id,
    r2_key,
    content_type,
    size_bytes,
    sha256,
    created_by: row.created_by,
    created_at: row.created_at,
  })
}

function artifactOf(row: Row): Artifact {
  return {
    id: row.id,
    tenantId: asTenantId(row.tenant_id),
    kind: row.kind,
    key: row.r2_key,
    contentType: row.content_type,
    sizeBytes: row.size_bytes,
    sha256: row.sha256,
    byteOffset: row.byte_offset,
    byteLength: row.byte_length,
    frameOffset: row.frame_offset,
    contentEncoding: row.content_encoding,
    deletedAt: null,
    sourceId: row.source_id,
    fromRow: row.from_row,
  }
}
