// A real daemon process gets SIGKILL at each named step. Every row hydrates at once, before anything has
// recovered; the next daemon finishes the work; the bucket holds nothing that Postgres does not know.
import { describe, expect, test } from 'vitest'
import type { SignalPoint } from '../../src/offload/signals.ts'
import {
  asJsonbText,
  drained,
  insertMessage,
  newConversation,
  startDaemon,
  until,
  useFreshEnvironment,
} from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'
import { expectExact, noise, settings } from '../support/killed.ts'
import { spawnDaemon } from '../support/spawn-daemon.ts'
import { value } from '../support/sql.ts'

const environment = useFreshEnvironment()

async function writeRows(): Promise<Map<string, string>> {
  const written = new Map<string, string>()
  for (let tenant = 0; tenant < 2; tenant++) {
    const { conversationId } = await newConversation(environment)
    for (const metadata of [
      '{"model": "m", "tool_interactions": [{"n": 12345678901234567890.5}]}',
      `{"tool_interactions": ["${noise(500)}"], "trace": "${noise(9000)}"}`,
      `{"trace": "${noise(20_000)}"}`,
    ]) {
      const id = await insertMessage(environment, conversationId, metadata)
      written.set(id, (await asJsonbText(environment, metadata)) ?? '')
    }
  }
  const { conversationId } = await newConversation(environment)
  const large = `{"tool_interactions": ["${noise(100_000)}"], "document": "${noise(12 * 1024 * 1024)}"}`
  const id = await insertMessage(environment, conversationId, large)
  written.set(id, (await asJsonbText(environment, large)) ?? '')
  return written
}

const points: SignalPoint[] = [
  'after-claim',
  'after-split',
  'after-group',
  'after-plan',
  'after-register',
  'before-stream',
  'mid-multipart',
  'before-complete',
  'after-upload',
  'before-commit',
  'after-commit',
  'after-return',
]

/** Rows wait so long for others. */
async function waitFor(maxWait: string): Promise<void> {
  await environment.admin.query(`select lighter.set_defaults(settle_for => '0', max_wait => $1)`, [maxWait])
}

/** What must be so that a daemon comes to the point. @returns ends it */
async function lead(point: SignalPoint, written: Map<string, string>): Promise<() => Promise<void>> {
  if (point === 'after-split') {
    // Another one has died on them.
    const daemon = await spawnDaemon(environment, { env: settings, killAt: 'after-claim' })
    expect(await daemon.ended).toEqual({ code: null, signal: 'SIGKILL' })
    const left = 'select coalesce(max(cardinality(row_ids)), 0) from lighter.leases'
    expect(await value<number>(environment.admin, left)).toBeGreaterThan(1)
  }
  if (point === 'after-group') {
    // The large row goes, the others wait.
    await waitFor('1 hour')
    return () => waitFor('0')
  }
  if (point !== 'after-return') return async () => undefined
  // A row that can not be rewritten fails, and goes back.
  await environment.admin.query(`
    create function refuse() returns trigger language plpgsql as $$ begin
      if new.id::text = '${written.keys().next().value}' then raise exception 'not this one'; end if;
      return new;
    end $$;
    create trigger refuse before update on conversation_messages for each row execute function refuse();
    alter table conversation_messages enable always trigger refuse`)
  return async () => {
    await environment.admin.query('drop trigger refuse on conversation_messages')
  }
}

/** Each row that is not offloaded yet is queued, or worked on, in one place. */
async function expectOnePlace(written: Map<string, string>): Promise<void> {
  const { rows } = await environment.admin.query<{ id: string; places: number; offloaded: boolean }>(
    `select m.id, m.metadata ?| array['tool_interactions_ref', 'artifact_metadata_ref'] as offloaded,
            (select count(*)::int from lighter.jobs j where j.row_id = m.id::text) as places
       from conversation_messages m where m.id::text = any ($1)`,
    [[...written.keys()]],
  )
  expect(rows).toHaveLength(written.size)
  for (const { id, places, offloaded } of rows) expect(places, id).toBe(offloaded ? 0 : 1)
}

describe.for(points)('killed %s', point => {
  test('nothing is lost, and the next daemon finishes', async () => {
    const written = await writeRows()
    const letGo = await lead(point, written)
    const daemon = await spawnDaemon(environment, { env: settings, killAt: point })
    expect(await daemon.ended).toEqual({ code: null, signal: 'SIGKILL' })
    await letGo()

    await expectExact(environment, written)
    await expectOnePlace(written)
    expect((await bucketMismatches(environment)).unregistered).toEqual([])
    expect(await strayArtifacts(environment)).toEqual([])
    if (point === 'mid-multipart') {
      const { rows } = await environment.admin.query(
        `select from lighter.objects where state = 'uploading' and upload_id is not null`,
      )
      expect(rows, 'the open multipart upload is on record').toHaveLength(1)
    }

    const next = await startDaemon(environment, { env: settings })
    await drained(environment, 50_000)
    await next.stop()
    await expectExact(environment, written)
    expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
    expect(await strayArtifacts(environment)).toEqual([])
    const inline = await environment.admin.query(
      `select from conversation_messages where metadata ? 'tool_interactions' or octet_length(metadata::text) > 8000`,
    )
    expect(inline.rowCount, 'rows still heavy').toBe(0)
    const jobs = await environment.admin.query('select from lighter.failed_jobs')
    expect(jobs.rowCount, 'dead letters').toBe(0)
  })
})

const waitedPoints: SignalPoint[] = [
  'after-claim',
  'after-plan',
  'after-upload',
  'before-commit',
  'after-commit',
]

describe.for(waitedPoints)('killed %s, with rows that have waited for others', point => {
  test('nothing is lost, and the next daemon finishes', async () => {
    await waitFor('1 hour')
    const written = await writeRows()
    const waiting = () =>
      value<number>(
        environment.admin,
        'select count(*)::int from lighter.waiting where tenant_id is not null',
      )
    const first = await spawnDaemon(environment, { env: settings })
    await until(async () => (await waiting()) === 6, 'the small rows wait')
    first.kill('SIGTERM')
    await first.ended
    await waitFor('0')

    const daemon = await spawnDaemon(environment, { env: settings, killAt: point })
    expect(await daemon.ended).toEqual({ code: null, signal: 'SIGKILL' })
    await expectExact(environment, written)
    await expectOnePlace(written)
    expect(await strayArtifacts(environment)).toEqual([])

    const next = await startDaemon(environment, { env: settings })
    await drained(environment, 50_000)
    await next.stop()
    await expectExact(environment, written)
    expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
    expect(await value<number>(environment.admin, 'select count(*)::int from lighter.failed_jobs')).toBe(0)
  })
})

test('killed again and again, the work still gets done', async () => {
  const written = await writeRows()
  for (const point of points) {
    const daemon = await spawnDaemon(environment, { env: settings, killAt: point })
    // Those that die earlier leave leases for the one that dies as it splits one. The last ones may find nothing left to do.
    const idle = drained(environment).then(() => daemon.kill('SIGTERM'))
    await Promise.race([daemon.ended, idle])
    await daemon.ended
    await expectExact(environment, written)
  }
  const next = await startDaemon(environment, { env: settings })
  await drained(environment)
  await next.stop()
  await expectExact(environment, written)
  // Ten daemons, one after the other.
}, 180_000)
