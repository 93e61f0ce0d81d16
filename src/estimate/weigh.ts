// The table and the database before and after, and the bill, for one choice of settings.
import type { Prices } from '../reports/prices.ts'
import { frameTextBytes } from '../store/pack-format.ts'
import { oursBytes } from './constants.ts'
import { type Leaving, leaves, leavingOf, type Settings, type WeighedRow } from './leaving.ts'
import { departuresOf, flushedPuts, type PackSettings, type Steady, steadyPuts } from './puts.ts'
import type { TableFacts } from './relation.ts'
import { btreeBytes, heapBytes, type LaidOut, toastWaste } from './storage.ts'
import { type Tenants, tenantsOf } from './tenants.ts'

export interface Circumstances {
  facts: TableFacts
  rows: WeighedRow[]
  /** Rows of the table for one of the sample. */
  expansion: number
  uuidKey: boolean
  /** Given by the operator; null: by the sample. */
  tenants: number | null
  /** Of all rows, heavy or not; null: not known. */
  rowsPerSecond: number | null
  keptDays: number
  prices: Prices
  /** Bytes in the bucket for a byte of payload. */
  storedShare: number
  shipAloneBytes: number
  packs: PackSettings
}

export interface Weight {
  rows: number
  /** Rows that leave, artifacts of them, and text that leaves. */
  leaving: { rows: number; artifacts: number; payloadBytes: number; storedBytes: number }
  /** The table with indexes and TOAST: as its files are; rewritten; after everything heavy left and it was rewritten. */
  table: { now: number; rewritten: number; after: number }
  /** Of schema lighter, for the rows that are there. */
  ours: number
  tenants: Tenants
  /** Of the rows that are there: backfill and flush. */
  backfill: { puts: number; objects: number; bucketBytes: number }
  /** Null: the rate is not known. */
  steady: Steady | null
  bill: Bill
}

/** Dollars a month. */
interface Bill {
  /** This table's disk, as rows are kept. */
  inline: number
  offloaded: number
  parts: { table: number; ours: number; bucket: number; puts: number }
  /** Rows that the bill is of. */
  rows: number
}

const monthSeconds = 30 * 86_400

export function weigh(of: Circumstances, settings: Settings & { maxWaitMs: number }): Weight {
  const { facts, expansion, packs, prices } = of
  const found = of.rows.map(row => leavingOf(facts, row, settings, packs.streamThresholdBytes))
  const leaving = found.filter(leaves)
  const rows = sum(found, row => row.weight)
  const left = sum(leaving, row => row.weight)
  const tenants = tenantsOf(
    leaving.map(row => row.tenant),
    expansion,
    of.tenants,
  )
  const departures = departuresOf(found, of.shipAloneBytes, of.storedShare)
  const artifacts = sum(
    leaving,
    row => row.weight * ((row.fieldText > 0 ? 1 : 0) + (row.restText > 0 ? 1 : 0)),
  )
  const payloadBytes = sum(leaving, row => row.weight * (row.fieldText + row.restText))
  const indexes = indexBytes(facts, of.rows, rows)
  const table = {
    now: facts.bytes.heap + facts.bytes.toast + facts.bytes.indexes,
    rewritten:
      tableBytes(
        facts,
        found.map(row => ({ ...row.before, weight: row.weight })),
      ) + indexes,
    after:
      tableBytes(
        facts,
        found.map(row => ({ ...row.after, weight: row.weight })),
      ) + indexes,
  }
  const puts = flushedPuts(departures, tenants, left, packs)
  const streamed = left * departures.streamedShare
  const ours = oursOf(of, { artifacts, payloadBytes, objects: puts, streamed })
  const rate = of.rowsPerSecond
  const steady =
    rate === null || rows === 0
      ? null
      : steadyPuts(departures, tenants, (rate * left) / rows, settings.maxWaitMs, packs)
  return {
    rows,
    leaving: {
      rows: left,
      artifacts,
      payloadBytes,
      storedBytes: sum(leaving, row => row.weight * (row.stored ?? 0)),
    },
    table,
    ours,
    tenants,
    backfill: { puts, objects: puts, bucketBytes: payloadBytes * of.storedShare },
    steady,
    bill: billOf(),
  }

  function billOf(): Bill {
    const disk = (bytes: number) => (bytes / 1e9) * prices.databaseGbMonth
    const kept = rate === null ? rows : rate * of.keptDays * 86_400
    const factor = rows === 0 ? 0 : kept / rows
    // Small packs of a low rate are kept as long as their rows.
    const objects = steady === null ? puts : steady.putsPerSecond * of.keptDays * 86_400
    const waiting = steady === null || left === 0 ? 0 : Math.min(1, steady.waitingRows / (left * factor))
    const gone = factor * (1 - waiting)
    const parts = {
      table: disk(factor * table.after + waiting * factor * (table.rewritten - table.after)),
      ours: disk(
        oursOf(of, {
          artifacts: artifacts * gone,
          payloadBytes: payloadBytes * gone,
          objects,
          streamed: streamed * gone,
        }),
      ),
      bucket: ((payloadBytes * gone * of.storedShare) / 1e9) * prices.bucketGbMonth,
      puts: steady === null ? 0 : (steady.putsPerSecond * monthSeconds * prices.classAMillion) / 1e6,
    }
    return {
      inline: disk(factor * table.rewritten),
      offloaded: parts.table + parts.ours + parts.bucket + parts.puts,
      parts,
      rows: kept,
    }
  }
}

