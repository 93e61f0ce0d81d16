// Large payloads: each is streamed into an object of its own, from the row to the store, and never held whole.
import { pointerMarks } from '../artifacts/pointers-in-payload.ts'
import type { Queryable } from '../db/pool.ts'
import { isRowsLimit, isSourceFault, messageOf, RowError, StoreError } from '../errors.ts'
import { columnTypeOf, columnTypes } from '../source/column-types.ts'
import {
  documentSql,
  fieldSql,
  fromSql,
  ident,
  isVersionSql,
  literal,
  pointersInSql,
  pointerWords,
  restSql,
  targetSql,
  tenantSql,
} from '../source/expressions.ts'
import { pointerColumnsSql } from '../source/modes.ts'
import { isRowSql } from '../source/rows-by-key.ts'
import { type BatchResult, emptyResult, noteResult } from './batch-result.ts'
import { commitAll, nothingUploaded } from './commit-uploaded.ts'
import type { PipelineContext } from './context.ts'
import { rowChanged } from './copy-out.ts'
import { keepLease, LeaseLost } from './lease.ts'
import { longNumbersTimeoutMs } from './long-numbers.ts'
import { isTrouble } from './narrow-down.ts'
import type { Work } from './observer.ts'
import type { PlannedRow } from './plan.ts'
import { blameless, conflict, failure, faultRetryMs, finish, giveBack, notYet } from './return-jobs.ts'
import { backoffMs, type Returned } from './settle.ts'
import { takesWrites } from './store-trouble.ts'
import { streamPayload } from './stream.ts'

/**
 * Works off one row with a large payload: each of its payloads is streamed into an object of its own.
 * @param batch that it came out of
 */
export async function runLargeRow(
  context: PipelineContext,
  row: PlannedRow,
  batch: Work,
): Promise<BatchResult> {
  const result = emptyResult(1)
  const returned: Returned[] = []
  const objectsInFlight: { tenantId: string; key: string }[] = []
  // The lease must also last while the row waits for its turn.
  const stopHeartbeat = keepLease(context, row.job.lease, objectsInFlight)
  try {
    const tenantId = row.tenantId
    if (tenantId === null) throw new Error('a large row without a tenant can not be planned')
    const stream = async (work: Work) => {
      if (context.stopping.aborted) {
        returned.push(notYet(row.job))
        return
      }
      await context.signal('before-stream')
      let started = performance.now()
      const uploaded = nothingUploaded()
      let outcome: PlannedRow[] = [row]
      let rowBytes = row.heldBytes
      try {
        for (const payload of row.payloads) {
          const { location, objectBytes, refersTo } = await work.part('stream', async stream => {
            stream.note({ kind: payload.kind })
            stream.noteTenant(tenantId)
            const streamed = await streamPayload(
              context.pool,
              context.streamPool,
              context.store,
              {
                tenantId,
                kind: payload.kind,
                ...payloadSql(row, payload.phase),
              },
              {
                codec: context.config.codec,
                partBytes: context.config.partBytes,
                maxPayloadBytes: context.config.maxPayloadBytes,
                rowBytes,
                timeoutMs: row.longNumbers ? longNumbersTimeoutMs : 0,
                leaseMs: context.config.leaseMs,
                leaseId: row.job.lease.id,
                signal: context.signal,
                onRegister: object => objectsInFlight.push(object),
              },
            )
            stream.note({ payload_bytes: streamed.location.sizeBytes, object_bytes: streamed.objectBytes })
            return streamed
          })
          payload.refersTo = refersTo
          rowBytes += location.sizeBytes
          uploaded.locations.set(payload.artifactId, { ...location, artifactId: payload.artifactId })
          uploaded.objects.push({ tenantId, key: location.key, byteLength: objectBytes })
        }
        row.target = await readTarget(context.pool, row)
      } catch (error) {
        if (error instanceof LeaseLost) throw error
        if (error instanceof RowError && error.code === 'row_changed') {
          // Not as one with nothing to do: its version may be the one that was planned all the same.
          outcome = []
          result.changed++
          returned.push(conflict(row.job, row.source))
        } else if (isTrouble(error)) {
          throw error
        } else {
          outcome = []
          const final =
            isRowsLimit(error) || (error instanceof RowError && /^(payload|row)_too_large$/.test(error.code))
          if (error instanceof StoreError && !(await takesWrites(context.store))) {
            result.outage = error
            returned.push(blameless(row.job, error, backoffMs(1)))
          } else if (isSourceFault(error)) returned.push(blameless(row.job, error, faultRetryMs))
          else returned.push(failure(row.job, messageOf(error), final))
        }
      }
      result.uploadMs = performance.now() - started
      await context.signal('after-upload')
      started = performance.now()
      await context.signal('before-commit')
      await commitAll(context, work, outcome, uploaded, result, returned)
      result.commitMs = performance.now() - started
      await context.signal('after-commit')
      noteResult(work, result)
    }
    await context.turns.run(tenantId, () => batch.part('large row', stream))
    await finish(context, returned, result)
    return result
  } catch (error) {
    if (error instanceof LeaseLost) return { ...result, leaseLost: true }
    await giveBack(context, [row.job], error)
    throw error
  } finally {
    stopHeartbeat()
  }
}

