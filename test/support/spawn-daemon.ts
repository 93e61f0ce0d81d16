// Starts real daemon processes and knows when they are up and how they ended.
import { type ChildProcess, fork } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { closeSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import type { SignalPoint } from '../../src/offload/signals.ts'
import type { TestEnvironment } from './environment.ts'
import { openLog } from './logs.ts'

export interface DaemonProcess {
  pid: number
  /** How it ended. */
  ended: Promise<{ code: number | null; signal: NodeJS.Signals | null }>
  kill(signal: NodeJS.Signals): void
  /** Highest resident memory so far, in bytes (Linux). */
  peakMemory(): Promise<number>
  memory(): Promise<number>
}

export async function spawnDaemon(
  environment: TestEnvironment,
  options: {
    env?: Record<string, string>
    killAt?: SignalPoint
    killAtNth?: number
    untilStarted?: boolean
  } = {},
): Promise<DaemonProcess> {
  const log = openLog(`daemon-${randomUUID()}`)
  const { NODE_OPTIONS: _, VITEST: __, ...inherited } = process.env
  const child = fork(path.join(import.meta.dirname, 'daemon-process.ts'), {
    env: {
      ...inherited,
      ...environment.env,
      ...options.env,
      LOG_LEVEL: 'debug',
      ...(options.killAt && { KILL_AT: options.killAt, KILL_AFTER: String(options.killAtNth ?? 1) }),
    },
    execArgv: [],
    stdio: ['ignore', log, log, 'ipc'],
  })
  closeSync(log)
  const ended = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>(resolve =>
    child.once('exit', (code, signal) => resolve({ code, signal })),
  )
  if (options.untilStarted ?? true) {
    await Promise.race([
      new Promise<void>(resolve => child.once('message', () => resolve())),
      ended.then(({ code, signal }) => {
        // Killed on the way up is what some tests want; anything else is a failure to start.
        if (options.killAt === undefined) throw new Error(`the daemon process ended with ${code ?? signal}`)
      }),
    ])
  }
  return {
    pid: child.pid ?? 0,
    ended,
    kill: signal => void child.kill(signal),
    peakMemory: () => statusField(child, 'VmHWM'),
    memory: () => statusField(child, 'VmRSS'),
  }
}

async function statusField(child: ChildProcess, field: string): Promise<number> {
  const status = await readFile(`/proc/${child.pid}/status`, 'utf8')
  const kilobytes = new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(status)?.[1]
  if (kilobytes === undefined) throw new Error(`no ${field} in /proc/${child.pid}/status`)
  return Number(kilobytes) * 1024
}
