// What offloading costs against leaving payloads inline, at several rates and numbers of tenants, by simulated days.
import { hydrateMany } from '../src/artifacts/hydrate.ts'
import { readRows } from '../src/artifacts/rows.ts'
import { conversationArrivals } from './support/arrivals.ts'
import { type Bill, billOf } from './support/bill.ts'
import { atMost, type BenchReport, figure, type Goal, machine, type Table } from './support/report.ts'
import { leastSize, type Outcome, runScenario, type Scenario } from './support/scenario.ts'
import { type BenchServers, postgresSettings, startServers } from './support/servers.ts'
import { startSimulation } from './support/simulation.ts'
import { median } from './support/write.ts'

const minute = 60
const hour = 60 * minute
const day = 24 * hour

type Spans = [factor: number, seconds: number, warmUpSeconds: number]

/** Long enough for the rarest pack to leave a few times, and in parts that take less than a minute each. */
const spans: [rowsPerSecond: number, tenants: number, uniform: Spans, zipf: Spans][] = [
  [1, 5, [5, 20 * hour, 6 * hour], [1, 16 * hour, 6 * hour]],
  [1, 1000, [20, 6 * day, 2 * day], [20, 12 * day, 4 * day]],
  [1, 10_000, [100, 30 * day, 10 * day], [200, 90 * day, 30 * day]],
  [100, 5, [5, 30 * minute, 10 * minute], [1, 10 * minute, 4 * minute]],
  [100, 1000, [250, 26 * hour, 11 * hour], [250, 49 * hour, 25 * hour]],
  [100, 10_000, [1000, 4 * day, 2 * day], [1000, 4 * day, 2 * day]],
  [10_000, 5, [1, 6, 2], [1, 8, 4]],
  [10_000, 1000, [250, 16 * minute, 7 * minute], [500, 60 * minute, 30 * minute]],
  [10_000, 10_000, [2500, 2 * hour, 62 * minute], [5000, 9 * hour, 4 * hour]],
]
/** The worker looks at least so often in a simulation. */
const leastSteps = 200
/** A daemon looks no more often than this. */
const secondsOfLook = 1

const scenarios: Scenario[] = spans.flatMap(([rowsPerSecond, tenants, ...both]) =>
  both.map(([factor, seconds, warmUpSeconds], index) => ({
    rowsPerSecond,
    tenants,
    isZipf: index === 1,
    factor,
    seconds,
    warmUpSeconds,
    steps: Math.min(leastSteps, seconds / secondsOfLook),
  })),
)
const quickScenarios: Scenario[] = [
  {
    rowsPerSecond: 1,
    tenants: 1000,
    isZipf: false,
    factor: 100,
    seconds: 6 * day,
    warmUpSeconds: 2 * day,
    steps: 144,
  },
  {
    rowsPerSecond: 10_000,
    tenants: 1000,
    isZipf: false,
    factor: 1000,
    seconds: 16 * minute,
    warmUpSeconds: 7 * minute,
    steps: 96,
  },
]

const limitOf = ({ rowsPerSecond, tenants }: Scenario) =>
  rowsPerSecond > 1 ? 0.2 : tenants === 5 ? 0.25 : tenants === 1000 ? 0.5 : 1

/** Of one conversation that is read as a whole. */
const conversationRows = 14

export async function benchCost(quick: boolean): Promise<{ report: BenchReport; tables: Table[] }> {
  const servers = await startServers()
  // PACK_MIN_BYTES and the like, to see what another one does.
  const settings = Object.fromEntries(
    Object.entries(process.env).flatMap(([name, value]) =>
      name.startsWith('PACK_') && value !== undefined ? [[name, value]] : [],
    ),
  )
  try {
    const least = await leastSize(servers)
    const outcomes: Outcome[] = []
    for (const scenario of quick ? quickScenarios : scenarios)
      outcomes.push(await runScenario(servers, scenario, least, settings))
    const shown = quick ? quickReadings : readings
    const gets: number[][] = []
    for (const reading of shown) gets.push(await readConversations(servers, reading, settings))
    const bills = outcomes.map(outcome => ({
      outcome,
      bill: billOf(outcome.counted, outcome.scenario.factor),
    }))
    return {
      report: {
        bench: 'cost',
        machine: machine(),
        settings: { quick, postgres: postgresSettings, ...settings },
        figures: Object.assign(
          {},
          ...gets.map((counts, index) => ({
            [`conversation.${shown[index]?.rowsPerSecond}.gets_median`]: median(counts),
            [`conversation.${shown[index]?.rowsPerSecond}.gets_mean`]: mean(counts),
            [`conversation.${shown[index]?.rowsPerSecond}.gets_most`]: Math.max(...counts),
          })),
          ...bills.map(({ outcome, bill }) => figuresOf(outcome, bill)),
        ),
        goals: [
          ...bills.flatMap(({ outcome, bill }) => goalsOf(outcome, bill)),
          atMost(`GETs for a conversation of ${conversationRows} rows, mean`, mean(gets[0] ?? []), 2),
        ],
      },
      tables: [billTable(bills), countTable(outcomes), readTable(gets, shown)],
    }
  } finally {
    await servers.stop()
  }
}

