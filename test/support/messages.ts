// Realistic messages in bulk, written as the application does.
import { generateMessages } from '../../src/demo/messages.ts'
import type { TestEnvironment } from './environment.ts'

export interface WrittenMessage {
  id: string
  tenantId: string
}

/** Writes conversations and messages into the example tables, many to a statement; returns the messages. */
export async function writeMessages(
  environment: TestEnvironment,
  options: { messages: number; tenants: number; seed: number; schema?: string },
): Promise<WrittenMessage[]> {
  const schema = options.schema ?? 'public'
  const messages = [...generateMessages(options)]
  const conversations = new Map(messages.map(m => [m.conversationId, m.tenantId]))
  await environment.app.query(
    `insert into ${schema}.conversations (id, tenant_id) select * from unnest($1::uuid[], $2::uuid[])`,
    [[...conversations.keys()], [...conversations.values()]],
  )
  const { rows } = await environment.app.query<{ id: string; conversationId: string }>(
    `insert into ${schema}.conversation_messages (conversation_id, role, content, metadata)
     select * from unnest($1::uuid[], $2::text[], $3::text[], $4::jsonb[])
     returning id, conversation_id as "conversationId"`,
    [
      messages.map(m => m.conversationId),
      messages.map(m => m.role),
      messages.map(m => m.content),
      messages.map(m => m.metadata),
    ],
  )
  return rows.map(row => ({ id: row.id, tenantId: conversations.get(row.conversationId) ?? '' }))
}

/** Rows of the table that carry a pointer. */
export async function offloadedRows(
  environment: TestEnvironment,
  table = 'public.conversation_messages',
  tenantId: string | null = null,
): Promise<number> {
  const { rows } = await environment.admin.query<{ n: number }>(
    `select count(*)::int as n from ${table} m
      where m.metadata ?| array['tool_interactions_ref', 'artifact_metadata_ref']
        and ($1::uuid is null or (select c.tenant_id from public.conversations c where c.id = m.conversation_id) = $1)`,
    [tenantId],
  )
  return rows[0]?.n ?? 0
}
