// What the contestants have to move: heavy messages of five tenants, in the real distribution or of one size.
import type pg from 'pg'
import { type DemoMessage, generateMessages } from '../../src/demo/messages.ts'
import { seededRandom, uuid } from '../../src/demo/random.ts'

const tenants = 5

/**
 * `real`: tool calls and traces as they occur (median 939 bytes) · `calls`: the tool calls among them, without the
 * traces, which are few and most of the bytes · else payloads of so many KB each.
 */
export type Workload = 'real' | 'calls' | 4 | 16 | 64

/** Only messages that are to be offloaded. */
export function* heavyMessages(workload: Workload, count: number): Generator<DemoMessage> {
  let made = 0
  for (const message of generateMessages({ seed: 7, messages: Number.POSITIVE_INFINITY, tenants })) {
    if (made === count) return
    if (typeof workload === 'number') break
    const hasCalls = message.metadata.includes('"tool_interactions"')
    const isLong = message.metadata.length > 8000
    if (workload === 'real' ? !hasCalls && !isLong : !hasCalls || isLong) continue
    yield message
    made++
  }
  if (typeof workload === 'number') yield* sizedMessages(workload * 1024, count)
}

/** Texts out of the same generator, cut to one size: they compress as real ones do. */
function* sizedMessages(bytes: number, count: number): Generator<DemoMessage> {
  const random = seededRandom(7, 'sized')
  const tenantIds = Array.from({ length: tenants }, () => uuid(random))
  const conversations = tenantIds.map(() => uuid(random))
  const source = heavyMessages('real', Number.POSITIVE_INFINITY)
  let text = ''
  for (let n = 0; n < count; n++) {
    // ASCII only: a cut must not split a character.
    while (text.length < bytes) text += (source.next().value?.metadata ?? '').replace(/[^ -~]/g, '')
    const document = JSON.stringify(text.slice(0, Math.floor(bytes * 0.85)))
    text = text.slice(bytes)
    const tenant = n % tenants
    yield {
      tenantId: tenantIds[tenant] ?? '',
      conversationId: conversations[tenant] ?? '',
      seq: n,
      role: 'assistant',
      content: 'x',
      metadata: `{"model":"m","tool_interactions":[{"tool":"search","args":{},"result":${document}}]}`,
    }
  }
}

/** Fills the tables without queueing anything; returns the rows' ids. */
export async function loadMessages(admin: pg.Pool, messages: Iterable<DemoMessage>): Promise<string[]> {
  const ids: string[] = []
  await admin.query('alter table public.conversation_messages disable trigger user')
  let page: DemoMessage[] = []
  let pageBytes = 0
  const flush = async () => {
    if (page.length === 0) return
    await admin.query(
      `insert into public.conversations (id, tenant_id) select distinct * from unnest($1::uuid[], $2::uuid[]) on conflict do nothing`,
      [page.map(m => m.conversationId), page.map(m => m.tenantId)],
    )
    const { rows } = await admin.query<{ id: string }>(
      `insert into public.conversation_messages (conversation_id, role, content, metadata)
       select * from unnest($1::uuid[], $2::text[], $3::text[], $4::jsonb[]) returning id`,
      [
        page.map(m => m.conversationId),
        page.map(m => m.role),
        page.map(m => m.content),
        page.map(m => m.metadata),
      ],
    )
    ids.push(...rows.map(row => row.id))
    page = []
    pageBytes = 0
  }
  for (const message of messages) {
    page.push(message)
    pageBytes += message.metadata.length
    if (page.length === 1000 || pageBytes > 8_000_000) await flush()
  }
  await flush()
  await admin.query('alter table public.conversation_messages enable trigger user')
  await admin.query('vacuum analyze public.conversation_messages')
  return ids
}
