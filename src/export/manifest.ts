// What an export holds, and how far it is: the last thing that is written after each file, and the first that is
// read by the run that goes on.
import { z } from 'zod'
import { LighterError } from '../errors.ts'
import type { TenantId } from '../ids.ts'
import type { ExportTarget } from './target.ts'

const manifestSchema = z.object({
  format: z.literal('pg-lighter-export'),
  version: z.literal(2),
  tenant: z.string(),
  /** What it is to hold (list.ts); null as long as the list is not complete. */
  list: z.object({ as_of: z.string(), artifacts: z.number(), sha256: z.string() }).nullable(),
  /** How many of the list are dealt with: they are in the files, damaged, or gone. */
  position: z.number(),
  finished_at: z.string().nullable(),
  artifacts: z.number(),
  payload_bytes: z.number(),
  /** Artifacts of the list that were deleted, or expired, before they were read. */
  gone: z.number(),
  files: z.array(
    z.object({
      name: z.string(),
      kind: z.string(),
      artifacts: z.number(),
      bytes: z.number(),
      sha256: z.string(),
    }),
  ),
  /** Payloads in files of their own; their hash is the artifact's. */
  blobs: z.array(z.object({ name: z.string(), bytes: z.number(), sha256: z.string() })),
  /** Artifacts that are not in it, since they could not be read back as they were stored. */
  damaged: z.array(z.object({ id: z.string(), kind: z.string(), damage: z.string() })),
})

const earlierSchema = z.object({ format: z.literal('pg-lighter-export'), version: z.literal(1) })

export type Manifest = z.infer<typeof manifestSchema>

/** Two million files: some 150 bytes each. */
const longestManifestBytes = 256 * 1024 * 1024

const manifestName = 'manifest.json'

/**
 * The manifest of an export of the same tenant that was interrupted or is finished, or a new one.
 * @throws {LighterError} `export_target`: there is something else
 */
export async function openManifest(target: ExportTarget, tenantId: TenantId): Promise<Manifest> {
  const text = await target.read(manifestName, longestManifestBytes)
  if (text === null) {
    if (!(await target.isEmpty())) throw foreign(target, 'is not empty and has no manifest.json of an export')
    const manifest: Manifest = {
      format: 'pg-lighter-export',
      version: 2,
      tenant: tenantId,
      list: null,
      position: 0,
      finished_at: null,
      artifacts: 0,
      payload_bytes: 0,
      gone: 0,
      files: [],
      blobs: [],
      damaged: [],
    }
    // Before the first file: what is there then is known to be ours.
    await saveManifest(target, manifest)
    return manifest
  }
  const json = parseJson(text.toString('utf8'))
  if (earlierSchema.safeParse(json).success)
    throw foreign(target, 'holds an export by an earlier version, which had no list of what is to be in it')
  const parsed = manifestSchema.safeParse(json)
  if (!parsed.success) throw foreign(target, 'has a manifest.json that is not one of an export')
  if (parsed.data.tenant !== tenantId)
    throw foreign(target, `holds an export of tenant ${parsed.data.tenant}`)
  return parsed.data
}

export async function saveManifest(target: ExportTarget, manifest: Manifest): Promise<void> {
  await target.write(manifestName, once(Buffer.from(`${JSON.stringify(manifest, null, 2)}\n`)))
}

async function* once(bytes: Buffer): AsyncGenerator<Buffer> {
  yield bytes
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

function foreign(target: ExportTarget, what: string): LighterError {
  return new LighterError('export_target', `${target.name} ${what}`, {
    hint: 'Export into a new directory or prefix, or into that of the same export to go on with it.',
  })
}
