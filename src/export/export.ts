// A tenant's artifacts as plain files: JSON lines, a manifest, and nothing that needs pg-lighter to be read.
import { createHash } from 'node:crypto'
import type { TenantId } from '../ids.ts'
import { type ExportedArtifact, exportLines, type LinesContext } from './lines.ts'
import { writeList } from './list.ts'
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
 * What is to be in it is listed first, in one snapshot. Then files are written one after another, each with the
 * artifacts of one kind in the order of the list. One that is finished is in the manifest and is not written again:
 * an interrupted export goes on from there, with the same list.
 * Memory: the payloads of one batch.
 * @returns the manifest; its `finished_at` is null when the export was stopped
 * @throws {LighterError} `export_target`: something else is there; {StoreError}
 */
export async function exportTenant(context: ExportContext, tenantId: TenantId): Promise<Manifest> {
  const { pool, target } = context
  const manifest = await openManifest(target, tenantId)
  if (manifest.finished_at !== null) return manifest
  if (manifest.list === null) {
    manifest.list = await writeList(pool, target, tenantId)
    await saveManifest(target, manifest)
  }
  try {
    await exportListed(context, tenantId, manifest)
  } catch (error) {
    if (error instanceof Stopped) return manifest
    throw error
  }
  manifest.finished_at = new Date().toISOString()
  await saveManifest(target, manifest)
  return manifest
}

async function exportListed(context: ExportContext, tenantId: TenantId, manifest: Manifest): Promise<void> {
  const artifacts = exportLines(context, tenantId, manifest.position)
  let next = await artifacts.next()
  while (next.done !== true) {
    if (context.signal.aborted) throw new Stopped()
    const { kind } = next.value
    if (kind === null) {
      // Nothing to begin a file with.
      manifest.gone++
      manifest.position = next.value.position
      next = await artifacts.next()
      continue
    }
    const taken = { artifacts: 0, payloadBytes: 0, gone: 0 }
    const found: Pick<Manifest, 'blobs' | 'damaged'> = { blobs: [], damaged: [] }
    const hash = createHash('sha256')
    let position = manifest.position
    let bytes = 0
    const take = ({ id, blob, damage, ...artifact }: ExportedArtifact) => {
      position = artifact.position
      if (artifact.kind === null) taken.gone++
      else if (damage !== null) found.damaged.push({ id, kind: artifact.kind, damage })
      else {
        taken.artifacts++
        taken.payloadBytes += artifact.payloadBytes
      }
      if (blob !== null) found.blobs.push(blob)
    }
    async function* body(): AsyncGenerator<Buffer> {
      while (next.done !== true) {
        if (context.signal.aborted) throw new Stopped()
        const { line } = next.value
        if (next.value.kind !== null && next.value.kind !== kind) return
        if (line !== null && bytes > 0 && bytes + line.length > context.maxFileBytes) return
        take(next.value)
        if (line !== null) {
          bytes += line.length
          hash.update(line)
          yield line
        }
        context.onProgress({
          files: manifest.files.length,
          artifacts: manifest.artifacts + taken.artifacts,
          payload_bytes: manifest.payload_bytes + taken.payloadBytes,
        })
        next = await artifacts.next()
      }
    }
    const number = manifest.files.filter(file => file.kind === kind).length + 1
    const name = `${fileName(kind)}-${String(number).padStart(5, '0')}.jsonl`
    await context.target.write(name, body())
    manifest.files.push({ name, kind, artifacts: taken.artifacts, bytes, sha256: hash.digest('hex') })
    manifest.artifacts += taken.artifacts
    manifest.payload_bytes += taken.payloadBytes
    manifest.gone += taken.gone
    manifest.position = position
    manifest.blobs.push(...found.blobs)
    manifest.damaged.push(...found.damaged)
    await saveManifest(context.target, manifest)
  }
}

/** Kinds are snake_case where they are ours; what the application called its own may be no file name. */
const fileName = (kind: string) => encodeURIComponent(kind).replaceAll('.', '%2E')
