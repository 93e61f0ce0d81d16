// Step 2: let Postgres decide, for each claimed row, what is to be offloaded, and hand out the bytes.

import { randomUUID } from 'node:crypto'
import { seesAllRowsOfSql } from '../db/all-rows.ts'
import { arrayText } from '../db/array-text.ts'
import type { Queryable } from '../db/pool.ts'
import { type ArtifactId, asTenantId, newArtifactId, type TenantId } from '../ids.ts'
import { columnTypeOf } from '../source/column-types.ts'
import {
  documentSql,
  entitySql,
  fieldSql,
  followedIdsSql,
  fromSql,
  hasOwnFieldSql,
  ident,
  isFieldBlockedSql,
  lostPointerSql,
  mayLeaveSql,
  ownFieldSql,
  pointerIdsSql,
  pointerStateSql,
  restSql,
  targetSql,
  tenantSql,
  versionSql,
} from '../source/expressions.ts'
import { isPinnedSql } from '../source/pins.ts'
import { isKeyedRowSql, partArrays, partList, partParameters } from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'
import type { Job } from './lease.ts'
import {
  bytesWithoutNumbersSql,
  hasLongNumbersSql,
  longNumbersTextBytes,
  textBytesBoundSql,
} from './long-numbers.ts'
import { notePointers } from './payload-pointers.ts'
import { planValuesSql, pointersInValue } from './plan-value.ts'

/** One value taken off a row. `bytes` is null when it is too long to be held: then it is streamed. */
export interface FieldPayload {
  /** Of one that goes into a frame a made-up one, until it is packed. */
  artifactId: ArtifactId
  phase: 1 | 2
  kind: string
  /** The field it was, null for the whole remaining metadata. */
  field: string | null
  /** Length of its text; of one that is streamed it may be that of its binary form. */
  sizeBytes: number
  bytes: Buffer | null
  /** Artifacts that the payload itself points to: they must live as long as it does. */
  refersTo: string[]
}

export interface PlannedRow {
  job: Job
  source: Source
  /**
   * offload: has payloads · nothing: no longer heavy, pinned, or not to leave by when_sql · gone: the row does not exist ·
   * no-tenant: its tenant can't be found · lost-pointer: it points to what its tenant does not have ·
   * too-large: it, or the row with all its payloads, could not be read back ·
   * ambiguous: several rows have its key, or its tenant's · deferred: does not fit into this batch's bytes
   */
  outcome:
    | 'offload'
    | 'nothing'
    | 'gone'
    | 'no-tenant'
    | 'lost-pointer'
    | 'too-large'
    | 'ambiguous'
    | 'deferred'
  /** Which version was read, see `versionSql`; null when there is none. */
  version: string | null
  tenantId: TenantId | null
  entityId: string | null
  payloads: FieldPayload[]
  /**
   * Text of the value that the row is to hold, with the tokens in the place of its artifacts until they are known. Null of
   * a row that is streamed: it is made when its artifacts are.
   */
  target: string | null
  /** See `pointerStateSql`. */
  pointers: { ids: string; state: string } | null
  /** Length of the longest payload's text, also of one that is too large. */
  largestBytes: number
  /** What reading the row needs beside these payloads: those that it points to already, and what stays in it. */
  heldBytes: number
  /** Its numbers are written out far longer than they are stored: it is worked on alone, with little time. */
  longNumbers: boolean
}

/**
 * What stands in the texts of a batch where the artifacts' ids will: an id is known only once its payload is packed. Random,
 * so that no application can have it in a document.
 */
export interface Tokens {
  /** Of the field's artifact, in the document and in what the row is to hold. */
  field: string
  /** Of the document's, in what the row is to hold. */
  document: string
}

/** What of the row is held in memory: its payloads, and what it is to hold. */
export const textBytes = ({ payloads, target }: PlannedRow): number =>
  payloads.reduce((sum, p) => sum + (p.bytes?.length ?? 0), target?.length ?? 0)

export const newTokens = (): Tokens => ({ field: randomUUID(), document: randomUUID() })

interface PlanRow {
  ord: number
  version: string
  tenantId: string | null
  entityId: string | null
  fieldBytes: number | null
  fieldText: string | null
  restBytes: number | null
  restText: string | null
  target: string | null
  pointerIds: string | null
  pointerState: string | null
  heldBytes: number
  lostPointer: boolean
  longNumbers: boolean
  deferred: boolean
}

