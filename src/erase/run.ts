// Runs an erasure as sweeps are run: alone, on record, stoppable; and while no compaction is under way.
import type { Counts } from '../sweeps/context.ts'
import { takeSweepLock } from '../sweeps/lock.ts'
import { runSweep, type SweepRun } from '../sweeps/run.ts'
import { erase } from './erase.ts'
import type { Proof } from './proof.ts'
import type { EraseScope } from './scope.ts'

export interface EraseOutcome {
  /** busy: `by` runs at this moment · stopped: in the middle, the next run goes on from there */
  outcome: 'done' | 'stopped' | 'busy'
  by: 'erase' | 'compaction' | null
  counts: Counts
  /** Who is at it, when it is busy. */
  holder?: string
  proof: Proof | null
}

/** @throws as `erase` */
export async function runErasure(
  scope: EraseScope,
  run: Omit<SweepRun, 'name' | 'sweep' | 'dryRun' | 'unlessWithinMs'>,
): Promise<EraseOutcome> {
  const { lock: compaction, holder } = await takeSweepLock(run.lockUrl, 'compaction')
  if (compaction === null) return { outcome: 'busy', by: 'compaction', counts: {}, proof: null, holder }
  const lost = new AbortController()
  const watch = setInterval(() => {
    if (!compaction.isHeld()) lost.abort()
  }, 100)
  let proof: Proof | null = null
  try {
    const { outcome, counts, ...busy } = await runSweep({
      ...run,
      name: 'erase',
      dryRun: false,
      signal: AbortSignal.any([run.signal, lost.signal]),
      sweep: async context => {
        const erased = await erase(context, scope)
        proof = erased.proof
        return erased.counts
      },
    })
    if (outcome === 'busy') return { outcome, by: 'erase', counts, proof, ...busy }
    return { outcome: proof === null ? 'stopped' : 'done', by: null, counts, proof }
  } finally {
    clearInterval(watch)
    await compaction.release()
  }
}
