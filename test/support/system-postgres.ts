// The machine's own Postgres, with its programs: pg_dump is not among those that npm has.
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { access, chown, readdir } from 'node:fs/promises'
import path from 'node:path'
import { promisify } from 'node:util'
import pg from 'pg'
import { onTestFinished } from 'vitest'
import { accountFor } from '../../src/embedded/account.ts'
import { freePort } from '../../src/embedded/ports.ts'
import type { RunningPostgres } from '../../src/embedded/postgres.ts'
import { endWithUs } from '../../src/embedded/watchdog.ts'
import { until } from './environment.ts'
import { temporaryDir } from './own-server.ts'

const run = promisify(execFile)

/** Why there is none, for a test that is skipped on its account. */
export const noSystemPostgres =
  'no Postgres of the system with pg_dump: apt-get install -y --no-install-recommends postgresql'

/** The folder of its programs, of the newest version; where Debian puts them. */
export async function findSystemPostgres(): Promise<string | null> {
  const root = '/usr/lib/postgresql'
  const versions = await readdir(root).catch(() => [])
  for (const version of versions.sort((a, b) => Number(b) - Number(a))) {
    const programs = path.join(root, version, 'bin')
    const there = await Promise.all(
      ['initdb', 'postgres', 'pg_dump', 'pg_restore'].map(program =>
        access(path.join(programs, program), 1).then(
          () => true,
          () => false,
        ),
      ),
    )
    if (there.every(Boolean)) return programs
  }
  return null
}

/** Stopped, and gone, when the test ends. */
export async function startSystemPostgres(programs: string): Promise<Pick<RunningPostgres, 'url'>> {
  const dataDir = path.join(await temporaryDir('system-postgres'), 'data')
  const account = await accountFor(dataDir)
  if (account !== undefined) await chown(path.dirname(dataDir), account.uid, account.gid)
  await run(
    path.join(programs, 'initdb'),
    ['-D', dataDir, '-U', 'postgres', '--auth=trust', '--encoding=UTF8', '--locale=C', '--no-sync'],
    { cwd: path.dirname(dataDir), ...account },
  )
  const port = await freePort()
  const settings = {
    port: String(port),
    listen_addresses: '127.0.0.1',
    unix_socket_directories: '',
    fsync: 'off',
  }
  const server = spawn(
    path.join(programs, 'postgres'),
    ['-D', dataDir, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])],
    { cwd: path.dirname(dataDir), stdio: 'ignore', ...account },
  )
  const ended = once(server, 'exit').then(() => undefined)
  if (server.pid !== undefined) endWithUs(server.pid, 'INT', ended)
  onTestFinished(async () => {
    server.kill('SIGQUIT')
    await ended
  })
  const url: RunningPostgres['url'] = ({ database = 'postgres', user = 'postgres', password } = {}) =>
    `postgres://${user}${password === undefined ? '' : `:${password}`}@127.0.0.1:${port}/${database}`
  await until(async () => {
    const client = new pg.Client({ connectionString: url() })
    try {
      await client.connect()
      return true
    } catch {
      return false
    } finally {
      await client.end().catch(() => undefined)
    }
  }, "the system's Postgres answers")
  return { url }
}