function oursOf(
  { uuidKey }: Circumstances,
  count: { artifacts: number; payloadBytes: number; objects: number; streamed: number },
): number {
  const { artifacts, payloadBytes, objects, streamed } = count
  const packs = Math.max(0, objects - streamed)
  // The last frame of a pack is not full.
  const frames = artifacts === 0 ? 0 : Math.min(artifacts, payloadBytes / frameTextBytes + packs / 2)
  return (
    oursBytes.fixed +
    artifacts * (uuidKey ? oursBytes.artifact.uuidKey : oursBytes.artifact.otherKey) +
    Math.max(frames, packs) * oursBytes.frame +
    objects * oursBytes.object +
    streamed * oursBytes.looseArtifact
  )
}

function tableBytes(facts: TableFacts, rows: (LaidOut & { weight: number })[]): number {
  const toast = sum(rows, row => row.toast * row.weight)
  const hasToast = facts.columns.some(column => column.toastable)
  // Of an empty TOAST table there is a page of its index, of each partition.
  const least = hasToast ? facts.pageBytes * Math.max(1, facts.partitions) : 0
  return (
    heapBytes(rows, facts.pageBytes, facts.fillfactor) +
    toast *
      toastWaste(
        rows.flatMap(row => row.moved),
        facts.pageBytes,
      ) +
    least
  )
}

/** The table as it is, right after a rewrite: in heap and TOAST, and in indexes. */
export function rewrittenBytes(facts: TableFacts, rows: WeighedRow[]): { table: number; indexes: number } {
  const count = sum(rows, row => row.weight)
  return {
    table: tableBytes(
      facts,
      rows.map(row => ({ ...row.before, weight: row.weight })),
    ),
    indexes: indexBytes(facts, rows, count),
  }
}

/** Indexes after they were built again; one that is smaller already (by deduplication, say) stays so. */
function indexBytes(facts: TableFacts, rows: WeighedRow[], count: number): number {
  return sum(facts.indexes, index => {
    if (index.columns === null || rows.length === 0) return index.bytes
    const key = sum(index.columns, column => sum(rows, ({ row }) => row.sizes[column] ?? 0) / rows.length)
    return Math.min(index.bytes, btreeBytes(count / Math.max(1, facts.partitions), key, facts.pageBytes))
  })
}

function sum<T>(items: T[], of: (item: T) => number): number {
  return items.reduce((total, item) => total + of(item), 0)
}

/** Of 95 %, as a part of the estimate: pages are what was sampled, so their sums tell. Zero where all was read. */
export function intervalOf(rows: Leaving[], of: (row: Leaving) => number, share: number): number {
  if (share >= 1 || rows.length === 0) return 0
  const pages = new Map<string, number>()
  for (const row of rows) pages.set(row.page, (pages.get(row.page) ?? 0) + of(row))
  const sums = [...pages.values()]
  if (sums.length < 2) return Number.POSITIVE_INFINITY
  const mean = sums.reduce((a, b) => a + b, 0) / sums.length
  if (mean === 0) return 0
  const variance = sums.reduce((total, each) => total + (each - mean) ** 2, 0) / (sums.length - 1)
  return (1.96 * Math.sqrt((variance / sums.length) * (1 - share))) / mean
}
