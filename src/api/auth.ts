// Who is calling. Each mode turns a request into the tenant that it speaks for, or refuses it; what a client
// merely says (x-tenant-id, ?tenant_id=) is believed in the modes that say so, and else only compared.
import { createHash, timingSafeEqual } from 'node:crypto'
import { readFile, stat } from 'node:fs/promises'
import type { IncomingHttpHeaders } from 'node:http'
import {
  createLocalJWKSet,
  createRemoteJWKSet,
  type JWTPayload,
  type JWTVerifyGetKey,
  type JWTVerifyOptions,
  errors as joseErrors,
  jwtVerify,
} from 'jose'
import type { ApiConfig, AuthConfig } from '../config.ts'
import { messageOf } from '../errors.ts'
import { asTenantId, type TenantId } from '../ids.ts'
import { tenantIdOf } from '../source/tenant-id.ts'
import { ApiError } from './errors.ts'

/**
 * @param said `tenant_id` of the query or the body: with AUTH_MODE=dev it is believed as the header is
 * @throws {ApiError} 400, 401 or 403
 */
export type Authenticate = (headers: IncomingHttpHeaders, said?: unknown) => Promise<TenantId>

const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i

/** Whom a claim, a header or a parameter names; null: no tenant. */
export type ReadTenant = (named: unknown) => TenantId | null

/**
 * By its uuid, or, within a namespace, by the name that the application has for it. Then a uuid is a name too, and a whole
 * number the name that is its text.
 */
export function tenantReader(namespace: string | undefined): ReadTenant {
  if (namespace === undefined)
    return named => (typeof named === 'string' && uuid.test(named) ? asTenantId(named.toLowerCase()) : null)
  return named => {
    const name = Number.isSafeInteger(named) ? String(named) : named
    // What Postgres can have as a text: anything else would be read as some other name.
    const isName = typeof name === 'string' && name !== '' && !name.includes('\0') && name.isWellFormed()
    return isName ? tenantIdOf(namespace, name) : null
  }
}

/** Clocks of issuer and daemon may differ by so much. */
const clockToleranceSeconds = 30

export function createAuthenticator(
  config: Pick<ApiConfig, 'auth' | 'serviceKeys' | 'tenantNamespace'>,
): Authenticate {
  const { auth } = config
  const readTenant = tenantReader(config.tenantNamespace)
  const isNamed = config.tenantNamespace !== undefined
  switch (auth.mode) {
    case 'jwt':
      return jwtAuthenticator(auth, readTenant)
    case 'service':
      return async headers => {
        requireServiceKey(headers, config.serviceKeys)
        return saidTenant(
          readTenant,
          headerTenant(headers),
          isNamed
            ? 'the header x-tenant-id must be the name of a tenant'
            : 'the header x-tenant-id must be the uuid of a tenant',
        )
      }
    case 'dev':
      return async (headers, said) => {
        requireLoopbackName(headers)
        return saidTenant(
          readTenant,
          headerTenant(headers) ?? said,
          isNamed
            ? 'the header x-tenant-id, or tenant_id in the query or the body, must be the name of a tenant'
            : 'the header x-tenant-id, or tenant_id in the query or the body, must be the uuid of a tenant',
        )
      }
    case 'off':
      return async () => {
        throw new ApiError(503, 'auth_not_configured', 'the API is off: set AUTH_MODE to jwt, service or dev')
      }
  }
}

/** @throws {ApiError} 401 unless the request bears one of the service keys */
export function requireServiceKey(headers: IncomingHttpHeaders, keys: string[]): void {
  if (matchServiceKey(bearerToken(headers), keys) === null) throw unauthorized('the service key is not valid')
}

/** Which of the keys it is; null: none. */
export function matchServiceKey(text: string, keys: string[]): string | null {
  const given = digest(text)
  // All are compared, and digests have one length: the time tells neither which key is near nor how long it is.
  let match: string | null = null
  for (const key of keys) if (timingSafeEqual(given, digest(key))) match = key
  return match
}

const digest = (text: string) => createHash('sha256').update(text).digest()

function jwtAuthenticator(auth: Extract<AuthConfig, { mode: 'jwt' }>, readTenant: ReadTenant): Authenticate {
  const { key } = auth
  const options = {
    algorithms: auth.algorithms,
    clockTolerance: clockToleranceSeconds,
    // A token without an end would be valid for ever.
    requiredClaims: ['exp'],
    ...(auth.issuer !== undefined && { issuer: auth.issuer }),
    ...(auth.audience !== undefined && { audience: auth.audience }),
  }
  const verify = async (token: string): Promise<JWTPayload> => {
    if ('secret' in key) {
      const { payload } = await jwtVerify(token, Buffer.from(key.secret), options)
      return payload
    }
    return verifyByKeySet(token, keys, options)
  }
  const keys: JWTVerifyGetKey =
    'jwksUrl' in key
      ? createRemoteJWKSet(new URL(key.jwksUrl), { timeoutDuration: 5000, cooldownDuration: 30_000 })
      : 'jwksFile' in key
        ? fileKeySet(key.jwksFile)
        : () => Promise.reject(new Error('no key set'))
  return async headers => {
    const token = bearerToken(headers)
    let payload: JWTPayload
    try {
      payload = await verify(token)
    } catch (error) {
      if (isTokenFault(error)) throw unauthorized(reasonOf(error))
      throw new ApiError(503, 'jwks_unavailable', 'the keys to check tokens with can not be had', {
        cause: error,
      })
    }
    const tenantId = readTenant(claimOf(payload, auth.tenantClaim))
    if (tenantId === null) {
      throw new ApiError(403, 'no_tenant', `the token's claim ${auth.tenantClaim.join('.')} names no tenant`)
    }
    return tenantId
  }
}

