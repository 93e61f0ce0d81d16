// npm run bench -- <name> [--quick] [--json]
import { Command } from 'commander'
import { benchCost } from './cost.ts'
import { benchFind } from './find.ts'
import { benchLarge } from './large.ts'
import { benchLatency } from './latency.ts'
import { benchRead } from './read.ts'
import { benchScale } from './scale.ts'
import { benchSize } from './size.ts'
import { type BenchReport, printReport, type Table } from './support/report.ts'
import { benchSweeps } from './sweeps.ts'
import { benchThroughput } from './throughput.ts'
import { benchTune } from './tune.ts'
import { benchWritePath } from './write-path.ts'

type Bench = (quick: boolean) => Promise<{ report: BenchReport; tables: Table[] }>

const benches: Record<string, [description: string, run: Bench]> = {
  throughput: [
    'rows a second until all are offloaded, against what people would use instead',
    benchThroughput,
  ],
  'write-path': [
    'what the triggers cost the application: commit rate and p99 of plain writes, updates with a guard',
    benchWritePath,
  ],
  large: ['payloads of 50 and 200 MB: memory above idle, speed against a bare upload', benchLarge],
  latency: ['from commit to rewritten row, against one bare PUT', benchLatency],
  find: ['one artifact by its id among ten million: CPU of the backend', benchFind],
  scale: ['with a long queue, many artifacts, more daemons', benchScale],
  size: ['what becomes of the database: bytes by relation, before and after', benchSize],
  sweeps: ['what the sweeps get through, and what they free in the bucket', benchSweeps],
  cost: ['the bill of a month against leaving payloads inline, by rate and number of tenants', benchCost],
  tune: ['what each setting does: the real distribution, one setting changed at a time', benchTune],
  read: ['rows hydrated a second, loose and packed, one by one and in batches', benchRead],
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
