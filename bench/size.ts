// What becomes of the database: bytes by relation before, after a plain VACUUM, and after a rewrite of the attached table.
import { startContestant } from './support/contestant.ts'
import { heavyMessages, loadMessages, type Workload } from './support/messages.ts'
import { atMost, type BenchReport, figure, type Goal, machine, type Table } from './support/report.ts'
import { type BenchDatabase, postgresSettings, startServers } from './support/servers.ts'
import { sweepNow } from './support/sweep-now.ts'

const workloads: [name: Workload & string, title: string, atMostOfBefore: number][] = [
  ['calls', 'tool calls alone', 0.56],
  ['real', 'real mix', 0.43],
]
/** Smaller relations are added up. */
const listedBytes = 100_000

interface RelationSize {
  name: string
  /** Whether it is the application's: everything else is ours. */
  theirs: boolean
  bytes: number
  indexBytes: number
}

export async function benchSize(quick: boolean): Promise<{ report: BenchReport; tables: Table[] }> {
  const servers = await startServers()
  // What is fixed of ours, 1.8 MB of files of 40 tables, is a larger part of a small database.
  const sizes = quick ? [3000] : [20_000, 100_000]
  const figures: Record<string, number> = {}
  const tables: Table[] = []
  const goals: Goal[] = []
  try {
    for (const [messages, [workload, title, limit]] of sizes.flatMap(size =>
      workloads.map(w => [size, w] as const),
    )) {
      const key = `${workload}.${messages}`
      const database = await servers.createDatabase()
      await loadMessages(database.admin, heavyMessages(workload, messages))
      await rewriteTheirs(database)
      const before = (await relationSizes(database)).filter(relation => relation.theirs)
      const contestant = await startContestant('lighter', {
        ...database.env,
        BENCH_ROWS: String(messages),
        BENCH_WORKLOAD: workload,
      })
      await contestant.run()
      await contestant.stop()
      // As every quarter of an hour.
      await sweepNow(database, 'rollup')
      await database.admin.query('vacuum analyze')
      const vacuumed = await relationSizes(database)
      await rewriteTheirs(database)
      const rewritten = await relationSizes(database)
      const { artifacts, payloadBytes, objectBytes } = await countStored(database)
      await database.drop()

      const bytesBefore = sum(before)
      const ours = rewritten.filter(relation => !relation.theirs)
      Object.assign(figures, {
        [`${key}.artifacts`]: artifacts,
        [`${key}.before_bytes`]: bytesBefore,
        [`${key}.vacuumed_bytes`]: sum(vacuumed),
        [`${key}.rewritten_bytes`]: sum(rewritten),
        [`${key}.vacuumed_of_before`]: sum(vacuumed) / bytesBefore,
        [`${key}.rewritten_of_before`]: sum(rewritten) / bytesBefore,
        [`${key}.our_bytes_per_artifact`]: sum(ours) / artifacts,
        [`${key}.stored_per_payload_byte`]: objectBytes / payloadBytes,
      })
      tables.push(
        sizeTable(
          `${title}: ${figure(messages)} messages, ${figure(artifacts)} artifacts`,
          before,
          vacuumed,
          rewritten,
        ),
      )
      if (workload === 'calls') {
        goals.push(
          atMost(`our bytes per artifact, ${title}, ${figure(messages)}`, sum(ours) / artifacts, 140),
        )
      } else {
        goals.push(
          atMost(
            `stored bytes per payload byte, ${title}, ${figure(messages)}`,
            objectBytes / payloadBytes,
            0.11,
          ),
        )
      }
      goals.push(
        atMost(
          `whole database after a rewrite / before, ${title}, ${figure(messages)}`,
          sum(rewritten) / bytesBefore,
          limit,
        ),
      )
    }
    return {
      report: {
        bench: 'size',
        machine: machine(),
        settings: { quick, postgres: postgresSettings },
        figures,
        goals,
      },
      tables,
    }
  } finally {
    await servers.stop()
  }
}

const sum = (relations: RelationSize[]) => relations.reduce((total, relation) => total + relation.bytes, 0)

/** Leaves no free space and no dead row in the application's tables; ours are only vacuumed. */
async function rewriteTheirs({ admin }: BenchDatabase): Promise<void> {
  await admin.query('vacuum full public.conversations')
  await admin.query('vacuum full public.conversation_messages')
}

/** Tables with their TOAST and indexes, all that are not the system's. */
async function relationSizes({ admin }: BenchDatabase): Promise<RelationSize[]> {
  const { rows } = await admin.query<RelationSize>(
    `select format('%I.%I', n.nspname, c.relname) as name,
            n.nspname = 'public' and c.relname in ('conversations', 'conversation_messages') as theirs,
            pg_total_relation_size(c.oid)::float8 as bytes, pg_indexes_size(c.oid)::float8 as "indexBytes"
       from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where c.relkind in ('r', 'm', 'S') and n.nspname in ('public', 'lighter')`,
  )
  return rows
}

async function countStored({ admin }: BenchDatabase) {
  const { rows } = await admin.query<{ artifacts: number; payloadBytes: number; objectBytes: number }>(
    `select count(*)::float8 as artifacts, sum(size_bytes)::float8 as "payloadBytes",
            (select sum(byte_length)::float8 from lighter.objects where state = 'stored') as "objectBytes"
       from public.artifact_refs`,
  )
  return rows[0] ?? { artifacts: 0, payloadBytes: 0, objectBytes: 0 }
}

function sizeTable(
  title: string,
  before: RelationSize[],
  vacuumed: RelationSize[],
  rewritten: RelationSize[],
): Table {
  const megabytes = (bytes: number) => figure(bytes / 1e6)
  const bytesOf = (relations: RelationSize[], name: string) =>
    relations.find(relation => relation.name === name)?.bytes ?? 0
  const largest = rewritten.toSorted((a, b) => b.bytes - a.bytes)
  const listed = largest.filter(({ bytes }) => bytes > listedBytes)
  const others = new Set(largest.filter(({ bytes }) => bytes <= listedBytes).map(({ name }) => name))
  const sumOfOthers = (relations: RelationSize[]) => sum(relations.filter(({ name }) => others.has(name)))
  return {
    title,
    header: ['MB', 'before', 'after VACUUM', 'after a rewrite', 'of it indexes'],
    rows: [
      ...listed.map(({ name, bytes, indexBytes }) => [
        name,
        megabytes(bytesOf(before, name)),
        megabytes(bytesOf(vacuumed, name)),
        megabytes(bytes),
        megabytes(indexBytes),
      ]),
      [
        'others',
        megabytes(sumOfOthers(before)),
        megabytes(sumOfOthers(vacuumed)),
        megabytes(sumOfOthers(rewritten)),
        '',
      ],
      ['all', megabytes(sum(before)), megabytes(sum(vacuumed)), megabytes(sum(rewritten)), ''],
      ['of before', '', figure(sum(vacuumed) / sum(before)), figure(sum(rewritten) / sum(before)), ''],
    ],
  }
}
