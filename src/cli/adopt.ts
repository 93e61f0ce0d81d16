import type { Command } from 'commander'
import { loadConfig } from '../config.ts'
import { requireCurrentSchema } from '../db/migrate.ts'
import { createPool } from '../db/pool.ts'
import { LighterError } from '../errors.ts'
import { openStore } from '../store/object-store.ts'
import { adoptOwnership } from '../store/ownership.ts'
import { print, printJson } from './output.ts'

export function addAdopt(program: Command): void {
  program
    .command('adopt')
    .description('take over the bucket prefix from another installation that is gone for good')
    .option('--yes', 'really do it')
    .option('--json', 'print one JSON object')
    .action(async (options: { yes?: boolean; json?: boolean }) => {
      const config = loadConfig(process.env)
      if (!options.yes) {
        throw new LighterError(
          'not_confirmed',
          `this makes the database the owner of ${config.store.bucket}/${config.store.prefix}; the present owner, if it still runs, refuses to write from then on`,
          {
            hint: 'If that is what you want: lighter adopt --yes',
          },
        )
      }
      const pool = createPool(config.databaseUrl, 2, () => undefined)
      const store = openStore(config.store)
      try {
        await requireCurrentSchema(pool)
        const { previous, epoch } = await adoptOwnership(pool, store)
        if (options.json) printJson({ adopted: true, previous, epoch })
        else
          print(
            `adopted ${config.store.bucket}/${config.store.prefix} (before: ${previous ?? 'nobody'}), epoch ${epoch}`,
          )
      } finally {
        await pool.end()
        store.close()
      }
    })
}
