// Branded ids, so that one can't be passed for another.
import { v7 } from 'uuid'

export type TenantId = string & { readonly brand: 'TenantId' }
export type ArtifactId = string & { readonly brand: 'ArtifactId' }

/** UUIDv7: time-ordered, so that indexes on it grow at one end. */
export function newArtifactId(): ArtifactId {
  return v7() as ArtifactId
}

/** Takes an id from the database, where its column's type (uuid) has already checked it. */
export const asTenantId = (id: string): TenantId => id as TenantId
export const asArtifactId = (id: string): ArtifactId => id as ArtifactId
