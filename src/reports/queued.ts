// What is left in the queue of what was queued before a moment, and whether it is on its way or stuck.
import type { Queryable } from '../db/pool.ts'
import { fromSql, literal, tenantSql } from '../source/expressions.ts'
import { isRowSql } from '../source/rows-by-key.ts'
import type { Source } from '../source/sources.ts'

export interface Queued {
  /** A daemon takes them, now or soon. */
  moving: number
  /** Those failed, and are tried again later. */
  retrying: number
  nextAttemptAt: Date | null
  /** Of one of those. */
  lastError: string | null
  /** Their source is paused. */
  paused: number
  /** Their table, or a column of it, is out of sight: see lighter.missing_parts. */
  outOfSight: number
  /** Given up since then. */
  deadLetters: number
}

/** A source as the queue knows it: `found` is null while it is out of sight. */
export interface QueuedSource {
  id: number
  paused: boolean
  found: Source | null
}

/**
 * @param tenantId null: of all tenants. Of a source that is out of sight all rows count
 * @param before as Postgres writes it, to the microsecond
 */
export async function countQueued(
  db: Queryable,
  sources: QueuedSource[],
  tenantId: string | null,
  before: string,
): Promise<Queued> {
  const sum: Queued = {
    moving: 0,
    retrying: 0,
    nextAttemptAt: null,
    lastError: null,
    paused: 0,
    outOfSight: 0,
    deadLetters: 0,
  }
  for (const source of sources) {
    const { rows, retrying, nextAttemptAt, lastError, deadLetters } = await countOfSource(
      db,
      source,
      tenantId,
      before,
    )
    sum.deadLetters += deadLetters
    if (source.found === null || source.found.rowsHidden !== null) sum.outOfSight += rows
    else if (source.paused) sum.paused += rows
    else {
      sum.moving += rows - retrying
      sum.retrying += retrying
      sum.lastError ??= lastError
      if (nextAttemptAt !== null && (sum.nextAttemptAt === null || nextAttemptAt < sum.nextAttemptAt))
        sum.nextAttemptAt = nextAttemptAt
    }
  }
  return sum
}

interface CountOfSource {
  rows: number
  retrying: number
  nextAttemptAt: Date | null
  lastError: string | null
  deadLetters: number
}

/** Only rows that wait for others have their tenant on record; that of the others is looked up by their key. */
async function countOfSource(
  db: Queryable,
  { id, found }: QueuedSource,
  tenantId: string | null,
  before: string,
): Promise<CountOfSource> {
  const ofTenant = (alias: string, known: string) =>
    tenantId === null || found === null
      ? ''
      : `and (${known} = ${literal(tenantId)} or ${known} is null and exists (select from (
           select ${tenantSql(found)} as tenant_id from ${fromSql(found)}
            where ${isRowSql(found, `${alias}.row_id`)} offset 0) r where r.tenant_id = ${literal(tenantId)}))`
  const { rows } = await db.query<CountOfSource>({
    text: `
      with queued as materialized (
        select j.row_id, j.tenant_id, j.last_error, j.available_at,
               j.place = 'waiting' and j.last_error is not null and j.available_at > now() as retrying
          from lighter.jobs j where j.source_id = $1 and j.enqueued_at <= $2::text::timestamptz
      ),
      wanted as materialized (select q.* from queued q where true ${ofTenant('q', 'q.tenant_id')})
      select count(distinct row_id)::int as rows, (count(distinct row_id) filter (where retrying))::int as retrying,
             min(available_at) filter (where retrying) as "nextAttemptAt",
             left(min(last_error) filter (where retrying), 200) as "lastError",
             (select count(*)::int from lighter.failed_jobs f
               where f.source_id = $1 and f.failed_at >= $2::text::timestamptz ${ofTenant('f', 'null::uuid')}) as "deadLetters"
        from wanted`,
    values: [id, before],
  })
  const [row] = rows
  if (row === undefined) throw new Error('the query answered no row')
  return row
}
