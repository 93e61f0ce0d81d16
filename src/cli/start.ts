import type { Command } from 'commander'
import { pino } from 'pino'
import { loadConfig } from '../config.ts'
import { createDaemon } from '../daemon.ts'
import { migrate } from '../db/migrate.ts'
import { withAdminClient } from './admin-client.ts'
import { runUntilSignal } from './run-until-signal.ts'

export function addStart(program: Command): void {
  program
    .command('start')
    .description('run the daemon until SIGTERM or SIGINT')
    .option('--migrate', 'first bring the schema up to date, as ADMIN_DATABASE_URL')
    .action(async (options: { migrate?: boolean }) => {
      const config = loadConfig(process.env)
      const log = pino({
        level: config.logLevel,
        base: { service: 'pg-lighter' },
        timestamp: pino.stdTimeFunctions.isoTime,
      })
      if (options.migrate) {
        const plan = await withAdminClient(client => migrate(client), config.adminDatabaseUrl)
        log.info({ applied: [...plan.pending, ...plan.repeatable].map(f => f.name) }, 'schema is up to date')
      }
      await runUntilSignal(createDaemon({ config, log }), log, config.shutdownTimeoutMs)
      // Whatever still keeps the process alive must not keep an orchestrator waiting.
      process.exit()
    })
}
