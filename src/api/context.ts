// What the routes share.
import type pg from 'pg'
import type { Logger } from 'pino'
import type { VerifiedObjects } from '../artifacts/range.ts'
import type { ApiConfig, OffloadConfig } from '../config.ts'
import type { TenantId } from '../ids.ts'
import type { Metrics } from '../metrics.ts'
import type { ObjectStore } from '../store/object-store.ts'
import type { Authenticate } from './auth.ts'
import type { Gate } from './gate.ts'
import type { UrlSigner } from './signed-url.ts'

export interface ApiContext {
  config: ApiConfig
  offload: OffloadConfig
  pool: pg.Pool
  store: ObjectStore
  log: Logger
  metrics: Metrics
  authenticate: Authenticate
  /** For uploads and hydrations. */
  gate: Gate
  signer: UrlSigner
  verified: VerifiedObjects
  /** Where clients reach this API, without a slash at the end; known once it listens. */
  publicUrl: () => string
}

declare module 'fastify' {
  interface FastifyRequest {
    /** Whom the request speaks for; set on all routes under /api but signed URLs. */
    tenantId: TenantId
  }
  interface FastifyContextConfig {
    /** Members of the JSON body that stay text. */
    rawMembers?: string[]
    /** Routes that need no credentials. */
    open?: boolean
  }
}
