// Conversations that are moved to another tenant and back, whatever is being done with their rows. The artifacts of a
// moved row stay where they are: it can be read as the tenant that it was of when it was offloaded, and is never lost.
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { between, chance, pick, type Random, uuid } from '../src/demo/random.ts'
import { isDatabaseOutage, isTransactionConflict } from '../src/errors.ts'
import type { Payloads } from './payloads.ts'
import type { Writer } from './writers.ts'

interface MoveOptions {
  admin: pg.Pool
  app: pg.Pool
  random: Random
  /** Its tenant is one that conversations are moved from. */
  wanderer: Writer
  payloads: Payloads
  onWrite: (operation: string, id: string | null) => void
  /** Reads rows as readers do. */
  check: (ids: string[]) => Promise<unknown>
}

const longestWaitMs = 30_000
const rowsMoved = 3

/** Moves whatever the wanderer has just written to, at any moment. */
export async function runMoves(
  { app, random, wanderer, onWrite }: MoveOptions,
  signal: AbortSignal,
): Promise<void> {
  while (!signal.aborted) {
    await sleep(between(random, 100, 6000), undefined, { signal }).catch(() => undefined)
    await passTrouble(async () => {
      if (await move(app, pick(random, wanderer.conversations().slice(-4))))
        onWrite('move conversation', null)
    })
  }
}

/**
 * Moves rows that are offloaded, and writes to them: on top of pointers that their present tenant can't follow. Each step
 * waits for the offload, however slow the machine is.
 */
export async function runWritesToMoved(options: MoveOptions, signal: AbortSignal): Promise<void> {
  const { app, random, wanderer, payloads, onWrite, check } = options
  while (!signal.aborted) {
    await sleep(between(random, 100, 1000), undefined, { signal }).catch(() => undefined)
    const conversation = uuid(random)
    await passTrouble(async () => {
      const ids = Array.from({ length: rowsMoved }, () => uuid(random))
      for (const id of ids) {
        await app.query('select torture.insert_message($1, $2, $3, $4)', [
          id,
          conversation,
          wanderer.tenantId,
          chance(random, 0.7) ? payloads.long() : payloads.heavy(),
        ])
      }
      await untilTried(options, ids, signal)
      if (!(await move(app, conversation))) return
      for (const id of ids) {
        await app.query(`select torture.patch_message($1, $2, 'interactions')`, [
          id,
          `{"tool_interactions": ${payloads.interactions()}}`,
        ])
        onWrite('write to moved', id)
      }
      await untilTried(options, ids, signal)
      await check(ids)
      await move(app, conversation)
    })
    await passTrouble(() => app.query('select torture.delete_conversation($1)', [conversation]))
  }
}

async function move(app: pg.Pool, conversation: string | undefined): Promise<boolean> {
  const { rows } = await app.query<{ done: boolean }>('select torture.move_conversation($1) as done', [
    conversation,
  ])
  return rows[0]?.done === true
}

/** What waits yet counts as tried the third time: who claimed it before may have been killed. */
async function untilTried({ admin }: MoveOptions, ids: string[], signal: AbortSignal): Promise<void> {
  for (const until = performance.now() + longestWaitMs; performance.now() < until && !signal.aborted; ) {
    const waiting = await admin
      .query('select from lighter.jobs where row_id = any ($1) and attempts < 3 limit 1', [ids])
      .then(
        ({ rowCount }) => rowCount !== 0,
        error => isDatabaseOutage(error) || Promise.reject(error),
      )
    if (!waiting) return
    await sleep(200, undefined, { signal }).catch(() => undefined)
  }
}

async function passTrouble(run: () => Promise<unknown>): Promise<void> {
  try {
    await run()
  } catch (error) {
    if (!isDatabaseOutage(error) && !isTransactionConflict(error)) throw error
  }
}
