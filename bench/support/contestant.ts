// A contestant runs in a process of its own. This is the protocol: it says `ready`; on `go` it takes up the
// work, says `started` when that is visible to its workers and `done` when all of it is; on `stop` it answers
// what it used.
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import path from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'

export interface Usage {
  cpuMs: number
  peakBytes: number
  /** Requests of class A. */
  puts: number
  /** How late the event loop was, in ms. */
  loopDelayP99Ms: number
  loopDelayMaxMs: number
}

export interface ContestantParts {
  start(): Promise<void>
  /** Makes the work visible; resolves when it is. */
  enqueue(): Promise<void>
  /** Resolves when all of it is done. */
  done: Promise<void>
  stop(): Promise<void>
  puts(): number
}

/** The child's side. */
export async function runContestant(parts: ContestantParts): Promise<void> {
  await parts.start()
  const delay = monitorEventLoopDelay({ resolution: 5 })
  process.on('message', async (message: string) => {
    if (message === 'go') {
      delay.enable()
      const before = process.cpuUsage()
      await parts.enqueue()
      process.send?.('started')
      await parts.done
      const { user, system } = process.cpuUsage(before)
      delay.disable()
      usage.cpuMs = (user + system) / 1000
      usage.loopDelayP99Ms = delay.percentile(99) / 1e6
      usage.loopDelayMaxMs = delay.max / 1e6
      process.send?.('done')
    } else {
      await parts.stop()
      process.send?.({ ...usage, peakBytes: process.resourceUsage().maxRSS * 1024, puts: parts.puts() })
      process.disconnect()
      process.exit(0)
    }
  })
  const usage = { cpuMs: 0, loopDelayP99Ms: 0, loopDelayMaxMs: 0 }
  process.send?.('ready')
}

export interface Contestant {
  pid: number
  /** Work from its becoming visible to its end, in ms. */
  run(): Promise<number>
  stop(): Promise<Usage>
}

/** The bench's side. @param name file in bench/peers */
export async function startContestant(name: string, env: Record<string, string>): Promise<Contestant> {
  const file = path.join(import.meta.dirname, '..', 'peers', `${name}.ts`)
  const child = fork(file, { env: { ...process.env, ...env }, stdio: ['ignore', 'ignore', 'inherit', 'ipc'] })
  const failure = once(child, 'exit').then(([code, signal]) => {
    throw new Error(`${name} ended with ${code ?? signal}`)
  })
  failure.catch(() => undefined)
  const message = <T>() =>
    Promise.race([once(child as ChildProcess, 'message').then(([m]) => m as T), failure])
  await message()
  return {
    pid: child.pid ?? 0,
    run: async () => {
      const started = message()
      child.send('go')
      await started
      const began = performance.now()
      await message()
      return performance.now() - began
    },
    stop: async () => {
      const usage = message<Usage>()
      child.send('stop')
      return usage
    },
  }
}
