// A real Postgres server for this process: started, waited for, and gone when the process is.
import { type ChildProcess, spawn } from 'node:child_process'
import { open, readFile, stat } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { LighterError } from '../errors.ts'
import { type Account, accountFor } from './account.ts'
import { findBinaries } from './binaries.ts'
import { asSeenByServer, ensureDataDir, serverEnvironment } from './data-dir.ts'
import { freePort } from './ports.ts'
import { expectNoServer, readPostmasterFile } from './postmaster-file.ts'
import { endWithUs } from './watchdog.ts'

export interface PostgresOptions {
  /** Made and initialised when it is new or empty; kept between runs. */
  dataDir: string
  /** A free one by default, chosen anew at each start. */
  port?: number
  /** As `port`, but a free one is chosen when somebody has taken it. */
  preferredPort?: number
  /** Server settings, over the defaults. */
  settings?: Record<string, string>
}

export interface RunningPostgres {
  readonly port: number
  readonly dataDir: string
  /** What the server says. */
  readonly logFile: string
  /** Of the server's first process, for tests that kill it. */
  readonly pid: number
  /** Connection string; by default of database `postgres` as the superuser `postgres`. */
  url(options?: { database?: string; user?: string; password?: string }): string
  /** Modes as in pg_ctl. Resolves when the server is gone, at once if it already is. */
  stop(mode?: 'fast' | 'immediate'): Promise<void>
}

/** Durable (fsync and synchronous_commit stay on): tests of crashes would prove nothing otherwise. */
const defaultSettings = {
  listen_addresses: '127.0.0.1',
  unix_socket_directories: '',
  max_connections: '200',
  shared_buffers: '128MB',
  log_line_prefix: '%m [%p] %a ',
}

/** Recovery after a crash counts as starting. */
const startTimeoutMs = 120_000
/** A fast stop writes a checkpoint; then comes an immediate one, then the end. */
const fastStopMs = 30_000
const immediateStopMs = 5_000
const maxAttempts = 8
const maxLogBytes = 10 * 1024 * 1024

/**
 * Starts a server on the directory, and returns when it accepts connections.
 *
 * It does not outlive this process, however that ends. It has a session of its own: Ctrl-C in a terminal
 * does not reach it, so that we decide what stops first.
 * @throws {LighterError} another server is on the directory, or this one does not start
 */
export async function startPostgres(options: PostgresOptions): Promise<RunningPostgres> {
  const dataDir = path.resolve(options.dataDir)
  const settings = { ...defaultSettings, ...options.settings }
  const account = await accountFor(dataDir)
  const binaries = await findBinaries(account)
  await expectNoServer(dataDir)
  const password = await ensureDataDir(dataDir, binaries.initdb, account, options.settings?.fsync !== 'off')

  for (let attempt = 1; ; attempt++) {
    const preferred = attempt === 1 ? options.preferredPort : undefined
    const port = options.port ?? preferred ?? (await freePort())
    try {
      const server = await launch(binaries.postgres, dataDir, account, { ...settings, port: String(port) })
      return running(server, dataDir, port, password)
    } catch (error) {
      if (attempt === maxAttempts || !isPassing(error, options.port === undefined)) throw error
      await sleep(attempt * 100)
    }
  }
}

/** Failures to start that another attempt may not meet. */
function isPassing(error: unknown, portWasOurChoice: boolean): boolean {
  if (!(error instanceof LighterError)) return false
  // Somebody took the port between our looking and the server's.
  if (error.message.includes('Address already in use')) return portWasOurChoice
  // Processes of a server that was killed take a moment to notice.
  return error.message.includes('pre-existing shared memory block')
}

function running(
  server: LaunchedServer,
  dataDir: string,
  port: number,
  superuserPassword: string,
): RunningPostgres {
  return {
    port,
    dataDir,
    logFile: logFileOf(dataDir),
    pid: server.pid,
    url({ database = 'postgres', user = 'postgres', password } = {}) {
      const secret = password ?? (user === 'postgres' ? superuserPassword : undefined)
      const login = encodeURIComponent(user) + (secret === undefined ? '' : `:${encodeURIComponent(secret)}`)
      return `postgres://${login}@127.0.0.1:${port}/${encodeURIComponent(database)}`
    },
    async stop(mode = 'fast') {
      if (mode === 'fast') {
        server.child.kill('SIGINT')
        if (await endsWithin(server, fastStopMs)) return
      }
      server.child.kill('SIGQUIT')
      if (await endsWithin(server, immediateStopMs)) return
      server.child.kill('SIGKILL')
      await server.ended
    },
  }
}

interface LaunchedServer {
  child: ChildProcess
  pid: number
  ended: Promise<void>
}

async function launch(
  program: string,
  dataDir: string,
  account: Account | undefined,
  settings: Record<string, string>,
): Promise<LaunchedServer> {
  const logFile = logFileOf(dataDir)
  const logged = (await stat(logFile).catch(() => undefined))?.size ?? 0
  const log = await open(logFile, logged > maxLogBytes ? 'w' : 'a')
  const logStart = (await log.stat()).size
  const child = spawn(
    program,
    [
      '-D',
      asSeenByServer(dataDir, account),
      ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]),
    ],
    { cwd: dataDir, env: serverEnvironment(), detached: true, stdio: ['ignore', log.fd, log.fd], ...account },
  )
  let end: string | undefined
  const ended = new Promise<void>(resolve => {
    child.once('error', error => {
      end = error.message
      resolve()
    })
    child.once('exit', (code, signal) => {
      end ??= `it ended with ${code ?? signal}`
      resolve()
    })
  })
  const pid = child.pid ?? 0
  if (pid !== 0) endWithUs(pid, 'INT', ended)
  await log.close()

  const deadline = Date.now() + startTimeoutMs
  while (end === undefined) {
    const file = await readPostmasterFile(dataDir)
    // A server in recovery accepts connections too.
    if (file?.pid === pid && /^(ready|standby)$/.test(file.status)) return { child, pid, ended }
    if (Date.now() > deadline) {
      child.kill('SIGQUIT')
      await Promise.race([ended, sleep(immediateStopMs, undefined, { ref: false })])
      child.kill('SIGKILL')
      end ??= `not ready after ${startTimeoutMs / 1000} s`
    }
    await Promise.race([ended, sleep(10)])
  }
  const said = (await readFile(logFile)).subarray(logStart).toString().trim().split('\n').slice(-8).join('\n')
  throw new LighterError('embedded_postgres', `Postgres did not start on ${dataDir}: ${end}\n${said}`, {
    hint: `Its log is ${logFile}`,
  })
}

async function endsWithin(server: LaunchedServer, ms: number): Promise<boolean> {
  const cancel = new AbortController()
  const late = sleep(ms, false, { signal: cancel.signal }).catch(() => false)
  const inTime = await Promise.race([server.ended.then(() => true), late])
  cancel.abort()
  return inTime
}

function logFileOf(dataDir: string): string {
  return `${dataDir}.log`
}
