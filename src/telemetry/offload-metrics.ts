// Of the pipeline. Counts are of what has been committed, and are told once.
import { Counter, Gauge, Histogram, type Registry } from 'prom-client'
import type { Committed, Latency, StepName } from '../offload/observer.ts'
import type { CircuitState } from '../wake/circuit-breaker.ts'
import { boundedLabels } from './bounded-labels.ts'

/** Kinds with series of their own; sources may have any kind. */
const maxKinds = 50

/** Powers of two, as the buckets in which a commit finds the latencies: nothing lies across a bound. */
const latencyBuckets = Array.from({ length: 19 }, (_, i) => 2 ** (i + 4) / 1000)

export interface OffloadMetrics {
  claimed(rows: number): void
  committed(commit: Committed): void
  returned(rows: { retried: number; deadLetters: number; putBack: number; waiting: number }): void
  step(name: StepName, seconds: number): void
  /** More (or fewer) bytes, batches or large rows under way. */
  inFlight(change: { bytes?: number; batches?: number; largeRows?: number }): void
  /** Whether the store fails this daemon, so that it claims nothing. */
  circuit(state: CircuitState): void
}

export function createOffloadMetrics(registers: Registry[], tenants: number): OffloadMetrics {
  const claimed = new Counter({
    name: 'lighter_rows_claimed_total',
    help: 'Rows that were claimed from the queue, each time they were.',
    registers,
  })
  const rows = new Counter({
    name: 'lighter_rows_total',
    help: 'Claimed rows by what became of them: offloaded, nothing (no longer heavy), gone (deleted), changed (written meanwhile, queued still), retried (failed, back in the queue), put_back (not their turn, or the store is down), waiting (for others of their tenant, until a PUT is worth it), dead_letter (given up).',
    labelNames: ['outcome'],
    registers,
  })
  for (const outcome of [
    'offloaded',
    'nothing',
    'gone',
    'changed',
    'retried',
    'put_back',
    'waiting',
    'dead_letter',
  ] as const)
    rows.inc({ outcome }, 0)
  const commits = new Counter({
    name: 'lighter_commits_total',
    help: 'Transactions that committed a batch, or a part of one.',
    registers,
  })
  const lastCommit = new Gauge({
    name: 'lighter_last_commit_timestamp_seconds',
    help: 'When this daemon last committed a batch, in seconds since 1970; 0 before its first.',
    registers,
  })
  const artifacts = new Counter({
    name: 'lighter_artifacts_total',
    help: `Artifacts committed by the offload, by kind (the first ${maxKinds}, then other).`,
    labelNames: ['kind'],
    registers,
  })
  const payloadBytes = new Counter({
    name: 'lighter_payload_bytes_total',
    help: 'Bytes of text taken off rows, committed, by kind.',
    labelNames: ['kind'],
    registers,
  })
  const objects = new Counter({
    name: 'lighter_objects_total',
    help: 'Objects that hold committed artifacts, by kind.',
    labelNames: ['kind'],
    registers,
  })
  const objectBytes = new Counter({
    name: 'lighter_object_bytes_total',
    help: 'Bytes of those objects as they are stored, by kind.',
    labelNames: ['kind'],
    registers,
  })
  const latency = new Histogram({
    name: 'lighter_offload_latency_seconds',
    help: 'From the time when a row was to leave to the commit that offloaded it, by queue (live, backfill): from the begin of the transaction that wrote it, later by settle_for, or from when it was taken from those that wait. The buckets are exact, the sum is within 10 %.',
    labelNames: ['queue'],
    buckets: latencyBuckets,
    registers,
  })
  const step = new Histogram({
    name: 'lighter_batch_step_duration_seconds',
    help: 'How long the steps of a batch took: claim, group, plan, pack, register, upload, commit; stream: of one large payload.',
    labelNames: ['step'],
    buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120],
    registers,
  })
  const inFlightBytes = new Gauge({
    name: 'lighter_in_flight_bytes',
    help: 'Bytes of payloads and of built objects that batches under way hold in memory, large rows apart.',
    registers,
  })
  const batches = new Gauge({
    name: 'lighter_in_flight_batches',
    help: 'Batches under way.',
    registers,
  })
  const largeRows = new Gauge({
    name: 'lighter_in_flight_large_rows',
    help: 'Rows with large payloads that are being streamed.',
    registers,
  })
  const circuitOpen = new Gauge({
    name: 'lighter_store_circuit_open',
    help: '1 while the store fails and this daemon claims nothing.',
    registers,
  })
  const circuitOpened = new Counter({
    name: 'lighter_store_circuit_opened_total',
    help: 'How often the store failed this daemon, failed probes apart.',
    registers,
  })
  let isOpen = false
  const kindOf = boundedLabels(maxKinds)
  const countTenants = tenants > 0 ? createTenantMetrics(registers, tenants) : undefined
  const queues = { live: latency.labels('live'), backfill: latency.labels('backfill') }
  const observeLatency = ({ live, bucket, rows: count }: Latency) => {
    const seconds = 2 ** ((bucket - 0.5) / 4) / 1000
    for (let i = 0; i < count; i++) queues[live ? 'live' : 'backfill'].observe(seconds)
  }
  return {
    claimed: count => claimed.inc(count),
    committed: commit => {
      commits.inc()
      lastCommit.setToCurrentTime()
      for (const outcome of ['offloaded', 'nothing', 'gone', 'changed'] as const)
        rows.inc({ outcome }, commit[outcome])
      for (const [kind, ofKind] of Map.groupBy(commit.artifacts, artifact => kindOf(artifact.kind))) {
        artifacts.inc({ kind }, ofKind.length)
        payloadBytes.inc(
          { kind },
          sumOf(ofKind, artifact => artifact.payloadBytes),
        )
      }
      for (const [kind, ofKind] of Map.groupBy(commit.objects, object => kindOf(object.kind))) {
        objects.inc({ kind }, ofKind.length)
        objectBytes.inc(
          { kind },
          sumOf(ofKind, object => object.bytes),
        )
      }
      countTenants?.(commit.artifacts)
      for (const each of commit.latencies) observeLatency(each)
    },
    returned: ({ retried, deadLetters, putBack, waiting }) => {
      rows.inc({ outcome: 'retried' }, retried)
      rows.inc({ outcome: 'dead_letter' }, deadLetters)
      rows.inc({ outcome: 'put_back' }, putBack)
      rows.inc({ outcome: 'waiting' }, waiting)
    },
    step: (name, seconds) => step.observe({ step: name }, seconds),
    inFlight: change => {
      inFlightBytes.inc(change.bytes ?? 0)
      batches.inc(change.batches ?? 0)
      largeRows.inc(change.largeRows ?? 0)
    },
    circuit: state => {
      const opens = state === 'open' && !isOpen
      isOpen = state === 'open'
      circuitOpen.set(isOpen ? 1 : 0)
      if (opens) circuitOpened.inc()
    },
  }
}

function createTenantMetrics(
  registers: Registry[],
  limit: number,
): (artifacts: Committed['artifacts']) => void {
  const artifacts = new Counter({
    name: 'lighter_tenant_artifacts_total',
    help: 'Artifacts committed by the offload, by tenant (the first METRICS_TENANTS that come, then other); only where that is set.',
    labelNames: ['tenant'],
    registers,
  })
  const payloadBytes = new Counter({
    name: 'lighter_tenant_payload_bytes_total',
    help: 'Bytes of text taken off rows, committed, by tenant; likewise.',
    labelNames: ['tenant'],
    registers,
  })
  const tenantOf = boundedLabels(limit)
  return committed => {
    for (const [tenant, ofTenant] of Map.groupBy(committed, each => tenantOf(each.tenantId ?? 'other'))) {
      artifacts.inc({ tenant }, ofTenant.length)
      payloadBytes.inc(
        { tenant },
        sumOf(ofTenant, each => each.payloadBytes),
      )
    }
  }
}

function sumOf<T>(items: T[], numberOf: (item: T) => number): number {
  return items.reduce((sum, item) => sum + numberOf(item), 0)
}
