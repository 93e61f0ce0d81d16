// The record of an erasure, for whoever has to show that it was done.
import type { Queryable } from '../db/pool.ts'
import type { Counts } from '../sweeps/context.ts'
import type { Proof } from './proof.ts'
import type { EraseScope } from './scope.ts'

export interface Erasure {
  id: string
  startedAt: string
  /** Of the runs before, where this one goes on with one that was interrupted. */
  counts: Counts
}

/** The row of the same erasure that was interrupted, or a new one. */
export async function beginErasure(db: Queryable, { tenantId, entity }: EraseScope): Promise<Erasure> {
  const values = [tenantId, entity?.type ?? null, entity?.id ?? null]
  const columns = `id, started_at::text as "startedAt", counts`
  const { rows: interrupted } = await db.query<Erasure>(
    `select ${columns} from lighter.erasures
      where tenant_id = $1 and entity_type is not distinct from $2 and entity_id is not distinct from $3::uuid
        and finished_at is null
      order by id desc limit 1`,
    values,
  )
  if (interrupted[0] !== undefined) return interrupted[0]
  const { rows } = await db.query<Erasure>(
    `insert into lighter.erasures (tenant_id, entity_type, entity_id) values ($1, $2, $3) returning ${columns}`,
    values,
  )
  if (rows[0] === undefined) throw new Error('the erasure has no row')
  return rows[0]
}

export async function noteErasure(db: Queryable, id: string, counts: Counts): Promise<void> {
  await db.query('update lighter.erasures set counts = $2 where id = $1', [id, JSON.stringify(counts)])
}

export async function endErasure(db: Queryable, id: string, counts: Counts, proof: Proof): Promise<void> {
  await db.query(
    'update lighter.erasures set counts = $2, proof = $3, finished_at = clock_timestamp() where id = $1',
    [id, JSON.stringify(counts), JSON.stringify(proof)],
  )
}
