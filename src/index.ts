// What a program imports: the client of one tenant's artifacts and rows, what it is made of for programs that serve
// many tenants at once, and the daemon to run inside a program of its own.
export type { FetchOptions } from './artifacts/fetch.ts'
export { fetchPayloads, streamPayload } from './artifacts/fetch.ts'
export type { HydrateContext, HydrateInput, HydrateResult } from './artifacts/hydrate.ts'
export { hydrateMany as hydrateInputs } from './artifacts/hydrate.ts'
export type { Artifact } from './artifacts/lookup.ts'
export { lookupArtifacts } from './artifacts/lookup.ts'
export { readRows } from './artifacts/rows.ts'
export type {
  ArtifactPage,
  ArtifactWithPayload,
  CallOptions,
  DeleteOptions,
  HydrateFailure,
  HydrateManyOptions,
  HydrateOptions,
  LighterClient,
  ListFilter,
  NewArtifact,
  Payload,
  PayloadStream,
  StoredArtifact,
  StreamOptions,
  UrlOptions,
} from './client/client.ts'
export { createLighterClient } from './client/create.ts'
export type { DirectClientOptions } from './client/direct.ts'
export { HydrateError, LighterHttpError } from './client/errors.ts'
export type { HttpClientOptions } from './client/http.ts'
export { hydrate, hydrateMany } from './client/hydrate.ts'
export type { Config, StoreConfig } from './config.ts'
export { loadConfig } from './config.ts'
export type { Daemon, DaemonOptions } from './daemon.ts'
export { createDaemon } from './daemon.ts'
export { migrate, planMigration } from './db/migrate.ts'
export { createPool } from './db/pool.ts'
export {
  ArtifactError,
  ConfigError,
  LighterError,
  MigrationError,
  OwnershipError,
  RowError,
  StoreError,
} from './errors.ts'
export { type ArtifactId, asArtifactId, asTenantId, type TenantId } from './ids.ts'
export type { BatchResult } from './offload/pipeline.ts'
export { loadSources, type Source } from './offload/sources.ts'
export { type ObjectStore, openStore } from './store/object-store.ts'
