// Step 2: let Postgres decide, for each claimed row, what is to be offloaded, and hand out the bytes.

import { arrayText } from '../db/array-text.ts'
import type { Queryable } from '../db/pool.ts'
import { preparedRows } from '../db/prepared.ts'
import { type ArtifactId, asTenantId, newArtifactId, type TenantId } from '../ids.ts'
import type { Job } from './claim.ts'
import { documentSql, fieldSql, fromSql, ident, restSql, tenantSql } from './source-sql.ts'
import type { Source } from './sources.ts'

/** One value taken off a row. `bytes` is null when it is too long to be held: then it is streamed. */
interface FieldPayload {
  artifactId: ArtifactId
  phase: 1 | 2
  kind: string
  /** The field it was, null for the whole remaining metadata. */
  field: string | null
  /** Length of its text; of one that is streamed it may be that of its binary form. */
  sizeBytes: number
  bytes: Buffer | null
}

export interface PlannedRow {
  job: Job
  source: Source
  /**
   * offload: has payloads · nothing: no longer heavy · gone: the row does not exist ·
   * no-tenant: its tenant can't be found · too-large: could not be read back · deferred: does not fit into
   * this batch's bytes
   */
  outcome: 'offload' | 'nothing' | 'gone' | 'no-tenant' | 'too-large' | 'deferred'
  /** xmin of the version that was read; null when there is none. */
  version: string | null
  tenantId: TenantId | null
  entityId: string | null
  payloads: FieldPayload[]
  /** Length of the longest payload's text, also of one that is too large. */
  largestBytes: number
}

interface PlanRow {
  ord: number
  version: string | null
  tenantId: string | null
  entityId: string | null
  fieldBytes: number | null
  fieldText: string | null
  restBytes: number | null
  restText: string | null
  deferred: boolean
}

