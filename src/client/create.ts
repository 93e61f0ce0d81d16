// One function for both kinds of client.
import type { LighterClient } from './client.ts'
import { createDirectClient, type DirectClientOptions } from './direct.ts'
import { createHttpClient, type HttpClientOptions } from './http.ts'

/**
 * A client of one tenant: with `baseUrl` over the HTTP API, with `pool` and `store` without it. Nothing is sent or
 * opened before its first call, and there is nothing to close; create one per request if tenants differ.
 * @throws {TypeError} an option can't be used
 */
export function createLighterClient(options: HttpClientOptions | DirectClientOptions): LighterClient {
  return 'baseUrl' in options ? createHttpClient(options) : createDirectClient(options)
}
