// Tells the triggers whether a NOTIFY is worth its price: two shared session advisory locks. While a daemon is
// awake it holds one, and finds the job by itself; while it sleeps and can hear, it holds the other. With nobody
// awake and somebody asleep a trigger notifies; with nobody at all it does not, and writes just queue.
import type pg from 'pg'
import { connectSession } from '../db/prepared.ts'
import { SteadyClient } from '../db/settings.ts'
import type { ConnectionUrl } from '../db/url.ts'
import { noticeDeadClient, openSession, type Session, within } from './session.ts'

/** Also in sql/functions/10_identifiers.sql. */
const awakeKey = '7809632190518'
const asleepKey = '7809632190522'

/** A statement on the lock is instant; one that is not means a connection in doubt. */
const answerMs = 5000
/** After a failure: draining without the lock is better than waiting for it again and again. */
const retryAfterMs = 5000

export interface AwakeLock {
  /**
   * From now on triggers need not notify. Best effort, as all of these: without the locks they do not notify, and
   * jobs are found by polling.
   */
  awake(): Promise<void>
  /** @param hears whether a NOTIFY would be heard: if not, none is asked for */
  asleep(hears: boolean): Promise<void>
  /** The same way is known to be open again: the next call need not sit out the pause after a failure. */
  tryAgain(): void
  /** Gives its session a name (`application_name`). */
  name(text: string): Promise<void>
  stop(): Promise<void>
}

/**
 * @param url must reach Postgres directly, or through a pooler in session mode: in transaction mode the lock
 *   would stay behind on a connection that is not ours
 */
export function openAwakeLock(url: ConnectionUrl, onError: (error: unknown) => void): AwakeLock {
  let session: { client: pg.Client; cut: Session['cut'] } | null = null
  let held: string | null = null
  let stopped = false
  let failedAt = Number.NEGATIVE_INFINITY

  /** The lock goes with its session, so a connection in doubt must go. */
  const drop = () => {
    session?.cut()
    session = null
    held = null
  }

  const connect = async (): Promise<pg.Client> => {
    if (session !== null) return session.client
    const { config, cut } = openSession(url, 'pg-lighter awake')
    const client = new SteadyClient({ ...config, query_timeout: answerMs })
    const fresh = { client, cut }
    // Before connecting, so that stop() finds a connection that is still being made.
    session = fresh
    client.on('error', error => {
      cut()
      if (session !== fresh) return
      drop()
      if (!stopped) onError(error)
    })
    await connectSession(client)
    await noticeDeadClient(client)
    return client
  }

  /** The new lock is taken before the old one goes: in between a trigger would think that nobody is there. */
  const changeNow = async (wanted: string | null): Promise<void> => {
    if (held === wanted || stopped || performance.now() - failedAt < retryAfterMs) return
    const take = wanted === null ? '' : `select pg_advisory_lock_shared(${wanted});`
    const leave = held === null ? '' : `select pg_advisory_unlock_shared(${held});`
    try {
      const client = await connect()
      await client.query(take + leave)
      held = wanted
    } catch (error) {
      drop()
      failedAt = performance.now()
      if (!stopped) onError(error)
    }
  }

  // One after the other: a lock that was taken twice would stay when it is given back once. Who asked for a change
  // hears of its error; the next one is made all the same.
  let last: Promise<void> = Promise.resolve()
  const change = (wanted: string | null): Promise<void> => {
    const mine = last.then(() => changeNow(wanted))
    last = mine.catch(() => undefined)
    return mine
  }

  return {
    awake: () => change(awakeKey),
    asleep: hears => change(hears ? asleepKey : null),
    tryAgain: () => {
      failedAt = Number.NEGATIVE_INFINITY
    },
    name: async text => {
      if (stopped || performance.now() - failedAt < retryAfterMs) return
      let client: pg.Client | undefined
      try {
        client = await connect()
        await client.query("select set_config('application_name', $1, false)", [text])
      } catch (error) {
        // The lock itself may be tried at once: a name is not worth waiting for. And it may have another by now.
        if (client === undefined || session?.client === client) drop()
        if (!stopped) onError(error)
      }
    },
    stop: async () => {
      stopped = true
      if (session !== null) await within(1000, 'closing', session.client.end()).catch(() => undefined)
      drop()
    },
  }
}
