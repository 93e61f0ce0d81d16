// Step 6: one transaction. Artifacts in, rows rewritten and out of their lease, objects stored: all of it or none.
import type pg from 'pg'
import { committedFrames, frameColumns } from '../catalogue/frames.ts'
import { seesAllRowsOfSql } from '../db/all-rows.ts'
import { type Columns, namesOf, type Parameters, parameters } from '../db/parameters.ts'
import { inTransactionWithRetry, type Queryable } from '../db/pool.ts'
import { RowError, StoreError } from '../errors.ts'
import type { ArtifactId } from '../ids.ts'
import {
  asApplicationSql,
  documentSql,
  endOfRewriteSql,
  fileOfSql,
  fromSql,
  ident,
  isSourceSql,
  literal,
  mayLeaveSql,
  passGuardSql,
  pointerStateSql,
  pointersSql,
  rowsSql,
  serverStartSql,
  tenantSql,
} from '../source/expressions.ts'
import { valueModeOf } from '../source/modes.ts'
import { enterCommitGateSql, isPinnedSql } from '../source/pins.ts'
import { rowKeyParts } from '../source/row-key.ts'
import {
  hasKeySql,
  isKeyedRowSql,
  keyNames,
  partList,
  partNames,
  selectKeySql,
} from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'
import { type Job, jobKey } from './lease.ts'
import type { Latency } from './observer.ts'
import type { Location } from './pack.ts'
import type { PlannedRow } from './plan.ts'
import { conflict } from './return-jobs.ts'
import { closeJobs, settle } from './settle.ts'

export interface CommitResult {
  /** Rows that were rewritten, or were proved to have nothing to offload, or are gone: they are queued no more. */
  done: Set<string>
  /** Rows that changed or were locked meanwhile: left alone, they wait for their next turn. */
  changed: Job[]
  /** Of the rows that were rewritten. */
  latencies: Latency[]
}

/**
 * Commits a batch: rows with all payloads uploaded, rows with nothing to do, rows that are gone.
 *
 * Never waits for a row that the application holds (SKIP LOCKED), so it can't deadlock with it, and touches
 * only rows whose version is the one that was read. A write that comes while the commit is under way has queued its row
 * again by itself.
 *
 * Statements: one per source and two for the bookkeeping, however many rows.
 * @param locations where each uploaded payload is
 * @param objectKeys every object registered for this batch; those that no committed artifact uses become orphans at once
 */
export async function commitBatch(
  pool: pg.Pool,
  rows: PlannedRow[],
  locations: Map<ArtifactId, Location>,
  objects: { tenantId: string; key: string; byteLength: number }[],
  maxAttempts: number,
): Promise<CommitResult> {
  const bySource = Map.groupBy(rows, row => row.source)
  const lease = rows[0]?.job.lease
  const result = await inTransactionWithRetry(
    pool,
    async db => {
      const done = new Set<string>()
      for (const [source, sourceRows] of bySource) {
        const gone = sourceRows.filter(row => row.outcome === 'gone')
        const present = sourceRows.filter(row => row.outcome === 'offload' || row.outcome === 'nothing')
        for (const rowId of await rewriteRows(db, source, present, gone))
          done.add(jobKey({ sourceId: source.id, rowId }))
      }
      const committed = rows.filter(row => done.has(jobKey(row.job)))
      const changed = rows.filter(row => !done.has(jobKey(row.job)))
      const latencies = await recordOutcome(db, committed, locations, objects)
      if (lease !== undefined) {
        await settle(
          db,
          lease,
          committed.map(row => row.job),
          changed.map(row => conflict(row.job, row.source)),
          maxAttempts,
        )
      }
      return { done, changed: changed.map(row => row.job), latencies }
    },
    `${enterCommitGateSql}; ${passGuardSql}`,
  )
  closeJobs(rows.map(row => row.job))
  return result
}

/** JSON text can not contain it. */
const separator = '\x1f'

/** Returns the ids of the rows that are as they should be now. @throws {RowError} a trigger undid the rewrite */
async function rewriteRows(
  db: Queryable,
  source: Source,
  rows: PlannedRow[],
  gone: PlannedRow[],
): Promise<string[]> {
  // Our rewrite is no edit by the application: its other triggers (updated_at, audit) stay quiet.
  if (source.quietRewrite) await db.query('set local session_replication_role = replica')
  // First those that are rewritten, so that each has its text.
  const ordered = [
    ...rows.filter(row => row.outcome === 'offload'),
    ...rows.filter(row => row.outcome !== 'offload'),
  ]
  const p = parameters()
  const { rows: answered } = await db.query<{ rowId: string; intact: boolean }>({
    text: rewriteSql(source, p, ordered, gone),
    prepare: true,
    values: p.values,
  })
  await db.query(
    source.quietRewrite ? `${endOfRewriteSql}; set local session_replication_role = origin` : endOfRewriteSql,
  )
  const undone = answered.find(row => !row.intact)
  if (undone !== undefined) {
    throw new RowError(
      'rewrite_undone',
      `a trigger of ${source.tableSql} refused the rewrite of row ${undone.rowId}, took its pointer away, or put back what was taken`,
      {
        hint: 'Let the trigger pass what lighter_daemon writes, or grant set on parameter session_replication_role to lighter_daemon.',
      },
    )
  }
  return answered.map(row => row.rowId)
}