const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length

/** Without the pointers, which the second share has. */
const ratioOf = ({ inline, puts, bucket, catalogue, waiting }: Bill) =>
  (puts + bucket + catalogue + waiting) / inline

const titleOf = ({ rowsPerSecond, tenants, isZipf }: Scenario) =>
  `${rowsPerSecond.toLocaleString('en-US')} row${rowsPerSecond === 1 ? '' : 's'}/s, ${tenants.toLocaleString('en-US')} tenants${isZipf ? ', Zipf' : ''}`

function goalsOf({ scenario, putsPer1000 }: Outcome, bill: Bill): Goal[] {
  const goals = [atMost(`bill offloaded / inline, ${titleOf(scenario)}`, ratioOf(bill), limitOf(scenario))]
  if (scenario.rowsPerSecond === 10_000)
    goals.push(atMost(`PUTs per 1,000 artifacts, ${titleOf(scenario)}`, putsPer1000, 2))
  return goals
}

function figuresOf({ scenario, counted, putsPer1000, packs, hintShare, rows }: Outcome, bill: Bill) {
  const { rowsPerSecond, tenants, isZipf } = scenario
  const key = `${rowsPerSecond}.${tenants}.${isZipf ? 'zipf' : 'uniform'}`
  return {
    [`${key}.offloaded_of_inline`]: ratioOf(bill),
    [`${key}.offloaded_of_inline_with_pointers`]: ratioOf(bill) + bill.pointers / bill.inline,
    ...Object.fromEntries(Object.entries(bill).map(([part, dollars]) => [`${key}.${part}_dollars`, dollars])),
    [`${key}.simulated_rows`]: rows,
    [`${key}.puts_per_1000`]: putsPer1000,
    [`${key}.pack_median_bytes`]: packs.median,
    [`${key}.packs_below_minimum`]: packs.belowMinimum / packs.packs,
    [`${key}.stored_share`]: counted.storedShare,
    [`${key}.our_bytes_per_artifact`]: counted.ourBytesPerArtifact,
    [`${key}.our_bytes_per_waiting_row`]: counted.ourBytesPerWaiting,
    [`${key}.waiting_rows`]: counted.waitingRows * scenario.factor,
    [`${key}.waiting_hint_share`]: hintShare,
  }
}

function billTable(bills: { outcome: Outcome; bill: Bill }[]): Table {
  const dollars = (value: number) => `$${figure(value)}`
  return {
    title:
      'a month, 90 days kept: PUTs and bytes counted in the simulated part, multiplied by its factor and extrapolated to 90 days',
    header: [
      '',
      'inline',
      'PUTs',
      'bucket',
      'our tables',
      'still inline',
      'offloaded / inline',
      'with pointers',
    ],
    rows: bills.map(({ outcome, bill }) => [
      titleOf(outcome.scenario),
      dollars(bill.inline),
      dollars(bill.puts),
      dollars(bill.bucket),
      dollars(bill.catalogue),
      dollars(bill.waiting),
      figure(ratioOf(bill)),
      figure(ratioOf(bill) + bill.pointers / bill.inline),
    ]),
  }
}

