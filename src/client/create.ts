// One function for both kinds of client.
import { LighterError } from '../errors.ts'
import { nodeTooOld } from '../node-version.ts'
import type { LighterClient } from './client.ts'
import { createDirectClient, type DirectClientOptions } from './direct.ts'
import { createHttpClient, type HttpClientOptions } from './http.ts'

/**
 * A client of one tenant: with `baseUrl` over the HTTP API, with `pool` and `store` without it. Nothing is sent or
 * opened before its first call, and there is nothing to close; create one per request if tenants differ.
 * @throws {TypeError} an option can't be used; {LighterError} `node_too_old`: without `baseUrl` a later Node is needed
 */
export function createLighterClient(options: HttpClientOptions | DirectClientOptions): LighterClient {
  if ('baseUrl' in options) return createHttpClient(options)
  const problem = nodeTooOld('createLighterClient without baseUrl')
  if (problem !== null) {
    throw new LighterError('node_too_old', problem, {
      hint: 'Over HTTP it works here: createLighterClient({ baseUrl }).',
    })
  }
  return createDirectClient(options)
}
