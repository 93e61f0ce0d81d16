import type { Command } from 'commander'
import { loadDatabaseUrl } from '../config.ts'
import { requireCurrentSchema } from '../db/migrate.ts'
import { createPool, type Queryable } from '../db/pool.ts'
import { LighterError, RowError } from '../errors.ts'
import { isAnyDaemonWorking } from '../reports/daemons.ts'
import { type QueueHealth, readSections, sections } from '../reports/read.ts'
import { formatDeparture } from '../reports/render.ts'
import { readRowStatus } from '../reports/row-status.ts'
import { findSource, findSources } from './find-source.ts'
import { formatBytes, formatCount, print, printJson, renderTable } from './output.ts'
import { type KeyOption, keyOption, readKey } from './row-argument.ts'

interface StatusOptions extends KeyOption {
  column?: string
  json?: boolean
}

export function addStatus(program: Command): void {
  program
    .command('status')
    .argument('[table]', 'such as public.conversation_messages')
    .argument('[key...]', 'key of a row: a value for each column of it')
    .description('where a row is on its way out of its table; without arguments: the queue of each table')
    .option('--column <name>', 'needed when several columns of the table are attached')
    .addOption(keyOption())
    .option('--json', 'print one JSON object')
    .action(async (table: string | undefined, key: string[], options: StatusOptions) => {
      const pool = createPool(loadDatabaseUrl(process.env), 2, () => undefined)
      try {
        await requireCurrentSchema(pool)
        if (table === undefined || (key.length === 0 && options.key === undefined))
          await printQueues(pool, table, options)
        else await printRow(pool, table, key, options)
      } finally {
        await pool.end()
      }
    })
}

/** @throws {RowError} `not_attached`, `table_ambiguous`, `row_id_malformed`, `row_not_found` */
async function printRow(db: Queryable, table: string, key: string[], options: StatusOptions): Promise<void> {
  const source = await findSource(db, table, options.column)
  const rowId = await readKey(db, source, key, options.key)
  const status = await readRowStatus(db, source, rowId)
  if (status === null)
    throw new RowError('row_not_found', `${source.tableSql} has no row ${rowId}`, {
      hint: 'Check the key, and the table.',
    })
  if (options.json) {
    printJson({ table: source.tableSql, column: source.jsonColumn, ...status })
    return
  }
  print(status.says)
  if (status.hint !== null) print(status.hint)
}

async function printQueues(
  db: Queryable,
  table: string | undefined,
  { column, json }: StatusOptions,
): Promise<void> {
  if (table === undefined && column !== undefined)
    throw new LighterError('options_exclusive', '--column needs a table', {
      hint: 'Such as: lighter status public.conversation_messages --column metadata',
    })
  // Of a table that is not attached, an error that says so; one that is out of sight has a queue all the same.
  const wanted = table === undefined ? null : (await findSources(db, table, column)).map(source => source.id)
  const { queue, at } = await readSections<{ queue: QueueHealth[]; at: string }>(db, {
    queue: sections.queue,
    at: sections.at,
  })
  const shown = queue.filter(q => wanted === null || wanted.includes(q.source_id))
  const daemonRuns = await isAnyDaemonWorking(db)
  if (json) {
    printJson({ daemon_running: daemonRuns, sources: shown })
    return
  }
  if (shown.length === 0) print('no table is attached: lighter attach <table>')
  else
    print(
      renderTable(
        header,
        shown.map(q => cells(q, at)),
      ),
    )
  if (!daemonRuns) print('No daemon is running. Start one: lighter start')
}

const header = [
  'source',
  'settling',
  'waiting',
  'bytes',
  'next leave',
  'due',
  'in flight',
  'retrying',
  'given up',
]

function cells(q: QueueHealth, at: string): string[] {
  const count = (n: number) => `${q.exact ? '' : '~'}${formatCount(n)}`
  return [
    q.paused ? `${q.source} (paused)` : q.source,
    count(q.settling),
    count(q.waiting),
    formatBytes(q.waiting_bytes),
    formatDeparture(q, at),
    count(q.due),
    formatCount(q.in_flight),
    formatCount(q.retrying),
    formatCount(q.failed),
  ]
}
