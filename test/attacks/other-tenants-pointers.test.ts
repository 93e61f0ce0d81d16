// A tenant that writes the id of another tenant's artifact into a row of its own: it reads nothing by it, keeps
// nothing alive, and brings nothing back.
import { randomUUID } from 'node:crypto'
import { beforeEach, expect, test } from 'vitest'
import { attach, createTable, lighter, settled } from '../support/black-box.ts'
import { startDaemon, useFreshEnvironment } from '../support/environment.ts'
import { age, runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()
const owner = randomUUID()
const attacker = randomUUID()
const heavy = JSON.stringify({ trace: 'x'.repeat(9000) })

beforeEach(async () => {
  await createTable(environment, 'notes', '(id bigint primary key, tenant_id uuid, metadata jsonb)')
  await attach(environment, 'notes')
})

const write = (id: number, tenantId: string | null, metadata: string) =>
  environment.app.query('insert into notes values ($1, $2, $3)', [id, tenantId, metadata])

/** Row 1 of the owner, offloaded. Returns its column's text. */
async function offloadOne(): Promise<string> {
  const daemon = await startDaemon(environment)
  try {
    await write(1, owner, heavy)
    await settled(environment)
  } finally {
    await daemon.stop()
  }
  const { rows } = await environment.admin.query<{ text: string }>('select metadata::text as text from notes')
  return rows[0]?.text ?? ''
}

async function states(): Promise<unknown[]> {
  const { rows } = await environment.admin.query(
    'select released_at is not null as released, deleted_at is not null as deleted from artifact_refs',
  )
  return rows
}

const graceLater = async () => {
  await age(environment, '8 days')
  await environment.admin.query(`update artifact_refs set released_at = released_at - interval '8 days'`)
}

const spellings: [what: string, spelling: (pointer: string) => string][] = [
  ['as it is', pointer => pointer],
  ['in an array', pointer => `[${pointer}]`],
  ['nested', pointer => `{"a": [{"b": ${pointer}}]}`],
]

test.each(spellings)('a foreign pointer, %s, does not stop the release', async (_what, spelling) => {
  const pointer = await offloadOne()
  await write(2, attacker, spelling(pointer))
  await environment.app.query('delete from notes where id = 1')
  await age(environment, '2 hours')
  await runNow(environment, 'release')
  expect(await states()).toEqual([{ released: true, deleted: false }])
  await graceLater()
  await runNow(environment, 'release')
  expect(await states()).toEqual([{ released: true, deleted: true }])
})

test.each(spellings)('a foreign pointer, %s, brings nothing back', async (_what, spelling) => {
  const pointer = await offloadOne()
  await environment.app.query('delete from notes where id = 1')
  await age(environment, '2 hours')
  await runNow(environment, 'release')
  await write(2, attacker, spelling(pointer))
  await runNow(environment, 'release')
  expect(await states()).toEqual([{ released: true, deleted: false }])
  await graceLater()
  await runNow(environment, 'release')
  await runNow(environment, 'release')
  expect(await states()).toEqual([{ released: true, deleted: true }])
  // The owner's own does.
  await write(3, owner, spelling(pointer))
  await runNow(environment, 'release')
  expect(await states()).toEqual([{ released: false, deleted: false }])
})

test('a foreign pointer reads nothing, and keeps what is written beside it in the row', async () => {
  const pointer = await offloadOne()
  await write(2, attacker, `[${pointer}, ${heavy}]`)
  const daemon = await startDaemon(environment, { env: { OFFLOAD_MAX_ATTEMPTS: '1' } })
  try {
    await settled(environment)
  } finally {
    await daemon.stop()
  }
  const { rows } = await environment.admin.query('select row_id, last_error from lighter.failures')
  expect(rows).toMatchObject([{ row_id: '2', last_error: expect.stringMatching(/^lost_pointer/) }])
  const { code, stdout } = await lighter(environment, ['hydrate', '2', '--table', 'notes'])
  expect([code, stdout]).toEqual([1, ''])
})

test('a row that was moved to another tenant keeps the payload that came off it', async () => {
  await offloadOne()
  await environment.app.query('update notes set tenant_id = $1', [attacker])
  await age(environment, '2 hours')
  await runNow(environment, 'release')
  expect(await states()).toEqual([{ released: false, deleted: false }])
})

test('a row that has lost its tenant keeps its payload', async () => {
  await offloadOne()
  await environment.app.query('update notes set tenant_id = null')
  await age(environment, '2 hours')
  await runNow(environment, 'release')
  expect(await states()).toEqual([{ released: false, deleted: false }])
})
