// Runs pg_repack, a program and an extension of the same version. It ends nobody's session.
import { spawn } from 'node:child_process'
import { access } from 'node:fs/promises'
import path from 'node:path'
import pg from 'pg'
import type { Queryable } from '../db/pool.ts'
import { LighterError, messageOf } from '../errors.ts'
import type { Space } from './space.ts'

export interface Repack {
  program: string
  args: string[]
  /** How it connects, for libpq. The password is in it. */
  env: Record<string, string>
}

/**
 * What would be run. It waits for a lock no longer than `waitSeconds`, and does not end who holds it.
 * @param program as the operator named it; null: looked for in PATH and where Debian puts it
 * @throws {LighterError} `repack_missing`, `repack_version`
 */
export async function prepareRepack(
  db: Queryable,
  space: Space,
  url: string,
  program: string | null,
  waitSeconds: number,
): Promise<Repack> {
  const { rows } = await db.query<{ version: string | null; major: number; superuser: boolean }>(
    `select (select extversion from pg_extension where extname = 'pg_repack') as version,
            current_setting('server_version_num')::int / 10000 as major,
            (select rolsuper from pg_roles where rolname = current_user) as superuser`,
  )
  const { version = null, major = 0, superuser = false } = rows[0] ?? {}
  if (version === null)
    throw new LighterError('repack_missing', '--repack: the extension pg_repack is not in this database', {
      hint: 'create extension pg_repack; (its package first: apt-get install postgresql-<version>-repack). Without it: lighter reclaim <table> names the other ways.',
    })
  const found = await findProgram(program, major)
  const ofProgram = (await outputOf(found, ['--version'])).match(/[\d.]+/)?.[0] ?? 'unknown'
  if (ofProgram !== version)
    throw new LighterError(
      'repack_version',
      `--repack: the program is pg_repack ${ofProgram}, the extension is ${version}`,
      {
        hint: 'They must be of one version: drop extension pg_repack; create extension pg_repack; or name another program with --program.',
      },
    )
  return {
    program: found,
    args: [
      space.partitions > 0 ? `--parent-table=${space.tableSql}` : `--table=${space.tableSql}`,
      '--no-order',
      '--no-kill-backend',
      `--wait-timeout=${waitSeconds}`,
      '--no-password',
      ...(superuser ? [] : ['--no-superuser-check']),
    ],
    env: libpqEnv(url),
  }
}

async function findProgram(wanted: string | null, major: number): Promise<string> {
  const candidates =
    wanted !== null
      ? [wanted]
      : [
          ...(process.env.PATH ?? '').split(path.delimiter).map(dir => path.join(dir, 'pg_repack')),
          `/usr/lib/postgresql/${major}/bin/pg_repack`,
        ]
  for (const candidate of candidates) {
    const isThere = await access(candidate, 1).then(
      () => true,
      () => false,
    )
    if (isThere) return candidate
  }
  throw new LighterError(
    'repack_missing',
    `${wanted === null ? '--repack' : '--program'}: there is no program ${wanted ?? 'pg_repack'} on this machine`,
    {
      hint: `apt-get install postgresql-${major}-repack, or name it: --program /usr/lib/postgresql/${major}/bin/pg_repack`,
    },
  )
}

/** As libpq reads it, so that no password is in the list of processes. */
function libpqEnv(url: string): Record<string, string> {
  const { host, port, user, password, database } = new pg.Client({ connectionString: url })
  const mode = /[?&]sslmode=([\w-]+)/.exec(url)?.[1]
  return {
    PGHOST: host,
    PGPORT: String(port),
    PGUSER: user ?? '',
    PGDATABASE: database ?? '',
    ...(typeof password === 'string' ? { PGPASSWORD: password } : {}),
    ...(mode === undefined ? {} : { PGSSLMODE: mode }),
  }
}

function outputOf(program: string, args: string[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'inherit'] })
    let text = ''
    child.stdout.setEncoding('utf8').on('data', chunk => {
      text += chunk
    })
    child.on('error', reject)
    child.on('close', () => resolve(text))
  })
}

/**
 * To its end; what it says goes to standard error.
 * @throws {LighterError} `repack_failed`: the table is as it was
 */
export async function runRepack(
  { program, args, env }: Repack,
  onLine: (line: string) => void,
): Promise<void> {
  const code = await new Promise<number | null>((resolve, reject) => {
    const { PATH = '', HOME = '' } = process.env
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], env: { PATH, HOME, ...env } })
    for (const stream of [child.stdout, child.stderr])
      stream.setEncoding('utf8').on('data', (text: string) => {
        for (const line of text.split('\n')) if (line.trim() !== '') onLine(line)
      })
    child.on('error', cause =>
      reject(new LighterError('repack_failed', `pg_repack did not start: ${messageOf(cause)}`, { cause })),
    )
    child.on('close', resolve)
  })
  if (code !== 0)
    throw new LighterError('repack_failed', `pg_repack ended with status ${code}: the table is as it was`, {
      hint: 'See what it said above. It may have left its trigger and log table: drop extension pg_repack cascade; create extension pg_repack; removes both.',
    })
}
