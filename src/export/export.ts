// A tenant's artifacts as plain files: JSON lines, a manifest, and nothing that needs pg-lighter to be read.
import { createHash } from 'node:crypto'
import type { TenantId } from '../ids.ts'
import { type ExportedArtifact, exportLines, type LinesContext } from './lines.ts'
import { type Manifest, openManifest, saveManifest } from './manifest.ts'

export interface ExportContext extends LinesContext {
  /** Of one file of lines; a line that is longer has a file of its own. */
  maxFileBytes: number
  signal: AbortSignal
  onProgress: (progress: { files: number; artifacts: number; payload_bytes: number }) => void
}

/** Thrown by the body of a file that is not to be finished. */
class Stopped extends Error {}

/**
 * Files are written one after another, each with the artifacts of one kind in the order of their creation. One that
 * is finished is in the manifest and is not written again: an interrupted export goes on from there.
 * Memory: the payloads of one batch.
 * @returns the manifest; its `finished_at` is null when the export was stopped
 * @throws {LighterError} `export_target`: something else is there; {StoreError}
 */
export async function exportTenant(context: ExportContext, tenantId: TenantId): Promise<Manifest> {
  const { pool, target } = context
  const { rows: times } = await pool.query<{ now: string }>(
    `select to_char(now() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as now`,
  )
  const manifest = await openManifest(target, tenantId, times[0]?.now ?? '')
  if (manifest.finished_at !== null) return manifest
  const { rows: kinds } = await pool.query<{ kind: string }>(
    'select distinct kind from public.artifact_refs where tenant_id = $1 order by kind',
    [tenantId],
  )
  try {
    for (const { kind } of kinds) await exportKind(context, tenantId, kind, manifest)
  } catch (error) {
    if (error instanceof Stopped) return manifest
    throw error
  }
  manifest.finished_at = new Date().toISOString()
  await saveManifest(target, manifest)
  return manifest
}

async function exportKind(
  context: ExportContext,
  tenantId: TenantId,
  kind: string,
  manifest: Manifest,
): Promise<void> {
  const { target, maxFileBytes, signal } = context
  const before = manifest.files.filter(file => file.kind === kind)
  let number = before.length
  const artifacts = exportLines(context, tenantId, kind, manifest.as_of, before.at(-1)?.last ?? null)
  let next = await artifacts.next()
  while (next.done !== true) {
    const name = `${fileName(kind)}-${String(++number).padStart(5, '0')}.jsonl`
    const hash = createHash('sha256')
    const taken: ExportedArtifact[] = []
    let bytes = 0
    async function* body(): AsyncGenerator<Buffer> {
      while (next.done !== true) {
        if (signal.aborted) throw new Stopped()
        const { line, ...artifact } = next.value
        if (line !== null && bytes > 0 && bytes + line.length > maxFileBytes) return
        taken.push({ ...artifact, line: null })
        if (line !== null) {
          bytes += line.length
          hash.update(line)
          yield line
        }
        context.onProgress({
          files: manifest.files.length,
          artifacts: manifest.artifacts + taken.length,
          payload_bytes: manifest.payload_bytes + bytes,
        })
        next = await artifacts.next()
      }
    }
    await target.write(name, body())
    const last = taken.at(-1)
    if (last === undefined) throw new Error('a file without artifacts')
    const whole = taken.filter(artifact => artifact.damage === null)
    manifest.files.push({
      name,
      kind,
      artifacts: whole.length,
      bytes,
      sha256: hash.digest('hex'),
      last: last.position,
    })
    manifest.artifacts += whole.length
    manifest.payload_bytes += whole.reduce((sum, artifact) => sum + artifact.payloadBytes, 0)
    for (const { position, blob, damage } of taken) {
      if (blob !== null) manifest.blobs.push(blob)
      if (damage !== null) manifest.damaged.push({ id: position.id, kind, damage })
    }
    await saveManifest(target, manifest)
  }
}

/** Kinds are snake_case where they are ours; what the application called its own may be no file name. */
const fileName = (kind: string) => encodeURIComponent(kind).replaceAll('.', '%2E')
