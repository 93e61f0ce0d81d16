// What a month costs: payloads offloaded, and the same payloads left in their rows.
import { defaultInlineRatio, defaultPrices as prices } from '../../src/reports/prices.ts'

const monthSeconds = 30 * 86_400
const keptSeconds = 90 * 86_400

/** What was counted, of the simulated part of all tenants, over a span of time. */
export interface Counted {
  /** Heavy rows that came in each second. */
  rowsPerSecond: number
  /** Text of a payload. */
  payloadBytes: number
  /** Class A operations a second, of the steady state. */
  putsPerSecond: number
  /** Bytes in the bucket for each byte of payload. */
  storedShare: number
  /** Bytes of schema lighter for each artifact, without what waits and what is there when nothing is stored. */
  ourBytesPerArtifact: number
  /** Bytes of the pointers in a row that was offloaded. */
  pointerBytes: number
  /** On average. */
  waitingRows: number
  waitingPayloadBytes: number
  /** Bytes of schema lighter for each row that waits. */
  ourBytesPerWaiting: number
}

/** Dollars a month. */
export interface Bill {
  inline: number
  puts: number
  bucket: number
  /** Schema lighter. */
  catalogue: number
  /** Rows that wait, still inline. */
  waiting: number
  pointers: number
}

/** Of the 90 days that are kept, all that does not wait has left its row. @param factor the whole is so many times the part */
export function billOf(counted: Counted, factor: number): Bill {
  const keptRows = counted.rowsPerSecond * keptSeconds
  const artifacts = keptRows - counted.waitingRows
  const payload = keptRows * counted.payloadBytes
  const disk = (bytes: number) => (factor * bytes * prices.databaseGbMonth) / 1e9
  return {
    inline: disk(payload * defaultInlineRatio),
    puts: factor * counted.putsPerSecond * monthSeconds * (prices.classAMillion / 1e6),
    bucket:
      (factor * (payload - counted.waitingPayloadBytes) * counted.storedShare * prices.bucketGbMonth) / 1e9,
    catalogue: disk(
      artifacts * counted.ourBytesPerArtifact + counted.waitingRows * counted.ourBytesPerWaiting,
    ),
    waiting: disk(counted.waitingPayloadBytes * defaultInlineRatio),
    pointers: disk(artifacts * counted.pointerBytes),
  }
}
