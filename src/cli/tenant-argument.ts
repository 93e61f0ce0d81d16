// How a command names a tenant: by its uuid, or as the application calls it.
import type pg from 'pg'
import { LighterError, messageOf, sqlState } from '../errors.ts'

/** The options with the tenant's uuid. @throws {LighterError} `invalid_tenant` */
export async function withTenant<T extends { tenant?: string }>(
  db: Pick<pg.ClientBase, 'query'>,
  options: T,
): Promise<T> {
  if (options.tenant === undefined) return options
  try {
    const { rows } = await db.query<{ id: string }>('select lighter.tenant_named($1) as id', [options.tenant])
    return { ...options, tenant: rows[0]?.id ?? options.tenant }
  } catch (error) {
    const state = sqlState(error)
    if (state !== '22023' && state !== '42P08') throw error
    throw new LighterError('invalid_tenant', messageOf(error), { cause: error, hint: hintOf(error) })
  }
}

function hintOf(error: unknown): string | undefined {
  return typeof error === 'object' && error !== null && 'hint' in error && typeof error.hint === 'string'
    ? error.hint
    : undefined
}
