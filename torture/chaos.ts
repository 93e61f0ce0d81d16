// What goes wrong, when: processes die and freeze, connections are cut, Postgres goes down, the store has its weather.
import { setTimeout as sleep } from 'node:timers/promises'
import { between, chance, pick, pickIndex, type Random, runningTotals } from '../src/demo/random.ts'
import { isDatabaseOutage } from '../src/errors.ts'
import type { SignalPoint } from '../src/offload/signals.ts'
import type { Command } from './commands.ts'
import type { Fleet } from './fleet.ts'
import type { StoreTraffic } from './store-proxy.ts'
import { fair, nextWeather } from './weather.ts'
import type { World } from './world.ts'

export interface ChaosCounts {
  connections_cut: number
  postgres_fast: number
  postgres_immediate: number
}

export const newChaosCounts = (): ChaosCounts => ({
  connections_cut: 0,
  postgres_fast: 0,
  postgres_immediate: 0,
})

/** All there are: one that is missing does not compile. And at which arrival at most: large rows are rare. */
const arrivals: Record<SignalPoint, number> = {
  'after-claim': 8,
  'after-split': 1,
  'after-group': 8,
  'after-plan': 8,
  'after-register': 6,
  'before-stream': 1,
  'mid-multipart': 1,
  'before-complete': 1,
  'after-upload': 6,
  'before-commit': 6,
  'after-commit': 6,
  'after-return': 3,
}
const points = Object.keys(arrivals) as SignalPoint[]

/** By the beginning of a member's name. */
const requests: [name: string, operations: string[]][] = [
  ['daemon', ['PutObject', 'PutObject', 'CreateMultipartUpload', 'UploadPart', 'CompleteMultipartUpload']],
  ['command', ['PutObject', 'DeleteObjects', 'GetObject', 'PutOwnerObject', 'GetOwnerObject']],
  [
    'sweeper',
    ['PutObject', 'DeleteObjects', 'DeleteObjects', 'GetObject', 'PutOwnerObject', 'GetOwnerObject'],
  ],
]

/** The named points in turn, so that a run that is long enough has all of them: kill or stop there at some arrival. */
export function createFates(random: Random): () => Record<string, string> {
  let turn = between(random, 0, points.length - 1)
  return () => {
    if (chance(random, 0.2)) return {}
    const point = points[turn++ % points.length] ?? 'after-claim'
    if (chance(random, 0.25)) return { STOP_AT: point }
    return { KILL_AT: point, KILL_AFTER: String(between(random, 1, arrivals[point])) }
  }
}

export async function runWeather(traffic: StoreTraffic, random: Random, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    const { lastsMs, ...weather } = nextWeather(random)
    traffic.weather = weather
    await sleep(lastsMs, undefined, { signal }).catch(() => undefined)
  }
  traffic.weather = fair
}

interface ChaosContext {
  world: World
  fleet: Fleet
  command: Command
  random: Random
  counts: ChaosCounts
}

const longestWaitMs = 15_000
/** After it has come up again: for what takes several steps to have its turn. */
const betweenRestartsMs = 8000

export async function runChaos(
  { world, fleet, command, random, counts }: ChaosContext,
  signal: AbortSignal,
): Promise<void> {
  const anyone = () => pick(random, fleet.ready())
  let restartedAt = Number.NEGATIVE_INFINITY
  const restart = async (mode: 'fast' | 'immediate') => {
    if (performance.now() - restartedAt < betweenRestartsMs) return
    counts[`postgres_${mode}`]++
    await world.restartPostgres(mode)
    restartedAt = performance.now()
  }
  const actions: [weight: number, act: () => unknown][] = [
    [1.5, () => anyone().kill('at random')],
    [
      5,
      () => {
        const { name, proxy } = pick(random, [...fleet.ready(), { name: 'command', proxy: command.proxy }])
        const operation = pick(random, requests.find(([start]) => name.startsWith(start))?.[1] ?? [])
        const moment = chance(random, 0.5) ? 'before' : 'after'
        proxy.armKill(moment, asked => asked === operation)
      },
    ],
    [
      2,
      () => {
        const sweeper = fleet.ready().find(({ name }) => name.startsWith('sweeper'))
        sweeper?.proxy.armKill('after', asked => asked === 'DeleteObjects')
      },
    ],
    [2, () => anyone().pause()],
    [1, () => anyone().terminate()],
    [2, () => cutConnections(world, random, counts)],
    [0.7, () => restart('fast')],
    [0.9, () => restart('immediate')],
  ]
  const totals = runningTotals(actions.map(([weight]) => weight))
  while (!signal.aborted) {
    await sleep(between(random, 200, 1500), undefined, { signal }).catch(() => undefined)
    // On a slow machine nothing would be done between one blow and the next: work lasts about as long as a start.
    await fleet.halfReady(signal, longestWaitMs)
    await sleep(random() * Math.min(fleet.startMs(), longestWaitMs / 3), undefined, { signal }).catch(
      () => undefined,
    )
    if (signal.aborted || fleet.ready().length === 0) continue
    await actions[pickIndex(random, totals)]?.[1]()
  }
}

/** A part of all connections to the database, whoever has them. */
async function cutConnections({ admin }: World, random: Random, counts: ChaosCounts): Promise<void> {
  try {
    const { rows } = await admin.query<{ pid: number }>(
      `select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() order by pid`,
    )
    const share = random()
    const pids = rows.filter(() => random() < share).map(row => row.pid)
    await admin.query('select pg_terminate_backend(pid) from unnest($1::int[]) pid', [pids])
    counts.connections_cut += pids.length
  } catch (error) {
    if (!isDatabaseOutage(error)) throw error
  }
}
