// Rows that cost their writer little and a restore much: it ends soon, in little memory, and restores the others.
import { expect, onTestFinished, test } from 'vitest'
import { lighter, settled } from '../support/black-box.ts'
import {
  asJsonbText,
  insertMessage,
  newConversation,
  rawMetadata,
  startDaemon,
  useFreshEnvironment,
} from '../support/environment.ts'
import { storeByHand } from '../support/stored-artifacts.ts'

const environment = useFreshEnvironment()
const MiB = 1024 * 1024
const pointerTo = (id: string) => `{"own": 1, "artifact_metadata_ref": "${id}"}`
const ordinary = `{"price": 12345678901234567890.5, "tool_interactions": [{"n": 1e400}], "trace": "${'~'.repeat(9000)}"}`
/** By their keys the first and the last row of the table. */
const ends = ['00000000-0000-4000-8000-000000000000', 'ffffffff-ffff-4fff-bfff-ffffffffffff']

/** A row that was offloaded, and copies of it on both sides of all others, which no artifact tells of. */
async function ordinaryRows(conversationId: string): Promise<string[]> {
  const daemon = await startDaemon(environment)
  onTestFinished(async () => void (await daemon.stop()))
  const id = await insertMessage(environment, conversationId, ordinary)
  await settled(environment)
  await daemon.stop()
  const pointers = await rawMetadata(environment, id)
  expect(pointers).not.toContain('~')
  await environment.app.query(
    `insert into conversation_messages (id, conversation_id, role, content, metadata)
     select i, $2, 'assistant', '', $3 from unnest($1::uuid[]) i`,
    [ends, conversationId, pointers],
  )
  return [id, ...ends]
}

/** Payloads on top of each other, each with keys of its own, the last one given. @returns the id of the first */
async function chainOver(tenantId: string, base: string, length: number, keys: number): Promise<string> {
  let { id } = await storeByHand(environment, tenantId, Buffer.from(base))
  for (let link = 1; link < length; link++) {
    const own = Array.from({ length: keys }, (_, n) => `"k${link}_${n}": ${n}`).join(', ')
    const text = `{"artifact_metadata_ref": "${id}", ${own}}`
    id = (await storeByHand(environment, tenantId, Buffer.from(text))).id
  }
  return id
}

/** In a heap that has no room for what the attacks ask for. */
async function restoreAll() {
  const began = performance.now()
  const env = { NODE_OPTIONS: '--max-old-space-size=128' }
  const { code, stdout, stderr } = await lighter(environment, ['restore', '--all', '--json'], { env })
  expect(performance.now() - began).toBeLessThan(120_000)
  // Out of memory it would have ended by a signal, and said nothing of any row.
  expect(code, stderr).not.toBeNull()
  return { code, ...JSON.parse(stdout) }
}

async function expectOrdinary(ids: string[]): Promise<void> {
  const text = await asJsonbText(environment, ordinary)
  for (const id of ids) expect(await rawMetadata(environment, id)).toBe(text)
}

test('a chain of 195 pointers with 8,000 keys each is left as it is, and named', async () => {
  const { tenantId, conversationId } = await newConversation(environment)
  const others = await ordinaryRows(conversationId)
  const costly = pointerTo(await chainOver(tenantId, '{"base": 1}', 195, 8000))
  const rowId = await insertMessage(environment, conversationId, costly)
  const { code, restored, failures } = await restoreAll()
  expect([code, restored]).toEqual([1, others.length])
  expect(failures).toMatchObject([
    { rowId, code: 'artifact_too_large', message: expect.stringContaining('keys') },
  ])
  expect(await rawMetadata(environment, rowId)).toBe(await asJsonbText(environment, costly))
  await expectOrdinary(others)
}, 240_000)

test('rows that lead to one large payload do not meet in memory; one that says it is longer is not read', async () => {
  const { tenantId, conversationId } = await newConversation(environment)
  const others = await ordinaryRows(conversationId)
  const long = 'x'.repeat(1.5 * MiB)
  // What lies behind the first payload nobody has weighed.
  const shared = await chainOver(tenantId, `{"text": "${long}"}`, 2, 1)
  const ids: string[] = []
  for (let n = 0; n < 50; n++) ids.push(await insertMessage(environment, conversationId, pointerTo(shared)))
  const { id: huge } = await storeByHand(environment, tenantId, Buffer.from('{}'), { sizeBytes: 501 * MiB })
  const costly = await insertMessage(environment, conversationId, pointerTo(huge))
  const { code, restored, failures } = await restoreAll()
  expect([code, restored]).toEqual([1, others.length + ids.length])
  expect(failures).toMatchObject([{ rowId: costly, code: 'artifact_too_large' }])
  expect(await rawMetadata(environment, costly)).toBe(await asJsonbText(environment, pointerTo(huge)))
  const { rows } = await environment.admin.query(
    'select count(*)::int as n from conversation_messages where id = any ($1) and metadata = $2::jsonb',
    [ids, `{"own": 1, "k1_0": 0, "text": "${long}"}`],
  )
  expect(rows).toEqual([{ n: ids.length }])
  await expectOrdinary(others)
}, 240_000)
