// One rate and number of tenants, simulated until packs leave as steadily as rows come, and what was counted of it.
import { mixedArrivals, tenantShares } from './arrivals.ts'
import type { Counted } from './bill.ts'
import { type LiveSize, liveSize } from './live-size.ts'
import type { BenchDatabase, BenchServers } from './servers.ts'
import { startSimulation } from './simulation.ts'
import { sweepNow } from './sweep-now.ts'

/** Entries of the inbox that a daemon groups at once: of a part of the tenants it has a part of them. */
const entriesAtOnce = 10_000
/** As many as cost little, and fill no pack at once where the daemon's would not. */
const leastEntries = 200

export interface Scenario {
  /** Of all tenants. */
  rowsPerSecond: number
  tenants: number
  isZipf: boolean
  /** Of so many tenants one is simulated, with their mean rate: what a tenant costs does not depend on the others. */
  factor: number
  /** Simulated. */
  seconds: number
  /** Of it, until packs leave as steadily as rows come: the first ones take as long as it takes to fill them. */
  warmUpSeconds: number
  /** The worker looks so often. */
  steps: number
}

interface Packs {
  packs: number
  /** Objects of one payload: of rows that are streamed, such as those with very long numbers. */
  loose: number
  /** Bytes of payload. */
  median: number
  /** Of less than the default of PACK_MIN_BYTES. */
  belowMinimum: number
}

export interface Outcome {
  scenario: Scenario
  counted: Counted
  rows: number
  artifacts: number
  putsPer1000: number
  packs: Packs
  /** What waits, by the sizes on record, for a byte of its text. */
  hintShare: number
}

/** What our tables take where a few rows are stored: of so small a part of a database it would count for too much. */
export async function leastSize(servers: BenchServers): Promise<LiveSize> {
  const database = await servers.createDatabase()
  const simulation = await startSimulation(database, { seconds: 2 * 86_400, entriesAtOnce })
  try {
    await simulation.advance(mixedArrivals([1]), 1, 40)
    await simulation.advance([].values(), 1, 2 * 86_400 - 40)
    await sweepNow(database, 'rollup')
    return await liveSize(database.admin)
  } finally {
    await simulation.close()
    await database.drop()
  }
}

/** @param least see `leastSize` */
export async function runScenario(
  servers: BenchServers,
  scenario: Scenario,
  least: LiveSize,
  settings: Record<string, string> = {},
): Promise<Outcome> {
  const { factor, seconds, warmUpSeconds, steps } = scenario
  const rowsPerSecond = scenario.rowsPerSecond / factor
  const database = await servers.createDatabase()
  const simulation = await startSimulation(database, {
    seconds,
    entriesAtOnce: Math.max(leastEntries, Math.ceil(entriesAtOnce / factor)),
    settings,
  })
  try {
    const arrivals = mixedArrivals(tenantShares(scenario.tenants, scenario.isZipf, factor))
    const waited: { rows: number; bytes: number }[] = []
    let artifacts = 0
    let warm: { artifacts: number; seconds: number } | null = null
    for (let step = 1; step <= steps; step++) {
      const result = await simulation.advance(arrivals, rowsPerSecond, seconds / steps)
      artifacts += result.artifacts
      if ((step * 10) % steps < 10)
        await database.admin.query('analyze lighter.waiting, public.conversation_messages')
      const now = (step * seconds) / steps
      if (now < warmUpSeconds) continue
      warm ??= { artifacts, seconds: now }
      waited.push(await countWaiting(database))
    }
    if (warm === null) throw new Error('the simulation is shorter than its warm-up')
    // Of small tenants some rows do not leave within 90 days.
    const leaving = Math.min(1, (artifacts - warm.artifacts) / (rowsPerSecond * (seconds - warm.seconds)))
    const putsPerArtifact = simulation.requests.classA / artifacts
    const end = waited.at(-1) ?? { rows: 0, bytes: 0 }
    const { storedBytes, shippedBytes, packs } = await countStored(database)
    const { waitingBytes, pointerBytes } = await countRows(database)
    // As every quarter of an hour.
    await sweepNow(database, 'rollup')
    const live = await liveSize(database.admin)
    const hintShare = end.bytes === 0 ? 1 : end.bytes / waitingBytes
    const rows = Math.floor(rowsPerSecond * seconds)
    const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length
    return {
      scenario,
      rows,
      artifacts,
      putsPer1000: putsPerArtifact * 1000,
      packs,
      hintShare,
      counted: {
        rowsPerSecond,
        payloadBytes: (shippedBytes + waitingBytes) / rows,
        putsPerSecond: putsPerArtifact * leaving * rowsPerSecond,
        storedShare: storedBytes / shippedBytes,
        ourBytesPerArtifact: (live.catalogue - least.catalogue) / artifacts,
        pointerBytes,
        waitingRows: mean(waited.map(w => w.rows)),
        waitingPayloadBytes: mean(waited.map(w => w.bytes)) / hintShare,
        ourBytesPerWaiting: end.rows === 0 ? 0 : Math.max(0, live.waiting - least.waiting) / end.rows,
      },
    }
  } finally {
    await simulation.close()
    await database.drop()
  }
}

async function countWaiting({ admin }: BenchDatabase): Promise<{ rows: number; bytes: number }> {
  const { rows } = await admin.query<{ rows: number; bytes: number }>(
    'select count(*)::float8 as rows, coalesce(sum(bytes), 0)::float8 as bytes from lighter.waiting',
  )
  return rows[0] ?? { rows: 0, bytes: 0 }
}

async function countStored({ admin }: BenchDatabase) {
  const { rows } = await admin.query<Packs & { storedBytes: number; shippedBytes: number }>(
    `select coalesce(sum(o.byte_length), 0)::float8 as "storedBytes", coalesce(sum(o.payload_bytes), 0)::float8 as "shippedBytes",
            count(*) filter (where is_pack)::int as packs, count(*) filter (where not is_pack)::int as loose,
            coalesce(percentile_cont(0.5) within group (order by o.payload_bytes) filter (where is_pack), 0)::float8 as median,
            count(*) filter (where is_pack and o.payload_bytes < 65536)::int as "belowMinimum"
       from lighter.objects o
      cross join lateral (
        select exists (select from lighter.frames f where f.tenant_id = o.tenant_id and f.r2_key = o.r2_key) as is_pack offset 0) p
      where o.state = 'stored'`,
  )
  const none = { storedBytes: 0, shippedBytes: 0, packs: 0, loose: 0, median: 0, belowMinimum: 0 }
  const { storedBytes, shippedBytes, ...packs } = rows[0] ?? none
  return { storedBytes, shippedBytes, packs }
}

/** Text of the payloads that wait, and what pointers take in the other rows. */
async function countRows({ admin }: BenchDatabase): Promise<{ waitingBytes: number; pointerBytes: number }> {
  const { rows } = await admin.query<{ waitingBytes: number; pointerBytes: number }>(
    `select coalesce(sum(octet_length(coalesce(m.metadata -> 'tool_interactions', m.metadata)::text)) filter (where waits), 0)::float8 as "waitingBytes",
            coalesce(avg(pg_column_size(m.metadata) - pg_column_size(m.metadata - array['tool_interactions_ref', 'tool_interactions_count',
              'artifact_metadata_ref', 'artifact_metadata_kind'])) filter (where not waits), 0)::float8 as "pointerBytes"
       from public.conversation_messages m
      cross join lateral (select exists (select from lighter.waiting w where w.row_id = m.id::text) as waits offset 0) w`,
  )
  return rows[0] ?? { waitingBytes: 0, pointerBytes: 0 }
}
