// What the triggers cost the application: commit rate and p99 of plain writes, CPU of an insert; updates with a guard and
// without.
import { benchGuard } from './guard.ts'
import { benchPgbench } from './pgbench.ts'
import { startContestant } from './support/contestant.ts'
import { atLeast, atMost, type BenchReport, figure, machine, type Table } from './support/report.ts'
import { asInstalled, type BenchDatabase, postgresSettings, startServers } from './support/servers.ts'
import { median, type WriteOptions, write } from './support/write.ts'
import type { WriterResult } from './support/writers.ts'
import { benchTriggerCpu } from './trigger-cpu.ts'

const variants = ['none', 'draining', 'stopped', 'notify'] as const
type Variant = (typeof variants)[number]

const labels: Record<Variant, string> = {
  none: 'no trigger',
  draining: 'pg-lighter, daemon draining',
  stopped: 'pg-lighter, daemon stopped',
  notify: 'a queue and NOTIFY in every transaction',
}

/** Tool calls of about the median size, and a row with a document. */
const noise = (bytes: number) =>
  Array.from(
    { length: Math.ceil(bytes / 36) },
    (_, n) => `flight HAT${(n * 7919) % 9973} on May ${n % 28} to ${n * n}`,
  )
    .join(', ')
    .slice(0, bytes)
const rowsOf = {
  small: '{"model": "gpt-4o", "iterations": 1}',
  '1kb': `{"model": "gpt-4o", "tool_interactions": [{"tool": "search", "args": {}, "result": "${noise(930)}"}]}`,
  '16kb': `{"model": "gpt-4o", "tool_interactions": [{"tool": "search", "args": {}, "result": "${noise(16_000)}"}]}`,
}

const simpleQueue = `
  create table public.simple_queue (id bigint generated always as identity primary key, row_id uuid);
  create function public.simple_enqueue() returns trigger language plpgsql security definer as $$
  begin
    insert into public.simple_queue (row_id) values (new.id);
    perform pg_notify('simple', new.id::text);
    return null;
  end $$;
  create trigger simple_enqueue after insert on public.conversation_messages
    for each row when (new.metadata ? 'tool_interactions') execute function public.simple_enqueue();`

export async function benchWritePath(quick: boolean): Promise<{ report: BenchReport; tables: Table[] }> {
  const servers = await startServers()
  const rounds = quick ? 3 : 7
  const seconds = quick ? 0.4 : 1.5
  try {
    const figures: Record<string, number> = {}
    const tables: Table[] = []
    for (const [size, metadata] of Object.entries(rowsOf)) {
      for (const clients of [1, 16]) {
        const database = await servers.createDatabase()
        await database.admin.query(simpleQueue)
        const runs: Record<Variant, WriterResult>[] = []
        // In turns on one database, beginning with another each time: a machine that warms up, slows down or
        // writes a checkpoint does so for all. Ratios are taken within a round, then their median.
        for (let round = 0; round < rounds; round++) {
          const results: Partial<Record<Variant, WriterResult>> = {}
          for (let turn = 0; turn < variants.length; turn++) {
            const variant = variants[(round + turn) % variants.length] ?? 'none'
            results[variant] = await runOne(database, variant, { clients, seconds, metadata })
          }
          runs.push(results as Record<Variant, WriterResult>)
        }
        await database.drop()
        const key = `${size}.${clients}`
        for (const v of variants) {
          figures[`${key}.${v}.commits_per_second`] = median(runs.map(run => run[v].commitsPerSecond))
          figures[`${key}.${v}.p99_ms`] = median(runs.map(run => run[v].p99Ms))
          figures[`${key}.${v}.against_none`] = median(
            runs.map(run => run[v].commitsPerSecond / run.none.commitsPerSecond),
          )
        }
        figures[`${key}.draining.against_notify`] = median(
          runs.map(run => run.draining.commitsPerSecond / run.notify.commitsPerSecond),
        )
        tables.push({
          title: `${size === 'small' ? 'small rows' : `tool calls of ${size.replace('kb', ' KB')}`}, ${clients} client(s)`,
          header: ['', 'commits/s', 'against none', 'p99 ms'],
          rows: variants.map(v => [
            labels[v],
            ...['commits_per_second', 'against_none', 'p99_ms'].map(name =>
              figure(figures[`${key}.${v}.${name}`] ?? 0),
            ),
          ]),
        })
      }
    }
    const cpu = await benchTriggerCpu(servers, quick ? 5 : 15, rowsOf, simpleQueue)
    const pgbench = await benchPgbench(servers, rounds, seconds, rowsOf['1kb'], simpleQueue)
    const guard = await benchGuard(servers, rounds, seconds)
    Object.assign(figures, cpu.figures, pgbench?.figures, guard.figures)
    tables.push(...cpu.tables, ...(pgbench?.tables ?? []), ...guard.tables)
    const goal = (name: string, key: string, limit: number) => atLeast(name, figures[key] ?? 0, limit)
    return {
      report: {
        bench: 'write-path',
        machine: machine(),
        settings: { quick, rounds, seconds, postgres: postgresSettings },
        figures,
        goals: [
          atMost('CPU that the trigger adds to a small row, us', figures['small.ours.added_us'] ?? 0, 8),
          atMost(
            'CPU that the trigger adds to a tool call of 1 KB, us',
            figures['1kb.ours.added_us'] ?? 0,
            20,
          ),
          goal('small rows with the trigger against none, 1 client', 'small.1.stopped.against_none', 0.97),
          goal('small rows with the trigger against none, 16 clients', 'small.16.stopped.against_none', 0.97),
          goal(
            '1 KB tool calls, 16 clients, daemon draining, against none',
            '1kb.16.draining.against_none',
            0.85,
          ),
          goal('the same against NOTIFY each time', '1kb.16.draining.against_notify', 1.3),
          goal('1 KB tool calls, 1 client, daemon stopped, against none', '1kb.1.stopped.against_none', 0.93),
          goal('the same with 16 clients', '1kb.16.stopped.against_none', 0.86),
          ...(pgbench === null
            ? []
            : [
                goal('by pgbench, 1 client', 'pgbench.1.stopped.against_none', 0.78),
                goal('by pgbench, 16 clients', 'pgbench.16.stopped.against_none', 0.76),
              ]),
        ],
      },
      tables,
    }
  } finally {
    await servers.stop()
  }
}

async function runOne(
  database: BenchDatabase,
  variant: Variant,
  options: WriteOptions,
): Promise<WriterResult> {
  const ours = variant === 'draining' || variant === 'stopped'
  await database.admin.query(`
    truncate public.conversation_messages, lighter.inbox, lighter.waiting, lighter.leases, lighter.objects, lighter.frames, lighter.frame_exceptions,
      lighter.loose_artifacts, public.simple_queue;
    alter table public.conversation_messages disable trigger user;
    -- A daemon that drains has rows to work on as soon as they are written.
    ${variant === 'draining' ? `select lighter.set_defaults('0', '0')` : asInstalled};
    ${ours ? 'alter table public.conversation_messages enable trigger lighter_enqueue_1' : ''};
    ${variant === 'notify' ? 'alter table public.conversation_messages enable trigger simple_enqueue' : ''}`)
  const daemon = variant === 'draining' ? await startContestant('daemon', database.env) : null
  try {
    return await write(database, options)
  } finally {
    await daemon?.stop()
  }
}
