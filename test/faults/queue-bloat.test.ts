// A long transaction elsewhere keeps vacuum from the queue's dead rows: every job that ever was is still in the index.
import { expect, test } from 'vitest'
import { claimJobs } from '../../src/offload/claim.ts'
import {
  drained,
  hydrated,
  insertMessage,
  newConversation,
  startDaemon,
  useEnvironment,
} from '../support/environment.ts'
import { connect, value } from '../support/sql.ts'

const environment = await useEnvironment()

const dead = 200_000
const claimed = 100

/** Pages that a claim has looked at, and how its plan begins to look for jobs. */
async function costOfClaim(): Promise<{ pages: number; plan: string }> {
  // As the driver sends it, but explained; and undone.
  let text = ''
  let values: unknown[] = []
  await claimJobs(
    {
      query: (async (config: { text: string; values: unknown[] }) => {
        ;({ text, values } = config)
        return { rows: [] }
      }) as never,
    },
    [1],
    claimed,
    60_000,
  )
  const client = await connect(environment.urls.admin)
  try {
    await client.query(`set enable_seqscan = off; set jit = off; begin`)
    const { rows } = await client.query<{ 'QUERY PLAN': { Plan: PlanNode }[] }>(
      `explain (analyze, buffers, timing off, format json) ${text}`,
      values,
    )
    await client.query('rollback')
    const root = rows[0]?.['QUERY PLAN'][0]?.Plan
    if (root === undefined) throw new Error('no plan')
    return {
      pages: root['Shared Hit Blocks'] + root['Shared Read Blocks'],
      plan: nodesOf(root).join(', '),
    }
  } finally {
    await client.end()
  }
}

interface PlanNode {
  'Node Type': string
  'Index Name'?: string
  'Shared Hit Blocks': number
  'Shared Read Blocks': number
  Plans?: PlanNode[]
}

function nodesOf(node: PlanNode): string[] {
  return [`${node['Node Type']} ${node['Index Name'] ?? ''}`.trim(), ...(node.Plans ?? []).flatMap(nodesOf)]
}

const pagesOf = (relation: string) =>
  value<number>(
    environment.admin,
    `select (pg_relation_size($1::regclass) / current_setting('block_size')::int)::int`,
    [relation],
  )

/** A claim of so many jobs, whatever is dead: locks, index look-ups and new versions. */
const pagesOfWork = 20 * claimed

test('a claim passes over the dead once, in the order of the index, and work goes on; after vacuum it is as new', async () => {
  const holder = await connect(environment.urls.admin)
  try {
    await holder.query('begin isolation level repeatable read; select from lighter.jobs limit 1')
    await environment.admin.query(
      `insert into lighter.jobs (source_id, row_id) select 1, n::text from generate_series(1, $1) n`,
      [dead],
    )
    await environment.admin.query('delete from lighter.jobs')
    await environment.admin.query(
      `insert into lighter.jobs (source_id, row_id) select 1, gen_random_uuid()::text from generate_series(1, 1000) n`,
    )
    await environment.admin.query('vacuum analyze lighter.jobs')

    const { pages, plan } = await costOfClaim()
    expect(plan).toContain('Index Scan jobs_due')
    expect(plan).not.toContain('Sort')
    expect(pages).toBeGreaterThan(pagesOfWork)
    expect(pages).toBeLessThan(
      (await pagesOf('lighter.jobs')) + (await pagesOf('lighter.jobs_due')) + pagesOfWork,
    )

    await environment.admin.query('delete from lighter.jobs')
    const daemon = await startDaemon(environment)
    const { conversationId } = await newConversation(environment)
    const ids: string[] = []
    for (let n = 0; n < 50; n++)
      ids.push(await insertMessage(environment, conversationId, `{"tool_interactions": [${n}]}`))
    await drained(environment, 60_000)
    await daemon.stop()
    for (const [n, id] of ids.entries())
      expect(await hydrated(environment, id)).toBe(`{"tool_interactions": [${n}]}`)
  } finally {
    await holder.end()
  }
  await environment.admin.query('vacuum lighter.jobs')
  await environment.admin.query(
    `insert into lighter.jobs (source_id, row_id) select 1, gen_random_uuid()::text from generate_series(1, 1000) n`,
  )
  expect((await costOfClaim()).pages).toBeLessThan(pagesOfWork)
}, 180_000)
