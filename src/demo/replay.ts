// Writes messages as an application would, on its own login, and remembers what each row must hydrate to.
// Some rows are updated or deleted moments after they were written, while their offload may be under way.
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { LighterError, messageOf } from '../errors.ts'
import type { DemoMessage } from './messages.ts'
import { chance, type Random, seededRandom } from './random.ts'

export interface ReplayOptions {
  seed: number
  /** Messages a second; 0: as fast as they go. */
  perSecond: number
  /** Writers at once. */
  writers: number
  signal: AbortSignal
}

export interface Replay {
  written: number
  updated: number
  deleted: number
  /** What every row must hydrate to: SHA-256 (hex) of its `jsonb::text`, by row id. */
  expected: Map<string, string>
}

/** SHA-256 of the text that Postgres gives a jsonb. */
const hashSql = (jsonb: string) => `encode(sha256(convert_to((${jsonb})::text, 'UTF8')), 'hex')`

const updateShare = 0.04
const rewriteShare = 0.02
const deleteShare = 0.02
const longestPauseMs = 500
/** Changes waiting for their moment; each holds its message. */
const maxPendingChanges = 64
/** Of a message longer than this a second copy for a change is not worth its memory. */
const maxChangedLength = 1_000_000

/** Replays until the messages end or the signal comes. `replay` is filled in as it goes. */
export async function replayMessages(
  app: pg.Pool,
  messages: AsyncIterable<DemoMessage> | Iterable<DemoMessage>,
  options: ReplayOptions,
  replay: Replay,
): Promise<void> {
  const random = seededRandom(options.seed, 'changes')
  const conversations = new Map<string, Promise<unknown>>()
  const changes = new Set<Promise<void>>()
  const iterator = toAsync(messages)
  const started = performance.now()
  let taken = 0

  const writer = async () => {
    while (!options.signal.aborted) {
      const { value: message, done } = await iterator.next()
      if (done === true) return
      if (options.perSecond > 0) {
        const waitMs = started + (taken++ / options.perSecond) * 1000 - performance.now()
        if (waitMs > 0) await sleep(waitMs)
      }
      let conversation = conversations.get(message.conversationId)
      if (conversation === undefined) {
        conversation = app.query(
          'insert into public.conversations (id, tenant_id) values ($1, $2) on conflict do nothing',
          [message.conversationId, message.tenantId],
        )
        conversations.set(message.conversationId, conversation)
      }
      await conversation
      const id = randomUUID()
      const hash = await insertMessage(app, id, message).catch(error => {
        throw new LighterError(
          'message_refused',
          `message ${message.seq} of conversation ${message.conversationId}: ${messageOf(error)}`,
          { cause: error },
        )
      })
      replay.expected.set(id, hash)
      replay.written++
      const change = changeOf(app, id, message, random, replay)
      if (change === null) continue
      const pending: Promise<void> = sleep(random() * longestPauseMs)
        .then(change)
        .finally(() => changes.delete(pending))
      changes.add(pending)
      if (changes.size >= maxPendingChanges) await Promise.race(changes)
    }
  }
  await Promise.all(Array.from({ length: options.writers }, writer))
  await Promise.all(changes)
}

async function insertMessage(app: pg.Pool, id: string, message: DemoMessage): Promise<string> {
  const { rows } = await app.query<{ hash: string }>({
    name: 'insert-message',
    text: `insert into public.conversation_messages (id, conversation_id, role, content, metadata)
           values ($1, $2, $3, $4, $5) returning ${hashSql('metadata')} as hash`,
    values: [id, message.conversationId, message.role, message.content, message.metadata],
  })
  return rows[0]?.hash ?? ''
}

/** What is to happen to a row after it was written; mostly nothing. */
function changeOf(
  app: pg.Pool,
  id: string,
  message: DemoMessage,
  random: Random,
  replay: Replay,
): (() => Promise<void>) | null {
  if (message.metadata.length > maxChangedLength) return null
  const original = message.metadata
  const patch = async (patchJson: string) => {
    const { rows } = await app.query<{ hash: string }>(
      `with change as (
         update public.conversation_messages set metadata = metadata || $2::jsonb where id = $1
       )
       select ${hashSql('$3::jsonb || $2::jsonb')} as hash`,
      [id, patchJson, original],
    )
    replay.expected.set(id, rows[0]?.hash ?? '')
    replay.updated++
  }
  if (chance(random, updateShare)) return () => patch('{"rating": 5, "score": 0.12345678901234567890}')
  if (chance(random, rewriteShare)) {
    return () => patch('{"tool_interactions": [{"tool": "retry", "args": {}, "result": "done"}]}')
  }
  if (chance(random, deleteShare)) {
    return async () => {
      await app.query('delete from public.conversation_messages where id = $1', [id])
      replay.expected.delete(id)
      replay.deleted++
    }
  }
  return null
}

async function* toAsync(
  messages: AsyncIterable<DemoMessage> | Iterable<DemoMessage>,
): AsyncGenerator<DemoMessage, undefined> {
  yield* messages
}
