// What everyone does without packs: one row, one PUT, one INSERT, one UPDATE. Shared by the peers that are
// queues, so that only the queue differs. Two statements and one request a row, the fewest that will do.
import { createHash, randomUUID } from 'node:crypto'
import pg from 'pg'
import { loadConfig } from '../../src/config.ts'
import { objectKey } from '../../src/store/keys.ts'
import { openStore } from '../../src/store/object-store.ts'

export const concurrency = Number(process.env.BENCH_CONCURRENCY)
export const rows = Number(process.env.BENCH_ROWS)

const config = loadConfig(process.env)
export const store = openStore({ ...config.store, concurrency })
export const db = new pg.Pool({
  connectionString: process.env.ADMIN_DATABASE_URL,
  max: Math.min(concurrency, 32),
})

let putCount = 0
export const puts = () => putCount

export async function putPayload(tenantId: string, kind: string, text: string) {
  const id = randomUUID()
  const body = Buffer.from(text)
  const key = objectKey(config.store.prefix, tenantId, kind, new Date(), id, 'json')
  await store.put(key, body, { contentType: 'application/json' })
  putCount++
  return { id, key, size: body.length, sha256: createHash('sha256').update(body).digest('hex') }
}

export async function offloadOne(rowId: string): Promise<void> {
  const { rows: found } = await db.query<{ tenant_id: string; field: boolean; text: string }>({
    name: 'read',
    text: `select c.tenant_id, m.metadata ? 'tool_interactions' as field,
                  coalesce(m.metadata -> 'tool_interactions', m.metadata)::text as text
             from public.conversation_messages m join public.conversations c on c.id = m.conversation_id
            where m.id = $1`,
    values: [rowId],
  })
  const row = found[0]
  if (row === undefined) throw new Error(`no row ${rowId}`)
  const kind = row.field ? 'assistant_message_tool_interactions' : 'assistant_message_metadata'
  const artifact = await putPayload(row.tenant_id, kind, row.text)
  await db.query({
    name: 'write',
    text: `with ref as (
             insert into lighter.loose_artifacts (id, tenant_id, kind, entity_type, r2_key, content_type, size_bytes, sha256)
             values ($2, $3, $4, 'conversation', $5, 'application/json', $6, $7)
           )
           update public.conversation_messages
              set metadata = case when $4 = 'assistant_message_metadata'
                then jsonb_build_object('artifact_metadata_ref', $2::text)
                else (metadata - 'tool_interactions') || jsonb_build_object('tool_interactions_ref', $2::text) end
            where id = $1`,
    values: [rowId, artifact.id, row.tenant_id, kind, artifact.key, artifact.size, artifact.sha256],
  })
}

export async function rowIds(): Promise<string[]> {
  return (await db.query<{ id: string }>('select id from public.conversation_messages')).rows.map(
    row => row.id,
  )
}

/** Resolves after `rows` calls of `count`. */
export function countdown() {
  const finished = Promise.withResolvers<void>()
  let left = rows
  return {
    done: finished.promise,
    count: () => {
      if (--left === 0) finished.resolve()
    },
  }
}
