// Conversations that are moved to another tenant and back, whatever is being done with their rows. The artifacts of a
// moved row stay where they are: it can be read as the tenant that it was of when it was offloaded, and is never lost.
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { between, chance, pick, type Random } from '../src/demo/random.ts'
import { isDatabaseOutage, isTransactionConflict } from '../src/errors.ts'
import type { Payloads } from './payloads.ts'
import type { Writer } from './writers.ts'

type OnWrite = (operation: string, id: string | null) => void

export async function runMoves(
  options: { app: pg.Pool; random: Random; wanderer: Writer; payloads: Payloads; onWrite: OnWrite },
  signal: AbortSignal,
): Promise<void> {
  const { app, random, wanderer, payloads, onWrite } = options
  // On top of pointers that its present tenant can't follow.
  const writeToMoved = async (conversation: string) => {
    const { rows } = await app.query<{ id: string }>(
      `select id from conversation_messages where conversation_id = $1 and metadata ? 'artifact_metadata_ref' limit 10`,
      [conversation],
    )
    for (const { id } of rows) {
      await app.query(`select torture.patch_message($1, $2, 'interactions')`, [
        id,
        `{"tool_interactions": ${payloads.interactions()}}`,
      ])
      onWrite('interactions', id)
    }
  }
  while (!signal.aborted) {
    await sleep(between(random, 100, 1500), undefined, { signal }).catch(() => undefined)
    try {
      // The last one is being written to.
      const conversation = pick(random, wanderer.conversations().slice(-4))
      const { rows } = await app.query<{ done: boolean }>('select torture.move_conversation($1) as done', [
        conversation,
      ])
      if (rows[0]?.done !== true) continue
      onWrite('move conversation', null)
      if (chance(random, 0.3)) continue
      await writeToMoved(conversation)
      // As long as an offload may take here: it must find the row where it is.
      await sleep(between(random, 500, 6000), undefined, { signal }).catch(() => undefined)
    } catch (error) {
      if (!isDatabaseOutage(error) && !isTransactionConflict(error)) throw error
    }
  }
}
