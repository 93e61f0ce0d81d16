// Step 2: which of the claimed rows pay to leave now. The others wait, inline and whole: until they are settled, and until
// there is enough of their tenant and kind for a PUT to be worth it. They cost nothing but a row of lighter.waiting.
//
// Sizes here are hints. The plan decides what leaves, and what it finds to be too
// little goes back to wait (`holdBack`).
import type { OffloadConfig } from '../config.ts'
import { seesAllRowsOfSql } from '../db/all-rows.ts'
import { arrayText } from '../db/array-text.ts'
import type { Queryable } from '../db/pool.ts'
import { isLockTimeout, isSourceFault } from '../errors.ts'
import {
  documentSql,
  entitySql,
  fieldSql,
  fromSql,
  ident,
  isFieldBlockedSql,
  literal,
  mayLeaveSql,
  ownFieldSql,
  rowsSql,
  tenantSql,
} from '../source/expressions.ts'
import { isPinnedSql } from '../source/pins.ts'
import { isKeyedRowSql, partArrays, partList, partParameters } from '../source/rows-by-key.ts'
import { type Source, waitsForOthers } from '../source/sources.ts'
import type { PipelineContext } from './context.ts'
import type { Job, Lease, Waited } from './lease.ts'
import { bytesWithoutNumbersSql, hasLongNumbersSql } from './long-numbers.ts'
import { narrowDown } from './narrow-down.ts'
import type { PlannedRow } from './plan.ts'
import { returnJobs, wait } from './return-jobs.ts'
import type { Returned } from './settle.ts'
import { heavyBytesSql } from './value-size.ts'

/** Bytes in a row for a byte of text, where Postgres has compressed it and it is not opened: see lighter.prices.inline_ratio. */
const compressedShare = 0.42

interface Look {
  job: Job
  waited: Waited
  /** It was not written for as long as its source wants, or has waited for too long. */
  isSettled: boolean
  /** It is worth a PUT of its own, or somebody wants it to go. */
  goesAlone: boolean
}

/**
 * Lets rows wait that do not pay yet. Whatever can't be looked up, or seems to have nothing to offload, goes on: the
 * plan knows what to say of it.
 * @returns the rows that go on
 */
export async function groupRows(
  context: PipelineContext,
  sources: Map<number, Source>,
  lease: Lease,
  jobs: Job[],
): Promise<Job[]> {
  // Of rows that have waited, and were tried before, it is not on record when they were due.
  for (const job of jobs)
    if (job.waited === null && job.writtenBy === null && isWaiting(sources, job)) job.dueMs = Date.now()
  // One of those on which a daemon died must come to be alone, and not go back among others.
  if (lease.ranOut) return jobs
  const looks: Look[] = []
  for (const [sourceId, ofSource] of Map.groupBy(jobs, job => job.sourceId)) {
    const source = sources.get(sourceId)
    if (source === undefined || !waitsForOthers(source) || source.rowsHidden !== null) continue
    // Those that have failed are tried by themselves, but not those that only met with trouble; those that have waited
    // were due.
    const open = ofSource.filter(job => job.attempts <= 1 && job.waited === null)
    looks.push(...(await lookAt(context, source, open)))
  }
  const waiting = chooseWaiting(looks, context.config.packTargetBytes)
  for (const { job, waited } of looks) {
    job.waited = waited
    if (job.writtenBy !== null) job.dueMs = job.enqueuedMs + (sources.get(job.sourceId)?.settleMs ?? 0)
  }
  await returnJobs(
    context,
    waiting.map(({ job, waited, isSettled }) =>
      wait(job, waited, isSettled ? 0 : (sources.get(job.sourceId)?.settleMs ?? 0)),
    ),
  )
  // Those of a group one after the other: a round of a long batch cuts few groups.
  const nameOf = ({ waited }: Job) => (waited === null ? '' : groupOf(waited))
  return jobs
    .filter(job => lease.open.has(job.position))
    .sort((a, b) => (nameOf(a) < nameOf(b) ? -1 : nameOf(a) > nameOf(b) ? 1 : a.position - b.position))
}

