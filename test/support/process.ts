// The command `lighter` as a child process, as users and orchestrators run it.
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import path from 'node:path'
import { promisify } from 'node:util'
import { onTestFinished } from 'vitest'
import { until } from './environment.ts'
import { keepLog } from './logs.ts'

const ownRoot = path.join(import.meta.dirname, '..', '..')

export interface CliOptions {
  /** The whole environment, but for PATH, HOME, TMPDIR and Node's compile cache. */
  env?: Record<string, string>
  cwd?: string
  /** Of the program; by default this one. */
  root?: string
}

export interface Finished {
  /** Null when a signal ended it. */
  code: number | null
  stdout: string
  stderr: string
}

export interface RunningCli {
  readonly pid: number
  stdout(): string
  stderr(): string
  /** Objects logged so far; fails on a line that begins like one and is not JSON. */
  logged(): Record<string, unknown>[]
  /** Waits until standard output contains the text. */
  says(text: string, timeoutMs?: number): Promise<void>
  signal(signal: NodeJS.Signals): void
  readonly ended: Promise<Finished>
  hasEnded(): boolean
}

/** Started, and killed when the test ends before it. */
export function startCli(args: string[], options: CliOptions = {}): RunningCli {
  const { PATH = '', HOME = '', TMPDIR = '', NODE_COMPILE_CACHE = '' } = process.env
  const child: ChildProcess = spawn(
    process.execPath,
    [path.join(options.root ?? ownRoot, 'src', 'cli', 'main.ts'), ...args],
    {
      env: { PATH, HOME, NODE_COMPILE_CACHE, ...(TMPDIR === '' ? {} : { TMPDIR }), ...options.env },
      cwd: options.cwd,
      stdio: ['ignore', 'pipe', 'pipe'],
    },
  )
  const pid = child.pid
  if (pid === undefined) throw new Error('the process did not start')
  let stdout = ''
  let stderr = ''
  let over = false
  child.stdout?.setEncoding('utf8').on('data', chunk => {
    stdout += chunk
  })
  child.stderr?.setEncoding('utf8').on('data', chunk => {
    stderr += chunk
  })
  const ended = new Promise<Finished>(resolve =>
    child.on('close', code => {
      over = true
      // On standard output a command hands out what it was asked for; the daemon logs there.
      keepLog(args[0] === 'start' ? stdout + stderr : stderr)
      resolve({ code, stdout, stderr })
    }),
  )
  onTestFinished(async () => {
    child.kill('SIGKILL')
    await ended
  })
  return {
    pid,
    stdout: () => stdout,
    stderr: () => stderr,
    logged: () =>
      stdout
        .split('\n')
        .slice(0, -1)
        .filter(line => line.startsWith('{'))
        .map(line => JSON.parse(line)),
    says: (text, timeoutMs = 60_000) =>
      until(
        () => {
          if (stdout.includes(text)) return true
          if (over) throw new Error(`it ended without saying "${text}":\n${stdout}\n${stderr}`)
          return false
        },
        `it says "${text}"`,
        timeoutMs,
      ),
    signal: signal => child.kill(signal),
    ended,
    hasEnded: () => over,
  }
}

/** Run to its end. */
export function runCli(args: string[], options: CliOptions = {}): Promise<Finished> {
  return startCli(args, options).ended
}

/** All processes that this one has started, directly or not. */
export async function descendants(pid: number): Promise<number[]> {
  const processes = await listProcesses()
  const found = new Set([pid])
  for (let before = 0; before !== found.size; ) {
    before = found.size
    for (const p of processes) if (found.has(p.parent)) found.add(p.pid)
  }
  found.delete(pid)
  return [...found]
}

/** Those that still run; one that has ended and waits to be collected does not. */
export async function alive(pids: number[]): Promise<number[]> {
  const running = new Set((await listProcesses()).map(p => p.pid))
  return pids.filter(pid => running.has(pid))
}

async function listProcesses(): Promise<{ pid: number; parent: number }[]> {
  const { stdout } = await promisify(execFile)('ps', ['-A', '-o', 'pid=,ppid=,stat='])
  return stdout.split('\n').flatMap(line => {
    const [pid, parent, state] = line.trim().split(/\s+/)
    return state === undefined || state.startsWith('Z') ? [] : [{ pid: Number(pid), parent: Number(parent) }]
  })
}
