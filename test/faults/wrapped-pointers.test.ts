// Applications wrap documents into others, pointers and all. What any row of the tenant holds a pointer to is kept,
// however deep it lies, in the row or in a payload.
import { randomUUID } from 'node:crypto'
import { expect, test } from 'vitest'
import { attach, createTable, settled } from '../support/black-box.ts'
import { startDaemon, useFreshEnvironment } from '../support/environment.ts'
import { age, runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()
const tenantId = randomUUID()
const fill = 'x'.repeat(9000)

/** Row 1 is offloaded, row 2 is made of it by `expression` and offloaded too, row 1 goes. Returns what is released. */
async function releasedAfter(expression: string): Promise<number> {
  await createTable(environment, 'notes', '(id bigint primary key, tenant_id uuid, metadata jsonb)')
  await attach(environment, 'notes')
  const daemon = await startDaemon(environment)
  try {
    await environment.app.query('insert into notes values (1, $1, $2)', [tenantId, JSON.stringify({ fill })])
    await settled(environment)
    await environment.app.query(
      `insert into notes select 2, tenant_id, ${expression} from notes where id = 1`,
    )
    await settled(environment)
    await environment.app.query('delete from notes where id = 1')
  } finally {
    await daemon.stop()
  }
  await age(environment, '2 hours')
  const { counts } = await runNow(environment, 'release')
  return Number(counts.released)
}

test.each([
  ['in an object', `jsonb_build_object('copy', metadata)`],
  ['in arrays of objects', `jsonb_build_array(1, jsonb_build_object('copies', jsonb_build_array(metadata)))`],
  ['in an array', 'jsonb_build_array(metadata)'],
  ['as deep as a document may be', `(repeat('[', 3000) || metadata::text || repeat(']', 3000))::jsonb`],
  ['deeper than a path reaches', `(repeat('[', 10500) || metadata::text || repeat(']', 10500))::jsonb`],
  ['in a payload', `jsonb_build_object('copy', metadata, 'fill', repeat('y', 9000))`],
  [
    'in a payload, deep',
    `jsonb_build_object('copies', jsonb_build_array(jsonb_build_object('a', metadata)), 'fill', repeat('y', 9000))`,
  ],
  ['in the payload of a field', `jsonb_build_object('tool_interactions', jsonb_build_array(metadata))`],
  ['behind one that is none', `jsonb_build_object('tool_interactions_ref', 'none', 'copy', metadata)`],
  [
    'behind many that are none',
    `jsonb_build_object('copies', (select jsonb_agg(jsonb_build_object('tool_interactions_ref', n::text)) from generate_series(1, 50) n), 'copy', metadata)`,
  ],
  ['in the payload of an array', `jsonb_build_array(jsonb_build_object('a', metadata), repeat('y', 9000))`],
])('a pointer %s keeps what it leads to', async (_what, expression) => {
  expect(await releasedAfter(expression)).toBe(0)
})

test('the same text in a string is no pointer', async () => {
  expect(await releasedAfter(`jsonb_build_object('text', metadata::text)`)).toBe(1)
})
