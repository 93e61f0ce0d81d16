// What the trigger adds to an insert, in CPU of the backend that inserts: others on the machine do not blur it.
import pg from 'pg'
import { backendCpu } from './support/backend-cpu.ts'
import { figure, type Table } from './support/report.ts'
import { asInstalled, type BenchServers } from './support/servers.ts'
import { median } from './support/write.ts'

/** Trigger that is enabled, none for `none`. */
const triggers = { none: null, ours: 'lighter_enqueue_1', notify: 'simple_enqueue' } as const
type Variant = keyof typeof triggers

const insertsPerRun = 500

/**
 * In turns on one database, each insert a transaction of a prepared statement; no daemon runs.
 * @param rows what is inserted, by the name of its kind
 * @param notify SQL that makes the trigger of a queue that notifies each time
 */
export async function benchTriggerCpu(
  servers: BenchServers,
  rounds: number,
  rows: Record<string, string>,
  notify: string,
): Promise<{ figures: Record<string, number>; tables: Table[] }> {
  const database = await servers.createDatabase()
  await database.admin.query(notify)
  await database.admin.query(asInstalled)
  const client = new pg.Client({ connectionString: database.urls.admin })
  await client.connect()
  const { rows: conversations } = await client.query<{ id: string }>(
    'insert into public.conversations (id, tenant_id) values (gen_random_uuid(), gen_random_uuid()) returning id',
  )
  const run = async (variant: Variant, metadata: string) => {
    await client.query(`
      truncate public.conversation_messages, lighter.inbox, public.simple_queue;
      alter table public.conversation_messages disable trigger user;
      ${triggers[variant] === null ? '' : `alter table public.conversation_messages enable trigger ${triggers[variant]}`}`)
    const insert = async (count: number) => {
      for (let n = 0; n < count; n++) {
        await client.query({
          name: 'insert',
          text: `insert into public.conversation_messages (conversation_id, role, content, metadata) values ($1, 'assistant', '', $2)`,
          values: [conversations[0]?.id, metadata],
        })
      }
    }
    // What the session makes anew after the change of the table.
    await insert(20)
    return (await backendCpu(client, () => insert(insertsPerRun))) / insertsPerRun
  }
  const figures: Record<string, number> = {}
  const lines: string[][] = []
  for (const [kind, metadata] of Object.entries(rows)) {
    const spent: Record<Variant, number[]> = { none: [], ours: [], notify: [] }
    const names = Object.keys(triggers) as Variant[]
    for (let round = 0; round < rounds; round++) {
      for (let turn = 0; turn < names.length; turn++) {
        const variant = names[(round + turn) % names.length] ?? 'none'
        spent[variant].push(await run(variant, metadata))
      }
    }
    const added = (variant: Variant) =>
      spent[variant].map((us, round) => us - (spent.none[round] ?? 0)).sort((a, b) => a - b)
    figures[`${kind}.insert_us`] = median(spent.none)
    for (const variant of ['ours', 'notify'] as const) {
      const all = added(variant)
      figures[`${kind}.${variant}.added_us`] = median(all)
      const [low, high] = [all[Math.floor(all.length / 4)] ?? 0, all[Math.floor((all.length * 3) / 4)] ?? 0]
      lines.push([
        kind,
        variant === 'ours' ? 'pg-lighter' : 'a queue and NOTIFY in every transaction',
        figure(median(spent.none)),
        figure(median(all)),
        `${figure(low)} to ${figure(high)}`,
      ])
    }
  }
  await client.end()
  await database.drop()
  return {
    figures,
    tables: [
      {
        title: 'CPU of the inserting backend, us an insert',
        header: ['row', 'trigger', 'without', 'added', 'half of the rounds'],
        rows: lines,
      },
    ],
  }
}
