import type { Command } from 'commander'
import { pino } from 'pino'
import { loadConfig } from '../config.ts'
import { migrate } from '../db/migrate.ts'
import { LighterError } from '../errors.ts'
import { withAdminClient } from './admin-client.ts'
import { runUntilSignal } from './run-until-signal.ts'

export function addStart(program: Command): void {
  program
    .command('start')
    .description('run the daemon, with the HTTP API, until SIGTERM or SIGINT')
    .option('--no-api', 'only work off the queue')
    .option('--no-worker', 'only serve the HTTP API')
    .option('--no-dashboard', 'serve the HTTP API without the dashboard')
    .option('--migrate', 'first bring the schema up to date, as ADMIN_DATABASE_URL')
    .addHelpText(
      'after',
      '\nExit status: 0 after a clean stop; 1 when the start failed, or work was still in flight at the deadline.',
    )
    .action(async (options: { migrate?: boolean; api: boolean; worker: boolean; dashboard: boolean }) => {
      if (!options.api && !options.worker) {
        throw new LighterError('nothing_to_do', '--no-api and --no-worker together leave nothing to run')
      }
      const config = loadConfig(process.env, { storeOptional: true })
      const log = pino({
        level: config.logLevel,
        base: { service: 'pg-lighter' },
        timestamp: pino.stdTimeFunctions.isoTime,
      })
      if (options.migrate) {
        const plan = await withAdminClient(client => migrate(client), config.adminDatabaseUrl)
        log.info(
          {
            applied: [...plan.pending, ...plan.repeatable].map(f => f.name),
            mended: plan.mended.map(d => d.object),
          },
          'schema is up to date',
        )
        for (const { object, found } of plan.left)
          log.warn({ object, found }, 'an object of the schema is not what it should be; see lighter doctor')
      }
      const { createDaemon } = await import('../daemon.ts')
      await runUntilSignal(
        createDaemon({ config, log, worker: options.worker, api: options.api, dashboard: options.dashboard }),
        log,
        config.shutdownTimeoutMs,
      )
      // Whatever still keeps the process alive must not keep an orchestrator waiting.
      process.exit()
    })
}
