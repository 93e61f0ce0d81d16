// Of the requests to the object store.
import { Counter, Histogram, type Registry } from 'prom-client'
import type { StoreAnswer } from '../store/object-store.ts'

export interface StoreMetrics {
  answered(answer: StoreAnswer): void
}

export function createStoreMetrics(registers: Registry[]): StoreMetrics {
  const requests = new Counter({
    name: 'lighter_store_requests_total',
    help: 'Requests to the object store, repeated ones included, by operation (as S3 calls it) and outcome: ok, not_found, precondition_failed, denied, throttled, refused, server_error, no_answer.',
    labelNames: ['operation', 'outcome'],
    registers,
  })
  const retries = new Counter({
    name: 'lighter_store_retries_total',
    help: 'Those of them that repeated one that had failed, by operation.',
    labelNames: ['operation'],
    registers,
  })
  const seconds = new Histogram({
    name: 'lighter_store_request_duration_seconds',
    help: 'From the request to the head of its answer, by operation.',
    labelNames: ['operation'],
    buckets: [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120],
    registers,
  })
  return {
    answered: ({ operation, outcome, attempt, seconds: took }) => {
      requests.inc({ operation, outcome })
      seconds.observe({ operation }, took)
      if (attempt > 1) retries.inc({ operation })
    },
  }
}