/** What the row is to hold, with the artifacts' ids in it. @throws {RowError} `row_changed` */
async function readTarget(db: Queryable, row: PlannedRow): Promise<string> {
  const document = row.payloads.find(p => p.phase === 2)
  if (row.source.mode !== 'document') {
    if (document === undefined) throw new Error('a value has one payload')
    return document.artifactId
  }
  const target = targetSql(row.source, {
    doc: 'f.doc',
    rest: 'f.rest',
    tenant: 'f.tenant_id',
    field: 'f.field',
    restGoes: document === undefined ? 'false' : 'true',
    restArtifactId: document === undefined ? 'null::uuid' : `${literal(document.artifactId)}::uuid`,
  })
  const { rows } = await db.query<{ target: string | null }>({
    text: `select (${target})::text as target ${fromPartsSql(row)}`,
  })
  const text = rows[0]?.target
  if (text === undefined || text === null) throw rowChanged()
  return text
}

/** How one payload is read, and the pointers in it. */
function payloadSql(row: PlannedRow, phase: 1 | 2) {
  const { source } = row
  if (source.mode === 'document') {
    const { contentType, extension } = columnTypes.jsonb
    return {
      contentType,
      extension,
      selectSql: selectPayloadSql(row, phase, value => `${value}::text`),
      pointerNames: pointerWords(source),
      pointersSql: selectPayloadSql(
        row,
        phase,
        value => `array_to_string(${pointersInSql(source, value)}, ',') as ids`,
      ),
    }
  }
  const { contentType, extension, copySql, isText } = columnTypeOf(source)
  const value = `m.${ident(source.jsonColumn)}`
  return {
    contentType,
    extension,
    selectSql: `select ${copySql(value)} ${fromVersionSql(row)}`,
    pointerNames: isText ? pointerMarks(source.pointerColumns) : [],
    pointersSql: `select array_to_string(lighter.pointers_in_text(${value}::text, ${pointerColumnsSql(source)}), ',') as ids ${fromVersionSql(row)}`,
  }
}

/** `from` clause with the version that was planned; without it no row. */
function fromVersionSql({ source, job, version }: PlannedRow): string {
  return `
      from ${fromSql(source)}
     where ${isRowSql(source, `${literal(job.rowId)}::text`)}
       and ${isVersionSql('m', literal(version ?? ''))}`
}

/** Something of one payload of the version that was planned, as a statement without parameters (COPY takes none). */
function selectPayloadSql(row: PlannedRow, phase: 1 | 2, something: (value: string) => string): string {
  return `select ${something(phase === 1 ? 'f.field' : 'f.rest')} ${fromPartsSql(row)}`
}

/** `from` clause with the parts of the version that was planned: doc, tenant_id, field, rest; without it no row. */
function fromPartsSql(row: PlannedRow): string {
  const { source } = row
  const phase1 = row.payloads.find(p => p.phase === 1)
  const field = fieldSql(source, 'd.doc', 'd.tenant_id')
  const rest = restSql(
    source,
    'e.doc',
    'e.field',
    phase1 === undefined ? 'null::uuid' : `${literal(phase1.artifactId)}::uuid`,
  )
  return `
      from (select e.*, ${rest} as rest
              from (select d.*, ${field} as field
                      from (select ${documentSql(`m.${ident(source.jsonColumn)}`)} as doc, ${tenantSql(source)} as tenant_id
                              from ${fromSql(source)}
                             where ${isRowSql(source, `${literal(row.job.rowId)}::text`)}
                               and ${isVersionSql('m', literal(row.version ?? ''))}
                            offset 0) d
                    offset 0) e
            offset 0) f`
}