/** Parts of a version as `versionSql` names it. */
const versionPart =
  (n: number) =>
  ({ version }: PlannedRow) =>
    version?.split(' ')[n] ?? null

const readColumns: Columns<PlannedRow> = {
  row_id: ['text', row => row.job.rowId],
  xmin: ['xid', versionPart(0)],
  place: ['tid', versionPart(1)],
  tbl: ['oid', versionPart(2)],
  file: ['oid', versionPart(3)],
  server: ['text', versionPart(4)],
  tenant_id: ['uuid', row => row.tenantId],
  pointer_ids: ['text', row => row.pointers?.ids ?? null],
  pointer_state: ['text', row => row.pointers?.state ?? null],
  has_field: ['bool', row => row.payloads.some(payload => payload.phase === 1)],
  has_rest: ['bool', row => row.payloads.some(payload => payload.phase === 2)],
}

/** Parts of a key of several columns. */
function keyPartColumns(source: Source): Columns<PlannedRow> {
  return Object.fromEntries(
    partNames(source).map((name, i): [string, Columns<PlannedRow>[string]] => [
      name,
      ['text', row => rowKeyParts(row.job.rowId, source.key.length)?.[i] ?? null],
    ]),
  )
}

function targetText({ target, job }: PlannedRow): string {
  if (target === null) throw new Error(`what row ${job.rowId} is to hold was not made`)
  if (target.includes(separator)) throw new Error(`what row ${job.rowId} is to hold is no JSON text`)
  return target
}

/**
 * `locked` holds the rows that still are the version that was read. Of those, the ones with payloads get the value that the
 * plan has made; the others had nothing, and are proved to by the lock.
 *
 * What the version does not cover is checked again: that the table is still attached, and in the way that it was
 * planned by (with a lower threshold, say, a row that had nothing may have something now), the tenant where it is the
 * parent's, whether the row's pointers are what they were (an artifact of that name may have come or gone), and that
 * nobody has asked for the row to stay as it is since (the source paused, the row or its tenant pinned), and that when_sql
 * holds: time has passed.
 */
function rewriteSql(source: Source, p: Parameters, ordered: PlannedRow[], gone: PlannedRow[]): string {
  const column = ident(source.jsonColumn)
  const mode = valueModeOf(source)
  const ids = `string_to_array(r.pointer_ids, ',')::uuid[]`
  // As one text: node-postgres, and arrays in text form, would quote each document.
  const targets = `string_to_array(${p.one(ordered.flatMap(row => (row.outcome === 'offload' ? [targetText(row)] : [])).join(separator))}::text, E'\\x1f')`
  return `
    with read as (
      select r.*, r.has_field or r.has_rest as goes
        from ${p.unnest(ordered, { ...readColumns, ...keyPartColumns(source) }, targets)} as r(${namesOf(readColumns)}${partList(source)}, target)
       where ${seesAllRowsOfSql(source.id)} and (select ${isSourceSql(source, p.one(source.version))}) and ${asApplicationSql(source)}
    ),
    locked as (
      select ${selectKeySql(source)}, m.ctid as place, m.tableoid as tbl, r.row_id, r.goes, r.has_field, r.has_rest, r.target
        from read r
        join ${fromSql(source)} on ${isKeyedRowSql(source, 'r')}
         and m.xmin = r.xmin and m.ctid = r.place and m.tableoid = r.tbl and ${fileOfSql('m')} = r.file and ${serverStartSql} = r.server
       where not r.goes or (
               r.target is not null and ${tenantSql(source)} = r.tenant_id and not ${isPinnedSql(source, 'r.row_id', tenantSql(source))}
               and ${mayLeaveSql(source)}
               and (r.pointer_ids is null or ${pointerStateSql(ids, 'r.tenant_id')} = r.pointer_state))
         for no key update of m skip locked
    ),
    targets as (
      select ${keyNames(source, 'l').join(', ')}, l.place, l.tbl, l.row_id, l.has_field, l.has_rest,
             l.target::${mode === null ? 'jsonb' : 'uuid'} as target from locked l where l.goes
    ),
    rewritten as (
      update ${rowsSql(source)} m
         set ${mode === null ? `${column} = t.target` : mode.offloadSql(source, 't.target')}
        from targets t
       where ${hasKeySql(source, 't')} and m.ctid = t.place and m.tableoid = t.tbl
      -- what a trigger of the table made of it
      returning t.row_id, ${
        mode === null
          ? `m.${column} = t.target
                or m.${column} @> ${pointersSql(source, 't.target')} and ${isLightSql(source, `m.${column}`, 't')}`
          : mode.isOffloadedSql(source, 't.target')
      } as intact
    )
    select row_id as "rowId", coalesce(intact, false) as intact from rewritten
    union all
    select row_id, false from targets where row_id not in (select row_id from rewritten)
    union all
    select row_id, true from locked where not goes
    union all
    -- gone when it was planned, and not back since; hidden is not gone
    select g.row_id, true
      from ${p.unnest(gone, { row_id: ['text', row => row.job.rowId], ...keyPartColumns(source) })} g(row_id${partList(source)})
     where ${seesAllRowsOfSql(source.id)}
       and not exists (select from ${rowsSql(source)} m where ${isKeyedRowSql(source, 'g')})`
}

