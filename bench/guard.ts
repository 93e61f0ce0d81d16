// What a guard costs the application: single-row updates of an attached column, with and without one.
import pg from 'pg'
import { figure, type Table } from './support/report.ts'
import type { BenchServers } from './support/servers.ts'
import { median } from './support/write.ts'

const guards = ['off', 'warn'] as const
type Guard = (typeof guards)[number]

/** As rows of a plain document, and as what phase 2 leaves in them. No daemon runs: nothing reads the pointer. */
const documents = {
  offloaded: `{"model": "gpt-4o", "artifact_metadata_ref": "11111111-1111-4111-8111-111111111111", "artifact_metadata_kind": "assistant_message_metadata"}`,
  inline: '{"model": "gpt-4o", "iterations": 1}',
}

/** Updates a second, by one client that adds a key to each of 1,000 rows in turn, one commit each. */
async function updatesPerSecond(client: pg.Client, seconds: number): Promise<number> {
  const { rows } = await client.query<{ id: string }>('select id from public.conversation_messages')
  await client.query('vacuum public.conversation_messages')
  const began = performance.now()
  let updates = 0
  for (; performance.now() - began < seconds * 1000; updates++) {
    await client.query({
      name: 'update',
      text: `update public.conversation_messages set metadata = metadata || jsonb_build_object('feedback', $2::int) where id = $1`,
      values: [rows[updates % rows.length]?.id, updates],
    })
  }
  return (updates / (performance.now() - began)) * 1000
}

/** Guards in turns on one database; the ratio is taken within a round. */
export async function benchGuard(
  servers: BenchServers,
  rounds: number,
  seconds: number,
): Promise<{ figures: Record<string, number>; tables: Table[] }> {
  const figures: Record<string, number> = {}
  const tables: Table[] = []
  for (const [name, document] of Object.entries(documents)) {
    const database = await servers.createDatabase()
    const client = new pg.Client({ connectionString: database.urls.admin })
    await client.connect()
    await client.query(
      `insert into public.conversations (id, tenant_id) values (gen_random_uuid(), gen_random_uuid())`,
    )
    await client.query(
      `insert into public.conversation_messages (conversation_id, role, content, metadata)
       select c.id, 'assistant', 'x', $1 from public.conversations c, generate_series(1, 1000)`,
      [document],
    )
    const runs: Record<Guard, number>[] = []
    for (let round = 0; round < rounds; round++) {
      const run: Record<Guard, number> = { off: 0, warn: 0 }
      for (const guard of round % 2 === 0 ? guards : guards.toReversed()) {
        await client.query(`select lighter.attach('public.conversation_messages', guard => $1)`, [guard])
        run[guard] = await updatesPerSecond(client, seconds)
      }
      runs.push(run)
    }
    await client.end()
    await database.drop()
    for (const guard of guards) {
      figures[`update.${name}.${guard}.updates_per_second`] = median(runs.map(run => run[guard]))
      figures[`update.${name}.${guard}.against_off`] = median(runs.map(run => run[guard] / run.off))
    }
    tables.push({
      title: `updates of ${name} rows, 1 client(s)`,
      header: ['', 'updates/s', 'against off'],
      rows: guards.map(guard => [
        `guard ${guard}`,
        ...['updates_per_second', 'against_off'].map(key =>
          figure(figures[`update.${name}.${guard}.${key}`] ?? 0),
        ),
      ]),
    })
  }
  return { figures, tables }
}
