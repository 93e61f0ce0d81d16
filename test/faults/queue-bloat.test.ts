// A long transaction elsewhere keeps vacuum from the queue's dead rows: every job that ever was is still in the index.
import { expect, test } from 'vitest'
import type { Queryable } from '../../src/db/pool.ts'
import { claimInbox, claimWaiting } from '../../src/offload/claim.ts'
import {
  drained,
  hydrated,
  insertMessage,
  newConversation,
  startDaemon,
  useEnvironment,
} from '../support/environment.ts'
import { emptyQueue } from '../support/queue.ts'
import { connect, value } from '../support/sql.ts'

const environment = await useEnvironment()

const dead = 200_000
const claimed = 100

type Claim = (db: Queryable) => Promise<unknown>
/** @param after as a daemon that has read up to there claims next */
const inbox =
  (after = 0): Claim =>
  db =>
    claimInbox(db, [1], claimed, 60_000, after)
const waiting: Claim = db => claimWaiting(db, [1], claimed, 60_000)

/** Pages that a claim has looked at, and how its plan begins to look for rows. */
async function costOfClaim(claim: Claim): Promise<{ pages: number; plan: string }> {
  // As the driver sends it, but explained; and undone.
  let text = ''
  let values: unknown[] = []
  await claim({
    query: (async (config: { text: string; values: unknown[] }) => {
      ;({ text, values } = config)
      return { rows: [] }
    }) as never,
  })
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
      plan: dueNodes(root).join(', '),
    }
  } finally {
    await client.end()
  }
}

interface PlanNode {
  'Node Type': string
  'Index Name'?: string
  'Subplan Name'?: string
  'Shared Hit Blocks': number
  'Shared Read Blocks': number
  Plans?: PlanNode[]
}

function nodesOf(node: PlanNode): string[] {
  return [`${node['Node Type']} ${node['Index Name'] ?? ''}`.trim(), ...(node.Plans ?? []).flatMap(nodesOf)]
}

/** Of the part that finds what is due. */
function dueNodes(node: PlanNode): string[] {
  if (node['Subplan Name'] === 'CTE due') return nodesOf(node)
  return (node.Plans ?? []).flatMap(dueNodes)
}

const pagesOf = (relation: string) =>
  value<number>(
    environment.admin,
    `select (pg_relation_size($1::regclass) / current_setting('block_size')::int)::int`,
    [relation],
  )

/** A claim of so many rows, whatever is dead: locks, index look-ups, new versions and the lease. */
const pagesOfWork = 20 * claimed

const fillInbox = (rows: number) =>
  environment.admin.query(
    `insert into lighter.inbox (source_id, row_id) select 1, gen_random_uuid()::text from generate_series(1, $1::int) n`,
    [rows],
  )
const fillWaiting = (rows: number) =>
  environment.admin.query(
    `insert into lighter.waiting (source_id, row_id) select 1, gen_random_uuid()::text from generate_series(1, $1::int) n`,
    [rows],
  )

test('a claim passes over the dead once, in the order of the index, and work goes on; after vacuum it is as new', async () => {
  const holder = await connect(environment.urls.admin)
  try {
    await holder.query('begin isolation level repeatable read; select from lighter.jobs limit 1')
    for (const fill of [fillInbox, fillWaiting]) {
      await fill(dead)
      await emptyQueue(environment)
    }
    await Promise.all([fillInbox(1000), fillWaiting(1000)])
    await environment.admin.query('vacuum analyze lighter.inbox, lighter.waiting')

    for (const [claim, table, index] of [
      [inbox(), 'inbox', 'inbox_pkey'],
      [waiting, 'waiting', 'waiting_due'],
    ] as const) {
      const { pages, plan } = await costOfClaim(claim)
      expect(plan).toContain(`Index Scan ${index}`)
      expect(plan).not.toContain('Sort')
      expect(pages).toBeGreaterThan(pagesOfWork)
      expect(pages).toBeLessThan(
        (await pagesOf(`lighter.${table}`)) + (await pagesOf(`lighter.${index}`)) + pagesOfWork,
      )
    }
    // What it has passed over lies behind where the daemon goes on.
    const first = await value<string>(environment.admin, 'select min(id) from lighter.inbox')
    const next = await costOfClaim(inbox(Number(first)))
    expect(next.plan).toContain('Index Scan inbox_pkey')
    expect(next.pages).toBeLessThan(pagesOfWork)

    await emptyQueue(environment)
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
  await environment.admin.query('vacuum lighter.inbox, lighter.waiting, lighter.leases')
  await Promise.all([fillInbox(1000), fillWaiting(1000)])
  for (const claim of [inbox(), waiting]) expect((await costOfClaim(claim)).pages).toBeLessThan(pagesOfWork)
}, 180_000)
