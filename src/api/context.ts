// What the routes share.
import type pg from 'pg'
import type { Logger } from 'pino'
import type { VerifiedObjects } from '../artifacts/range.ts'
import type { ApiConfig, OffloadConfig, StoreVariables } from '../config.ts'
import type { ArtifactId, TenantId } from '../ids.ts'
import type { ObjectStore } from '../store/object-store.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import type { RequestSpan } from '../telemetry/tracing.ts'
import type { CircuitState } from '../wake/circuit-breaker.ts'
import type { Authenticate } from './auth.ts'
import type { FairPause } from './fair-pause.ts'
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
  /** Uploads; answers that are held whole (hydrations, payloads); payloads that are streamed. */
  gates: { uploads: Gate; hydrations: Gate; whole: Gate; streams: Gate }
  /** Between two steps of long work in memory. */
  pause: FairPause
  /** Whether the bucket can be reached, over the worker's connections: a crowd of readers says nothing of it. */
  checkBucket: () => Promise<string>
  storeVariables: StoreVariables
  /** Of the worker in this process. */
  circuit: () => CircuitState | 'off'
  signer: UrlSigner
  verified: VerifiedObjects
  /** Where clients reach this API, without a slash at the end; known once it listens. */
  publicUrl: () => string
}

declare module 'fastify' {
  interface FastifyRequest {
    /** What a signed URL says, set on its route; null when it is not one of ours. */
    signed: { tenantId: TenantId; artifactId: ArtifactId } | null
    /** Bytes that the answer will have about, where it has no Content-Length. */
    expectedBytes: number
    /** The answer lasts as long as its client listens, and says by itself when that is enough. */
    lasting: boolean
    /** Whom the request speaks for; set on all routes under /api but signed URLs. */
    tenantId: TenantId
    /** Of this request, where there is a collector. */
    span: RequestSpan | null
  }
  interface FastifyContextConfig {
    /** Members of the JSON body that stay text. */
    rawMembers?: string[]
    /** Routes that need no credentials, or prove whom they speak for in a way of their own. */
    open?: boolean
  }
}
