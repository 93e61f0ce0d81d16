// The read path of a back end that writes plain rows and lets pg-lighter offload them: read the rows as ever, then
// hydrate. What is in R2 comes from there; rows from before, and those that are not offloaded yet, have their value
// inline and stay as they are, without a request.
//
//   DATABASE_URL=… LIGHTER_URL=http://127.0.0.1:4001 TENANT_ID=… CONVERSATION_ID=… node read-path.ts
import pg from 'pg'
import { createLighterClient, type LighterClient } from 'pg-lighter'

interface Message {
  id: string
  role: string
  content: string
  /** Text, not an object: JavaScript's numbers would round some of Postgres's. */
  metadata: string | null
}

/** A conversation's messages with their whole metadata, tool interactions included. */
export async function readMessages(
  pool: pg.Pool,
  lighter: LighterClient,
  conversationId: string,
): Promise<Message[]> {
  const { rows } = await pool.query<Message>(
    `select id, role, content, metadata::text as metadata
       from conversation_messages where conversation_id = $1 order by id`,
    [conversationId],
  )
  return lighter.hydrateMany(rows, {
    // The page is shown all the same, with what the row has; without this the call throws.
    onError: ({ row, error }) =>
      console.error(`message ${row.id} is shown without its payload: ${error.code}`),
  })
}

if (import.meta.main) {
  const { DATABASE_URL, LIGHTER_URL, LIGHTER_TOKEN, TENANT_ID, CONVERSATION_ID } = process.env
  const pool = new pg.Pool({ connectionString: DATABASE_URL })
  const lighter = createLighterClient({
    baseUrl: LIGHTER_URL ?? 'http://127.0.0.1:4001',
    token: LIGHTER_TOKEN,
    tenantId: TENANT_ID,
  })
  for (const message of await readMessages(pool, lighter, CONVERSATION_ID ?? '')) {
    console.log(JSON.stringify({ id: message.id, metadata: message.metadata }))
  }
  await pool.end()
}
