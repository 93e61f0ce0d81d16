// As kill.test.ts, at each step of a row whose payloads are streamed.
import { describe, expect, test } from 'vitest'
import type { SignalPoint } from '../../src/offload/signals.ts'
import {
  asJsonbText,
  drained,
  insertMessage,
  newConversation,
  startDaemon,
  useFreshEnvironment,
} from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'
import { expectExact, noise, settings } from '../support/killed.ts'
import { spawnDaemon } from '../support/spawn-daemon.ts'

const environment = useFreshEnvironment()

/** Of what base64 adds zstd takes a quarter away again: two parts of 5 MiB. With nothing but two rows whose payloads are all streamed, so that the points are those of their own way. */
async function writeLargeRows(): Promise<Map<string, string>> {
  const written = new Map<string, string>()
  const { conversationId } = await newConversation(environment)
  for (let n = 0; n < 2; n++) {
    const metadata = `{"tool_interactions": ["${noise(100_000)}"], "document": "${noise(9 * 1024 * 1024)}"}`
    const id = await insertMessage(environment, conversationId, metadata)
    written.set(id, (await asJsonbText(environment, metadata)) ?? '')
  }
  return written
}

/** The first of its steps that comes to the point, and what has become of the objects by then. */
const largePoints: [string, SignalPoint, number, Record<string, number>][] = [
  ['between its batch and its stream', 'before-stream', 1, {}],
  ['between register and upload', 'after-register', 1, { uploading: 1 }],
  ['between its two payloads', 'after-register', 2, { uploading: 2 }],
  ['between two parts', 'mid-multipart', 1, { uploading: 2 }],
  ['between the last part and completion', 'before-complete', 1, { uploading: 2 }],
  // The batch it came from, which has no payload of its own, is the first to pass these.
  ['between upload and commit', 'after-upload', 2, { uploading: 2 }],
  ['just before the commit', 'before-commit', 2, { uploading: 2 }],
  ['between commit and release', 'after-commit', 2, { stored: 2 }],
  ['between the one large row and the next', 'before-stream', 2, { stored: 2 }],
]

describe.for(largePoints)('killed on a large row, %s', ([, point, nth, states]) => {
  test('nothing is lost, and the next daemon finishes', async () => {
    const written = await writeLargeRows()
    const env = { ...settings, STREAM_CONCURRENCY: '1', OFFLOAD_LEASE_MS: '3000' }
    const daemon = await spawnDaemon(environment, { env, killAt: point, killAtNth: nth })
    expect(await daemon.ended).toEqual({ code: null, signal: 'SIGKILL' })
    const { rows } = await environment.admin.query<{ state: string; n: number }>(
      'select state, count(*)::int as n from lighter.objects group by state',
    )
    expect(Object.fromEntries(rows.map(row => [row.state, row.n]))).toEqual(states)
    await expectExact(environment, written)
    expect((await bucketMismatches(environment)).unregistered).toEqual([])

    const next = await startDaemon(environment, { env })
    await drained(environment, 50_000)
    await next.stop()
    await expectExact(environment, written)
    expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
    expect(await strayArtifacts(environment)).toEqual([])
    const { rowCount } = await environment.admin.query('select from lighter.failed_jobs')
    expect(rowCount, 'dead letters').toBe(0)
  })
})
