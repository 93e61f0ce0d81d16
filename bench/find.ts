// Finding artifacts by their ids: CPU of the backend for each, in a catalogue of ten million.
import pg from 'pg'
import { backendCpu } from './support/backend-cpu.ts'
import { atMost, type BenchReport, figure, machine, type Table } from './support/report.ts'
import { postgresSettings, startServers } from './support/servers.ts'
import { median } from './support/write.ts'

const perFrame = 64
const tenants = 100

export async function benchFind(quick: boolean): Promise<{ report: BenchReport; tables: Table[] }> {
  const frames = Math.ceil((quick ? 500_000 : 10_000_000) / perFrame)
  const calls = 2000
  const rounds = quick ? 5 : 11
  const servers = await startServers()
  try {
    const database = await servers.createDatabase()
    await fill(database.admin, frames)
    const { rows: artifacts } = await database.admin.query<{ tenant: string; id: string }>(
      `select f.tenant_id as tenant,
              encode(overlay(uuid_send(f.id) placing int2send(floor(random() * ${perFrame})::int2) from 15), 'hex')::uuid as id
         from lighter.frames f order by random() limit ${calls}`,
    )
    const client = new pg.Client({ connectionString: database.urls.daemon })
    await client.connect()
    const byTenant = Map.groupBy(artifacts, a => a.tenant)
    const together = [...byTenant].map(([tenant, of]) => [tenant, of.map(a => a.id)])
    const alone = artifacts.map(a => [a.tenant, [a.id]])
    const get = 'select id, r2_key, sha256 from lighter.artifacts_get($1::uuid, $2::uuid[])'
    const runs = {
      alone: { values: alone, text: get },
      together: { values: together, text: get },
      nothing: { values: alone, text: 'select $1::uuid, $2::uuid[]' },
    }
    const spent: Record<string, number[]> = {}
    for (let round = -1; round < rounds; round++) {
      for (const [name, { values, text }] of Object.entries(runs)) {
        let found = 0
        const cpu = await backendCpu(client, async () => {
          for (const each of values) found += (await client.query({ name, text, values: each })).rows.length
        })
        if (found !== artifacts.length) throw new Error(`${found} of ${artifacts.length} were found`)
        if (round >= 0) spent[name] = [...(spent[name] ?? []), cpu / artifacts.length]
      }
    }
    await client.end()
    await database.drop()
    const figures: Record<string, number> = { artifacts: frames * perFrame }
    const line = (name: string, label: string) => {
      const all = spent[name] ?? []
      figures[`${name}.us`] = median(all)
      return [label, ...[median(all), Math.min(...all), Math.max(...all)].map(figure)]
    }
    const rows = [
      line('alone', 'in a call of its own'),
      line('nothing', 'such a call that asks for nothing'),
      line('together', `with ${Math.round(artifacts.length / byTenant.size)} others in a call`),
    ]
    return {
      report: {
        bench: 'find',
        machine: machine(),
        settings: { quick, calls, rounds, postgres: postgresSettings },
        figures,
        goals: [atMost('backend CPU to find one of several by its id, us', figures['together.us'] ?? 0, 30)],
      },
      tables: [
        {
          title: `an artifact by its id among ${figure(frames * perFrame)}: CPU of the backend, us`,
          header: ['', 'median', 'least', 'most'],
          rows,
        },
      ],
    }
  } finally {
    await servers.stop()
  }
}

/** Frames as an offload writes them, in the order of time. */
async function fill(admin: pg.Pool, frames: number): Promise<void> {
  await admin.query('alter table lighter.frames disable trigger user')
  await admin.query(
    `insert into lighter.frames (tenant_id, id, kind, r2_key, byte_offset, byte_length, content_encoding, source_id, field, entity_type,
       sizes, places, hashes, row_uuids, entities, entity_places, artifacts, payload_bytes, deleted_artifacts, deleted_bytes)
     select t.id, (lpad(to_hex(1700000000000 + n), 12, '0') || '8' || substr(md5('frame ' || n), 1, 3) || 'a' || substr(md5('frame ' || n), 4, 11) || '0000')::uuid,
            'assistant_message_tool_interactions', 'tenants/' || t.id || '/assistant_message_tool_interactions/2026/11/30/' || n || '.jsonl.zst',
            n % 60 * 8000, 8000, 'zstd', 1, 'tool_interactions', 'conversation',
            array_fill(1000, array[$2::int]), array(select p * 1001 from generate_series(0, $2 - 1) p),
            decode((select string_agg(md5(n || '.' || p) || md5(p || '.' || n), '' order by p) from generate_series(1, $2) p), 'hex'),
            array(select md5(n || '.' || p)::uuid from generate_series(1, $2) p),
            array(select md5('entity ' || n || '.' || p)::uuid from generate_series(1, $2 / 14) p), array_fill(1::int2, array[$2::int]),
            $2, $2 * 1000, 0, 0
       from generate_series(1, $1) n
      cross join lateral (select md5('tenant ' || n % ${tenants})::uuid as id) t`,
    [frames, perFrame],
  )
  await admin.query('alter table lighter.frames enable trigger user')
  await admin.query('vacuum analyze lighter.frames')
}
