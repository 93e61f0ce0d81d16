// Lets time pass. The product thinks in days and hours of grace; here they pass in seconds, and never sooner: what is
// not `graceMs` old stays young, so that nothing goes that a reader or a writer may still hold in hand.

import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { isDatabaseOutage, isTransactionConflict } from '../src/errors.ts'
import { shortLivedKind } from './settings.ts'

/** In one of the tables of artifacts. */
const older = (table: string, key: string, column: string, by: string, which = 'true') => `
  update lighter.${table} set ${column} = ${column} - interval '${by}'
   where (${key}) in (
     select ${key} from lighter.${table}
      where ${column} > now() - interval '${by}' and ${column} < now() - $1 * interval '1 ms' and ${which}
        for update skip locked)`

const loose = (column: string, by: string, which?: string) =>
  older('loose_artifacts', 'tenant_id, id', column, by, which)
const exceptions = (column: string, by: string) =>
  older('frame_exceptions', 'tenant_id, frame_id, ordinal', column, by)

/** Of every artifact and object that is `olderThanMs` the hour, or the day, is over. */
export async function ageOnce(admin: pg.Pool, olderThanMs: number): Promise<void> {
  // What programs put is loose, and only they put that kind.
  await admin.query(loose('created_at', '2 days', `kind = '${shortLivedKind}'`), [olderThanMs])
  await admin.query(loose('created_at', '2 hours'), [olderThanMs])
  await admin.query(older('frames', 'tenant_id, id', 'created_at', '2 hours'), [olderThanMs])
  for (const column of ['released_at', 'deleted_at']) {
    await admin.query(loose(column, '2 days'), [olderThanMs])
    await admin.query(exceptions(column, '2 days'), [olderThanMs])
  }
  await admin.query(
    `update lighter.objects o set stored_at = o.stored_at - interval '2 hours'
       from (select tenant_id, r2_key from lighter.objects
              where state = 'stored' and stored_at > now() - interval '2 hours' and stored_at < now() - $1 * interval '1 ms'
                for update skip locked) d
      where o.tenant_id = d.tenant_id and o.r2_key = d.r2_key`,
    [olderThanMs],
  )
}

export async function runAgeing(admin: pg.Pool, olderThanMs: number, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    await sleep(1000)
    try {
      await ageOnce(admin, olderThanMs)
    } catch (error) {
      if (!isDatabaseOutage(error) && !isTransactionConflict(error)) throw error
    }
  }
}
