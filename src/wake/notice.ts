// Tells the triggers whether a NOTIFY is worth its price: a row of lighter.daemons, and by all of these a number that the
// triggers look at (lighter.daemon_says). While a daemon is awake it finds jobs
// by itself; while it sleeps and can hear it wants to be notified. With nobody awake and somebody asleep a trigger
// notifies; with nobody at all it does not, and writes just queue.
//
// Each change leaves a dead row that is read over while some snapshot is old enough to need it, so changes
// are at least 5 s apart. In between, a row may say "asleep" of a daemon that is awake: then writers notify in vain. Or
// "awake" of one that has nothing to do: then it must look for jobs often (see `asleep`).
import { randomUUID } from 'node:crypto'
import type pg from 'pg'
import { connectSession } from '../db/prepared.ts'
import { SteadyClient } from '../db/settings.ts'
import type { ConnectionUrl } from '../db/url.ts'
import { noticeDeadClient, openSession, type Session, within } from './session.ts'

/** A statement on the row is instant; one that is not means a connection in doubt. */
const answerMs = 5000
/** After a failure: draining without the row is better than waiting for it again and again. */
const retryAfterMs = 5000

const changeEveryMs = 5000
/** Who is awake for less is sooner asleep again than it is said. */
const awakeAfterMs = 250
/** Who found nothing for so long falls asleep. */
const idleMs = 1000
/** A daemon that died awake keeps others from being woken for so long, and until the next of them says something. */
const awakeForMs = 20_000

export interface Notice {
  /**
   * From now on triggers need not notify. Best effort, as all of these: without the row they do not notify, and jobs
   * are found by polling.
   */
  awake(): Promise<void>
  /**
   * @param hears whether a NOTIFY would be heard: if not, none is asked for
   * @returns false while the row can't say so yet: look for jobs often until it does
   */
  asleep(hears: boolean): Promise<boolean>
  /** The same way is known to be open again: the next call need not sit out the pause after a failure. */
  tryAgain(): void
  /** Gives its session a name (`application_name`). */
  name(text: string): Promise<void>
  stop(): Promise<void>
}

interface Row {
  asleep: boolean
  writtenAt: number
  until: number
}

/**
 * @param url must reach Postgres directly, or through a pooler in session mode: in transaction mode nobody listens
 * @param pollIntervalMs how often a sleeping daemon calls `asleep` again
 */
export function openNotice(
  url: ConnectionUrl,
  pollIntervalMs: number,
  onError: (error: unknown) => void,
): Notice {
  const id = randomUUID()
  const asleepForMs = 2 * pollIntervalMs + 2 * changeEveryMs
  let session: { client: pg.Client; cut: Session['cut'] } | null = null
  let row: Row | null = null
  let isAwake = false
  let idleSince = Number.NEGATIVE_INFINITY
  let timer: NodeJS.Timeout | undefined
  let stopped = false
  let failedAt = Number.NEGATIVE_INFINITY
  const pausing = () => stopped || performance.now() - failedAt < retryAfterMs

  const drop = () => {
    session?.cut()
    session = null
  }

  const connect = async (): Promise<pg.Client> => {
    if (session !== null) return session.client
    const { config, cut } = openSession(url, 'pg-lighter notice')
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
    await client.query(`set lock_timeout = ${answerMs / 2}`)
    // Of daemons that died.
    await client.query(`delete from lighter.daemons where until < clock_timestamp() - interval '1 hour'`)
    return client
  }

  const writeNow = async (asleep: boolean, forMs: number): Promise<void> => {
    if (pausing()) return
    try {
      const client = await connect()
      const now = performance.now()
      await client.query('select lighter.daemon_says($1, $2, $3)', [id, asleep, forMs])
      row = { asleep, writtenAt: now, until: now + forMs }
    } catch (error) {
      drop()
      failedAt = performance.now()
      if (!stopped) onError(error)
    }
  }

  // One after the other, so that the last one wins.
  let last: Promise<void> = Promise.resolve()
  const write = (asleep: boolean, forMs: number): Promise<void> => {
    last = last.then(() => writeNow(asleep, forMs))
    return last
  }

  /** When the row may be changed. */
  const changeAt = () => (row === null ? 0 : row.writtenAt + changeEveryMs)

  /** Says "awake" if it still is by then. */
  const sayAwakeSoon = () => {
    if (timer !== undefined || stopped) return
    const waitMs = Math.max(awakeAfterMs, changeAt() - performance.now())
    timer = setTimeout(() => {
      timer = undefined
      if (isAwake) void write(false, awakeForMs)
    }, waitMs)
    timer.unref()
  }

  const says = (asleep: boolean) => row !== null && row.asleep === asleep && row.until > performance.now()

  return {
    awake: async () => {
      isAwake = true
      idleSince = Number.NEGATIVE_INFINITY
      if (!says(false)) sayAwakeSoon()
      else if (row !== null && row.until - performance.now() < awakeForMs / 2) await write(false, awakeForMs)
    },
    asleep: async hears => {
      const now = performance.now()
      isAwake = false
      if (idleSince === Number.NEGATIVE_INFINITY) idleSince = now
      clearTimeout(timer)
      timer = undefined
      if (!hears) {
        // What is notified would be lost; and others should be woken.
        if (row !== null && row.until > now && now >= changeAt()) await write(true, 0)
        return true
      }
      if (says(true)) {
        if (row !== null && row.until - now < asleepForMs / 2) await write(true, asleepForMs)
        return true
      }
      if (now < changeAt() || (says(false) && now - idleSince < idleMs)) return false
      await write(true, asleepForMs)
      // If it could not be written, polling is all there is.
      return says(true) || pausing()
    },
    tryAgain: () => {
      failedAt = Number.NEGATIVE_INFINITY
    },
    name: async text => {
      if (pausing()) return
      let client: pg.Client | undefined
      try {
        client = await connect()
        await client.query("select set_config('application_name', $1, false)", [text])
      } catch (error) {
        // The row itself may be tried at once: a name is not worth waiting for. And it may have another by now.
        if (client === undefined || session?.client === client) drop()
        if (!stopped) onError(error)
      }
    },
    stop: async () => {
      stopped = true
      clearTimeout(timer)
      if (session !== null) {
        const { client } = session
        const leave = row === null ? undefined : client.query('select lighter.daemon_says($1, null, 0)', [id])
        await within(1000, 'leaving', Promise.resolve(leave)).catch(() => undefined)
        await within(1000, 'closing', client.end()).catch(() => undefined)
      }
      drop()
    },
  }
}
