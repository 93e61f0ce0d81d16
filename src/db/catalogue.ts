// The live schema against the one that this version makes: `sql/expected-catalogue.json`, written by `npm run docs` from
// a fresh database. Numbered migrations are applied once, so what somebody changes afterwards nobody else would notice.
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { z } from 'zod'
import type { Queryable } from './pool.ts'

const sqlDir = path.join(import.meta.dirname, '..', '..', 'sql')
export const expectedCataloguePath = path.join(sqlDir, 'expected-catalogue.json')

const entrySchema = z.object({
  kind: z.string(),
  object: z.string(),
  definition: z.string(),
  versioned: z.boolean(),
})
const expectedSchema = z.object({ postgres: z.number(), entries: z.array(entrySchema) })

type Entry = z.infer<typeof entrySchema>
const nameOf = (entry: Entry) => `${entry.kind} ${entry.object}`
export type Catalogue = z.infer<typeof expectedSchema>

/** One object that is not as it should be. */
export interface Difference {
  object: string
  found: string
  /** What brings it back: the functions, views, policies and grants once more, a statement, or a person. */
  mend: { by: 'files' } | { by: 'statement'; sql: string } | { by: 'hand'; advice: string }
}

export async function readCatalogue(db: Queryable): Promise<Catalogue> {
  const text = await readFile(path.join(sqlDir, 'catalogue.sql'), 'utf8')
  const entries = await readQualified(db, text, entrySchema)
  // Not by the database: its collation is its own.
  entries.sort((a, b) => (nameOf(a) < nameOf(b) ? -1 : 1))
  const { rows } = await db.query<{ major: number }>(
    `select current_setting('server_version_num')::int / 10000 as major`,
  )
  return { postgres: rows[0]?.major ?? 0, entries }
}

/** Names come out qualified: a query of two statements is one transaction, in which the path is another. */
async function readQualified<T>(db: Queryable, sql: string, row: z.ZodType<T>): Promise<T[]> {
  const answered: unknown = await db.query(
    `select set_config('search_path', 'pg_catalog, pg_temp', true); ${sql}`,
  )
  const last = z
    .array(z.object({ rows: z.array(z.unknown()) }))
    .parse(answered)
    .at(-1)
  return z.array(row).parse(last?.rows)
}

/** The live schema as text, one object a line, so that a change of one is a change of its line. */
export function renderCatalogue({ postgres, entries }: Catalogue): string {
  return `{"postgres": ${postgres}, "entries": [\n${entries.map(entry => JSON.stringify(entry)).join(',\n')}\n]}\n`
}

/** What `lighter doctor` and `lighter migrate` ask. */
export async function compareCatalogue(db: Queryable): Promise<Difference[]> {
  const expected = expectedSchema.parse(JSON.parse(await readFile(expectedCataloguePath, 'utf8')))
  const live = await readCatalogue(db)
  return [...differences(expected, live), ...(await findContradictions(db))]
}

function differences(expected: Catalogue, live: Catalogue): Difference[] {
  const comparable = (entry: Entry) => !entry.versioned || expected.postgres === live.postgres
  const found = new Map(live.entries.map(entry => [nameOf(entry), entry]))
  const wanted = new Map(expected.entries.filter(comparable).map(entry => [nameOf(entry), entry]))
  const missing = [...wanted.values()].flatMap(entry => {
    const is = found.get(nameOf(entry))
    return is?.definition === entry.definition ? [] : [differing(entry, is)]
  })
  const extra = live.entries
    .filter(entry => comparable(entry) && !wanted.has(nameOf(entry)))
    .flatMap(entry => unknown(entry))
  return [...missing, ...extra]
}

/** Made by files that are applied again as a whole. */
const fromFiles = new Set(['function', 'view', 'policy', 'row-level security', 'grant', 'trigger'])

function differing(entry: Entry, is: Entry | undefined): Difference {
  const object = `${entry.kind} ${entry.object}`
  const found = is === undefined ? 'is missing' : `is ${is.definition}, not ${entry.definition}`
  if (fromFiles.has(entry.kind))
    return { object, found: is === undefined ? found : 'differs', mend: { by: 'files' } }
  const sql = statementFor(entry, is)
  return {
    object,
    found,
    mend: sql.safe ? { by: 'statement', sql: sql.text } : { by: 'hand', advice: sql.text },
  }
}

/** @returns the statement that makes the object as it should be; `safe`: no data can be lost by it */
function statementFor(entry: Entry, is: Entry | undefined): { text: string; safe: boolean } {
  const { object, definition } = entry
  if (entry.kind === 'index')
    return {
      text: is === undefined ? `${definition};` : `drop index ${object}; ${definition};`,
      safe: true,
    }
  if (entry.kind === 'constraint') {
    const [table = '', name = ''] = object.split(': ')
    const drop = is === undefined ? '' : `alter table ${table} drop constraint ${name}; `
    return { text: `${drop}alter table ${table} add constraint ${name} ${definition};`, safe: true }
  }
  const [schema = '', table = '', column = ''] = object.split('.')
  const alter = `alter table ${schema}.${table}`
  if (is === undefined) return { text: `${alter} add column ${column} ${definition};`, safe: true }
  const type = definition.replace(/ not null.*| default .*| generated .*/, '')
  return {
    text: `${alter} alter column ${column} type ${type}; then make it "${definition}"`,
    safe: false,
  }
}

