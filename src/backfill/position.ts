// How far a pass is, so that one that was stopped, or died, goes on where it was.
import type { Queryable } from '../db/pool.ts'
import type { Source } from '../source/sources.ts'
import type { BackfillFilter } from './page.ts'

export interface Position {
  id: number
  /** Key of the last row that was looked at; null at the beginning. */
  after: string | null
  seen: number
  queued: number
  filter: BackfillFilter
  startedAt: Date
}

/**
 * The pass that was not finished and asked for the same, or a new one. What "7 days ago" meant when a pass began
 * it means until its end; by another column it means something else, and is another pass.
 * @param restart begins anew, and forgets the one that was not finished
 */
export async function openPosition(
  db: Queryable,
  source: Source,
  filter: BackfillFilter,
  olderThan: string | null,
  restart: boolean,
): Promise<Position> {
  await db.query({
    text: `delete from lighter.backfills b
            where b.source_id = $1 and b.tenant_id is not distinct from $2 and b.older_than is not distinct from $3
              and b.finished_at is null and ($4 or b.age_column is distinct from $5)`,
    values: [source.id, filter.tenantId, olderThan, restart, filter.ageColumn],
  })
  const { rows } = await db.query<{
    id: number
    after: string | null
    seen: number
    queued: number
    cutoff: Date | null
    ageColumn: string | null
    startedAt: Date
  }>({
    text: `
      insert into lighter.backfills as b (source_id, tenant_id, older_than, age_column, cutoff)
      values ($1, $2, $3, $4, $5)
          on conflict (source_id, tenant_id, older_than) where finished_at is null
          do update set updated_at = now()
      returning id, position as after, rows_seen::float8 as seen, rows_queued::float8 as queued, cutoff,
                age_column as "ageColumn", started_at as "startedAt"`,
    values: [source.id, filter.tenantId, olderThan, filter.ageColumn, filter.cutoff],
  })
  const row = rows[0]
  if (row === undefined) throw new Error('the backfill has no row')
  const { cutoff, ageColumn, ...position } = row
  return { ...position, filter: { tenantId: filter.tenantId, cutoff, ageColumn } }
}

/** After the jobs of a page are committed: at worst a page is looked at twice, and none is left out. */
export async function savePosition(db: Queryable, position: Position, isFinished: boolean): Promise<void> {
  await db.query({
    text: `update lighter.backfills
              set position = $2, rows_seen = $3, rows_queued = $4, updated_at = now(),
                  finished_at = case when $5 then now() end
            where id = $1`,
    values: [position.id, position.after, position.seen, position.queued, isFinished],
  })
}
