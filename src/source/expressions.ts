// The two phases as SQL expressions of one source. Plan, stream and commit are built from these same
// fragments, so what is uploaded and what is left in the row can't drift apart.
import pg from 'pg'
import {
  elementCountKey,
  fieldCountKey,
  fieldRefKey,
  metadataKindKey,
  metadataRefKey,
} from '../artifacts/pointer-keys.ts'
import { steadySettings } from '../db/settings.ts'
import { hasLongNumbersSql } from '../offload/long-numbers.ts'
import type { Parent, Source } from './sources.ts'

export const ident = pg.escapeIdentifier
export const literal = pg.escapeLiteral

/** The table's own rows, and those of its partitions: not those of tables that inherit, which may have its keys. */
export function rowsSql(source: Source): string {
  return onlySql(source.tableSql, source.isPartitioned)
}

/**
 * `from` clause: the table as `m`, those over which the tenant is found as `p1`, `p2`, ….
 * @param sampleSql a `tablesample` of the table
 */
export function fromSql(source: Source, sampleSql = ''): string {
  return `${rowsSql(source)} m ${sampleSql} ${parentJoinsSql(source, parent => onlySql(parent.tableSql, parent.isPartitioned))}`
}

/**
 * As `fromSql`, with the rows of tables that inherit: for who looks for pointers, and must not overlook any. A row that
 * was moved to a child, or a child that was added after the attach, is none of ours to rewrite and may point to ours.
 */
export function fromTreeSql(source: Source): string {
  return `${source.tableSql} m ${parentJoinsSql(source, parent => parent.tableSql)}`
}

const onlySql = (tableSql: string, isPartitioned: boolean) => (isPartitioned ? tableSql : `only ${tableSql}`)

const parentJoinsSql = (source: Source, rows: (parent: Parent) => string): string =>
  source.parents
    .map(
      (parent, i) =>
        `left join ${rows(parent)} p${i + 1} on p${i + 1}.${ident(parent.keyColumn)} = ${i === 0 ? 'm' : `p${i}`}.${ident(parent.column)}`,
    )
    .join(' ')

/** For a transaction that rewrites rows: the guard of the table (sql/functions/22_guard.sql) lets it pass. */
export const passGuardSql = `set local lighter.guard = 'off'`

/**
 * True; from then on names mean what they mean for the application, whose triggers and checks our rewrite runs. In a condition
 * before the rewrite of the same statement: that is bound to Postgres's own names already, by the search_path of db/settings.ts.
 */
export const asApplicationSql = ({ applicationPath }: Source) =>
  `(select set_config('search_path', ${literal(applicationPath)}, true)) is not null`

/** After that statement: what the application defers to the commit is run, and names are Postgres's own again. */
export const endOfRewriteSql = `set constraints all immediate; set local search_path = ${steadySettings.search_path}`

/**
 * A jsonb column, detoasted. The empty path changes nothing, but its result is in memory: a bare column would
 * be fetched and decompressed again for each of the operators that look at it (measured on 50 MB: a plan of
 * 2.9 s against 0.5 s).
 */
export function documentSql(column: string): string {
  return `(${column} #> '{}')`
}

/**
 * Which version of which row this is, as text: the transaction that wrote it, its place, the table or partition, that
 * one's file, and the server that was asked. Not the key and the transaction alone: a replica that takes over without
 * the last transactions gives their numbers out again, and a key is not unique any more once its index is dropped, or
 * a child inherits the table. Nor the place without the file: CLUSTER and VACUUM FULL put another row there.
 */
export const versionSql = (alias: string) =>
  `concat_ws(' ', ${alias}.xmin, ${alias}.ctid, ${alias}.tableoid, ${fileOfSql(alias)}, ${serverStartSql})`

/** True of the version that `versionSql` named; never when another server was asked then. */
export const isVersionSql = (alias: string, version: string) => {
  const part = (n: number) => `split_part(${version}, ' ', ${n})`
  return `${alias}.xmin = ${part(1)}::xid and ${alias}.ctid = ${part(2)}::tid and ${alias}.tableoid = ${part(3)}::oid
    and ${fileOfSql(alias)} = ${part(4)}::oid and ${serverStartSql} = ${part(5)}`
}

/** The file of a row's table or partition. */
export const fileOfSql = (alias: string) => `pg_relation_filenode(${alias}.tableoid)`

/** Which server answers, since when. A sub-select: asked once for a statement, not for each row. */
export const serverStartSql = '(select extract(epoch from pg_postmaster_start_time())::text)'

/**
 * True while the source is attached, works, and is as it was when it was loaded.
 * @param version parameter with the version, which must not be a part of a prepared text: each pause has a new one
 */
