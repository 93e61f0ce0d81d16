// Does it stay as fast with a long queue, many artifacts, and more daemons?

import { claimInbox } from '../src/offload/claim.ts'
import { memory } from './large.ts'
import { startContestant } from './support/contestant.ts'
import { atLeast, atMost, type BenchReport, figure, machine, type Table } from './support/report.ts'
import { type BenchDatabase, type BenchServers, postgresSettings, startServers } from './support/servers.ts'
import { median } from './support/write.ts'

interface Case {
  /** Rows of the table, of which so many are queued. */
  messages: number
  backlog: number
  /** Of the table of messages, in percent: less leaves room for rewritten rows on their pages. */
  fillfactor: number
  artifacts: number
  daemons: number
}

export async function benchScale(quick: boolean): Promise<{ report: BenchReport; tables: Table[] }> {
  const short = 10_000
  const long = quick ? 60_000 : 1_000_000
  const many = quick ? 100_000 : 2_000_000
  const repeats = quick ? 1 : 3
  const servers = await startServers()
  try {
    const figures: Record<string, number> = {}
    const rows: string[][] = []
    const run = async (c: Case) => {
      const results: CaseResult[] = []
      for (let n = 0; n < repeats; n++) results.push(await runCase(servers, c, short))
      const key = `messages_${c.messages}.backlog_${c.backlog}.fillfactor_${c.fillfactor}.artifacts_${c.artifacts}.daemons_${c.daemons}`
      const result = Object.fromEntries(
        measures.map(name => {
          figures[`${key}.${name}`] = median(results.map(each => each[name]))
          return [name, figures[`${key}.${name}`]]
        }),
      ) as CaseResult
      rows.push([
        ...[c.messages, c.backlog, c.artifacts].map(count => count.toLocaleString('en-US')),
        String(c.fillfactor),
        String(c.daemons),
        ...measures.map(name => figure(result[name])),
      ])
      return result
    }
    const one = { artifacts: 0, daemons: 1, fillfactor: 100 }
    const base = await run({ messages: short, backlog: short, ...one })
    const shallow = await run({ messages: long, backlog: short, ...one })
    const deep = await run({ messages: long, backlog: long, ...one })
    await run({ messages: long, backlog: long, ...one, fillfactor: 70 })
    const full = await run({ messages: short, backlog: short, ...one, artifacts: many })
    await run({ messages: short, backlog: short, ...one, daemons: 2 })
    await run({ messages: short, backlog: short, ...one, daemons: 4 })
    return {
      report: {
        bench: 'scale',
        machine: machine(),
        settings: { quick, repeats, postgres: postgresSettings },
        figures,
        goals: [
          atLeast(
            `rows/s at a backlog of ${long} against ${short}, of the same ${long} messages`,
            deep.rows_per_second / shallow.rows_per_second,
            0.9,
          ),
          atLeast(
            `rows/s at a backlog of ${long} of ${long} messages against ${short} of ${short}`,
            deep.rows_per_second / base.rows_per_second,
            0.9,
          ),
          atLeast(
            `rows/s with ${many} artifacts against none`,
            full.rows_per_second / base.rows_per_second,
            0.9,
          ),
          atMost(`memory above idle, backlog of ${long}, MiB`, deep.above_idle_mib, 256),
        ],
      },
      tables: [
        {
          title: `the first ${short.toLocaleString('en-US')} rows of a backlog (tool calls of 1 KB)`,
          header: [
            'messages',
            'jobs',
            'artifacts',
            'fillfactor',
            'daemons',
            'rows/s',
            'claim of 1,000, ms',
            'WAL KB a row',
            'page images a row',
            'MiB above idle',
          ],
          rows,
        },
      ],
    }
  } finally {
    await servers.stop()
  }
}

const measures = ['rows_per_second', 'claim_ms', 'wal_kb', 'page_images', 'above_idle_mib'] as const
type CaseResult = Record<(typeof measures)[number], number>

