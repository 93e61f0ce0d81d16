// Before anything is restored it is forbidden to offload it again; the ban stays when the restore has ended.

import type pg from 'pg'
import type { Queryable } from '../db/pool.ts'
import { tableNameSql } from '../db/settings.ts'
import type { TenantId } from '../ids.ts'
import { passCommitGate } from '../source/pins.ts'
import type { Source } from '../source/sources.ts'

/** What is to be inline: one row, one tenant's rows, or, with neither, all rows of a source. */
export interface RestoreScope {
  tenantId: TenantId | null
  rowId: string | null
  /** Rows stay as they are whose payloads the application offloaded itself: none of them came off a row of ours. */
  keepOwn?: boolean
}

/**
 * Keeps daemons from offloading the scope from now on: a whole source is paused (its rows go on queueing), a
 * tenant or a row is pinned (their jobs end without an offload). When it returns, no offload that had begun before
 * can commit any more, so one pass over the rows meets all that there will be.
 */
export async function holdScope(pool: pg.Pool, sources: Source[], scope: RestoreScope): Promise<void> {
  const ids = sources.map(s => s.id)
  if (scope.tenantId === null && scope.rowId === null) {
    await pool.query('update lighter.sources set paused = true where id = any ($1::int[]) and not paused', [
      ids,
    ])
  } else {
    await pool.query(
      `insert into lighter.pins (source_id, tenant_id, row_id)
       select id, $2, $3 from unnest($1::int[]) id order by id
           on conflict do nothing`,
      [ids, scope.tenantId, scope.rowId],
    )
  }
  await passCommitGate(pool)
}

/**
 * Allows it again. Rows that are inline stay so until they are written next, or a backfill comes by.
 * @returns pins taken away, and sources that are worked on again
 */
export async function releaseScope(
  db: Queryable,
  sources: Source[],
  scope: RestoreScope,
): Promise<{ pins: number; resumed: number }> {
  const ids = sources.map(s => s.id)
  const whole = scope.tenantId === null && scope.rowId === null
  const { rows } = await db.query<{ pins: number; resumed: number }>({
    text: `
      with unpinned as (
        delete from lighter.pins p
         where p.source_id = any ($1::int[])
           and ($4 or p.tenant_id = $2::uuid or p.row_id = $3::text)
        returning 1
      ),
      resumed as (
        update lighter.sources s set paused = false where $4 and s.id = any ($1::int[]) and s.paused returning 1
      )
      select (select count(*)::int from unpinned) as pins, (select count(*)::int from resumed) as resumed`,
    values: [ids, scope.tenantId, scope.rowId, whole],
  })
  await db.query('select lighter.wake_daemon()')
  return rows[0] ?? { pins: 0, resumed: 0 }
}

export interface Held {
  source: string
  /** Null, as is rowId: the whole source is paused. */
  tenantId: string | null
  rowId: string | null
  since: Date | null
}

/** What is held at this moment; of pins the latest thousand. */
export async function listHeld(db: Queryable, sources: Source[]): Promise<Held[]> {
  const { rows } = await db.query<Held>({
    text: `
      select ${tableNameSql('s.relation')} as source, null::uuid as "tenantId", null as "rowId", null::timestamptz as since
        from lighter.sources s where s.paused and s.id = any ($1::int[])
      union all
      (select ${tableNameSql('s.relation')}, p.tenant_id, p.row_id, p.pinned_at
         from lighter.pins p join lighter.sources s on s.id = p.source_id
        where s.id = any ($1::int[])
        order by p.pinned_at desc limit 1000)`,
    values: [sources.map(s => s.id)],
  })
  return rows
}
