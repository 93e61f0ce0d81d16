import { Argument, type Command } from 'commander'
import { pino } from 'pino'
import { loadConfig } from '../config.ts'
import { requireCurrentSchema } from '../db/migrate.ts'
import { createPool } from '../db/pool.ts'
import { openStore } from '../store/object-store.ts'
import { sweeps } from '../sweeps/all.ts'
import type { Counts } from '../sweeps/context.ts'
import { runSweep } from '../sweeps/run.ts'
import { wholeNumber } from './options.ts'
import { formatBytes, formatCount, print, printJson } from './output.ts'
import { createProgress } from './progress.ts'
import { chooseSweep, type SweepOptions } from './sweep-choice.ts'
import { withTenant } from './tenant-argument.ts'

export function addSweep(program: Command): void {
  program
    .command('sweep')
    .addArgument(new Argument('<name>', 'which one').choices(Object.keys(sweeps)))
    .description(`run a sweep now: ${Object.keys(sweeps).join(', ')}`)
    .option('--dry-run', 'find out what would be done and do none of it')
    .option('--json', 'print one JSON object')
    .option('--all', 'verify: every artifact, not a sample; an interrupted pass goes on where it was')
    .option('--tenant <tenant>', "verify --all: only this tenant's: its uuid, or its name")
    .option('--restart', 'verify --all: begin anew')
    .option('--full', 'rollup: count everything anew, and correct what differs')
    .option('--deep', 'orphans: list the bucket and compare it with the account of it')
    .option('--delete-unknown', 'orphans --deep: delete objects that nobody knows')
    .option(
      '--max-deletions <n>',
      'orphans --deep --delete-unknown: no more than this (default 1000)',
      wholeNumber,
    )
    .addHelpText(
      'after',
      '\nExit status: 1 when verify finds a payload damaged or unread, or orphans --deep an object missing; 2 when another process runs this sweep.',
    )
    .action(async (name: string, options: SweepOptions & { dryRun?: boolean; json?: boolean }) => {
      // Before anything is opened, whether the options fit.
      chooseSweep(name, options)
      const config = loadConfig(process.env)
      const pool = createPool(config.databaseUrl, 4, () => undefined, { unlimited: true })
      const store = openStore(config.store)
      const stop = new AbortController()
      process.once('SIGINT', () => stop.abort())
      process.once('SIGTERM', () => stop.abort())
      const progress = createProgress(options.json === true)
      try {
        await requireCurrentSchema(pool)
        const choice = chooseSweep(name, await withTenant(pool, options))
        const { outcome, counts, holder } = await runSweep({
          name: choice.name,
          sweep: choice.sweep,
          pool,
          lockUrl: config.listenDatabaseUrl,
          store,
          config: config.sweeps,
          offload: config.offload,
          log: pino({ level: 'silent' }),
          dryRun: options.dryRun === true,
          signal: stop.signal,
          onProgress: counts => progress.update(describe(counts)),
        })
        progress.end()
        if (options.json)
          printJson({
            sweep: name,
            outcome,
            ...(holder === undefined ? {} : { holder }),
            dry_run: options.dryRun === true,
            counts,
            ...choice.found(),
          })
        else {
          for (const line of choice.lines()) print(line)
          print(
            outcome === 'busy'
              ? `another process runs the sweep ${choice.name}: ${holder}`
              : `${name}${options.dryRun ? ' (dry run, nothing was changed)' : ''}: ${describe(counts)}${outcome === 'stopped' ? '; stopped in the middle, run it again to go on' : ''}`,
          )
        }
        if (outcome === 'busy') process.exitCode = 2
        if ((counts.damaged ?? 0) + (counts.unread ?? 0) + (counts.objects_missing ?? 0) > 0)
          process.exitCode = 1
      } finally {
        progress.end()
        await pool.end()
        store.close()
      }
    })
}

export function describe(counts: Counts): string {
  const parts = Object.entries(counts).map(
    ([name, n]) => `${name.replaceAll('_', ' ')} ${isBytes(name) ? formatBytes(n) : formatCount(n)}`,
  )
  return parts.length === 0 ? 'nothing to do' : parts.join(', ')
}

const isBytes = (name: string) => name.endsWith('bytes') || name.startsWith('bytes')
