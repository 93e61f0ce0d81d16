// Commit rates by pgbench, a faster client than ours: where it is installed.
import { execFile } from 'node:child_process'
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { promisify } from 'node:util'
import { figure, type Table } from './support/report.ts'
import { asInstalled, type BenchServers } from './support/servers.ts'
import { median } from './support/write.ts'

const run = promisify(execFile)

const variants = ['none', 'stopped', 'notify'] as const
type Variant = (typeof variants)[number]
const labels: Record<Variant, string> = {
  none: 'no trigger',
  stopped: 'pg-lighter, daemon stopped',
  notify: 'a queue and NOTIFY in every transaction',
}
const triggers: Record<Variant, string | null> = {
  none: null,
  stopped: 'lighter_enqueue_1',
  notify: 'simple_enqueue',
}

/** `pgbench -M prepared`, in turns on one database. Without the program: null. */
export async function benchPgbench(
  servers: BenchServers,
  rounds: number,
  seconds: number,
  metadata: string,
  notify: string,
): Promise<{ figures: Record<string, number>; tables: Table[] } | null> {
  const program = await findPgbench()
  if (program === null) return null
  const database = await servers.createDatabase()
  const dir = await mkdtemp(path.join(tmpdir(), 'pg-lighter-pgbench-'))
  const script = path.join(dir, 'insert.sql')
  try {
    await database.admin.query(notify)
    await database.admin.query(asInstalled)
    const { rows } = await database.admin.query<{ id: string }>(
      'insert into public.conversations (id, tenant_id) values (gen_random_uuid(), gen_random_uuid()) returning id',
    )
    await writeFile(
      script,
      `insert into public.conversation_messages (conversation_id, role, content, metadata) values ('${rows[0]?.id}', 'assistant', '', '${metadata}');\n`,
    )
    const figures: Record<string, number> = {}
    const tables: Table[] = []
    for (const clients of [1, 16]) {
      const rates: Record<Variant, number[]> = { none: [], stopped: [], notify: [] }
      for (let round = 0; round < rounds; round++) {
        for (let turn = 0; turn < variants.length; turn++) {
          const variant = variants[(round + turn) % variants.length] ?? 'none'
          await database.admin.query(`
            truncate public.conversation_messages, lighter.inbox, public.simple_queue;
            alter table public.conversation_messages disable trigger user;
            ${triggers[variant] === null ? '' : `alter table public.conversation_messages enable trigger ${triggers[variant]}`}`)
          const { stdout } = await run(program, [
            ...['-n', '-M', 'prepared', '-c', String(clients), '-j', '2', '-T', String(Math.ceil(seconds))],
            ...['-f', script, database.urls.admin],
          ])
          rates[variant].push(Number(/tps = ([\d.]+)/.exec(stdout)?.[1]))
        }
      }
      for (const v of variants) {
        figures[`pgbench.${clients}.${v}.commits_per_second`] = median(rates[v])
        figures[`pgbench.${clients}.${v}.against_none`] = median(
          rates[v].map((rate, round) => rate / (rates.none[round] ?? rate)),
        )
      }
      tables.push({
        title: `tool calls of 1 KB by pgbench -M prepared, ${clients} client(s)`,
        header: ['', 'commits/s', 'against none'],
        rows: variants.map(v => [
          labels[v],
          figure(figures[`pgbench.${clients}.${v}.commits_per_second`] ?? 0),
          figure(figures[`pgbench.${clients}.${v}.against_none`] ?? 0),
        ]),
      })
    }
    return { figures, tables }
  } finally {
    await rm(dir, { recursive: true, force: true })
    await database.drop()
  }
}

/** Where Debian puts it, of the newest version. */
async function findPgbench(): Promise<string | null> {
  const root = '/usr/lib/postgresql'
  const versions = await readdir(root).catch(() => [])
  for (const version of versions.sort((a, b) => Number(b) - Number(a))) {
    const bin = path.join(root, version, 'bin')
    const programs: string[] = await readdir(bin).catch(() => [])
    if (programs.includes('pgbench')) return path.join(bin, 'pgbench')
  }
  return null
}
