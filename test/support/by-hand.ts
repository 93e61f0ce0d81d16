// What a daemon does between two sleeps, when the test says so: time can be moved in between.
import { afterAll } from 'vitest'
import { createHandWorker } from '../../bench/support/hand-worker.ts'
import { createPool } from '../../src/db/pool.ts'
import type { BatchResult } from '../../src/offload/batch-result.ts'
import { loadSources } from '../../src/source/sources.ts'
import type { TestEnvironment } from './environment.ts'

/** Closed after the last test of the file. */
export function workByHand(environment: TestEnvironment, env: Record<string, string> = {}) {
  const pool = createPool(environment.urls.daemon, 4, () => undefined)
  afterAll(() => pool.end())
  const worker = createHandWorker({
    pool,
    store: environment.store,
    config: environment.config(env).offload,
  })
  return {
    context: worker.context,
    /** Until nothing is due. @returns what became of it all */
    work: async (): Promise<BatchResult> => {
      const sources = await loadSources(pool)
      return worker.work(() => sources)
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
