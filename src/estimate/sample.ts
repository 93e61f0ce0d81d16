// Looks at rows of some pages of the table, chosen at random: sizes only, no value leaves the database.
//
// pg_column_size of a stored value costs nothing. A value is opened only while the bytes that a round may open last, and only
// if it is stored in few; its text is measured only if no number of it is written out far longer than it is stored.
import { fieldCountKey, fieldRefKey, metadataKindKey, metadataRefKey } from '../artifacts/pointer-keys.ts'
import type { Queryable } from '../db/pool.ts'
import { sqlState } from '../errors.ts'
import { hasLongNumbersSql, textBytesBoundSql } from '../offload/long-numbers.ts'
import { documentSql, ident, literal } from '../source/expressions.ts'
import { daemonDefaults } from './constants.ts'
import type { DescribedSource } from './describe.ts'
import { imputeUnopened } from './impute.ts'
import type { TableFacts } from './relation.ts'
import type { TimeColumns } from './times.ts'

export interface SampleLimits {
  /** Of the heap, at most; fewer where another limit comes first. */
  pages: number
  /** Bytes of stored values that are opened, at most. */
  bytes: number
  /** Of all statements together. */
  timeoutMs: number
}

export interface SampledRow {
  page: string
  /** Of each column as stored, compressed or not; null: null. */
  sizes: (number | null)[]
  compressed: boolean
  tenant: string | null
  /** Seconds since 1970. */
  time: number | null
  /** When it was written last. */
  rewritten: number | null
  /** Null: it was not opened. */
  doc: SampledDocument | null
  /** Of one that was not opened, what it is taken for. */
  imputed?: SampledDocument
}

/** Sizes of a value that was opened. `raw`: its binary form, uncompressed; `text`: its text. */
export interface SampledDocument {
  raw: number
  text: number
  /** Null: it has no field that phase 1 takes. */
  fieldRaw: number | null
  fieldText: number | null
  /** Of what is left after phase 1, with its pointer. */
  restRaw: number
  restText: number
  /** What stays after phase 2. */
  envelopeRaw: number
  isScalar: boolean
  /** Its text was not rendered: sizes of it are those of its binary form. */
  longNumbers: boolean
}

export interface Sample {
  rows: SampledRow[]
  /** With at least one row. */
  pagesSeen: number
  /** Of the table, the part that was asked for. */
  share: number
  opened: number
  openedBytes: number
  /** Null: all that was asked for was read. */
  stoppedBy: 'time' | 'bytes' | null
}

/** A value stored in more is not opened. */
export const openableBytes = 256 * 1024
/** A small table is read whole, in one statement. */
const wholePages = 500
const roundPages = 200
const mostRows = 50_000
/** Where a round takes too long. */
const fewPages = 20

/**
 * In rounds, each with pages from all over the table, so that whatever ends it early leaves a fair sample. The first has half of
 * the time. If it takes longer, fewer pages are read and nothing is opened.
 */
