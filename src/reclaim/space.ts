// How much a rewrite of a table would give back to the disk. Nothing is written.
import type pg from 'pg'
import type { Queryable } from '../db/pool.ts'
import { sqlState } from '../errors.ts'
import { weighRows } from '../estimate/leaving.ts'
import { readTableFacts, type TableFacts } from '../estimate/relation.ts'
import { sampleTable } from '../estimate/sample.ts'
import { explainReading } from '../estimate/trouble.ts'
import { rewrittenBytes } from '../estimate/weigh.ts'

/** A reader waits for nobody but ACCESS EXCLUSIVE. */
const lockTimeoutMs = 2000

export interface Space {
  tableSql: string
  partitions: number
  /** Heap with TOAST, and indexes, as they are now. */
  now: { table: number; indexes: number }
  /** After a rewrite, about. */
  rewritten: { table: number; indexes: number }
  /** Dead rows among what would come back: a plain VACUUM makes them free space. Null: not known. */
  deadBytes: number | null
  /** How `rewritten.table` was found. */
  method: 'pgstattuple_approx' | 'sample'
  /** Why it was not by pgstattuple_approx; and how large the sample was. */
  note: string
  attached: Attached[]
}

interface Attached {
  column: string
  /** Rows that are known and have not left: more space when they do. Null: not known. */
  queued: number | null
}

/** In one read-only transaction. @throws {LighterError} `table_not_found`, `not_a_table`, `table_locked`, `select_missing`, `reading_timed_out` */
export async function measureSpace(client: pg.Client, table: string, timeoutMs: number): Promise<Space> {
  await client.query('begin isolation level repeatable read read only')
  try {
    await client.query(
      `set local statement_timeout = ${timeoutMs}; set local lock_timeout = ${lockTimeoutMs}`,
    )
    const facts = await readTableFacts(client, table, null)
    const found = await freeByExtension(client, facts, timeoutMs / 2)
    const sample = await sampleTable(
      client,
      facts,
      null,
      { written: null, rewritten: null },
      {
        pages: 1000,
        bytes: 0,
        timeoutMs: timeoutMs / 2,
      },
    )
    const attached = await readAttached(client, facts)
    await client.query('commit')
    const { rows } = weighRows(facts, sample)
    const bySample = rewrittenBytes(facts, rows)
    const now = { table: facts.bytes.heap + facts.bytes.toast, indexes: facts.bytes.indexes }
    const sampled = `${sample.rows.length} rows on ${sample.pagesSeen} of ${facts.pages} pages`
    const common = { tableSql: facts.tableSql, partitions: facts.partitions, now, attached }
    const indexes = Math.min(now.indexes, bySample.indexes)
    if (typeof found === 'string')
      return {
        ...common,
        rewritten: { table: Math.min(now.table, bySample.table), indexes },
        deadBytes: null,
        method: 'sample',
        note: `${found}; by the lengths of ${sampled}`,
      }
    return {
      ...common,
      rewritten: { table: Math.max(0, now.table - found.free - found.dead), indexes },
      deadBytes: found.dead,
      method: 'pgstattuple_approx',
      note: `free space and dead rows of heap and TOAST; indexes by the lengths of ${sampled}`,
    }
  } catch (error) {
    await client.query('rollback').catch(() => undefined)
    throw explainReading(error, table, { timeoutMs, lockTimeoutMs })
  }
}

/** @returns why it cannot be asked */
async function freeByExtension(
  db: Queryable,
  facts: TableFacts,
  timeoutMs: number,
): Promise<{ free: number; dead: number } | string> {
  const { rows: installed } = await db.query<{ name: string; may: boolean }>(
    `select p.oid::regproc::text as name, has_function_privilege(p.oid, 'execute') as may
       from pg_extension e join pg_depend d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.classid = 'pg_proc'::regclass
       join pg_proc p on p.oid = d.objid
      where e.extname = 'pgstattuple' and p.proname = 'pgstattuple_approx'`,
  )
  const [approx] = installed
  if (approx === undefined) return 'the extension pgstattuple is not installed'
  if (!approx.may) return 'this login may not call pgstattuple_approx (grant pg_stat_scan_tables)'
  try {
    await db.query(`savepoint approx; set local statement_timeout = ${Math.floor(timeoutMs)}`)
    // A page that is not visible to all is read: of a table that is written much, all of them.
    const { rows } = await db.query<{ free: number; dead: number }>({
      text: `select coalesce(sum(a.approx_free_space), 0)::float8 as free, coalesce(sum(a.dead_tuple_len), 0)::float8 as dead
               from (select relid as oid from pg_partition_tree($1::oid::regclass) where isleaf union select $1::oid) t
               join pg_class c on c.oid = t.oid and c.relkind <> 'p'
              cross join lateral unnest(array_remove(array[c.oid, nullif(c.reltoastrelid, 0)], null)) r(oid)
              cross join lateral ${approx.name}(r.oid::regclass) a`,
      values: [facts.oid],
    })
    return rows[0] ?? 'pgstattuple_approx answered nothing'
  } catch (error) {
    if (!/^(57014|42501|0A000)$/.test(sqlState(error) ?? '')) throw error
    await db.query('rollback to savepoint approx')
    return sqlState(error) === '57014'
      ? 'pgstattuple_approx took too long'
      : `pgstattuple_approx failed (${sqlState(error)})`
  }
}

/** Columns of it that are attached, where this login may know. */
async function readAttached(db: Queryable, facts: TableFacts): Promise<Attached[]> {
  const { rows: allowed } = await db.query<{ sources: boolean | null; queue: boolean | null }>(
    `select has_schema_privilege(n.oid, 'usage') and has_table_privilege(to_regclass('lighter.sources')::oid, 'select') as sources,
            has_table_privilege(to_regclass('lighter.jobs')::oid, 'select') as queue
       from pg_namespace n where n.nspname = 'lighter'`,
  )
  if (allowed[0]?.sources !== true) return []
  const { rows } = await db.query<Attached>({
    text: `select s.json_column::text as column, ${allowed[0].queue === true ? '(select count(*)::int from (select from lighter.jobs j where j.source_id = s.id limit 100000) q)' : 'null::int'} as queued
             from lighter.sources s where s.relation = $1::oid::regclass order by 1`,
    values: [facts.oid],
  })
  return rows
}
