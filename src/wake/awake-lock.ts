// Says to the triggers "somebody is draining, no need to notify": a shared session advisory lock, held while
// awake. A trigger that can take it exclusively knows that every daemon sleeps.
import pg from 'pg'
import { openSession, type Session, within } from './session.ts'

/** Also in sql/functions/10_identifiers.sql. */
const awakeLockKey = '7809632190518'

/** A statement on the lock is instant; one that is not means a connection in doubt. */
const answerMs = 5000
/** After a failure: draining without the lock is better than waiting for it again and again. */
const retryAfterMs = 5000

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
  let session: { client: pg.Client; cut: Session['cut'] } | null = null
  let held = false
  let stopped = false
  let failedAt = Number.NEGATIVE_INFINITY

  /** The lock goes with its session, so a connection in doubt must go. */
  const drop = () => {
    session?.cut()
    session = null
    held = false
  }

  const connect = async (): Promise<pg.Client> => {
    if (session !== null) return session.client
    const { config, cut } = openSession(url, 'pg-lighter awake')
    const client = new pg.Client({ ...config, query_timeout: answerMs })
    const fresh = { client, cut }
    // Before connecting, so that stop() finds a connection that is still being made.
    session = fresh
    client.on('error', error => {
      cut()
      if (session !== fresh) return
      drop()
      if (!stopped) onError(error)
    })
    await client.connect()
    return client
  }

  const attempt = async (sql: string, after: boolean): Promise<void> => {
    try {
      const client = await connect()
      await client.query(sql)
      held = after
    } catch (error) {
      drop()
      failedAt = performance.now()
      if (!stopped) onError(error)
    }
  }

  return {
    hold: async () => {
      if (held || stopped || performance.now() - failedAt < retryAfterMs) return
      await attempt(`select pg_advisory_lock_shared(${awakeLockKey})`, true)
    },
    release: async () => {
      if (held) await attempt(`select pg_advisory_unlock_shared(${awakeLockKey})`, false)
    },
    stop: async () => {
      stopped = true
      if (session !== null) await within(1000, 'closing', session.client.end()).catch(() => undefined)
      drop()
    },
  }
}
