// Invariant 5: memory is bounded by configuration, not by payloads or backlog. Measured from outside, on a
// real daemon process.
import { expect, test } from 'vitest'
import { drained, newConversation, useFreshEnvironment } from '../support/environment.ts'
import { spawnDaemon } from '../support/spawn-daemon.ts'

const environment = useFreshEnvironment()

const MiB = 1024 * 1024

/** Made inside Postgres, so that only the daemon ever has to move it. Hashes do not compress below a half. */
const noiseSql = (bytes: string) =>
  `(select string_agg(encode(sha256(convert_to(random()::text || i, 'UTF8')), 'base64'), '') from generate_series(1, ${bytes} / 44) i)`

test('a payload of 120 MiB is streamed in a few parts of memory', { timeout: 180_000 }, async () => {
  const { conversationId } = await newConversation(environment)
  const daemon = await spawnDaemon(environment, { env: { MULTIPART_PART_BYTES: String(5 * MiB) } })
  // One small row first, so that code and connections are counted as idle memory.
  await environment.admin.query(
    `insert into conversation_messages (conversation_id, role, content, metadata) values ($1, 'assistant', '', '{"tool_interactions": [1]}')`,
    [conversationId],
  )
  await drained(environment)
  const idle = await daemon.memory()
  const { rows } = await environment.admin.query<{ id: string; size: number }>(
    `insert into conversation_messages (conversation_id, role, content, metadata)
     select $1, 'assistant', '', jsonb_build_object('document', ${noiseSql(String(120 * MiB))})
     returning id, octet_length(metadata::text) as size`,
    [conversationId],
  )
  expect(rows[0]?.size).toBeGreaterThan(119 * MiB)
  await drained(environment, 120_000)
  const grown = (await daemon.peakMemory()) - idle
  daemon.kill('SIGTERM')
  await daemon.ended
  const { rows: artifacts } = await environment.admin.query(
    `select size_bytes::int as size from artifact_refs where row_id = $1`,
    [rows[0]?.id],
  )
  expect(artifacts).toEqual(rows.map(({ size }) => ({ size })))
  expect(grown / MiB).toBeLessThan(90)
})

/** Peak memory of a daemon that works off a backlog of so many rows of 40 KB. */
async function peakOnBacklog(rows: number): Promise<number> {
  const { conversationId } = await newConversation(environment)
  await environment.admin.query(
    `with noise as materialized (select ${noiseSql('40000')} as text)
     insert into conversation_messages (conversation_id, role, content, metadata)
     select $1, 'assistant', '', jsonb_build_object('n', n, 'trace', noise.text) from noise, generate_series(1, $2::int) n`,
    [conversationId, rows],
  )
  const settings = {
    OFFLOAD_BATCH_BYTES: String(4 * MiB),
    OFFLOAD_BATCHES_IN_FLIGHT: '2',
    OFFLOAD_CODEC: 'none',
  }
  const daemon = await spawnDaemon(environment, { env: settings })
  await drained(environment, 120_000)
  const peak = await daemon.peakMemory()
  daemon.kill('SIGTERM')
  await daemon.ended
  return peak
}

test('a backlog of 240 MB needs no more memory than one of 40 MB', { timeout: 300_000 }, async () => {
  const short = await peakOnBacklog(1000)
  const long = await peakOnBacklog(6000)
  // What it adds is the garbage collector's slack; 200 MB more would be a batch or a queue without a limit.
  expect((long - short) / MiB).toBeLessThan(120)
})
