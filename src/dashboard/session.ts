// Who has shown the service key to the dashboard, for a while. A session is a signed cookie, so all daemons behind one
// address know it; nothing is kept here.
import { createHmac, hkdfSync, randomUUID, timingSafeEqual } from 'node:crypto'
import { jwtVerify, SignJWT } from 'jose'
import { matchServiceKey } from '../api/auth.ts'

/** Then the key is asked for again. */
export const sessionMs = 4 * 3_600_000

export interface Session {
  id: string
  /** Which a page of ours knows, and one of somebody else's does not. */
  csrfToken: string
  expiresAt: Date
}

export interface Sessions {
  /** Null: the key is none of those that are configured. */
  begin(serviceKey: string): Promise<{ token: string; session: Session } | null>
  /** Without a key; only where nobody needs one. */
  beginOpen(): Promise<{ token: string; session: Session }>
  /** Null: it is none of ours, has expired, or the key that began it is no longer configured. */
  open(token: string): Promise<Session | null>
}

const audience = 'pg-lighter/dashboard'

/**
 * Each service key signs its own sessions: whoever takes it out of the configuration ends them. The store's secret
 * goes in too, so that who has only the key can't make a session that no log line tells of.
 * @param options.isOpen nobody needs a key
 */
export function createSessions(
  serviceKeys: string[],
  storeSecret: string,
  { isOpen = false }: { isOpen?: boolean } = {},
): Sessions {
  const derive = (serviceKey: string) =>
    Buffer.from(hkdfSync('sha256', serviceKey, storeSecret, audience, 32))
  const keys = isOpen ? [derive('')] : serviceKeys.map(derive)

  const csrfOf = (key: Buffer, id: string) =>
    createHmac('sha256', key).update(`csrf ${id}`).digest('base64url')
  const begin = async (key: Buffer) => {
    const session = { id: randomUUID(), expiresAt: new Date(Date.now() + sessionMs) }
    const token = await new SignJWT({})
      .setProtectedHeader({ alg: 'HS256' })
      .setJti(session.id)
      .setAudience(audience)
      .setExpirationTime(session.expiresAt)
      .sign(key)
    return { token, session: { ...session, csrfToken: csrfOf(key, session.id) } }
  }

  return {
    begin: async serviceKey => {
      const match = matchServiceKey(serviceKey, serviceKeys)
      return match === null ? null : begin(derive(match))
    },
    beginOpen: () => begin(derive('')),
    open: async token => {
      for (const key of keys) {
        const verified = await jwtVerify(token, key, {
          algorithms: ['HS256'],
          audience,
          requiredClaims: ['exp', 'jti'],
        }).catch(() => null)
        const { jti, exp } = verified?.payload ?? {}
        if (jti !== undefined && exp !== undefined)
          return { id: jti, csrfToken: csrfOf(key, jti), expiresAt: new Date(exp * 1000) }
      }
      return null
    },
  }
}

export function isCsrfTokenOf(session: Session, said: unknown): boolean {
  if (typeof said !== 'string') return false
  const [given, expected] = [Buffer.from(said), Buffer.from(session.csrfToken)]
  return given.length === expected.length && timingSafeEqual(given, expected)
}
