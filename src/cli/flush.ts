import { setTimeout as delay } from 'node:timers/promises'
import type { Command } from 'commander'
import type pg from 'pg'
import { loadDatabaseUrl } from '../config.ts'
import { requireCurrentSchema } from '../db/migrate.ts'
import { createPool } from '../db/pool.ts'
import { LighterError } from '../errors.ts'
import { isAnyDaemonWorking, readDaemons } from '../reports/daemons.ts'
import { countQueued, type Queued, type QueuedSource } from '../reports/queued.ts'
import { loadSources } from '../source/sources.ts'
import { findSources } from './find-source.ts'
import { formatCount, print, printJson } from './output.ts'
import { createProgress } from './progress.ts'
import { withTenant } from './tenant-argument.ts'

/** How often the queue is looked at, and how much of the time that may take. */
const lookMs = 250
const restFactor = 10

interface FlushOptions {
  table?: string
  tenant?: string
  wait: boolean
  json?: boolean
}

interface Flushed {
  flushedAt: string
  outcome: 'done' | 'asked' | 'stopped'
  /** Rows that left the queue since. */
  left: number
  rest: Queued
}

export function addFlush(program: Command): void {
  program
    .command('flush')
    .description('let rows that settle or wait leave now, and wait until they have left')
    .option('--table <table>', 'only rows of one table')
    .option('--tenant <tenant>', 'only rows of one tenant: its uuid, or its name')
    .option('--no-wait', 'ask for it, and do not wait')
    .option('--json', 'print one JSON object')
    .addHelpText(
      'after',
      `
Pins and paused tables stay. Rows that are written later wait as before.
Exit status: 1 when no daemon runs, or when rows are left that do not leave by themselves soon.`,
    )
    .action(async (options: FlushOptions) => {
      const pool = createPool(loadDatabaseUrl(process.env), 2, () => undefined)
      const stop = new AbortController()
      process.once('SIGINT', () => stop.abort())
      process.once('SIGTERM', () => stop.abort())
      try {
        await requireCurrentSchema(pool)
        const flushed = await flush(pool, await withTenant(pool, options), stop.signal)
        if (options.json) printJson(toJson(flushed))
        else print(render(flushed))
        if (flushed.outcome !== 'asked' && total(flushed.rest) + flushed.rest.deadLetters > 0)
          process.exitCode = 1
      } finally {
        await pool.end()
      }
    })
}

/** @throws {LighterError} `not_attached`; `no_daemon`, now or while it waits */
async function flush(pool: pg.Pool, options: FlushOptions, signal: AbortSignal): Promise<Flushed> {
  // Also where all tables are meant: with none attached there is nothing to wait for, and a mistake to tell.
  const named = options.table === undefined ? undefined : await findSources(pool, options.table, undefined)
  const tables = [...new Set(named?.map(source => source.tableSql))]
  if (tables.length > 1)
    throw new LighterError('table_ambiguous', 'several tables are called so', {
      hint: `Pass --table with one of: ${tables.join(', ')}`,
    })
  const sources = async () =>
    withState(
      pool,
      named?.map(source => source.id),
    )
  const tenant = options.tenant ?? null
  const before = await pool.query<{ now: string }>('select clock_timestamp()::text as now')
  const queuedBefore = await countQueued(pool, await sources(), tenant, before.rows[0]?.now ?? '')
  const { rows } = await pool.query<{ at: string; iso: string }>(
    `select at::text as at, to_json(at) #>> '{}' as iso from lighter.flush($1::text::regclass, $2) at`,
    [tables[0] ?? null, tenant],
  )
  const { at = '', iso = '' } = rows[0] ?? {}
  if (!(await isAnyDaemonWorking(pool))) throw noDaemon('no daemon is running, so nothing leaves yet')

  const progress = createProgress(options.json === true)
  let all = total(queuedBefore)
  try {
    for (;;) {
      const began = performance.now()
      const rest = await countQueued(pool, await sources(), tenant, at)
      all = Math.max(all, total(rest))
      const left = Math.max(0, all - total(rest) - rest.deadLetters)
      const outcome = !options.wait ? 'asked' : rest.moving === 0 ? 'done' : signal.aborted ? 'stopped' : null
      if (outcome !== null) return { flushedAt: iso, outcome, left, rest }
      if (!(await isAnyDaemonWorking(pool)))
        throw noDaemon(
          `the daemon went away; ${formatCount(left)} rows left, ${formatCount(total(rest))} have not`,
        )
      const troubled = (await readDaemons(pool)).some(daemon => daemon.state === 'paused')
      progress.update(
        `${formatCount(left)} of ${formatCount(all)} rows left${troubled ? '; the store fails, the daemon tries it again and again' : ''}`,
        all === 0 ? null : left / all,
      )
      await delay(Math.max(lookMs, restFactor * (performance.now() - began)), undefined, { signal }).catch(
        () => undefined,
      )
    }
  } finally {
    progress.end()
  }
}

