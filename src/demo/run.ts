// The demo: a Postgres and a bucket, a daemon, an application that writes; then the reckoning.
import pg from 'pg'
import type { Logger } from 'pino'
import { loadConfig } from '../config.ts'
import { createDaemon } from '../daemon.ts'
import { LighterError } from '../errors.ts'
import { loadSources } from '../source/sources.ts'
import { openStore } from '../store/object-store.ts'
import { type DemoMessage, generateMessages, readMessages } from './messages.ts'
import { type Replay, replayMessages } from './replay.ts'
import { type DemoServers, startOwnServers, useExternalServers } from './servers.ts'
import { type Verification, verifyRows } from './verify.ts'
import { type DemoBalance, weighDatabase, weighOurs } from './weigh.ts'

export interface DemoOptions {
  /** The environment that names a Postgres and a bucket to run on; without it the demo starts its own. */
  external?: Record<string, string | undefined>
  /** A JSON-lines file to replay; without it messages are made up. */
  from?: string
  seed: number
  messages: number
  tenants: number
  largeBytes: number
  perSecond: number
  log: Logger
  signal: AbortSignal
  onProgress: (progress: DemoProgress) => void
}

export interface DemoProgress {
  phase: 'starting' | 'writing' | 'draining' | 'verifying' | 'weighing'
  written: number
  total: number | undefined
  offloadedRows: number
  queued: number
  payloadBytes: number
  verified: number
}

export interface DemoReport {
  messages: number
  updated: number
  deleted: number
  /** Rows left in the table at the end, and those of them that were offloaded. */
  rows: number
  offloaded: number
  artifacts: number
  objects: number
  /** Requests that R2 bills as class A: PutObject, and of a multipart upload its creation, parts and completion. */
  puts: number
  payload_bytes: number
  object_bytes: number
  /** Sizes of the database, the table and all of pg-lighter's, and the bills they make. */
  balance: DemoBalance
  /** From a row's insert to the commit that left its pointer; null where the server does not track commit times. */
  latency_p50_ms: number | null
  latency_p99_ms: number | null
  verified: number
  mismatched: number
  mismatches: { id: string; reason: string }[]
  /** From the first write until the queue was empty. */
  duration_ms: number
}

const plainTable = 'public.messages_without_lighter'
const writers = 8
const drainTimeoutMs = 600_000

/** Runs the demo, and leaves nothing of it behind. @throws {LighterError} */
export async function runDemo(options: DemoOptions): Promise<DemoReport> {
  const servers = await (options.external === undefined
    ? startOwnServers()
    : useExternalServers(options.external))
  try {
    return await runOn(servers, options)
  } finally {
    await servers.remove()
  }
}

async function runOn(servers: DemoServers, options: DemoOptions): Promise<DemoReport> {
  const { log, signal } = options
  const { urls } = servers
  const config = loadConfig(servers.env)

  const replay: Replay = { written: 0, updated: 0, deleted: 0, expected: new Map() }
  const verification: Verification = { verified: 0, mismatches: [] }
  const progress: DemoProgress = {
    phase: 'starting',
    written: 0,
    total: options.from === undefined ? options.messages : undefined,
    offloadedRows: 0,
    queued: 0,
    payloadBytes: 0,
    verified: 0,
  }
  const report = () => {
    progress.written = replay.written
    progress.verified = verification.verified
    options.onProgress(progress)
  }
  let puts = 0
  const daemon = createDaemon({
    config,
    log,
    onResult: result => {
      progress.offloadedRows += result.offloadedRows
      progress.payloadBytes += result.payloadBytes
    },
    onStoreRequest: operation => {
      if (/^(PutObject|CreateMultipartUpload|UploadPart|CompleteMultipartUpload)$/.test(operation)) puts++
    },
  })
  const app = new pg.Pool({ connectionString: urls.application, max: writers })
  const admin = new pg.Pool({ connectionString: urls.admin, max: 3 })
  for (const pool of [app, admin]) {
    pool.on('error', error => {
      // Closing connections may be overtaken by the server's own stop.
      if (!pool.ending) log.warn({ error: error.message }, 'a connection was lost')
    })
  }
  const store = openStore(config.store)
  const ticker = setInterval(report, 100)
  try {
    const emptyOursBytes = await weighOurs(admin)
    await daemon.start()
    puts = 0 // the owner object was written
    const started = performance.now()
    progress.phase = 'writing'
    await replayMessages(
      app,
      messagesOf(options),
      { seed: options.seed, perSecond: options.perSecond, writers, signal },
      replay,
    )
    progress.phase = 'draining'
    await drain(admin, signal, queued => {
      progress.queued = queued
    })
    const durationMs = performance.now() - started
    const putsUsed = puts
    await daemon.stop()

    progress.phase = 'verifying'
    const source = [...(await loadSources(admin)).values()][0]
    if (source === undefined) throw new LighterError('not_attached', 'the example table is not attached')
    await verifyRows({ db: admin, store }, source, replay.expected, admin, plainTable, verification)
    signal.throwIfAborted()

    progress.phase = 'weighing'
    const weight = await countStored(admin)
    const balance = await weighDatabase(admin, plainTable, {
      emptyOursBytes,
      payloadBytes: weight.payload_bytes,
      objectBytes: weight.object_bytes,
      puts: putsUsed,
    })
    report()
    return {
      messages: replay.written,
      updated: replay.updated,
      deleted: replay.deleted,
      ...weight,
      puts: putsUsed,
      balance,
      verified: verification.verified,
      mismatched: verification.mismatches.length,
      mismatches: verification.mismatches,
      duration_ms: Math.round(durationMs),
    }
  } finally {
    clearInterval(ticker)
    await daemon.stop(0)
    store.close()
    await Promise.all([app.end(), admin.end()])
  }
}

