// Counters for Prometheus. None has a label per tenant.
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client'
import type { BatchResult } from './offload/pipeline.ts'
import type { CircuitState } from './wake/circuit-breaker.ts'

export interface Metrics {
  registry: Registry
  request(route: string, method: string, status: number, seconds: number): void
  /** A payload that could not be answered as it was stored: damaged, missing. */
  readError(code: string): void
  batch(result: BatchResult): void
  circuit(state: CircuitState): void
  /** A sweep that ended: done, stopped, busy or failed. */
  sweep(name: string, outcome: string, seconds: number): void
  /** Artifacts that a verify sweep found damaged. */
  damaged(artifacts: number): void
}

export function createMetrics(): Metrics {
  const registry = new Registry()
  collectDefaultMetrics({ register: registry, prefix: 'lighter_' })
  const requests = new Histogram({
    name: 'lighter_http_request_duration_seconds',
    help: 'HTTP requests by route, method and status, and how long their answers took.',
    labelNames: ['route', 'method', 'status'],
    buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30],
    registers: [registry],
  })
  const readErrors = new Counter({
    name: 'lighter_artifact_read_errors_total',
    help: 'Payloads that could not be read back as they were stored, by error code. Any is worth a look.',
    labelNames: ['code'],
    registers: [registry],
  })
  const rows = new Counter({
    name: 'lighter_rows_total',
    help: 'Claimed rows by what became of them.',
    labelNames: ['outcome'],
    registers: [registry],
  })
  const artifacts = new Counter({
    name: 'lighter_artifacts_total',
    help: 'Artifacts committed by the offload.',
    registers: [registry],
  })
  const bytes = new Counter({
    name: 'lighter_offload_bytes_total',
    help: 'Bytes offloaded: payload is their text, object what is stored.',
    labelNames: ['of'],
    registers: [registry],
  })
  const step = new Histogram({
    name: 'lighter_batch_step_duration_seconds',
    help: 'How long the steps of a batch took.',
    labelNames: ['step'],
    buckets: [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 30],
    registers: [registry],
  })
  const circuitOpen = new Gauge({
    name: 'lighter_store_circuit_open',
    help: '1 while the store fails and this daemon claims nothing.',
    registers: [registry],
  })
  const circuitOpened = new Counter({
    name: 'lighter_store_circuit_opened_total',
    help: 'How often the store failed this daemon, failed probes apart.',
    registers: [registry],
  })
  const sweepRuns = new Histogram({
    name: 'lighter_sweep_duration_seconds',
    help: 'Sweeps by name and outcome, and how long they took.',
    labelNames: ['sweep', 'outcome'],
    buckets: [0.1, 1, 10, 60, 600, 3600],
    registers: [registry],
  })
  const damaged = new Counter({
    name: 'lighter_artifacts_damaged_total',
    help: 'Artifacts that a verify sweep could not read back as they were stored, once for each sweep that found them. Any is worth a look.',
    registers: [registry],
  })
  return {
    registry,
    circuit: state => {
      circuitOpen.set(state === 'open' ? 1 : 0)
      if (state === 'open') circuitOpened.inc()
    },
    damaged: artifacts => damaged.inc(artifacts),
    sweep: (sweep, outcome, seconds) => sweepRuns.observe({ sweep, outcome }, seconds),
    request: (route, method, status, seconds) =>
      requests.observe({ route, method, status: String(status) }, seconds),
    readError: code => readErrors.inc({ code }),
    batch: result => {
      rows.inc({ outcome: 'offloaded' }, result.offloadedRows)
      rows.inc({ outcome: 'nothing' }, result.nothing)
      rows.inc({ outcome: 'gone' }, result.gone)
      rows.inc({ outcome: 'changed' }, result.changed)
      rows.inc({ outcome: 'failed' }, result.failed)
      rows.inc({ outcome: 'dead_letter' }, result.deadLetters)
      artifacts.inc(result.artifacts)
      bytes.inc({ of: 'payload' }, result.payloadBytes)
      bytes.inc({ of: 'object' }, result.objectBytes)
      for (const name of ['plan', 'pack', 'upload', 'commit'] as const) {
        step.observe({ step: name }, result[`${name}Ms`] / 1000)
      }
    },
  }
}