function countTable(outcomes: Outcome[]): Table {
  return {
    title:
      'what was counted (Postgres by live content: its tables rewritten, and what a database with one pack has taken off)',
    header: [
      '',
      'simulated',
      'rows',
      'tenants 1 :',
      'PUTs per 1,000',
      'median pack KiB',
      'packs < 64 KiB',
      'loose',
      'stored share',
      'our bytes an artifact',
      'rows waiting',
    ],
    rows: outcomes.map(({ scenario, counted, packs, putsPer1000, rows }) => [
      titleOf(scenario),
      spanText(scenario.seconds),
      figure(rows),
      String(scenario.factor),
      figure(putsPer1000),
      figure(packs.median / 1024),
      String(packs.belowMinimum),
      String(packs.loose),
      figure(counted.storedShare),
      figure(counted.ourBytesPerArtifact),
      figure(counted.waitingRows * scenario.factor),
    ]),
  }
}

function spanText(seconds: number): string {
  if (seconds >= 3 * day) return `${seconds / day} d`
  if (seconds >= 2 * hour) return `${seconds / hour} h`
  return seconds >= 2 * minute ? `${seconds / minute} min` : `${seconds} s`
}

interface Reading {
  title: string
  /** Of the part of the tenants that is simulated. */
  rowsPerSecond: number
  tenants: number
  /** So many conversations go on at a time that each has a row a minute. */
  open: number
  hours: number
}

/** The first one has a goal; the second shows what comes of packs that are full within minutes. */
const readings: Reading[] = [
  { title: '1 row/s, 5 tenants', rowsPerSecond: 1, tenants: 5, open: 60, hours: 16 },
  { title: '100 rows/s, 5 tenants', rowsPerSecond: 20, tenants: 1, open: 1200, hours: 0.6 },
]
const quickReadings: Reading[] = [
  { title: '1 row/s, 5 tenants', rowsPerSecond: 1, tenants: 5, open: 60, hours: 4 },
]
const lookSeconds = 5 * minute
/** After which all that is enough for a pack has left. */
const restHours = 49

function readTable(all: number[][], shown: Reading[]): Table {
  const share = (gets: number[], from: number, to: number) =>
    figure(gets.filter(count => count >= from && count <= to).length / gets.length)
  return {
    title: `GETs for a conversation of ${conversationRows} rows that came one a minute, among others`,
    header: ['', 'conversations', 'median', 'mean', 'most', 'share with 1', '2', '3', 'more'],
    rows: all.map((gets, index) => [
      shown[index]?.title ?? '',
      String(gets.length),
      String(median(gets)),
      figure(mean(gets)),
      String(Math.max(...gets)),
      share(gets, 1, 1),
      share(gets, 2, 2),
      share(gets, 3, 3),
      share(gets, 4, conversationRows),
    ]),
  }
}

/** Requests for each conversation, after all of its rows have left. */
async function readConversations(
  servers: BenchServers,
  reading: Reading,
  settings: Record<string, string>,
): Promise<number[]> {
  const { rowsPerSecond, tenants, open, hours } = reading
  const database = await servers.createDatabase()
  const simulation = await startSimulation(database, {
    seconds: (hours + restHours) * hour,
    entriesAtOnce: 10_000,
    settings,
  })
  try {
    const arrivals = conversationArrivals(tenants, open, conversationRows)
    const step = Math.min(lookSeconds, (hours * hour) / leastSteps)
    for (let at = 0; at < hours * hour; at += step) await simulation.advance(arrivals, rowsPerSecond, step)
    // Nobody writes any more: what is left goes after a day.
    const none = [].values()
    for (let at = 0; at < restHours; at++) await simulation.advance(none, rowsPerSecond, hour)
    const { rows: whole } = await database.admin.query<{ ids: string[] }>(
      `select array_agg(m.id::text) as ids from public.conversation_messages m
        group by m.conversation_id
       having count(*) = $1
          and count(*) filter (where m.metadata ? 'tool_interactions_ref' or m.metadata ? 'artifact_metadata_ref') = $1
        order by m.conversation_id limit 300`,
      [conversationRows],
    )
    const [source] = simulation.sources.values()
    if (source === undefined) throw new Error('no table is attached')
    const gets: number[] = []
    for (const { ids } of whole) {
      const inputs = [...(await readRows(simulation.pool, source, ids)).values()]
      const before = simulation.requests.gets
      const results = await hydrateMany({ db: simulation.pool, store: simulation.store }, inputs)
      if (results.length !== conversationRows || results.some(result => result.error !== null))
        throw new Error('a conversation could not be read')
      gets.push(simulation.requests.gets - before)
    }
    return gets
  } finally {
    await simulation.close()
    await database.drop()
  }
}
