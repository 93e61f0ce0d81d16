// What each setting does: the real mix, one setting changed at a time.
import { latencies, queueEmpty } from './latency.ts'
import { startContestant } from './support/contestant.ts'
import { startDelay } from './support/delay.ts'
import { heavyMessages } from './support/messages.ts'
import { type BenchReport, figure, machine, type Table } from './support/report.ts'
import { type BenchServers, postgresSettings, startServers } from './support/servers.ts'
import { write } from './support/write.ts'
import { runOne } from './throughput.ts'

/** Against a backlog; the first of each is the default. */
const backlogs: { setting: string; values: string[]; delayMs: number }[] = [
  { setting: 'OFFLOAD_BATCH_ROWS', values: ['2000', '250', '1000', '4000'], delayMs: 0 },
  { setting: 'OFFLOAD_BATCHES_IN_FLIGHT', values: ['3', '1', '6'], delayMs: 0 },
  { setting: 'OFFLOAD_BATCHES_IN_FLIGHT', values: ['3', '1', '6'], delayMs: 50 },
  { setting: 'UPLOAD_CONCURRENCY', values: ['16', '1', '64'], delayMs: 50 },
  { setting: 'OFFLOAD_CODEC', values: ['zstd', 'gzip', 'none'], delayMs: 0 },
]

/** Under messages as they come. */
const perSecond = 100
const settling: { settleFor: string; delayMs: number }[] = [
  { settleFor: '0', delayMs: 0 },
  { settleFor: '1 second', delayMs: 0 },
  { settleFor: '5 seconds', delayMs: 0 },
  { settleFor: '0', delayMs: 50 },
]

export async function benchTune(quick: boolean): Promise<{ report: BenchReport; tables: Table[] }> {
  const servers = await startServers({ track_commit_timestamp: 'on' })
  try {
    const figures: Record<string, number> = {}
    const backlog: string[][] = []
    for (const { setting, values, delayMs } of backlogs) {
      for (const value of values) {
        const run = await runOne(servers, 'lighter', 'real', delayMs, quick, { [setting]: value })
        const key = `${setting}.${value}.${delayMs}ms`
        figures[`${key}.rows_per_second`] = run.rowsPerSecond
        figures[`${key}.puts_per_1000`] = run.putsPer1000
        figures[`${key}.stored_share`] = run.storedShare
        figures[`${key}.cpu_ms_per_1000`] = run.cpuMs
        figures[`${key}.peak_mib`] = run.peakBytes / 2 ** 20
        figures[`${key}.loop_delay_p99_ms`] = run.loopDelayP99Ms
        backlog.push([
          `${setting}=${value}${value === values[0] ? ' (default)' : ''}`,
          `${delayMs} ms`,
          figure(run.rowsPerSecond),
          figure(run.putsPer1000),
          figure(run.storedShare),
          figure(run.cpuMs),
          figure(run.peakBytes / 2 ** 20),
          figure(run.loopDelayP99Ms),
        ])
      }
    }
    const live: string[][] = []
    for (const { settleFor, delayMs } of settling) {
      const { p50, p99, putsPer1000 } = await settlingFor(servers, settleFor, delayMs, quick)
      const key = `settle_for.${settleFor}.${delayMs}ms`
      figures[`${key}.p50_ms`] = p50
      figures[`${key}.p99_ms`] = p99
      figures[`${key}.puts_per_1000`] = putsPer1000
      live.push([
        `settle_for ${settleFor}, max_wait 0`,
        `${delayMs} ms`,
        figure(putsPer1000),
        figure(p50),
        figure(p99),
      ])
    }
    return {
      report: {
        bench: 'tune',
        machine: machine(),
        settings: { quick, postgres: postgresSettings },
        figures,
        goals: [],
      },
      tables: [
        {
          title: 'a backlog of the real distribution',
          header: [
            '',
            'added to a request',
            'rows/s',
            'PUTs per 1,000',
            'stored',
            'CPU ms per 1,000',
            'peak MiB',
            'loop delay p99 ms',
          ],
          rows: backlog,
        },
        {
          title: `${perSecond} messages a second of one tenant`,
          header: ['', 'added to a request', 'PUTs per 1,000', 'p50 ms', 'p99 ms'],
          rows: live,
        },
      ],
    }
  } finally {
    await servers.stop()
  }
}

async function settlingFor(servers: BenchServers, settleFor: string, delayMs: number, quick: boolean) {
  const database = await servers.createDatabase()
  const delay = delayMs > 0 ? await startDelay(servers.r2Endpoint, delayMs) : null
  try {
    await database.admin.query('select lighter.set_defaults(settle_for => $1)', [settleFor])
    const daemon = await startContestant('daemon', {
      ...database.env,
      ...(delay && { R2_ENDPOINT: delay.endpoint }),
    })
    const { xids } = await write(database, {
      clients: 2,
      seconds: quick ? 4 : 15,
      metadata: [...heavyMessages('real', 1)][0]?.metadata ?? '',
      perSecond,
    })
    await queueEmpty(database)
    const { p50, p99 } = await latencies(database, xids)
    const { rows } = await database.admin.query<{ objects: number }>(
      `select count(*)::int as objects from lighter.objects where state = 'stored'`,
    )
    await daemon.stop()
    return { p50, p99, putsPer1000: ((rows[0]?.objects ?? 0) / xids.length) * 1000 }
  } finally {
    await delay?.stop()
    await database.drop()
  }
}
