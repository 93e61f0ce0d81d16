// What goes on in the tables beside the messages: writers of events and files, a reader of both, an operator of partitions.
import type pg from 'pg'
import { chance, pick, seededRandom } from '../src/demo/random.ts'
import { rowKeyParts } from '../src/source/row-key.ts'
import type { Backpressure } from './backpressure.ts'
import { runCellReader } from './cell-readers.ts'
import { loadColumns } from './cells.ts'
import { createEventOperations, eventTenants } from './events.ts'
import { type BodyType, createBodies, createFileOperations } from './files.ts'
import type { Findings } from './findings.ts'
import { runPartitions } from './partitions.ts'
import { createPayloads } from './payloads.ts'
import type { ReadContext } from './readers.ts'
import type { Counts } from './report.ts'
import { createRowWriter, type RowOperations } from './row-writer.ts'

export interface CellWork {
  /** What was done to partitions. */
  partitions: Counts
  run(context: ReadContext, onRead: (rows: number) => void, signal: AbortSignal): Promise<unknown>[]
  /** A row that may be restored by the command; null: it is gone. */
  choose(): Promise<{ rowKey: string; args: string[] } | null>
}

interface CellWorkOptions {
  app: pg.Pool
  admin: pg.Pool
  seed: number
  noise: string
  bodyType: BodyType
  /** Of the files. */
  tenantIds: string[]
  findings: Findings
  backpressure: Backpressure
  onWrite: (operation: string) => void
}

const rowsOfWriter = 100
/** Rows written last, which are read most. */
const recentRows = 100

export function createCellWork(options: CellWorkOptions): CellWork {
  const { app, admin, seed, noise, findings, backpressure } = options
  const random = (name: string) => seededRandom(seed, name)
  const recent: string[] = []
  const writerOf = (name: string, operations: RowOperations) =>
    createRowWriter({
      app,
      random: random(`writer ${name}`),
      findings,
      onWrite: (operation, id) => {
        options.onWrite(operation)
        if (id !== null) recent.push(id)
        if (recent.length > recentRows) recent.shift()
      },
      maxRows: rowsOfWriter,
      backpressure,
      operations,
    })
  const events = eventTenants.map((tenant, n) =>
    writerOf(
      `events ${n}`,
      createEventOperations(random(`events ${n}`), createPayloads(seed, `events ${n}`, noise), tenant),
    ),
  )
  const bodies = createBodies(random('bodies'), options.bodyType, noise)
  const files = options.tenantIds.map((tenantId, n) =>
    writerOf(`files ${n}`, createFileOperations(random(`files ${n}`), bodies, tenantId)),
  )
  const writers = [...events, ...files]
  const partitions: Counts = {}
  const readRandom = random('cell reader')
  const commandRandom = random('cell commands')

  return {
    partitions,
    run: (context, onRead, signal) => [
      ...writers.map(writer => writer.run(signal)),
      loadColumns(context.worker).then(columns =>
        runCellReader(
          { ...context, columns },
          readRandom,
          () => (chance(readRandom, 0.7) ? recent : pick(readRandom, writers).rows),
          signal,
          onRead,
        ),
      ),
      runPartitions({ admin, random: random('partitions'), counts: partitions }, signal),
    ],
    choose: async () => {
      const id = pick(commandRandom, pick(commandRandom, writers).rows)
      const { rows } = await admin.query<{ relation: string; columns: number; rowKey: string }>(
        `select 'public.events' as relation, 3 as columns, row_key as "rowKey" from torture.event_rows where row_id = $1
         union all
         select 'public.files', 1, name from torture.file_rows where row_id = $1`,
        [id],
      )
      const [row] = rows
      const parts = row === undefined ? null : rowKeyParts(row.rowKey, row.columns)
      if (row === undefined || parts === null) return null
      return { rowKey: row.rowKey, args: ['--table', row.relation, '--row', ...parts] }
    },
  }
}

/** Every other seed has another type. */
export const bodyTypeOf = (seed: number): BodyType => (seed % 2 === 0 ? 'text' : 'bytea')

/** A tenant of the events, to be restored as a whole. */
export const restoredTenant = eventTenants[0] ?? ''
