// Rows by where their payloads are, so that what lies together is read together.
import type { Queryable } from '../db/pool.ts'
import type { TenantId } from '../ids.ts'
import type { Source } from '../source/sources.ts'

/** An object of ours. */
export interface Place {
  tenantId: string
  key: string
}

export interface StoredPage {
  /** Rows that the artifacts were taken off, each once, in that order; they may have no pointer any more. */
  rowIds: string[]
  /** Artifacts looked at. */
  seen: number
  /** The last object; null when there was none left. */
  last: Place | null
}

const objectsAhead = 500

/**
 * What is in the next objects after `after`, in the order of its bytes: of so many objects that they held `limit`
 * artifacts when they were written, or one. By the account of objects, whose primary key has that order.
 */
export async function findStored(
  db: Queryable,
  source: Source,
  tenantId: TenantId | null,
  after: Place | null,
  limit: number,
): Promise<StoredPage> {
  const { rows } = await db.query<Place & { rowId: string | null }>({
    text: `
      with ahead as (
        select o.tenant_id, o.r2_key, o.artifact_count
          from lighter.objects o
         where ${after === null ? 'true' : '(o.tenant_id, o.r2_key) > ($3::uuid, $4::text)'}
           and ($1::uuid is null or o.tenant_id = $1)
         order by o.tenant_id, o.r2_key
         limit ${objectsAhead}
      ),
      counted as (
        select h.*, sum(h.artifact_count) over (order by h.tenant_id, h.r2_key) - h.artifact_count as before from ahead h
      )
      select c.tenant_id as "tenantId", c.r2_key as key, a.row_id as "rowId"
        from counted c
        left join public.artifact_refs a
          on a.tenant_id = c.tenant_id and a.r2_key = c.r2_key and a.source_id in (${[source.id, ...source.formerIds].join(', ')})
         and a.deleted_at is null
       where c.before < $2
       order by c.tenant_id, c.r2_key, a.byte_offset, a.frame_offset`,
    values: [tenantId, limit, ...(after === null ? [] : [after.tenantId, after.key])],
  })
  const end = rows.at(-1)
  const rowIds = rows.flatMap(row => row.rowId ?? [])
  return {
    rowIds: [...new Set(rowIds)],
    seen: rowIds.length,
    last: end === undefined ? null : { tenantId: end.tenantId, key: end.key },
  }
}
