// About how many rows a table has, for the time that is left.
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
