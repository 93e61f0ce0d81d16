// Connections to Postgres: a bounded pool, and transactions on it.
import pg from 'pg'
import { isTransactionConflict } from '../errors.ts'

/** Whatever runs a query: a pool, a client, a transaction. */
export interface Queryable {
  query<R extends pg.QueryResultRow>(
    config: pg.QueryConfig | string,
    values?: unknown[],
  ): Promise<pg.QueryResult<R>>
}

/**
 * A pool of at most `size` connections.
 * @param onError told of connections that die while idle; the pool replaces them by itself
 */
export function createPool(url: string, size: number, onError: (error: Error) => void): pg.Pool {
  const pool = new pg.Pool({
    connectionString: url,
    max: size,
    application_name: 'pg-lighter',
    // A dead server must not hang a claim or a commit for ever.
    connectionTimeoutMillis: 10_000,
    idleTimeoutMillis: 30_000,
    keepAlive: true,
  })
  pool.on('error', onError)
  return pool
}

/**
 * Runs `work` in one transaction. A connection on which anything failed in a way that leaves its state
 * unknown is thrown away, not returned to the pool.
 */
export async function inTransaction<T>(pool: pg.Pool, work: (db: pg.PoolClient) => Promise<T>): Promise<T> {
  const client = await pool.connect()
  let broken: Error | undefined
  try {
    await client.query('begin')
    const result = await work(client)
    await client.query('commit')
    return result
  } catch (error) {
    try {
      await client.query('rollback')
    } catch (rollbackError) {
      broken = rollbackError instanceof Error ? rollbackError : new Error(String(rollbackError))
    }
    throw error
  } finally {
    client.release(broken)
  }
}

/** `inTransaction`, run again when it lost a deadlock or serialization conflict; 5 times at most. */
export async function inTransactionWithRetry<T>(
  pool: pg.Pool,
  work: (db: pg.PoolClient) => Promise<T>,
): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await inTransaction(pool, work)
    } catch (error) {
      if (attempt === 5 || !isTransactionConflict(error)) throw error
    }
  }
}
