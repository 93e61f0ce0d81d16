// Conversations of several tenants, shaped as real ones, written as the application writes and offloaded.
import { generateMessages } from '../../src/demo/messages.ts'
import { drained, type TestEnvironment } from './environment.ts'

export interface TenantData {
  tenantId: string
  /** Rows with metadata, by conversation. */
  conversations: Map<string, string[]>
  rowIds: string[]
}

/** Tenants with the most messages first. A daemon must be running. */
export async function writeConversations(
  environment: TestEnvironment,
  options: { messages: number; tenants: number; seed?: number },
): Promise<TenantData[]> {
  const messages = [...generateMessages({ seed: options.seed ?? 7, ...options })]
  const tenants = new Map<string, TenantData>()
  await environment.app.query(
    `insert into conversations (id, tenant_id)
     select distinct on (c) c, t from unnest($1::uuid[], $2::uuid[]) u(c, t) on conflict do nothing`,
    [messages.map(m => m.conversationId), messages.map(m => m.tenantId)],
  )
  const { rows } = await environment.app.query<{ id: string; conversation: string }>(
    `insert into conversation_messages (conversation_id, role, content, metadata)
     select c, r, x, m::jsonb from unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) u(c, r, x, m)
     returning id, conversation_id as conversation`,
    [
      messages.map(m => m.conversationId),
      messages.map(m => m.role),
      messages.map(m => m.content),
      messages.map(m => m.metadata),
    ],
  )
  const tenantOf = new Map(messages.map(m => [m.conversationId, m.tenantId]))
  for (const { id, conversation } of rows) {
    const tenantId = tenantOf.get(conversation) ?? ''
    const data: TenantData = tenants.get(tenantId) ?? { tenantId, conversations: new Map(), rowIds: [] }
    tenants.set(tenantId, data)
    data.rowIds.push(id)
    data.conversations.set(conversation, [...(data.conversations.get(conversation) ?? []), id])
  }
  await drained(environment)
  return [...tenants.values()].sort((a, b) => b.rowIds.length - a.rowIds.length)
}

/** Rows of artifact_refs, whatever their state. */
export async function artifactCount(environment: TestEnvironment, tenantId: string): Promise<number> {
  const { rows } = await environment.admin.query<{ n: number }>(
    'select count(*)::int as n from artifact_refs where tenant_id = $1',
    [tenantId],
  )
  return rows[0]?.n ?? 0
}
