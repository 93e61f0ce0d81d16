// npm run bench -- <name> [--quick] [--json]
import { Command } from 'commander'
import { benchLatency } from './latency.ts'
import { type BenchReport, printReport, type Table } from './support/report.ts'
import { benchThroughput } from './throughput.ts'
import { benchWritePath } from './write-path.ts'

type Bench = (quick: boolean) => Promise<{ report: BenchReport; tables: Table[] }>

const benches: Record<string, [description: string, run: Bench]> = {
  throughput: [
    'rows a second until all are offloaded, against what people would use instead',
    benchThroughput,
  ],
  'write-path': [
    'what the trigger costs the application: commit rate and p99 of plain writes',
    benchWritePath,
  ],
  latency: ['from commit to rewritten row, against one bare PUT', benchLatency],
}

const program = new Command('bench').description(
  'measures on the embedded pair; every ratio comes from one run',
)
for (const [name, [description, run]] of Object.entries(benches)) {
  program
    .command(name)
    .description(description)
    .option('--quick', 'a smaller run, in under a minute')
    .option('--json', 'print one JSON object')
    .action(async (options: { quick?: boolean; json?: boolean }) => {
      const { report, tables } = await run(options.quick ?? false)
      printReport(report, tables, options.json ?? false)
    })
}
await program.parseAsync()
