// pg-boss 12 with batches, fetched without a pause while they come back full.
// https://github.com/timgit/pg-boss/blob/master/docs/api/workers.md
import pLimit from 'p-limit'
import { PgBoss } from 'pg-boss'
import { runContestant } from '../support/contestant.ts'
import { concurrency, countdown, db, offloadOne, puts, rowIds } from './one-row.ts'

const { done, count } = countdown()
const boss = new PgBoss({ connectionString: process.env.ADMIN_DATABASE_URL ?? '', useListenNotify: true })
boss.on('error', error => process.stderr.write(`${error}\n`))
const limit = pLimit(concurrency)

await runContestant({
  start: async () => {
    await boss.start()
    await boss.createQueue('offload', { notify: true })
    await boss.work<{ id: string }>(
      'offload',
      // Two fetchers of batches, so that one fetches while the other works.
      { batchSize: 200, localConcurrency: 2, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5 },
      async jobs => {
        await Promise.all(jobs.map(job => limit(() => offloadOne(job.data.id))))
        for (const _ of jobs) count()
      },
    )
  },
  enqueue: async () => {
    const ids = await rowIds()
    await boss.insert(
      'offload',
      ids.map(id => ({ data: { id } })),
    )
  },
  done,
  stop: async () => {
    await boss.stop({ graceful: false })
    await db.end()
  },
  puts,
})
