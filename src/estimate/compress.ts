// How small payloads become in the bucket: some values are read and compressed as packs are. They are shown to nobody.
import type { Queryable } from '../db/pool.ts'
import { sqlState } from '../errors.ts'
import { hasLongNumbersSql } from '../offload/long-numbers.ts'
import { ident } from '../source/expressions.ts'
import { encodeFrame } from '../store/codec.ts'
import { frameTextBytes } from '../store/pack-format.ts'
import type { TableFacts } from './relation.ts'

const sampledBytes = 1024 * 1024
/** A value stored in more is not read. */
const mostStored = 32 * 1024
const leastStored = 200
const pages = 50

/** Bytes in the bucket for a byte of payload; null: too little was read within the time. */
export async function sampleStoredShare(
  db: Queryable,
  facts: TableFacts,
  timeoutMs: number,
): Promise<number | null> {
  const column = `m.${ident(facts.columns[facts.jsonColumn]?.name ?? '')}`
  const rows = facts.partitions > 0 ? facts.tableSql : `only ${facts.tableSql}`
  const isJsonb = facts.jsonType === 'jsonb'
  const percent = Math.min(100, (100 * pages) / Math.max(1, facts.pages))
  let values: { value: string | Buffer }[]
  try {
    await db.query(`savepoint compress; set local statement_timeout = ${Math.floor(timeoutMs)}`)
    ;({ rows: values } = await db.query<{ value: string | Buffer }>({
      text: `
        with found as (
          select ${column} as doc, sum(pg_column_size(${column})) over (order by m.tableoid, m.ctid) as so_far
            from ${rows} m tablesample system ($1::float8) repeatable (7)
           where pg_column_size(${column}) between ${leastStored} and ${mostStored})
        select ${facts.jsonType === 'bytea' ? 'doc' : 'doc::text'} as value from found where so_far <= ${sampledBytes / 4} and ${isJsonb ? `not ${hasLongNumbersSql('doc')}` : 'true'}`,
      values: [percent],
    }))
  } catch (error) {
    if (sqlState(error) !== '57014') throw error
    await db.query('rollback to savepoint compress')
    return null
  }
  const frames: Buffer[] = []
  for (const { value } of values) {
    const last = frames.at(-1)
    const bytes = Buffer.from(value)
    if (last === undefined || last.length > frameTextBytes) frames.push(bytes)
    else frames[frames.length - 1] = Buffer.concat([last, bytes])
  }
  const bytes = frames.reduce((sum, frame) => sum + frame.length, 0)
  if (bytes < frameTextBytes / 4) return null
  return frames.reduce((sum, frame) => sum + encodeFrame('zstd', frame).length, 0) / bytes
}