/**
 * False where a trigger of the table has put back what was taken, by merging the document that was there before with ours:
 * the row is as heavy as it was. What else a trigger adds does no harm.
 */
function isLightSql(source: Source, column: string, target: string): string {
  const hasField =
    source.phase1Field === null
      ? 'false'
      : `(${target}.has_field and ${column} ? ${literal(source.phase1Field)})`
  return `not ${hasField} and (not ${target}.has_rest
      or pg_column_size(${documentSql(column)}) <= greatest(${source.thresholdBytes}, 2 * pg_column_size(${target}.target)))`
}

interface CommittedArtifact {
  row: PlannedRow
  payload: PlannedRow['payloads'][number]
  location: Location
}

const looseColumns: Columns<CommittedArtifact> = {
  id: ['uuid', a => a.payload.artifactId],
  tenant_id: ['uuid', a => a.row.tenantId],
  kind: ['text', a => a.payload.kind],
  entity_type: ['text', a => a.row.source.entityType],
  entity_id: ['uuid', a => a.row.entityId],
  r2_key: ['text', a => a.location.key],
  content_type: ['text', a => a.location.contentType],
  size_bytes: ['bigint', a => a.location.sizeBytes],
  sha256: ['text', a => a.location.sha256],
  content_encoding: ['text', a => a.location.contentEncoding],
  source_id: ['int', a => a.row.source.id],
  row_id: ['text', a => a.row.job.rowId],
  field: ['text', a => a.payload.field],
  refers_to: ['text', a => a.payload.refersTo.join(',')],
}

const latencyColumns: Columns<PlannedRow> = {
  priority: ['int2', row => row.job.priority],
  due_ms: ['float8', row => row.job.dueMs],
}

interface CommittedObject {
  tenantId: string
  key: string
  byteLength: number
  /** What of it is committed. */
  artifacts: CommittedArtifact[]
}

const objectColumns: Columns<CommittedObject> = {
  tenant_id: ['uuid', o => o.tenantId],
  r2_key: ['text', o => o.key],
  byte_length: ['bigint', o => o.byteLength],
  used: ['bool', o => o.artifacts.length > 0],
  artifacts: ['int', o => o.artifacts.length],
  payload_bytes: ['bigint', o => o.artifacts.reduce((sum, a) => sum + a.location.sizeBytes, 0)],
}

