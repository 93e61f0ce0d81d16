// How large a table is: about how many rows, for the time that is left; what a sample of it is.
import type { Queryable } from '../db/pool.ts'

/** As the last ANALYZE or VACUUM counted, partitions together; null when there was none. */
export async function estimateRows(db: Queryable, tableSql: string): Promise<number | null> {
  const { rows } = await db.query<{ estimate: number | null }>({
    text: `select case when bool_and(c.reltuples >= 0) then sum(c.reltuples)::float8 end as estimate
             from pg_class c
            where c.relkind <> 'p'
              -- which knows nothing of a table without partitions
              and c.oid in (select $1::text::regclass union all select relid from pg_partition_tree($1::text::regclass))`,
    values: [tableSql],
  })
  return rows[0]?.estimate ?? null
}

/** All artifacts of all tenants, from the sums of the reports. */
export async function countArtifacts(db: Queryable): Promise<number> {
  const { rows } = await db.query<{ n: number }>({
    text: 'select coalesce(sum(artifacts), 0)::float8 as n from lighter.storage_total_entries',
    values: [],
  })
  return rows[0]?.n ?? 0
}

/**
 * What part of a table, in percent, is about so many pages of it, chosen at random: for `tablesample system`. All of
 * it where it has no more. Pages are asked of the file, since the catalogue knows nothing until the first analyze.
 */
export async function samplePercent(db: Queryable, tableSql: string, pages: number): Promise<number> {
  const { rows } = await db.query<{ pages: number }>({
    text: `select coalesce(sum(pg_relation_size(c.oid)) / current_setting('block_size')::int, 0)::float8 as pages
             from pg_class c
            where c.oid in (select $1::text::regclass union all select relid from pg_partition_tree($1::text::regclass))`,
    values: [tableSql],
  })
  return Math.min(100, (100 * pages) / Math.max(1, rows[0]?.pages ?? 1))
}
