import { type Command, Option } from 'commander'
import { loadConfig } from '../config.ts'
import { requireCurrentSchema } from '../db/migrate.ts'
import { createPool } from '../db/pool.ts'
import { LighterError, RowError } from '../errors.ts'
import { asTenantId } from '../ids.ts'
import { countArtifacts, estimateRows } from '../offload/table-size.ts'
import { estimateRestore } from '../restore/estimate.ts'
import { findOffloaded } from '../restore/find.ts'
import { holdScope, listHeld, type RestoreScope, releaseScope } from '../restore/hold.ts'
import { findLeftOut, findLostRows, type LeftOut } from '../restore/left-out.ts'
import { type RestoreCounts, type RestoreFailure, restoreSource } from '../restore/restore.ts'
import type { Source } from '../source/sources.ts'
import { openStore } from '../store/object-store.ts'
import { type SweepLock, takeSweepLock } from '../sweeps/lock.ts'
import { findSources } from './find-source.ts'
import { positiveNumber } from './options.ts'
import { formatBytes, formatCount, print, printJson, renderTable } from './output.ts'
import { createProgress } from './progress.ts'
import { keyOption, readKey, shellWord } from './row-argument.ts'
import { withTenant } from './tenant-argument.ts'
import { createTimeLeft, type TimeLeft } from './time-left.ts'

interface ScopeOptions {
  table?: string
  column?: string
  tenant?: string
  row?: string[]
  key?: string
  message?: string
  all?: boolean
}

interface RestoreOptions extends ScopeOptions {
  keepOwn?: boolean
  rate?: number
  dryRun?: boolean
  json?: boolean
}

/** Of the rows that failed so many are named. */
const namedFailures = 1000

function addScopeOptions(command: Command): Command {
  return command
    .option('--table <table>', 'rows of one table')
    .option('--column <name>', 'of one column of the table')
    .option('--tenant <tenant>', 'rows of one tenant: its uuid, or its name')
    .addOption(
      new Option('--row <key...>', 'one row: a value for each column of its key').conflicts([
        'tenant',
        'message',
      ]),
    )
    .addOption(keyOption().conflicts(['tenant', 'message', 'row']))
    .addOption(new Option('--message <id>', 'the same as --row').conflicts('tenant'))
    .addOption(new Option('--all', 'everything').conflicts(['tenant', 'row', 'key', 'message']))
}

