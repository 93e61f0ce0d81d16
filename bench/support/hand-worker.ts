// What a daemon does between two sleeps, one step after the other and only when told: time can be moved in between.
import pLimit from 'p-limit'
import type pg from 'pg'
import { Registry } from 'prom-client'
import type { OffloadConfig } from '../../src/config.ts'
import {
  addOutcome,
  type BatchOutcome,
  type BatchResult,
  emptyResult,
} from '../../src/offload/batch-result.ts'
import { claimInbox, claimSettled, claimWaiting } from '../../src/offload/claim.ts'
import { claimGroups, dueGroups, type Group } from '../../src/offload/claim-groups.ts'
import type { PipelineContext } from '../../src/offload/context.ts'
import { runLargeRow } from '../../src/offload/large-row.ts'
import type { Lease } from '../../src/offload/lease.ts'
import { noNamedTenants } from '../../src/offload/name-tenants.ts'
import { runBatch } from '../../src/offload/pipeline.ts'
import { createTurns } from '../../src/offload/turns.ts'
import { type Source, waitsForOthers } from '../../src/source/sources.ts'
import type { ObjectStore } from '../../src/store/object-store.ts'
import { createObserver } from '../../src/telemetry/observer.ts'
import { createOffloadMetrics } from '../../src/telemetry/offload-metrics.ts'
import { firstGroups, runRows, shareOf } from '../../src/wake/claims.ts'

export interface HandWorkerOptions {
  pool: pg.Pool
  store: ObjectStore
  config: OffloadConfig
  /** Entries of the inbox that are grouped at once; default: as a daemon does. */
  entriesAtOnce?: number
}

export interface HandWorker {
  context: PipelineContext
  /**
   * Until nothing is due: claims as large as a daemon's, one after the other.
   * @param sources asked before each claim, so that their intervals can follow a clock of the caller's
   */
  work(sources: () => Map<number, Source>): Promise<BatchResult>
}

export function createHandWorker(options: HandWorkerOptions): HandWorker {
  const { pool, store, config, entriesAtOnce = runRows } = options
  const { batchRows, leaseMs } = config
  const context: PipelineContext = {
    pool,
    streamPool: pool,
    store,
    config,
    uploadLimit: pLimit(4),
    turns: createTurns(1),
    namedTenants: noNamedTenants(),
    signal: () => undefined,
    observer: createObserver(createOffloadMetrics([new Registry()], 0), () => null),
    stopping: new AbortController().signal,
  }

  const fromGroups = (groups: Group[], sources: Source[]) =>
    groups.length === 0
      ? null
      : claimGroups(
          pool,
          sources,
          groups.map(group => shareOf(group, config)),
          leaseMs,
        )

  return {
    context,
    work: async sources => {
      const sum: BatchOutcome = { result: emptyResult(0), large: [] }
      for (;;) {
        const run = async (lease: Lease | null) => {
          if (lease === null) return false
          const { work, ...outcome } = await runBatch(context, sources(), lease, 0)
          addOutcome(sum, outcome)
          for (const row of outcome.large)
            addOutcome(sum, { result: await runLargeRow(context, row, work), large: [] })
          return true
        }
        const active = () => [...sources().values()].filter(source => !source.paused)
        const waiters = () => active().filter(waitsForOthers)
        const prompt = active().filter(source => !waitsForOthers(source))
        const written = await run(
          (
            await claimInbox(
              pool,
              prompt.map(source => source.id),
              batchRows,
              leaseMs,
            )
          ).lease,
        )
        const settled = await run((await claimSettled(pool, waiters(), entriesAtOnce, leaseMs)).lease)
        const grouped = await run(
          await fromGroups(firstGroups((await dueGroups(pool, active(), config)).groups, config), active()),
        )
        const turns = await run(
          await claimWaiting(
            pool,
            active().map(source => source.id),
            batchRows,
            leaseMs,
          ),
        )
        if (!written && !settled && !grouped && !turns) return sum.result
      }
    },
  }
}