/** Whether rows of its source wait before they leave. */
export function isWaiting(sources: Map<number, Source>, { sourceId }: Job): boolean {
  const source = sources.get(sourceId)
  return source !== undefined && waitsForOthers(source)
}

/** Those that neither go by themselves, nor fill a pack together, nor can go along with one that goes. */
function chooseWaiting(looks: Look[], targetBytes: number): Look[] {
  const groups = Map.groupBy(
    looks.filter(look => look.isSettled),
    look => groupOf(look.waited),
  )
  const going = new Set<string>()
  for (const [name, group] of groups) {
    const bytes = group.reduce((sum, { waited }) => sum + waited.bytes, 0)
    if (bytes >= targetBytes || group.some(look => look.goesAlone)) going.add(name)
  }
  return looks.filter(({ waited, isSettled }) => !isSettled || !going.has(groupOf(waited)))
}

const groupOf = ({ tenantId, kind }: Waited) => `${tenantId}/${kind}`

async function lookAt(context: PipelineContext, source: Source, jobs: Job[]): Promise<Look[]> {
  if (jobs.length === 0) return []
  try {
    return await narrowDown(
      jobs,
      part => lookAtRows(context.pool, source, part, context.config),
      () => undefined,
      isSourceFault,
    )
  } catch (error) {
    if (isLockTimeout(error) || isSourceFault(error)) return []
    throw error
  }
}

export interface LookRow {
  ord: number
  tenantId: string | null
  xmin: string
  entityId: string | null
  phase: 1 | 2
  bytes: number
  isOverdue: boolean
  isFlushed: boolean
  /** By its source's when_sql. */
  mayLeave: boolean
  /** Beyond the bytes of one statement: it was not looked at. */
  isLater: boolean
}

async function lookAtRows(
  db: Queryable,
  source: Source,
  jobs: Job[],
  config: Pick<OffloadConfig, 'streamThresholdBytes' | 'batchBytes'>,
): Promise<Look[]> {
  const { rows } = await db.query<LookRow>({
    text: lookSql(source),
    prepare: true,
    values: [
      arrayText(jobs.map(job => job.rowId)),
      arrayText(jobs.map(job => job.enqueuedMs)),
      Math.max(source.maxWaitMs, source.settleMs),
      config.streamThresholdBytes,
      config.batchBytes,
      ...partArrays(
        source,
        jobs.map(job => job.rowId),
      ),
    ],
  })
  const later = new Set(rows.filter(row => row.isLater).map(row => row.ord))
  const looks: Look[] = []
  const staying: { rowId: string; xmin: string }[] = []
  for (const [ord, found] of Map.groupBy(rows, row => row.ord)) {
    const job = jobs[ord - 1]
    const [row] = found
    // One of several rows with its key: the plan says so.
    if (job === undefined || row === undefined || found.length > 1 || later.has(ord)) continue
    const { tenantId, phase, bytes, xmin, entityId, isOverdue, isFlushed, mayLeave } = row
    if (!mayLeave) staying.push({ rowId: job.rowId, xmin })
    if (tenantId === null || bytes === 0) continue
    looks.push({
      job,
      waited: {
        tenantId,
        phase,
        kind: phase === 1 ? source.phase1Kind : source.phase2Kind,
        bytes,
        xmin,
        entityId,
        mustGo: isFlushed || isOverdue,
        isFree: isFlushed || source.maxWaitMs === 0,
      },
      goesAlone: isFlushed || source.maxWaitMs === 0 || bytes >= source.shipAloneBytes,
      isSettled:
        source.settleMs === 0 ||
        isFlushed ||
        isOverdue ||
        // What a backfill finds was there before. What a scan finds of a table without a trigger may have been written just now.
        (job.writtenBy === null && source.hasTrigger) ||
        job.writtenBy === xmin,
    })
  }
  await stopWaiting(db, source, staying)
  const left = jobs.filter((_, index) => later.has(index + 1))
  return left.length === 0 ? looks : looks.concat(await lookAtRows(db, source, left, config))
}

