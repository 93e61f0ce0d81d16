// Readers of events and files: values are read as any program would read them, and compared with the model.
import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { hydrateMany } from '../src/artifacts/hydrate.ts'
import { hydrateValues } from '../src/artifacts/values.ts'
import { pick, type Random } from '../src/demo/random.ts'
import { ArtifactError, isDatabaseOutage, isTransactionConflict, type LighterError } from '../src/errors.ts'
import { asTenantId, type TenantId } from '../src/ids.ts'
import { type Cell, type Columns, readCells } from './cells.ts'
import { passOutage, type ReadContext, untilRead } from './readers.ts'
import { longestReadMs } from './settings.ts'

export interface CellContext extends ReadContext {
  columns: Columns
}

type CellResult = { bytes: Buffer | null; error: null } | { bytes: null; error: LighterError }

/** As `checkRows`, of events and files. */
export const checkCells = (context: CellContext, rowIds: string[], patient: boolean): Promise<number> =>
  untilRead(context.findings, rowIds, patient, waiting => checkOnce(context, waiting))

async function checkOnce(context: CellContext, rowIds: string[]): Promise<string[]> {
  const { findings } = context
  const began = performance.now()
  const cells = await readCells(context.admin, context.columns, rowIds)
  for (const cell of cells)
    if (cell.stored === null) findings.add('lost', cell.rowId, 'no row is found under its key')
  for (const { stored, ...cell } of cells) {
    const found =
      stored === null ? null : 'document' in stored ? stored.document.tenantId : stored.value.tenantId
    if (found !== null && found !== cell.tenantId)
      findings.add(
        'cross_tenant',
        cell.rowId,
        `a row of tenant ${cell.tenantId} is taken for one of ${found}`,
      )
  }
  const present = cells.filter(cell => cell.stored !== null)
  const results = await hydrateCells(context, present)
  const inTime = performance.now() - began < longestReadMs
  const again = new Set<string>()
  for (const [i, cell] of present.entries()) {
    const result = results[i]
    if (result === undefined) throw new Error('a cell was lost')
    const { error } = result
    if (error === null) await compare(context, cell, result.bytes)
    else if (error.retryable || isDatabaseOutage(error.cause)) again.add(cell.rowId)
    else if (cell.astray && error.code === 'artifact_not_found') continue
    else if (error instanceof ArtifactError && !inTime) again.add(cell.rowId)
    else
      findings.add(
        error.code === 'artifact_foreign_key' ? 'cross_tenant' : 'lost',
        cell.rowId,
        `version ${cell.version}, ${cell.stored?.source.jsonColumn}: ${error.code} ${error.message}`,
      )
  }
  return [...again]
}

/** @param as another tenant than the row's */
async function hydrateCells(context: CellContext, cells: Cell[], as?: TenantId): Promise<CellResult[]> {
  const hydrating = { db: context.worker, store: context.store }
  const results = new Map<Cell, CellResult>()
  for (const [source, group] of Map.groupBy(cells, cell => cell.stored?.source)) {
    if (source === undefined) continue
    const inputs = group.flatMap(({ stored }) =>
      stored !== null && 'document' in stored ? [stored.document] : [],
    )
    const documents = await hydrateMany(
      hydrating,
      inputs.map(input => ({ ...input, tenantId: as ?? input.tenantId })),
    )
    const rows = group.flatMap(({ stored }) => (stored !== null && 'value' in stored ? [stored.value] : []))
    const values = await hydrateValues(
      hydrating,
      source,
      rows.map(row => ({ ...row, tenantId: as ?? row.tenantId })),
    )
    const found: CellResult[] = [
      ...documents.map(
        (each): CellResult =>
          each.error === null
            ? { bytes: each.metadata === null ? null : Buffer.from(each.metadata), error: null }
            : { bytes: null, error: each.error },
      ),
      ...values,
    ]
    for (const [i, cell] of group.entries()) {
      const result = found[i]
      if (result !== undefined) results.set(cell, result)
    }
  }
  return cells.flatMap(cell => results.get(cell) ?? [])
}

const hashOf = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex')

async function compare({ admin, findings }: CellContext, cell: Cell, bytes: Buffer | null): Promise<void> {
  if (!cell.astray) {
    if ((bytes === null ? null : hashOf(bytes)) === cell.expectedHash) return
    if (!cell.exact && bytes !== null) {
      const { rows } = await admin.query<{ hash: string }>(
        `select encode(sha256(convert_to($1::jsonb::text, 'UTF8')), 'hex') as hash`,
        [bytes.toString()],
      )
      if (rows[0]?.hash === cell.expectedHash) return
    }
  }
  const read = bytes === null ? 'null' : `${bytes.length} bytes: ${bytes.toString().slice(0, 400)}`
  findings.add(
    cell.astray ? 'cross_tenant' : 'mismatched',
    cell.rowId,
    `version ${cell.version}, ${cell.stored?.source.jsonColumn} reads ${read}`,
  )
}

/** As `runReader`. */
export async function runCellReader(
  context: CellContext,
  random: Random,
  rows: () => string[],
  signal: AbortSignal,
  onRead: (rows: number) => void,
): Promise<void> {
  while (!signal.aborted) {
    const known = rows()
    if (known.length > 0) {
      const ids = Array.from({ length: 1 + Math.floor(random() ** 3 * 8) }, () => pick(random, known))
      if (random() < 0.05) await readAsAnother(context, ids).catch(passTrouble)
      else onRead(await checkCells(context, ids, false).catch(passTrouble))
    }
    await sleep(random() * 100)
  }
}

const passTrouble = (error: unknown) => (isTransactionConflict(error) ? 0 : passOutage(error))

async function readAsAnother(context: CellContext, ids: string[]): Promise<void> {
  const cells = (await readCells(context.admin, context.columns, ids)).filter(
    ({ stored }) => stored !== null && 'value' in stored && stored.value.pointer !== null,
  )
  const stranger = asTenantId('00000000-0000-4000-8000-000000000000')
  const results = await hydrateCells(context, cells, stranger)
  for (const [i, cell] of cells.entries()) {
    const bytes = results[i]?.bytes ?? null
    // A stub that names nothing of its tenant's is the tenant's own text.
    const isOwnText = cell.stored?.source.mode === 'stub' && bytes?.length === 56
    if (bytes !== null && !isOwnText)
      context.findings.add('cross_tenant', cell.rowId, 'another tenant could read it')
  }
}
