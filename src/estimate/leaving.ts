// Of each row of a sample: what leaves it, with given settings, and what it takes before and after.
import { defaultInlineRatio } from '../reports/prices.ts'
import type { DescribedSource } from './describe.ts'
import type { TableFacts } from './relation.ts'
import type { Sample, SampledRow } from './sample.ts'
import { type LaidOut, layOutRow, longestShort } from './storage.ts'

export type Settings = Pick<DescribedSource, 'mode' | 'phase1Field' | 'minBytes' | 'thresholdBytes'>

export interface Leaving {
  /** Rows of the table that it stands for. */
  weight: number
  page: string
  tenant: string | null
  before: LaidOut
  after: LaidOut
  /** Text of the payloads; 0: it stays. */
  fieldText: number
  restText: number
  /** Of its value as stored; null: null. */
  stored: number | null
  wasOpened: boolean
  /** Alone in an object, by way of a stream. */
  isStreamed: boolean
}

/** What a row stands for, and how it lies in the table as it is. */
export interface WeighedRow {
  row: SampledRow
  weight: number
  before: LaidOut
}

/**
 * A row that takes more TOAST than the table could have if the sample were fair to it stands for itself alone.
 * @returns how many there are of those, too
 */
export function weighRows(facts: TableFacts, sample: Sample): { rows: WeighedRow[]; outliers: number } {
  const factor = expansion(facts, sample)
  let outliers = 0
  const rows = sample.rows.map(row => {
    const before = layOutRow(facts, row.sizes)
    const isOutlier =
      factor > 1 && before.toast * factor > facts.bytes.toast / 2 && before.toast > facts.pageBytes
    if (isOutlier) outliers++
    return { row, weight: isOutlier ? 1 : factor, before }
  })
  return { rows, outliers }
}

/** Rows of the table for one of the sample. */
export function expansion(facts: TableFacts, sample: Sample): number {
  if (sample.share >= 1 || sample.pagesSeen === 0) return 1
  // Where nearly all pages that were asked for have rows, their number tells better than chance how many were read.
  const asked = sample.share * facts.pages
  return sample.pagesSeen >= 0.9 * asked ? facts.pages / sample.pagesSeen : 1 / sample.share
}

/** @param streamBytes STREAM_THRESHOLD_BYTES */
export function leavingOf(
  facts: TableFacts,
  { row, weight, before }: WeighedRow,
  settings: Settings,
  streamBytes: number,
): Leaving {
  const stored = row.sizes[facts.jsonColumn] ?? null
  const common = { weight, page: row.page, tenant: row.tenant, before, stored, wasOpened: row.doc !== null }
  const stays = { ...common, after: before, fieldText: 0, restText: 0, isStreamed: false }
  if (stored === null) return stays
  const after = (raw: number, share: number): LaidOut => {
    // The pointer's column stands at the end.
    if (settings.mode === 'whole') {
      const laidOut = layOutRow(facts, row.sizes.with(facts.jsonColumn, null))
      return { ...laidOut, heap: laidOut.heap + pointerColumnBytes }
    }
    const size = raw - 3 <= longestShort ? raw - 3 : raw
    const sizes = row.sizes.with(facts.jsonColumn, size)
    return layOutRow(facts, sizes, { column: facts.jsonColumn, compressed: size * share })
  }
  const doc = row.doc ?? row.imputed
  if (doc === undefined) {
    // Nothing was opened that it could be taken for.
    const text = row.compressed ? stored / defaultInlineRatio : stored
    if (text <= settings.thresholdBytes) return stays
    return {
      ...common,
      after: after(unopenedEnvelope, 1),
      fieldText: 0,
      restText: text,
      isStreamed: text > streamBytes,
    }
  }
  const { raw, fieldRaw, fieldText, restRaw, restText, envelopeRaw, isScalar, longNumbers, text } = doc
  if (isScalar) return stays
  const share = row.compressed ? Math.min(1, stored / raw) : 1
  const takesField = settings.phase1Field !== null && fieldRaw !== null && fieldRaw >= settings.minBytes
  // What stays in its row because it is small is still in the rest.
  const rest = takesField || fieldRaw === null ? { raw: restRaw, text: restText } : { raw, text }
  const takesRest = rest.text > settings.thresholdBytes
  if (!takesField && !takesRest) return stays
  const payload = (takesField ? (fieldText ?? 0) : 0) + (takesRest ? rest.text : 0)
  return {
    ...common,
    after: takesRest ? after(envelopeRaw, 1) : after(rest.raw, share),
    fieldText: takesField ? (fieldText ?? 0) : 0,
    restText: takesRest ? rest.text : 0,
    isStreamed: longNumbers || payload > streamBytes,
  }
}

/** Of a value that was not opened: two pointers, and some keys. */
const unopenedEnvelope = 250

/** A uuid. */
const pointerColumnBytes = 16

export const leaves = ({ fieldText, restText }: Leaving): boolean => fieldText > 0 || restText > 0