export function addRestore(program: Command): void {
  addScopeOptions(program.command('restore'))
    .description('put offloaded values back into their rows, and keep them there')
    .option('--keep-own', 'leave rows alone that your application offloaded itself, without pg-lighter')
    .option('--rate <rows/s>', 'rows a second at most', positiveNumber)
    .option('--dry-run', 'count what would be restored and change nothing')
    .option('--json', 'print one JSON object')
    .addHelpText(
      'after',
      '\nExit status: 1 when a row failed or could not be reached; it keeps its pointers.',
    )
    .action(async (options: RestoreOptions) => {
      const config = loadConfig(process.env)
      const pool = createPool(config.databaseUrl, 4, () => undefined, { unlimited: true })
      const store = openStore(config.store)
      const stop = stopOnSignal()
      try {
        await requireCurrentSchema(pool)
        const { sources, scope: chosen } = await readScope(pool, options)
        const scope = { ...chosen, keepOwn: options.keepOwn === true }
        await requireRow(pool, sources, scope)
        if (options.dryRun) {
          const leftOut = await whatIsLeftOut(pool, sources, scope, stop, options)
          await printEstimate(pool, sources, scope, stop, options.json === true, leftOut)
          if (leftOut.length > 0) process.exitCode = 1
          return
        }
        const locks: SweepLock[] = []
        const progress = createProgress(options.json === true)
        try {
          for (const source of sources) {
            const name = nameOf(source)
            const { lock, holder } = await takeSweepLock(config.listenDatabaseUrl, `restore ${name}`)
            if (lock === null) throw new LighterError('busy', `another process restores ${name}: ${holder}`)
            locks.push(lock)
          }
          await holdScope(pool, sources, scope)
          const sum: RestoreCounts = { artifacts: 0, seen: 0, restored: 0, bytes: 0, failed: 0 }
          const failures: (RestoreFailure & { table: string })[] = []
          for (const source of sources) {
            if (stop.aborted) break
            const artifacts = createTimeLeft(await countArtifacts(pool), 0, 'artifacts')
            const total = scope.rowId === null ? await estimateRows(pool, source.tableSql) : 1
            let rows: TimeLeft | null = null
            const counts = await restoreSource(
              {
                pool,
                store,
                config: config.offload,
                rate: options.rate ?? Number.POSITIVE_INFINITY,
                signal: stop,
                mayGoOn: () => locks.every(lock => lock.isHeld()),
                onProgress: now => {
                  if (now.seen > 0) rows ??= createTimeLeft(total)
                  const lookedAt = rows === null ? artifacts.describe(now.artifacts) : rows.describe(now.seen)
                  const share = rows === null ? artifacts.share(now.artifacts) : rows.share(now.seen)
                  progress.update(
                    `${nameOf(source)}: ${formatCount(now.restored)} restored, ${formatBytes(now.bytes)}; looked at ${lookedAt}`,
                    share,
                  )
                },
                onFailure: failure => {
                  if (failures.length < namedFailures) failures.push({ table: nameOf(source), ...failure })
                },
              },
              source,
              scope,
            )
            for (const key of ['artifacts', 'seen', 'restored', 'bytes', 'failed'] as const)
              sum[key] += counts[key]
          }
          progress.end()
          const lost = !locks.every(lock => lock.isHeld())
          const isWhole = !stop.aborted && !lost
          const leftOut = await whatIsLeftOut(pool, sources, scope, stop, options)
          if (options.json)
            printJson({ outcome: isWhole ? 'done' : 'stopped', ...sum, failures, not_restored: leftOut })
          else {
            for (const f of failures) print(`${f.table} ${f.rowId}  ${f.code}: ${f.message}`)
            print(
              `${formatCount(sum.restored)} row(s) restored, ${formatBytes(sum.bytes)}; ${formatCount(sum.failed)} failed and stay as they were`,
            )
            printLeftOut(leftOut)
            print(
              isWhole
                ? heldText(scope)
                : `stopped ${lost ? 'because the connection with the lock was lost' : 'in the middle'}: run it again to go on`,
            )
          }
          if (sum.failed > 0 || leftOut.length > 0 || lost) process.exitCode = 1
        } finally {
          progress.end()
          for (const lock of locks) await lock.release()
        }
      } finally {
        await pool.end()
        store.close()
      }
    })
}

export function addUnpin(program: Command): void {
  addScopeOptions(program.command('unpin'))
    .description('allow what restore has put back to be offloaded again; without options: list it')
    .option('--json', 'print one JSON object')
    .action(async (options: ScopeOptions & { json?: boolean }) => {
      const config = loadConfig(process.env)
      const pool = createPool(config.databaseUrl, 2, () => undefined)
      try {
        await requireCurrentSchema(pool)
        if (!isScoped(options)) {
          const held = await listHeld(pool, await findSources(pool, undefined, undefined))
          if (options.json) printJson({ held })
          else if (held.length === 0) print('nothing is held')
          else
            print(
              renderTable(
                ['table', 'what', 'since'],
                held.map(h => [
                  h.source,
                  h.rowId !== null
                    ? `row ${h.rowId}`
                    : h.tenantId !== null
                      ? `tenant ${h.tenantId}`
                      : 'all (paused)',
                  h.since?.toISOString() ?? '',
                ]),
              ),
            )
          return
        }
        const { sources, scope } = await readScope(pool, options)
        const { pins, resumed } = await releaseScope(pool, sources, scope)
        if (options.json) printJson({ pins, resumed })
        else
          print(
            `${pins} pin(s) taken away, ${resumed} table(s) worked on again; rows that are inline stay until they are written again, or until lighter backfill queues them; lighter flush then lets them leave`,
          )
      } finally {
        await pool.end()
      }
    })
}

function heldText(scope: RestoreScope): string {
  if (scope.rowId !== null)
    return `the row is pinned: it stays inline until lighter unpin --row ${shellWord(scope.rowId)}`
  if (scope.tenantId !== null)
    return `the tenant is pinned: all it writes stays inline until lighter unpin --tenant ${scope.tenantId}`
  return 'offloading is paused: new rows queue and stay inline until lighter unpin --all, or lighter detach'
}

function stopOnSignal(): AbortSignal {
  const stop = new AbortController()
  process.once('SIGINT', () => stop.abort())
  process.once('SIGTERM', () => stop.abort())
  return stop.signal
}

const nameOf = (source: Source) => `${source.tableSql}.${source.jsonColumn}`

function isScoped(options: ScopeOptions): boolean {
  return [options.table, options.tenant, options.row, options.key, options.message, options.all].some(
    o => o !== undefined,
  )
}

