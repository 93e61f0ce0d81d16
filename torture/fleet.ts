// The processes that are tortured: each is started again whenever and however it has ended.
import { type ChildProcess, fork } from 'node:child_process'
import { closeSync, openSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { between, type Random } from '../src/demo/random.ts'
import { leaseMs, longestStopMs } from './settings.ts'
import { type StoreProxy, type StoreTraffic, startStoreProxy } from './store-proxy.ts'

interface Member {
  readonly name: string
  readonly proxy: StoreProxy
  /** SIGKILL, whatever it is doing. @param why for the count of kills */
  kill(why: string): void
  /** SIGSTOP for longer than its lease, then SIGCONT. */
  pause(): void
  /** SIGTERM: it drains and ends. */
  terminate(): void
}

interface MemberOptions {
  name: string
  program: string
  /** Of each start. */
  env: () => Record<string, string>
  onMessage?: (message: unknown) => void
}

export interface Fleet {
  /** By what for. */
  readonly kills: Map<string, number>
  add(options: MemberOptions): Promise<Member>
  /** Those that have come up. */
  ready(): Member[]
  /** How long the last start of one took. */
  startMs(): number
  /** Waits until half of them are up, a daemon among them; false if that takes too long. */
  halfReady(signal: AbortSignal, longestMs: number): Promise<boolean>
  logs(): string[]
  /** Ends all of them, and starts none again. */
  close(): Promise<void>
}

const longestLog = 5_000_000

export function createFleet(options: {
  dir: string
  storeEndpoint: string
  traffic: StoreTraffic
  random: Random
  env: (endpoint: string) => Record<string, string>
  /** Told of one that had come up, and then ended by itself with an error: nothing that happens here is a reason. */
  onCrash: (name: string, log: string) => void
}): Fleet {
  const { random } = options
  const kills = new Map<string, number>()
  const ready = new Set<Member>()
  const logs: string[] = []
  const lives: Promise<void>[] = []
  const closing: (() => void)[] = []
  let closed = false
  let startMs = 0

  const count = (map: Map<string, number>, what: string) => map.set(what, (map.get(what) ?? 0) + 1)

  const add = async ({ name, program, env, onMessage }: MemberOptions): Promise<Member> => {
    let child: ChildProcess | null = null
    let killedFor: string | null = null
    const log = path.join(options.dir, `${name}.log`)
    logs.push(log)
    const kill = (why: string) => {
      if (child === null || closed) return
      killedFor ??= why
      child.kill('SIGKILL')
    }
    const proxy = await startStoreProxy(options.storeEndpoint, options.traffic, random, (operation, moment) =>
      kill(`${moment} ${operation}`),
    )
    const letGoOn = (stopped: ChildProcess) => {
      count(kills, 'stopped past the lease')
      const timer = setTimeout(() => stopped.kill('SIGCONT'), between(random, leaseMs + 300, longestStopMs))
      stopped.once('exit', () => clearTimeout(timer))
    }

    const live = async () => {
      while (!closed) {
        killedFor = null
        const settings = env()
        const started = start(program, { ...options.env(proxy.endpoint), ...settings }, log)
        child = started
        const startedAt = performance.now()
        started.on('message', message => {
          if (message === 'started') {
            ready.add(member)
            startMs = performance.now() - startedAt
          } else if (message === 'stopping') letGoOn(started)
          else onMessage?.(message)
        })
        const { code, signal } = await ended(started)
        child = null
        const wasReady = ready.delete(member)
        if (closed) return
        if (signal === 'SIGKILL') count(kills, killedFor ?? `at ${settings.KILL_AT}`)
        else if (code !== 0 && code !== null && wasReady) options.onCrash(name, log)
        await sleep(between(random, 50, code === 0 || signal !== null ? 400 : 800))
      }
    }
    const member: Member = {
      name,
      proxy,
      kill,
      pause: () => {
        if (child === null) return
        child.kill('SIGSTOP')
        letGoOn(child)
      },
      terminate: () => void child?.kill('SIGTERM'),
    }
    lives.push(live().finally(() => proxy.close()))
    closing.push(() => child?.kill('SIGKILL'))
    return member
  }

  return {
    kills,
    add,
    ready: () => [...ready],
    startMs: () => startMs,
    halfReady: async (signal, longestMs) => {
      const deadline = performance.now() + longestMs
      while (!signal.aborted && performance.now() < deadline) {
        const names = [...ready].map(member => member.name)
        if (names.length * 2 >= lives.length && names.some(name => name.startsWith('daemon'))) return true
        await sleep(50)
      }
      return false
    },
    logs: () => logs,
    close: async () => {
      closed = true
      for (const end of closing) end()
      await Promise.all(lives)
    },
  }
}

function start(program: string, env: Record<string, string>, log: string): ChildProcess {
  const { NODE_OPTIONS: _, VITEST: __, ...inherited } = process.env
  const fd = openSync(log, sizeOf(log) > longestLog ? 'w' : 'a')
  try {
    // Starts are most of what a slow machine would do here.
    const cache = { NODE_COMPILE_CACHE: path.join(tmpdir(), 'pg-lighter-compile-cache') }
    return fork(program, {
      env: { ...cache, ...inherited, ...env },
      execArgv: [],
      stdio: ['ignore', fd, fd, 'ipc'],
    })
  } finally {
    closeSync(fd)
  }
}

function sizeOf(file: string): number {
  return statSync(file, { throwIfNoEntry: false })?.size ?? 0
}

function ended(child: ChildProcess): Promise<{ code: number | null; signal: NodeJS.Signals | null }> {
  return new Promise(resolve => {
    child.once('error', () => resolve({ code: 1, signal: null }))
    child.once('exit', (code, signal) => resolve({ code, signal }))
  })
}
