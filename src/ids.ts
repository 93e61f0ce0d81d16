// Branded ids, so that one can't be passed for another. The client in browsers has them too: nothing is imported here.

export type TenantId = string & { readonly brand: 'TenantId' }
export type ArtifactId = string & { readonly brand: 'ArtifactId' }
/** Of a frame of a pack: its artifacts have the same id but for the last two bytes, which are 0 here. */
export type FrameId = string & { readonly brand: 'FrameId' }

/**
 * UUIDv7 (RFC 9562, 5.7): milliseconds since 1970 in 48 bits, then random ones, so that indexes on it grow at
 * one end. Node draws its random bytes for many at a time: ten times faster than one by one.
 */
export function newArtifactId(): ArtifactId {
  const time = Date.now().toString(16).padStart(12, '0')
  return `${time.slice(0, 8)}-${time.slice(8)}-7${crypto.randomUUID().slice(15)}` as ArtifactId
}

/**
 * UUIDv8 (RFC 9562, 5.8): milliseconds since 1970 in 48 bits, 58 random ones, and two bytes of 0. Random, and not
 * counted: after a failover that lost transactions a counter would give its numbers out again, and an old pointer
 * would read what is another's.
 */
export function newFrameId(): FrameId {
  const time = Date.now().toString(16).padStart(12, '0')
  const random = crypto.randomUUID()
  return `${time.slice(0, 8)}-${time.slice(8)}-8${random.slice(15, 32)}0000` as FrameId
}

/** The artifact of an ordinal (from 0). */
export function artifactInFrame(frame: FrameId, ordinal: number): ArtifactId {
  return `${frame.slice(0, 32)}${ordinal.toString(16).padStart(4, '0')}` as ArtifactId
}

/** What `lighter.frame_of` gives: of an artifact of a pack the frame, of any other its own id. */
export function frameOf(artifact: ArtifactId): string {
  return artifact[14] === '8' ? `${artifact.slice(0, 32)}0000` : artifact
}

/** Takes an id from the database, where its column's type (uuid) has already checked it. */
export const asTenantId = (id: string): TenantId => id as TenantId
export const asArtifactId = (id: string): ArtifactId => id as ArtifactId
