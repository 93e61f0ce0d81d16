import type { Command } from 'commander'
import { loadAdminDatabaseUrl } from '../config.ts'
import { LighterError } from '../errors.ts'
import { prepareRepack } from '../reclaim/repack.ts'
import { type Rewritten, rewriteByRepack, rewriteByVacuumFull } from '../reclaim/rewrite.ts'
import { measureSpace, type Space } from '../reclaim/space.ts'
import { durationText, expectedSeconds, type Way, waysFor } from '../reclaim/ways.ts'
import { withAdminClient } from './admin-client.ts'
import { positiveNumber } from './options.ts'
import { formatBytes, formatCount, print, printJson, renderTable } from './output.ts'

interface ReclaimOptions {
  repack?: boolean
  program?: string
  full?: boolean
  yes?: boolean
  timeout: number
  lockTimeout?: number
  dryRun?: boolean
  json?: boolean
}

/** While VACUUM FULL waits, all who read the table wait behind it; pg_repack asks for short moments only. */
const vacuumLockSeconds = 5
const repackLockSeconds = 60

interface Reclaimed {
  space: Space
  ways: Way[]
  /** What would be run, or was. */
  command: string | null
  rewritten: Rewritten | null
}

export function addReclaim(program: Command): void {
  program
    .command('reclaim')
    .argument('<table>', 'such as public.conversation_messages')
    .description(
      'say how much space a rewrite of a table gives back to the disk, and how to do it; rewrites it only if told to',
    )
    .option('--repack', 'rewrite it with pg_repack, while it is read and written')
    .option('--program <path>', 'of pg_repack (default: in PATH, or where Debian puts it)')
    .option('--full', 'rewrite it with VACUUM FULL: nobody can read or write it meanwhile; needs --yes')
    .option('--yes', 'yes, lock the table for as long as VACUUM FULL takes')
    .option('--timeout <seconds>', 'longest time for measuring', positiveNumber, 30)
    .option(
      '--lock-timeout <seconds>',
      'longest wait of the rewrite for its lock (default: 5 of VACUUM FULL, 60 of pg_repack)',
      positiveNumber,
    )
    .option('--dry-run', 'say what would be run, and run nothing')
    .option('--json', 'print one JSON object')
    .addHelpText(
      'after',
      '\nWithout --repack or --full it reads only. A row stays where it is found: triggers, policies and pointers are as before.',
    )
    .action(async (table: string, options: ReclaimOptions) => {
      const reclaimed = await reclaim(table, options)
      if (options.json) printJson(toJson(reclaimed))
      else print(render(reclaimed))
    })
}

/** @throws {LighterError} `options_exclusive`, `full_needs_yes`, and what the rewrite throws */
async function reclaim(table: string, options: ReclaimOptions): Promise<Reclaimed> {
  if (options.repack && options.full)
    throw new LighterError('options_exclusive', '--repack and --full are two ways: give one', {
      hint: 'lighter reclaim <table> says what each needs.',
    })
  const url = loadAdminDatabaseUrl(process.env)
  return withAdminClient(async client => {
    const space = await measureSpace(client, table, options.timeout * 1000)
    const told = { space, ways: waysFor(space) }
    if (options.repack) {
      const repack = await prepareRepack(
        client,
        space,
        url,
        options.program ?? null,
        Math.ceil(options.lockTimeout ?? repackLockSeconds),
      )
      const command = [repack.program, ...repack.args].join(' ')
      if (options.dryRun) return { ...told, command, rewritten: null }
      const say = (line: string) => process.stderr.write(`${line}\n`)
      return { ...told, command, rewritten: await rewriteByRepack(client, space, repack, say) }
    }
    if (options.full) {
      const command = `vacuum (full, analyze) ${space.tableSql}`
      if (options.dryRun) return { ...told, command, rewritten: null }
      if (!options.yes)
        throw new LighterError(
          'full_needs_yes',
          `--full: VACUUM FULL locks ${space.tableSql} against all reading and writing, for about ${durationText(expectedSeconds(space))}`,
          {
            hint: 'Add --yes if the application can wait as long, or rewrite it online: --repack.',
          },
        )
      return {
        ...told,
        command,
        rewritten: await rewriteByVacuumFull(
          client,
          space,
          (options.lockTimeout ?? vacuumLockSeconds) * 1000,
        ),
      }
    }
    return { ...told, command: null, rewritten: null }
  }, url)
}

const givesBack = ({ now, rewritten }: Space) =>
  Math.max(0, now.table - rewritten.table) + Math.max(0, now.indexes - rewritten.indexes)

function render({ space, ways, command, rewritten }: Reclaimed): string {
  const { now, deadBytes, method, note, attached } = space
  const total = now.table + now.indexes
  if (rewritten !== null)
    return `${space.tableSql}: ${formatBytes(rewritten.beforeBytes)} before, ${formatBytes(rewritten.afterBytes)} after, in ${durationText(Math.ceil(rewritten.seconds))}; triggers, policies and rights are as before`
  const lines = [
    `${space.tableSql}: a rewrite gives back about ${formatBytes(givesBack(space))} of ${formatBytes(total)}`,
    renderTable(
      ['', 'now', 'rewritten'],
      [
        ['table and TOAST', formatBytes(now.table), formatBytes(space.rewritten.table)],
        ['indexes', formatBytes(now.indexes), formatBytes(space.rewritten.indexes)],
      ],
    ),
    `By ${method === 'sample' ? 'a sample' : method}: ${note}.`,
    ...(deadBytes !== null && deadBytes > 0.05 * total
      ? [`${formatBytes(deadBytes)} of it are dead rows: VACUUM makes them free for new rows first.`]
      : []),
    ...attached.flatMap(({ column, queued }) =>
      queued !== null && queued > 0
        ? [
            `${formatCount(queued)} rows of ${column} have not left yet: rewrite the table when they have (lighter status).`,
          ]
        : [],
    ),
  ]
  if (command !== null) return [...lines, '', 'would run:', `  ${command}`].join('\n')
  lines.push(
    'Free space is used by new rows, too: a table that grows needs no rewrite.',
    '',
    'Nothing was changed. The ways to rewrite it:',
  )
  for (const way of ways)
    lines.push(
      '',
      `${way.name.replace('_full', ' full')}: ${way.what}`,
      `  lock: ${way.lock}`,
      `  disk: ${way.disk}`,
      ...way.steps.map(step => `    ${step}`),
    )
  return lines.join('\n')
}

function toJson({ space, ways, command, rewritten }: Reclaimed) {
  return {
    table: space.tableSql,
    partitions: space.partitions,
    bytes_now: space.now,
    bytes_rewritten: {
      table: Math.round(space.rewritten.table),
      indexes: Math.round(space.rewritten.indexes),
    },
    gives_back_bytes: Math.round(givesBack(space)),
    dead_bytes: space.deadBytes,
    method: space.method,
    note: space.note,
    expected_seconds_of_full: expectedSeconds(space),
    attached: space.attached,
    command,
    rewritten:
      rewritten === null
        ? null
        : {
            before_bytes: rewritten.beforeBytes,
            after_bytes: rewritten.afterBytes,
            seconds: rewritten.seconds,
          },
    ways,
  }
}
