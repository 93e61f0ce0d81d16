// The table that is estimated, as the system's catalogue and the sizes of its files tell: no row is read.
import type { Queryable } from '../db/pool.ts'
import { LighterError, sqlState } from '../errors.ts'

interface TableColumn {
  name: string
  /** Fixed length in bytes, or -1. */
  length: number
  alignment: 1 | 2 | 4 | 8
  /** May be moved to TOAST. */
  toastable: boolean
}

interface TableIndex {
  name: string
  bytes: number
  /** Positions in `columns` of a B-tree without expressions and conditions; null: another kind, whose size is taken as it is. */
  columns: number[] | null
}

export interface TableFacts {
  oid: number
  /** Quoted and qualified. */
  tableSql: string
  /** Heap, TOAST and indexes, all partitions together, as their files are now. */
  bytes: { heap: number; toast: number; indexes: number }
  pages: number
  pageBytes: number
  fillfactor: number
  partitions: number
  columns: TableColumn[]
  /** Columns that were dropped still take their place in the null bitmap. */
  attributes: number
  hasDropped: boolean
  indexes: TableIndex[]
  /** Position in `columns`. */
  jsonColumn: number
  jsonType: string
  /** Columns with times, the likeliest first. */
  timeColumns: string[]
  /** When it was analysed last; null: never. */
  analyzedAt: Date | null
  rowsByStatistics: number | null
  /** Row-level security applies to this login: it may not see all rows. */
  rowsHidden: boolean
}

const kinds: Record<string, string> = {
  v: 'a view',
  m: 'a materialized view',
  f: 'a foreign table',
  i: 'an index',
  S: 'a sequence',
  c: 'a type',
  t: 'a TOAST table',
}

/**
 * In a transaction of the caller's. The table is found by the login's own search_path; from then on names are Postgres's own,
 * since a function that somebody has put into schema public may fit an argument better, and would run as this login.
 * @param column null: none is meant
 * @throws {LighterError} `table_not_found`, `not_a_table`, `column_not_found`
 */
export async function readTableFacts(
  db: Queryable,
  table: string,
  column: string | null,
): Promise<TableFacts> {
  const found = await findTable(db, table)
  await db.query('set local search_path = pg_catalog, pg_temp')
  const { rows } = await db.query<
    Omit<TableFacts, 'jsonColumn' | 'jsonType' | 'columns'> & { columns: (TableColumn & { type: string })[] }
  >({
    text: factsSql,
    values: [found.oid],
  })
  const facts = rows[0]
  if (facts === undefined) throw notFound(table)
  const jsonColumn = column === null ? 0 : facts.columns.findIndex(c => c.name === column)
  if (jsonColumn === -1)
    throw new LighterError('column_not_found', `--column: ${facts.tableSql} has no column "${column}"`, {
      hint: `Name one of: ${facts.columns.map(c => c.name).join(', ')}`,
    })
  return { ...facts, jsonColumn, jsonType: facts.columns[jsonColumn]?.type ?? '' }
}

async function findTable(db: Queryable, table: string): Promise<{ oid: number }> {
  let rows: { oid: number; kind: string; name: string }[]
  try {
    ;({ rows } = await db.query<{ oid: number; kind: string; name: string }>({
      text: `select c.oid::int8::float8 as oid, c.relkind as kind, c.oid::regclass::text as name from pg_class c where c.oid = to_regclass($1)`,
      values: [table],
    }))
  } catch (cause) {
    // A name that is spelt as no name can be.
    if (sqlState(cause) !== '42602' && sqlState(cause) !== '42601') throw cause
    throw notFound(table)
  }
  const [row] = rows
  if (row === undefined) throw notFound(table)
  if (row.kind !== 'r' && row.kind !== 'p')
    throw new LighterError(
      'not_a_table',
      `${row.name} is ${kinds[row.kind] ?? 'no table'}: nothing can be taken off it`,
      {
        hint: 'Estimate the table that it reads from.',
      },
    )
  return row
}

const notFound = (table: string) =>
  new LighterError('table_not_found', `there is no table ${table} that this login can see`, {
    hint: 'Name it with its schema, such as public.conversation_messages. Has the login usage on the schema?',
  })

const factsSql = `
  with parts as (
    select c.oid, c.reltoastrelid, c.reltuples, c.relkind
      from pg_class c
     where c.oid = $1::oid or c.oid in (select relid from pg_partition_tree($1::oid::regclass))
  ),
  stored as (select * from parts where relkind <> 'p')
  select c.oid::int8::float8 as oid, format('%I.%I', n.nspname, c.relname) as "tableSql",
         (select json_build_object(
            'heap', coalesce(sum(pg_relation_size(s.oid)), 0),
            'toast', coalesce(sum(case when s.reltoastrelid <> 0 then pg_total_relation_size(s.reltoastrelid) end), 0)
                       + coalesce(sum(pg_relation_size(s.oid, 'fsm') + pg_relation_size(s.oid, 'vm')), 0),
            'indexes', coalesce(sum(pg_indexes_size(s.oid)), 0)) from stored s) as bytes,
         (select coalesce(sum(pg_relation_size(s.oid) / current_setting('block_size')::int), 0)::float8 from stored s) as pages,
         current_setting('block_size')::int as "pageBytes",
         coalesce((select o.option_value::int from pg_options_to_table(c.reloptions) o where o.option_name = 'fillfactor'), 100) as fillfactor,
         (select count(*)::int from stored s where s.oid <> c.oid) as partitions,
         (select json_agg(json_build_object('name', a.attname, 'length', a.attlen, 'type', format_type(coalesce(nullif(t.typbasetype, 0), t.oid), null),
                   'alignment', case a.attalign when 'c' then 1 when 's' then 2 when 'i' then 4 else 8 end,
                   'toastable', a.attlen = -1 and a.attstorage <> 'p') order by a.attnum)
            from pg_attribute a join pg_type t on t.oid = a.atttypid where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
         c.relnatts::int as attributes,
         exists (select from pg_attribute a where a.attrelid = c.oid and a.attnum > 0 and a.attisdropped) as "hasDropped",
         (select coalesce(json_agg(json_build_object('name', i.indexrelid::regclass, 'bytes', pg_relation_size(i.indexrelid),
                   'columns', case when am.amname = 'btree' and i.indexprs is null and i.indpred is null then (
                      -- A partition may have its columns in another order.
                      select json_agg((select count(*) - 1 from pg_attribute a, pg_attribute own
                                        where own.attrelid = i.indrelid and own.attnum = k.attnum
                                          and a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                                          and a.attnum <= (select n.attnum from pg_attribute n where n.attrelid = c.oid and n.attname = own.attname)) order by k.place)
                        from unnest(i.indkey::int2[]) with ordinality k(attnum, place)) end)), '[]')
            from pg_index i join stored s on s.oid = i.indrelid
            join pg_class x on x.oid = i.indexrelid join pg_am am on am.oid = x.relam) as indexes,
         array(select a.attname::text from pg_attribute a
                where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                  and a.atttypid in ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype)
                order by a.attname in ('created_at', 'inserted_at', 'createdat', 'created') desc,
                         a.attname like '%update%' or a.attname like '%modif%' or a.attname like '%delete%', a.attnum) as "timeColumns",
         (select max(greatest(t.last_analyze, t.last_autoanalyze)) from pg_stat_all_tables t join parts s on s.oid = t.relid) as "analyzedAt",
         (select case when bool_and(s.reltuples >= 0) then sum(s.reltuples)::float8 end from stored s) as "rowsByStatistics",
         row_security_active(c.oid) as "rowsHidden"
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
   where c.oid = $1::oid`
