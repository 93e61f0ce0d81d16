// npm run torture -- --minutes 5 --seed 1 [--daemons 2] [--json]
import { Command, InvalidArgumentError } from 'commander'
import { positiveNumber, wholeNumber } from '../src/cli/options.ts'
import { formatCount, printJson, renderError } from '../src/cli/output.ts'
import { createProgress } from '../src/cli/progress.ts'
import { explainFindings, hasFailed, printReport } from './report.ts'
import { runTorture } from './run.ts'

interface Options {
  minutes: number
  seed: number
  daemons: number
  json?: boolean
}

function daemonCount(value: string): number {
  const count = wholeNumber(value)
  if (count < 1 || count > 4) throw new InvalidArgumentError('from 1 to 4')
  return count
}

function bar(share: number): string {
  const full = Math.round(share * barLength)
  return `[${'#'.repeat(full)}${'.'.repeat(barLength - full)}]`
}

const barLength = 20

const program = new Command('torture')
  .description('crashes everything all the time while an application writes, and then looks at every row')
  .option('--minutes <n>', 'how long it goes on before the verdict', positiveNumber, 5)
  .option(
    '--seed <n>',
    'another run; what happens is drawn from it, the order in which it happens is not',
    wholeNumber,
    1,
  )
  .option('--daemons <n>', 'processes that offload, 1 to 4', daemonCount, 2)
  .option('--json', 'print one JSON object')
  .addHelpText(
    'after',
    '\nExit status 1 if anything was mismatched, lost, leaked, stuck or shown to another tenant.',
  )
  .action(async ({ json, ...options }: Options) => {
    const aborted = new AbortController()
    const onSignal = () => aborted.abort(new Error('interrupted'))
    process.on('SIGINT', onSignal).on('SIGTERM', onSignal)
    const progress = createProgress(false)
    const report = await runTorture(options, aborted.signal, p =>
      progress.update(
        `${p.phase === 'storm' ? `${bar(p.share)} ${p.secondsLeft} s left` : p.phase}, ${formatCount(p.operations)} writes, ${formatCount(p.reads)} reads, ${formatCount(p.kills)} kills, ${formatCount(p.faults)} faults`,
      ),
    ).finally(() => progress.end())
    if (json) printJson(report)
    else printReport(report)
    if (!hasFailed(report)) return
    process.stderr.write(`seed ${report.seed} failed\n`)
    explainFindings(report)
    process.exitCode = 1
  })

try {
  await program.parseAsync()
} catch (error) {
  process.stderr.write(`${renderError(error)}\n`)
  process.exitCode = 1
}
