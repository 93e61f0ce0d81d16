// The database as one tenant may see it.
import type pg from 'pg'
import { LighterError, sqlState } from '../errors.ts'
import { asTenantId, type TenantId } from '../ids.ts'
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

/** @throws {LighterError} `tenant_role_missing` with advice, when the login may not become lighter_tenant */
export async function requireTenantRole(pool: pg.Pool): Promise<void> {
  try {
    await asTenant(pool, asTenantId('00000000-0000-0000-0000-000000000000'), db => db.query('select 1'))
  } catch (error) {
    if (sqlState(error) !== '42501' && sqlState(error) !== '22023') throw error
    throw new LighterError('tenant_role_missing', 'the login of DATABASE_URL can not become lighter_tenant', {
      cause: error,
      hint: 'As a superuser, or whoever has lighter_tenant with admin option: grant lighter_tenant to lighter_daemon;',
    })
  }
}
