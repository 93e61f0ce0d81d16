// How many PUTs there are: by the rules of docs/architecture.md, "settled, then due", for rows that come as they did.
import type { daemonDefaults } from './constants.ts'
import { type Leaving, leaves } from './leaving.ts'
import type { Tenants } from './tenants.ts'

export type PackSettings = { -readonly [K in keyof typeof daemonDefaults]: number }

/** Rows that wait for each other, with what they have of the other phase. */
interface Kind {
  /** Of all rows that leave. */
  share: number
  /** Mean bytes of text a row. */
  bytes: number
  /** Of the phase that the group is not named for. */
  otherBytes: number
  /** Rows that wait for no others, of all of this kind. */
  aloneShare: number
}

export interface Departures {
  /** Of the rows that are packed: how many have something of a phase, and how much they all have of it, mean. */
  phases: { share: number; bytes: number }[]
  /** Of all that leave: rows with an object of their own. */
  streamedShare: number
  kinds: Kind[]
  /** Requests of a row that is streamed: one PUT, or a multipart upload. */
  requestsPerStream: number
}

/** Smaller parts are not uploaded in parts. */
const partBytes = 5 * 1024 * 1024

export function departuresOf(rows: Leaving[], shipAloneBytes: number, storedShare: number): Departures {
  const leaving = rows.filter(leaves)
  const all = sum(leaving, row => row.weight)
  const streamed = leaving.filter(row => row.isStreamed)
  const packed = leaving.filter(row => !row.isStreamed)
  const ofKind = (isRest: boolean): Kind[] => {
    const own = packed.filter(row => row.restText > row.fieldText === isRest)
    const weight = sum(own, row => row.weight)
    if (weight === 0) return []
    const mean = (of: (row: Leaving) => number) => sum(own, row => row.weight * of(row)) / weight
    return [
      {
        share: weight / all,
        bytes: mean(row => row.fieldText + row.restText),
        otherBytes: mean(row => Math.min(row.fieldText, row.restText)),
        aloneShare: mean(row => (row.fieldText + row.restText >= shipAloneBytes ? 1 : 0)),
      },
    ]
  }
  const packedWeight = sum(packed, row => row.weight)
  const phaseOf = (text: (row: Leaving) => number) => ({
    share: sum(packed, row => (text(row) > 0 ? row.weight : 0)) / packedWeight,
    bytes: sum(packed, row => row.weight * text(row)) / packedWeight,
  })
  const requests = (row: Leaving) => {
    const parts = Math.ceil(((row.fieldText + row.restText) * storedShare) / partBytes)
    return (row.fieldText > 0 && row.restText > 0 ? 2 : 1) * (parts > 1 ? parts + 2 : 1)
  }
  const streamedWeight = sum(streamed, row => row.weight)
  return {
    phases:
      packedWeight === 0
        ? []
        : [phaseOf(row => row.fieldText), phaseOf(row => row.restText)].filter(phase => phase.share > 0),
    streamedShare: all === 0 ? 0 : streamedWeight / all,
    kinds: [...ofKind(false), ...ofKind(true)],
    requestsPerStream:
      streamedWeight === 0 ? 1 : sum(streamed, row => row.weight * requests(row)) / streamedWeight,
  }
}

const sum = <T>(items: T[], of: (item: T) => number) => items.reduce((total, item) => total + of(item), 0)

export interface Steady {
  /** Class A operations a second. */
  putsPerSecond: number
  /** Rows that wait at any moment, whole. */
  waitingRows: number
  /** Bytes of payload that go together, mean. */
  packBytes: number
}

/** Rows that come one after the other for ever. @param rowsPerSecond of those that leave */
export function steadyPuts(
  departures: Departures,
  tenants: Tenants,
  rowsPerSecond: number,
  maxWaitMs: number,
  settings: PackSettings,
): Steady {
  let putsPerSecond = rowsPerSecond * departures.streamedShare * departures.requestsPerStream
  let waitingRows = 0
  let packed = 0
  let packs = 0
  for (const kind of departures.kinds) {
    for (const { share, count } of tenants.shares) {
      const rate = rowsPerSecond * kind.share * share
      if (rate <= 0) continue
      const gathered = (rate * maxWaitMs * kind.bytes) / 1000
      // Below the minimum it waits on until it has that much: the row that fills it up is half over, on average.
      const bytes = Math.max(
        kind.bytes,
        Math.min(Math.max(gathered, settings.packMinBytes + kind.bytes / 2), settings.packTargetBytes),
      )
      const rows = Math.max(
        1,
        Math.min(
          bytes / kind.bytes,
          settings.batchRows,
          kind.aloneShare > 0 ? 1 / kind.aloneShare : Number.POSITIVE_INFINITY,
        ),
      )
      // What it has of the other phase is a pack of its own only if that is worth one.
      const objects = kind.otherBytes * rows >= settings.packMinBytes ? 2 : 1
      putsPerSecond += (count * rate * objects) / rows
      waitingRows += (count * rows) / 2
      packs += (count * rate * objects) / rows
      packed += count * rate * kind.bytes
    }
  }
  return { putsPerSecond, waitingRows, packBytes: packs === 0 ? 0 : packed / packs }
}

/**
 * Rows that are there already, backfilled and flushed: they leave in leases in the order in which they were queued. Of a lease,
 * each tenant and kind has an object of its own, but for what is too little for one and goes along with another of its
 * tenant. A lease with more text than a batch may hold is done in rounds, and a round cuts a group in two.
 */
export function flushedPuts(
  departures: Departures,
  tenants: Tenants,
  rows: number,
  settings: PackSettings,
): number {
  const { batchRows, batchBytes, maxPackBytes, packMinBytes } = settings
  const streamed = rows * departures.streamedShare
  const packed = rows - streamed
  const objectsOf = (count: number) => {
    const rounds = Math.ceil((count * sum(departures.phases, phase => phase.bytes)) / batchBytes)
    const ofTenants = sum(tenants.shares, ({ share, count: likeIt }) => {
      const phases = departures.phases.map(phase => {
        const there = 1 - (1 - Math.min(1, share * phase.share)) ** count
        const bytes = (count * share * phase.bytes) / Math.max(there, 1e-9)
        return { there, bytes, packs: Math.max(1, Math.ceil(bytes / maxPackBytes)) }
      })
      const [first, second] = phases
      const folds =
        first !== undefined && second !== undefined && Math.min(first.bytes, second.bytes) < packMinBytes
      return (
        likeIt * (sum(phases, ({ there, packs }) => there * packs) - (folds ? first.there * second.there : 0))
      )
    })
    return ofTenants + Math.max(0, rounds - 1)
  }
  const whole = Math.floor(packed / batchRows)
  const last = packed - whole * batchRows
  return (
    whole * objectsOf(batchRows) +
    (last < 0.5 ? 0 : objectsOf(last)) +
    streamed * departures.requestsPerStream
  )
}
