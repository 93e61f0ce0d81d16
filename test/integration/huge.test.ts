// Values whose binary form tells that they must be streamed, so that none is rendered to learn its length.
import { createHash } from 'node:crypto'
import { expect, test } from 'vitest'
import {
  asJsonbText,
  drained,
  hydrated,
  insertMessage,
  newConversation,
  rawMetadata,
  useDaemon,
  useEnvironment,
} from '../support/environment.ts'

const threshold = 64 * 1024
const environment = await useEnvironment()
await useDaemon(environment, {
  env: {
    STREAM_THRESHOLD_BYTES: String(threshold),
    MAX_PAYLOAD_BYTES: String(1024 * 1024),
  },
})

const shapes: Record<string, unknown> = {
  'one long text': 'é"\\x'.repeat(120_000),
  'short numbers, whose binary form is the longest against their text': Array.from(
    { length: 60_000 },
    (_, n) => n % 10,
  ),
  'empty arrays': Array.from({ length: 100_000 }, () => []),
  'many keys': Object.fromEntries(Array.from({ length: 40_000 }, (_, n) => [`k${n}`, null])),
}

for (const [name, value] of Object.entries(shapes)) {
  for (const field of ['tool_interactions', 'trace']) {
    if (field === 'tool_interactions' && typeof value === 'string') continue
    test(`${name}, in ${field}`, async () => {
      const { conversationId } = await newConversation(environment)
      const metadata = JSON.stringify({ model: 'm', note: 'kept', [field]: value })
      const id = await insertMessage(environment, conversationId, metadata)
      await drained(environment)
      const expected = await asJsonbText(environment, metadata)
      expect(Buffer.byteLength((await rawMetadata(environment, id)) ?? '')).toBeLessThan(1000)
      expect(await hydrated(environment, id)).toBe(expected)
      const { rows } = await environment.admin.query<{ size: number; sha256: string; key: string }>(
        `select size_bytes::int as size, sha256, r2_key as key from artifact_refs where row_id = $1`,
        [id],
      )
      expect(rows).toHaveLength(1)
      const text = String(
        field === 'trace' ? expected : await asJsonbText(environment, JSON.stringify(value)),
      )
      expect(rows[0]).toMatchObject({
        size: Buffer.byteLength(text),
        sha256: createHash('sha256').update(text).digest('hex'),
        key: expect.stringMatching(/\.json$/),
      })
    })
  }
}

test('text that turns out longer than the limit only when it is read stays in its row, with the reason', async () => {
  const { conversationId } = await newConversation(environment)
  // 600,000 bytes in binary form; in text each character is an escape of six.
  const metadata = JSON.stringify({ trace: '\u0001'.repeat(600_000) })
  const id = await insertMessage(environment, conversationId, metadata)
  await expect
    .poll(
      async () =>
        (await environment.admin.query('select last_error from lighter.failed_jobs where row_id = $1', [id]))
          .rows,
      { timeout: 20_000 },
    )
    .toEqual([
      { last_error: expect.stringMatching(/over MAX_PAYLOAD_BYTES \(1048576\): it stays in the row/) },
    ])
  expect(await rawMetadata(environment, id)).toBe(await asJsonbText(environment, metadata))
  const { rows } = await environment.admin.query('select from artifact_refs where row_id = $1', [id])
  expect(rows).toEqual([])
})
