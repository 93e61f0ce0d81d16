// Tables, partitions and columns that can't be looked at any more. What left our sight is not taken for deleted.
import type { Queryable } from '../db/pool.ts'
import { LighterError } from '../errors.ts'

export interface MissingPart {
  sourceId: number
  /** The attached table. */
  source: string
  part: string
  name: string
  reason: string
  /** Rows of the source are not offloaded either. */
  stopsOffload: boolean
  advice: string
}

const namedParts = 1000

/** At most a thousand. */
export async function findMissingParts(db: Queryable): Promise<MissingPart[]> {
  const { rows } = await db.query<MissingPart>(
    `select source_id as "sourceId", source, part, name, reason, stops_offload as "stopsOffload", advice
       from lighter.missing_parts order by source_id, part, name limit ${namedParts}`,
  )
  return rows
}

export const describeMissing = ({ source, part, name, reason }: MissingPart) =>
  part === 'table' && name === source ? `${source}: ${reason}` : `${source}, ${part} ${name}: ${reason}`

/** Puts partitions on record, so that one that is detached later is missed. */
export async function notePartitions(db: Queryable): Promise<void> {
  await db.query('select lighter.note_partitions()')
}

/** What a sweep that looked for deleted rows fails with while something is missing. */
export function partsMissing(missing: MissingPart[]): LighterError {
  const named = missing.slice(0, 5).map(describeMissing)
  return new LighterError(
    'rows_out_of_sight',
    `rows may be out of sight, so no payload was given up: ${named.join('; ')}${missing.length > named.length ? '; …' : ''}`,
    {
      hint: [...new Set(missing.slice(0, 5).map(m => m.advice))].join(' '),
    },
  )
}
