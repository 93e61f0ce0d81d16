// How many rows a statement may look at so that it stays short, learnt as it goes.

const targetMs = 100

export interface PageSize {
  rows(): number
  /** Told how long a page took. */
  took(ms: number): void
}

/** Doubles at most, and halves at once: a page that came upon long values is followed by a small one. */
export function createPageSize(first: number, most: number): PageSize {
  let rows = Math.min(first, most)
  return {
    rows: () => rows,
    took: ms => {
      const factor = Math.min(2, Math.max(0.1, targetMs / Math.max(ms, 1)))
      rows = Math.min(most, Math.max(10, Math.round(rows * factor)))
    },
  }
}
