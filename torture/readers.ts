// Readers: rows and what they must be in one snapshot, then hydrated as any program would, and compared.
import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { hydrateMany } from '../src/artifacts/hydrate.ts'
import { pick, type Random } from '../src/demo/random.ts'
import { ArtifactError, isDatabaseOutage } from '../src/errors.ts'
import { asTenantId } from '../src/ids.ts'
import type { ObjectStore } from '../src/store/object-store.ts'
import type { Findings } from './findings.ts'
import { longestReadMs } from './settings.ts'

export interface ReadContext {
  admin: pg.Pool
  worker: pg.Pool
  store: ObjectStore
  findings: Findings
}

interface SnapshotRow {
  rowId: string
  version: number
  exact: boolean
  /** Of the text that it must hydrate to; null for SQL's null. */
  expectedHash: string | null
  tenantId: string
  /** Of a row that is moved between two tenants: it is readable as one of them at least. */
  otherTenantId: string | null
  present: boolean
  metadata: string | null
  /** It can't be read without its pointer. */
  enveloped: boolean
}

const hashOf = (text: string) => createHash('sha256').update(text).digest('hex')

/**
 * Reads the rows and compares. Whatever is written meanwhile, the row's version and what it must hydrate to are of one
 * snapshot. A store or database in trouble is no finding, what they then answer must still be right.
 * @param patient whether a row is asked for until it could be read, or left for another time
 * @returns how many were compared
 */
export const checkRows = (context: ReadContext, rowIds: string[], patient: boolean): Promise<number> =>
  untilRead(context.findings, rowIds, patient, waiting => checkOnce(context, waiting))

/** @param once looks at rows, and returns those of which nothing could be said */
export async function untilRead(
  findings: Findings,
  rowIds: string[],
  patient: boolean,
  once: (rowIds: string[]) => Promise<string[]>,
): Promise<number> {
  let waiting = rowIds
  let compared = 0
  for (let attempt = 0; waiting.length > 0; attempt++) {
    if (attempt > 0) {
      if (!patient && attempt === 5) break
      await sleep(100)
    }
    try {
      const again = await once(waiting)
      compared += waiting.length - again.length
      waiting = again
    } catch (error) {
      if (!isDatabaseOutage(error)) throw error
    }
    if (patient && attempt === 100) {
      for (const id of waiting) findings.add('lost', id, 'it could not be read, however often it was tried')
      break
    }
  }
  return compared
}

/** @returns rows of which nothing could be said */
async function checkOnce(context: ReadContext, rowIds: string[]): Promise<string[]> {
  const { findings } = context
  const began = performance.now()
  const rows = await readSnapshot(context.admin, rowIds)
  for (const row of rows) if (!row.present) findings.add('lost', row.rowId, 'the row is gone')
  const present = rows.filter(row => row.present)
  const hydrate = (asOf: (row: SnapshotRow) => string | null) =>
    hydrateMany(
      { db: context.worker, store: context.store },
      present.map(row => ({
        tenantId: asTenantId(asOf(row) ?? row.tenantId),
        metadata: row.metadata,
        field: 'tool_interactions',
      })),
    )
  const results = await hydrate(row => row.tenantId)
  const otherResults = present.some(row => row.otherTenantId !== null)
    ? await hydrate(row => row.otherTenantId)
    : results
  const inTime = performance.now() - began < longestReadMs
  const again: string[] = []
  for (const [i, row] of present.entries()) {
    const [result, other] = [results[i], otherResults[i]]
    if (result === undefined || other === undefined) throw new Error('hydrateMany lost a row')
    // Of a moved row what counts is the better answer of the two; both must be right.
    const best = result.error === null || row.otherTenantId === null ? result : other
    if (result.error === null) await compare(context, row, result.metadata)
    if (row.otherTenantId !== null && other.error === null) await compare(context, row, other.metadata)
    if (best.error === null) continue
    const errors = row.otherTenantId === null ? [best.error] : [result.error, best.error]
    if (errors.some(error => error?.retryable)) again.push(row.rowId)
    // hydrateMany wraps what its queries throw.
    else if (errors.some(error => isDatabaseOutage(error?.cause))) again.push(row.rowId)
    else if (best.error instanceof ArtifactError && !inTime) again.push(row.rowId)
    else {
      const foreign = best.error.code === 'artifact_foreign_key' && row.otherTenantId === null
      findings.add(
        foreign ? 'cross_tenant' : 'lost',
        row.rowId,
        `version ${row.version}: ${errors.map(error => `${error?.code} ${error?.message}`).join('; ')}`,
      )
    }
  }
  return again
}

