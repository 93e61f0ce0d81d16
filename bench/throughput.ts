// Rows a second until all are offloaded: pg-lighter against what people would use instead.

import { startContestant, type Usage } from './support/contestant.ts'
import { startDelay } from './support/delay.ts'
import { heavyMessages, loadMessages, type Workload } from './support/messages.ts'
import { postgresUsage } from './support/postgres-usage.ts'
import { atLeast, atMost, type BenchReport, figure, machine, type Table } from './support/report.ts'
import { type BenchServers, postgresSettings, startServers } from './support/servers.ts'

const peers = ['graphile-worker', 'pg-boss', 'inline'] as const
type Name = 'lighter' | 'floor' | (typeof peers)[number]

const labels: Record<Name, string> = {
  lighter: 'pg-lighter',
  'graphile-worker': 'graphile-worker 0.18',
  'pg-boss': 'pg-boss 12',
  inline: 'inline in the application',
  floor: 'floor: SQL alone, no upload',
}

const workloads: Workload[] = ['real', 'calls', 4, 16, 64]

/** Kept with the figures: a name without spaces. */
const keyOf = (workload: Workload) => (typeof workload === 'number' ? `${workload}kb` : workload)
const titleOf = (workload: Workload) =>
  workload === 'real'
    ? 'real distribution'
    : workload === 'calls'
      ? 'its tool calls alone'
      : `payloads of ${workload} KB`

export interface Run extends Usage {
  rowsPerSecond: number
  /** Bytes in the bucket for each byte of payload. */
  storedShare: number
  putsPer1000: number
  /** CPU of all of Postgres, for 1,000 rows. */
  postgresCpuMs: number
  walBytesPerRow: number
}

export async function benchThroughput(quick: boolean): Promise<{ report: BenchReport; tables: Table[] }> {
  const servers = await startServers()
  try {
    const figures: Record<string, number> = {}
    const tables: Table[] = []
    const bestPeer = (key: string) =>
      Math.max(...peers.map(peer => figures[`${key}.${peer}.rows_per_second`] ?? 0))
    for (const workload of quick ? (['real', 16] as Workload[]) : workloads) {
      for (const delayMs of workload === 'real' || !quick ? [0, 50] : [0]) {
        const key = `${keyOf(workload)}.${delayMs}ms`
        const rows: string[][] = []
        for (const name of ['lighter', ...peers, 'floor'] as const) {
          if (name === 'floor' && delayMs > 0) continue
          const run = await runOne(servers, name, workload, delayMs, quick)
          figures[`${key}.${name}.rows_per_second`] = run.rowsPerSecond
          figures[`${key}.${name}.puts_per_1000`] = run.putsPer1000
          figures[`${key}.${name}.cpu_ms_per_1000`] = run.cpuMs
          figures[`${key}.${name}.postgres_cpu_ms_per_1000`] = run.postgresCpuMs
          figures[`${key}.${name}.wal_bytes_per_row`] = run.walBytesPerRow
          figures[`${key}.${name}.peak_mib`] = run.peakBytes / 2 ** 20
          if (name === 'lighter') {
            figures[`${key}.lighter.stored_share`] = run.storedShare
            figures[`${key}.lighter.loop_delay_p99_ms`] = run.loopDelayP99Ms
          }
          rows.push([
            labels[name],
            figure(run.rowsPerSecond),
            figure(run.putsPer1000),
            // $4.50 for a million: https://developers.cloudflare.com/r2/pricing/
            name === 'floor' ? '' : `$${figure(run.putsPer1000 * 1000 * (4.5 / 1e6))}`,
            figure(run.cpuMs),
            figure(run.postgresCpuMs),
            figure(run.walBytesPerRow / 1000),
            figure(run.peakBytes / 2 ** 20),
            figure(run.loopDelayP99Ms),
          ])
        }
        figures[`${key}.against_best_peer`] = (figures[`${key}.lighter.rows_per_second`] ?? 0) / bestPeer(key)
        tables.push({
          title: `${titleOf(workload)}, ${delayMs} ms added to each request: ${figure(figures[`${key}.against_best_peer`] ?? 0)}× the best peer`,
          header: [
            '',
            'rows/s',
            'PUTs per 1,000',
            'PUTs of a million',
            'CPU ms per 1,000',
            'of Postgres',
            'WAL KB a row',
            'peak MiB',
            'loop delay p99 ms',
          ],
          rows,
        })
      }
    }
    const floorShare =
      (figures['real.0ms.lighter.rows_per_second'] ?? 0) / (figures['real.0ms.floor.rows_per_second'] ?? 1)
    figures['real.0ms.against_floor'] = floorShare
    return {
      report: {
        bench: 'throughput',
        machine: machine(),
        settings: { quick, postgres: postgresSettings },
        figures,
        goals: [
          atLeast('real distribution, against the best peer', figures['real.0ms.against_best_peer'] ?? 0, 26),
          atLeast('the same with 50 ms store latency', figures['real.50ms.against_best_peer'] ?? 0, 28),
          atLeast('16 KB payloads, against the best peer', figures['16kb.0ms.against_best_peer'] ?? 0, 8),
          atLeast('real distribution, against the floor', floorShare, 0.5),
          atMost(
            "CPU of Postgres for a row against the floor's, real distribution",
            (figures['real.0ms.lighter.postgres_cpu_ms_per_1000'] ?? 0) /
              (figures['real.0ms.floor.postgres_cpu_ms_per_1000'] ?? 1),
            1.2,
          ),
          atMost(
            "WAL of a row against the floor's, real distribution",
            (figures['real.0ms.lighter.wal_bytes_per_row'] ?? 0) /
              (figures['real.0ms.floor.wal_bytes_per_row'] ?? 1),
            1,
          ),
          atMost(
            'PUTs per 1,000 artifacts, real distribution',
            figures['real.0ms.lighter.puts_per_1000'] ?? 0,
            10,
          ),
          atMost(
            'stored bytes per payload byte, real distribution',
            figures['real.0ms.lighter.stored_share'] ?? 0,
            1 / 7,
          ),
        ],
      },
      tables,
    }
  } finally {
    await servers.stop()
  }
}

