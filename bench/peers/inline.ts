// The original way: the application itself stores the payload, then writes the artifact, then the message.
import pLimit from 'p-limit'
import { splitObject } from '../../src/artifacts/raw-json.ts'
import { runContestant } from '../support/contestant.ts'
import { heavyMessages, type Workload } from '../support/messages.ts'
import { concurrency, countdown, db, putPayload, puts, rows } from './one-row.ts'

const { done, count } = countdown()
const workload = (Number(process.env.BENCH_WORKLOAD) || process.env.BENCH_WORKLOAD) as Workload
const messages = [...heavyMessages(workload, rows)].map(message => {
  const members = splitObject(message.metadata)
  const field = members.get('tool_interactions')
  return { ...message, isField: field !== undefined, payload: field ?? message.metadata }
})
const conversations = new Map(messages.map(m => [m.conversationId, m.tenantId]))
await db.query(
  'insert into public.conversations (id, tenant_id) select * from unnest($1::uuid[], $2::uuid[]) on conflict do nothing',
  [[...conversations.keys()], [...conversations.values()]],
)
const limit = pLimit(concurrency)

await runContestant({
  start: async () => undefined,
  enqueue: async () => {
    for (const message of messages) {
      void limit(async () => {
        const kind = message.isField ? 'assistant_message_tool_interactions' : 'assistant_message_metadata'
        const artifact = await putPayload(message.tenantId, kind, message.payload)
        await db.query({
          name: 'ref',
          text: `insert into lighter.loose_artifacts (id, tenant_id, kind, entity_type, entity_id, r2_key, content_type, size_bytes, sha256)
                 values ($1, $2, $3, 'conversation', $4, $5, 'application/json', $6, $7)`,
          values: [
            artifact.id,
            message.tenantId,
            kind,
            message.conversationId,
            artifact.key,
            artifact.size,
            artifact.sha256,
          ],
        })
        await db.query({
          name: 'message',
          text: `insert into public.conversation_messages (conversation_id, role, content, metadata)
                 values ($1, $2, $3, jsonb_build_object('model', 'gpt-4o', 'tool_interactions_ref', $4::text))`,
          values: [message.conversationId, message.role, message.content, artifact.id],
        })
      }).then(count, error => {
        process.stderr.write(`${error}\n`)
        process.exit(1)
      })
    }
  },
  done,
  stop: () => db.end(),
  puts,
})
