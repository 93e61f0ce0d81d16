// Settings that are allowed but odd: every command still works with them.
import { randomUUID } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { expect, test } from 'vitest'
import { attach, createTable, hydratedByCli, lighter, lighterOk, settled } from '../support/black-box.ts'
import { startDaemon, useFreshEnvironment } from '../support/environment.ts'
import { age, runNow } from '../support/sweep.ts'

const environment = useFreshEnvironment()

test('compaction works when the pack size is no multiple of its divisors', async () => {
  const env = { PACK_MAX_BYTES: '65541' }
  await createTable(environment, 'notes', '(id bigint primary key, tenant_id uuid not null, metadata jsonb)')
  await attach(environment, 'notes')
  const document = `{"tool_interactions": [{"text": "${'x'.repeat(2000)}"}]}`
  await environment.app.query(
    'insert into notes select n, gen_random_uuid(), $1 from generate_series(1, 20) n',
    [document],
  )
  const daemon = await startDaemon(environment, { env })
  await settled(environment)
  await daemon.stop()
  expect(await hydratedByCli(environment, 'notes', '7')).toBe(document)
  await lighterOk(environment, ['sweep', 'compaction'], { env })
})

test('a value out of bounds is refused by the name of its setting', async () => {
  const finished = await lighter(environment, ['sweep', 'compaction'], { env: { PACK_MAX_BYTES: '0' } })
  expect(finished.code).toBe(1)
  expect(finished.stderr).toContain('PACK_MAX_BYTES')
})

interface Bounds {
  least: number
  largest: number
}

/** Every numeric setting, as the documentation has it (which is made of the settings themselves). */
const settings = new Map<string, Bounds>(
  Array.from(
    (await readFile('docs/configuration.md', 'utf8')).matchAll(
      /^\| `(\w+)` +\| a whole number from (\d+) to (\d+) /gm,
    ),
    ([, name = '', least, largest]) => [name, { least: Number(least), largest: Number(largest) }],
  ),
)
// Taken by no command here, and the port of a daemon whose address is asked for.
for (const name of [
  'API_PORT',
  'OTEL_EXPORTER_OTLP_TIMEOUT',
  'OTEL_BSP_MAX_QUEUE_SIZE',
  'OTEL_BSP_SCHEDULE_DELAY',
])
  settings.delete(name)

test('the documentation has the numeric settings', () => {
  expect(settings.size).toBeGreaterThan(30)
  expect(settings.get('OFFLOAD_BATCH_ROWS')).toEqual({ least: 1, largest: 10_000 })
})

/** What would only make the test slow, or dependent on a machine that is. */
const patience = {
  least: {
    OFFLOAD_LEASE_MS: 30_000,
    STORE_TIMEOUT_MS: 10_000,
    SHUTDOWN_TIMEOUT_MS: 10_000,
    SWEEP_RATE: 1000,
  },
  odd: { OFFLOAD_LEASE_MS: 30_001, STORE_TIMEOUT_MS: 10_001, SHUTDOWN_TIMEOUT_MS: 10_001, SWEEP_RATE: 1001 },
  largest: {},
}

const values = {
  least: ({ least }: Bounds) => least,
  /** No multiple of anything. */
  odd: ({ least, largest }: Bounds) => Math.min(largest, 2 * least + 5),
  largest: ({ largest }: Bounds) => largest,
}

const allAt = (pick: (bounds: Bounds) => number | string) =>
  Object.fromEntries(Array.from(settings, ([name, bounds]) => [name, String(pick(bounds))]))

const note = (length: number) =>
  `{"length": ${length}, "tool_interactions": [{"text": "${'x'.repeat(length)}"}]}`
const kept = [1, 1000, 9000, 70_000, 150_000]
const deleted = [2, 1001, 9001]

test.each(['least', 'odd', 'largest'] as const)(
  'every command works with all settings at their %s value',
  { timeout: 240_000 },
  async which => {
    const env = {
      ...allAt(values[which]),
      ...Object.fromEntries(Object.entries(patience[which]).map(([name, value]) => [name, String(value)])),
    }
    await createTable(
      environment,
      'notes',
      '(id bigint primary key, tenant_id uuid not null, metadata jsonb)',
    )
    await attach(environment, 'notes')
    const tenant = randomUUID()
    for (const length of [...kept, ...deleted])
      await environment.app.query('insert into notes values ($1, $2, $3)', [length, tenant, note(length)])
    const daemon = await startDaemon(environment, { env: { ...env, AUTH_MODE: 'dev' }, api: true })
    const health = await fetch(`${daemon.address()}/healthz`)
    expect(health.status).toBe(200)
    await settled(environment)
    await daemon.stop()
    const { rows: offloaded } = await environment.admin.query(
      `select count(*)::int as n from notes where metadata ? 'tool_interactions_ref'`,
    )
    expect(offloaded).toEqual([{ n: kept.length + deleted.length }])
    const { rows: failures } = await environment.admin.query('select * from lighter.failures')
    expect(failures).toEqual([])

    await environment.app.query('delete from notes where id = any ($1::int[])', [deleted])
    await age(environment, '2 days')
    for (const name of [
      'rollup',
      'release',
      'retention',
      'compaction',
      'orphans',
      'verify',
      'vacuum',
      'release',
    ] as const) {
      expect(await runNow(environment, name, { env }), name).toMatchObject({ outcome: 'done' })
    }
    const options = { env }
    expect(await hydratedByCli(environment, 'notes', '70000')).toBe(note(70_000))
    await lighterOk(environment, ['doctor', '--write'], options)
    await lighterOk(environment, ['restore', '--all', '--rate', '1000'], options)
    const { rows: restored } = await environment.admin.query<{ id: number; metadata: string }>(
      'select id::int, metadata::text from notes order by id',
    )
    expect(restored).toEqual(kept.map(length => ({ id: length, metadata: note(length) })))
    await lighterOk(environment, ['backfill', '--dry-run'], options)
    await lighterOk(environment, ['erase', '--tenant', tenant, '--yes'], options)
  },
)

test.each<[string, (bounds: Bounds) => number | string]>([
  ['below the least', ({ least }) => least - 1],
  ['above the largest', ({ largest }) => largest + 1],
  ['a fraction', ({ least }) => `${least}.5`],
  ['a power of ten', () => '1e3'],
  ['hexadecimal', () => '0x400'],
  ['longer than a number can be', () => '9'.repeat(400)],
])('a value that is %s is refused by the names of all settings that have it', async (_, pick) => {
  const finished = await lighter(environment, ['doctor', '--json'], { env: allAt(pick) })
  expect(finished.code).toBe(1)
  const { checks } = JSON.parse(finished.stdout)
  const refused = checks.map((check: { name: string }) => check.name.replace(/^configuration /, ''))
  expect(refused).toEqual(expect.arrayContaining([...settings.keys()]))
})
