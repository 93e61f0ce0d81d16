import type { Command } from 'commander'
import { pino } from 'pino'
import { loadConfig, type SweepName } from '../config.ts'
import { requireCurrentSchema } from '../db/migrate.ts'
import { createPool } from '../db/pool.ts'
import { LighterError } from '../errors.ts'
import { openStore } from '../store/object-store.ts'
import { sweeps } from '../sweeps/all.ts'
import type { Counts } from '../sweeps/context.ts'
import { type Expiring, sweepRetention } from '../sweeps/retention.ts'
import { runSweep } from '../sweeps/run.ts'
import { formatBytes, formatCount, print, printJson, renderTable } from './output.ts'
import { createProgress } from './progress.ts'

export function addSweep(program: Command): void {
  program
    .command('sweep <name>')
    .description(`run a sweep now: ${Object.keys(sweeps).join(', ')}`)
    .option('--dry-run', 'find out what would be done and do none of it')
    .option('--json', 'print one JSON object')
    .action(async (name: string, options: { dryRun?: boolean; json?: boolean }) => {
      const sweep = sweeps[name as SweepName]
      if (sweep === undefined || !Object.hasOwn(sweeps, name)) {
        throw new LighterError('unknown_sweep', `there is no sweep "${name}"`, {
          hint: `One of ${Object.keys(sweeps).join(', ')}`,
        })
      }
      const config = loadConfig(process.env)
      const pool = createPool(config.databaseUrl, 4, () => undefined, { unlimited: true })
      const store = openStore(config.store)
      const stop = new AbortController()
      process.once('SIGINT', () => stop.abort())
      process.once('SIGTERM', () => stop.abort())
      const progress = createProgress(options.json === true)
      const expiring: Expiring[] = []
      try {
        await requireCurrentSchema(pool)
        const { outcome, counts } = await runSweep({
          name,
          sweep:
            name === 'retention' ? context => sweepRetention(context, found => expiring.push(found)) : sweep,
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
            dry_run: options.dryRun === true,
            counts,
            ...(expiring.length > 0 && { expiring }),
          })
        else {
          if (expiring.length > 0) {
            print(
              renderTable(
                ['tenant', 'kind', 'policy', 'artifacts', 'bytes'],
                expiring.map(e => [
                  e.tenant_id,
                  e.kind,
                  e.policy,
                  formatCount(e.artifacts),
                  formatBytes(e.bytes),
                ]),
              ),
            )
          }
          print(
            outcome === 'busy'
              ? `another process runs the sweep ${name} at this moment`
              : `${name}${options.dryRun ? ' (dry run, nothing was changed)' : ''}: ${describe(counts)}${outcome === 'stopped' ? '; stopped in the middle, run it again to go on' : ''}`,
          )
        }
        if (outcome === 'busy') process.exitCode = 2
        if ((counts.damaged ?? 0) > 0) process.exitCode = 1
      } finally {
        progress.end()
        await pool.end()
        store.close()
      }
    })
}

function describe(counts: Counts): string {
  const parts = Object.entries(counts).map(
    ([name, n]) => `${name.replaceAll('_', ' ')} ${name.endsWith('bytes') ? formatBytes(n) : formatCount(n)}`,
  )
  return parts.length === 0 ? 'nothing to do' : parts.join(', ')
}