export function isSourceSql(source: Source, version: string): string {
  return `exists (select from lighter.sources s
             where s.id = ${source.id} and not s.paused and s.xmin::text = ${version}
               and lighter.effective_threshold(s) = ${source.thresholdBytes})`
}

export function tenantSql(source: Source): string {
  if (source.singleTenant !== null) return `${literal(source.singleTenant)}::uuid`
  const column = tenantColumnSql(source)
  if (source.tenantNamespace === null) return column
  // Null has no text, and format makes an empty one of it.
  return `(case when ${column} is not null then lighter.tenant_of(${literal(source.tenantNamespace)}::uuid, ${tenantNameSql(source)}) end)`
}

/** What the application calls a row's tenant, of a source with a `tenantNamespace`. */
export const tenantNameSql = (source: Source): string => `pg_catalog.format('%s', ${tenantColumnSql(source)})`

function tenantColumnSql(source: Source): string {
  if (source.tenantColumn === null) throw new Error(`${source.tableSql} has no tenant column`)
  return `${source.parents.length === 0 ? 'm' : `p${source.parents.length}`}.${ident(source.tenantColumn)}`
}

/**
 * True of a row whose source lets it leave now, by its when_sql. `lighter flush` does not change that.
 * @param columnSql a column of the row; default: of `m`
 */
export function mayLeaveSql(
  { whenFunction, whenColumns }: Source,
  columnSql: (name: string, index: number) => string = name => `m.${ident(name)}`,
): string {
  return whenFunction === null ? 'true' : `${whenFunction}(${whenColumns.map(columnSql).join(', ')})`
}

/** What the row belongs to, null where the source does not say. */
export function entitySql({ entityColumn }: Source): string {
  return entityColumn === null ? 'null::uuid' : `m.${ident(entityColumn)}`
}

/** True where `doc` carries a phase 1 pointer that is one: it names an artifact of the row's tenant. */
function hasFieldPointerSql(field: string, doc: string, tenant: string): string {
  const id = `lighter.as_uuid(${doc} -> ${literal(fieldRefKey(field))})`
  // Without a pointer nothing is looked for.
  return `(${id} is not null and exists (select from public.artifact_refs a
             where a.tenant_id = ${tenant} and a.frame_id = lighter.frame_of(${id}) and a.id = ${id}))`
}

/**
 * Phase 1: the field's value if it is to be offloaded, else null.
 *
 * The pointer's names are reserved. Where the application put something of its own under them, phase 1
 * would overwrite it, so such a row keeps its field inline (phase 2 may still take the row whole).
 * @param own `ownFieldSql`, where that is at hand
 */
export function fieldSql(
  source: Source,
  doc: string,
  tenant: string,
  own = ownFieldSql(source, doc),
): string {
  if (source.phase1Field === null) return 'null::jsonb'
  const names = [fieldRefKey(source.phase1Field), fieldCountKey(source.phase1Field)].map(literal).join(', ')
  return `case when jsonb_typeof(${doc}) = 'object'
      and jsonb_typeof(${own}) in ('array', 'object')
      and ${own} not in ('[]'::jsonb, '{}'::jsonb)${isLargeFieldSql(source, own)}
      and (not ${doc} ?| array[${names}] or ${hasFieldPointerSql(source.phase1Field, doc, tenant)})
    then ${own} end`
}

/** As it is stored, without compression: rendering it would cost more than the look is worth. */
const isLargeFieldSql = ({ minBytes }: Source, field: string) =>
  minBytes === 0 ? '' : ` and pg_column_size(${field}) >= ${minBytes}`

/** The value of phase 1's field, whatever it is. Each look copies it. */
export function ownFieldSql(source: Source, doc: string): string {
  return source.phase1Field === null ? 'null::jsonb' : `(${doc} -> ${literal(source.phase1Field)})`
}

/**
 * True where the field is to be offloaded and phase 1 can't take it, since the application has something of its own under
 * the names of its pointers, null for one. Then phase 2 takes the document whole, whatever its size: so nothing of it
 * is lost, and the field leaves the row all the same.
 */
export function isFieldBlockedSql(source: Source, doc: string, field: string): string {
  if (source.phase1Field === null) return 'false'
  const name = literal(source.phase1Field)
  return `(${field} is null and jsonb_typeof(${doc}) = 'object'
      and jsonb_typeof(${doc} -> ${name}) in ('array', 'object') and ${doc} -> ${name} not in ('[]'::jsonb, '{}'::jsonb)${isLargeFieldSql(source, `${doc} -> ${name}`)})`
}

/**
 * True where a row carries a pointer that reading follows and that leads to nothing its tenant has: the row was
 * moved here from another tenant, what it points to has expired, or the pointer was made up. Whatever is put on top
 * of it could not be read either, as on top of one that stands for elements of an array and was taken out of it.
 * A pointer beside a field that is inline, or is just being taken, is not followed.
 * @param elements the pointers of an array, null when the row holds an object
 */
