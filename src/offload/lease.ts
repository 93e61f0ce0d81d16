// A lease that lasts as long as the work.
import { extendLease, type Job } from './claim.ts'
import type { PipelineContext } from './context.ts'

/** Extends the lease of jobs and objects three times per lease for as long as the work goes on. */
export function keepLease(
  context: PipelineContext,
  jobs: Job[],
  objects: { tenantId: string; key: string }[],
): () => void {
  const timer = setInterval(() => {
    // A lost lease is no harm: another daemon does the work again, and the row's version lets only one of them commit.
    extendLease(context.pool, jobs, objects, context.config.leaseMs).catch(() => undefined)
  }, context.config.leaseMs / 3)
  return () => clearInterval(timer)
}