/** Enough for some seconds of work, and for peers fewer: their rate does not depend on it. */
function rowCount(name: Name, workload: Workload, quick: boolean): number {
  const bytes = workload === 'real' ? 3500 : workload === 'calls' ? 1500 : workload * 1024
  const fast = name === 'lighter' || name === 'floor'
  const mib = (fast ? 140 : 14) / (quick ? 4 : 1)
  return Math.round((mib * 2 ** 20) / bytes)
}

/** @param settings environment of the contestant beside the bench's own */
export async function runOne(
  servers: BenchServers,
  name: Name,
  workload: Workload,
  delayMs: number,
  quick: boolean,
  settings: Record<string, string> = {},
): Promise<Run> {
  const rows = rowCount(name, workload, quick)
  const database = await servers.createDatabase()
  const delay = delayMs > 0 ? await startDelay(servers.r2Endpoint, delayMs) : null
  try {
    if (name !== 'inline') await loadMessages(database.admin, heavyMessages(workload, rows))
    await database.admin.query('checkpoint')
    const contestant = await startContestant(name, {
      ...database.env,
      ...(delay && { R2_ENDPOINT: delay.endpoint }),
      BENCH_ROWS: String(rows),
      BENCH_WORKLOAD: String(workload),
      // One request at a time for each; more when each takes long.
      BENCH_CONCURRENCY: String(delayMs > 0 ? 96 : 24),
      ...settings,
    })
    const before = await postgresUsage(database.admin)
    const ms = await contestant.run()
    const after = await postgresUsage(database.admin)
    const usage = await contestant.stop()
    const { rows: counted } = await database.admin.query<{
      artifacts: number
      heavy: number
      stored: number
      payload: number
    }>(`
      select (select count(*)::int from public.artifact_refs) as artifacts,
             (select count(*)::int from public.conversation_messages
               where metadata ? 'tool_interactions' or octet_length(metadata::text) > 8000) as heavy,
             (select coalesce(sum(byte_length), 0)::float8 from lighter.objects where state = 'stored') as stored,
             (select coalesce(sum(size_bytes), 0)::float8 from public.artifact_refs) as payload`)
    const { artifacts = 0, heavy = 0, stored = 0, payload = 0 } = counted[0] ?? {}
    if (artifacts !== rows || heavy !== 0) {
      throw new Error(
        `${name} did not do the work: ${artifacts} artifacts of ${rows}, ${heavy} rows still heavy`,
      )
    }
    return {
      ...usage,
      cpuMs: (usage.cpuMs / rows) * 1000,
      rowsPerSecond: rows / (ms / 1000),
      putsPer1000: (usage.puts / rows) * 1000,
      storedShare: stored / payload,
      postgresCpuMs: ((after.cpuMs - before.cpuMs) / rows) * 1000,
      walBytesPerRow: (after.walBytes - before.walBytes) / rows,
    }
  } finally {
    await delay?.stop()
    await database.drop()
  }
}
