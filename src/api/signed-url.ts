// URLs of this API that work without credentials until they expire, for payloads that the store can't hand out by
// itself: those in packs, and compressed ones.
import { hkdfSync } from 'node:crypto'
import { jwtVerify, SignJWT } from 'jose'
import type { ArtifactId, TenantId } from '../ids.ts'
import { asArtifactId, asTenantId } from '../ids.ts'

export interface UrlSigner {
  sign(tenantId: TenantId, artifactId: ArtifactId, expiresInSeconds: number): Promise<string>
  /** Null when the token is not one of ours, or has expired. */
  verify(token: string): Promise<{ tenantId: TenantId; artifactId: ArtifactId } | null>
}

const audience = 'pg-lighter/artifact-url'

/**
 * The key is derived from the store's secret key: all daemons have it, and whoever rotates it ends the store's own
 * presigned URLs and these alike.
 */
export function createUrlSigner(storeSecret: string): UrlSigner {
  const key = Buffer.from(hkdfSync('sha256', storeSecret, '', audience, 32))
  return {
    sign: (tenantId, artifactId, expiresInSeconds) =>
      new SignJWT({ tid: tenantId })
        .setProtectedHeader({ alg: 'HS256' })
        .setSubject(artifactId)
        .setAudience(audience)
        .setExpirationTime(new Date(Date.now() + expiresInSeconds * 1000))
        .sign(key),
    verify: async token => {
      const verified = await jwtVerify(token, key, {
        algorithms: ['HS256'],
        audience,
        requiredClaims: ['exp', 'sub'],
      }).catch(() => null)
      const { sub, tid } = verified?.payload ?? {}
      if (typeof sub !== 'string' || typeof tid !== 'string') return null
      return { tenantId: asTenantId(tid), artifactId: asArtifactId(sub) }
    },
  }
}