export async function sampleTable(
  db: Queryable,
  facts: TableFacts,
  source: DescribedSource | null,
  times: TimeColumns,
  limits: SampleLimits,
): Promise<Sample> {
  const started = performance.now()
  const leftMs = () => limits.timeoutMs - (performance.now() - started)
  const sql = roundSql(facts, source, times)
  const pages = Math.max(1, facts.pages)
  const percentOf = (count: number) => Math.min(100, (100 * count) / pages)
  const isSmall = pages <= wholePages || (facts.rowsByStatistics ?? mostRows) < mostRows
  const isWhole = isSmall && pages <= limits.pages
  const rounds = isWhole ? 1 : Math.max(1, Math.ceil(Math.min(limits.pages, pages) / roundPages))
  const sample: Sample = { rows: [], pagesSeen: 0, share: 0, opened: 0, openedBytes: 0, stoppedBy: null }
  const seen = new Set<string>()
  const take = async (percent: number, seed: number, openBytes: number, timeoutMs: number) => {
    const rows = await readRound(db, sql, [percent, seed, openBytes, openableBytes], timeoutMs)
    const before = new Set(seen)
    for (const row of rows) {
      if (before.has(row.page)) continue
      seen.add(row.page)
      sample.rows.push(row)
      const stored = row.sizes[facts.jsonColumn] ?? null
      if (row.doc !== null) {
        sample.opened++
        sample.openedBytes += stored ?? 0
      } else if (source !== null && stored !== null && stored <= openableBytes) sample.stoppedBy ??= 'bytes'
    }
    sample.share = 1 - (1 - sample.share) * (1 - percent / 100)
  }
  for (let round = 0; round < rounds; round++) {
    if (round > 0 && (leftMs() <= 0 || sample.rows.length > mostRows)) {
      if (leftMs() <= 0) sample.stoppedBy = 'time'
      break
    }
    const openBytes = (limits.bytes - sample.openedBytes) / (rounds - round)
    try {
      const percent = isWhole ? 100 : percentOf(Math.min(roundPages, limits.pages))
      await take(percent, round + 1, openBytes, round === 0 ? limits.timeoutMs / 2 : leftMs())
    } catch (cause) {
      if (sqlState(cause) !== '57014') throw cause
      sample.stoppedBy = 'time'
      if (round === 0) await take(percentOf(fewPages), 1, 0, leftMs())
      break
    }
  }
  return { ...sample, rows: imputeUnopened(sample.rows, facts.jsonColumn), pagesSeen: seen.size }
}

async function readRound(
  db: Queryable,
  sql: string,
  values: number[],
  timeoutMs: number,
): Promise<SampledRow[]> {
  await db.query(`savepoint round; set local statement_timeout = ${Math.max(1, Math.floor(timeoutMs))}`)
  try {
    const { rows } = await db.query<SampledRow>({ text: sql, values })
    return rows
  } catch (error) {
    await db.query('rollback to savepoint round')
    throw error
  }
}

/** What is in a column, by its type; one of another type is not opened. */
const openable: Record<string, 'jsonb' | 'json' | 'bytes'> = {
  jsonb: 'jsonb',
  json: 'json',
  text: 'bytes',
  'character varying': 'bytes',
  bytea: 'bytes',
}

/** A stub: two pointer names, an id and a kind. */
const stubBytes = 130

