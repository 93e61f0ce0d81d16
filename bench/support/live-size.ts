// Bytes of schema lighter by live content: each table is written anew first, since a simulation leaves dead rows that no
// vacuum had the time to make room of.
import type pg from 'pg'

export interface LiveSize {
  /** Tables, their indexes and TOAST, but for what waits. */
  catalogue: number
  /** lighter.waiting. */
  waiting: number
}

export async function liveSize(admin: pg.Pool): Promise<LiveSize> {
  const { rows: tables } = await admin.query<{ name: string }>(
    `select oid::regclass::text as name from pg_class where relnamespace = 'lighter'::regnamespace and relkind = 'r'`,
  )
  for (const { name } of tables) await admin.query(`vacuum full ${name}`)
  const { rows } = await admin.query<LiveSize>(
    `select coalesce(sum(pg_total_relation_size(oid)) filter (where oid <> 'lighter.waiting'::regclass), 0)::float8 as catalogue,
            pg_total_relation_size('lighter.waiting')::float8 as waiting
       from pg_class where relnamespace = 'lighter'::regnamespace and relkind in ('r', 'm', 'S')`,
  )
  return rows[0] ?? { catalogue: 0, waiting: 0 }
}
