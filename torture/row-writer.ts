// A writer of rows of a table of its own: inserts, and whatever its operations are, without pause, alone or in transactions.
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { between, chance, pick, pickIndex, type Random, runningTotals, uuid } from '../src/demo/random.ts'
import { isDatabaseOutage, isTransactionConflict, messageOf, sqlState } from '../src/errors.ts'
import type { Backpressure } from './backpressure.ts'
import type { Findings } from './findings.ts'

export type Db = Pick<pg.ClientBase, 'query'>

export interface RowOperations {
  /** What a row is called in the report. */
  name: string
  /** Inserts a row that the model is to know by this id. */
  insert(db: Db, id: string): Promise<boolean>
  /** What is done to a row that is there. False: it is not, or it was not done. */
  changes: [weight: number, name: string, run: (db: Db, id: string) => Promise<boolean>][]
  /** Makes a second row of one: its id is the last argument. */
  copies: [weight: number, name: string, run: (db: Db, id: string, copy: string) => Promise<boolean>][]
  remove(db: Db, id: string): Promise<boolean>
  /** Whether the model knows the row. */
  isKnown(db: Db, id: string): Promise<boolean>
}

export interface RowWriter {
  /** Its rows, as far as it knows. */
  readonly rows: string[]
  run(signal: AbortSignal): Promise<void>
}

interface RowWriterOptions {
  app: pg.Pool
  random: Random
  findings: Findings
  onWrite: (operation: string, id: string | null) => void
  maxRows: number
  backpressure: Backpressure
  operations: RowOperations
}

const hotRows = 4
const longestPauseMs = 100

/** Asks a function of the model. */
export async function callModel(db: Db, sql: string, values: unknown[]): Promise<boolean> {
  const { rows } = await db.query<{ done: boolean | null }>(`select torture.${sql} as done`, values)
  return rows[0]?.done === true
}

export function createRowWriter(options: RowWriterOptions): RowWriter {
  const { app, random, findings, operations } = options
  const onWrite = (operation: string, id: string | null) =>
    options.onWrite(`${operations.name}: ${operation}`, id)
  const rows: string[] = []
  const forget = (id: string) => {
    const at = rows.indexOf(id)
    if (at >= 0) rows.splice(at, 1)
  }
  const settle = async (db: Db, id: string) => {
    if (!(await operations.isKnown(db, id))) forget(id)
  }
  // Those written last are hot: their offload is under way.
  const target = () => (chance(random, 0.6) ? pick(random, rows.slice(-hotRows)) : pick(random, rows))
  const newRow = () => {
    const id = uuid(random)
    rows.push(id)
    return id
  }

  const insert = async (db: Db) => {
    const id = newRow()
    if (!(await operations.insert(db, id))) forget(id)
    onWrite('insert', id)
  }
  const steps: [number, (db: Db) => Promise<unknown>][] = [
    [30, insert],
    ...operations.changes.map(([weight, name, run]): [number, (db: Db) => Promise<unknown>] => [
      weight,
      async db => {
        const id = target()
        if (await run(db, id)) onWrite(name, id)
        else await settle(db, id)
      },
    ]),
    ...operations.copies.map(([weight, name, run]): [number, (db: Db) => Promise<unknown>] => [
      weight,
      async db => {
        const id = target()
        const copy = newRow()
        if (await run(db, id, copy)) onWrite(name, copy)
        await settle(db, id)
        await settle(db, copy)
      },
    ]),
    [8, db => remove(db, target())],
  ]
  const totals = runningTotals(steps.map(([weight]) => weight))
  const remove = async (db: Db, id: string) => {
    if (await operations.remove(db, id)) onWrite('delete', null)
    await settle(db, id)
  }
  const one = async (db: Db) => {
    if (rows.length > options.maxRows) await remove(db, pick(random, rows))
    else await steps[rows.length === 0 ? 0 : pickIndex(random, totals)]?.[1](db)
  }
  const transaction = async () => {
    const client = await app.connect()
    let broken: Error | undefined
    try {
      await client.query(
        `begin isolation level ${chance(random, 0.3) ? 'repeatable read' : 'read committed'}`,
      )
      for (let left = between(random, 1, 3); left > 0; left--) {
        await one(client)
        if (chance(random, 0.4)) await sleep(between(random, 0, 300))
      }
      await client.query(chance(random, 0.8) ? 'commit' : 'rollback')
    } catch (error) {
      broken = error instanceof Error ? error : new Error(String(error))
      throw error
    } finally {
      client.release(broken)
    }
  }

  return {
    rows,
    run: async signal => {
      while (!signal.aborted) {
        try {
          await (chance(random, 0.1) ? transaction() : one(app))
        } catch (error) {
          if (isDatabaseOutage(error)) await sleep(between(random, 50, 200))
          else if (!isTransactionConflict(error)) {
            const message = messageOf(error)
            const isLost = sqlState(error) === 'XL057'
            findings.add(
              isLost ? 'lost' : 'refused_writes',
              isLost ? (/[0-9a-f-]{36}/.exec(message)?.[0] ?? message) : message,
              message,
            )
          }
        }
        await sleep(random() * longestPauseMs)
        await options.backpressure.wait(signal)
      }
    },
  }
}
