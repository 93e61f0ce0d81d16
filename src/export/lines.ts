// One line of JSON for each artifact: its row under the documented names, and its payload as it is.
import type pg from 'pg'
import { fetchPayloads, streamPayload } from '../artifacts/fetch.ts'
import type { Artifact } from '../artifacts/lookup.ts'
import { ArtifactError, LighterError } from '../errors.ts'
import { asArtifactId, asTenantId, type TenantId } from '../ids.ts'
import type { ObjectStore } from '../store/object-store.ts'
import { requireOwnership } from '../store/ownership.ts'
import { isDamage } from '../sweeps/verify-read.ts'
import type { ExportTarget } from './target.ts'

export interface Position {
  created_at: string
  id: string
}

/** What became of one artifact. */
export interface ExportedArtifact {
  position: Position
  payloadBytes: number
  /** Null when it is damaged. */
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

interface Row extends Position {
  tenant_id: string
  kind: string
  entity_type: string | null
  entity_id: string | null
  r2_key: string
  content_type: string | null
  size_bytes: number | null
  sha256: string | null
  created_by: string | null
  byte_offset: number | null
  byte_length: number | null
  frame_offset: number | null
  content_encoding: string | null
  from_row: boolean
}

/**
 * The tenant's live artifacts of one kind, in the order of their creation, each verified.
 * @throws {StoreError} the store is down; {OwnershipError} objects are missing, since this is another bucket
 */
export async function* exportLines(
  context: LinesContext,
  tenantId: TenantId,
  kind: string,
  asOf: string,
  from: Position | null,
): AsyncGenerator<ExportedArtifact> {
  for (let after = from; ; ) {
    const rows = await nextRows(context, tenantId, kind, asOf, after)
    for (const chunk of chunksOf(rows, context.batchBytes)) yield* exportChunk(context, chunk)
    const last = rows.at(-1)
    if (last === undefined) return
    after = { created_at: last.created_at, id: last.id }
  }
}

async function nextRows(
  { pool, batchSize }: LinesContext,
  tenantId: TenantId,
  kind: string,
  asOf: string,
  after: Position | null,
): Promise<Row[]> {
  // Times as text: they have microseconds, a Date has not.
  const { rows } = await pool.query<Row>(
    `select a.id, a.tenant_id, a.kind, a.entity_type, a.entity_id, a.r2_key, a.content_type,
            a.size_bytes::float8 as size_bytes, a.sha256, a.created_by,
            to_char(a.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as created_at,
            a.byte_offset::float8 as byte_offset, a.byte_length::float8 as byte_length,
            a.frame_offset::float8 as frame_offset, a.content_encoding, a.source_id is not null as from_row
       from public.artifact_refs a
      where a.tenant_id = $1 and a.kind = $2 and a.deleted_at is null and a.created_at <= $3
        and (a.created_at, a.id) > ($4::timestamptz, $5::uuid)
      order by a.created_at, a.id
      limit $6`,
    [
      tenantId,
      kind,
      asOf,
      after?.created_at ?? '-infinity',
      after?.id ?? '00000000-0000-0000-0000-000000000000',
      batchSize,
    ],
  )
  return rows
}

const isInline = (row: Row) => row.size_bytes !== null && row.size_bytes <= maxInlineBytes

function* chunksOf(rows: Row[], maxBytes: number): Generator<Row[]> {
  let chunk: Row[] = []
  let bytes = 0
  for (const row of rows) {
    const rowBytes = isInline(row) ? (row.size_bytes ?? 0) : 0
    if (chunk.length > 0 && bytes + rowBytes > maxBytes) {
      yield chunk
      chunk = []
      bytes = 0
    }
    chunk.push(row)
    bytes += rowBytes
  }
  if (chunk.length > 0) yield chunk
}

async function* exportChunk(context: LinesContext, rows: Row[]): AsyncGenerator<ExportedArtifact> {
  const inline = new Map(rows.filter(isInline).map(row => [row, artifactOf(row)]))
  const payloads = await fetchPayloads(context.store, [...inline.values()], {
    concurrency,
    maxPayloadBytes: maxInlineBytes,
  })
  for (const row of rows) {
    const artifact = inline.get(row)
    const payload = artifact === undefined ? null : payloads.get(artifact)
    const position = { created_at: row.created_at, id: row.id }
    try {
      if (payload instanceof LighterError) throw payload
      if (Buffer.isBuffer(payload)) {
        const line = lineOf(row, payload)
        yield { position, payloadBytes: payload.length, line, blob: null, damage: null }
        continue
      }
      const blob = await exportBlob(context, row)
      const line = textLine(row, `"payload_file":${JSON.stringify(blob.name)}`)
      yield { position, payloadBytes: blob.bytes, line, blob, damage: null }
    } catch (error) {
      if (!(error instanceof LighterError) || !isDamage(error)) throw error
      if (error instanceof ArtifactError && error.code === 'artifact_object_missing')
        await requireOwnership(context.pool, context.store)
      yield { position, payloadBytes: 0, line: null, blob: null, damage: `${error.code}: ${error.message}` }
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
 * a program stored may be anything, whatever it said, or have line ends in it.
 */
function isOneLineOfJson(row: Row, payload: Buffer): boolean {
  if (row.from_row) return true
  if (!/^application\/json\b/.test(row.content_type ?? '')) return false
  if (payload.includes(0x0a) || payload.includes(0x0d)) return false
  try {
    JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(payload))
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
    id: asArtifactId(row.id),
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
    fromRow: row.from_row,
  }
}