/**
 * Rows that had been let wait for others, and that when_sql holds back since they were written: they go out of the queue when
 * the plan has found the same, and would stay in it here. Not where they were written again meanwhile: then somebody else
 * has looked at them, and let them wait for a reason.
 */
async function stopWaiting(
  db: Queryable,
  source: Source,
  staying: { rowId: string; xmin: string }[],
): Promise<void> {
  if (staying.length === 0) return
  const rowIds = staying.map(({ rowId }) => rowId)
  await db.query({
    text: `
      with stays as (
        select c.* from unnest($1::text[], $2::text[]${partParameters(source, 3)}) as c(row_id, xmin${partList(source)})
      ),
      seen as materialized (
        select w.source_id, w.row_id, w.row_xmin
          from stays c
          join lighter.waiting w on w.source_id = ${source.id} and w.row_id = c.row_id and w.tenant_id is not null
         where exists (select from ${rowsSql(source)} m where ${isKeyedRowSql(source, 'c')} and m.xmin::text = c.xmin)
      ),
      locked as materialized (
        select w.source_id, w.row_id from lighter.waiting w join seen using (source_id, row_id)
         where w.row_xmin = seen.row_xmin
         order by w.source_id, w.row_id collate "C" for update of w skip locked
      )
      delete from lighter.waiting w using locked l where w.source_id = l.source_id and w.row_id = l.row_id`,
    values: [arrayText(rowIds), arrayText(staying.map(({ xmin }) => xmin)), ...partArrays(source, rowIds)],
  })
}

/**
 * Key look-ups, as in the plan. What would be streamed is not opened: it goes by itself. Nor is what is beyond the bytes of one
 * statement. Answers `LookRow`s.
 */
export function lookSql(source: Source): string {
  const raw = `(case when pg_column_compression(r.stored) is null then pg_column_size(r.stored)
                     else least(pg_column_size(r.stored) / ${compressedShare}, 2147483647)::int end)`
  return `
    with claimed as (
      select c.*, to_timestamp(c.ms / 1000) as enqueued_at
        from unnest($1::text[], $2::float8[]${partParameters(source, 6)}) with ordinality as c(row_id, ms${partList(source)}, ord)
       where ${seesAllRowsOfSql(source.id)}
    ),
    found as (
      select c.*, r.tenant_id, r.entity_id, r.row_xmin, r.stored, r.may_leave, ${raw} as raw,
             ${isPinnedSql(source, 'c.row_id', 'r.tenant_id')} or not r.may_leave as stays
        from claimed c
       cross join lateral (
         select m.xmin::text as row_xmin, ${tenantSql(source)} as tenant_id, ${entitySql(source)} as entity_id,
                m.${ident(source.jsonColumn)} as stored, ${mayLeaveSql(source)} as may_leave
           from ${fromSql(source)}
          where ${isKeyedRowSql(source, 'c')}
         offset 0) r
    ),
    counted as (
      select f.*, coalesce(sum(case when f.raw < $4 then f.raw end) over (rows between unbounded preceding and 1 preceding), 0) >= $5 as later
        from found f
    ),
    ${source.mode === 'document' ? weighDocumentsSql(source) : weighValuesSql(source)}
    select w.ord::int as ord, w.tenant_id as "tenantId", w.row_xmin as xmin, w.entity_id as "entityId",
           case when w.rest_goes and w.rest_bytes >= coalesce(w.field_bytes, 0) then 2 else 1 end as phase,
           coalesce(w.field_bytes, 0) + case when w.rest_goes then w.rest_bytes else 0 end as bytes,
           w.enqueued_at + $3 * interval '1 ms' <= clock_timestamp() as "isOverdue",
           exists (select from lighter.flushes f
                    where f.source_id = ${source.id} and (f.tenant_id is null or f.tenant_id = w.tenant_id)
                      and f.flushed_at >= w.enqueued_at) as "isFlushed", w.later as "isLater", w.may_leave as "mayLeave"
      from weighed w`
}

