// What operators do meanwhile, by the command: restore and unpin, backfill, erase. Each may be killed like all others.
import { type ChildProcess, spawn } from 'node:child_process'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { between, pick, type Random } from '../src/demo/random.ts'
import { isDatabaseOutage } from '../src/errors.ts'
import { type CellWork, restoredTenant } from './cell-work.ts'
import { type StoreProxy, type StoreTraffic, startStoreProxy } from './store-proxy.ts'
import type { Writer } from './writers.ts'

const program = path.join(import.meta.dirname, '..', 'src', 'cli', 'main.ts')

export interface Command {
  readonly proxy: StoreProxy
  /** @returns its exit status, null when it was killed; and what it said */
  run(args: string[], signal: AbortSignal): Promise<{ code: number | null; said: string }>
  close(): Promise<void>
}

const longestCommandMs = 30_000
const longestSaid = 20_000

/** Runs the command `lighter`, one at a time. */
export async function createCommand(
  storeEndpoint: string,
  traffic: StoreTraffic,
  random: Random,
  env: (endpoint: string) => Record<string, string>,
  onKill: (why: string) => void,
): Promise<Command> {
  let child: ChildProcess | null = null
  const proxy = await startStoreProxy(storeEndpoint, traffic, random, (operation, moment) => {
    if (child?.kill('SIGKILL')) onKill(`${moment} ${operation}`)
  })
  return {
    proxy,
    run: (args, signal) =>
      new Promise(resolve => {
        const { PATH = '', HOME = '' } = process.env
        const running = spawn(process.execPath, [program, ...args], {
          env: { PATH, HOME, ...env(proxy.endpoint) },
          stdio: ['ignore', 'pipe', 'pipe'],
          signal,
          killSignal: 'SIGKILL',
          timeout: longestCommandMs,
        })
        child = running
        let said = ''
        for (const stream of [running.stdout, running.stderr]) {
          stream.setEncoding('utf8').on('data', chunk => {
            said = (said + chunk).slice(-longestSaid)
          })
        }
        running.on('error', () => undefined)
        running.on('close', code => {
          child = null
          resolve({ code, said })
        })
      }),
    close: () => proxy.close(),
  }
}

export interface CommandCounts {
  restore: number
  unpin: number
  backfill: number
  erase: number
  killed: number
}

export const newCommandCounts = (): CommandCounts => ({
  restore: 0,
  unpin: 0,
  backfill: 0,
  erase: 0,
  killed: 0,
})

/** @param leaving a writer whose tenant is erased now and then, when it has deleted all its rows */
export async function runCommands(
  options: {
    admin: pg.Pool
    command: Command
    random: Random
    writers: Writer[]
    leaving: Writer
    cells: CellWork
    counts: CommandCounts
  },
  signal: AbortSignal,
): Promise<void> {
  const { admin, command, random, writers, leaving, cells, counts } = options
  // Always the same one: of the rows of all others it is known why they are inline.
  const tenantId = writers.at(-1)?.tenantId ?? ''
  const run = async (name: keyof CommandCounts, args: string[]) => {
    const { code } = await command.run([name, ...args], signal)
    counts[name]++
    if (code === null && !signal.aborted) counts.killed++
    return code
  }
  /** On record before: it may have done it when it is killed. */
  const noteRestored = (id: string) =>
    admin.query('insert into torture.restored values ($1) on conflict do nothing', [id])

  const noteRestoredKey = (key: string) =>
    admin.query('insert into torture.restored_keys values ($1) on conflict do nothing', [key])

  const actions = [
    async () => {
      const id = pick(random, pick(random, writers).rows)
      await noteRestored(id)
      await run('restore', ['--row', id])
    },
    async () => {
      await noteRestored(tenantId)
      await run('restore', ['--tenant', tenantId])
      await run('unpin', ['--tenant', tenantId])
    },
    async () => {
      const chosen = await cells.choose()
      if (chosen === null) return
      await noteRestoredKey(chosen.rowKey)
      await run('restore', chosen.args)
    },
    async () => {
      await noteRestoredKey(restoredTenant)
      await run('restore', ['--tenant', restoredTenant])
      await run('unpin', ['--tenant', restoredTenant])
    },
    () => run('unpin', ['--all']),
    () => run('backfill', []),
    async () => {
      const writer = pick(random, writers)
      const conversation = pick(random, writer.conversations())
      // What is written into a conversation that is being erased stays in its row.
      await writer.pause()
      await writer.deleteConversation(conversation).finally(() => writer.resume())
      await run('erase', ['--tenant', writer.tenantId, '--entity', `conversation:${conversation}`, '--yes'])
    },
    async () => {
      await leaving.pause()
      try {
        for (const conversation of leaving.conversations()) await leaving.deleteConversation(conversation)
        for (let attempt = 0; attempt < 4 && !signal.aborted; attempt++) {
          if ((await run('erase', ['--tenant', leaving.tenantId, '--yes'])) === 0) break
        }
      } finally {
        leaving.resume()
      }
    },
  ]
  while (!signal.aborted) {
    await sleep(between(random, 800, 3000), undefined, { signal }).catch(() => undefined)
    if (signal.aborted) return
    try {
      await pick(random, actions)()
    } catch (error) {
      if (!isDatabaseOutage(error) && !(error instanceof RangeError)) throw error
    }
  }
}
