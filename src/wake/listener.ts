// Hears NOTIFY. A hint only: the queue is the truth and is polled all the same.
import pg from 'pg'
import type { Queryable } from '../db/pool.ts'
import type { ConnectionUrl } from '../db/url.ts'
import { messageOf } from '../errors.ts'
import { noticeDeadClient, openSession, within } from './session.ts'

const jobsChannel = 'lighter_jobs'
const pingChannel = 'lighter_ping'

const answerMs = 5000
const defaultPingIntervalMs = 30_000
const defaultPingTimeoutMs = 2000
/** Between attempts to connect; the first comes at once, for a connection that was just terminated. */
const firstPauseMs = 100
const longestPauseMs = 5000

export interface ListenerOptions {
  /** Direct connection, or through a pooler in session mode. */
  url: ConnectionUrl
  /** Sends the pings. */
  db: Queryable
  onWake: () => void
  /** Told once each time hearing is lost or found again, with the reason. */
  onChange: (listening: boolean, reason: string) => void
  pingIntervalMs?: number
  pingTimeoutMs?: number
}

export interface Listener {
  /** Resolves when it is known whether LISTEN works; from then on it is kept working. */
  start(): Promise<void>
  stop(): Promise<void>
  isListening(): boolean
  /** Something else on the same way has failed: finds out at once whether we still hear. */
  doubt(): void
}

/**
 * Keeps a LISTEN alive for ever.
 *
 * That a connection stands proves nothing: a pooler in transaction mode drops LISTEN silently, and a
 * black-holed connection never errors. So we notify ourselves, at start and then every `pingIntervalMs`;
 * a ping that was sent and is not heard within `pingTimeoutMs` means deaf, and the connection is replaced.
 */
export function createListener(options: ListenerOptions): Listener {
  const pingIntervalMs = options.pingIntervalMs ?? defaultPingIntervalMs
  const pingTimeoutMs = options.pingTimeoutMs ?? defaultPingTimeoutMs
  const identity = `${process.pid}-${Math.random().toString(36).slice(2)}`
  let ear: Ear | null = null
  let listening: boolean | null = null
  let stopped = false
  let rouse: (() => void) | null = null
  let running: Promise<void> = Promise.resolve()
  const decided = Promise.withResolvers<void>()

  const report = (now: boolean, reason: string) => {
    decided.resolve()
    if (listening === now || stopped) return
    listening = now
    options.onChange(now, reason)
    // What was notified while we were deaf is lost: look at the queue.
    if (now) options.onWake()
  }

  /** Ends early when stopped. */
  const pause = (ms: number) =>
    new Promise<void>(resolve => {
      if (stopped) return resolve()
      const done = () => {
        clearTimeout(timer)
        rouse = null
        resolve()
      }
      const timer = setTimeout(done, ms)
      rouse = done
    })

  /** @returns why it could not be sent, which says nothing of our ear. @throws sent and not heard */
  const ping = async (through: Ear): Promise<string | null> => {
    const heard = through.nextPing()
    try {
      const notify = options.db.query('select pg_notify($1, $2)', [pingChannel, identity])
      await through.orLost(within(answerMs, 'the statement that notifies us', notify))
    } catch (error) {
      if (through.isLost()) throw error
      return messageOf(error)
    }
    await through.orLost(within(pingTimeoutMs, 'our own notification', heard))
    return null
  }

  const listen = async (through: Ear, onHearing: () => void) => {
    await through.open()
    let proved = false
    while (!stopped) {
      const notSent = await ping(through)
      if (notSent === null) {
        // Not before: a pooler in transaction mode would keep the settings for somebody else.
        if (!proved) await through.orLost(within(answerMs, 'a setting', through.settle()))
        proved = true
        onHearing()
        report(true, 'LISTEN works')
      } else if (listening === null) report(false, notSent)
      await through.orLost(
        pause(notSent === null ? pingIntervalMs : Math.min(pingIntervalMs, longestPauseMs)),
      )
    }
  }

  const run = async () => {
    for (let failures = 0; !stopped; failures++) {
      const fresh = openEar(options.url, identity, options.onWake)
      ear = fresh
      try {
        await listen(fresh, () => {
          failures = 0
        })
      } catch (error) {
        report(false, messageOf(error))
      }
      ear = null
      await fresh.close()
      rouse?.() // a pause that was left because the connection was lost
      // A server that can be reached and is not heard is a pooler, most likely, and stays one for long.
      const limitMs = fresh.wasOpened() ? Math.max(pingIntervalMs, longestPauseMs) : longestPauseMs
      if (!stopped) await pause(Math.min(firstPauseMs * 2 ** failures, limitMs))
    }
    decided.resolve()
  }

  return {
    start: async () => {
      running = run()
      await decided.promise
    },
    isListening: () => listening === true,
    doubt: () => rouse?.(),
    stop: async () => {
      stopped = true
      listening = null
      rouse?.()
      ear?.lose(new Error('stopped'))
      await running
    },
  }
}

interface Ear {
  open(): Promise<void>
  wasOpened(): boolean
  /** Once it is proved to be a session of ours. */
  settle(): Promise<void>
  /** Resolves when our own ping arrives. */
  nextPing(): Promise<void>
  /** Settles as `promise`, or rejects when the connection is lost first. */
  orLost<T>(promise: Promise<T>): Promise<T>
  isLost(): boolean
  lose(error: Error): void
  /** Never waits long, never throws, leaves nothing open. */
  close(): Promise<void>
}

/** One connection that listens. It is not mended: whoever owns it opens another. */
function openEar(url: ConnectionUrl, identity: string, onWake: () => void): Ear {
  const session = openSession(url, 'pg-lighter listen')
  const client = new pg.Client(session.config)
  let lost: Error | null = null
  let opened = false
  let onLost: ((error: Error) => void) | null = null
  let onPing: (() => void) | null = null

  const lose = (error: Error) => {
    lost ??= error
    onLost?.(lost)
  }
  client.on('notification', ({ channel, payload }) => {
    if (channel === jobsChannel) onWake()
    else if (payload === identity) onPing?.()
  })
  client.on('error', () => lose(new Error('the connection was lost')))
  client.on('end', () => lose(new Error('the connection was lost')))

  const orLost = <T>(promise: Promise<T>) =>
    new Promise<T>((resolve, reject) => {
      if (lost !== null) {
        promise.catch(() => undefined)
        return reject(lost)
      }
      onLost = reject
      promise.then(resolve, reject)
    })

  return {
    open: async () => {
      await orLost(within(answerMs + 1000, 'connecting', client.connect()))
      for (const channel of [jobsChannel, pingChannel])
        await orLost(within(answerMs, 'LISTEN', client.query(`listen ${channel}`)))
      opened = true
    },
    wasOpened: () => opened,
    settle: () => noticeDeadClient(client),
    nextPing: () =>
      new Promise(resolve => {
        onPing = resolve
      }),
    orLost,
    isLost: () => lost !== null,
    lose,
    close: async () => {
      lose(new Error('closed'))
      await within(1000, 'closing', client.end()).catch(() => undefined)
      session.cut()
    },
  }
}
