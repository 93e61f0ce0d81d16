// How Postgres lays rows out: bytes of a heap, its TOAST and its indexes for rows of given sizes, right after a rewrite.
import type { TableFacts } from './relation.ts'

/** Of a page of 8 KB; other sizes in proportion. */
const pageHeader = 24
const linePointer = 4
const rowHeader = 23
/** TOAST_TUPLE_TARGET: a longer row has values compressed, then moved out. */
const toastTarget = 2032
const toastPointer = 18
/** TOAST_MAX_CHUNK_SIZE, and what a full chunk takes in its page. */
const chunkBytes = 1996
const chunkRowHeader = 36
/** An entry of a TOAST index: two integers, header and line pointer, in pages nine tenths full. */
const chunkIndexBytes = 20 / 0.9
/** A value in memory has a header of four bytes; on disk a short one has one. */
export const longestShort = 126

const align = (bytes: number, to: number) => Math.ceil(bytes / to) * to

export interface LaidOut {
  /** With its line pointer. */
  heap: number
  /** In TOAST and its index, in full pages. */
  toast: number
  /** Sizes of the values that are there. */
  moved: number[]
}

/**
 * One row.
 * @param sizes of each column as stored; null: null
 * @param compressible the position of a value that was just written, uncompressed, and what it takes compressed
 */
export function layOutRow(
  facts: Pick<TableFacts, 'columns' | 'attributes' | 'hasDropped'>,
  sizes: (number | null)[],
  compressible: { column: number; compressed: number } | null = null,
): LaidOut {
  const onDisk = [...sizes]
  if (compressible !== null && rowBytes(facts, onDisk) > toastTarget)
    onDisk[compressible.column] = Math.min(onDisk[compressible.column] ?? 0, compressible.compressed)
  const moved: number[] = []
  while (rowBytes(facts, onDisk) > toastTarget) {
    let largest = -1
    facts.columns.forEach((column, i) => {
      const size = onDisk[i] ?? 0
      if (column.toastable && size > toastPointer && size > (onDisk[largest] ?? 0)) largest = i
    })
    if (largest === -1) break
    moved.push(onDisk[largest] ?? 0)
    onDisk[largest] = toastPointer
  }
  const toast = moved.reduce((sum, size) => sum + toastBytes(size), 0)
  return { heap: align(rowBytes(facts, onDisk), 8) + linePointer, toast, moved }
}

function rowBytes(
  { columns, attributes, hasDropped }: Pick<TableFacts, 'columns' | 'attributes' | 'hasDropped'>,
  sizes: (number | null)[],
): number {
  const hasNulls = hasDropped || sizes.some(size => size === null)
  let bytes = align(rowHeader + (hasNulls ? Math.ceil(attributes / 8) : 0), 8)
  columns.forEach((column, i) => {
    const size = sizes[i]
    if (size === null || size === undefined) return
    // A short value, and a TOAST pointer, stand wherever there is room.
    if (column.length > 0 || size > longestShort + 1) bytes = align(bytes, column.alignment)
    bytes += size
  })
  return bytes
}

const chunksOf = (size: number): number[] => {
  const full = Array.from({ length: Math.floor(size / chunkBytes) }, () => chunkBytes)
  const rest = size % chunkBytes
  return (rest > 0 ? [...full, rest] : full).map(bytes => align(bytes + chunkRowHeader, 8) + linePointer)
}

/** A value of so many bytes in chunks, with their index entries. */
function toastBytes(size: number): number {
  const chunks = chunksOf(size)
  return chunks.reduce((sum, bytes) => sum + bytes, 0) + chunks.length * chunkIndexBytes
}

/** How much larger pages with these values are than what is in them: the end of a page is too short for a chunk. */
export function toastWaste(values: number[], pageBytes: number): number {
  let bytes = 0
  let pages = 1
  let free = pageBytes - pageHeader
  for (const chunk of values.flatMap(chunksOf)) {
    if (chunk > free) {
      pages++
      free = pageBytes - pageHeader
    }
    free -= chunk
    bytes += chunk
  }
  return pages < 4 ? pageBytes / (pageBytes - pageHeader) : (pages * pageBytes - free) / bytes
}

/** Bytes of a heap of so many such rows: a page is not broken. @param heaps of single rows, in any order, a fair sample */
export function heapBytes(
  heaps: { heap: number; weight: number }[],
  pageBytes: number,
  fillfactor: number,
): number {
  const room = pageBytes - pageHeader
  const limit = pageBytes * (fillfactor / 100) - pageHeader
  let pages = 0
  let used = 0
  let rows = 0
  // What does not fit begins a page: worked out by filling pages with the rows of the sample, one after the other.
  for (const { heap } of heaps) {
    if (rows > 0 && (used + heap > room || used > limit)) {
      pages++
      used = 0
      rows = 0
    }
    used += heap
    rows++
  }
  const bytes = heaps.reduce((sum, { heap }) => sum + heap, 0)
  const total = heaps.reduce((sum, { heap, weight }) => sum + heap * weight, 0)
  if (bytes === 0) return 0
  const filled = pages === 0 ? room * (fillfactor / 100) : (bytes - used) / pages
  return Math.ceil(total / Math.min(filled, room)) * pageBytes
}

/** Pages of a B-tree that was just built, nine tenths full. */
export function btreeBytes(rows: number, keyBytes: number, pageBytes: number): number {
  const entry = align(8 + keyBytes, 8) + linePointer
  const perPage = Math.max(1, Math.floor(((pageBytes - 40) * 0.9) / entry))
  const leaves = Math.max(1, Math.ceil(rows / perPage))
  return (1 + leaves + (leaves > 1 ? Math.ceil(leaves / perPage) : 0)) * pageBytes
}