export function lostPointerSql(
  source: Source,
  rest: string,
  field: string,
  tenant: string,
  elements: string,
): string {
  const isMissing = (id: string) => `not exists (
    select from public.artifact_refs a where a.tenant_id = ${tenant} and a.frame_id = lighter.frame_of(${id}) and a.id = ${id} and a.purged_at is null)`
  const idOf = (name: string) => `lighter.as_uuid(${rest} -> ${literal(name)})`
  const isLost = (name: string) => `${idOf(name)} is not null and ${isMissing(idOf(name))}`
  const ofArray = `exists (select from unnest(${elements}) e(id) where ${isMissing('e.id')})`
  const ofObject = `${isLost(metadataRefKey)}
    or ${idOf(metadataRefKey)} is not null and ${rest} ? ${literal(elementCountKey)}`
  const ofField =
    source.phase1Field === null
      ? 'false'
      : `${field} is null and not ${rest} ? ${literal(source.phase1Field)} and ${isLost(fieldRefKey(source.phase1Field))}`
  return `(case when ${elements} is not null then ${ofArray} else ${ofObject} or ${ofField} end)`
}

/**
 * What is left after phase 1 and may go in phase 2: of an object all of it, of an array the elements that are no
 * pointers yet. Null for a scalar, which stays in its row: there is no room for a pointer in it.
 */
export function restSql(source: Source, doc: string, field: string, fieldArtifactId: string): string {
  return `case jsonb_typeof(${doc}) when 'array' then lighter.array_rest(${doc})
    when 'object' then ${restOfObjectSql(source, doc, field, fieldArtifactId)} end`
}

function restOfObjectSql(source: Source, doc: string, field: string, fieldArtifactId: string): string {
  if (source.phase1Field === null) return doc
  return `(case when ${field} is null then ${doc}
    else (${doc} - ${literal(source.phase1Field)}) || jsonb_build_object(
      ${literal(fieldRefKey(source.phase1Field))}, ${fieldArtifactId},
      ${literal(fieldCountKey(source.phase1Field))},
        case when jsonb_typeof(${field}) = 'array' then jsonb_array_length(${field}) end) end)`
}

/**
 * Phase 2: what stays in the row. Of an array its pointers, old and new, each in its place. Of an object: keys with small values, the pointer of phase 1 if it is one,
 * and the pointer to all the rest. A pointer beside a field that is inline is stale, since the application has
 * written the field again (cleared it, say): left in the envelope without the field it would bring back the old.
 */
function envelopeSql(
  source: Source,
  doc: string,
  rest: string,
  tenant: string,
  field: string,
  restArtifactId: string,
): string {
  return `case jsonb_typeof(${doc})
    when 'array' then lighter.array_envelope(${doc}, ${restArtifactId}, ${literal(source.phase2Kind)})
    else ${envelopeOfObjectSql(source, rest, tenant, field, restArtifactId)} end`
}

function envelopeOfObjectSql(
  source: Source,
  rest: string,
  tenant: string,
  field: string,
  restArtifactId: string,
): string {
  const keys = `array[${source.envelopeKeys.map(literal).join(', ')}]::text[]`
  const pointers =
    source.phase1Field === null
      ? ''
      : `|| case when ${field} is not null or (jsonb_typeof(${rest}) = 'object' and not ${rest} ? ${literal(source.phase1Field)}
                and ${hasFieldPointerSql(source.phase1Field, rest, tenant)})
           then array[${literal(fieldRefKey(source.phase1Field))}, ${literal(fieldCountKey(source.phase1Field))}] else '{}'::text[] end`
  // Key by key: jsonb_each would unfold, and its filter render, the long values that do not stay.
  const limit = source.envelopeValueLimit
  const stays = `case
      when pg_column_size(${rest} -> k) > 8 * ${limit} + 1024 then false
      when jsonb_typeof(${rest} -> k) in ('number', 'array', 'object') and ${hasLongNumbersSql(`jsonb_build_array(${rest} -> k)`)} then false
      else octet_length((${rest} -> k)::text) <= ${limit} end`
  return `(coalesce((
      select jsonb_object_agg(k, ${rest} -> k)
        from unnest(${keys} ${pointers}) k
       where jsonb_typeof(${rest}) = 'object' and ${rest} ? k
         and ${stays}), '{}'::jsonb)
    || jsonb_build_object(${literal(metadataRefKey)}, ${restArtifactId}, ${literal(metadataKindKey)}, ${literal(source.phase2Kind)}::text))`
}

