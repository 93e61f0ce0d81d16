// The database as one tenant may see it.
import type pg from 'pg'
import type { TenantId } from '../ids.ts'
import { inTransactionWithRetry, type Queryable } from './pool.ts'

/**
 * Runs `work` in a transaction as role lighter_tenant with the tenant set for its duration. Row-level security
 * then shows that tenant's artifacts and nothing else, whatever a statement forgets to ask for.
 */
export function asTenant<T>(
  pool: pg.Pool,
  tenantId: TenantId,
  work: (db: Queryable) => Promise<T>,
): Promise<T> {
  return inTransactionWithRetry(pool, async db => {
    await db.query({
      // In one round trip, and in this order: the role has no rights to take the tenant from.
      text: `select set_config('app.current_tenant_id', $1, true), set_config('role', 'lighter_tenant', true)`,
      values: [tenantId],
    })
    return work(db)
  })
}

/** A database whose every statement runs by itself in such a transaction. */
export function tenantDatabase(pool: pg.Pool, tenantId: TenantId): Queryable {
  return { query: (config, values) => asTenant(pool, tenantId, db => db.query(config, values)) }
}