/**
 * Plans the claimed rows of one source in one statement.
 *
 * Phase 1's artifact ids are made here and passed in, since the pointer of phase 1 is part of the payload of
 * phase 2. Text comes out as Postgres's own `jsonb::text` and is never parsed. Of a row with a payload over
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
): Promise<PlannedRow[]> {
  const phase1Ids = jobs.map(newArtifactId)
  const { rows } = await db.query<PlanRow>({
    text: planSql(source),
    prepare: jobs.length <= preparedRows,
    values: [
      arrayText(jobs.map(job => job.rowId)),
      arrayText(phase1Ids),
      limits.streamThresholdBytes,
      limits.budgetBytes,
      limits.maxPayloadBytes,
    ],
  })
  const byOrd = new Map(rows.map(row => [Number(row.ord), row]))
  return jobs.map((job, i) => {
    const row = byOrd.get(i + 1)
    const phase1Id = phase1Ids[i]
    if (row === undefined || phase1Id === undefined) throw new Error(`plan lost row ${job.rowId}`)
    return toPlannedRow(job, source, row, phase1Id, limits.maxPayloadBytes)
  })
}

function toPlannedRow(
  job: Job,
  source: Source,
  row: PlanRow,
  phase1Id: ArtifactId,
  maxPayloadBytes: number,
): PlannedRow {
  const payloads: FieldPayload[] = []
  if (row.fieldBytes !== null) {
    payloads.push({
      artifactId: phase1Id,
      phase: 1,
      kind: source.phase1Kind,
      field: source.phase1Field,
      sizeBytes: row.fieldBytes,
      bytes: row.fieldText === null ? null : Buffer.from(row.fieldText),
    })
  }
  if (row.restBytes !== null) {
    payloads.push({
      artifactId: newArtifactId(),
      phase: 2,
      kind: source.phase2Kind,
      field: null,
      sizeBytes: row.restBytes,
      bytes: row.restText === null ? null : Buffer.from(row.restText),
    })
  }
  const largestBytes = Math.max(0, ...payloads.map(p => p.sizeBytes))
  const outcome =
    row.version === null
      ? 'gone'
      : row.deferred
        ? 'deferred'
        : payloads.length === 0
          ? 'nothing'
          : row.tenantId === null
            ? 'no-tenant'
            : largestBytes > maxPayloadBytes
              ? 'too-large'
              : 'offload'
  return {
    job,
    source,
    outcome,
    version: row.version,
    tenantId: row.tenantId === null ? null : asTenantId(row.tenantId),
    entityId: row.entityId,
    payloads: outcome === 'offload' ? payloads : [],
    largestBytes,
  }
}

function planSql(source: Source): string {
  const key = `m.${ident(source.keyColumn)}`
  const column = `m.${ident(source.jsonColumn)}`
  // Nothing takes more binary bytes for a byte of text than short numbers: 4 of the entry, 11 of the value, for
  // the three of `1, `. So a value with eight times the threshold in binary form is over it in text.
  const isHuge = (value: string) =>
    `coalesce(pg_column_size(${value}) > 8 * greatest($3::int8, ${source.thresholdBytes}) + 1024 and pg_column_size(${value}) <= $5, false)`
  // `offset 0` keeps the planner from merging the steps, which would evaluate long expressions many times.
  return `
    with claimed as (
      select c.row_id, c.phase1_id, c.ord
        from unnest($1::text[], $2::uuid[]) with ordinality as c(row_id, phase1_id, ord)
    ),
    -- Sizes as stored come first: they cost nothing, and keep text from being rendered that can't be sent.
    found as (
      select c.ord, c.phase1_id, m.xmin::text as version, ${tenantSql(source)} as tenant_id,
             ${source.entityColumn === null ? 'null::uuid' : `m.${ident(source.entityColumn)}`} as entity_id,
             ${column} as stored,
             coalesce(sum(pg_column_size(${column}))
                        over (order by c.ord rows between unbounded preceding and 1 preceding), 0) as stored_before
        from claimed c
        join ${fromSql(source)} on ${key} = c.row_id::${source.keyType}
    ),
    opened as (
      select f.*, ${documentSql('f.stored')} as doc
        from found f
       where f.stored_before < $4
      offset 0
    ),
    phase1 as (
      select o.*, ${fieldSql(source, 'o.doc', 'o.tenant_id')} as field
        from opened o
      offset 0
    ),
    rests as (
      select p.ord, p.tenant_id, p.field, ${restSql(source, 'p.doc', 'p.field', 'p.phase1_id')} as rest
        from phase1 p
      offset 0
    ),
    texts as (
      select r.ord, r.tenant_id, f.text as field_text, t.text as rest_text,
             case when ${isHuge('r.field')} then pg_column_size(r.field) end as field_huge,
             case when ${isHuge('r.rest')} then pg_column_size(r.rest) end as rest_huge
        from rests r
       cross join lateral (select case when not ${isHuge('r.field')} then r.field::text end as text offset 0) f
       cross join lateral (select case when not ${isHuge('r.rest')} then r.rest::text end as text offset 0) t
    ),
    sized as (
      select t.ord, t.tenant_id, t.field_text, coalesce(t.field_huge, octet_length(t.field_text)) as field_bytes,
             case when octet_length(t.rest_text) > ${source.thresholdBytes} then t.rest_text end as rest_text,
             case when octet_length(t.rest_text) > ${source.thresholdBytes} then octet_length(t.rest_text) else t.rest_huge end as rest_bytes,
             t.field_huge is not null or t.rest_huge is not null as huge
        from texts t
    ),
    -- what would be sent for the row: nothing of one that is to be streamed
    weighed as (
      select s.*, s.huge or greatest(coalesce(s.field_bytes, 0), coalesce(s.rest_bytes, 0)) > $3 as streamed,
             case when s.huge or greatest(coalesce(s.field_bytes, 0), coalesce(s.rest_bytes, 0)) > $3 then 0
                  else coalesce(s.field_bytes, 0) + coalesce(s.rest_bytes, 0) end as weight
        from sized s
    ),
    summed as (
      select w.*, sum(w.weight) over (order by w.ord rows unbounded preceding) as total
        from weighed w
    ),
    decided as (
      select s.*, s.total > $4 and s.total > s.weight as over_budget
        from summed s
    )
    select c.ord::int as ord, f.version, f.tenant_id as "tenantId", f.entity_id as "entityId",
           d.field_bytes as "fieldBytes", d.rest_bytes as "restBytes",
           f.ord is not null and coalesce(d.over_budget, true) as deferred,
           case when not d.streamed and not d.over_budget and d.tenant_id is not null then d.field_text end as "fieldText",
           case when not d.streamed and not d.over_budget and d.tenant_id is not null then d.rest_text end as "restText"
      from claimed c
      left join found f using (ord)
      left join decided d using (ord)`
}