function messagesOf(options: DemoOptions): AsyncIterable<DemoMessage> | Iterable<DemoMessage> {
  if (options.from !== undefined) return readMessages(options.from)
  const { seed, messages, tenants, largeBytes } = options
  return generateMessages({ seed, messages, tenants, ...(largeBytes > 0 && { largeBytes }) })
}

/** Waits for the queue to be empty. @throws {LighterError} a job was given up, or it takes too long */
async function drain(admin: pg.Pool, signal: AbortSignal, onDepth: (queued: number) => void): Promise<void> {
  const deadline = performance.now() + drainTimeoutMs
  for (;;) {
    signal.throwIfAborted()
    const { rows } = await admin.query<{ queued: number; failed: string | null }>(
      `select (select count(*)::int from lighter.jobs) as queued, (select min(last_error) from lighter.failed_jobs) as failed`,
    )
    const { queued = 0, failed = null } = rows[0] ?? {}
    onDepth(queued)
    if (failed !== null) throw new LighterError('demo_failed', `a row could not be offloaded: ${failed}`)
    if (queued === 0) return
    if (performance.now() > deadline) throw new LighterError('demo_failed', `${queued} rows are still queued`)
    await new Promise(resolve => setTimeout(resolve, 20))
  }
}

async function countStored(admin: pg.Pool) {
  const { rows } = await admin.query<{
    rows: number
    offloaded: number
    artifacts: number
    objects: number
    payload_bytes: number
    object_bytes: number
    latency_p50_ms: number | null
    latency_p99_ms: number | null
  }>(`
    with artifacts as (
      select l.row_id::uuid, l.xmin from lighter.loose_artifacts l
      union all
      select r.id, f.xmin
        from lighter.frames f
       cross join lateral unnest(f.row_uuids) with ordinality r(id, place)
       where (r.place - 1)::smallint <> all (f.voids)
    ),
    offloaded as (
      select a.row_id,
             min(case current_setting('track_commit_timestamp') when 'on' then pg_xact_commit_timestamp(a.xmin) end) as at
        from artifacts a group by a.row_id
    ),
    latencies as (
      select extract(epoch from o.at - m.created_at) * 1000 as ms
        from offloaded o join public.conversation_messages m on m.id = o.row_id
    )
    select (select count(*)::int from public.conversation_messages) as rows,
           (select count(*)::int from latencies) as offloaded,
           (select count(*)::int from public.artifact_refs) as artifacts,
           (select coalesce(sum(size_bytes), 0)::float8 from public.artifact_refs) as payload_bytes,
           (select count(*)::int from lighter.objects where state = 'stored') as objects,
           (select coalesce(sum(byte_length), 0)::float8 from lighter.objects where state = 'stored') as object_bytes,
           (select percentile_disc(0.5) within group (order by ms) from latencies)::float8 as latency_p50_ms,
           (select percentile_disc(0.99) within group (order by ms) from latencies)::float8 as latency_p99_ms`)
  const [weight] = rows
  if (weight === undefined) throw new Error('the query answered no row')
  return weight
}
