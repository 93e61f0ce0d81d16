// Connections to Postgres: a bounded pool, and transactions on it. No setting outlives its transaction, and names
// of statements are for proven sessions, so that a pooler in transaction mode may stand in between.
import pg from 'pg'
import { asError, isDatabaseOutage, isTransactionConflict } from '../errors.ts'
import {
  beginSql,
  isProvenSession,
  lockTimeoutMs,
  PreparingClient,
  proveSession,
  type Statement,
} from './prepared.ts'
import { type ConnectionUrl, presentUrl } from './url.ts'

/**
 * Longest wait for the answer to one statement. Ours take well under a second; what takes this long has
 * lost its server without being told (a failover, a cable), and must not hang a claim or a commit for ever.
 */
const statementTimeoutMs = 60_000

/** The server gives up sooner than we do: else it would go on, with its locks, after we have left. */
const serverTimeoutMs = 50_000

/** Whatever runs a query: a pool, a client, a transaction. */
export interface Queryable {
  query<R extends pg.QueryResultRow>(
    config: Statement | string,
    values?: unknown[],
  ): Promise<pg.QueryResult<R>>
}

/**
 * A daemon that is frozen in the middle of a commit holds the locks of the rows it rewrites: the server ends
 * its transaction after this, so that the application's writes do not wait for it.
 */
const idleInTransactionMs = 5000

/**
 * A pool of at most `size` connections.
 * @param onError told of connections that die while idle; the pool replaces them by itself
 * @param options.unlimited no limit on a statement's duration, for streams that take as long as they take
 * @param options.timeoutMs a limit of its own
 */
export function createPool(
  url: ConnectionUrl,
  size: number,
  onError: (error: Error) => void,
  options: { unlimited?: boolean; timeoutMs?: number } = {},
): pg.Pool {
  const pool = new RetryingPool({
    max: size,
    Client: class extends PreparingClient {
      constructor(config: pg.ClientConfig = {}) {
        super({ ...config, connectionString: presentUrl(url) })
      }
    },
    onConnect: proveSession,
    application_name: 'pg-lighter',
    connectionTimeoutMillis: 10_000,
    idleTimeoutMillis: 30_000,
    keepAlive: true,
    keepAliveInitialDelayMillis: 10_000,
    ...(options.unlimited ? {} : { query_timeout: options.timeoutMs ?? statementTimeoutMs }),
  })
  pool.on('error', onError)
  // The pool listens to idle connections only. One that is lost while in use fails the statement that waits on
  // it, which is where it is dealt with; without a listener of its own it would also end the process.
  pool.on('connect', client => client.on('error', () => undefined))
  return pool
}

/** A statement outside a transaction that lost a conflict has done nothing, and is run again. */
class RetryingPool extends pg.Pool {
  // The overloads of the driver's query can not be repeated by an override; the arguments pass through as they are.
  // biome-ignore lint/suspicious/noExplicitAny: see above
  override query(...args: any[]): any {
    return retryConflicts(() => queryOnce(this, args))
  }
}

/**
 * One statement on a connection of its own. Behind a pooler it is a transaction, so that our settings hold for it. As
 * the pool itself does it, a connection on which a statement failed is closed.
 */
async function queryOnce(pool: pg.Pool, args: unknown[]): Promise<unknown> {
  const client = await pool.connect()
  let broken: Error | undefined
  try {
    if (isProvenSession(client)) return await Reflect.apply(client.query, client, args)
    await client.query(beginSql(client))
    const result: unknown = await Reflect.apply(client.query, client, args)
    await client.query('commit')
    return result
  } catch (error) {
    broken = asError(error)
    throw error
  } finally {
    client.release(broken)
  }
}

/** 5 times at most. */
async function retryConflicts<T>(run: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await run()
    } catch (error) {
      if (attempt === 5 || !isTransactionConflict(error)) throw error
    }
  }
}

/**
 * Runs `work` in one transaction, READ COMMITTED whatever the login's default is: what we do is built on it. A
 * connection on which anything failed in a way that leaves its state unknown is thrown away, not returned to the pool.
 */
async function inTransaction<T>(
  pool: pg.Pool,
  work: (db: pg.PoolClient) => Promise<T>,
  first: string | undefined,
): Promise<T> {
  const client = await pool.connect()
  let broken: Error | undefined
  try {
    await client.query(
      `${beginSql(client)}; set local statement_timeout = ${serverTimeoutMs}; set local lock_timeout = ${lockTimeoutMs}; set local idle_in_transaction_session_timeout = ${idleInTransactionMs}${first === undefined ? '' : `; ${first}`}`,
    )
    const result = await work(client)
    await client.query('commit')
    return result
  } catch (error) {
    // A connection in doubt is closed, which rolls back just as well: ROLLBACK would wait behind what hangs.
    if (isDatabaseOutage(error)) broken = asError(error)
    else await client.query('rollback').catch(rollbackError => (broken = asError(rollbackError)))
    throw error
  } finally {
    client.release(broken)
  }
}

/**
 * `inTransaction`, run again when it lost a deadlock or serialization conflict; 5 times at most.
 * @param first a statement without parameters that begins it, at no round trip of its own
 */
export function inTransactionWithRetry<T>(
  pool: pg.Pool,
  work: (db: pg.PoolClient) => Promise<T>,
  first?: string,
): Promise<T> {
  return retryConflicts(() => inTransaction(pool, work, first))
}
