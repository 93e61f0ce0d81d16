// Says to the triggers "somebody is draining, no need to notify": a shared session advisory lock, held while
// awake. A trigger that can take it exclusively knows that every daemon sleeps.
import pg from 'pg'

/** Also in sql/functions/10_identifiers.sql. */
const awakeLockKey = '7809632190518'

export interface AwakeLock {
  /** Takes the lock. Best effort: without it triggers notify needlessly, and nothing else happens. */
  hold(): Promise<void>
  release(): Promise<void>
  stop(): Promise<void>
}

/**
 * @param url must reach Postgres directly, or through a pooler in session mode: in transaction mode the lock
 *   would stay behind on a connection that is not ours
 */
export function openAwakeLock(url: string, onError: (error: unknown) => void): AwakeLock {
  let client: pg.Client | null = null
  let held = false

  const connect = async (): Promise<pg.Client> => {
    if (client !== null) return client
    const fresh = new pg.Client({
      connectionString: url,
      application_name: 'pg-lighter awake',
      connectionTimeoutMillis: 5000,
      query_timeout: 5000,
      keepAlive: true,
    })
    fresh.on('error', error => {
      if (client === fresh) {
        client = null
        held = false
      }
      onError(error)
    })
    await fresh.connect()
    client = fresh
    return fresh
  }

  const attempt = async (sql: string, after: boolean): Promise<void> => {
    try {
      const connection = await connect()
      await connection.query(sql)
      held = after
    } catch (error) {
      onError(error)
      const broken = client
      client = null
      held = false
      // The lock goes with its session, so a connection in doubt must go.
      await broken?.end().catch(() => undefined)
    }
  }

  return {
    hold: async () => {
      if (!held) await attempt(`select pg_advisory_lock_shared(${awakeLockKey})`, true)
    },
    release: async () => {
      if (held) await attempt(`select pg_advisory_unlock_shared(${awakeLockKey})`, false)
    },
    stop: async () => {
      const last = client
      client = null
      held = false
      await last?.end().catch(() => undefined)
    },
  }
}
