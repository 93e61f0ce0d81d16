import { setTimeout } from 'node:timers/promises'
import { type Command, InvalidArgumentError } from 'commander'
import pg from 'pg'
import { loadDatabaseUrl } from '../config.ts'
import { connectSession } from '../db/prepared.ts'
import { SteadyClient } from '../db/settings.ts'
import { LighterError, sqlState } from '../errors.ts'
import { readStats, type Stats } from '../reports/read.ts'
import { renderLine, renderStats } from '../reports/render.ts'
import { outputWidth, print, printJson } from './output.ts'

const defaultSeconds = 2

export function addStats(program: Command): void {
  program
    .command('stats')
    .description('what is stored, the queue, latency, savings and sweeps, as the reports have it')
    .option(
      '--watch [seconds]',
      `again and again: redrawn on a terminal, a line each elsewhere (default ${defaultSeconds})`,
      positive,
    )
    .option('--json', 'print one JSON object')
    .action(async (options: { watch?: true | number; json?: boolean }) => {
      if (options.json && options.watch !== undefined) {
        throw new LighterError('options_exclusive', '--json prints one object; it does not go with --watch', {
          hint: 'For a figure again and again: watch -n 10 lighter stats --json',
        })
      }
      const client = await connect(loadDatabaseUrl(process.env))
      try {
        if (options.watch !== undefined) {
          await watch(client, options.watch === true ? defaultSeconds : options.watch)
        } else {
          const stats = await read(client)
          if (options.json) printJson(stats)
          else for (const line of renderStats(stats, outputWidth()).slice(1)) print(line)
        }
      } finally {
        await client.end().catch(() => undefined)
      }
    })
}

function positive(value: string): number {
  const seconds = Number(value)
  if (!(seconds >= 0.1 && seconds <= 86_400))
    throw new InvalidArgumentError('not a number of seconds from 0.1 on')
  return seconds
}

async function connect(url: string): Promise<pg.Client> {
  const client = new SteadyClient({
    connectionString: url,
    application_name: 'lighter stats',
    connectionTimeoutMillis: 10_000,
  })
  client.on('error', () => undefined) // a lost connection fails the statement that is waiting, which reports it
  await connectSession(client)
  return client
}

/** @throws {LighterError} the login may not read the reports */
async function read(client: pg.Client): Promise<Stats> {
  try {
    return await readStats(client)
  } catch (error) {
    if (sqlState(error) !== '42501') throw error
    throw new LighterError('reports_forbidden', 'this login may not read the reports', {
      cause: error,
      hint: `grant lighter_reporter to ${pg.escapeIdentifier(client.user ?? 'the login')};`,
    })
  }
}

/** Until it is interrupted. A screen is written over, not scrolled, and cut to its height. */
async function watch(client: pg.Client, seconds: number): Promise<void> {
  const stop = new AbortController()
  process.once('SIGINT', () => stop.abort())
  process.once('SIGTERM', () => stop.abort())
  const { stdout } = process
  if (stdout.isTTY) stdout.write('\x1b[?1049h\x1b[?25l')
  try {
    while (!stop.signal.aborted) {
      const stats = await read(client)
      if (stdout.isTTY) {
        const lines = [
          `lighter stats, ${new Date(stats.at).toISOString().slice(0, 19).replace('T', ' ')} UTC, every ${seconds} s; Ctrl-C ends it`,
          ...renderStats(stats, stdout.columns),
        ].slice(0, stdout.rows)
        stdout.write(`\x1b[H${lines.map(line => `${line}\x1b[K`).join('\n')}\x1b[J`)
      } else print(renderLine(stats))
      await setTimeout(seconds * 1000, undefined, { signal: stop.signal }).catch(() => undefined)
    }
  } finally {
    if (stdout.isTTY) stdout.write('\x1b[?25h\x1b[?1049l')
  }
}
