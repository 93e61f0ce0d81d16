// What storage costs: the one home of the defaults. The columns of lighter.prices have the same (a test compares them), and
// say where each comes from.
import type { Queryable } from '../db/pool.ts'

/** US dollars. */
export interface Prices {
  /** A GB (10^9 bytes) in the bucket for a month. */
  bucketGbMonth: number
  /** A million class A operations, such as PUT. */
  classAMillion: number
  /** A GB of the database's disk for a month. */
  databaseGbMonth: number
}

/** https://developers.cloudflare.com/r2/pricing/, and disk as Supabase and RDS sell it: docs/operations.md, "Prices". */
export const defaultPrices: Prices = { bucketGbMonth: 0.015, classAMillion: 4.5, databaseGbMonth: 0.125 }

/** Bytes in a row for a byte of payload text, where a value was not opened: the default of lighter.prices.inline_ratio. */
export const defaultInlineRatio = 0.42

/** Those of lighter.prices, where this login may read it; else the defaults. */
export async function readPrices(
  db: Queryable,
): Promise<{ prices: Prices; from: 'lighter.prices' | 'defaults' }> {
  const { rows: allowed } = await db.query<{ yes: boolean | null }>({
    text: `select has_schema_privilege(n.oid, 'usage') and has_table_privilege(to_regclass('lighter.prices')::oid, 'select') as yes
             from pg_namespace n where n.nspname = 'lighter'`,
    values: [],
  })
  if (allowed[0]?.yes !== true) return { prices: defaultPrices, from: 'defaults' }
  const { rows } = await db.query<Prices>({
    text: `select r2_gb_month::float8 as "bucketGbMonth", r2_class_a_million::float8 as "classAMillion",
                  database_gb_month::float8 as "databaseGbMonth" from lighter.prices`,
    values: [],
  })
  return rows[0] === undefined
    ? { prices: defaultPrices, from: 'defaults' }
    : { prices: rows[0], from: 'lighter.prices' }
}