/** What is there and should not be, where it can do harm. */
function unknown({ kind, object, definition }: Entry): Difference[] {
  const difference = (found: string, mend: Difference['mend']): Difference[] => [
    { object: `${kind} ${object}`, found, mend },
  ]
  const [table = '', name = ''] = object.split(': ')
  switch (kind) {
    case 'grant':
      return difference('was not given by pg-lighter', { by: 'files' })
    case 'row-level security':
    case 'policy':
      return difference('was not made by pg-lighter', {
        by: 'hand',
        advice: `drop policy ${name} on ${table};`,
      })
    case 'trigger':
      return difference('was not made by pg-lighter', {
        by: 'hand',
        advice: `drop trigger ${name} on ${table};`,
      })
    case 'constraint':
      return difference('was not made by pg-lighter', {
        by: 'hand',
        advice: `alter table ${table} drop constraint ${name};`,
      })
    case 'index':
      // One that is not unique refuses nothing.
      return object.startsWith('lighter.') && definition.startsWith('CREATE UNIQUE')
        ? difference('was not made by pg-lighter', { by: 'hand', advice: `drop index ${object};` })
        : []
    case 'owner':
      return difference(`belongs to ${definition}`, {
        by: 'hand',
        advice: `alter ${object.endsWith(')') ? 'function' : 'table'} ${object} owner to <the owner of schema lighter>;`,
      })
    case 'column':
      // Null, or a default: nobody writes it, and nobody minds.
      return object.startsWith('lighter.') &&
        definition.includes('not null') &&
        !definition.includes('default')
        ? difference('was not made by pg-lighter', { by: 'hand', advice: `drop the column ${object}` })
        : []
    default:
      return []
  }
}

/** What on lighter.loose_artifacts, which may be the application's own table, contradicts what we write into it. */
async function findContradictions(db: Queryable): Promise<Difference[]> {
  const rows = await readQualified(db, contradictionsSql, contradictionSchema)
  return rows.map(({ object, found, sql, safe }) => ({
    object,
    found,
    mend: safe ? { by: 'statement', sql } : { by: 'hand', advice: sql },
  }))
}

const contradictionSchema = z.object({
  object: z.string(),
  found: z.string(),
  sql: z.string(),
  safe: z.boolean(),
})

const contradictionsSql = `
    with refs as (select to_regclass('lighter.loose_artifacts')::oid as oid)
    select 'index ' || x.indexrelid::regclass as object,
           'takes two artifacts of one object for the same' as found,
           case when c.conname is not null then format('alter table lighter.loose_artifacts drop constraint %I;', c.conname)
                else format('drop index %s;', x.indexrelid::regclass) end as sql,
           -- the original's
           (select array_agg(a.attname::text order by a.attname) from pg_attribute a
             where a.attrelid = x.indrelid and a.attnum = any (x.indkey::int2[]))
             in (array['r2_key', 'tenant_id'], array['r2_key']) and 0 <> all (x.indkey::int2[]) as safe
      from refs
      join pg_index x on x.indrelid = refs.oid
      left join pg_constraint c on c.conindid = x.indexrelid and c.contype in ('u', 'x')
     where (x.indisunique or c.contype = 'x') and not x.indisprimary
       and not exists (select from pg_attribute a
                        where a.attrelid = refs.oid and a.attname = 'id' and a.attnum = any (x.indkey::int2[]))
    union all
    select 'column lighter.loose_artifacts.' || quote_ident(a.attname), 'demands a value that pg-lighter does not have',
           format('alter table lighter.loose_artifacts alter column %I drop not null;', a.attname), false
      from refs join pg_attribute a on a.attrelid = refs.oid
     where a.attnum > 0 and not a.attisdropped and a.attnotnull and not a.atthasdef and a.attidentity = ''
       and a.attname not in ('id', 'tenant_id', 'kind', 'entity_type', 'entity_id', 'r2_key', 'content_type',
                             'size_bytes', 'sha256', 'created_at')
    union all
    select 'rule ' || quote_ident(r.rulename) || ' on lighter.loose_artifacts', 'rewrites our statements',
           format('drop rule %I on lighter.loose_artifacts;', r.rulename), false
      from refs join pg_rewrite r on r.ev_class = refs.oid
    union all
    select 'trigger ' || quote_ident(t.tgname) || ' on lighter.loose_artifacts', 'may change or refuse what pg-lighter writes',
           format('drop trigger %I on lighter.loose_artifacts;', t.tgname), false
      from refs join pg_trigger t on t.tgrelid = refs.oid
     where not t.tgisinternal and (t.tgtype & 2) <> 0 and t.tgenabled <> 'D'`
