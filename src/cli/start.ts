import type { Command } from 'commander'
import pg from 'pg'
import { pino } from 'pino'
import { loadConfig } from '../config.ts'
import { createDaemon } from '../daemon.ts'
import { migrate } from '../db/migrate.ts'
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
        const client = new pg.Client({
          connectionString: config.adminDatabaseUrl,
          connectionTimeoutMillis: 10_000,
        })
        await client.connect()
        try {
          const plan = await migrate(client)
          log.info(
            { applied: [...plan.pending, ...plan.repeatable].map(f => f.name) },
            'schema is up to date',
          )
        } finally {
          await client.end()
        }
      }
      await runUntilSignal(createDaemon({ config, log }), log, config.shutdownTimeoutMs)
    })
}
