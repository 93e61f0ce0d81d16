// Heavy rows of many tenants that come in one after the other over a simulated span of time, written as they come.
import type pg from 'pg'
import type { DemoMessage } from '../../src/demo/messages.ts'
import { pickIndex, runningTotals, seededRandom, uuid } from '../../src/demo/random.ts'
import { heavyMessages } from './messages.ts'

export interface Arrival {
  id: string
  tenantId: string
  conversationId: string
  metadata: string
}

/** What was made once is kept: each run sees the same messages. */
const made: DemoMessage[] = []
let source: Generator<DemoMessage> | null = null

function messageAt(index: number): DemoMessage {
  source ??= heavyMessages('real', Number.POSITIVE_INFINITY)
  while (made.length <= index) made.push(source.next().value)
  const message = made[index]
  if (message === undefined) throw new Error('the generator of messages has ended')
  return message
}

/**
 * How much each of `tenants` writes, in order of size: all the same, or as Zipf has it with exponent 1. With a `factor` one of so many
 * neighbours stands for them, with their mean.
 */
export function tenantShares(tenants: number, isZipf: boolean, factor: number): number[] {
  return Array.from({ length: Math.round(tenants / factor) }, (_, part) => {
    let sum = 0
    for (let rank = part * factor + 1; rank <= (part + 1) * factor; rank++) sum += isZipf ? 1 / rank : 1
    return sum
  })
}

/** The real mix, each conversation given to a tenant. */
export function* mixedArrivals(shares: number[]): Generator<Arrival> {
  const random = seededRandom(11, 'arrivals')
  const totals = runningTotals(shares)
  const tenantIds = shares.map(() => uuid(random))
  const tenantOf = new Map<string, string>()
  for (let index = 0; ; index++) {
    const { conversationId, metadata } = messageAt(index)
    const tenantId = tenantOf.get(conversationId) ?? tenantIds[pickIndex(random, totals)] ?? ''
    tenantOf.set(conversationId, tenantId)
    yield { id: uuid(random), tenantId, conversationId, metadata }
  }
}

const isCall = (message: DemoMessage) => message.metadata.includes('"tool_interactions"')

/**
 * The real mix too, in conversations of `rows` rows: tool calls, and a trace at the end. Of `open` of them that go on at the same
 * time each gets a row now and then. Traces that end none are conversations of their own.
 */
export function* conversationArrivals(tenants: number, open: number, rows: number): Generator<Arrival> {
  const random = seededRandom(11, 'conversations')
  const tenantIds = Array.from({ length: tenants }, () => uuid(random))
  const begin = () => ({
    id: uuid(random),
    tenantId: tenantIds[Math.floor(random() * tenants)] ?? '',
    calls: 0,
  })
  const conversations = Array.from({ length: open }, begin)
  for (let index = 0; ; index++) {
    const message = messageAt(index)
    const going = conversations.filter(each => each.calls < rows - 1)
    const ending = conversations.findIndex(each => each.calls === rows - 1)
    let conversation = begin()
    if (isCall(message) && going.length > 0) {
      conversation = going[Math.floor(random() * going.length)] ?? conversation
      conversation.calls++
    } else if (!isCall(message) && ending !== -1) {
      conversation = conversations[ending] ?? conversation
      conversations[ending] = begin()
    }
    const { id: conversationId, tenantId } = conversation
    yield { id: uuid(random), tenantId, conversationId, metadata: message.metadata }
  }
}

/** Written and queued in one transaction, as the trigger does, with times in the past. @param times ms since 1970 */
export async function writeArrivals(
  writer: pg.ClientBase,
  arrivals: Arrival[],
  times: number[],
): Promise<void> {
  for (let from = 0; from < arrivals.length; from += 1000) {
    const page = arrivals.slice(from, from + 1000)
    await writer.query(
      `insert into public.conversations (id, tenant_id) select distinct * from unnest($1::uuid[], $2::uuid[]) on conflict do nothing`,
      [page.map(a => a.conversationId), page.map(a => a.tenantId)],
    )
    await writer.query(
      `with written as (
         insert into public.conversation_messages (id, conversation_id, role, content, metadata, created_at)
         select id, conversation_id, 'assistant', 'x', metadata, to_timestamp(ms / 1000)
           from unnest($1::uuid[], $2::uuid[], $3::jsonb[], $4::float8[]) a(id, conversation_id, metadata, ms)
         returning id, created_at
       )
       insert into lighter.inbox (source_id, row_id, enqueued_at)
       select (select id from lighter.sources), id::text, created_at from written order by created_at`,
      [
        page.map(a => a.id),
        page.map(a => a.conversationId),
        page.map(a => a.metadata),
        times.slice(from, from + 1000),
      ],
    )
  }
}
