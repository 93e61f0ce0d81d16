// Writers write no faster than the daemons offload, however often those are killed: behind a queue that only grows,
// nearly nothing of what is written would be offloaded before the end.
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { isDatabaseOutage } from '../src/errors.ts'

export interface Backpressure {
  /** Looks at the queue until it is told to stop. */
  run(signal: AbortSignal): Promise<void>
  /** Ends when there is room, or after `longestPauseMs`: no write waits for ever. */
  wait(signal: AbortSignal): Promise<void>
}

const waitingAtMost = 100
const lookEveryMs = 300
const longestPauseMs = 3000

export function createBackpressure(admin: pg.Pool): Backpressure {
  let crowded = false
  return {
    run: async signal => {
      while (!signal.aborted) {
        try {
          const { rows } = await admin.query<{ crowded: boolean }>(
            `select count(*) > $1 as crowded from (select from lighter.jobs where place <> 'lease' and available_at <= now() limit $1 + 1) j`,
            [waitingAtMost],
          )
          crowded = rows[0]?.crowded ?? false
        } catch (error) {
          if (!isDatabaseOutage(error)) throw error
        }
        await sleep(lookEveryMs, undefined, { signal }).catch(() => undefined)
      }
    },
    wait: async signal => {
      const until = performance.now() + longestPauseMs
      while (crowded && performance.now() < until && !signal.aborted) await sleep(lookEveryMs)
    },
  }
}
