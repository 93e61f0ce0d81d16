import type { Command } from 'commander'
import { hydrate } from '../artifacts/hydrate.ts'
import { readRows } from '../artifacts/rows.ts'
import { loadConfig } from '../config.ts'
import { createPool } from '../db/pool.ts'
import { RowError } from '../errors.ts'
import { loadSources, type Source } from '../offload/sources.ts'
import { openStore } from '../store/object-store.ts'
import { print } from './output.ts'

export function addHydrate(program: Command): void {
  program
    .command('hydrate')
    .argument('<row id>', 'primary key of the row')
    .description("print a row's metadata as it was before offloading (exact JSON text)")
    .option('--table <table>', 'needed when several tables are attached')
    .action(async (rowId: string, options: { table?: string }) => {
      const config = loadConfig(process.env)
      const pool = createPool(config.databaseUrl, 2, () => undefined)
      const store = openStore(config.store)
      try {
        const source = await findSource(pool, options.table)
        const row = (await readRows(pool, source, [rowId])).get(rowId.toLowerCase())
        if (row === undefined) {
          throw new RowError('row_not_found', `${source.tableSql} has no row ${rowId} with a tenant`, {
            hint: 'Check the id, and --table.',
          })
        }
        print((await hydrate({ db: pool, store }, row)) ?? 'null')
      } finally {
        await pool.end()
        store.close()
      }
    })
}

async function findSource(pool: ReturnType<typeof createPool>, table: string | undefined): Promise<Source> {
  const sources = [...(await loadSources(pool)).values()]
  const names = sources.map(s => s.tableSql).join(', ')
  const matching =
    table === undefined
      ? sources
      : sources.filter(s => s.tableSql === table || s.tableSql.endsWith(`.${table}`))
  const [only] = matching
  if (only === undefined) {
    throw new RowError(
      'not_attached',
      table === undefined ? 'no table is attached' : `${table} is not attached`,
      {
        hint: names === '' ? 'Run: lighter attach <table>' : `Attached: ${names}`,
      },
    )
  }
  if (matching.length > 1)
    throw new RowError('table_ambiguous', 'several tables are attached', {
      hint: `Pass --table, one of: ${names}`,
    })
  return only
}