/**
 * Plans the claimed rows of one source in one statement.
 *
 * The statement also makes the value that the row is to hold, so that the commit opens no document again. The tokens
 * stand for artifacts: see pack-batch.ts. Text comes out as Postgres's own `jsonb::text` and is never parsed. Of a row with a payload over
 * `streamThresholdBytes` only sizes come out. Rows are taken until what they store, and then their text,
 * reaches `budgetBytes`; what follows is deferred without its text being rendered, or sent.
 *
 * A huge value is not rendered for its length either, since its binary form tells that it is to be streamed;
 * whether it is over `maxPayloadBytes` the stream finds out, unless the binary form already is.
 */
export async function planRows(
  db: Queryable,
  source: Source,
  jobs: Job[],
  limits: { budgetBytes: number; streamThresholdBytes: number; maxPayloadBytes: number },
  tokens: Tokens,
): Promise<PlannedRow[]> {
  const { streamThresholdBytes, budgetBytes, maxPayloadBytes } = limits
  const rowIds = jobs.map(job => job.rowId)
  const keys = arrayText(rowIds)
  const parts = partArrays(source, rowIds)
  const { rows } = await db.query<PlanRow>(
    source.mode === 'document'
      ? {
          text: planSql(source),
          prepare: true,
          values: [
            keys,
            tokens.field,
            streamThresholdBytes,
            budgetBytes,
            maxPayloadBytes,
            tokens.document,
            ...parts,
          ],
        }
      : {
          text: planValuesSql(source),
          prepare: true,
          values: [keys, streamThresholdBytes, budgetBytes, maxPayloadBytes, tokens.document, ...parts],
        },
  )
  const byOrd = Map.groupBy(rows, row => Number(row.ord))
  const planned = jobs.map((job, i) => {
    const [row, ...others] = byOrd.get(i + 1) ?? []
    if (row === undefined) return unreadRow(job, source, 'gone')
    if (others.length > 0) return unreadRow(job, source, 'ambiguous')
    return toPlannedRow(job, source, row, limits.maxPayloadBytes)
  })
  if (source.mode === 'document') await notePointers(db, source, planned, tokens)
  return planned
}

function unreadRow(job: Job, source: Source, outcome: 'gone' | 'ambiguous'): PlannedRow {
  return {
    job,
    source,
    outcome,
    version: null,
    tenantId: null,
    entityId: null,
    payloads: [],
    target: null,
    pointers: null,
    largestBytes: 0,
    heldBytes: 0,
    longNumbers: false,
  }
}

function toPlannedRow(job: Job, source: Source, row: PlanRow, maxPayloadBytes: number): PlannedRow {
  const payloads: FieldPayload[] = []
  if (row.fieldBytes !== null) {
    payloads.push({
      artifactId: newArtifactId(),
      phase: 1,
      kind: source.phase1Kind,
      field: source.phase1Field,
      sizeBytes: row.fieldBytes,
      bytes: row.fieldText === null ? null : Buffer.from(row.fieldText),
      refersTo: [],
    })
  }
  if (row.restBytes !== null) {
    const bytes = row.restText === null ? null : columnTypeOf(source).bytesOf(row.restText)
    payloads.push({
      artifactId: newArtifactId(),
      phase: 2,
      kind: source.phase2Kind,
      field: null,
      sizeBytes: row.restBytes,
      bytes,
      refersTo: source.mode === 'document' ? [] : pointersInValue(source, bytes),
    })
  }
  const largestBytes = Math.max(0, ...payloads.map(p => p.sizeBytes))
  const rowBytes = payloads.reduce((sum, p) => sum + p.sizeBytes, row.heldBytes)
  const outcome = row.deferred
    ? 'deferred'
    : payloads.length === 0
      ? 'nothing'
      : row.tenantId === null
        ? 'no-tenant'
        : row.lostPointer
          ? 'lost-pointer'
          : (row.longNumbers ? largestBytes > Math.min(maxPayloadBytes, longNumbersTextBytes) : false) ||
              rowBytes > maxPayloadBytes
            ? 'too-large'
            : 'offload'
  return {
    job,
    source,
    outcome,
    version: row.version,
    tenantId: row.tenantId === null ? null : asTenantId(row.tenantId),
    entityId: row.entityId,
    payloads: outcome === 'offload' || outcome === 'too-large' ? payloads : [],
    target: row.target,
    pointers: row.pointerIds === null ? null : { ids: row.pointerIds, state: row.pointerState ?? '' },
    largestBytes,
    heldBytes: row.heldBytes,
    longNumbers: row.longNumbers,
  }
}