function roundSql(facts: TableFacts, source: DescribedSource | null, times: TimeColumns): string {
  const column = ident(facts.columns[facts.jsonColumn]?.name ?? '')
  const valueType = source === null ? null : (openable[facts.jsonType] ?? null)
  const isJsonb = valueType === 'jsonb'
  const sizes = facts.columns.map(c => `pg_column_size(m.${ident(c.name)})`).join(', ')
  const { tenantColumn = null, tenantPath = [] } = source ?? {}
  const last = tenantPath.length === 0 ? 'm' : `p${tenantPath.length}`
  const hasTenant =
    tenantColumn !== null && (tenantPath.length > 0 || facts.columns.some(c => c.name === tenantColumn))
  const tenant = hasTenant ? `${last}.${ident(tenantColumn)}::text` : 'null::text'
  const join = tenantPath
    .map(
      ({ parentSql, parentKeyColumn, column: refers }, i) =>
        `left join ${parentSql} p${i + 1} on p${i + 1}.${ident(parentKeyColumn)} = ${i === 0 ? 'm' : `p${i}`}.${ident(refers)}`,
    )
    .join(' ')
  const time = (name: string | null) =>
    name === null ? 'null::float8' : `extract(epoch from m.${ident(name)})::float8`
  const mayOpen = `p.so_far <= $3::float8 and pg_column_size(p.stored) <= $4::int8`
  const rows = facts.partitions > 0 ? facts.tableSql : `only ${facts.tableSql}`
  return `
    with picked as (
      select m.tableoid::text || '/' || split_part(m.ctid::text, ',', 1) as page, array[${sizes}] as sizes,
             pg_column_compression(m.${column}) is not null as compressed, ${tenant} as tenant, ${time(times.written)} as time, ${time(times.rewritten)} as rewritten, m.${column} as stored,
             sum(case when pg_column_size(m.${column}) <= $4::int8 then pg_column_size(m.${column}) end) over (order by hashtext(m.ctid::text), m.tableoid, m.ctid rows unbounded preceding) as so_far
        from ${rows} m tablesample system ($1::float8) repeatable ($2::float8) ${join}
       where $3::float8 is not null
    ),
    opened as (
      select p.*, ${isJsonb ? `case when ${mayOpen} then ${documentSql('p.stored')} end` : 'null::jsonb'} as doc,
             ${valueType === null || isJsonb ? 'null::int8' : `case when ${mayOpen} then octet_length(p.stored${valueType === 'json' ? '::text' : ''}) end`} as bytes
        from picked p offset 0
    ),
    fields as (
      select o.*, case when ${hasLongNumbersSql('o.doc')} then ${textBytesBoundSql('o.doc')} > ${daemonDefaults.streamThresholdBytes} else false end as long, ${source === null ? 'null::jsonb' : fieldOf(source, 'o.doc')} as field from opened o offset 0
    ),
    rests as (
      select f.*, ${source === null ? 'f.doc' : restOf(source, 'f.doc', 'f.field')} as rest from fields f offset 0
    )
    select r.page, r.sizes, r.compressed, r.tenant, r.time, r.rewritten,
           case when r.doc is not null then json_build_object(
             'raw', pg_column_size(r.doc), 'text', ${textOf('r.doc')},
             'fieldRaw', pg_column_size(r.field), 'fieldText', ${textOf('r.field')},
             'restRaw', pg_column_size(r.rest), 'restText', ${textOf('r.rest')},
             'envelopeRaw', ${source === null ? '0' : `pg_column_size(${envelopeOf(source, 'r.rest')})`},
             'isScalar', jsonb_typeof(r.doc) not in ('object', 'array'), 'longNumbers', r.long)
           when r.bytes is not null then json_build_object(
             'raw', r.bytes + 4, 'text', r.bytes, 'restRaw', r.bytes + 4, 'restText', r.bytes, 'fieldRaw', null, 'fieldText', null,
             'envelopeRaw', ${stubBytes}, 'isScalar', false, 'longNumbers', false) end as doc
      from rests r`
}

const textOf = (value: string) =>
  `case when r.long then pg_column_size(${value}) else octet_length(${value}::text) end`

/** As phase 1 takes it (src/source/expressions.ts), of a row that holds no pointer yet. */
function fieldOf({ phase1Field }: DescribedSource, doc: string): string {
  if (phase1Field === null) return 'null::jsonb'
  const own = `(${doc} -> ${literal(phase1Field)})`
  return `case when jsonb_typeof(${doc}) = 'object' and jsonb_typeof(${own}) in ('array', 'object')
    and ${own} not in ('[]'::jsonb, '{}'::jsonb) then ${own} end`
}

const anyId = `'00000000-0000-0000-0000-000000000000'::text`

function restOf({ phase1Field }: DescribedSource, doc: string, field: string): string {
  if (phase1Field === null) return doc
  return `case when ${field} is null then ${doc} else (${doc} - ${literal(phase1Field)}) || jsonb_build_object(
    ${literal(fieldRefKey(phase1Field))}, ${anyId}, ${literal(fieldCountKey(phase1Field))},
    case when jsonb_typeof(${field}) = 'array' then jsonb_array_length(${field}) end) end`
}

function envelopeOf(source: DescribedSource, rest: string): string {
  if (source.mode !== 'document') return `repeat('x', ${stubBytes})`
  const pointers =
    source.phase1Field === null ? [] : [fieldRefKey(source.phase1Field), fieldCountKey(source.phase1Field)]
  const keys = [...source.envelopeKeys, ...pointers].map(literal).join(', ')
  return `coalesce((select jsonb_object_agg(k, ${rest} -> k) from unnest(array[${keys}]::text[]) k
      where jsonb_typeof(${rest}) = 'object' and ${rest} ? k and pg_column_size(${rest} -> k) <= ${source.envelopeValueLimit}), '{}')
    || jsonb_build_object(${literal(metadataRefKey)}, ${anyId}, ${literal(metadataKindKey)}, ${literal(source.phase2Kind)}::text)`
}