/** A token without `kid` may fit several keys of the set: each is tried, and the first whose signature is right counts. */
async function verifyByKeySet(
  token: string,
  keys: JWTVerifyGetKey,
  options: JWTVerifyOptions,
): Promise<JWTPayload> {
  try {
    return (await jwtVerify(token, keys, options)).payload
  } catch (error) {
    if (!(error instanceof joseErrors.JWKSMultipleMatchingKeys)) throw error
    let refusal: unknown = error
    for await (const key of error) {
      try {
        return (await jwtVerify(token, key, options)).payload
      } catch (each) {
        // A right signature with a wrong claim, such as an expiry that is past, ends it.
        if (!(each instanceof joseErrors.JWSSignatureVerificationFailed)) throw each
        refusal = each
      }
    }
    throw refusal
  }
}

/** The token's fault, as far as its bearer may know. */
function reasonOf(error: unknown): string {
  if (error instanceof joseErrors.JWTExpired) return 'the token has expired'
  if (error instanceof joseErrors.JWTClaimValidationFailed)
    return `the token's claim ${error.claim} is missing, or not what it must be`
  return 'the token is not valid'
}

/** Against what keeps us from finding out: a key set that can't be fetched or read. */
function isTokenFault(error: unknown): boolean {
  if (error instanceof joseErrors.JWKSTimeout || error instanceof joseErrors.JWKSInvalid) return false
  // A key set that answers with something else than 200 and JSON is a plain JOSEError.
  return error instanceof joseErrors.JOSEError && error.code !== 'ERR_JOSE_GENERIC'
}

/** A key set from a file, read again when the file has changed (rotation: replace the file). */
function fileKeySet(file: string): JWTVerifyGetKey {
  let current: { mtimeMs: number; keys: JWTVerifyGetKey } | undefined
  return async (header, token) => {
    const { mtimeMs } = await stat(file)
    if (current?.mtimeMs !== mtimeMs) {
      try {
        current = { mtimeMs, keys: createLocalJWKSet(JSON.parse(await readFile(file, 'utf8'))) }
      } catch (error) {
        throw new Error(`JWT_JWKS_FILE can not be read: ${messageOf(error)}`, { cause: error })
      }
    }
    return current.keys(header, token)
  }
}

/**
 * With AUTH_MODE=dev: a page of somebody else's whose name is made to lead to this machine can't be told by the address.
 * @throws {ApiError} 403
 */
export function requireLoopbackName(headers: IncomingHttpHeaders): void {
  if (/^(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?$/i.test(headers.host ?? '')) return
  throw new ApiError(403, 'host_not_allowed', 'with AUTH_MODE=dev the API answers to loopback names only')
}

function claimOf(payload: JWTPayload, path: string[]): unknown {
  let value: unknown = payload
  for (const name of path) {
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, name)) return undefined
    value = (value as Record<string, unknown>)[name]
  }
  return value
}

function bearerToken(headers: IncomingHttpHeaders): string {
  const token = /^Bearer +(\S+) *$/i.exec(headers.authorization ?? '')?.[1]
  if (token === undefined) throw unauthorized('an Authorization header with a Bearer token is needed')
  return token
}

/** Whether there is a tenant without a look at the body, good or not. */
export function namesTenant(headers: IncomingHttpHeaders, said: unknown): boolean {
  return headers['x-tenant-id'] !== undefined || said !== undefined
}

function saidTenant(readTenant: ReadTenant, said: unknown, message: string): TenantId {
  const tenantId = readTenant(said)
  if (tenantId === null) throw new ApiError(400, 'tenant_required', message, { field: 'x-tenant-id' })
  return tenantId
}

/** @throws {ApiError} 400: programs send other characters in one encoding or another, and that would be another tenant */
function headerTenant(headers: IncomingHttpHeaders): unknown {
  const said = headers['x-tenant-id']
  if (typeof said === 'string' && /[^\x20-\x7e]/.test(said))
    throw new ApiError(400, 'tenant_required', 'the header x-tenant-id may have ASCII characters only', {
      field: 'x-tenant-id',
    })
  return said
}

/** What a client says beside its credential, also by the uuid, must be what the credential says. @throws {ApiError} 403 */
export function requireSameTenant(readTenant: ReadTenant, tenantId: TenantId, said: unknown): void {
  if (said === undefined || said === null || said === '') return
  if (typeof said === 'string' && said.toLowerCase() === tenantId) return
  if (readTenant(said) === tenantId) return
  throw new ApiError(
    403,
    'tenant_mismatch',
    'the request names another tenant than the one it is authenticated for',
  )
}

function unauthorized(message: string): ApiError {
  return new ApiError(401, 'unauthorized', message)
}
