import type { Command } from 'commander'
import { hydrate } from '../artifacts/hydrate.ts'
import { readRows } from '../artifacts/rows.ts'
import { hydrateValue, readValues } from '../artifacts/values.ts'
import { loadConfig } from '../config.ts'
import { requireCurrentSchema } from '../db/migrate.ts'
import { createPool } from '../db/pool.ts'
import { RowError, sqlState } from '../errors.ts'
import type { Source } from '../source/sources.ts'
import { openStore } from '../store/object-store.ts'
import { findSource } from './find-source.ts'
import { print } from './output.ts'

export function addHydrate(program: Command): void {
  program
    .command('hydrate')
    .argument('<row id>', 'primary key of the row')
    .description('print the value of a row as it was before offloading: exact JSON text, text or bytes')
    .option('--table <table>', 'needed when several tables are attached')
    .option('--column <name>', 'needed when several columns of the table are attached')
    .action(async (rowId: string, options: { table?: string; column?: string }) => {
      const config = loadConfig(process.env)
      const pool = createPool(config.databaseUrl, 2, () => undefined)
      const store = openStore(config.store)
      try {
        await requireCurrentSchema(pool)
        const source = await findSource(pool, options.table, options.column)
        if (source.mode === 'document') {
          const row = await readRow(source, rowId, id => readRows(pool, source, [id]))
          print((await hydrate({ db: pool, store }, row)) ?? 'null')
        } else {
          const row = await readRow(source, rowId, id => readValues(pool, source, [id]))
          await writeValue(source, await hydrateValue({ db: pool, store }, source, row))
        }
      } finally {
        await pool.end()
        store.close()
      }
    })
}

/** The id as Postgres reads it: another spelling of the same uuid or number finds the row too. */
async function readRow<R>(
  source: Source,
  rowId: string,
  read: (id: string) => Promise<Map<string, R>>,
): Promise<R> {
  const rows = await read(rowId).catch(error => {
    const state = sqlState(error)
    if (state !== '22P02' && state !== '22003') throw error
    throw new RowError('row_id_malformed', `"${rowId}" is not the id of a row`, {
      cause: error,
      hint: `The primary key of ${source.tableSql} is of type ${source.keyType}.`,
    })
  })
  const [row] = rows.values()
  if (row !== undefined) return row
  throw new RowError('row_not_found', `${source.tableSql} has no row ${rowId} with a tenant`, {
    hint: 'Check the id, and --table.',
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
