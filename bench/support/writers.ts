// Plain application writes from a process of its own: so many clients, for so long, one commit each.
import pg from 'pg'

const { URL_APP = '', CLIENTS = '1', SECONDS = '1', METADATA = '{}', PER_SECOND = '0' } = process.env

/** `xids` only when paced: `<transaction id> <row id>` of each write, to look up when it was committed. */
export interface WriterResult {
  commitsPerSecond: number
  p50Ms: number
  p99Ms: number
  xids: string[]
}

const clients = await Promise.all(
  Array.from({ length: Number(CLIENTS) }, async () => {
    const client = new pg.Client({ connectionString: URL_APP })
    await client.connect()
    return client
  }),
)
const tenant = '11111111-1111-4111-8111-111111111111'
const conversation = '22222222-2222-4222-8222-222222222222'
await clients[0]?.query(
  'insert into public.conversations (id, tenant_id) values ($1, $2) on conflict do nothing',
  [conversation, tenant],
)
const perSecond = Number(PER_SECOND)
const latencies: number[] = []
const xids: string[] = []
const began = performance.now()
const until = began + Number(SECONDS) * 1000
let taken = 0
await Promise.all(
  clients.map(async client => {
    while (performance.now() < until) {
      if (perSecond > 0) {
        const wait = began + (taken++ / perSecond) * 1000 - performance.now()
        if (wait > 0) await new Promise(resolve => setTimeout(resolve, wait))
      }
      const started = performance.now()
      const { rows } = await client.query<{ xid: string }>({
        name: 'write',
        text: `insert into public.conversation_messages (conversation_id, role, content, metadata)
               values ($1, 'assistant', 'x', $2) returning pg_current_xact_id()::text || ' ' || id as xid`,
        values: [conversation, METADATA],
      })
      latencies.push(performance.now() - started)
      if (perSecond > 0 && rows[0] !== undefined) xids.push(rows[0].xid)
    }
  }),
)
const seconds = (performance.now() - began) / 1000
latencies.sort((a, b) => a - b)
const quantile = (q: number) =>
  latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * q))] ?? 0
const result: WriterResult = {
  commitsPerSecond: latencies.length / seconds,
  p50Ms: quantile(0.5),
  p99Ms: quantile(0.99),
  xids,
}
await Promise.all(clients.map(client => client.end()))
// Disconnecting at once could cut a long message off.
process.send?.(result, () => process.disconnect())
