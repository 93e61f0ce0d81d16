import type { Command } from 'commander'
import { type HydrateInput, hydrate } from '../artifacts/hydrate.ts'
import { readRows } from '../artifacts/rows.ts'
import { loadConfig } from '../config.ts'
import { requireCurrentSchema } from '../db/migrate.ts'
import { createPool, type Queryable } from '../db/pool.ts'
import { RowError } from '../errors.ts'
import type { Source } from '../source/sources.ts'
import { openStore } from '../store/object-store.ts'
import { findSource } from './find-source.ts'
import { print } from './output.ts'
import { type KeyOption, keyOption, readKey } from './row-argument.ts'

interface HydrateOptions extends KeyOption {
  table?: string
  column?: string
}

export function addHydrate(program: Command): void {
  program
    .command('hydrate')
    .argument('[key...]', 'key of the row: a value for each column of it; the table may stand before it')
    .description("print a row's metadata as it was before offloading (exact JSON text)")
    .option('--table <table>', 'needed when several tables are attached')
    .option('--column <name>', 'needed when several columns of the table are attached')
    .addOption(keyOption())
    .action(async (given: string[], options: HydrateOptions) => {
      const config = loadConfig(process.env)
      const pool = createPool(config.databaseUrl, 2, () => undefined)
      const store = openStore(config.store)
      try {
        await requireCurrentSchema(pool)
        const [table, key] = await splitTable(pool, given, options)
        const source = await findSource(pool, table, options.column)
        const row = await readRow(pool, source, await readKey(pool, source, key, options.key))
        print((await hydrate({ db: pool, store }, row)) ?? 'null')
      } finally {
        await pool.end()
        store.close()
      }
    })
}

/** The table, if it stands before the key, and the key. */
async function splitTable(
  db: Queryable,
  given: string[],
  options: HydrateOptions,
): Promise<[string | undefined, string[]]> {
  const [first, ...others] = given
  if (options.table !== undefined || first === undefined) return [options.table, given]
  if (others.length === 0 && options.key === undefined) return [undefined, given]
  const { rows } = await db.query<{ isTable: boolean }>(
    'select exists (select from lighter.sources s where s.relation::oid = to_regclass($1)) as "isTable"',
    [first],
  )
  return rows[0]?.isTable === true ? [first, others] : [undefined, given]
}

async function readRow(db: Queryable, source: Source, rowId: string): Promise<HydrateInput> {
  const row = (await readRows(db, source, [rowId])).get(rowId)
  if (row !== undefined) return row
  throw new RowError('row_not_found', `${source.tableSql} has no row ${rowId} with a tenant`, {
    hint: 'Check the key, and --table.',
  })
}