async function recordOutcome(
  db: Queryable,
  committed: PlannedRow[],
  locations: Map<ArtifactId, Location>,
  objects: { tenantId: string; key: string; byteLength: number }[],
): Promise<Latency[]> {
  const artifacts: CommittedArtifact[] = committed.flatMap(row =>
    row.payloads.map(payload => {
      const location = locations.get(payload.artifactId)
      if (location === undefined) throw new Error(`payload ${payload.artifactId} was not uploaded`)
      return { row, payload, location }
    }),
  )
  const inObject = Map.groupBy(artifacts, a => a.location.key)
  const used = new Set(inObject.keys())
  const offloaded = committed.filter(row => row.outcome === 'offload')
  const frames = committedFrames(artifacts.map(a => a.location))
  const loose = artifacts.filter(a => a.location.frame === null)
  const written = objects.map(o => ({ ...o, artifacts: inObject.get(o.key) ?? [] }))
  const p = parameters()
  const { rows } = await db.query<{ stored: number; frames: number; latencies: string | null }>({
    text: `
      with loose as (
        insert into lighter.loose_artifacts (id, tenant_id, kind, entity_type, entity_id, r2_key, content_type, size_bytes,
            sha256, content_encoding, source_id, row_id, field, refers_to)
        select a.id, a.tenant_id, a.kind, a.entity_type, a.entity_id, a.r2_key, a.content_type, a.size_bytes, a.sha256,
               a.content_encoding, a.source_id, a.row_id, a.field, string_to_array(a.refers_to, ',')::uuid[]
          from ${p.unnest(loose, looseColumns)} as a(${namesOf(looseColumns)})
      ),
      frames as (
        insert into lighter.frames as old (tenant_id, id, kind, r2_key, byte_offset, byte_length, content_encoding, source_id, field, content_type,
            entity_type, sizes, places, hashes, row_uuids, row_texts, entities, entity_places, refers_from, refers_to, voids)
        select f.tenant_id, f.id, f.kind, f.r2_key, f.byte_offset, f.byte_length, f.content_encoding, f.source_id, f.field, f.content_type,
               f.entity_type, f.sizes::int[], f.places::int[], f.hashes::bytea, f.row_uuids::uuid[], f.row_texts::text[],
               f.entities::uuid[], f.entity_places::int2[], f.refers_from::int2[], f.refers_to::uuid[], f.voids::int2[]
          from ${p.unnest(frames, frameColumns)} as f(${namesOf(frameColumns)})
            -- Of a batch that is committed in parts: what either part has is no void. Not where a compaction has moved the
            -- frame in between: it has left the bytes of voids behind.
            on conflict (tenant_id, id) do update
           set voids = array(select unnest(old.voids) intersect select unnest(excluded.voids))
         where old.r2_key = excluded.r2_key
        returning 1
      ),
      objects as (
        update lighter.objects o
           set state = case when d.used then 'stored' else o.state end,
               stored_at = case when d.used then now() end,
               byte_length = d.byte_length,
               upload_id = case when d.used then null else o.upload_id end,
               -- nothing committed uses it: an orphan from this moment on
               lease_until = case when d.used then null else now() end,
               -- Payloads whose rows changed meanwhile are dead bytes from the beginning, and must leave in their time.
               live_artifacts = case when d.used and coalesce(o.live_artifacts, 0) + d.artifacts < o.artifact_count
                                     then coalesce(o.live_artifacts, 0) + d.artifacts end,
               live_bytes = case when d.used and coalesce(o.live_artifacts, 0) + d.artifacts < o.artifact_count
                                 then coalesce(o.live_bytes, 0) + d.payload_bytes end,
               dead_since = case when d.used and coalesce(o.live_artifacts, 0) + d.artifacts < o.artifact_count
                                 then now() end
          from ${p.unnest(written, objectColumns)} as d(${namesOf(objectColumns)})
         where o.tenant_id = d.tenant_id and o.r2_key = d.r2_key
           and (o.state = 'uploading' or d.used and o.state = 'stored')
        returning d.used
      ),
      -- Appended, not counted up: two commits must not wait for each other. See lighter.offload_latency.
      latency as (
        insert into lighter.latency_changes (hour, live, bucket, jobs)
        select date_trunc('hour', now(), 'UTC'), j.priority <= 0,
               ceil(4 * ln(greatest(extract(epoch from clock_timestamp())::float8 * 1000 - j.due_ms, 1)) / ln(2::float8))::smallint,
               count(*)
          from ${p.unnest(offloaded, latencyColumns)} as j(${namesOf(latencyColumns)})
         group by 2, 3
        returning live, bucket, jobs
      )
      select count(*)::int as stored, (select count(*)::int from frames) as frames,
             (select string_agg(concat_ws(' ', live::int, bucket, jobs), ',') from latency) as latencies
        from objects where used`,
    prepare: true,
    values: p.values,
  })
  // A daemon that was stopped for longer than its lease comes back to find its objects swept away, or about
  // to be: a pointer to one must not be committed. The row lock that the update took settles who was first.
  const stored = rows[0]?.stored ?? 0
  if (rows[0]?.frames !== frames.length) {
    throw new StoreError(
      'object_swept',
      'a compaction has moved a frame between two commits of its batch: the rest of its rows are offloaded anew',
      { retryable: true },
    )
  }
  if (stored !== used.size) {
    throw new StoreError(
      'object_swept',
      `${used.size - stored} of ${used.size} uploaded object(s) were taken for orphans before the commit`,
      {
        retryable: true,
        hint: 'Raise OFFLOAD_LEASE_MS if this daemon is often stopped or starved for that long.',
      },
    )
  }
  return (rows[0]?.latencies ?? '').split(',').flatMap(each => {
    const [live, bucket, jobs] = each.split(' ')
    return jobs === undefined ? [] : [{ live: live === '1', bucket: Number(bucket), rows: Number(jobs) }]
  })
}
