import type { Command } from 'commander'
import { migrate, planMigration } from '../db/migrate.ts'
import { withAdminClient } from './admin-client.ts'
import { print, printJson } from './output.ts'

interface Options {
  dryRun?: boolean
  status?: boolean
  withExampleTables?: boolean
  json?: boolean
}

export function addMigrate(program: Command): void {
  program
    .command('migrate')
    .description('create or update the schema: tables, functions, views, roles; in one transaction')
    .option('--dry-run', 'say what would be applied and change nothing')
    .option('--status', 'list what has been applied and what is pending; exit status 2 if something is')
    .option(
      '--with-example-tables',
      'also create and attach conversations and conversation_messages, for trying out',
    )
    .option('--json', 'print one JSON object')
    .addHelpText('after', '\nExit status of --status: 2 when something is pending.')
    .action(async (options: Options) => {
      await withAdminClient(async client => {
        if (options.status) {
          const plan = await planMigration(client)
          const pending = [...plan.pending, ...plan.repeatable].map(f => f.name)
          if (options.json) printJson({ applied: plan.applied, pending })
          else {
            for (const file of plan.applied) print(`applied  ${file.appliedAt.toISOString()}  ${file.name}`)
            for (const name of pending) print(`pending  ${' '.repeat(24)}  ${name}`)
          }
          if (pending.length > 0) process.exitCode = 2
          return
        }
        const plan = await migrate(client, {
          dryRun: options.dryRun ?? false,
          withExampleTables: options.withExampleTables ?? false,
        })
        const names = [...plan.pending, ...plan.repeatable].map(f => f.name)
        if (options.json)
          printJson({ dryRun: options.dryRun ?? false, [options.dryRun ? 'pending' : 'applied']: names })
        else if (names.length === 0) print('nothing to apply: the schema is up to date')
        else for (const name of names) print(`${options.dryRun ? 'would apply' : 'applied'}  ${name}`)
      })
    })
}