/** What the row is to hold, of one whose field, or rest, goes. The ids of the artifacts may be parameters or columns. */
export function targetSql(
  source: Source,
  d: { doc: string; rest: string; tenant: string; field: string; restGoes: string; restArtifactId: string },
): string {
  return `case when ${d.restGoes} then ${envelopeSql(source, d.doc, d.rest, d.tenant, d.field, d.restArtifactId)}
    when ${d.field} is not null then ${d.rest} end`
}

/**
 * What the database says of a row's pointers: each id, and whether its artifact exists and can be read. The plan goes by
 * that; the commit makes sure that it still holds. Null of a row without pointers.
 * @param ids uuid[]
 */
export function pointerStateSql(ids: string, tenant: string): string {
  return `case when cardinality(${ids}) > 0 then (
    select string_agg(concat_ws(' ', i.id, a.id is not null, a.id is not null and a.purged_at is null), ',' order by i.id)
      from unnest(${ids}) i(id)
      left join public.artifact_refs a on a.tenant_id = ${tenant} and a.frame_id = lighter.frame_of(i.id) and a.id = i.id) end`
}

/** The pointers in `doc`, as an object of those that are there; of an array, which is nothing else, all of it. */
export function pointersSql(source: Source, doc: string): string {
  const names = [metadataRefKey, ...(source.phase1Field === null ? [] : [fieldRefKey(source.phase1Field)])]
  return `case when jsonb_typeof(${doc}) = 'array' then ${doc}
    else jsonb_strip_nulls(jsonb_build_object(${names.map(name => `${literal(name)}, ${doc} -> ${literal(name)}`).join(', ')})) end`
}

/** The ids that the pointers in `doc` spell at any depth, as uuid[]. Reading follows only those of `followedIdsSql`. */
export function pointersInSql(source: Source, doc: string): string {
  const members = [...source.pointerNames, ...source.stubNames, ...source.pointerColumns].map(name => {
    const member = `@.${JSON.stringify(name)}`
    return `strict $.** ? (exists(${member})).${JSON.stringify(name)} ? (@.type() == "string")`
  })
  // A row that is copied as JSON has the stub of a text as a string.
  const strings = source.stubNames.map(
    name =>
      `strict $.** ? (@.type() == "string" && @ starts with ${JSON.stringify(`{${JSON.stringify(name)}: "`)})`,
  )
  const paths = [...members, ...strings].map(literal)
  return `lighter.pointers_in(${doc}, array[${paths.join(', ')}]::jsonpath[])`
}

/** Only a document with one of these in its text has any of those pointers. */
export const pointerWords = ({ pointerNames, stubNames, pointerColumns }: Source): string[] => [
  ...[...pointerNames, ...stubNames, ...pointerColumns].map(name => JSON.stringify(name)),
  ...stubNames.map(name => `${name}\\"`),
]

/** The ids of the pointers in `doc` that reading may follow, as uuid[]. */
export function pointerIdsSql(source: Source, doc: string): string {
  const ids = source.pointerNames.map(name => `lighter.as_uuid(${doc} -> ${literal(name)})`)
  return `case jsonb_typeof(${doc}) when 'array' then lighter.array_pointers(${doc})
    when 'object' then array_remove(array[${ids.join(', ')}], null) end`
}

/** The ids of the source's own pointers that stand where they belong, also of one beside its field that is inline, as uuid[]. */
export function inPlaceIdsSql(source: Source, doc: string): string {
  const names = [metadataRefKey, ...(source.phase1Field === null ? [] : [fieldRefKey(source.phase1Field)])]
  return `case jsonb_typeof(${doc}) when 'array' then lighter.array_pointers(${doc})
    when 'object' then array_remove(array[${names.map(name => `lighter.as_uuid(${doc} ->> ${literal(name)})`).join(', ')}], null) end`
}

/** The ids of the pointers that are followed when `doc` is hydrated, as uuid[]. */
export function followedIdsSql(source: Source, doc: string): string {
  const ids = [`lighter.as_uuid(${doc} -> ${literal(metadataRefKey)})`]
  if (source.phase1Field !== null) {
    ids.push(
      `case when not ${doc} ? ${literal(source.phase1Field)} then lighter.as_uuid(${doc} -> ${literal(fieldRefKey(source.phase1Field))}) end`,
    )
  }
  return `case jsonb_typeof(${doc}) when 'array' then lighter.array_pointers(${doc})
    when 'object' then array_remove(array[${ids.join(', ')}], null) end`
}

/** True where the row has the field, or its own pointer to it: what its payloads point to under that name is not read. */
export function hasOwnFieldSql(source: Source, doc: string): string {
  if (source.phase1Field === null) return 'false'
  return `coalesce(jsonb_typeof(${doc}) = 'object' and (${doc} ? ${literal(source.phase1Field)}
    or lighter.as_uuid(${doc} -> ${literal(fieldRefKey(source.phase1Field))}) is not null), false)`
}
