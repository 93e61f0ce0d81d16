// The metrics of a daemon, for Prometheus. docs/metrics.md lists them all; each has its name, help and labels here or
// in the file of its part, and nowhere else. None has a label per tenant unless METRICS_TENANTS asks for it.
import { Counter, Gauge, Histogram, Registry } from 'prom-client'
import { version } from '../version.ts'
import { createDatabaseMetrics, type DatabaseMetrics } from './database-metrics.ts'
import { createOffloadMetrics, type OffloadMetrics } from './offload-metrics.ts'
import { createPoolMetrics, type PoolMetrics } from './pool-metrics.ts'
import { createProcessMetrics } from './process-metrics.ts'
import { createStoreMetrics, type StoreMetrics } from './store-metrics.ts'

export interface Metrics {
  registry: Registry
  /** All metrics as text. What lies in the database is looked up first, within a time limit. */
  expose(): Promise<string>
  offload: OffloadMetrics
  store: StoreMetrics
  database: DatabaseMetrics
  pools: PoolMetrics
  request(route: string, method: string, status: number, seconds: number): void
  /** A payload that could not be answered as it was stored: damaged, missing. */
  readError(code: string): void
  /** A sweep that ended: done, stopped, busy or failed. */
  sweep(name: string, outcome: string, seconds: number): void
  /** Artifacts that a verify sweep found damaged. */
  damaged(artifacts: number): void
  /** Spans that were sent to the collector, or were not. */
  spans(outcome: 'exported' | 'failed' | 'dropped', count: number): void
  /** Ends what runs between scrapes. */
  stop(): void
}

/** @param tenants how many tenants get series of their own */
export function createMetrics(tenants = 0): Metrics {
  const registry = new Registry()
  const registers = [registry]
  const build = new Gauge({
    name: 'lighter_build_info',
    help: 'Always 1; the version of pg-lighter and of Node as labels.',
    labelNames: ['version', 'node'],
    registers,
  })
  build.set({ version, node: process.versions.node }, 1)
  const started = new Gauge({
    name: 'lighter_start_time_seconds',
    help: 'When this daemon was made, in seconds since 1970.',
    registers,
  })
  started.set(Date.now() / 1000)
  const requests = new Histogram({
    name: 'lighter_http_request_duration_seconds',
    help: 'HTTP requests by route, method and status, and how long their answers took.',
    labelNames: ['route', 'method', 'status'],
    buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30],
    registers,
  })
  const readErrors = new Counter({
    name: 'lighter_artifact_read_errors_total',
    help: 'Payloads that could not be read back as they were stored, by error code. Any is worth a look.',
    labelNames: ['code'],
    registers,
  })
  const sweepRuns = new Histogram({
    name: 'lighter_sweep_duration_seconds',
    help: 'Sweeps that this daemon ran, by name and outcome (done, stopped, busy, failed), and how long they took.',
    labelNames: ['sweep', 'outcome'],
    buckets: [0.1, 1, 10, 60, 600, 3600],
    registers,
  })
  const damaged = new Counter({
    name: 'lighter_artifacts_damaged_total',
    help: 'Artifacts that a verify sweep could not read back as they were stored, once for each sweep that found them. Any is worth a look.',
    registers,
  })
  const spans = new Counter({
    name: 'lighter_trace_spans_total',
    help: 'Spans that were exported, failed to be, or were dropped because the export queue was full.',
    labelNames: ['outcome'],
    registers,
  })
  const offload = createOffloadMetrics(registers, tenants)
  const store = createStoreMetrics(registers)
  const database = createDatabaseMetrics(registers)
  const pools = createPoolMetrics(registers)
  const stopProcess = createProcessMetrics(registers)
  return {
    registry,
    expose: async () => {
      await database.refresh()
      return registry.metrics()
    },
    offload,
    store,
    database,
    pools,
    damaged: artifacts => damaged.inc(artifacts),
    sweep: (sweep, outcome, seconds) => sweepRuns.observe({ sweep, outcome }, seconds),
    request: (route, method, status, seconds) =>
      requests.observe({ route, method, status: String(status) }, seconds),
    readError: code => readErrors.inc({ code }),
    spans: (outcome, count) => spans.inc({ outcome }, count),
    stop: stopProcess,
  }
}
