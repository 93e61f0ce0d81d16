// Values that were not opened are taken for like those that were: as the opened one whose stored size is nearest, in proportion.
import type { SampledDocument, SampledRow } from './sample.ts'

/** @param column position of the value in `sizes` @returns the rows, in their order */
export function imputeUnopened(rows: SampledRow[], column: number): SampledRow[] {
  const donors = rows
    .flatMap(({ doc, sizes, compressed }) => {
      const stored = sizes[column] ?? 0
      return doc !== null && stored > 0 ? [{ doc, stored, compressed }] : []
    })
    .sort((a, b) => a.stored - b.stored)
  if (donors.length === 0) return rows
  return rows.map(row => {
    const stored = row.sizes[column] ?? null
    if (row.doc !== null || stored === null) return row
    const donor = nearest(donors, stored)
    return donor === undefined ? row : { ...row, imputed: scaled(donor.doc, stored / donor.stored) }
  })
}

function nearest<T extends { stored: number }>(sorted: T[], size: number): T | undefined {
  let low = 0
  let high = sorted.length - 1
  while (low < high) {
    const middle = (low + high) >> 1
    if ((sorted[middle]?.stored ?? 0) < size) low = middle + 1
    else high = middle
  }
  const [above, below] = [sorted[low], sorted[low - 1]]
  if (above === undefined || below === undefined) return above ?? below
  return above.stored - size < size - below.stored ? above : below
}

function scaled(doc: SampledDocument, by: number): SampledDocument {
  const times = (size: number | null) => (size === null ? null : size * by)
  return {
    ...doc,
    raw: doc.raw * by,
    text: doc.text * by,
    fieldRaw: times(doc.fieldRaw),
    fieldText: times(doc.fieldText),
    restRaw: doc.restRaw * by,
    restText: doc.restText * by,
  }
}
