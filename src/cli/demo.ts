import { styleText } from 'node:util'
import type { Command } from 'commander'
import { pino } from 'pino'
import type { DemoProgress, DemoReport } from '../demo/run.ts'
import { formatUsd, type Verdict, verdictOf } from '../reports/verdict.ts'
import { wholeNumber } from './options.ts'
import { formatBytes, formatCount, print, printJson, renderTable } from './output.ts'
import { createProgress, type Progress } from './progress.ts'

interface Options {
  external?: boolean
  from?: string
  messages: number
  tenants: number
  seed: number
  rate: number
  largeMb: number
  json?: boolean
}

export function addDemo(program: Command): void {
  program
    .command('demo')
    .description(
      'see it work on this machine: real messages through Postgres into R2 and back, every row verified',
    )
    .option(
      '--external',
      'on the Postgres of ADMIN_DATABASE_URL and the bucket of R2_BUCKET, in a database and under a prefix that are removed again',
    )
    .option('--from <file>', 'replay a JSON-lines file (plain, gzip or zstd) instead of made-up messages')
    .option('--messages <n>', 'how many to make up', wholeNumber, 5000)
    .option('--tenants <n>', 'of how many tenants', wholeNumber, 5)
    .option('--large-mb <n>', 'size of the one huge payload among them; 0: none', wholeNumber, 50)
    .option('--rate <n>', 'messages a second; 0: as fast as they go', wholeNumber, 1000)
    .option('--seed <n>', 'other messages, the same each time', wholeNumber, 1)
    .option('--json', 'print one JSON object')
    .addHelpText('after', '\nExit status: 1 if a single row differs from what was written.')
    .action(async (options: Options) => {
      const aborted = new AbortController()
      const onSignal = () => aborted.abort(new Error('interrupted'))
      process.once('SIGINT', onSignal).once('SIGTERM', onSignal)
      const progress = createProgress(options.json === true)
      const { runDemo } = await import('../demo/run.ts')
      const report = await runDemo({
        ...(options.external && { external: process.env }),
        ...(options.from !== undefined && { from: options.from }),
        seed: options.seed,
        messages: options.messages,
        tenants: Math.max(1, options.tenants),
        largeBytes: options.largeMb * 1024 * 1024,
        perSecond: options.rate,
        // To standard error: with --json, standard output is one object.
        log: pino({ level: 'warn' }, pino.destination(2)),
        signal: aborted.signal,
        onProgress: showProgress(progress),
      }).finally(() => progress.end())
      if (options.json) printJson(report)
      else printReport(report)
      if (report.mismatched > 0) process.exitCode = 1
    })
}

/** Each phase is said at once, how far it is from time to time. */
function showProgress(progress: Progress) {
  let lastPhase: string | undefined
  return (p: DemoProgress) => {
    const line = [
      p.phase.padEnd(9),
      `written ${formatCount(p.written)}${p.total === undefined ? '' : ` of ${formatCount(p.total)}`}`,
      `offloaded ${formatCount(p.offloadedRows)} (${formatBytes(p.payloadBytes)})`,
      p.phase === 'draining' ? `queued ${formatCount(p.queued)}` : '',
      p.verified > 0 ? `verified ${formatCount(p.verified)}` : '',
    ]
      .filter(part => part !== '')
      .join('  ')
    if (p.phase !== lastPhase) progress.begin(line)
    else if (p.phase === 'writing' && p.total !== undefined) progress.update(line, p.written / p.total)
    else if (p.verified > 0 && p.written > 0) progress.update(line, p.verified / p.written)
    else progress.update(line)
    lastPhase = p.phase
  }
}

function formatLatency(ms: number | null): string {
  return ms === null ? 'not known: track_commit_timestamp is off' : `${Math.round(ms)} ms`
}

function printReport(report: DemoReport): void {
  const seconds = (report.duration_ms / 1000).toFixed(1)
  const { balance } = report
  const verdict = demoVerdict(report)
  print(styleText(verdict.pays === false ? 'yellow' : 'green', verdict.text))
  if (balance.pays_usd === false) {
    print(
      `The bill is for ${formatCount(report.puts)} PUTs: the demo sends each row at once. By default rows wait until their pack is worth a PUT.`,
    )
  }
  print()
  print(
    `${formatCount(report.messages)} messages written and offloaded in ${seconds} s, ${formatCount(report.updated)} of them updated and ${formatCount(report.deleted)} deleted moments later.`,
  )
  print()
  print(
    renderTable(
      ['in Postgres, with indexes and TOAST', 'size'],
      [
        [
          'without pg-lighter: the same rows, all payloads inline',
          formatBytes(balance.inline_bytes_measured),
        ],
        ['with pg-lighter, on disk now', formatBytes(balance.disk_bytes_measured)],
        ['  the table', formatBytes(balance.disk_table_bytes_measured)],
        ['  all tables of pg-lighter', formatBytes(balance.disk_ours_bytes_measured)],
        [
          `  free for new rows, in all of these${balance.reusable_bytes_source === 'estimated' ? ', estimated' : ''}`,
          balance.reusable_bytes === null ? 'not known' : formatBytes(balance.reusable_bytes),
        ],
        [
          'with pg-lighter, all tables rewritten (VACUUM FULL)',
          formatBytes(balance.rewritten_bytes_measured),
        ],
        ['  the table', formatBytes(balance.rewritten_table_bytes_measured)],
        ['  all tables of pg-lighter', formatBytes(balance.rewritten_ours_bytes_measured)],
        ['  of those, before the first message', formatBytes(balance.empty_ours_bytes_measured)],
        ['  given back by the rewrite', formatBytes(balance.rewrite_freed_bytes_measured)],
      ],
    ),
  )
  print()
  print(
    renderTable(
      ['bill of 90 days, by lighter.prices', ''],
      [
        ['without pg-lighter', formatUsd(balance.inline_usd_90_days)],
        ['with it: database rewritten, bucket, PUTs', formatUsd(balance.usd_90_days)],
      ],
    ),
  )
  print()
  print(
    renderTable(
      ['in R2', ''],
      [
        ['artifacts', formatCount(report.artifacts)],
        ['payload bytes', formatBytes(report.payload_bytes)],
        ['stored bytes', formatBytes(report.object_bytes)],
        ['objects', formatCount(report.objects)],
        ['PUTs (class A operations)', formatCount(report.puts)],
        ['latency p50', formatLatency(report.latency_p50_ms)],
        ['latency p99', formatLatency(report.latency_p99_ms)],
      ],
    ),
  )
  print()
  if (report.mismatched === 0) {
    print(
      styleText(
        'green',
        `verified: all ${formatCount(report.verified)} rows hydrate to exactly what was written`,
      ),
    )
    return
  }
  print(styleText('red', `${formatCount(report.mismatched)} rows differ from what was written`))
  for (const { id, reason } of report.mismatches.slice(0, 20)) print(`  ${id}  ${reason}`)
}

/** By what was measured: rounding to a cent would hide it. */
const demoVerdict = ({ artifacts, balance }: DemoReport): Verdict =>
  verdictOf({
    artifacts,
    savedUsd: balance.inline_usd_90_days - balance.usd_90_days,
    savedBytes: balance.inline_bytes_measured - balance.rewritten_bytes_measured,
    paysUsd: balance.pays_usd,
    paysBytes: balance.pays_bytes,
    period: 'in 90 days',
    measured: true,
  })
