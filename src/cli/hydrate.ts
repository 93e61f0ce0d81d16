import type { Command } from 'commander'
import { hydrate } from '../artifacts/hydrate.ts'
import { readRows } from '../artifacts/rows.ts'
import { hydrateValue, readValues } from '../artifacts/values.ts'
import { loadConfig } from '../config.ts'
import { requireCurrentSchema } from '../db/migrate.ts'
import { createPool, type Queryable } from '../db/pool.ts'
import { namedTableSql } from '../db/settings.ts'
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
    .description('print the value of a row as it was before offloading: exact JSON text, text or bytes')
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
        const rowId = await readKey(pool, source, key, options.key)
        if (source.mode === 'document') {
          const row = rowOf(source, rowId, await readRows(pool, source, [rowId]))
          print((await hydrate({ db: pool, store }, row)) ?? 'null')
        } else {
          const row = rowOf(source, rowId, await readValues(pool, source, [rowId]))
          await writeValue(source, await hydrateValue({ db: pool, store }, source, row))
        }
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
    `select exists (select from lighter.sources s where s.relation::oid = ${namedTableSql('$1::text')}) as "isTable"`,
    [first],
  )
  return rows[0]?.isTable === true ? [first, others] : [undefined, given]
}

function rowOf<R>(source: Source, rowId: string, rows: Map<string, R>): R {
  const row = rows.get(rowId)
  if (row !== undefined) return row
  throw new RowError('row_not_found', `${source.tableSql} has no row ${rowId} with a tenant`, {
    hint: 'Check the key, and --table.',
  })
}

/** JSON on a line, as of documents; any other value as it is, and nothing of SQL null. */
async function writeValue({ columnType }: Source, value: Buffer | null): Promise<void> {
  if (columnType === 'json' || columnType === 'jsonb') print(value?.toString('utf8') ?? 'null')
  else if (value !== null)
    await new Promise<void>((resolve, reject) =>
      process.stdout.write(value, error => (error ? reject(error) : resolve())),
    )
}