async function readSnapshot(admin: pg.Pool, rowIds: string[]): Promise<SnapshotRow[]> {
  const { rows } = await admin.query<SnapshotRow>(
    `select e.row_id as "rowId", e.version, e.exact, e.tenant_id as "tenantId", e.other_tenant_id as "otherTenantId",
            encode(sha256(convert_to(e.metadata::text, 'UTF8')), 'hex') as "expectedHash",
            m.id is not null as present, m.metadata::text as metadata,
            coalesce(jsonb_typeof(m.metadata) = 'object' and m.metadata ? 'artifact_metadata_ref'
                     or cardinality(lighter.array_pointers(m.metadata)) > 0, false) as enveloped
       from torture.expected e
       left join public.conversation_messages m on m.id = e.row_id
      where e.row_id = any ($1::uuid[])`,
    [rowIds],
  )
  return rows
}

async function compare(
  { admin, findings }: ReadContext,
  row: SnapshotRow,
  text: string | null,
): Promise<void> {
  const hash = text === null ? null : hashOf(text)
  if (hash === row.expectedHash) return
  const moved = row.otherTenantId !== null
  if ((!row.exact || moved) && text !== null) {
    // To a tenant that can't follow it, a pointer beside an inline field is the application's own data.
    const value = moved ? 'torture.without_pointers($1)' : '$1::jsonb'
    const { rows } = await admin.query<{ hash: string }>(
      `select encode(sha256(convert_to((${value})::text, 'UTF8')), 'hex') as hash`,
      [text],
    )
    if (rows[0]?.hash === row.expectedHash) return
  }
  findings.add(
    'mismatched',
    row.rowId,
    `version ${row.version} hydrates to ${(text ?? 'null').slice(0, 400)}`,
  )
}

/** Reads at random until it is told to stop. Now and then as another tenant, which must be told of nothing. */
export async function runReader(
  context: ReadContext,
  random: Random,
  rows: () => string[],
  signal: AbortSignal,
  onRead: (rows: number) => void,
): Promise<void> {
  while (!signal.aborted) {
    const known = rows()
    if (known.length > 0) {
      const ids = Array.from({ length: 1 + Math.floor(random() ** 3 * 8) }, () => pick(random, known))
      if (random() < 0.05) await readAsAnother(context, ids).catch(passOutage)
      else onRead(await checkRows(context, ids, false).catch(passOutage))
    }
    await sleep(random() * 60)
  }
}

export function passOutage(error: unknown): number {
  if (!isDatabaseOutage(error)) throw error
  return 0
}

async function readAsAnother(context: ReadContext, ids: string[]): Promise<void> {
  const rows = (await readSnapshot(context.admin, ids)).filter(row => row.enveloped)
  const stranger = asTenantId('00000000-0000-4000-8000-000000000000')
  const results = await hydrateMany(
    { db: context.worker, store: context.store },
    rows.map(row => ({ tenantId: stranger, metadata: row.metadata, field: 'tool_interactions' })),
  )
  for (const [i, row] of rows.entries()) {
    if (results[i]?.error === null)
      context.findings.add('cross_tenant', row.rowId, 'another tenant could hydrate it')
  }
}
