// What a daemon does between two sleeps, one step after the other and when the test says so: time can be moved in between.
import pLimit from 'p-limit'
import { Registry } from 'prom-client'
import { afterAll } from 'vitest'
import { createPool } from '../../src/db/pool.ts'
import { addOutcome, type BatchOutcome, emptyResult } from '../../src/offload/batch-result.ts'
import { claimInbox, claimSettled, claimWaiting } from '../../src/offload/claim.ts'
import { claimGroups, dueGroups } from '../../src/offload/claim-groups.ts'
import type { PipelineContext } from '../../src/offload/context.ts'
import type { Lease } from '../../src/offload/lease.ts'
import { runBatch } from '../../src/offload/pipeline.ts'
import { createTurns } from '../../src/offload/turns.ts'
import { loadSources, waitsForOthers } from '../../src/source/sources.ts'
import { createObserver } from '../../src/telemetry/observer.ts'
import { createOffloadMetrics } from '../../src/telemetry/offload-metrics.ts'
import type { TestEnvironment } from './environment.ts'

/** Closed after the last test of the file. */
export function workByHand(environment: TestEnvironment, env: Record<string, string> = {}) {
  const config = environment.config(env).offload
  const pool = createPool(environment.urls.daemon, 4, () => undefined)
  afterAll(() => pool.end())
  const context: PipelineContext = {
    pool,
    streamPool: pool,
    store: environment.store,
    config,
    uploadLimit: pLimit(4),
    turns: createTurns(1),
    signal: () => undefined,
    observer: createObserver(createOffloadMetrics([new Registry()], 0), () => null),
    stopping: new AbortController().signal,
  }
  const { leaseMs } = config

  return {
    context,
    /** Until nothing is due. @returns what became of it all */
    work: async (): Promise<BatchOutcome['result']> => {
      const sources = await loadSources(pool)
      const all = [...sources.values()].filter(source => !source.paused)
      const ids = all.map(source => source.id)
      const waiters = all.filter(waitsForOthers)
      const sum: BatchOutcome = { result: emptyResult(0), large: [] }
      const run = async (lease: Lease | null) => {
        if (lease === null) return false
        addOutcome(sum, await runBatch(context, sources, lease, 0))
        return true
      }
      const prompt = all.filter(source => !waitsForOthers(source)).map(source => source.id)
      for (;;) {
        const written = await run((await claimInbox(pool, prompt, 1000, leaseMs)).lease)
        const settled = await run((await claimSettled(pool, waiters, 1000, leaseMs)).lease)
        const groups = await dueGroups(pool, all, config)
        const grouped =
          groups.length > 0 &&
          (await run(await claimGroups(pool, all, groups, 1000, config.packMinBytes, leaseMs)))
        const turns = await run(await claimWaiting(pool, ids, 1000, leaseMs))
        if (!written && !settled && !grouped && !turns) return sum.result
      }
    },
  }
}

/**
 * What our tables remember was longer ago by this: as if so much time had passed. An entry of the inbox has its age and who
 * wrote it in one; where its message is still what was written then, the message is touched along with it.
 */
export async function pass(environment: TestEnvironment, time: string): Promise<void> {
  await environment.admin.query(
    `with same as materialized (
       select i.row_id, m.id, m.xmin as was from lighter.inbox i join conversation_messages m on m.id::text = i.row_id and m.xmin = i.xmin
     ),
     touched as (update conversation_messages m set content = content from same where m.id = same.id),
     i as (update lighter.inbox set enqueued_at = enqueued_at - $1::interval),
     f as (update lighter.flushes set flushed_at = flushed_at - $1::interval)
     update lighter.waiting w
        set enqueued_at = enqueued_at - $1::interval, available_at = available_at - $1::interval,
            row_xmin = case when exists (select from same where same.row_id = w.row_id and same.was = w.row_xmin)
                            then pg_current_xact_id()::xid else row_xmin end`,
    [time],
  )
}
