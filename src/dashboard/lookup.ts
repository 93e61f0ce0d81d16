// A row or an artifact and what the database knows of it: where its payloads are and how they are, never the payloads.

import type pg from 'pg'
import { ApiError } from '../api/errors.ts'
import { metadataRefKey, stubKey } from '../artifacts/pointer-keys.ts'
import { inTransactionWithRetry, type Queryable } from '../db/pool.ts'
import { tableNameSql } from '../db/settings.ts'
import { RowError } from '../errors.ts'
import { type RowStatus, readRowStatus } from '../reports/row-status.ts'
import { canonicalRowId } from '../source/canonical-key.ts'
import { documentSql, fromSql, ident, literal, tenantSql } from '../source/expressions.ts'
import { readPointersSql } from '../source/modes.ts'
import { describeKey, isRowSql, rowKeySql } from '../source/rows-by-key.ts'
import { loadSources, type Source } from '../source/sources.ts'

export interface ArtifactFacts {
  id: string
  tenant_id: string
  kind: string
  source: string | null
  row_id: string | null
  field: string | null
  entity_type: string | null
  entity_id: string | null
  content_type: string | null
  size_bytes: number | null
  sha256: string | null
  created_at: string
  r2_key: string
  byte_offset: number | null
  byte_length: number | null
  frame_offset: number | null
  content_encoding: string | null
  /** Null: not an object of ours, but of an application that stores its own. */
  object: {
    state: 'uploading' | 'stored' | 'deleting'
    byte_length: number | null
    artifacts: number
    live_artifacts: number
  } | null
  state: 'live' | 'expiring' | 'deleted' | 'purged' | 'damaged'
  expires_at: string | null
  deleted_at: string | null
  deleted_reason: string | null
  purged_at: string | null
  damaged_at: string | null
  damage: string | null
  /** How long it is kept, and by which policy. */
  retention: string | null
}

export interface RowFacts {
  source_id: number
  source: string
  column: string
  row_id: string
  tenant_id: string | null
  /** What the column takes in the table, compressed as Postgres does it; null: SQL null. */
  stored_bytes: number | null
  /** Where it is on its way out, in words. */
  status: RowStatus
  pointers: { name: string; artifact_id: string; artifact: ArtifactFacts | null }[]
  job: {
    place: string
    attempts: number
    enqueued_at: string
    available_at: string
    last_error: string | null
  } | null
  dead_letter: { attempts: number; failed_at: string; last_error: string } | null
}

/** Looking by an id alone may mean looking through an index. */
const timeoutMs = 5000
const shownErrorCharacters = 2000
/** Of an array; each is shown with its artifact. */
const mostElementPointers = 100

const artifactJson = `
  json_build_object(
    'id', a.id, 'tenant_id', a.tenant_id, 'kind', a.kind, 'source', ${tableNameSql('s.relation')}, 'row_id', a.row_id, 'field', a.field,
    'entity_type', a.entity_type, 'entity_id', a.entity_id, 'content_type', a.content_type, 'size_bytes', a.size_bytes,
    'sha256', a.sha256, 'created_at', a.created_at, 'r2_key', a.r2_key, 'byte_offset', a.byte_offset,
    'byte_length', a.byte_length, 'frame_offset', a.frame_offset, 'content_encoding', a.content_encoding,
    'object', (select json_build_object('state', o.state, 'byte_length', o.byte_length, 'artifacts', o.artifact_count,
                                        'live_artifacts', coalesce(o.live_artifacts, o.artifact_count))
                 from lighter.objects o where o.tenant_id = a.tenant_id and o.r2_key = a.r2_key),
    'state', case when a.purged_at is not null then 'purged' when a.deleted_at is not null then 'deleted'
                  when a.damaged_at is not null then 'damaged' when a.expires_at is not null then 'expiring' else 'live' end,
    'expires_at', a.expires_at, 'deleted_at', a.deleted_at, 'deleted_reason', a.deleted_reason, 'purged_at', a.purged_at,
    'damaged_at', a.damaged_at, 'damage', a.damage,
    'retention', (select p.policy from lighter.retention_policy_of(a.tenant_id, a.kind) p))`

const documentPointersSql = `
          select n.name, lighter.as_uuid(f.metadata -> n.name) as artifact_id
            from found f cross join unnest($2::text[]) n(name)
           where lighter.as_uuid(f.metadata -> n.name) is not null
          union all
          (select ${literal(`${metadataRefKey} of elements`)}, e.id
             from found f cross join unnest(lighter.array_pointers(f.metadata)) e(id)
            order by e.id
            limit ${mostElementPointers})`

/** Under which its pointers are shown: of a column that holds values the one. */
const pointerNamesOf = ({ mode, pointerNames, pointerColumn }: Source) =>
  mode === 'document' ? pointerNames : [pointerColumn ?? stubKey]

