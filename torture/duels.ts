// Duels: a message is written, and once more while its offload is likely to be under way; then it is left alone.
// Whatever was made of the first version must not stand in the place of the second.
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { between, pick, type Random, uuid } from '../src/demo/random.ts'
import { isDatabaseOutage, isTransactionConflict } from '../src/errors.ts'
import type { Backpressure } from './backpressure.ts'
import type { Payloads } from './payloads.ts'

/** About as long as an offload takes, from the claim to the commit: of a fast machine, of a slow store, of a busy machine. */
const pausesMs = [100, 500, 500, 3000]
const rowsKept = 60

export async function runDuels(
  options: {
    app: pg.Pool
    tenantId: string
    random: Random
    payloads: Payloads
    backpressure: Backpressure
    onWrite: (operation: string, id: string) => void
  },
  signal: AbortSignal,
): Promise<void> {
  const { app, tenantId, random, payloads, backpressure, onWrite } = options
  const conversation = uuid(random)
  const rows: string[] = []
  while (!signal.aborted) {
    await backpressure.wait(signal)
    const id = uuid(random)
    const [call, value] = pick(random, [
      ['replace_message($1, $2)', payloads.heavy()],
      [`patch_message($1, $2, 'interactions')`, `{"tool_interactions": ${payloads.interactions()}}`],
      [`patch_message($1, $2, 'patch')`, payloads.patch()],
    ] as const)
    try {
      await app.query('select torture.insert_message($1, $2, $3, $4)', [
        id,
        conversation,
        tenantId,
        payloads.heavy(),
      ])
      rows.push(id)
      await sleep(between(random, 10, pick(random, pausesMs)))
      await app.query(`select torture.${call}`, [id, value])
      onWrite('duel', id)
      const old = rows.length > rowsKept ? rows.shift() : undefined
      if (old !== undefined) await app.query('select torture.delete_message($1)', [old])
    } catch (error) {
      if (!isDatabaseOutage(error) && !isTransactionConflict(error)) throw error
      await sleep(100)
    }
  }
}
