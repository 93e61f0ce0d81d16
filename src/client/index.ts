// `pg-lighter/client`: the client over HTTP by itself, for browsers and edge runtimes. It imports neither pg nor the
// AWS SDK nor anything of Node.

export { ArtifactError, LighterError, StoreError } from '../errors.ts'
export type * from './client.ts'
export { HydrateError, LighterHttpError } from './errors.ts'
export { createHttpClient as createLighterClient, type HttpClientOptions } from './http.ts'
export { hydrate, hydrateMany } from './hydrate.ts'
