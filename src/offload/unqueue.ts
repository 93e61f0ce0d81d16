// Rows that are to be queued no more, wherever they are: of a restore, which has just put them back.
import { arrayText } from '../db/array-text.ts'
import type { Queryable } from '../db/pool.ts'

/**
 * In a transaction, with the rows locked. Leases first, as all statements take them. What is just being claimed stays in its
 * lease: whoever calls this has forbidden that the rows are offloaded.
 */
export async function unqueueRows(db: Queryable, sourceId: number, rowIds: string[]): Promise<void> {
  const values = [sourceId, arrayText(rowIds)]
  await db.query({
    text: `
      with mine as materialized (
        select l.id, p.positions
          from lighter.leases l
         cross join lateral (
           select array_agg(j.ord::integer) as positions
             from unnest(l.source_ids, l.row_ids) with ordinality j(source_id, row_id, ord)
            where j.source_id = $1 and j.row_id = any ($2::text[])) p
         where l.row_ids && $2::text[] and p.positions is not null
         order by l.id
           for update of l
      )
      update lighter.leases l set done = l.done || mine.positions from mine where l.id = mine.id`,
    values,
  })
  await db.query({
    text: `
      with waiting as materialized (
        select w.source_id, w.row_id from lighter.waiting w
         where w.source_id = $1 and w.row_id = any ($2::text[])
         order by w.source_id, w.row_id collate "C" for update
      ),
      inbox as (
        delete from lighter.inbox i where i.source_id = $1 and i.row_id = any ($2::text[])
      )
      delete from lighter.waiting w using waiting d where w.source_id = d.source_id and w.row_id = d.row_id`,
    values,
  })
}
