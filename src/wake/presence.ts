// Shows a daemon to whoever looks at the database: one session whose application_name says which version it is, what
// it is doing and where. A daemon that dies takes its session along, so nothing is written and nothing goes stale; one
// that hangs stops repeating itself, which pg_stat_activity.state_change tells.
import { hostname } from 'node:os'
import type pg from 'pg'
import { connectSession, isSession } from '../db/prepared.ts'
import { SteadyClient } from '../db/settings.ts'
import type { ConnectionUrl } from '../db/url.ts'
import { noticeDeadClient, openSession, type Session, within } from './session.ts'

/** `api`: it works off no queue. `paused`: the store is in trouble, or not configured; nothing is claimed. */
export type DaemonState = 'starting' | 'awake' | 'asleep' | 'paused' | 'api' | 'stopping'

export const presencePrefix = 'pg-lighter daemon '
/** How often it repeats itself. */
export const beatMs = 10_000
/** A daemon that wakes and sleeps fifty times a second says so once: what it says is for people. */
const settleMs = 500
const answerMs = 5000
/** Postgres cuts a longer application_name off. */
const maxNameBytes = 63

export interface Presence {
  start(): void
  say(state: DaemonState): void
  stop(): Promise<void>
}

/** The session whose name tells. */
export interface NamedSession {
  /** Where it can't be named just now, the next beat tries again. */
  name(text: string): Promise<void>
  stop(): Promise<void>
}

/**
 * A session of its own, for a daemon that works off no queue and so has no lock.
 * @param url direct, or through a pooler in session mode. Through one in transaction mode nothing is said: our name
 *   might stay on a connection of somebody else's
 */
export function openNamedSession(url: ConnectionUrl): NamedSession {
  let session: { client: pg.Client; cut: Session['cut']; proved: boolean } | null = null

  const drop = () => {
    session?.cut()
    session = null
  }

  return {
    name: async text => {
      try {
        if (session === null) {
          const { config, cut } = openSession(url, 'pg-lighter presence')
          const client = new SteadyClient({ ...config, query_timeout: answerMs })
          const fresh = { client, cut, proved: false }
          session = fresh
          client.on('error', () => {
            if (session === fresh) drop()
          })
          await connectSession(client)
        }
        const { client } = session
        if (!session.proved) {
          if (!(await isSession(client))) return
          session.proved = true
          await noticeDeadClient(client)
        }
        await client.query("select set_config('application_name', $1, false)", [text])
      } catch {
        // That the database is out of reach is said by those who need it.
        drop()
      }
    },
    stop: async () => {
      if (session !== null) await within(1000, 'closing', session.client.end()).catch(() => undefined)
      drop()
    },
  }
}

/** @param session of a worker that of its lock, since a connection more could be the one that its work then lacks */
export function openPresence(session: NamedSession, version: string): Presence {
  let state: DaemonState = 'starting'
  let since = new Date()
  let timer: NodeJS.Timeout | undefined
  let settling: NodeJS.Timeout | undefined
  let saying: Promise<void> | null = null
  let again = false
  let stopped = false

  /** One at a time; what changes meanwhile is said right after. */
  const beat = (): Promise<void> => {
    if (saying !== null) {
      again = true
      return saying
    }
    saying = (async () => {
      do {
        again = false
        await session.name(nameOf(version, state, since))
      } while (again && !stopped)
      saying = null
    })()
    return saying
  }

  return {
    start: () => {
      if (stopped) return
      timer = setInterval(beat, beatMs)
      timer.unref()
      void beat()
    },
    say: to => {
      if (to === state || stopped) return
      state = to
      since = new Date()
      if (timer === undefined) return
      settling ??= setTimeout(() => {
        settling = undefined
        void beat()
      }, settleMs).unref()
    },
    stop: async () => {
      stopped = true
      clearInterval(timer)
      clearTimeout(settling)
      await session.stop()
    },
  }
}

/** The host's end is kept where it does not fit: it tells the replicas of a deployment apart. */
function nameOf(version: string, state: DaemonState, since: Date): string {
  const facts = `${presencePrefix}${version} ${state} ${Math.floor(since.getTime() / 1000).toString(36)} `
  const place = `${hostname().replace(/[^\x21-\x7e]/g, '?')}:${process.pid}`
  return `${facts}${place.slice(-Math.max(1, maxNameBytes - facts.length))}`
}
