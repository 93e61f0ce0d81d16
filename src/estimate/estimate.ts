// lighter estimate: what offloading a table would do, before anything of ours is installed. One read-only transaction that
// takes a bounded time and no lock but a reader's.
import type pg from 'pg'
import { formatBytes } from '../cli/output.ts'
import { LighterError } from '../errors.ts'
import { defaultPrices, type Prices, readPrices } from '../reports/prices.ts'
import { type Advice, advise } from './advise.ts'
import { sampleStoredShare } from './compress.ts'
import { daemonDefaults, storedShare as defaultStoredShare } from './constants.ts'
import { type Description, describeTable, type Obstacle } from './describe.ts'
import { expansion, leavingOf, weighRows } from './leaving.ts'
import { readTableFacts, type TableFacts } from './relation.ts'
import { openableBytes, type Sample, type SampleLimits, sampleTable } from './sample.ts'
import { rateOf, settleSecondsOf, timeColumnsOf, type WriteRate } from './times.ts'
import { explainReading } from './trouble.ts'
import { type Circumstances, intervalOf, type Weight, weigh } from './weigh.ts'

export interface EstimateOptions {
  table: string
  column: string
  limits: SampleLimits
  lockTimeoutMs: number
  /** By lighter.attach's names. */
  said: Record<string, unknown>
  rowsPerSecond: number | null
  tenants: number | null
  timeColumn: string | null
  keptDays: number
  prices: { [K in keyof Prices]?: number | undefined }
}

export interface Estimate {
  table: string
  column: string
  /** False also where nothing leaves. Null: it cannot be told. */
  pays: boolean | null
  obstacles: Obstacle[]
  /** By the settings that attach would take. */
  asAttached: Weight | null
  /** With the settings of `advice`. */
  asAdvised: Weight | null
  advice: Advice[]
  sample: {
    rows: number
    pages: number
    ofPages: number
    share: number
    opened: number
    stoppedBy: Sample['stoppedBy']
    /** Of 95 %, as a part of the figure. */
    interval: { rows: number; payloadBytes: number; tableAfter: number }
    outliers: number
    /** Not opened for their size. */
    tooLarge: number
  }
  facts: TableFacts
  rate: WriteRate | null
  keptDays: number
  prices: Prices
  pricesFrom: 'lighter.prices' | 'defaults' | 'options'
  storedShare: { value: number; basis: 'measured' | 'default' }
  caveats: string[]
}

/**
 * @throws {LighterError} `table_not_found`, `not_a_table`, `column_not_found`, `table_locked`, `select_missing`, `reading_timed_out`
 */
export async function estimate(client: pg.Client, options: EstimateOptions): Promise<Estimate> {
  const { limits } = options
  await client.query('begin isolation level repeatable read read only')
  try {
    await client.query(
      `set local statement_timeout = ${limits.timeoutMs}; set local lock_timeout = ${options.lockTimeoutMs}; set local jit = off`,
    )
    const facts = await readTableFacts(client, options.table, options.column)
    const description = await describeOrSay(client, facts, options)
    const source = description.source
    const times = timeColumnsOf(facts, options.timeColumn)
    const sample = await sampleTable(client, facts, source, times, limits)
    const storedShare =
      source === null || sample.rows.length === 0
        ? null
        : await sampleStoredShare(client, facts, Math.max(100, limits.timeoutMs / 4))
    const { prices, from } = await readPrices(client)
    const { bytes: after } = await readTableFacts(client, facts.tableSql, options.column)
    await client.query('commit')

    const factor = expansion(facts, sample)
    const { rows, outliers } = weighRows(facts, sample)
    const rate = rateOf(sample.rows, factor, times.written, options.rowsPerSecond)
    const given = Object.values(options.prices).some(price => price !== undefined)
    const circumstances: Circumstances = {
      facts,
      rows,
      expansion: factor,
      uuidKey: source?.uuidKey === true,
      tenants: options.tenants,
      rowsPerSecond: rate?.rowsPerSecond ?? null,
      keptDays: options.keptDays,
      prices: { ...defaultPrices, ...prices, ...definedOf(options.prices) },
      storedShare: storedShare ?? defaultStoredShare,
      shipAloneBytes: source?.shipAloneBytes ?? 0,
      packs: { ...daemonDefaults },
    }
    const asAttached = source === null ? null : weigh(circumstances, source)
    const advised = source === null ? null : advise(circumstances, source, settleSecondsOf(sample.rows))
    const leaving =
      source === null
        ? []
        : rows.map(row => leavingOf(facts, row, source, circumstances.packs.streamThresholdBytes))
    const result: Estimate = {
      table: facts.tableSql,
      column: options.column,
      pays: asAttached === null ? null : paysOf(asAttached),
      obstacles: description.obstacles,
      asAttached,
      asAdvised: advised?.best ?? null,
      advice: advised?.advice ?? [],
      sample: {
        rows: sample.rows.length,
        pages: sample.pagesSeen,
        ofPages: facts.pages,
        share: sample.share,
        opened: sample.opened,
        stoppedBy: sample.stoppedBy,
        interval: {
          rows: intervalOf(leaving, row => (row.fieldText + row.restText > 0 ? 1 : 0), sample.share),
          payloadBytes: intervalOf(leaving, row => row.fieldText + row.restText, sample.share),
          tableAfter: intervalOf(leaving, row => row.after.heap + row.after.toast, sample.share),
        },
        outliers,
        tooLarge: sample.rows.filter(row => (row.sizes[facts.jsonColumn] ?? 0) > openableBytes).length,
      },
      facts,
      rate,
      keptDays: options.keptDays,
      prices: circumstances.prices,
      pricesFrom: given ? 'options' : from,
      storedShare: { value: circumstances.storedShare, basis: storedShare === null ? 'default' : 'measured' },
      caveats: [],
    }
    const explainedToast = rows.reduce((sum, row) => sum + row.weight * row.before.toast, 0)
    return { ...result, caveats: caveatsOf(result, { bytesAfter: total(after), explainedToast }) }
  } catch (error) {
    await client.query('rollback').catch(() => undefined)
    throw explainReading(error, options.table, {
      timeoutMs: limits.timeoutMs,
      lockTimeoutMs: options.lockTimeoutMs,
    })
  }
}

