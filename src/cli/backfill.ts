import type { Command } from 'commander'
import { findAgeColumn, parseAge } from '../backfill/age.ts'
import { backfillSource, estimateBackfill } from '../backfill/backfill.ts'
import type { BackfillFilter } from '../backfill/page.ts'
import { loadDatabaseUrl, loadSessionUrl } from '../config.ts'
import { requireCurrentSchema } from '../db/migrate.ts'
import { createPool, type Queryable } from '../db/pool.ts'
import { LighterError } from '../errors.ts'
import { estimateRows } from '../offload/table-size.ts'
import type { Source } from '../source/sources.ts'
import { takeSweepLock } from '../sweeps/lock.ts'
import { findSources } from './find-source.ts'
import { positiveNumber, wholeNumber } from './options.ts'
import { formatBytes, formatCount, print, printJson, renderTable } from './output.ts'
import { createProgress, type Progress } from './progress.ts'
import { withTenant } from './tenant-argument.ts'
import { createTimeLeft } from './time-left.ts'

interface BackfillOptions {
  table?: string
  column?: string
  tenant?: string
  olderThan?: string
  ageColumn?: string
  rate?: number
  maxQueue: number
  maxLag: number
  restart?: boolean
  dryRun?: boolean
  json?: boolean
}

export function addBackfill(program: Command): void {
  program
    .command('backfill')
    .description('enqueue existing rows that are heavy; goes on where it was stopped')
    .option('--table <table>', 'only rows of one table')
    .option('--column <name>', 'of one column of the table')
    .option('--tenant <tenant>', 'only rows of one tenant: its uuid, or its name')
    .option('--older-than <age>', 'only rows of before: 7d, 12h, 2026-01-01')
    .option('--age-column <name>', 'column that tells how old a row is (default: created_at)')
    .option('--rate <rows/s>', 'rows enqueued a second at most', positiveNumber)
    .option('--max-queue <n>', 'wait while so many backfill jobs are queued', wholeNumber, 50_000)
    .option('--max-lag <seconds>', 'wait while a replica is further behind', positiveNumber, 10)
    .option('--restart', 'begin at the first row again')
    .option('--dry-run', 'count rows and bytes that would go, by tenant, and enqueue none')
    .option('--json', 'print one JSON object')
    .action(async (given: BackfillOptions) => {
      const pool = createPool(loadDatabaseUrl(process.env), 2, () => undefined)
      const stop = new AbortController()
      process.once('SIGINT', () => stop.abort())
      process.once('SIGTERM', () => stop.abort())
      const progress = createProgress(given.json === true)
      try {
        await requireCurrentSchema(pool)
        const options = await withTenant(pool, given)
        const sources = await findSources(pool, options.table, options.column)
        // Before anything is done: of several tables the last may lack the column.
        const filters = new Map<Source, BackfillFilter>()
        for (const source of sources) filters.set(source, await readFilter(pool, source, options))
        const tables = []
        for (const [source, filter] of filters) {
          if (stop.signal.aborted) break
          const run = options.dryRun ? estimate : enqueue
          tables.push(await run(pool, source, filter, options, stop.signal, progress.update))
        }
        progress.end()
        if (options.json) printJson({ dry_run: options.dryRun === true, tables: tables.map(t => t.json) })
        else for (const table of tables) print(table.text)
      } finally {
        progress.end()
        await pool.end()
      }
    })
}

interface Report {
  json: Record<string, unknown>
  text: string
}

type Run = (
  pool: ReturnType<typeof createPool>,
  source: Source,
  filter: BackfillFilter,
  options: BackfillOptions,
  signal: AbortSignal,
  update: Progress['update'],
) => Promise<Report>

const enqueue: Run = async (pool, source, filter, options, signal, update) => {
  const name = `${source.tableSql}.${source.jsonColumn}`
  const { lock, holder } = await takeSweepLock(loadSessionUrl(process.env), `backfill ${name}`)
  if (lock === null) throw new LighterError('busy', `another process backfills ${name}: ${holder}`)
  try {
    let time = createTimeLeft(null)
    let progressText = ''
    const total = await estimateRows(pool, source.tableSql)
    const { outcome, seen, queued, resumedAfter } = await backfillSource(
      {
        pool,
        throttle: {
          rate: options.rate ?? Number.POSITIVE_INFINITY,
          maxQueue: Math.max(1, options.maxQueue),
          maxLagSeconds: options.maxLag,
        },
        signal,
        mayGoOn: () => lock.isHeld(),
        onStart: position => {
          time = createTimeLeft(total, position.seen)
        },
        onProgress: now => {
          progressText = `${name}: ${formatCount(now.queued)} queued; looked at ${time.describe(now.seen)}`
          update(progressText, time.share(now.seen))
        },
        onWait: reason => update(`${progressText === '' ? name : progressText}; ${reason}`),
      },
      source,
      filter,
      options.olderThan ?? null,
      options.restart === true,
    )
    if (!lock.isHeld()) {
      throw new LighterError('lock_lost', 'the connection with the lock was lost', {
        hint: 'Run it again: it goes on where it was.',
      })
    }
    return {
      json: { table: name, outcome, seen, queued, resumed: resumedAfter !== null },
      text: `${name}: ${formatCount(queued)} of ${formatCount(seen)} rows queued${resumedAfter === null ? '' : ' (with what an earlier run did)'}${outcome === 'stopped' ? '; stopped in the middle, run it again to go on' : ''}${queued > 0 ? '. Small ones wait for each other; lighter flush lets them leave now' : ''}`,
    }
  } finally {
    await lock.release()
  }
}

const estimate: Run = async (pool, source, filter, _options, signal, update) => {
  const name = `${source.tableSql}.${source.jsonColumn}`
  const time = createTimeLeft(await estimateRows(pool, source.tableSql))
  const { tenants, ...sums } = await estimateBackfill(pool, source, filter, signal, now =>
    update(`${name}: looked at ${time.describe(now.seen)}`, time.share(now.seen)),
  )
  const top = [...tenants]
    .map(([tenant, of]) => ({ tenant_id: tenant, ...of }))
    .sort((a, b) => b.bytes - a.bytes)
    .slice(0, 20)
  const lines = [
    `${name}: ${formatCount(sums.rows)} of ${formatCount(sums.seen)} rows would go, about ${formatBytes(sums.bytes)} of text (dry run, nothing was queued)${signal.aborted ? '; stopped in the middle' : ''}`,
  ]
  if (top.length > 0) {
    const rows = top.map(t => [t.tenant_id, formatCount(t.rows), formatBytes(t.bytes)])
    lines.push(renderTable(['tenant', 'rows', 'bytes'], rows))
  }
  return {
    json: { table: name, outcome: signal.aborted ? 'stopped' : 'done', ...sums, tenants: top },
    text: lines.join('\n'),
  }
}

/** @throws {LighterError} what --older-than says can't be read; {RowError} the table has no column for it */
async function readFilter(db: Queryable, source: Source, options: BackfillOptions): Promise<BackfillFilter> {
  const tenantId = options.tenant ?? null
  if (options.olderThan === undefined) return { tenantId, cutoff: null, ageColumn: null }
  const cutoff = parseAge(options.olderThan, new Date())
  if (cutoff === null) {
    throw new LighterError(
      'age_malformed',
      `--older-than ${options.olderThan} is neither an age nor a date`,
      {
        hint: 'Such as 7d, 12h, 30m, 2w, 2026-01-01 or 2026-01-01T12:00:00Z',
      },
    )
  }
  return { tenantId, cutoff, ageColumn: await findAgeColumn(db, source, options.ageColumn) }
}
