// Makes metrics and spans of what the pipeline tells.
import { type Observer, type StepName, stepNames, type Work } from '../offload/observer.ts'
import type { OffloadMetrics } from './offload-metrics.ts'
import type { Tracing, TracingSpan } from './tracing.ts'

/** Objects of one upload that have a span of their own. */
const maxObjectSpans = 50

const isStep = (name: string): name is StepName => stepNames.some(step => step === name)

/** @param tracing the one of now: it is opened after the pipeline is made; null without a collector */
export function createObserver(metrics: OffloadMetrics, tracing: () => Tracing | null): Observer {
  /** @param hold told of the bytes that the whole batch holds */
  const workOf = (span: TracingSpan | null, hold: (bytes: number) => void): Work => {
    let objects = 0
    return {
      part: async (name, run) => {
        if (name === 'object' && ++objects > maxObjectSpans) {
          span?.note({ objects_without_span: objects - maxObjectSpans })
          return run(workOf(null, hold))
        }
        const part = span?.child(name) ?? null
        const began = performance.now()
        if (name === 'large row') metrics.inFlight({ largeRows: 1 })
        try {
          return await run(workOf(part, hold))
        } catch (error) {
          part?.fail(error)
          throw error
        } finally {
          part?.end()
          if (isStep(name)) metrics.step(name, (performance.now() - began) / 1000)
          if (name === 'large row') metrics.inFlight({ largeRows: -1 })
        }
      },
      note: facts => span?.note(facts),
      noteTenant: tenantId => span?.noteTenant(tenantId),
      holds: hold,
    }
  }

  return {
    batch: async (rows, claimMs, run) => {
      metrics.claimed(rows)
      metrics.step('claim', claimMs / 1000)
      metrics.inFlight({ batches: 1 })
      let held = 0
      const hold = (bytes: number) => {
        metrics.inFlight({ bytes: bytes - held })
        held = bytes
      }
      const span = tracing()?.root('batch', { claimed_rows: rows }, claimMs) ?? null
      span?.past('claim', claimMs)
      try {
        return await run(workOf(span, hold))
      } catch (error) {
        span?.fail(error)
        throw error
      } finally {
        span?.end()
        hold(0)
        metrics.inFlight({ batches: -1 })
      }
    },
    committed: metrics.committed,
    returned: metrics.returned,
  }
}