/** @throws {LighterError} `scope_missing`; {RowError} for what is not attached, ambiguous or no id */
async function readScope(
  pool: ReturnType<typeof createPool>,
  given: ScopeOptions,
): Promise<{ sources: Source[]; scope: RestoreScope }> {
  if (!isScoped(given)) {
    throw new LighterError('scope_missing', 'what is to be restored was not said', {
      hint: 'Pass --row <id>, --tenant <tenant>, --table <table> or --all.',
    })
  }
  const options = await withTenant(pool, given)
  const sources = await findSources(pool, options.table, options.column)
  const row = options.row ?? (options.message === undefined ? [] : [options.message])
  if (row.length === 0 && options.key === undefined)
    return {
      sources,
      scope: { tenantId: options.tenant === undefined ? null : asTenantId(options.tenant), rowId: null },
    }
  const tables = new Set(sources.map(s => s.tableSql))
  const [first] = sources
  if (tables.size > 1 || first === undefined) {
    throw new LighterError('table_ambiguous', 'several tables are attached', {
      hint: `Pass --table, one of: ${[...tables].join(', ')}`,
    })
  }
  return { sources, scope: { tenantId: null, rowId: await readKey(pool, first, row, options.key) } }
}

/** Else a misspelt id would be pinned. */
async function requireRow(
  pool: ReturnType<typeof createPool>,
  sources: Source[],
  scope: RestoreScope,
): Promise<void> {
  const [source] = sources
  if (scope.rowId === null || source === undefined) return
  const { seen } = await findOffloaded(pool, source, scope, null, 1)
  if (seen === 0)
    throw new RowError('row_not_found', `${source.tableSql} has no row ${scope.rowId}`, {
      hint: 'Check the key, and --table.',
    })
}

async function printEstimate(
  pool: ReturnType<typeof createPool>,
  sources: Source[],
  scope: RestoreScope,
  signal: AbortSignal,
  asJson: boolean,
  leftOut: LeftOut[],
): Promise<void> {
  const progress = createProgress(asJson)
  const found = []
  for (const source of sources) {
    const time = createTimeLeft(scope.rowId === null ? await estimateRows(pool, source.tableSql) : 1)
    const { tenants, ...estimate } = await estimateRestore(pool, source, scope, signal, now =>
      progress.update(`${nameOf(source)}: looked at ${time.describe(now.seen)}`, time.share(now.seen)),
    )
    const top = [...tenants]
      .map(([tenant, of]) => ({ tenant_id: tenant === '' ? null : tenant, ...of }))
      .sort((a, b) => b.bytes - a.bytes)
      .slice(0, 20)
    found.push({ table: nameOf(source), ...estimate, tenants: top })
  }
  progress.end()
  if (asJson) {
    printJson({
      dry_run: true,
      outcome: signal.aborted ? 'stopped' : 'done',
      tables: found,
      not_restored: leftOut,
    })
    return
  }
  for (const table of found) {
    print(
      `${table.table}: ${formatCount(table.rows)} row(s) to restore, about ${formatBytes(table.bytes)}${table.unreadable > 0 ? `; ${formatCount(table.unreadable)} of them can not be, since an artifact is gone or damaged` : ''}`,
    )
    if (table.tenants.length > 1)
      print(
        renderTable(
          ['tenant', 'rows', 'bytes'],
          table.tenants.map(t => [t.tenant_id ?? 'none', formatCount(t.rows), formatBytes(t.bytes)]),
        ),
      )
  }
  printLeftOut(leftOut)
  print(signal.aborted ? 'stopped in the middle' : 'dry run: nothing was changed')
}

async function whatIsLeftOut(
  pool: ReturnType<typeof createPool>,
  sources: Source[],
  scope: RestoreScope,
  signal: AbortSignal,
  options: ScopeOptions,
): Promise<LeftOut[]> {
  // A single row was found, so it is in sight.
  const outOfSight =
    scope.rowId === null
      ? await findLeftOut(pool, options.table === undefined ? null : sources.map(source => source.id))
      : []
  // Every row is looked at once more, which nobody waits for who has stopped it.
  return signal.aborted ? outOfSight : [...outOfSight, ...(await findLostRows(pool, sources, scope))]
}

function printLeftOut(leftOut: LeftOut[]): void {
  for (const { what, reason, advice } of leftOut) {
    print(`not restored: ${what}: ${reason}`)
    print(`      → ${advice}`)
  }
}
