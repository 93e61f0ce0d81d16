// Does it stay as fast with a long queue, many artifacts, and more daemons?

import { memory } from './large.ts'
import { startContestant } from './support/contestant.ts'
import { atLeast, atMost, type BenchReport, figure, machine, type Table } from './support/report.ts'
import { type BenchDatabase, type BenchServers, postgresSettings, startServers } from './support/servers.ts'

interface Case {
  backlog: number
  artifacts: number
  daemons: number
}

export async function benchScale(quick: boolean): Promise<{ report: BenchReport; tables: Table[] }> {
  const short = 10_000
  const long = quick ? 60_000 : 1_000_000
  const many = quick ? 100_000 : 2_000_000
  const servers = await startServers()
  try {
    const figures: Record<string, number> = {}
    const rows: string[][] = []
    const run = async (c: Case) => {
      const result = await runCase(servers, c, short)
      const key = `backlog_${c.backlog}.artifacts_${c.artifacts}.daemons_${c.daemons}`
      figures[`${key}.rows_per_second`] = result.rowsPerSecond
      figures[`${key}.claim_ms`] = result.claimMs
      figures[`${key}.above_idle_mib`] = result.aboveIdleMib
      rows.push([
        c.backlog.toLocaleString('en-US'),
        c.artifacts.toLocaleString('en-US'),
        String(c.daemons),
        figure(result.rowsPerSecond),
        figure(result.claimMs),
        figure(result.aboveIdleMib),
      ])
      return result
    }
    const base = await run({ backlog: short, artifacts: 0, daemons: 1 })
    const deep = await run({ backlog: long, artifacts: 0, daemons: 1 })
    const full = await run({ backlog: short, artifacts: many, daemons: 1 })
    await run({ backlog: short, artifacts: 0, daemons: 2 })
    await run({ backlog: short, artifacts: 0, daemons: 4 })
    return {
      report: {
        bench: 'scale',
        machine: machine(),
        settings: { quick, postgres: postgresSettings },
        figures,
        goals: [
          atLeast(
            `rows/s at a backlog of ${long} against ${short}`,
            deep.rowsPerSecond / base.rowsPerSecond,
            0.9,
          ),
          atLeast(`rows/s with ${many} artifacts against none`, full.rowsPerSecond / base.rowsPerSecond, 0.9),
          atMost(`memory above idle, backlog of ${long}, MiB`, deep.aboveIdleMib, 256),
        ],
      },
      tables: [
        {
          title: `the first ${short.toLocaleString('en-US')} rows of a backlog (tool calls of 1 KB)`,
          header: ['jobs', 'artifacts', 'daemons', 'rows/s', 'claim of 1,000, ms', 'MiB above idle'],
          rows,
        },
      ],
    }
  } finally {
    await servers.stop()
  }
}

async function runCase(servers: BenchServers, c: Case, count: number) {
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
    const began = performance.now()
    for (const daemon of daemons) void daemon.run()
    const done = await offloaded(database, count)
    const ms = performance.now() - began
    const peak = await memory(first.pid, 'VmHWM')
    await Promise.all(daemons.map(daemon => daemon.stop()))
    return { rowsPerSecond: done / (ms / 1000), claimMs, aboveIdleMib: (peak - idle) / 2 ** 20 }
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

async function fill(database: BenchDatabase, c: Case): Promise<void> {
  await database.admin.query(
    `insert into public.conversations (id, tenant_id)
     select md5('c' || n)::uuid, md5('t' || n % 5)::uuid from generate_series(1, 500) n;
     alter table public.conversation_messages disable trigger user`,
  )
  await database.admin.query(
    `insert into public.conversation_messages (conversation_id, role, content, metadata)
     select md5('c' || 1 + n % 500)::uuid, 'assistant', 'x', jsonb_build_object('model', 'm', 'tool_interactions',
              jsonb_build_array(jsonb_build_object('tool', 'search', 'result', repeat(md5(n::text) || ' ', 28))))
       from generate_series(1, $1::int) n`,
    [c.backlog],
  )
  await database.admin.query(
    `insert into lighter.jobs (source_id, row_id)
     select (select id from lighter.sources), id::text from public.conversation_messages`,
  )
  if (c.artifacts > 0) {
    await database.admin.query(
      `insert into public.artifact_refs (id, tenant_id, kind, entity_type, entity_id, r2_key, byte_offset, frame_offset)
       select gen_random_uuid(), md5('t' || n % 5)::uuid, 'assistant_message_tool_interactions', 'conversation',
              md5('c' || n % 500)::uuid, 'tenants/pack-' || n / 100, n, 0
         from generate_series(1, $1::int) n`,
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
      await client.query(`
        with due as (
          select source_id, row_id from lighter.jobs where available_at <= now() and source_id = any (array[1])
           order by priority, available_at limit 1000 for update skip locked)
        update lighter.jobs j set available_at = now() + interval '1 minute', attempts = j.attempts + 1
          from due where j.source_id = due.source_id and j.row_id = due.row_id
        returning j.source_id, j.row_id, j.attempts`)
      times.push(performance.now() - started)
      await client.query('rollback')
    }
    return Math.min(...times)
  } finally {
    client.release()
  }
}
