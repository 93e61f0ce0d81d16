import type { Command } from 'commander'
import { loadDatabaseUrl } from '../config.ts'
import { requireCurrentSchema } from '../db/migrate.ts'
import { createPool, type Queryable } from '../db/pool.ts'
import { namedTableSql, tableNameSql } from '../db/settings.ts'
import { RowError } from '../errors.ts'
import { rowKey } from '../source/row-key.ts'
import { print, printJson } from './output.ts'

export function addRetry(program: Command): void {
  program
    .command('retry')
    .description('bring dead letters back into the queue')
    .option('--table <table>', 'only those of one table')
    .option('--row <key...>', 'only the one of one row: a value for each column of its key')
    .option('--dry-run', 'list them with their errors and change nothing')
    .option('--json', 'print one JSON object')
    .action(async (options: { table?: string; row?: string[]; dryRun?: boolean; json?: boolean }) => {
      const [first, ...others] = options.row ?? []
      const row = first === undefined ? null : rowKey([first, ...others])
      const pool = createPool(loadDatabaseUrl(process.env), 2, () => undefined)
      try {
        await requireCurrentSchema(pool)
        if (options.table !== undefined) await requireAttached(pool, options.table)
        if (options.dryRun) {
          const { rows } = await pool.query<{
            source: string
            row_id: string
            attempts: number
            last_error: string
          }>(
            `select f.source, f.row_id, f.attempts, f.last_error
               from lighter.failures f
               join lighter.sources s on s.id = f.source_id
              where ($1::text is null or s.relation = ${namedTableSql('$1::text')}) and ($2::text is null or f.row_id = $2)
              order by f.failed_at desc limit 1000`,
            [options.table ?? null, row],
          )
          if (options.json) printJson({ failed: rows })
          else if (rows.length === 0) print('no dead letters')
          else
            for (const row of rows)
              print(
                `${row.source} ${row.row_id}  ${row.attempts} attempts  ${row.last_error.replaceAll('\n', ' ')}`,
              )
          return
        }
        const { rows } = await pool.query<{ retried: string }>(
          `select lighter.retry(${namedTableSql('$1::text')}, $2) as retried`,
          [options.table ?? null, row],
        )
        const retried = Number(rows[0]?.retried ?? 0)
        if (options.json) printJson({ retried })
        else print(`${retried} job(s) queued again`)
      } finally {
        await pool.end()
      }
    })
}

/** Else a misspelt table would look like one without dead letters. */
async function requireAttached(db: Queryable, table: string): Promise<void> {
  const { rows } = await db.query<{ attached: boolean; names: string | null }>(
    `select coalesce(bool_or(s.relation = ${namedTableSql('$1::text')}), false) as attached,
            string_agg(distinct ${tableNameSql('s.relation')}, ', ') as names
       from lighter.sources s`,
    [table],
  )
  if (rows[0]?.attached) return
  const names = rows[0]?.names ?? null
  throw new RowError('not_attached', `${table} is not attached`, {
    hint: names === null ? 'Run: lighter attach <table>' : `Attached: ${names}`,
  })
}