function planSql(source: Source): string {
  const column = `m.${ident(source.jsonColumn)}`
  // Nothing takes more binary bytes for a byte of text than short numbers: 4 of the entry, 11 of the value, for
  // the three of `1, `. So a value with eight times the threshold in binary form is over it in text.
  const hugeBytes = `greatest($3::int8, ${8 * source.thresholdBytes + 1024})`
  const isHuge = (value: string) =>
    `coalesce(pg_column_size(${value}) > ${hugeBytes} and pg_column_size(${value}) <= $5, false)`
  // Of what is longer nothing is rendered here: it is streamed.
  const withLongNumbers = (value: string, then: string) =>
    `case when pg_column_size(${value}) <= ${hugeBytes} and ${hasLongNumbersSql(value)} then ${then} else false end`
  const isLong = (value: string) => withLongNumbers(value, `${textBytesBoundSql(value)} > ${hugeBytes}`)
  // Of what is weighed and not rendered: its length, if it goes.
  const unrendered = (value: string, goes = 'true') =>
    `case when ${isHuge(value)} then pg_column_size(${value})
          when r.numbers[1] and ${goes} then ${textBytesBoundSql(value)} end`
  const restGoes = `(t.blocked or octet_length(t.rest_text) > ${source.thresholdBytes} and t.numbers[2] is not true)`
  // `offset 0` keeps the planner from merging the steps, which would evaluate long expressions many times.
  // Documents and texts pass through in the order they come: a sort or a hash of them would go to disk.
  return `
    with claimed as (
      select c.*
        from unnest($1::text[]${partParameters(source, 7)}) with ordinality as c(row_id${partList(source)}, ord)
       where ${seesAllRowsOfSql(source.id)}
    ),
    -- Sizes as stored come first: they cost nothing, and keep text from being rendered that can't be sent.
    -- By look-ups of keys, whatever Postgres believes of a table that has no statistics yet.
    found as (
      select c.ord, c.row_id, r.*,
             coalesce(sum(pg_column_size(r.stored))
                        over (order by c.ord rows between unbounded preceding and 1 preceding), 0) as stored_before
        from claimed c
       cross join lateral (
         select ${versionSql('m')} as version, ${tenantSql(source)} as tenant_id,
                ${entitySql(source)} as entity_id, ${column} as stored, ${mayLeaveSql(source)} as may_leave
           from ${fromSql(source)}
          where ${isKeyedRowSql(source, 'c')}
         offset 0) r
    ),
    opened as (
      select f.ord, f.version, f.tenant_id, f.entity_id,
             case when f.may_leave and not ${isPinnedSql(source, 'f.row_id', 'f.tenant_id')} then ${documentSql('f.stored')} end as doc
        from found f
       where f.stored_before < $4
      offset 0
    ),
    fields as (
      select o.*, ${ownFieldSql(source, 'o.doc')} as own_field from opened o offset 0
    ),
    phase1 as (
      select o.*, ${fieldSql(source, 'o.doc', 'o.tenant_id', 'o.own_field')} as field,
             ${followedIdsSql(source, 'o.doc')} as followed, ${pointerIdsSql(source, 'o.doc')} as pointers,
             jsonb_typeof(o.doc) = 'array' as is_array, ${hasOwnFieldSql(source, 'o.doc')} as has_own_field
        from fields o
      offset 0
    ),
    rests as (
      select p.*, ${restSql(source, 'p.doc', 'p.field', '$2::uuid')} as rest
        from phase1 p
      offset 0
    ),
    looked as (
      select r.*, coalesce(${isFieldBlockedSql(source, 'r.rest', 'r.field')}, false) as blocked,
             -- Whether numbers are written out so long that nothing is rendered; whether it is only they that make the rest long.
             case when pg_column_size(r.doc) > 2 * ${hugeBytes} or ${hasLongNumbersSql('r.doc')}
                  then array[${isLong('r.field')} or ${isLong('r.rest')},
                             ${withLongNumbers('r.rest', `${bytesWithoutNumbersSql('r.rest')} <= ${source.thresholdBytes}`)}] end as numbers
        from rests r
      offset 0
    ),
    texts as (
      select r.*,
             ${unrendered('r.field')} as field_unrendered,
             ${unrendered('r.rest', `(r.blocked or ${bytesWithoutNumbersSql('r.rest')} > ${source.thresholdBytes})`)} as rest_unrendered,
             case when r.numbers[1] is not true and not ${isHuge('r.field')} then r.field::text end as field_text,
             case when r.numbers[1] is not true and not ${isHuge('r.rest')} then r.rest::text end as rest_text,
             ${lostPointerSql(source, 'r.rest', 'r.field', 'r.tenant_id', 'case when r.is_array then r.followed end')} as lost_pointer
        from looked r
      offset 0
    ),
    sized as (
      select t.ord, t.version, t.tenant_id, t.entity_id, t.doc, t.field, t.rest, t.pointers, t.field_text, t.rest_text, t.lost_pointer,
             coalesce(t.numbers[1], false) as long_numbers,
             case when cardinality(t.followed) > 0 then lighter.payload_bytes(t.tenant_id, t.followed, not t.has_own_field) else 0 end
               + case when octet_length(t.rest_text) <= ${source.thresholdBytes} then octet_length(t.rest_text) else 0 end as held_bytes,
             coalesce(t.field_unrendered, octet_length(t.field_text)) as field_bytes,
             coalesce(${restGoes}, false) as rest_goes,
             case when ${restGoes} then octet_length(t.rest_text) else t.rest_unrendered end as rest_bytes,
             coalesce(t.field_unrendered, t.rest_unrendered) is not null as huge
        from texts t
      offset 0
    ),
    weighed as (
      select s.*, s.huge or greatest(coalesce(s.field_bytes, 0), coalesce(s.rest_bytes, 0)) > $3 as streamed
        from sized s
      offset 0
    ),
    -- what would be sent, with what is to stay in the row: nothing of a row that is to be streamed
    cut as (
      select w.ord, w.version, w.tenant_id, w.entity_id, w.field_bytes, w.rest_bytes, w.held_bytes, w.lost_pointer,
             w.long_numbers, w.pointers,
             case when not w.streamed and w.tenant_id is not null then w.field_text end as field_text,
             case when not w.streamed and w.tenant_id is not null and w.rest_goes then w.rest_text end as rest_text,
             case when not w.streamed and not w.long_numbers and w.tenant_id is not null and (w.rest_goes or w.field is not null)
                  then case when w.rest_goes then (${targetSql(source, {
                    doc: 'w.doc',
                    rest: 'w.rest',
                    tenant: 'w.tenant_id',
                    field: 'w.field',
                    restGoes: 'w.rest_goes',
                    restArtifactId: '$6::uuid',
                  })})::text else w.rest_text end end as target,
             case when w.streamed then 0 else coalesce(w.field_bytes, 0) + coalesce(w.rest_bytes, 0) end as payload_bytes
        from weighed w
      offset 0
    ),
    decided as (
      select s.*, s.total > $4 and s.total > s.weight as over_budget
        from (select c.*, sum(c.weight) over (rows unbounded preceding) as total
                from (select x.*, x.payload_bytes + coalesce(octet_length(x.target), 0) as weight from cut x) c) s
    )
    select d.ord::int as ord, d.version, d.tenant_id as "tenantId", d.entity_id as "entityId",
           d.field_bytes::float8 as "fieldBytes", d.rest_bytes::float8 as "restBytes", d.over_budget as deferred,
           case when not d.over_budget then d.field_text end as "fieldText",
           case when not d.over_budget then d.rest_text end as "restText",
           case when not d.over_budget then d.target end as target,
           array_to_string(nullif(d.pointers, '{}'), ',') as "pointerIds", ${pointerStateSql('d.pointers', 'd.tenant_id')} as "pointerState",
           d.held_bytes::float8 as "heldBytes", coalesce(d.lost_pointer, false) as "lostPointer",
           coalesce(d.long_numbers, false) as "longNumbers"
      from decided d
    union all
    select f.ord::int, f.version, f.tenant_id, f.entity_id, null, null, true, null, null, null, null, null, 0, false, false
      from found f
     where f.stored_before >= $4`
}
