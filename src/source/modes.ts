// What the mode of a source decides: where its pointers are, and what a rewrite puts into the row. Plan, commit, restore and
// the sweeps read it here. `m` is the alias of the table's row in all of it.
//
// document: a jsonb document, offloaded in two phases, with pointers inside (expressions.ts).
// stub: a small pointer in the place of the value.
// whole: null in the place of the value, and the artifact's id in the pointer column beside it.
//
// In the last two the value leaves as a whole, and what the row is to hold is told by the artifact's id alone.
import { columnTypeOf } from './column-types.ts'
import { ident, inPlaceIdsSql, literal, pointerIdsSql, pointersInSql, tenantSql } from './expressions.ts'
import type { Source } from './sources.ts'

interface ValueMode {
  /** SQL: the id of the pointer that a reader of row `m` follows, if it counts; null: there is none. */
  ownIdSql: (source: Source) => string
  /** Assignments of an update that leaves the pointer to artifact `id`. */
  offloadSql: (source: Source, id: string) => string
  /** SQL: whether row `m` holds exactly that. */
  isOffloadedSql: (source: Source, id: string) => string
  /** Assignments of an update that puts the value back. */
  restoreSql: (source: Source, value: string) => string
  /** SQL: whether row `m` holds exactly that. */
  isRestoredSql: (source: Source, value: string) => string
}

const columnSql = (source: Source) => `m.${ident(source.jsonColumn)}`

function pointerColumnSql({ pointerColumn }: Source): string {
  if (pointerColumn === null) throw new Error('a source of mode whole has a pointer column')
  return ident(pointerColumn)
}

const valueModes: Record<'stub' | 'whole', ValueMode> = {
  stub: {
    // A stub is short. What is long is not opened.
    ownIdSql: source =>
      source.columnType === 'text'
        ? `lighter.stub_id(${columnSql(source)})`
        : `case when pg_column_size(${columnSql(source)}) < 128 then lighter.stub_id(${columnSql(source)}::text) end`,
    offloadSql: (source, id) =>
      `${ident(source.jsonColumn)} = ${columnTypeOf(source).valueSql(`lighter.stub_of(${id})`)}`,
    isOffloadedSql: (source, id) => `lighter.stub_id(${columnSql(source)}::text) = ${id}`,
    restoreSql: (source, value) => `${ident(source.jsonColumn)} = ${value}`,
    isRestoredSql: (source, value) => columnTypeOf(source).isSameSql(columnSql(source), value),
  },
  whole: {
    // A value beside an id is newer.
    ownIdSql: source => `case when ${columnSql(source)} is null then m.${pointerColumnSql(source)} end`,
    offloadSql: (source, id) => `${ident(source.jsonColumn)} = null, ${pointerColumnSql(source)} = ${id}`,
    isOffloadedSql: (source, id) => `${columnSql(source)} is null and m.${pointerColumnSql(source)} = ${id}`,
    restoreSql: (source, value) =>
      `${ident(source.jsonColumn)} = ${value}, ${pointerColumnSql(source)} = null`,
    isRestoredSql: (source, value) =>
      `m.${pointerColumnSql(source)} is null and ${columnTypeOf(source).isSameSql(columnSql(source), value)}`,
  },
}

export type ModeName = 'document' | keyof typeof valueModes

/** Null: the column holds documents. */
export const valueModeOf = (source: Source): ValueMode | null =>
  source.mode === 'document' ? null : valueModes[source.mode]

/** SQL, a list: ids of the source, and those under which the same column was attached before. */
const sourceIdsSql = (source: Source) => [source.id, ...source.formerIds].join(', ')

/**
 * SQL: whether an id names an artifact of the tenant that came off this column. Any other is the application's own
 * data: a text may be what one of its users has typed.
 */
const isOwnArtifactSql = (source: Source, id: string, tenant: string) => `exists (
  select from public.artifact_refs a
   where a.tenant_id = ${tenant} and a.frame_id = lighter.frame_of(${id}) and a.id = ${id} and a.source_id in (${sourceIdsSql(source)}))`

/** SQL, text[]: names of the pointer columns of all sources. */
export const pointerColumnsSql = ({ pointerColumns }: Source) =>
  `array[${pointerColumns.map(literal).join(', ')}]::text[]`

/** SQL, uuid[]: what row `m` refers to, at any depth and whoever may read it. Null, or empty, of none. */
export function pointersOfRowSql(source: Source): string {
  const column = columnSql(source)
  const inside =
    source.columnType === 'jsonb'
      ? pointersInSql(source, column)
      : columnTypeOf(source).isText
        ? `lighter.pointers_in_text(${column}::text, ${pointerColumnsSql(source)})`
        : `'{}'::uuid[]`
  if (source.mode !== 'whole') return inside
  return `(array_remove(array[m.${pointerColumnSql(source)}], null) || coalesce(${inside}, '{}'))`
}

/** SQL, uuid[]: the pointers of row `m` that stand where they belong. */
export function pointersInPlaceSql(source: Source): string {
  const mode = valueModeOf(source)
  if (mode === null) return inPlaceIdsSql(source, columnSql(source))
  const own = source.mode === 'whole' ? `m.${pointerColumnSql(source)}` : mode.ownIdSql(source)
  return `array_remove(array[${own}], null)`
}

/**
 * SQL, uuid[]: the pointers of row `m` that reading may follow.
 * @param doc the document of row `m`, where it is at hand
 */
export function readPointersSql(source: Source, doc = columnSql(source)): string {
  const mode = valueModeOf(source)
  if (mode === null) return pointerIdsSql(source, doc)
  const id = mode.ownIdSql(source)
  // An id in the pointer column is never the application's data.
  return source.mode === 'whole'
    ? `array_remove(array[${id}], null)`
    : `case when ${id} is not null and ${isOwnArtifactSql(source, id, tenantSql(source))} then array[${id}] end`
}

/** SQL: the uuid in the pointer column of row `m`; null where there is no such column. */
export const pointerSql = (source: Source) =>
  source.mode === 'whole' ? `m.${pointerColumnSql(source)}` : 'null::uuid'
