// Rows of artifact_refs that somebody deleted: by hand, by a cascade, or with a tenant. A row that vanished is a
// deletion, as good as a tombstone whose grace period begins now: its bytes leave the bucket after it.
//
// Every object is looked at, page by page; what is taken is looked at again under its lock. An object in which nothing
// is left goes after the grace period, and stays if its rows come back before. One that has lost a part is noted as
// partly dead, so that the compaction sweep rewrites it.
import { keptInSql } from '../catalogue/in-object.ts'
import { seesAllRowsSql } from '../db/all-rows.ts'
import { inTransactionWithRetry, type Queryable } from '../db/pool.ts'
import type { Counts, SweepContext } from './context.ts'
import { createPace } from './pace.ts'

interface Looked {
  tenantId: string
  key: string
  /** Artifacts are missing that nobody has purged. */
  lost: boolean
  /** On its way out, and not yet deleted, although an artifact is alive in it. */
  back: boolean
}

/** Younger ones may have been stored by a transaction that inserts the rows in a moment. */
const minimumAge = '1 hour'

export async function accountVanished(context: SweepContext, counts: Counts): Promise<void> {
  const { pool, config, signal } = context
  const pace = createPace(config.rate, signal)
  let after = { tenantId: '00000000-0000-0000-0000-000000000000', key: '' }
  while (!signal.aborted) {
    const page = await look(pool, after, config.batchSize)
    const lost = page.filter(row => row.lost)
    const back = page.filter(row => row.back)
    if (context.dryRun) {
      counts.objects_vanished = (counts.objects_vanished ?? 0) + lost.length
    } else {
      const { emptied, partly } = lost.length === 0 ? { emptied: 0, partly: 0 } : await note(context, lost)
      counts.objects_emptied = (counts.objects_emptied ?? 0) + emptied
      counts.objects_vanished = (counts.objects_vanished ?? 0) + emptied + partly
      counts.objects_back = (counts.objects_back ?? 0) + (back.length === 0 ? 0 : await takeBack(pool, back))
    }
    context.onProgress(counts)
    const last = page.at(-1)
    if (last === undefined || page.length < config.batchSize) return
    after = last
    await pace(page.length)
  }
}

async function look(
  db: Queryable,
  after: { tenantId: string; key: string },
  limit: number,
): Promise<Looked[]> {
  const { rows } = await db.query<Looked>({
    text: `
      with page as materialized (
        select * from lighter.objects o
         where (o.tenant_id, o.r2_key) > ($1::uuid, $2::text)
         order by o.tenant_id, o.r2_key
         limit $3
      )
      select o.tenant_id as "tenantId", o.r2_key as key,
             o.state = 'stored' and o.stored_at < now() - interval '${minimumAge}'
               and live.n < coalesce(o.live_artifacts, o.artifact_count) as lost,
             o.state = 'deleting' and o.first_deleted_at is null and live.n > 0 as back
        from page o
       cross join lateral ${keptInSql('o')} live
       order by o.tenant_id, o.r2_key`,
    values: [after.tenantId, after.key, limit],
  })
  return rows
}

/** Counted again under the locks that a purge and a compaction take. */
async function note(
  { pool, config }: SweepContext,
  lost: Looked[],
): Promise<{ emptied: number; partly: number }> {
  return inTransactionWithRetry(pool, async db => {
    // Locked first, counted in a second statement: only that one sees what was committed by who held the lock.
    await db.query({
      text: `select from lighter.objects o
               join unnest($1::uuid[], $2::text[]) k(tenant_id, r2_key) using (tenant_id, r2_key)
              order by o.tenant_id, o.r2_key for update of o`,
      values: [lost.map(o => o.tenantId), lost.map(o => o.key)],
    })
    const { rows } = await db.query<{ emptied: number; partly: number }>({
      text: `
        with counted as (
          select o.tenant_id, o.r2_key, o.artifact_count, o.live_artifacts, live.n as artifacts, live.bytes
            from unnest($1::uuid[], $2::text[]) k(tenant_id, r2_key)
            join lighter.objects o using (tenant_id, r2_key)
           cross join lateral ${keptInSql('o')} live
           where o.state = 'stored' and ${seesAllRowsSql}
        ),
        noted as (
          update lighter.objects o
             set live_artifacts = c.artifacts, live_bytes = c.bytes, dead_since = coalesce(o.dead_since, now()),
                 state = case when c.artifacts = 0 then 'deleting' else o.state end,
                 delete_after = case when c.artifacts = 0 then now() + $3 * interval '1 ms' end
            from counted c
           where o.tenant_id = c.tenant_id and o.r2_key = c.r2_key
             and c.artifacts < coalesce(c.live_artifacts, c.artifact_count)
          returning c.artifacts
        )
        select count(*) filter (where artifacts = 0)::int as emptied, count(*) filter (where artifacts > 0)::int as partly
          from noted`,
      values: [
        lost.map(o => o.tenantId),
        lost.map(o => o.key),
        Math.max(config.deleteDelayMs, config.graceDays * 86_400_000),
      ],
    })
    return rows[0] ?? { emptied: 0, partly: 0 }
  })
}

/** Rows that were inserted again, from a backup say, before their object was deleted: it stays. */
async function takeBack(db: Queryable, back: Looked[]): Promise<number> {
  const { rowCount } = await db.query({
    text: `
      update lighter.objects o
         set state = 'stored', delete_after = null, stored_at = coalesce(o.stored_at, now()), lease_until = null,
             live_artifacts = live.n, live_bytes = live.bytes,
             dead_since = case when live.n < o.artifact_count then coalesce(o.dead_since, now()) end
        from unnest($1::uuid[], $2::text[]) k(tenant_id, r2_key)
       cross join lateral ${keptInSql('k')} live
       where o.tenant_id = k.tenant_id and o.r2_key = k.r2_key
         and o.state = 'deleting' and o.first_deleted_at is null and live.n > 0`,
    values: [back.map(o => o.tenantId), back.map(o => o.key)],
  })
  return rowCount ?? 0
}
