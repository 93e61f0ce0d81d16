// What is to be erased: all of a tenant, or what belongs to one of its entities.
import { requireAllRows } from '../db/all-rows.ts'
import type { Queryable } from '../db/pool.ts'
import { LighterError } from '../errors.ts'
import type { TenantId } from '../ids.ts'

export interface EraseScope {
  tenantId: TenantId
  entity: { type: string; id: string } | null
}

/** SQL: artifact `a` is in the scope. Its values come first; further ones begin at `$<next>`. */
export function inScope(scope: EraseScope): { sql: string; values: string[]; next: number } {
  return scope.entity === null
    ? { sql: 'a.tenant_id = $1', values: [scope.tenantId], next: 2 }
    : {
        sql: '(a.tenant_id = $1 and a.entity_type = $2 and a.entity_id = $3 and (a.frame_entities @> array[$3::uuid] or a.frame_entities is null))',
        values: [scope.tenantId, scope.entity.type, scope.entity.id],
        next: 4,
      }
}

export const describeScope = ({ tenantId, entity }: EraseScope): string =>
  entity === null ? `tenant ${tenantId}` : `${entity.type} ${entity.id} of tenant ${tenantId}`

/**
 * A hold on the tenant stops everything; one on an entity stops the erasure of that entity, and of the tenant.
 * @throws {LighterError} `legal_hold`; `rows_hidden` where holds may be hidden
 */
export async function refuseIfOnHold(db: Queryable, { tenantId, entity }: EraseScope): Promise<void> {
  await requireAllRows(db, [])
  const { rows } = await db.query<{ what: string }>({
    text: `select 'the tenant' as what from lighter.tenants where tenant_id = $1 and legal_hold
            union all
           select entity_type || ' ' || entity_id || ': ' || reason from lighter.legal_holds
            where tenant_id = $1 and ($2::text is null or (entity_type = $2 and entity_id = $3::uuid))
            limit 5`,
    values: [tenantId, entity?.type ?? null, entity?.id ?? null],
  })
  if (rows.length === 0) return
  throw new LighterError(
    'legal_hold',
    `${describeScope({ tenantId, entity })} is on legal hold (${rows.map(row => row.what).join('; ')})`,
    {
      hint: 'Release the hold first: lighter.tenants.legal_hold, and the rows of lighter.legal_holds.',
    },
  )
}