/** A value leaves as a whole, and is of one phase. That it is heavy is known without opening it, but of JSON. */
function weighValuesSql(source: Source): string {
  return `weighed as (
      select s.*, s.rest_bytes is not null as rest_goes
        from (select f.*, null::int as field_bytes,
                     case when f.stays or f.later then null when f.raw >= $4 then f.raw
                          else ${heavyBytesSql(source, 'f.stored')} end as rest_bytes
                from counted f) s offset 0
    )`
}

function weighDocumentsSql(source: Source): string {
  const rest = source.phase1Field === null ? 's.doc' : `s.doc - ${literal(source.phase1Field)}`
  return `opened as (
      select f.*, case when not f.stays and not f.later and f.raw < $4 then ${documentSql('f.stored')} end as doc
        from counted f offset 0
    ),
    fields as (
      select o.*, pg_column_size(${fieldSql(source, 'o.doc', 'o.tenant_id', ownFieldSql(source, 'o.doc'))}) as field_bytes
        from opened o offset 0
    ),
    sized as (
      -- What is opened is not compressed any more: that tells what is in it.
      select s.*, coalesce(pg_column_size(s.doc), s.raw) - coalesce(s.field_bytes, 0) as rest_bytes,
             coalesce(${isFieldBlockedSql(source, 's.doc', 's.field_bytes')}, false) as blocked
        from fields s offset 0
    ),
    weighed as (
      -- Text is at most six times as long as the binary form, numbers apart.
      select s.*, case when s.doc is null then not s.stays and s.raw >= $4
                       when s.blocked or s.rest_bytes > ${source.thresholdBytes} then true
                       when s.rest_bytes <= ${Math.floor(source.thresholdBytes / 6)} then false
                       when ${hasLongNumbersSql('s.doc')} then ${bytesWithoutNumbersSql(rest)} > ${source.thresholdBytes}
                       else octet_length((${rest})::text) > ${source.thresholdBytes}
                  end as rest_goes
        from sized s offset 0
    )`
}

/** What came off the queue as worth a PUT and turned out, planned, not to be: it waits on, with its true size. */
export function holdBack(
  rows: PlannedRow[],
  { packMinBytes, batchRows }: Pick<OffloadConfig, 'packMinBytes' | 'batchRows'>,
): Returned[] {
  const weighed = rows.flatMap(row => {
    const waited = waitedOf(row)
    return waited === null ? [] : [{ row, waited }]
  })
  const returned: Returned[] = []
  for (const ofGroup of Map.groupBy(weighed, ({ waited }) => groupOf(waited)).values()) {
    if (ofGroup.reduce((sum, { waited }) => sum + waited.bytes, 0) >= packMinBytes) continue
    // More of them are never taken together.
    if (ofGroup.length >= batchRows) continue
    if (ofGroup.some(({ row, waited }) => waited.bytes >= row.source.shipAloneBytes)) continue
    for (const { row, waited } of ofGroup) if (!waited.isFree) returned.push(wait(row.job, waited, 0))
  }
  return returned
}

/** What was known of a row, and is better known now that it is planned. Null: it has not waited. */
export function waitedOf({ job: { waited }, tenantId, payloads }: PlannedRow): Waited | null {
  if (waited === null) return null
  return {
    ...waited,
    // Its parent may have been moved to another tenant, which does not write the row.
    tenantId: tenantId ?? waited.tenantId,
    bytes: payloads.reduce((sum, payload) => sum + payload.sizeBytes, 0),
  }
}
