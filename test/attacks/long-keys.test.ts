// A key may be as long as an index of the application allows, which is longer than ours do.
import { randomBytes, randomUUID } from 'node:crypto'
import { beforeEach, expect, test } from 'vitest'
import { lighterOk } from '../support/black-box.ts'
import { workByHand } from '../support/by-hand.ts'
import { useFreshEnvironment } from '../support/environment.ts'
import { column, value } from '../support/sql.ts'
import { runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()
/** No byte of it can be compressed away: the longest that the primary key of the table takes. */
const longest = randomBytes(4000).toString('base64').slice(0, 2692)
const tenant = randomUUID()

beforeEach(async () => {
  await environment.admin.query(`
    select lighter.set_defaults('0', '1 hour');
    create table notes (k text primary key, tenant_id uuid, metadata jsonb);
    select lighter.attach('notes')`)
})

const insert = (key: string) =>
  environment.admin.query(`insert into notes values ($1, $2, '{"tool_interactions": [1]}')`, [key, tenant])

test('a row with a key that is too long for our indexes stays whole, and keeps no other one from leaving', async () => {
  const { admin } = environment
  const { work } = workByHand(environment)
  await insert(longest)
  await insert('short')
  await work()
  expect(await column(admin, `select place || ' ' || row_id from lighter.jobs`)).toEqual(['waiting short'])
  await admin.query(`select lighter.flush()`)
  await work()
  expect(await column(admin, `select k from notes where metadata ? 'tool_interactions'`)).toEqual([longest])
  await lighterOk(environment, ['backfill', '--table', 'notes'])
  await work()
  expect(await column(admin, 'select row_id from lighter.jobs')).toEqual([])
  expect(await column(admin, `select k from notes where metadata ? 'tool_interactions'`)).toEqual([longest])
})

test('a copy of a pointer under such a key, of another tenant, does not keep the release sweep from its end', async () => {
  const { admin } = environment
  const { work } = workByHand(environment)
  await insert('short')
  await work()
  await admin.query('select lighter.flush()')
  await work()
  await admin.query(`insert into notes select $1, gen_random_uuid(), metadata from notes`, [longest])
  expect((await runNow(environment, 'release')).outcome).toBe('done')
  expect(await value(admin, 'select count(*)::int from lighter.moved_row_records')).toBe(0)
})
