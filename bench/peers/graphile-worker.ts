// graphile-worker 0.18 with the settings of its performance page: a local queue and batched completion.
// https://worker.graphile.org/docs/performance
import { Logger, makeWorkerUtils, run } from 'graphile-worker'
import { runContestant } from '../support/contestant.ts'
import { concurrency, countdown, db, offloadOne, puts, rowIds } from './one-row.ts'

const { done, count } = countdown()
const connectionString = process.env.ADMIN_DATABASE_URL ?? ''
const utils = await makeWorkerUtils({ connectionString })
await utils.migrate()
const runner = await run({
  preset: {
    worker: {
      connectionString,
      concurrentJobs: concurrency,
      maxPoolSize: Math.min(concurrency + 1, 32),
      localQueue: { size: 500 },
      completeJobBatchDelay: 0,
      failJobBatchDelay: 0,
    },
  },
  logger: new Logger(() => () => undefined),
  noHandleSignals: true,
  taskList: {
    offload: async payload => {
      await offloadOne((payload as { id: string }).id)
      count()
    },
  },
})

await runContestant({
  start: async () => undefined,
  enqueue: async () => {
    const ids = await rowIds()
    await utils.addJobs(ids.map(id => ({ identifier: 'offload', payload: { id } })))
  },
  done,
  stop: async () => {
    await runner.stop()
    await utils.release()
    await db.end()
  },
  puts,
})
