// Hears NOTIFY. A hint only: the queue is the truth and is polled all the same.
import pgListen from 'pg-listen'
import type { Queryable } from '../db/pool.ts'
import type { ConnectionUrl } from '../db/url.ts'
import { messageOf } from '../errors.ts'
import { deadClientOptions, openSession, within } from './session.ts'

const jobsChannel = 'lighter_jobs'
const pingChannel = 'lighter_ping'

const answerMs = 5000
const defaultPingIntervalMs = 30_000
const defaultPingTimeoutMs = 2000
/** Between attempts to connect; the first comes at once, for a connection that was just terminated. */
const firstPauseMs = 100
const longestPauseMs = 5000
const poolerRefuses = 'and a pooler in between refuses keep-alive settings'

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
  let connection: Connection | null = null
  let listening: boolean | null = null
  let stopped = false
  let wakeUp: (() => void) | null = null
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
        wakeUp = null
        resolve()
      }
      const timer = setTimeout(done, ms)
      wakeUp = done
    })

  /** @returns why it could not be sent, which says nothing about our connection. @throws sent and not heard */
  const ping = async (through: Connection): Promise<string | null> => {
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

  const listen = async (through: Connection, success: string, onHearing: () => void) => {
    await through.open()
    while (!stopped) {
      const notSent = await ping(through)
      if (notSent === null) {
        onHearing()
        report(true, success)
      } else if (listening === null) report(false, notSent)
      await through.orLost(
        pause(notSent === null ? pingIntervalMs : Math.min(pingIntervalMs, longestPauseMs)),
      )
    }
  }

  const run = async () => {
    let pooler = false
    for (let failures = 0; !stopped; failures++) {
      const fresh = openConnection(options.url, identity, options.onWake, pooler ? '' : deadClientOptions)
      connection = fresh
      try {
        await listen(fresh, pooler ? `LISTEN works, ${poolerRefuses}` : 'LISTEN works', () => {
          failures = 0
        })
      } catch (error) {
        if (!pooler && /unsupported startup parameter/.test(messageOf(error))) {
          // A pooler in session mode can still carry LISTEN: the next attempt comes at once and asks for no setting.
          pooler = true
          failures = -1
        } else report(false, pooler ? `${messageOf(error)}; ${poolerRefuses}` : messageOf(error))
      }
      connection = null
      await fresh.close()
      wakeUp?.() // a pause that was left because the connection was lost
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
    doubt: () => wakeUp?.(),
    stop: async () => {
      stopped = true
      listening = null
      wakeUp?.()
      connection?.lose(new Error('stopped'))
      await running
    },
  }
}

interface Connection {
  open(): Promise<void>
  wasOpened(): boolean
  /** Resolves when our own ping arrives. */
  nextPing(): Promise<void>
  /** Settles as `promise`, or rejects when the connection is lost first. */
  orLost<T>(promise: Promise<T> | undefined): Promise<T | undefined>
  isLost(): boolean
  lose(error: Error): void
  /** Never waits long, never throws, leaves nothing open. */
  close(): Promise<void>
}

/** One connection that listens. It does not reconnect: its owner opens another. */
function openConnection(
  url: ConnectionUrl,
  identity: string,
  onWake: () => void,
  /** Of the server for this connection, as a start-up parameter. */
  settings: string,
): Connection {
  const session = openSession(url, 'pg-lighter listen')
  const subscriber = pgListen.default(
    { ...session.config, ...(settings !== '' && { options: settings }) },
    // The liveness check and the back-off are ours: its own check has no time-out, and it gives up after a while. With
    // a limit of 1 it makes no attempt of its own, and says at once that the connection is lost.
    { paranoidChecking: false, retryLimit: 1, parse: text => text },
  )
  let lost: Error | null = null
  let opened = false
  const whenLost = Promise.withResolvers<never>()
  whenLost.promise.catch(() => undefined)
  let onPing: (() => void) | null = null

  const lose = (error: Error) => {
    lost ??= error
    whenLost.reject(lost)
  }
  subscriber.events.on('error', () => lose(new Error('the connection was lost')))
  subscriber.notifications.on(jobsChannel, onWake)
  subscriber.notifications.on(pingChannel, payload => {
    if (payload === identity) onPing?.()
  })
  const orLost = <T>(promise: Promise<T> | undefined) => Promise.race([whenLost.promise, promise])

  return {
    open: async () => {
      await orLost(within(answerMs + 1000, 'connecting', subscriber.connect()))
      for (const channel of [jobsChannel, pingChannel])
        await orLost(within(answerMs, 'LISTEN', Promise.resolve(subscriber.listenTo(channel))))
      opened = true
    },
    wasOpened: () => opened,
    nextPing: () =>
      new Promise(resolve => {
        onPing = resolve
      }),
    orLost,
    isLost: () => lost !== null,
    lose,
    close: async () => {
      lose(new Error('closed'))
      await within(1000, 'closing', subscriber.close()).catch(() => undefined)
      session.cut()
    },
  }
}
