// Payloads that can each be read back, and a row that could not: it is put together of all of them. What could not be
// read back stays inline and whole, with the reason.
import { randomUUID } from 'node:crypto'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { startApi, type TestApi } from '../support/api.ts'
import { attach, createTable, settled } from '../support/black-box.ts'
import { useEnvironment } from '../support/environment.ts'

const environment = await useEnvironment()
const limit = 1024 * 1024
// Some rows are streamed, and of those the length is known only then.
const tenantId = randomUUID()
let api: TestApi

beforeAll(async () => {
  api = await startApi(environment, {
    env: { MAX_PAYLOAD_BYTES: String(limit), STREAM_THRESHOLD_BYTES: String(256 * 1024) },
  })
  await createTable(environment, 'notes', '(id bigint primary key, tenant_id uuid, metadata jsonb)')
  await attach(environment, 'notes')
})

afterAll(() => api.daemon.stop())

async function hydrated(id: string): Promise<Record<string, string[]> & string[]> {
  const json = `{"metadata": [${await stored(id)}]}`
  const answer = await api.call(tenantId, 'POST', '/api/storage/hydrate', { json })
  expect(answer.json.errors).toEqual([])
  return answer.json.metadata[0]
}

let lastId = 0
async function insert(json: string): Promise<string> {
  const id = String(++lastId)
  await environment.app.query('insert into notes values ($1, $2, $3)', [id, tenantId, json])
  await settled(environment)
  return id
}

async function update(id: string, expression: string, json: string): Promise<void> {
  await environment.app.query(`update notes set metadata = ${expression} where id = $1`, [id, json])
  await settled(environment)
}

const stored = async (id: string) => {
  const { rows } = await environment.admin.query<{ text: string }>(
    'select metadata::text as text from notes where id = $1',
    [id],
  )
  return rows[0]?.text ?? ''
}

const failures = async (id: string) => {
  const { rows } = await environment.admin.query(
    'select attempts, last_error from lighter.failures where row_id = $1',
    [id],
  )
  return rows
}

/** A dead letter after the first attempt: every other would end the same. */
const refused = [{ attempts: 1, last_error: expect.stringMatching(/MAX_PAYLOAD_BYTES \(1048576\)/) }]
const text = (bytes: number) => `"${'x'.repeat(bytes)}"`
/** Far shorter as text than its binary form tells, so that it is streamed to learn its length. */
const numbers = (bytes: number) => `[${Array.from({ length: bytes / 3 }, () => 7).join(', ')}]`

test.each([
  ['text', text],
  ['numbers', numbers],
])('a field and a rest of %s that are too long together stay in the row', async (_what, value) => {
  const json = `{"rest": ${value(600_000)}, "tool_interactions": [${value(600_000)}]}`
  const id = await insert(json)
  expect(await failures(id)).toMatchObject(refused)
  expect(JSON.parse(await stored(id))).toEqual(JSON.parse(json))

  const small = await insert(`{"rest": ${value(480_000)}, "tool_interactions": [${value(480_000)}]}`)
  expect(await failures(small)).toEqual([])
  expect((await stored(small)).length).toBeLessThan(1000)
})

test.each([
  ['text', text],
  ['numbers', numbers],
])('what is written onto offloaded %s counts with it', async (_what, value) => {
  const id = await insert(`{"first": ${value(600_000)}}`)
  await update(id, 'metadata || $2::jsonb', `{"second": ${value(600_000)}}`)
  expect(await failures(id)).toMatchObject(refused)
  expect(await stored(id)).toMatch(/"artifact_metadata_ref"/)
  const whole = await hydrated(id)
  expect(whole).toEqual({ first: JSON.parse(value(600_000)), second: JSON.parse(value(600_000)) })
})

test('elements appended to an offloaded array count with it', async () => {
  const id = await insert(`[${text(600_000)}]`)
  await update(id, 'metadata || $2::jsonb', `[${text(600_000)}]`)
  expect(await failures(id)).toMatchObject(refused)
  expect((await hydrated(id)).map(String)).toHaveLength(2)
})

test('a field that is written anew does not count with the one that it replaces', async () => {
  const id = await insert(`{"rest": ${text(20_000)}, "tool_interactions": [${text(600_000)}]}`)
  await update(id, 'metadata || $2::jsonb', `{"tool_interactions": [${text(600_001)}]}`)
  expect(await failures(id)).toEqual([])
  const whole = await hydrated(id)
  expect(whole.tool_interactions?.[0]).toHaveLength(600_001)
})