const artifactFrom = 'public.artifact_refs a left join lighter.sources s on s.id = a.source_id'

/** @param tenantId null: whoever's it is. @throws {ApiError} 404 */
export async function lookUpArtifact(
  pool: pg.Pool,
  id: string,
  tenantId: string | null,
): Promise<ArtifactFacts> {
  const { rows } = await inLookup(pool, db =>
    db.query<{ artifact: ArtifactFacts }>({
      text: `select ${artifactJson} as artifact from ${artifactFrom}
              where a.frame_id = lighter.frame_of($1) and a.id = $1 ${tenantId === null ? '' : 'and a.tenant_id = $2'} limit 1`,
      values: tenantId === null ? [id] : [id, tenantId],
    }),
  )
  if (rows[0] === undefined)
    throw new ApiError(404, 'artifact_not_found', 'Artifact not found', { field: 'id' })
  return rows[0].artifact
}

/** @throws {ApiError} 400 no key of that table; 404 no such source, or no such row */
export async function lookUpRow(pool: pg.Pool, sourceId: number, rowId: string): Promise<RowFacts> {
  const source = await findSource(pool, sourceId)
  const key = await requireKey(pool, source, rowId)
  const found = await inLookup(pool, async db => {
    const { rows } = await db.query<{ row: Omit<RowFacts, 'status'> }>({
      // The metadata itself stays in the database: of it only its length and its pointers are told.
      text: `
        with found as materialized (
          select ${rowKeySql(source)} as row_id, lighter.as_uuid(${tenantSql(source)}::text) as tenant_id,
                 pg_column_size(m.${ident(source.jsonColumn)}) as bytes, ${
                   source.mode === 'document'
                     ? `${documentSql(`m.${ident(source.jsonColumn)}`)} as metadata`
                     : `${readPointersSql(source)} as ids`
                 }
            from ${fromSql(source)}
           where ${isRowSql(source, '$1::text')}
        ),
        pointers as (
          ${
            source.mode === 'document'
              ? documentPointersSql
              : 'select ($2::text[])[1] as name, i.id as artifact_id from found f cross join unnest(f.ids) i(id)'
          }
        )
        select json_build_object(
                 'source_id', $3::integer, 'source', $4::text, 'column', $5::text, 'row_id', f.row_id, 'tenant_id', f.tenant_id,
                 'stored_bytes', f.bytes,
                 'pointers', (
                   select coalesce(json_agg(json_build_object('name', p.name, 'artifact_id', p.artifact_id, 'artifact', (
                            select ${artifactJson} from ${artifactFrom}
                             where a.tenant_id = f.tenant_id and a.frame_id = lighter.frame_of(p.artifact_id) and a.id = p.artifact_id)) order by p.name), '[]')
                     from pointers p),
                 'job', (
                   select json_build_object('place', j.place, 'attempts', j.attempts, 'enqueued_at', j.enqueued_at, 'available_at', coalesce(j.available_at, now()),
                                            'last_error', left(j.last_error, ${shownErrorCharacters}))
                     from lighter.jobs j where j.source_id = $3 and j.row_id = f.row_id
                    order by j.enqueued_at limit 1),
                 'dead_letter', (
                   select json_build_object('attempts', d.attempts, 'failed_at', d.failed_at,
                                            'last_error', left(d.last_error, ${shownErrorCharacters}))
                     from lighter.failed_jobs d where d.source_id = $3 and d.row_id = f.row_id)) as row
          from found f`,
      values: [key, pointerNamesOf(source), source.id, source.tableSql, source.jsonColumn],
    })
    const row = rows[0]?.row
    const status = row === undefined ? null : await readRowStatus(db, source, row.row_id)
    return row === undefined || status === null ? null : { ...row, status }
  })
  if (found === null)
    throw new ApiError(404, 'row_not_found', `${source.tableSql} has no such row`, { field: 'row_id' })
  return found
}

/** @throws {ApiError} 404 */
export async function findSource(db: Queryable, sourceId: number): Promise<Source> {
  const source = (await loadSources(db)).get(sourceId)
  if (source === undefined)
    throw new ApiError(404, 'source_not_found', 'that table is not attached', { field: 'source_id' })
  return source
}

/** The key as the queue spells it. @throws {ApiError} 400 */
export async function requireKey(db: Queryable, source: Source, rowId: string): Promise<string> {
  try {
    return await canonicalRowId(db, source, rowId)
  } catch (error) {
    if (!(error instanceof RowError)) throw error
    throw new ApiError(400, 'invalid_request', `the key of ${source.tableSql} is: ${describeKey(source)}`, {
      field: 'row_id',
    })
  }
}

function inLookup<T>(pool: pg.Pool, work: (db: Queryable) => Promise<T>): Promise<T> {
  return inTransactionWithRetry(
    pool,
    work,
    `set transaction read only; set local statement_timeout = ${timeoutMs}`,
  )
}
