// Invariant 7: many daemons do the same as one.
import { expect, test } from 'vitest'
import {
  asJsonbText,
  drained,
  hydratedMany,
  insertMessage,
  newConversation,
  until,
  useFreshEnvironment,
} from '../support/environment.ts'
import { bucketMismatches, strayArtifacts } from '../support/invariants.ts'
import { type DaemonProcess, spawnDaemon } from '../support/spawn-daemon.ts'
import { value } from '../support/sql.ts'

const environment = useFreshEnvironment()

test('four daemons that start at once on one queue offload every row, and each row once', async () => {
  const conversations = await Promise.all(Array.from({ length: 6 }, () => newConversation(environment)))
  const written = new Map<string, string | null>()
  const write = async (n: number) => {
    const conversation = conversations[n % conversations.length]
    const metadata = `{"n": ${n}, "tool_interactions": [${n}, 1e400], "trace": "${'~'.repeat((n % 3) * 5000)}"}`
    const id = await insertMessage(environment, conversation?.conversationId ?? '', metadata)
    written.set(id, metadata)
  }
  const settings = { OFFLOAD_BATCH_ROWS: '50', LOG_LEVEL: 'silent' }
  const starting = Array.from({ length: 4 }, () => spawnDaemon(environment, { env: settings }))
  for (let n = 0; n < 1200; n += 12) await Promise.all(Array.from({ length: 12 }, (_, i) => write(n + i)))
  const daemons = await Promise.all(starting)
  await drained(environment)
  for (const daemon of daemons) daemon.kill('SIGTERM')
  expect(await Promise.all(daemons.map(d => d.ended))).toEqual(daemons.map(() => ({ code: 0, signal: null })))

  const ids = [...written.keys()]
  const texts = await hydratedMany(environment, ids)
  for (const [i, id] of ids.entries()) {
    expect(texts[i]).toBe(await asJsonbText(environment, written.get(id) ?? null))
  }
  const { rows } = await environment.admin.query(
    `select row_id from artifact_refs group by row_id, field having count(*) > 1`,
  )
  expect(rows, 'rows offloaded twice').toEqual([])
  const { rows: heavy } = await environment.admin.query(
    `select id from conversation_messages where metadata ? 'tool_interactions'`,
  )
  expect(heavy).toEqual([])
  expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
  expect(await strayArtifacts(environment)).toEqual([])
})

test('one to eight daemons that come and go share the work: no row is stored twice, no object in vain, sweeps run once', async () => {
  const began = performance.now()
  const conversations = await Promise.all(Array.from({ length: 6 }, () => newConversation(environment)))
  const env = {
    OFFLOAD_BATCH_ROWS: '50',
    LOG_LEVEL: 'silent',
    SWEEP_ROLLUP_CRON: '* * * * * *',
  }
  const written = new Map<string, string>()
  let writing = true
  const writer = (async () => {
    while (writing) {
      const round = conversations.map(async ({ conversationId }, n) => {
        const metadata = `{"tool_interactions": [${written.size + n}, "${'~'.repeat(500)}"]}`
        written.set(await insertMessage(environment, conversationId, metadata), metadata)
      })
      await Promise.all(round)
    }
  })()
  const running = new Set<DaemonProcess>()
  const ended: DaemonProcess['ended'][] = []
  for (const size of [1, 8, 2, 4, 1]) {
    while (running.size > size) {
      const [daemon] = [...running].sort(() => Math.random() - 0.5)
      if (daemon === undefined) break
      running.delete(daemon)
      daemon.kill('SIGTERM')
      ended.push(daemon.ended)
    }
    const missing = Array.from({ length: size - running.size }, () => spawnDaemon(environment, { env }))
    for (const daemon of await Promise.all(missing)) running.add(daemon)
    const artifacts = async () => value<number>(environment.admin, 'select count(*)::int from artifact_refs')
    const before = await artifacts()
    await until(async () => (await artifacts()) >= before + 100, `${size} daemons work`)
  }
  writing = false
  await writer
  await drained(environment)
  for (const daemon of running) {
    daemon.kill('SIGTERM')
    ended.push(daemon.ended)
  }
  for (const end of await Promise.all(ended)) expect(end).toEqual({ code: 0, signal: null })

  expect(await hydratedMany(environment, [...written.keys()])).toEqual([...written.values()])
  const twice = await environment.admin.query(
    'select row_id from artifact_refs group by row_id, field having count(*) > 1',
  )
  expect(twice.rows, 'rows offloaded twice').toEqual([])
  const { rows } = await environment.admin.query(
    `select count(*) filter (where state <> 'stored')::int as "inVain", sum(artifact_count)::int as uploaded,
            (select count(*)::int from artifact_refs) as committed from lighter.objects`,
  )
  const total = rows[0]?.committed
  expect(rows).toEqual([{ inVain: 0, uploaded: total, committed: total }])
  expect(await bucketMismatches(environment)).toEqual({ unregistered: [], missing: [] })
  const runs = await value<number>(
    environment.admin,
    `select count(*)::int from lighter.sweep_runs where sweep = 'rollup' and error is null`,
  )
  expect(runs).toBeGreaterThan(0)
  // One in 50 s, though the clock of each daemon struck every second.
  expect(runs).toBeLessThanOrEqual(Math.ceil((performance.now() - began) / 50_000) + 1)
}, 180_000)
