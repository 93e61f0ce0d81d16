// Traces, for who has a collector. What sends them is loaded only then.
import type { Logger } from 'pino'
import type { TracingConfig } from '../config.ts'
import type { TenantId } from '../ids.ts'
import type { Metrics } from './metrics.ts'

export type Facts = Record<string, number | string>

export interface Tracing {
  /** A trace of its own. @param agoMs it has begun so long ago */
  root(name: string, facts: Facts, agoMs: number): TracingSpan
  /** A request to the HTTP API: in the caller's trace, where its `traceparent` names one. */
  request(method: string, headers: Record<string, string | string[] | undefined>): RequestSpan
  /** Sends what there is, for as long as `deadlineMs`; what is left then is lost. */
  stop(deadlineMs: number): Promise<void>
}

export interface TracingSpan {
  child(name: string): TracingSpan
  /** A child that has just ended, after `ms`. */
  past(name: string, ms: number): void
  note(facts: Facts): void
  /** Kept only where TRACES_TENANTS is on. */
  noteTenant(tenantId: TenantId): void
  fail(error: unknown): void
  end(): void
}

export interface RequestSpan {
  end(answer: { route: string; status: number; tenantId: TenantId | '' }): void
}

/** @returns null when no collector is configured */
export async function openTracing(
  config: TracingConfig | null,
  log: Logger,
  metrics: Metrics,
): Promise<Tracing | null> {
  if (config === null) return null
  const { createTracing } = await import('./otlp.ts')
  return createTracing(config, log, metrics.spans)
}
