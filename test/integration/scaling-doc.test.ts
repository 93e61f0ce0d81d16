// What docs/scaling.md says: which keys lack the tenant, that loose artifacts may be partitioned, that a replica is enough
// to hydrate, and what it costs.
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { migrate } from '../../src/db/migrate.ts'
import { createLighterClient } from '../../src/index.ts'
import { blocksOf, readDoc } from '../support/doc-blocks.ts'
import {
  asJsonbText,
  createEnvironment,
  drained,
  hydrated,
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  type TestEnvironment,
} from '../support/environment.ts'
import { column, connect, originalTables, value } from '../support/sql.ts'

const markdown = readDoc('scaling.md')

/** Cells of the table whose header begins so. */
function tableOf(header: string): string[][] {
  const lines = markdown.split('\n')
  const start = lines.findIndex(line => line.replaceAll(/\s+/g, ' ').startsWith(`| ${header} |`))
  expect(start, header).toBeGreaterThan(-1)
  const rows = lines.slice(start + 2)
  return rows
    .slice(
      0,
      rows.findIndex(line => !line.startsWith('|')),
    )
    .map(line =>
      line
        .slice(1, -1)
        .split('|')
        .map(cell => cell.replaceAll(/[`*]/g, '').trim()),
    )
}

const numberOf = (cell: string | undefined) => Number((cell ?? '').replaceAll(/[$,]/g, ''))

describe('a database', () => {
  let environment: TestEnvironment
  beforeAll(async () => {
    environment = await createEnvironment()
  })
  afterAll(() => environment.close())

  test('has the tenant in every unique constraint of tenant data, but for those that are listed', async () => {
    // Tenant data: what names a tenant, or a row of the application.
    const { rows } = await environment.admin.query<{ table: string; columns: string }>(`
      select i.indrelid::regclass::text as table,
             (select string_agg(a.attname, ', ' order by k.place)
                from unnest(i.indkey::int2[]) with ordinality k(attnum, place)
                join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum) as columns
        from pg_index i join pg_class c on c.oid = i.indrelid
       where i.indisunique
         and c.relnamespace = 'lighter'::regnamespace
         and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname in ('tenant_id', 'row_id', 'row_ids'))`)
    const without = rows.filter(row => !row.columns.split(', ').includes('tenant_id'))
    expect(rows.length).toBeGreaterThan(without.length)
    expect(without.map(row => `${row.table} (${row.columns})`).sort()).toEqual(
      tableOf('table | unique | why the tenant is not in it')
        .map(([table, columns]) => `${table} (${columns})`)
        .sort(),
    )
  })

  test('that only reads is enough for the client library', async () => {
    const { tenantId, conversationId } = await newConversation(environment)
    const text = '{"tool_interactions": [{"n": 1e400}], "model": "m"}'
    const id = await insertMessage(environment, conversationId, text)
    const daemon = await startDaemon(environment)
    await drained(environment)
    await daemon.stop(10_000)
    const replica = new pg.Pool({
      connectionString: environment.urls.daemon,
      options: '-c default_transaction_read_only=on',
    })
    try {
      await expect(replica.query('delete from lighter.inbox')).rejects.toThrow('read-only transaction')
      const client = createLighterClient({ pool: replica, store: environment.store, tenantId })
      const metadata = await rawMetadata(environment, id)
      expect(metadata).toContain('tool_interactions_ref')
      const whole = await client.hydrateMany([{ id, metadata }])
      expect(whole.map(row => row.metadata)).toEqual([await asJsonbText(environment, text)])
    } finally {
      await replica.end()
    }
  })
})

test('artifact_refs in partitions by tenant is adopted, and works', async () => {
  const environment = await createEnvironment({ empty: true })
  try {
    const [block] = blocksOf(markdown).filter(b => b.info === 'sql partitioned')
    await environment.admin.query(block?.text ?? '')
    await environment.admin.query(originalTables({ tenantColumn: false }))
    const owner = await connect(environment.urls.admin)
    await migrate(owner)
    await owner.query(`select lighter.set_defaults(settle_for => '0', max_wait => '0')`)
    await owner.end()
    await environment.admin.query(`select lighter.attach('conversation_messages')`)
    await environment.admin.query(
      `grant select, insert on conversations, conversation_messages to example_app`,
    )
    await environment.admin.query(
      `create policy app on conversations to example_app using (true) with check (true);
       create policy app on conversation_messages to example_app using (true) with check (true)`,
    )
    const written = new Map<string, string | null>()
    // Into frames, and into the partitions.
    for (const OFFLOAD_PACKING of ['on', 'off']) {
      const daemon = await startDaemon(environment, { env: { OFFLOAD_PACKING } })
      for (let i = 0; i < 12; i++) {
        const { conversationId } = await newConversation(environment)
        const text = JSON.stringify({ tool_interactions: [{ i }], long: 'x'.repeat(i * 1000) })
        written.set(
          await insertMessage(environment, conversationId, text),
          await asJsonbText(environment, text),
        )
      }
      await drained(environment)
      await daemon.stop(10_000)
    }
    for (const [id, text] of written) expect(await hydrated(environment, id)).toBe(text)
    expect(
      await value(environment.admin, 'select count(distinct tableoid)::int from lighter.loose_artifacts'),
    ).toBeGreaterThan(1)
    expect(await value(environment.admin, 'select count(*)::int from lighter.frames')).toBeGreaterThan(0)
    // Each partition is as closed as the whole.
    expect(
      await column(
        environment.admin,
        `select sum(artifacts)::int from lighter.storage_by_kind having sum(artifacts) = (select count(*) from artifact_refs)`,
      ),
    ).toHaveLength(1)
  } finally {
    await environment.close()
  }
})

describe('the cost', () => {
  const month = 2_592_000
  const rates = [1, 100, 10_000]
  const given = new Map(
    tableOf('given | 1 row/s | 100 rows/s | 10,000 rows/s | from').map(([name = '', ...cells]) => [
      name,
      cells.slice(0, 3).map(numberOf),
    ]),
  )
  const answers = tableOf('a month | 1 row/s | 100 rows/s | 10,000 rows/s | is')
  const of = (name: string, i: number) => given.get(name)?.[i] ?? Number.NaN
  const dollars = (amount: number) =>
    `$${amount.toLocaleString('en-US', { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`

  test.each(rates.map((rate, i) => ({ rate, i })))('at $rate rows a second adds up', ({ rate, i }) => {
    const rows = rate * month
    const puts = ((rows * of('PUTs a row', i)) / 1e6) * 4.5
    const reads = ((rows * 0.01) / 1e6) * 0.36
    const bucket = ((3 * rows * of('stored bytes a row', i)) / 1e9) * 0.015
    const postgres = ((3 * rows * of('bytes in Postgres a row', i)) / 1e9) * 0.125
    const inline = ((3 * rows * of('bytes a row, had it stayed', i)) / 1e9) * 0.125
    expect(answers.map(row => row[i + 1])).toEqual([
      (rows / 1e6).toLocaleString('en-US', { minimumFractionDigits: 2, maximumFractionDigits: 2 }),
      ...[puts, reads, bucket, postgres, puts + reads + bucket + postgres, inline].map(dollars),
    ])
  })

  test('pays for itself from the sizes that are said', () => {
    const table = tableOf('PUTs a row | bytes in Postgres a row | pays for itself above, bytes of payload')
    expect(table.map(([, inPostgres]) => numberOf(inPostgres))).toEqual(given.get('bytes in Postgres a row'))
    for (const [puts, inPostgres, bytes] of table) {
      const row = numberOf(puts) * 4.5e-6 + ((3 * numberOf(inPostgres)) / 1e9) * 0.125
      expect(numberOf(bytes)).toBe(Math.round(row / ((3 * 0.42 * 0.125) / 1e9)))
    }
  })
})