/** Each time anew: a source may be paused, or come out of sight, meanwhile. */
async function withState(pool: pg.Pool, ids: number[] | undefined): Promise<QueuedSource[]> {
  const found = await loadSources(pool)
  const { rows } = await pool.query<{ id: number; paused: boolean }>(
    'select id, paused from lighter.sources where $1::int[] is null or id = any ($1) order by id',
    [ids ?? null],
  )
  if (rows.length === 0)
    throw new LighterError('not_attached', 'no table is attached', { hint: 'Run: lighter attach <table>' })
  return rows.map(row => ({ ...row, found: found.get(row.id) ?? null }))
}

function noDaemon(message: string): LighterError {
  return new LighterError('no_daemon', message, {
    hint: 'Start one: lighter start. Your request is kept: the rows leave when it runs.',
  })
}

const total = ({ moving, retrying, paused, outOfSight }: Queued) => moving + retrying + paused + outOfSight

function toJson({ flushedAt, outcome, left, rest }: Flushed) {
  return {
    flushed_at: flushedAt,
    outcome,
    left,
    queued: total(rest),
    moving: rest.moving,
    retrying: rest.retrying,
    next_attempt_at: rest.nextAttemptAt?.toISOString() ?? null,
    last_error: rest.lastError,
    paused: rest.paused,
    out_of_sight: rest.outOfSight,
    dead_letters: rest.deadLetters,
  }
}

function render({ outcome, left, rest }: Flushed): string {
  const rows = (count: number) => `${formatCount(count)} ${count === 1 ? 'row' : 'rows'}`
  const { moving, retrying, nextAttemptAt, lastError, paused, outOfSight, deadLetters } = rest
  const next = nextAttemptAt === null ? '' : ` (the next at ${nextAttemptAt.toISOString().slice(0, 19)}Z)`
  const lines = [
    outcome === 'asked'
      ? `${rows(total(rest))} may leave now; the daemon takes them`
      : outcome === 'stopped'
        ? `${rows(left)} left the queue; interrupted with ${rows(moving)} to go. The daemon goes on`
        : left + total(rest) + deadLetters === 0
          ? 'nothing was queued'
          : `${rows(left)} left the queue`,
    retrying > 0 &&
      `${rows(retrying)} failed and ${retrying === 1 ? 'waits' : 'wait'} for another attempt${next}: ${lastError?.replace(/\s+/g, ' ') ?? ''}`,
    paused > 0 &&
      `of paused tables ${rows(paused)} ${paused === 1 ? 'stays' : 'stay'}: lighter unpin --all lets them go on`,
    outOfSight > 0 &&
      `of tables that are out of sight ${rows(outOfSight)} ${outOfSight === 1 ? 'stays' : 'stay'}: lighter doctor`,
    deadLetters > 0 && `${rows(deadLetters)} became dead letters: lighter retry --dry-run shows their errors`,
  ]
  return lines.filter(line => line !== false).join('\n')
}
