// JSON Web Tokens made by hand, the forged ones too: a library would refuse to make those.
import { createHmac, generateKeyPairSync, type JsonWebKey, sign as signWith } from 'node:crypto'

type Sign = (signingInput: string) => Buffer

/** Put together as it is told, whether that makes a valid token or not. */
export function forgeToken(header: unknown, payload: unknown, sign: Sign): string {
  const segment = (value: unknown) =>
    Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url')
  const input = `${segment(header)}.${segment(payload)}`
  return `${input}.${sign(input).toString('base64url')}`
}

export const hmac =
  (secret: string | Buffer, hash = 'sha256'): Sign =>
  input =>
    createHmac(hash, secret).update(input).digest()

export const inSeconds = (seconds: number) => Math.floor(Date.now() / 1000) + seconds

/** A good HS256 token, but for what `claims` make of it; undefined takes a claim away. */
export function secretToken(secret: string, claims: Record<string, unknown>): string {
  return forgeToken({ alg: 'HS256', typ: 'JWT' }, { exp: inSeconds(300), ...claims }, hmac(secret))
}

interface SigningKey {
  kid: string
  /** As it stands in a key set. */
  jwk: JsonWebKey & { kid: string }
  publicPem: string
  sign: Sign
  token(claims: Record<string, unknown>, header?: Record<string, unknown>): string
}

export function newSigningKey(kid: string, algorithm: 'RS256' | 'ES256' = 'ES256'): SigningKey {
  const { privateKey, publicKey } =
    algorithm === 'RS256'
      ? generateKeyPairSync('rsa', { modulusLength: 2048 })
      : generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const sign: Sign = input =>
    signWith('sha256', Buffer.from(input), { key: privateKey, dsaEncoding: 'ieee-p1363' })
  return {
    kid,
    jwk: { ...publicKey.export({ format: 'jwk' }), kid, alg: algorithm, use: 'sig' },
    publicPem: publicKey.export({ format: 'pem', type: 'spki' }).toString(),
    sign,
    token: (claims, header) =>
      forgeToken({ alg: algorithm, kid, ...header }, { exp: inSeconds(300), ...claims }, sign),
  }
}
