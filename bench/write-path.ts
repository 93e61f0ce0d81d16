// What the trigger costs the application: commit rate and p99 of plain writes.
import { startContestant } from './support/contestant.ts'
import { atLeast, type BenchReport, figure, machine, type Table } from './support/report.ts'
import { type BenchDatabase, postgresSettings, startServers } from './support/servers.ts'
import { median, write } from './support/write.ts'

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
  const rounds = quick ? 1 : 3
  const seconds = quick ? 1 : 4
  try {
    const figures: Record<string, number> = {}
    const tables: Table[] = []
    for (const [size, metadata] of Object.entries(rowsOf)) {
      for (const clients of [1, 16]) {
        const rates = new Map<Variant, number[]>(variants.map(v => [v, []]))
        const p99s = new Map<Variant, number[]>(variants.map(v => [v, []]))
        // In turns, so that a machine that warms up or slows down does so for all.
        for (let round = 0; round < rounds; round++) {
          for (const variant of variants) {
            const database = await servers.createDatabase()
            const daemon = await prepare(database, variant)
            await write(database, { clients, seconds: 0.3, metadata })
            const result = await write(database, { clients, seconds, metadata })
            await daemon?.stop()
            await database.drop()
            rates.get(variant)?.push(result.commitsPerSecond)
            p99s.get(variant)?.push(result.p99Ms)
          }
        }
        const rate = (v: Variant) => median(rates.get(v) ?? [])
        for (const variant of variants) {
          figures[`${size}.${clients}.${variant}.commits_per_second`] = rate(variant)
          figures[`${size}.${clients}.${variant}.p99_ms`] = median(p99s.get(variant) ?? [])
        }
        tables.push({
          title: `${size === 'small' ? 'small rows' : `tool calls of ${size.replace('kb', ' KB')}`}, ${clients} client(s)`,
          header: ['', 'commits/s', 'against none', 'p99 ms'],
          rows: variants.map(v => [
            labels[v],
            figure(rate(v)),
            figure(rate(v) / rate('none')),
            figure(median(p99s.get(v) ?? [])),
          ]),
        })
      }
    }
    const ratio = (key: string, a: Variant, b: Variant) =>
      (figures[`${key}.${a}.commits_per_second`] ?? 0) / (figures[`${key}.${b}.commits_per_second`] ?? 1)
    return {
      report: {
        bench: 'write-path',
        machine: machine(),
        settings: { quick, rounds, seconds, postgres: postgresSettings },
        figures,
        goals: [
          atLeast(
            'small rows with the trigger against none, 1 client',
            ratio('small.1', 'stopped', 'none'),
            0.97,
          ),
          atLeast(
            'small rows with the trigger against none, 16 clients',
            ratio('small.16', 'stopped', 'none'),
            0.97,
          ),
          atLeast(
            '1 KB tool calls, 16 clients, daemon draining, against none',
            ratio('1kb.16', 'draining', 'none'),
            0.85,
          ),
          atLeast('the same against NOTIFY each time', ratio('1kb.16', 'draining', 'notify'), 1.3),
        ],
      },
      tables,
    }
  } finally {
    await servers.stop()
  }
}

async function prepare(database: BenchDatabase, variant: Variant) {
  if (variant === 'none' || variant === 'notify') {
    await database.admin.query(`select lighter.detach('public.conversation_messages')`)
  }
  if (variant === 'notify') await database.admin.query(simpleQueue)
  return variant === 'draining' ? startContestant('daemon', database.env) : null
}
