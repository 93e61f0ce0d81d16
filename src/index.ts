// What a program imports: the client of one tenant's artifacts and rows, what it is made of for programs that serve
// many tenants at once, and the daemon to run inside a program of its own.
//
// The import and the client over HTTP work on every Node that package.json names. All else needs a later one, and
// says so when it is called.
import { fetchPayloads as fetchPayloadsNow, streamPayload as streamPayloadNow } from './artifacts/fetch.ts'
import { hydrateMany as hydrateInputsNow } from './artifacts/hydrate.ts'
import { readRows as readRowsNow } from './artifacts/rows.ts'
import { hydrateValues as hydrateValuesNow, readValues as readValuesNow } from './artifacts/values.ts'
import { lookupArtifacts as lookupArtifactsNow } from './catalogue/lookup.ts'
import { loadConfig as loadConfigNow } from './config.ts'
import { createDaemon as createDaemonNow } from './daemon.ts'
import { migrate as migrateNow, planMigration as planMigrationNow } from './db/migrate.ts'
import { createPool as createPoolNow } from './db/pool.ts'
import { LighterError } from './errors.ts'
import { nodeTooOld } from './node-version.ts'
import { loadSources as loadSourcesNow } from './source/sources.ts'
import { openStore as openStoreNow } from './store/object-store.ts'

export type { FetchOptions } from './artifacts/fetch.ts'
export type { HydrateContext, HydrateInput, HydrateResult } from './artifacts/hydrate.ts'
export type { StoredValue, ValueResult } from './artifacts/values.ts'
export type { Artifact } from './catalogue/lookup.ts'
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
export type { Daemon, DaemonOptions } from './daemon.ts'
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
export type { BatchResult } from './offload/batch-result.ts'
export { rowKey, rowKeyParts } from './source/row-key.ts'
export type { Source } from './source/sources.ts'
export { tenantIdOf } from './source/tenant-id.ts'
export type { ObjectStore } from './store/object-store.ts'

export const createDaemon = onLaterNode('createDaemon', createDaemonNow)
export const createPool = onLaterNode('createPool', createPoolNow)
export const fetchPayloads = onLaterNode('fetchPayloads', fetchPayloadsNow)
export const hydrateInputs = onLaterNode('hydrateInputs', hydrateInputsNow)
export const hydrateValues = onLaterNode('hydrateValues', hydrateValuesNow)
export const loadConfig = onLaterNode('loadConfig', loadConfigNow)
export const loadSources = onLaterNode('loadSources', loadSourcesNow)
export const lookupArtifacts = onLaterNode('lookupArtifacts', lookupArtifactsNow)
export const migrate = onLaterNode('migrate', migrateNow)
export const openStore = onLaterNode('openStore', openStoreNow)
export const planMigration = onLaterNode('planMigration', planMigrationNow)
export const readRows = onLaterNode('readRows', readRowsNow)
export const readValues = onLaterNode('readValues', readValuesNow)
export const streamPayload = onLaterNode('streamPayload', streamPayloadNow)

/** The function itself; on a Node that is too old for it, one that throws {LighterError} `node_too_old`. */
function onLaterNode<F extends (...args: never[]) => unknown>(name: string, work: F): F {
  const problem = nodeTooOld(name)
  if (problem === null) return work
  const refuse = () => {
    throw new LighterError('node_too_old', problem, {
      hint: 'The client over HTTP works here: createLighterClient({ baseUrl }).',
    })
  }
  return refuse as unknown as F
}
