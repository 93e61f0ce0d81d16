// One run: the servers, the application, the daemons, what goes wrong, and the verdict.
import { createReadStream, readFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { between, chance, pick, seededRandom, uuid } from '../src/demo/random.ts'
import { freePort } from '../src/embedded/ports.ts'
import { createLighterClient } from '../src/index.ts'
import { openStore } from '../src/store/object-store.ts'
import { runAgeing } from './ageing.ts'
import { createBackpressure } from './backpressure.ts'
import { bodyTypeOf, createCellWork } from './cell-work.ts'
import { createFates, newChaosCounts, runChaos, runWeather } from './chaos.ts'
import { createCommand, newCommandCounts, runCommands } from './commands.ts'
import { runDuels } from './duels.ts'
import { createFindings, type Findings, historyOf } from './findings.ts'
import { createFleet } from './fleet.ts'
import { runMoves, runWritesToMoved } from './moves.ts'
import { createNoise, createPayloads } from './payloads.ts'
import { createProgram } from './programs.ts'
import { checkRows, runReader } from './readers.ts'
import { type Counts, sum, type TortureReport } from './report.ts'
import { graceMs, serviceKey, type TortureOptions } from './settings.ts'
import { newTraffic, startStoreProxy } from './store-proxy.ts'
import type { SweepReport } from './sweep.ts'
import { reachVerdict } from './verdict.ts'
import { createWorld, type World } from './world.ts'
import { createWriter } from './writers.ts'

export interface Progress {
  phase: string
  secondsLeft: number
  /** Of the storm, 0 to 1. */
  share: number
  operations: number
  reads: number
  kills: number
  faults: number
}

const daemonProgram = path.join(import.meta.dirname, '..', 'test', 'support', 'daemon-process.ts')
const sweeperProgram = path.join(import.meta.dirname, 'sweeper-process.ts')
const sweepers = 2
const readers = 2
const startMs = 60_000
const duels = 6
/** Rows written last, of which readers read most. */
const recentRows = 150

/** @param signal aborted: the run ends where it is, cleans up, and throws its reason */
export async function runTorture(
  options: TortureOptions,
  signal: AbortSignal,
  onProgress: (progress: Progress) => void,
): Promise<TortureReport> {
  const world = await createWorld(bodyTypeOf(options.seed))
  try {
    return await torture(options, world, signal, onProgress)
  } finally {
    await world.close()
  }
}

async function torture(
  { seed, minutes, daemons }: TortureOptions,
  world: World,
  signal: AbortSignal,
  onProgress: (progress: Progress) => void,
): Promise<TortureReport> {
  const began = performance.now()
  const random = (name: string) => seededRandom(seed, name)
  const { admin, app, worker } = world
  // The first finding ends the storm: what led to it is still fresh.
  const over = new AbortController()
  const findings = createFindings(() => over.abort())
  const traffic = newTraffic()
  const operations: Counts = {}
  const sweeps: Counts = {}
  const database = newChaosCounts()
  const commands = newCommandCounts()
  let reads = 0
  let artifactReads = 0
  let phase = 'starting'
  let stormBegan = began

  const fleet = createFleet({
    dir: world.dir,
    storeEndpoint: world.r2.endpoint,
    traffic,
    random: random('fleet'),
    env: world.env,
    onCrash: (name, log) => findings.add('crashes', name, readFileSync(log, 'utf8').slice(-2000)),
  })
  const killed = (why: string) => fleet.kills.set(why, (fleet.kills.get(why) ?? 0) + 1)
  const command = await createCommand(world.r2.endpoint, traffic, random('command'), world.env, killed)
  const readProxy = await startStoreProxy(world.r2.endpoint, traffic, random('read proxy'), () => undefined)
  const store = openStore(world.config(readProxy.endpoint).store)

  const noise = createNoise(seed)
  const backpressure = createBackpressure(admin)
  const recent: string[] = []
  const onWrite = (operation: string, id: string | null) => {
    operations[operation] = (operations[operation] ?? 0) + 1
    if (id !== null) recent.push(id)
    if (recent.length > recentRows) recent.shift()
  }
  const writerOf = (name: string, tenant: number, maxLarge: number) =>
    createWriter({
      app,
      tenantId: uuid(random(`tenant ${tenant}`)),
      random: random(`writer ${name}`),
      payloads: createPayloads(seed, name, noise),
      findings,
      onWrite,
      maxRows: 300,
      maxLarge,
      backpressure,
    })
  // Two of one tenant, so that packs have rows of both.
  const writers = [writerOf('a', 0, 2), writerOf('b', 0, 0), writerOf('c', 1, 2), writerOf('d', 2, 0)]
  const leaving = writerOf('leaving', 3, 1)
  const wanderer = writerOf('wanderer', 5, 1)
  await admin.query('insert into torture.wanderers values ($1, $2)', [
    wanderer.tenantId,
    uuid(random('tenant 6')),
  ])

  const cells = createCellWork({
    app,
    admin,
    seed,
    noise,
    bodyType: bodyTypeOf(seed),
    tenantIds: [0, 2].map(tenant => uuid(random(`tenant ${tenant}`))),
    findings,
    backpressure,
    onWrite: operation => onWrite(operation, null),
  })

  const ports = await Promise.all(Array.from({ length: daemons }, () => freePort()))
  const clientsOf = (tenantId: string) =>
    ports.map(port =>
      createLighterClient({
        baseUrl: `http://127.0.0.1:${port}`,
        token: serviceKey,
        tenantId,
        retries: 0,
        timeoutMs: 8000,
      }),
    )
  // One beside the rows of a tenant, one alone.
  const programs = [0, 4].map(tenant =>
    createProgram({
      tenantId: uuid(random(`tenant ${tenant}`)),
      clientsOf,
      random: random(`program ${tenant}`),
      noise,
      findings,
      onWrite: operation => {
        operations[operation] = (operations[operation] ?? 0) + 1
      },
      onRead: () => {
        artifactReads++
      },
    }),
  )

  const report = () => {
    const kills = Object.fromEntries(fleet.kills)
    const faults = Object.fromEntries(traffic.faults)
    return { kills, faults }
  }
  const ticker = setInterval(() => {
    const { kills, faults } = report()
    const share = Math.min(1, (performance.now() - stormBegan) / (minutes * 60_000))
    onProgress({
      phase,
      share,
      secondsLeft: Math.round(minutes * 60 * (1 - share)),
      operations: sum(operations),
      reads,
      kills: sum(kills),
      faults: sum(faults),
    })
  }, 200)

  try {
    const fates = createFates(random('fates'))
    const shapes = random('shapes')
    for (const [index, port] of ports.entries()) {
      await fleet.add({
        name: `daemon-${index + 1}`,
        program: daemonProgram,
        env: () => ({
          LOG_LEVEL: 'warn',
          WITH_API: 'on',
          API_PORT: String(port),
          ...shapeOf(shapes),
          ...fates(),
        }),
      })
    }
    // Before the first daemon has claimed the prefix there is nothing to sweep.
    if (!(await fleet.halfReady(signal, startMs)) && !signal.aborted)
      throw new Error(`the daemons do not start: ${await tailOf(fleet.logs())}`)
    for (let n = 1; n <= sweepers; n++) {
      await fleet.add({
        name: `sweeper-${n}`,
        program: sweeperProgram,
        env: () => ({ SWEEPER_SEED: `${seed} ${n} ${shapes()}` }),
        onMessage: message => noteSweep(message as SweepMessage, sweeps, findings),
      })
    }
    phase = 'storm'
    stormBegan = performance.now()
    const storm = AbortSignal.any([signal, over.signal, AbortSignal.timeout(minutes * 60_000)])
    const all = [...writers, leaving, wanderer]
    const readContext = { admin, worker, store, findings }
    const readRandom = random('reader')
    const known = () => (chance(readRandom, 0.7) ? recent : pick(readRandom, all).rows)
    const duelRandom = random('duels')
    const duel = {
      app,
      tenantId: writers[1]?.tenantId ?? '',
      random: duelRandom,
      payloads: createPayloads(seed, 'duels', noise),
      backpressure,
      onWrite,
    }
    const moves = {
      admin,
      app,
      random: random('moves'),
      wanderer,
      payloads: createPayloads(seed, 'moves', noise),
      onWrite,
      check: (ids: string[]) => checkRows(readContext, ids, false),
    }
    const work = [
      backpressure.run(storm),
      ...all.map(writer => writer.run(storm)),
      ...Array.from({ length: duels }, () => runDuels(duel, storm)),
      ...programs.map(program => program.run(storm)),
      runMoves(moves, storm),
      runWritesToMoved(moves, storm),
      ...Array.from({ length: readers }, () =>
        runReader(readContext, readRandom, known, storm, rows => {
          reads += rows
        }),
      ),
      ...cells.run(
        readContext,
        rows => {
          reads += rows
        },
        storm,
      ),
      runAgeing(admin, graceMs, storm),
      runWeather(traffic, random('weather'), storm),
      runChaos({ world, fleet, command, random: random('chaos'), counts: database }, storm),
      runCommands(
        { admin, command, random: random('commands'), writers, leaving, cells, counts: commands },
        storm,
      ),
    ]
    // What throws is a fault of the torture itself: nothing else need go on.
    await Promise.all(work.map(each => each.catch(error => Promise.reject(error)))).catch(async error => {
      over.abort()
      await Promise.allSettled(work)
      throw error
    })
    signal.throwIfAborted()
    await fleet.close()
    // Requests that were held back land now, or never.
    await sleep(100)
    const verdict = await reachVerdict({
      world,
      command,
      findings,
      kept: programs.flatMap(program => program.kept),
      openUploads: traffic.openUploads,
      signal,
      onPhase: now => {
        phase = now
      },
    })
    signal.throwIfAborted()
    const { kills, faults } = report()
    return {
      seed,
      minutes,
      daemons,
      duration_ms: Math.round(performance.now() - began),
      operations: sum(operations),
      reads,
      artifact_reads: artifactReads,
      kills: sum(kills),
      postgres_restarts: database.postgres_fast + database.postgres_immediate,
      faults: sum(faults),
      store_requests: traffic.requests,
      ...verdict,
      mismatched: findings.count('mismatched'),
      lost: findings.count('lost'),
      leaked_objects: findings.count('leaked_objects'),
      cross_tenant: findings.count('cross_tenant'),
      stuck_jobs: findings.count('stuck_jobs'),
      refused_writes: findings.count('refused_writes'),
      crashes: findings.count('crashes'),
      by: {
        operations,
        kills,
        faults,
        partitions: cells.partitions,
        database: { ...database },
        commands: { ...commands },
        sweeps,
      },
      findings: await withHistory(world, findings, fleet.logs()),
    }
  } finally {
    clearInterval(ticker)
    await fleet.close()
    await command.close()
    await readProxy.close()
    store.close()
  }
}

/** Each start of a daemon has another shape: large and small batches, packs and none, one codec or another. */
function shapeOf(random: () => number): Record<string, string> {
  return {
    OFFLOAD_BATCH_ROWS: String(pick(random, [1, 20, 200, 200])),
    OFFLOAD_BATCHES_IN_FLIGHT: String(between(random, 1, 4)),
    OFFLOAD_LINGER_MS: String(pick(random, [0, 0, 100])),
    OFFLOAD_CODEC: pick(random, ['zstd', 'zstd', 'gzip', 'none']),
    OFFLOAD_PACKING: pick(random, ['on', 'on', 'on', 'off']),
    PACK_MAX_BYTES: String(pick(random, [64 * 1024, 8 * 1024 * 1024])),
  }
}

type SweepMessage =
  | SweepReport
  /** displaced: it takes its own database for a copy: nothing would ever be deleted again */
  | { sweep: string; error: string; displaced: boolean }

function noteSweep(message: SweepMessage, sweeps: Counts, findings: Findings): void {
  const outcome = 'error' in message ? 'failed' : message.outcome
  const name = `${message.sweep} ${outcome}`
  sweeps[name] = (sweeps[name] ?? 0) + 1
  if ('error' in message) {
    if (message.displaced) findings.add('leaked_objects', 'the owner object', message.error)
    return
  }
  for (const key of message.unknown) findings.add('leaked_objects', key, 'the deep sweep does not know it')
  for (const key of message.missing) findings.add('lost', key, 'the deep sweep misses it')
}

const historiesOfKind = 3

async function withHistory(
  world: World,
  findings: Findings,
  logs: string[],
): Promise<TortureReport['findings']> {
  const explained = []
  const explainedOf = new Map<string, number>()
  for (const finding of findings.list()) {
    const nth = (explainedOf.get(finding.kind) ?? 0) + 1
    explainedOf.set(finding.kind, nth)
    const history =
      nth <= historiesOfKind
        ? [
            ...(await historyOf(world.admin, finding.subject)),
            ...(await mentionsIn(logs, [finding.subject, ...requestsIn(finding.detail)])),
          ]
        : []
    explained.push({ ...finding, history })
  }
  return explained
}

async function tailOf(logs: string[]): Promise<string> {
  const texts = await Promise.all(logs.map(log => readFile(log, 'utf8')))
  return texts.map(text => text.slice(-2000)).join('\n')
}

const mentionsAtMost = 10

/** Ids of requests, as `programs.ts` tells them. */
const requestsIn = (detail: string) => [...detail.matchAll(/request (\S+)/g)].map(([, id = '']) => id)

/** Lines of the processes' logs that name one of them. */
async function mentionsIn(logs: string[], subjects: string[]): Promise<string[]> {
  const mentions: string[] = []
  for (const log of logs) {
    for await (const line of createInterface({ input: createReadStream(log) })) {
      if (subjects.some(subject => line.includes(subject)) && mentions.length < mentionsAtMost)
        mentions.push(`${path.basename(log)}  ${line.slice(0, 1500)}`)
    }
  }
  return mentions
}
