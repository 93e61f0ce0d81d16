// Parameters of a statement, numbered in the order in which its text names them. Text that is put together in the same order
// every time is the same text every time, and can be prepared.
import { arrayText } from './array-text.ts'

type Element = string | number | boolean | null

/** By name: the type of a column, and its value of an item. */
export type Columns<T> = Record<string, readonly [type: string, of: (item: T) => Element]>

export interface Parameters {
  /** In order. */
  values: unknown[]
  /** The next parameter, such as `$1`. */
  one(value: unknown): string
  /**
   * `unnest($2::int[], …)`: an array for each column, with an element for each item.
   * @param more SQL of further arrays
   */
  unnest<T>(items: readonly T[], columns: Columns<T>, ...more: string[]): string
}

export function parameters(): Parameters {
  const values: unknown[] = []
  const one = (value: unknown) => {
    values.push(value)
    return `$${values.length}`
  }
  return {
    values,
    one,
    unnest: (items, columns, ...more) => {
      const arrays = Object.values(columns).map(([type, of]) => `${one(arrayText(items.map(of)))}::${type}[]`)
      return `unnest(${[...arrays, ...more].join(', ')})`
    },
  }
}

/** Names of columns, as `unnest(…) as r(…)` wants them. */
export const namesOf = (columns: Columns<never>): string => Object.keys(columns).join(', ')
