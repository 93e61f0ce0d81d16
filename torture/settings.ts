// How fast time goes in the torture: every period of the product, as short as it can be without breaking its meaning.
import type { SweepConfig } from '../src/config.ts'

export interface TortureOptions {
  seed: number
  minutes: number
  daemons: number
}

/** Of claimed jobs and registered objects. Who is stopped for longer has lost both. */
export const leaseMs = 1500
/** Longest silence of the store within a request. */
export const storeTimeoutMs = 2000
/** How long a process is stopped, beyond its lease; and how long the store holds a request back to let it land late. */
export const longestStopMs = 5000
export const latestLandingMs = 4000
/**
 * What a day of grace, an hour of minimum age and such come down to: see ageing.ts. Longer than a read, and than the
 * application keeps a pointer in hand.
 */
export const graceMs = 6000
/** Artifacts of this kind, which programs put over HTTP, are kept for a day: they expire when they are `graceMs` old. */
export const shortLivedKind = 'workflow_state'
/** Of whoever calls the API. */
export const serviceKey = 'torture-torture-torture-torture-torture'
/** A read that has taken longer may find what it looked for gone: it must look again. */
export const longestReadMs = 4000

/**
 * Sweeps as they are run all the time. The grace of a day passes in `graceMs`. An object that was deleted is deleted
 * again when no request for it can be under way: four tries of four silences, a stop, a late landing.
 */
export const sweepConfig: Partial<SweepConfig> = {
  graceDays: 1,
  batchSize: 40,
  rate: 1_000_000,
  deleteDelayMs: 500,
  settleMs: storeTimeoutMs * 4 * 4 + longestStopMs + latestLandingMs,
  tombstoneDays: 1,
  verifySample: 100,
}

/** A rewritten pack stays for its readers, not for whoever goes back with a backup: that would be a day. */
export const compactionConfig: Partial<SweepConfig> = {
  ...sweepConfig,
  graceDays: 0,
  readerGraceMs: graceMs + 2000,
  compactLiveShare: 1,
  erasureDays: 0,
}

const MiB = 1024 * 1024

/** The environment of every daemon, and of the commands. */
export const daemonSettings = {
  DATABASE_POOL_SIZE: '4',
  OFFLOAD_LEASE_MS: String(leaseMs),
  // Of many kills each costs the jobs at hand an attempt.
  OFFLOAD_MAX_ATTEMPTS: '100',
  STREAM_THRESHOLD_BYTES: String(64 * 1024),
  MULTIPART_PART_BYTES: String(5 * MiB),
  STORE_TIMEOUT_MS: String(storeTimeoutMs),
  POLL_INTERVAL_MS: '500',
  SHUTDOWN_TIMEOUT_MS: '3000',
  API_PORT: '0',
  AUTH_MODE: 'service',
  SERVICE_API_KEY: serviceKey,
  ...Object.fromEntries(
    ['ORPHANS', 'RETENTION', 'RELEASE', 'COMPACTION', 'VERIFY', 'VACUUM', 'ROLLUP'].map(name => [
      `SWEEP_${name}_CRON`,
      'off',
    ]),
  ),
}
