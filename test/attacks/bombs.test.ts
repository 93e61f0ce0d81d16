// Documents that are small in their row and cost much to look at. Nobody's write may get slower for them, no backend
// may grow, and the rows of other tenants are offloaded meanwhile.
import { readFile } from 'node:fs/promises'
import { describe, expect, test } from 'vitest'
import { lighterOk, settled } from '../support/black-box.ts'
import {
  hydrated,
  insertMessage,
  newConversation,
  rawMetadata,
  until,
  useDaemon,
  useEnvironment,
} from '../support/environment.ts'
import { backendPid, connect, value } from '../support/sql.ts'

const environment = await useEnvironment()
await useDaemon(environment)

/** About 14 bytes of document for each, and 131,072 of text. */
const numbers = (count: number) => Array(count).fill('1e131071').join(',')
/** About 12 bytes for each, and 16,385 of text. */
const zeros = (count: number) => Array(count).fill('0e-16383').join(',')

const small = { tool_interactions: [{ name: 'search', result: 'r'.repeat(500) }] }

async function insert(metadata: string): Promise<string> {
  const { conversationId } = await newConversation(environment)
  return insertMessage(environment, conversationId, metadata)
}

const deadLetter = (id: string) =>
  value<string | null>(
    environment.admin,
    `select max(last_error) from lighter.failures where row_id = '${id}'`,
  )

/** Not by the document's text, which is the bomb. */
const hasPointer = (id: string) =>
  value<boolean>(
    environment.admin,
    `select metadata ?| array['artifact_metadata_ref', 'tool_interactions_ref'] from conversation_messages where id = '${id}'`,
  )

/** The most memory that the backend had, in MB. */
async function peakMemory(pid: number): Promise<number> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8')
  return Number(/VmHWM:\s+(\d+)/.exec(status)?.[1]) / 1024
}

describe('a write of a document of few bytes and much text', () => {
  test.each([
    ['large numbers', `{"n": [${numbers(2200)}]}`],
    ['zeros with many decimal places', `{"n": [${zeros(2200)}]}`],
    ['large numbers in what is offloaded whatever its size', `{"tool_interactions": [${numbers(2200)}]}`],
  ])('costs its writer no rendering of it: %s', async (_, metadata) => {
    const { conversationId } = await newConversation(environment)
    const client = await connect(environment.urls.application)
    try {
      const pid = await backendPid(client)
      await insertMessage(environment, conversationId, '{}', client)
      const before = await peakMemory(pid)
      await insertMessage(environment, conversationId, metadata, client)
      // 36 MB of text at the least, 290 MB as a rule.
      expect((await peakMemory(pid)) - before).toBeLessThan(25)
    } finally {
      await client.end()
    }
  })
})

describe('the daemon', () => {
  test('leaves a document alone that is over the threshold only because of its numbers', async () => {
    const ids = [
      await insert(`{"n": [${numbers(500)}]}`),
      await insert(`{"n": [${zeros(500)}]}`),
      await insert(`{"n": {"deep": [{"er": [${numbers(20)}]}]}}`),
      // Short enough to be rendered with the others.
      await insert(`{"n": [${Array(20).fill('1e1000').join(', ')}]}`),
    ]
    await settled(environment)
    for (const id of ids) {
      expect(await deadLetter(id)).toBeNull()
      expect(await hasPointer(id)).toBe(false)
    }
    const dryRun = await lighterOk(environment, [
      'backfill',
      '--table',
      'public.conversation_messages',
      '--dry-run',
      '--json',
    ])
    expect(JSON.parse(dryRun)).toMatchObject({ tables: [{ rows: 0 }] })
  })

  test('offloads a document exactly that is heavy without its large numbers, too', async () => {
    const metadata = `{"a": "${'x'.repeat(9000)}", "n": [1e50, 0e-60, 1e131071, -1e-300], "usage": {"cost": 1e131071}}`
    const id = await insert(metadata)
    await settled(environment)
    expect(await rawMetadata(environment, id)).toMatch(/^\{"artifact_metadata_ref"/)
    expect(await hydrated(environment, id)).toBe(
      await value(environment.admin, `select '${metadata}'::jsonb::text`),
    )
  })

  test('offloads large numbers in the field that goes whatever its size, where their text is not too long', async () => {
    const metadata = `{"tool_interactions": [${numbers(20)}]}`
    const id = await insert(metadata)
    await settled(environment)
    expect((await rawMetadata(environment, id))?.length).toBeLessThan(200)
    expect(await hydrated(environment, id)).toBe(
      await value(environment.admin, `select '${metadata}'::jsonb::text`),
    )
  })

  test('gives up at once on a payload whose numbers would be too long, and says so', async () => {
    const id = await insert(`{"tool_interactions": [${numbers(2200)}]}`)
    await until(async () => (await deadLetter(id)) !== null, 'it is a dead letter')
    expect(await deadLetter(id)).toMatch(/numbers that would be written out to \d+ bytes/)
    expect(
      await value(environment.admin, `select attempts from lighter.failures where row_id = '${id}'`),
    ).toBe(1)
  })

  test('does not open a bomb that stands where a pointer is expected', async () => {
    const id = await insert(
      `{"tool_interactions": [1], "artifact_metadata_ref": [${numbers(2200)}], "tool_interactions_ref": [${numbers(2200)}]}`,
    )
    await settled(environment)
    expect(await deadLetter(id)).toBeNull()
  })

  test('offloads the rows of other tenants while bombs of a dozen kinds arrive', async () => {
    const bombs = [
      `{"n": [${numbers(12_000)}]}`,
      `{"n": [${zeros(12_000)}]}`,
      `{"tool_interactions": [${numbers(12_000)}]}`,
      `{"tool_interactions": [${zeros(12_000)}], "a": "${'x'.repeat(9000)}"}`,
      `{"deep": ${'['.repeat(5000)}${']'.repeat(5000)}, "a": "${'x'.repeat(9000)}"}`,
      `{"tool_interactions": ${'['.repeat(5000)}1${']'.repeat(5000)}}`,
      JSON.stringify({ escapes: '\u0001'.repeat(180_000) }),
      JSON.stringify({
        tool_interactions: Object.fromEntries(Array.from({ length: 50_000 }, (_, i) => [i, i % 2])),
      }),
      JSON.stringify({ tiny: Array(100_000).fill(0) }),
    ]
    const ids: string[] = []
    for (const bomb of bombs) ids.push(await insert(bomb))
    for (const bomb of bombs.slice(0, 4)) await insert(bomb)
    const started = performance.now()
    const others = await Promise.all(Array.from({ length: 20 }, () => insert(JSON.stringify(small))))
    const isOffloaded = async (id: string) =>
      (await rawMetadata(environment, id))?.includes('tool_interactions_ref') === true
    await until(
      async () => (await Promise.all(others.map(isOffloaded))).every(Boolean),
      'the rows of the others are offloaded',
    )
    // Before: 200 s.
    expect(performance.now() - started).toBeLessThan(30_000)
    await settled(environment, 60_000)
    // What is neither of numbers alone nor too long is offloaded.
    for (const id of ids.slice(4)) expect(await hasPointer(id)).toBe(true)
  })

  test('has backends of bounded memory after all of this', async () => {
    const { rows } = await environment.admin.query<{ pid: number }>(
      `select pid from pg_stat_activity where datname = current_database() and application_name like 'pg-lighter%'`,
    )
    expect(rows.length).toBeGreaterThan(0)
    for (const { pid } of rows) expect(await peakMemory(pid)).toBeLessThan(500)
  })
})
