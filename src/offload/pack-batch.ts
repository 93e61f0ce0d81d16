// Step 3 for a batch: first the fields, then the documents. The artifact of a payload in a frame is known once the
// frame is full, and a document has the pointer to its field, as has what the row is to hold: until then, the batch's tokens
// stand there.

import type { OffloadConfig, PackConfig } from '../config.ts'
import { RowError } from '../errors.ts'
import type { ArtifactId } from '../ids.ts'
import { columnTypeOf } from '../source/column-types.ts'
import { keyForms } from '../source/key-types.ts'
import { type BuiltObject, buildObjects, type PackItem, packContentType } from './pack.ts'
import type { FieldPayload, PlannedRow, Tokens } from './plan.ts'

export interface PackedBatch {
  built: BuiltObject[]
  /** Rows whose texts do not have the tokens as often as they must. */
  refused: { row: PlannedRow; error: RowError }[]
}

/** Builds the objects of all rows, and gives their payloads the ids of their artifacts. The text is let go. */
export async function packBatch(
  rows: PlannedRow[],
  config: OffloadConfig,
  prefix: string,
  tokens: Tokens,
): Promise<PackedBatch> {
  const fields = await packPhase(rows, 1, config, prefix)
  const fieldIds = idsIn(fields)
  const refused: PackedBatch['refused'] = []
  const refuse = (row: PlannedRow, what: string) =>
    refused.push({
      row,
      error: new RowError('pointer_not_found', `${what} does not have the pointer exactly once`),
    })
  const whole = rows.filter(row => {
    const field = row.payloads.find(p => p.phase === 1)
    const document = row.payloads.find(p => p.phase === 2)
    if (field === undefined) return true
    const id = idIn(fieldIds, field)
    field.artifactId = id
    if (document === undefined || replaceToken(document, tokens.field, id)) return true
    refuse(row, 'the document')
    return false
  })
  const documents = await packPhase(whole, 2, config, prefix)
  const documentIds = idsIn(documents)
  for (const row of whole) {
    for (const payload of row.payloads)
      if (payload.phase === 2) payload.artifactId = idIn(documentIds, payload)
    const target = targetOf(row, tokens)
    if (target === null) refuse(row, 'what the row is to hold')
    else row.target = target
  }
  for (const row of rows) for (const payload of row.payloads) payload.bytes = null
  const objects = [...fields, ...documents]
  // Who lets rows wait wants few PUTs.
  const built = rows.some(row => row.job.waited !== null) ? foldSmall(objects, config) : objects
  return { built: built.map(nameByArtifact), refused }
}

/**
 * A pack that is not worth a PUT goes to the end of another one of its tenant, whatever that one's kind: rows that have
 * something of both phases would else make two. Its frames are of their kind still.
 */
function foldSmall(objects: BuiltObject[], { packMinBytes, maxPackBytes }: OffloadConfig): BuiltObject[] {
  const isPack = (object: BuiltObject) => object.contentType === packContentType
  return [...Map.groupBy(objects, object => object.tenantId).values()].flatMap(ofTenant => {
    const kept: BuiltObject[] = []
    for (const object of ofTenant.toSorted((a, b) => b.payloadBytes - a.payloadBytes)) {
      const isSmall = isPack(object) && object.payloadBytes < packMinBytes
      const host = isSmall
        ? kept.find(each => isPack(each) && each.payloadBytes + object.payloadBytes <= maxPackBytes)
        : undefined
      if (host === undefined) kept.push(object)
      else append(host, object)
    }
    return kept
  })
}

function append(host: BuiltObject, object: BuiltObject): void {
  const locations = [...object.locations.values()]
  for (const frame of new Set(locations.map(location => location.frame))) {
    if (frame === null) continue
    frame.key = host.key
    frame.byteOffset += host.body.length
  }
  for (const location of locations) location.key = host.key
  for (const [name, location] of object.locations) host.locations.set(name, location)
  host.body = Buffer.concat([host.body, object.body])
  const others = new Set([...(host.otherKinds ?? []), object.kind, ...(object.otherKinds ?? [])])
  others.delete(host.kind)
  host.otherKinds = [...others]
  host.artifactCount += object.artifactCount
  host.payloadBytes += object.payloadBytes
}

function packPhase(
  rows: PlannedRow[],
  phase: 1 | 2,
  config: PackConfig,
  prefix: string,
): Promise<BuiltObject[]> {
  const items = rows.flatMap(row =>
    row.payloads.flatMap(p => (p.phase === phase && p.bytes !== null ? [itemOf(row, p, p.bytes)] : [])),
  )
  return buildObjects(items, config, prefix, new Date())
}

function itemOf(row: PlannedRow, payload: FieldPayload, bytes: Buffer): PackItem {
  if (row.tenantId === null) throw new Error('a row without a tenant can not be packed')
  return {
    tenantId: row.tenantId,
    kind: payload.kind,
    artifactId: payload.artifactId,
    bytes,
    origin: {
      sourceId: row.source.id,
      rowId: row.job.rowId,
      uuidKey: row.source.key.length === 1 && row.source.key.every(({ form }) => keyForms[form].isUuid),
      field: payload.field,
      contentType: columnTypeOf(row.source).contentType,
      extension: columnTypeOf(row.source).extension,
      entityType: row.source.entityType,
      entityId: row.entityId,
      refersTo: payload.refersTo,
    },
  }
}

const idsIn = (objects: BuiltObject[]) =>
  new Map(objects.flatMap(o => [...o.locations].map(([name, location]) => [name, location.artifactId])))

function idIn(ids: Map<ArtifactId, ArtifactId>, { artifactId }: FieldPayload): ArtifactId {
  const id = ids.get(artifactId)
  if (id === undefined) throw new Error(`payload ${artifactId} was not packed`)
  return id
}

/** In the text, and in what is known of it. @returns false when the text has the token not exactly once */
function replaceToken(document: FieldPayload, token: string, id: ArtifactId): boolean {
  const at = document.bytes?.indexOf(token) ?? -1
  if (at === -1 || document.bytes?.indexOf(token, at + 1) !== -1) return false
  document.bytes.write(id, at, 'latin1')
  document.refersTo = document.refersTo.map(each => (each === token ? id : each))
  return true
}

/** With the ids in it. Null when a token is not there, or twice: only an array has several pointers to one document. */
function targetOf({ target, payloads }: PlannedRow, tokens: Tokens): string | null {
  if (target === null) return null
  let text = target
  for (const { phase, artifactId } of payloads) {
    const parts = text.split(phase === 1 ? tokens.field : tokens.document)
    if (parts.length < 2 || (parts.length > 2 && (phase === 1 || !text.startsWith('[')))) return null
    text = parts.join(artifactId)
  }
  return text
}

/** From here on the artifacts have their names. */
function nameByArtifact(object: BuiltObject): BuiltObject {
  return {
    ...object,
    locations: new Map([...object.locations.values()].map(location => [location.artifactId, location])),
  }
}
