// The floor: the same rows read out and rewritten by set-based SQL, three batches at once, with no queue, no
// packing, no upload and no check of anything. What Postgres and the driver cost by themselves.
import pg from 'pg'
import { newArtifactId } from '../../src/ids.ts'
import { runContestant } from '../support/contestant.ts'

const rows = Number(process.env.BENCH_ROWS)
const batchRows = 1000
const db = new pg.Pool({ connectionString: process.env.ADMIN_DATABASE_URL, max: 4 })
const finished = Promise.withResolvers<void>()
let ids: string[] = []

async function work(): Promise<void> {
  for (let batch = ids.splice(0, batchRows); batch.length > 0; batch = ids.splice(0, batchRows)) {
    await db.query<{ text: string }>(
      `select coalesce(metadata -> 'tool_interactions', metadata)::text as text
         from public.conversation_messages where id = any ($1::uuid[])`,
      [batch],
    )
    await db.query(
      `with refs as (
         insert into lighter.loose_artifacts (id, tenant_id, kind, r2_key)
         select r.artifact, c.tenant_id, 'assistant_message_tool_interactions', r.artifact::text
           from unnest($1::uuid[], $2::uuid[]) r(id, artifact)
           join public.conversation_messages m on m.id = r.id join public.conversations c on c.id = m.conversation_id
       )
       update public.conversation_messages m
          set metadata = (metadata - 'tool_interactions' - 'trace') || jsonb_build_object('tool_interactions_ref', r.artifact)
         from unnest($1::uuid[], $2::uuid[]) r(id, artifact) where m.id = r.id`,
      [batch, batch.map(() => newArtifactId())],
    )
  }
}

await runContestant({
  start: async () => {
    ids = (
      await db.query<{ id: string }>('select id from public.conversation_messages limit $1', [rows])
    ).rows.map(row => row.id)
  },
  enqueue: async () => {
    void Promise.all([work(), work(), work()]).then(() => finished.resolve())
  },
  done: finished.promise,
  stop: () => db.end(),
  puts: () => 0,
})
