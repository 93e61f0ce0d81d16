// Sends spans to an OpenTelemetry collector, as JSON over HTTP. Nothing here waits for it, or fails by it.
import { setTimeout } from 'node:timers/promises'
import {
  type Attributes,
  type Context,
  DiagLogLevel,
  defaultTextMapGetter,
  diag,
  ROOT_CONTEXT,
  type Span,
  SpanKind,
  SpanStatusCode,
  trace,
} from '@opentelemetry/api'
import { W3CTraceContextPropagator } from '@opentelemetry/core'
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-http'
import { resourceFromAttributes } from '@opentelemetry/resources'
import {
  AlwaysOffSampler,
  AlwaysOnSampler,
  BatchSpanProcessor,
  ParentBasedSampler,
  type ReadableSpan,
  type Sampler,
  type SpanExporter,
  type SpanProcessor,
  TraceIdRatioBasedSampler,
  TracerProvider,
} from '@opentelemetry/sdk-trace'
import type { Logger } from 'pino'
import type { TracingConfig } from '../config.ts'
import { messageOf } from '../errors.ts'
import { version } from '../version.ts'
import type { Metrics } from './metrics.ts'
import type { Facts, Tracing, TracingSpan } from './tracing.ts'

/** Longest text of an attribute: an error of Postgres may quote what it was given. */
const maxAttributeChars = 300
/** Spans of one request to the collector. */
const maxExportSpans = 512

export function createTracing(config: TracingConfig, log: Logger, count: Metrics['spans']): Tracing {
  // Its own complaints about a collector repeat with every export; ours is said once.
  diag.setLogger(
    {
      error: message => log.debug({ message }, 'tracing'),
      warn: message => log.debug({ message }, 'tracing'),
      info: () => undefined,
      debug: () => undefined,
      verbose: () => undefined,
    },
    { logLevel: DiagLogLevel.WARN, suppressOverrideMessage: true },
  )
  const exporter = new OTLPTraceExporter({
    url: config.url,
    timeoutMillis: config.timeoutMs,
    ...(config.headers !== null && { headers: config.headers }),
  })
  const provider = new TracerProvider({
    resource: resourceFromAttributes({
      ...config.resource,
      'service.name': config.serviceName,
      'service.version': version,
    }),
    sampler: samplerOf(config),
    spanLimits: { attributeValueLengthLimit: maxAttributeChars },
    spanProcessors: [boundedProcessor(config, exporter, log, count)],
  })
  const tracer = provider.getTracer('pg-lighter', version)
  const propagator = new W3CTraceContextPropagator()

  const wrap = (span: Span, parent: Context): TracingSpan => {
    const context = trace.setSpan(parent, span)
    return {
      child: name => wrap(tracer.startSpan(name, {}, context), context),
      past: (name, ms) => {
        const now = Date.now()
        tracer.startSpan(name, { startTime: now - ms }, context).end(now)
      },
      note: facts => void span.setAttributes(named(facts)),
      noteTenant: tenantId => {
        if (config.tenants) span.setAttribute('lighter.tenant_id', tenantId)
      },
      fail: error => fail(span, error),
      end: () => span.end(),
    }
  }

  return {
    root: (name, facts, agoMs) =>
      wrap(
        tracer.startSpan(name, { startTime: Date.now() - agoMs, attributes: named(facts) }, ROOT_CONTEXT),
        ROOT_CONTEXT,
      ),
    request: (method, headers) => {
      const caller = propagator.extract(ROOT_CONTEXT, headers, defaultTextMapGetter)
      const span = tracer.startSpan(method, { kind: SpanKind.SERVER }, caller)
      return {
        end: ({ route, status, tenantId }) => {
          span.updateName(`${method} ${route}`)
          span.setAttributes({
            'http.request.method': method,
            'http.route': route,
            'http.response.status_code': status,
            ...(config.tenants && tenantId !== '' && { 'lighter.tenant_id': tenantId }),
          })
          if (status >= 500) span.setStatus({ code: SpanStatusCode.ERROR })
          span.end()
        },
      }
    },
    stop: async deadlineMs => {
      const ended = provider.shutdown().catch(() => undefined) // the exporter has said so
      await Promise.race([ended, setTimeout(deadlineMs, undefined, { ref: false })])
    },
  }
}

function named(facts: Facts): Attributes {
  return Object.fromEntries(Object.entries(facts).map(([name, value]) => [`lighter.${name}`, value]))
}

/** Without the stack, and the message cut to `maxAttributeChars`. */
function fail(span: Span, error: unknown): void {
  const message = messageOf(error).slice(0, maxAttributeChars)
  const code = error instanceof Error && 'code' in error ? String(error.code) : undefined
  span.recordException({ name: code ?? (error instanceof Error ? error.name : 'Error'), message })
  span.setStatus({ code: SpanStatusCode.ERROR, message })
}

function samplerOf({ sampler, samplerRatio }: TracingConfig): Sampler {
  const root = sampler.endsWith('always_off')
    ? new AlwaysOffSampler()
    : sampler.endsWith('traceidratio')
      ? new TraceIdRatioBasedSampler(samplerRatio)
      : new AlwaysOnSampler()
  return sampler.startsWith('parentbased_') ? new ParentBasedSampler({ root }) : root
}

/** At most `queueSpans` wait or are on their way; with more the newest are dropped, and counted. */
function boundedProcessor(
  { queueSpans, scheduleMs, timeoutMs }: TracingConfig,
  exporter: SpanExporter,
  log: Logger,
  count: Metrics['spans'],
): SpanProcessor {
  let waiting = 0
  let failing = false
  const counting: SpanExporter = {
    export: (spans: ReadableSpan[], done) =>
      exporter.export(spans, result => {
        waiting -= spans.length
        const failed = result.error !== undefined || result.code !== 0
        count(failed ? 'failed' : 'exported', spans.length)
        if (failed && !failing)
          log.warn({ error: messageOf(result.error) }, 'the collector does not take spans: they are lost')
        if (!failed && failing) log.info('the collector takes spans again')
        failing = failed
        done(result)
      }),
    shutdown: () => exporter.shutdown(),
  }
  const processor = new BatchSpanProcessor({
    exporter: counting,
    maxQueueSize: queueSpans,
    maxExportBatchSize: Math.min(maxExportSpans, queueSpans),
    scheduledDelayMillis: scheduleMs,
    exportTimeoutMillis: timeoutMs + 1000,
  })
  return {
    onStart: (span, context) => processor.onStart(span, context),
    onEnd: span => {
      if ((span.spanContext().traceFlags & 1) === 0) return
      if (waiting >= queueSpans) return count('dropped', 1)
      waiting++
      processor.onEnd(span)
    },
    forceFlush: () => processor.forceFlush(),
    shutdown: () => processor.shutdown(),
  }
}