/** What it cannot ask it says, and the estimate goes on. */
async function describeOrSay(
  client: pg.Client,
  facts: TableFacts,
  options: EstimateOptions,
): Promise<Description> {
  try {
    return await describeTable(client, facts.oid, options.column, options.said)
  } catch (error) {
    if (!(error instanceof LighterError) || error.code !== 'check_not_portable') throw error
    return { source: null, obstacles: [{ found: error.message, hint: error.hint ?? null, isFatal: false }] }
  }
}

const definedOf = (prices: EstimateOptions['prices']): Partial<Prices> =>
  Object.fromEntries(Object.entries(prices).filter(([, price]) => price !== undefined))

const total = ({ heap, toast, indexes }: TableFacts['bytes']) => heap + toast + indexes

/** Against the table as it would be rewritten: free space that it has anyway is not our merit. */
export function paysOf({ table, ours, bill, leaving }: Weight): boolean {
  return leaving.rows > 0 && table.after + ours < table.rewritten && bill.offloaded < bill.inline
}

function caveatsOf(
  { facts, sample }: Estimate,
  { bytesAfter, explainedToast }: { bytesAfter: number; explainedToast: number },
): string[] {
  const caveats: string[] = []
  const say = (is: boolean, text: string) => {
    if (is) caveats.push(text)
  }
  say(
    sample.rows === 0,
    facts.pages === 0
      ? 'The table is empty.'
      : 'The sample found no row: the table may hold dead rows only. Run VACUUM, or raise --sample-pages.',
  )
  say(facts.analyzedAt === null, 'The table was never analysed. The estimate does not use its statistics.')
  say(
    facts.rowsHidden,
    'Row-level security applies to this login: rows that it hides are not in the estimate.',
  )
  say(
    sample.stoppedBy === 'time',
    'The time was up before all pages were read: raise --timeout for a surer estimate.',
  )
  say(
    sample.stoppedBy === 'bytes',
    'Some values were not opened, since --sample-bytes was used up. They are taken for like those of their size that were opened.',
  )
  say(
    sample.share < 1 && sample.pages < 30,
    `Only ${sample.pages} pages were sampled: too few for a sure estimate. Raise --sample-pages.`,
  )
  say(
    sample.tooLarge > 0,
    `${sample.tooLarge} ${sample.tooLarge === 1 ? 'value is' : 'values are'} stored in over ${formatBytes(openableBytes)} and not opened. They are taken for like the largest that were.`,
  )
  say(
    sample.outliers > 0,
    `The sample met ${sample.outliers} value(s) far larger than the others. Each was counted once, not multiplied.`,
  )
  say(
    Math.abs(bytesAfter - total(facts.bytes)) > 0.01 * Math.max(1, total(facts.bytes)),
    'The table grew or shrank while it was read.',
  )
  const unexplained = facts.bytes.toast - explainedToast
  say(
    sample.share < 1 && unexplained > 0.25 * facts.bytes.toast && unexplained > 1e6,
    `The sample does not explain ${formatBytes(unexplained)} of the table's TOAST: a few huge values that it did not meet, or free space. If they are values of ${facts.columns[facts.jsonColumn]?.name}, that much more leaves.`,
  )
  return caveats
}
