// Large payloads: memory above idle, and MB/s against a bare multipart upload of the same bytes.
import { readFile } from 'node:fs/promises'
import { startContestant } from './support/contestant.ts'
import { atLeast, atMost, type BenchReport, figure, machine, type Table } from './support/report.ts'
import { type BenchDatabase, postgresSettings, startServers } from './support/servers.ts'

const MB = 1e6

export async function benchLarge(quick: boolean): Promise<{ report: BenchReport; tables: Table[] }> {
  const servers = await startServers()
  const single = quick ? 60 : 200
  const several = quick ? 15 : 50
  try {
    const figures: Record<string, number> = {}
    const rows: string[][] = []
    for (const [label, count, megabytes] of [
      [`one of ${single} MB`, 1, single],
      [`four of ${several} MB`, 4, several],
    ] as const) {
      for (const codec of ['none', 'zstd'] as const) {
        const database = await servers.createDatabase()
        const bytes = await insertLarge(database, count, megabytes * MB)
        const contestant = await startContestant('daemon', {
          ...database.env,
          OFFLOAD_CODEC: codec,
          BENCH_ROWS: String(count),
        })
        const idle = await memory(contestant.pid, 'VmRSS')
        const ms = await contestant.run()
        const above = (await memory(contestant.pid, 'VmHWM')) - idle
        await contestant.stop()
        await checkStored(database, count, bytes)
        const key = `${count}x${megabytes}mb.${codec}`
        figures[`${key}.mb_per_second`] = bytes / MB / (ms / 1000)
        figures[`${key}.above_idle_mib`] = above / 2 ** 20
        rows.push([`${label}, ${codec}`, figure(bytes / MB / (ms / 1000)), figure(above / 2 ** 20)])
        await database.drop()
      }
    }
    const database = await servers.createDatabase()
    const bare = await startContestant('bare-multipart', {
      ...database.env,
      BENCH_BYTES: String(single * MB),
    })
    const bareRate = single / ((await bare.run()) / 1000)
    await bare.stop()
    await database.drop()
    figures['bare_multipart.mb_per_second'] = bareRate
    rows.push([`bare multipart upload of ${single} MB`, figure(bareRate), ''])
    return {
      report: {
        bench: 'large',
        machine: machine(),
        settings: { quick, postgres: postgresSettings },
        figures,
        goals: [
          atMost(
            'memory above idle, one large payload (codec zstd, the default), MiB',
            figures[`1x${single}mb.zstd.above_idle_mib`] ?? 0,
            64,
          ),
          atLeast(
            'MB/s of the same bytes (codec none) against a bare multipart upload',
            (figures[`1x${single}mb.none.mb_per_second`] ?? 0) / bareRate,
            0.7,
          ),
        ],
      },
      tables: [
        {
          title: 'large payloads, of JSON text that compresses to a half',
          header: ['', 'MB/s', 'MiB above idle'],
          rows,
        },
      ],
    }
  } finally {
    await servers.stop()
  }
}

/** Made in Postgres, so that nothing else has to hold them. Hashes do not compress below a half. */
async function insertLarge(database: BenchDatabase, count: number, bytes: number): Promise<number> {
  await database.admin.query(`
    insert into public.conversations (id, tenant_id)
    values ('22222222-2222-4222-8222-222222222222', '11111111-1111-4111-8111-111111111111')`)
  const { rows } = await database.admin.query<{ size: string }>(
    `insert into public.conversation_messages (conversation_id, role, content, metadata)
     select '22222222-2222-4222-8222-222222222222', 'assistant', 'x', jsonb_build_object('document', (
              select string_agg(encode(sha256(convert_to(k || ' ' || i, 'UTF8')), 'hex'), ' ')
                from generate_series(1, $2::int / 65) i))
       from generate_series(1, $1::int) k
     returning octet_length(metadata::text) as size`,
    [count, bytes],
  )
  return rows.reduce((sum, row) => sum + Number(row.size), 0)
}

async function checkStored(database: BenchDatabase, count: number, bytes: number): Promise<void> {
  const { rows } = await database.admin.query<{ count: number; bytes: number }>(
    'select count(*)::int as count, sum(size_bytes)::float8 as bytes from public.artifact_refs',
  )
  if (rows[0]?.count !== count || rows[0].bytes !== bytes)
    throw new Error(`not all was stored: ${JSON.stringify(rows[0])}`)
}

export async function memory(pid: number, field: 'VmRSS' | 'VmHWM'): Promise<number> {
  const kilobytes = new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(
    await readFile(`/proc/${pid}/status`, 'utf8'),
  )?.[1]
  return Number(kilobytes) * 1024
}