async function runCase(servers: BenchServers, c: Case, count: number): Promise<CaseResult> {
  const database = await servers.createDatabase()
  try {
    await fill(database, c)
    const claimMs = await claimTime(database)
    const daemons = await Promise.all(
      Array.from({ length: c.daemons }, () =>
        startContestant('daemon', { ...database.env, BENCH_ROWS: '1' }),
      ),
    )
    const [first] = daemons
    if (first === undefined) throw new Error('a case needs a daemon')
    const idle = await memory(first.pid, 'VmRSS')
    const walBefore = await wal(database)
    const began = performance.now()
    for (const daemon of daemons) void daemon.run()
    const done = await offloaded(database, count)
    const ms = performance.now() - began
    const peak = await memory(first.pid, 'VmHWM')
    await Promise.all(daemons.map(daemon => daemon.stop()))
    const inAll = await offloaded(database, 0)
    const walAfter = await wal(database)
    return {
      rows_per_second: done / (ms / 1000),
      claim_ms: claimMs,
      wal_kb: (walAfter.bytes - walBefore.bytes) / 1000 / inAll,
      page_images: (walAfter.images - walBefore.images) / inAll,
      above_idle_mib: (peak - idle) / 2 ** 20,
    }
  } finally {
    await database.drop()
  }
}

/** Waits for so many artifacts; asks the table of objects, which is short. */
async function offloaded(database: BenchDatabase, count: number): Promise<number> {
  for (;;) {
    const { rows } = await database.admin.query<{ done: number }>(
      `select coalesce(sum(artifact_count), 0)::int as done from lighter.objects where state = 'stored'`,
    )
    const done = rows[0]?.done ?? 0
    if (done >= count) return done
    await new Promise(resolve => setTimeout(resolve, 10))
  }
}

async function wal(database: BenchDatabase): Promise<{ bytes: number; images: number }> {
  const { rows } = await database.admin.query<{ bytes: number; images: number }>(
    'select wal_bytes::float8 as bytes, wal_fpi::float8 as images from pg_stat_wal',
  )
  return rows[0] ?? { bytes: 0, images: 0 }
}

async function fill(database: BenchDatabase, c: Case): Promise<void> {
  await database.admin.query(
    `insert into public.conversations (id, tenant_id)
     select md5('c' || n)::uuid, md5('t' || n % 5)::uuid from generate_series(1, 500) n;
     alter table public.conversation_messages disable trigger user;
     alter table public.conversation_messages set (fillfactor = ${c.fillfactor})`,
  )
  await database.admin.query(
    `insert into public.conversation_messages (conversation_id, role, content, metadata)
     select md5('c' || 1 + n % 500)::uuid, 'assistant', 'x', jsonb_build_object('model', 'm', 'tool_interactions',
              jsonb_build_array(jsonb_build_object('tool', 'search', 'result', repeat(md5(n::text) || ' ', 28))))
       from generate_series(1, $1::int) n`,
    [c.messages],
  )
  await database.admin.query(
    `insert into lighter.inbox (source_id, row_id)
     select (select id from lighter.sources), id::text from public.conversation_messages limit $1`,
    [c.backlog],
  )
  if (c.artifacts > 0) {
    // Frames of 50, two in a pack, of five conversations each.
    await database.admin.query(
      `insert into lighter.frames (tenant_id, id, kind, r2_key, byte_offset, byte_length, content_encoding, source_id, field, entity_type,
                                   sizes, places, hashes, row_uuids, entities, entity_places)
       select md5('t' || n % 5)::uuid, overlay(overlay(gen_random_uuid()::text placing '8' from 15) placing '0000' from 33)::uuid,
              'assistant_message_tool_interactions', 'tenants/pack-' || n / 2, n % 2 * 9000, 9000, 'zstd', 1, 'tool_interactions',
              'conversation', p.sizes, p.places, p.hashes, p.rows,
              array(select md5('c' || n % 5 + 5 * ((n + e) % 100))::uuid from generate_series(1, 5) e), p.entity_places
         from generate_series(1, $1::int / 50) n
        cross join lateral (
          select array_agg(1000) as sizes, array_agg(o * 1001) as places, string_agg(sha256(int8send(n * 50::bigint + o)), '' order by o) as hashes,
                 array_agg(gen_random_uuid()) as rows, array_agg((1 + o / 10)::smallint) as entity_places
            from generate_series(0, 49) o) p`,
      [c.artifacts],
    )
  }
  await database.admin.query('alter table public.conversation_messages enable trigger user')
  await database.admin.query('vacuum analyze')
  await database.admin.query('checkpoint')
}

/** A claim of 1,000 that is rolled back. */
async function claimTime(database: BenchDatabase): Promise<number> {
  const client = await database.admin.connect()
  try {
    const times: number[] = []
    for (let n = 0; n < 5; n++) {
      await client.query('begin')
      const started = performance.now()
      await claimInbox(client, [1], 1000, 60_000)
      times.push(performance.now() - started)
      await client.query('rollback')
    }
    return Math.min(...times)
  } finally {
    client.release()
  }
}
