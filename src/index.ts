// What a program imports: reading offloaded rows back, and running the daemon inside a program of its own.
export type { FetchOptions } from './artifacts/fetch.ts'
export { fetchPayloads, streamPayload } from './artifacts/fetch.ts'
export type { HydrateContext, HydrateInput, HydrateResult } from './artifacts/hydrate.ts'
export { hydrate, hydrateMany } from './artifacts/hydrate.ts'
export type { Artifact } from './artifacts/lookup.ts'
export { lookupArtifacts } from './artifacts/lookup.ts'
export { readRows } from './artifacts/rows.ts'
export type { Config } from './config.ts'
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
