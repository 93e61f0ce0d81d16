// What a product's tables look like, and how its application writes to them.
import type { TestEnvironment } from '../support/environment.ts'
import type { Zoo } from './run.ts'

/** A connection of the application, and what it writes with. */
export interface Application {
  query: <R = Record<string, unknown>>(sql: string, values?: unknown[]) => Promise<R[]>
  /** `copy … from stdin`, of lines in Postgres's text format. */
  copy: (sql: string, lines: string[]) => Promise<void>
  /** A value as a changed application reads it: hydrated. `key` has a text for each column of the table's key. */
  read: (table: string, column: string, ...key: [string, ...string[]]) => Promise<string | null>
}

export interface Shape {
  /** Heading in docs/schemas.md: the SQL below it attaches the tables. */
  name: string
  /** Statements without schema names. */
  tables: string
  /** SQL of the tenant of row `m` of each attached table; null: it has none. */
  tenants: Record<string, string | null>
  /** Rows that are there before pg-lighter comes. */
  fill: (app: Application) => Promise<void>
  /** Run in this order, twice: with time to offload after each, then all at once. `round` is 1 or 2. */
  writes: Record<string, (app: Application, round: number) => Promise<void>>
  /** Statements of the product that answer as if nothing had left. */
  reads: Record<string, string>
  attack: {
    name: string
    run: (zoo: Zoo, environment: TestEnvironment) => Promise<void>
    /** What `lighter restore` then names: rows with the id of an artifact of their tenant where nothing follows it. */
    named?: string
    /** Artifacts that the release sweep takes for those of moved rows: a row of another tenant has exactly their stub. */
    moved?: number
  }
}
