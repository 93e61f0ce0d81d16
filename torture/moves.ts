// Conversations that are moved to another tenant and back, whatever is being done with their rows. The artifacts of a
// moved row stay where they are: it can be read as the tenant that it was of when it was offloaded, and is never lost.
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { between, pick, type Random } from '../src/demo/random.ts'
import { isDatabaseOutage, isTransactionConflict } from '../src/errors.ts'
import type { Writer } from './writers.ts'

export async function runMoves(
  options: { app: pg.Pool; random: Random; wanderer: Writer; onMove: () => void },
  signal: AbortSignal,
): Promise<void> {
  const { app, random, wanderer, onMove } = options
  while (!signal.aborted) {
    await sleep(between(random, 100, 1500), undefined, { signal }).catch(() => undefined)
    try {
      // The last one is being written to.
      const conversation = pick(random, wanderer.conversations().slice(-4))
      const { rows } = await app.query<{ done: boolean }>('select torture.move_conversation($1) as done', [
        conversation,
      ])
      if (rows[0]?.done === true) onMove()
    } catch (error) {
      if (!isDatabaseOutage(error) && !isTransactionConflict(error)) throw error
    }
  }
}
