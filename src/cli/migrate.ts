import type { Command } from 'commander'
import { compareCatalogue, type Difference } from '../db/catalogue.ts'
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
    .addHelpText(
      'after',
      '\nExit status: 1 when an object differs from what it should be and only a person can mend it; of --status: 2 when something is pending or differs.',
    )
    .action(async (options: Options) => {
      await withAdminClient(async client => {
        if (options.status) {
          const plan = await planMigration(client)
          const pending = [...plan.pending, ...plan.repeatable].map(f => f.name)
          const differences = pending.length > 0 ? [] : await compareCatalogue(client)
          if (options.json)
            printJson({ applied: plan.applied, pending, differences: differences.map(describe) })
          else {
            for (const file of plan.applied) print(`applied  ${file.appliedAt.toISOString()}  ${file.name}`)
            for (const name of pending) print(`pending  ${' '.repeat(24)}  ${name}`)
            for (const difference of differences) print(`differs  ${describe(difference)}`)
          }
          if (pending.length + differences.length > 0) process.exitCode = 2
          return
        }
        const plan = await migrate(client, {
          dryRun: options.dryRun ?? false,
          withExampleTables: options.withExampleTables ?? false,
        })
        const names = [...plan.pending, ...plan.repeatable].map(f => f.name)
        if (options.json)
          printJson({
            dryRun: options.dryRun ?? false,
            [options.dryRun ? 'pending' : 'applied']: names,
            mended: plan.mended.map(d => d.object),
            left: plan.left.map(describe),
          })
        else if (names.length + plan.mended.length + plan.left.length === 0)
          print('nothing to apply: the schema is up to date')
        else {
          for (const name of names) print(`${options.dryRun ? 'would apply' : 'applied'}  ${name}`)
          for (const { object, found } of plan.mended)
            print(`${options.dryRun ? 'would mend' : 'mended'}  ${object} (it ${found})`)
          for (const difference of plan.left) print(`differs  ${describe(difference)}`)
        }
        // Something that only a person can put right.
        if (plan.left.length > 0) process.exitCode = 1
      })
    })
}

/** What is wrong, and what to run. */
function describe({ object, found, mend }: Difference): string {
  const remedy = mend.by === 'hand' ? mend.advice : mend.by === 'statement' ? mend.sql : 'lighter migrate'
  return `${object} ${found}; run: ${remedy}`
}
