// Values of a column that leave as a whole (modes stub and whole), as the application wrote them: exact bytes.
import { type Artifact, lookupArtifacts } from '../catalogue/lookup.ts'
import type { Queryable } from '../db/pool.ts'
import { ArtifactError, type LighterError, RowError } from '../errors.ts'
import { type ArtifactId, asArtifactId, asTenantId, type TenantId } from '../ids.ts'
import { columnTypeOf } from '../source/column-types.ts'
import { fromSql, ident, tenantSql, versionSql } from '../source/expressions.ts'
import { pointerSql } from '../source/modes.ts'
import { isKeyedRowSql, partArrays, partList, partParameters, rowKeySql } from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'
import { fetchCurrent } from './fetch-current.ts'
import type { HydrateContext } from './hydrate.ts'
import { startWork, widestLimits } from './hydrate-limits.ts'
import { mayBeStub, stubIdIn } from './stub.ts'

/** What a row holds. */
export interface StoredValue {
  tenantId: TenantId
  /** The column; of bytea the bytes, of any other type its text in UTF-8. Null: SQL null. */
  value: Buffer | null
  /** What may be a pointer: the id in the pointer column of a row without a value, or in a text that is a stub. */
  pointer: ArtifactId | null
}

export interface StoredValueRow extends StoredValue {
  rowId: string
  /** See `versionSql`. */
  version: string
}

/** `bytes`: null of SQL null. `isOffloaded`: they came out of the store. */
export type ValueResult =
  | { bytes: Buffer | null; isOffloaded: boolean; error: null }
  | { bytes: null; isOffloaded: boolean; error: LighterError }

/**
 * Reads rows by primary key; those that do not exist, or have no tenant, are not in the answer.
 * @throws {RowError} `key_not_unique`: which row is meant cannot be told
 */
export async function readValues(
  db: Queryable,
  source: Source,
  rowIds: string[],
): Promise<Map<string, StoredValue>> {
  const rows = await readValueRows(db, source, rowIds)
  const found = new Map<string, StoredValue>()
  for (const { rowId, tenantId, value, pointer } of rows) {
    if (found.has(rowId)) throw keyNotUnique(source, rowId)
    if (tenantId !== null) found.set(rowId, { tenantId, value, pointer })
  }
  return found
}

function keyNotUnique(source: Source, rowId: string): RowError {
  return new RowError(
    'key_not_unique',
    `${source.tableSql} has several rows ${rowId}, or that row several tenants`,
    {
      hint: `Give ${source.tableSql} a valid unique index on ${source.key.map(({ name }) => name).join(', ')} again.`,
    },
  )
}

/** As `readValues`, with what a rewrite needs. */
export async function readValueRows(
  db: Queryable,
  source: Source,
  rowIds: string[],
): Promise<(Omit<StoredValueRow, 'tenantId'> & { tenantId: TenantId | null })[]> {
  const unique = [...new Set(rowIds)]
  const { textSql, bytesOf } = columnTypeOf(source)
  const { rows } = await db.query<{
    rowId: string
    version: string
    tenantId: string | null
    text: string | null
    pointer: string | null
  }>({
    text: `select r.*
             from unnest($1::text[]${partParameters(source, 2)}) w(row_id${partList(source)})
            cross join lateral (
              select ${rowKeySql(source)} as "rowId", ${versionSql('m')} as version, ${tenantSql(source)} as "tenantId",
                     ${textSql(`m.${ident(source.jsonColumn)}`)} as text, ${pointerSql(source)} as pointer
                from ${fromSql(source)}
               where ${isKeyedRowSql(source, 'w')}
              offset 0) r`,
    values: [unique, ...partArrays(source, unique)],
  })
  return rows.map(({ rowId, version, tenantId, text, pointer }) => {
    const value = text === null ? null : bytesOf(text)
    return {
      rowId,
      version,
      tenantId: tenantId === null ? null : asTenantId(tenantId),
      value,
      // A value beside an id is newer.
      pointer:
        source.mode === 'stub'
          ? stubPointer(value)
          : pointer === null || value !== null
            ? null
            : asArtifactId(pointer),
    }
  })
}

function stubPointer(value: Buffer | null): ArtifactId | null {
  const id = value !== null && mayBeStub(value.length) ? stubIdIn(value.toString('utf8')) : null
  return id === null ? null : asArtifactId(id)
}

/**
 * The values that the application wrote: one look-up per tenant, one read per frame.
 *
 * An id counts only if it names an artifact of the row's tenant that came off this column. A text that looks like a stub
 * and names another is the application's own; an id in the pointer column that does so is an error.
 * @returns results in the order of the rows; one that can't be read has its error, never wrong data
 */
export async function hydrateValues(
  context: HydrateContext,
  source: Source,
  rows: StoredValue[],
): Promise<ValueResult[]> {
  const work = startWork(context.limits ?? widestLimits, context.pause, context.signal)
  const sourceIds = new Set([source.id, ...source.formerIds])
  const found = new Map<StoredValue, Artifact>()
  const pointing = rows.flatMap(row => (row.pointer === null ? [] : [{ row, id: row.pointer }]))
  for (const [tenantId, ofTenant] of Map.groupBy(pointing, ({ row }) => row.tenantId)) {
    const artifacts = await lookupArtifacts(context.db, tenantId, [...new Set(ofTenant.map(({ id }) => id))])
    for (const { row, id } of ofTenant) {
      const artifact = artifacts.get(id)
      if (artifact?.sourceId != null && sourceIds.has(artifact.sourceId)) found.set(row, artifact)
    }
  }
  const payloads = await fetchCurrent(context.db, context.store, [...new Set(found.values())], {
    concurrency: context.concurrency ?? 16,
    maxPayloadBytes: work.limits.payloadBytes,
    budget: work.budget,
  })
  return rows.map(row => {
    const artifact = found.get(row)
    if (artifact === undefined) {
      const isLost = row.pointer !== null && source.mode === 'whole'
      return isLost
        ? {
            bytes: null,
            isOffloaded: true,
            error: new ArtifactError(
              'artifact_not_found',
              // Said of another tenant's artifact and of none at all alike.
              `the row points to artifact ${row.pointer}, which its tenant does not have of this column`,
            ),
          }
        : { bytes: row.value, isOffloaded: false, error: null }
    }
    const payload = payloads.get(artifact)
    if (Buffer.isBuffer(payload)) return { bytes: payload, isOffloaded: true, error: null }
    return {
      bytes: null,
      isOffloaded: true,
      error: payload ?? new ArtifactError('hydrate_failed', `artifact ${artifact.id} was not read`),
    }
  })
}

/** One row. @throws {LighterError} it points to nothing of its tenant's, or to damaged bytes */
export async function hydrateValue(
  context: HydrateContext,
  source: Source,
  row: StoredValue,
): Promise<Buffer | null> {
  const [result] = await hydrateValues(context, source, [row])
  if (result === undefined) throw new Error('hydrateValues lost its input')
  if (result.error !== null) throw result.error
  return result.bytes
}
