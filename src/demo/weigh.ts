// What the database takes and costs, against the same rows with their payloads inline. Nothing of ours is left out.
import pg from 'pg'
import { readSections, type Savings, sections } from '../reports/read.ts'

/** The table, its indexes and TOAST, and all tables of schema lighter with theirs. */
export interface DemoBalance {
  /** The hydrated rows, freshly loaded into a table of their own. */
  inline_bytes_measured: number
  /** After a plain VACUUM: the table and everything of pg-lighter. */
  disk_bytes_measured: number
  disk_table_bytes_measured: number
  disk_ours_bytes_measured: number
  /** Of disk_bytes_measured, what is free for new rows inside the files. By the free space map, or the estimate of lighter.savings; null: not known. */
  reusable_bytes: number | null
  reusable_bytes_source: 'measured' | 'estimated' | 'not known'
  /** What VACUUM FULL of all these tables gave back. */
  rewrite_freed_bytes_measured: number
  /** After it. */
  rewritten_bytes_measured: number
  rewritten_table_bytes_measured: number
  rewritten_ours_bytes_measured: number
  /** All tables of pg-lighter before the first row was offloaded: what does not grow. */
  empty_ours_bytes_measured: number
  /** What the table lost, by byte of payload that left: lighter.prices.inline_ratio, measured with these rows. */
  inline_ratio_measured: number | null
  /** By lighter.prices: the database, after the rewrite, for 90 days, with the bucket and the PUTs; and inline. */
  usd_90_days: number
  inline_usd_90_days: number
  pays_usd: boolean | null
  pays_bytes: boolean | null
}

interface Stored {
  emptyOursBytes: number
  payloadBytes: number
  objectBytes: number
  puts: number
}

const messages = 'public.conversation_messages'
/** How long payloads are kept that pay: a PUT is paid once, the disk every month. */
const keptMonths = 3

/** The table is rewritten by it. @param plainTable holds the hydrated rows */
export async function weighDatabase(db: pg.Pool, plainTable: string, stored: Stored): Promise<DemoBalance> {
  const ours = await oursOf(db)
  await db.query(`vacuum (analyze) ${[plainTable, messages, ...ours].join(', ')}`)
  const inline = await sizeOf(db, [plainTable])
  const disk = { table: await sizeOf(db, [messages]), ours: await sizeOf(db, ours) }
  const reusable = await reusableBytes(db, [messages, ...ours])

  await db.query(`vacuum (full) ${[messages, ...ours].join(', ')}`)
  const rewritten = { table: await sizeOf(db, [messages]), ours: await sizeOf(db, ours) }
  const bills = await billsOf(db, inline, rewritten.table + rewritten.ours, stored)
  const moved = stored.payloadBytes > 0
  return {
    inline_bytes_measured: inline,
    disk_bytes_measured: disk.table + disk.ours,
    disk_table_bytes_measured: disk.table,
    disk_ours_bytes_measured: disk.ours,
    ...reusable,
    rewrite_freed_bytes_measured: disk.table + disk.ours - rewritten.table - rewritten.ours,
    rewritten_bytes_measured: rewritten.table + rewritten.ours,
    rewritten_table_bytes_measured: rewritten.table,
    rewritten_ours_bytes_measured: rewritten.ours,
    empty_ours_bytes_measured: stored.emptyOursBytes,
    inline_ratio_measured: moved ? (inline - rewritten.table) / stored.payloadBytes : null,
    ...bills,
    pays_usd: moved ? bills.usd_90_days < bills.inline_usd_90_days : null,
    pays_bytes: moved ? rewritten.table + rewritten.ours < inline : null,
  }
}

/** Asked before the first row. */
export const weighOurs = async (db: pg.Pool): Promise<number> => sizeOf(db, await oursOf(db))

async function oursOf(db: pg.Pool): Promise<string[]> {
  const { rows } = await db.query<{ name: string }>(
    `select oid::regclass::text as name from pg_class where relkind = 'r' and relnamespace = 'lighter'::regnamespace`,
  )
  return rows.map(table => table.name)
}

async function sizeOf(db: pg.Pool, tables: string[]): Promise<number> {
  const { rows } = await db.query<{ bytes: number }>(
    'select coalesce(sum(pg_total_relation_size(t::regclass)), 0)::float8 as bytes from unnest($1::text[]) t',
    [tables],
  )
  return rows[0]?.bytes ?? 0
}

type Reusable = Pick<DemoBalance, 'reusable_bytes' | 'reusable_bytes_source'>

/** The extension may not be there, nor ours to create: then as `lighter stats` estimates it. */
async function reusableBytes(db: pg.Pool, tables: string[]): Promise<Reusable> {
  try {
    await db.query('create extension if not exists pg_freespacemap')
    const { rows } = await db.query<{ bytes: number }>(
      `select coalesce(sum(f.avail), 0)::float8 as bytes
         from (select c.oid, c.reltoastrelid from pg_class c join unnest($1::text[]) t on c.oid = t::regclass) c
        cross join lateral (
          select c.oid union all select c.reltoastrelid where c.reltoastrelid <> 0
          union all select i.indexrelid from pg_index i where i.indrelid in (c.oid, c.reltoastrelid)) part(oid)
        cross join lateral pg_freespace(part.oid::regclass) f`,
      [tables],
    )
    return { reusable_bytes: rows[0]?.bytes ?? 0, reusable_bytes_source: 'measured' }
  } catch (error) {
    if (!(error instanceof pg.DatabaseError)) throw error
    const { savings } = await readSections<{ savings: Savings }>(db, { savings: sections.savings })
    const estimate = savings.reusable_bytes_estimated
    return { reusable_bytes: estimate, reusable_bytes_source: estimate === null ? 'not known' : 'estimated' }
  }
}

async function billsOf(db: pg.Pool, inline: number, rewritten: number, stored: Stored) {
  const { rows } = await db.query<{ usd_90_days: number; inline_usd_90_days: number }>(
    `select ($1::float8 / 1e9 * p.database_gb_month * $5 + $2::float8 / 1e9 * p.r2_gb_month * $5
             + $3::float8 / 1e6 * p.r2_class_a_million)::float8 as usd_90_days,
            ($4::float8 / 1e9 * p.database_gb_month * $5)::float8 as inline_usd_90_days
       from lighter.prices p`,
    [rewritten, stored.objectBytes, stored.puts, inline, keptMonths],
  )
  const [bills] = rows
  if (bills === undefined) throw new Error('lighter.prices has no row')
  return bills
}
