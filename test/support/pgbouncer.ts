// A real PgBouncer in front of the test server, where the machine has one.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { access, chmod, chown, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import pg from 'pg'
import { onTestFinished } from 'vitest'
import { accountFor } from '../../src/embedded/account.ts'
import { freePort } from '../../src/embedded/ports.ts'
import { endWithUs } from '../../src/embedded/watchdog.ts'
import { until } from './environment.ts'

/** Debian's package puts it where the PATH of ordinary users does not look. */
const places = [
  ...(process.env.PATH ?? '').split(path.delimiter),
  '/usr/sbin',
  '/usr/local/sbin',
  '/opt/homebrew/bin',
]

/** Why there is none, for a test that is skipped on its account. */
export const noPgBouncer =
  'no pgbouncer on this machine: apt-get install -y --no-install-recommends pgbouncer'

export async function findPgBouncer(): Promise<string | null> {
  for (const place of places) {
    const program = path.join(place, 'pgbouncer')
    if (
      await access(program, 1).then(
        () => true,
        () => false,
      )
    )
      return program
  }
  return null
}

export interface PgBouncer {
  /** The same URL, by way of this pooler. */
  through(url: string): string
  /** A command of its console, such as `pause`. */
  command(sql: string): Promise<void>
  log(): Promise<string>
  /** Killed, and started again on the same port. */
  restart(): Promise<void>
  stop(): Promise<void>
}

export interface PgBouncerOptions {
  poolMode: 'transaction' | 'session'
  /** Connections to the server, for each login and database. */
  poolSize?: number
  settings?: Record<string, string>
}

const console = { user: 'pooler_console', password: 'console' }

/** In front of the server of these URLs, for their logins; gone when the test is. */
export async function startPgBouncer(urls: string[], options: PgBouncerOptions): Promise<PgBouncer> {
  const program = await findPgBouncer()
  if (program === null) throw new Error(noPgBouncer)
  const [first] = urls
  if (first === undefined) throw new Error('no URL')
  const server = new URL(first)
  const port = await freePort()
  const dir = await mkdtemp(path.join(tmpdir(), 'pg-lighter-pgbouncer-'))
  const account = await accountFor(dir)
  const settings = {
    listen_addr: '127.0.0.1',
    listen_port: String(port),
    unix_socket_dir: '',
    auth_type: 'scram-sha-256',
    auth_file: path.join(dir, 'users'),
    admin_users: console.user,
    pool_mode: options.poolMode,
    default_pool_size: String(options.poolSize ?? 20),
    max_client_conn: '400',
    logfile: path.join(dir, 'log'),
    // A server that comes back is tried again at once.
    server_login_retry: '1',
    ...options.settings,
  }
  const lines = Object.entries(settings).map(([name, value]) => `${name} = ${value}`)
  const logins = urls.map(url => new URL(url))
  const users = [console, ...logins.map(l => ({ user: l.username, password: l.password }))].map(
    ({ user, password }) => `"${decodeURIComponent(user)}" "${decodeURIComponent(password)}"`,
  )
  await writeFile(
    path.join(dir, 'ini'),
    `[databases]\n* = host=${server.hostname} port=${server.port}\n[pgbouncer]\n${lines.join('\n')}\n`,
  )
  await writeFile(path.join(dir, 'users'), `${users.join('\n')}\n`)
  await writeFile(path.join(dir, 'log'), '')
  await chmod(dir, 0o755)
  if (account !== undefined) await chown(path.join(dir, 'log'), account.uid, account.gid)

  const through = (url: string) => {
    const changed = new URL(url)
    changed.host = `127.0.0.1:${port}`
    return changed.href
  }
  const consoleUrl = `postgres://${console.user}:${console.password}@127.0.0.1:${port}/pgbouncer`
  const command = async (sql: string) => {
    const client = new pg.Client({ connectionString: consoleUrl })
    client.on('error', () => undefined)
    await client.connect()
    try {
      await client.query(sql)
    } finally {
      await client.end()
    }
  }
  const log = () => readFile(path.join(dir, 'log'), 'utf8')

  const start = async () => {
    const child = spawn(program, [path.join(dir, 'ini')], { cwd: '/', stdio: 'ignore', ...account })
    const ended = once(child, 'exit').then(() => undefined)
    if (child.pid !== undefined) endWithUs(child.pid, 'INT', ended)
    await until(
      async () => {
        if (child.exitCode !== null) throw new Error(`pgbouncer ended: ${await log()}`)
        return command('show version').then(
          () => true,
          () => false,
        )
      },
      'pgbouncer answers',
      10_000,
    )
    return { child, ended }
  }
  let running = await start()
  const stop = async () => {
    running.child.kill('SIGQUIT') // at once, whoever is connected
    await running.ended
  }
  onTestFinished(async () => {
    await stop()
    await rm(dir, { recursive: true, force: true })
  })
  return {
    through,
    command,
    log,
    stop,
    restart: async () => {
      await stop()
      running = await start()
    },
  }
}
