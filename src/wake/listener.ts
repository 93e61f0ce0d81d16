// Hears NOTIFY. A hint only: the queue is the truth and is polled all the same.
import pgListen, { type Subscriber } from 'pg-listen'
import type { Queryable } from '../db/pool.ts'
import { messageOf } from '../errors.ts'

// A CommonJS module: its default export is a property of what Node imports.
const createSubscriber = pgListen.default

const jobsChannel = 'lighter_jobs'
const pingChannel = 'lighter_ping'

export interface ListenerOptions {
  /** Direct connection, or through a pooler in session mode. */
  url: string
  /** Sends the pings. */
  db: Queryable
  onWake: () => void
  /** Told once each time hearing is lost or found again, with the reason. */
  onChange: (listening: boolean, reason: string) => void
  pingIntervalMs?: number
  pingTimeoutMs?: number
}

export interface Listener {
  start(): Promise<void>
  stop(): Promise<void>
  isListening(): boolean
}

/**
 * Keeps a LISTEN alive for ever.
 *
 * That a connection stands proves nothing: a pooler in transaction mode drops LISTEN silently, and a
 * black-holed connection never errors. So we notify ourselves, at start and then every `pingIntervalMs`;
 * a ping not heard within `pingTimeoutMs` means deaf, and the subscriber is replaced.
 */
export function createListener(options: ListenerOptions): Listener {
  const pingIntervalMs = options.pingIntervalMs ?? 30_000
  const pingTimeoutMs = options.pingTimeoutMs ?? 2000
  const identity = `${process.pid}-${Math.random().toString(36).slice(2)}`
  let subscriber: Subscriber | null = null
  let listening: boolean | null = null
  let stopped = false
  let timer: NodeJS.Timeout | undefined
  let heard: (() => void) | null = null

  const report = (now: boolean, reason: string) => {
    if (listening === now) return
    listening = now
    options.onChange(now, reason)
    // What was notified while we were deaf is lost: look at the queue.
    if (now) options.onWake()
  }

  const subscribe = async () => {
    // retryTimeout: by default it gives up after 3 s and raises `error`. paranoidChecking: its check has no
    // time-out of its own, ours does that job.
    const fresh = createSubscriber(
      {
        connectionString: options.url,
        application_name: 'pg-lighter listen',
        connectionTimeoutMillis: 5000,
        keepAlive: true,
      },
      {
        retryTimeout: Number.POSITIVE_INFINITY,
        retryInterval: attempt => Math.min(100 * 2 ** attempt, 5000),
        paranoidChecking: false,
      },
    )
    fresh.notifications.on(jobsChannel, () => options.onWake())
    fresh.notifications.on(pingChannel, (payload: { from?: string } | undefined) => {
      if (payload?.from === identity) heard?.()
    })
    fresh.events.on('connected', () => options.onWake())
    fresh.events.on('error', error => {
      if (subscriber === fresh) subscriber = null
      report(false, messageOf(error))
    })
    subscriber = fresh
    await withTimeout(fresh.connect(), 6000, 'connecting')
    await withTimeout(Promise.all([fresh.listenTo(jobsChannel), fresh.listenTo(pingChannel)]), 5000, 'LISTEN')
  }

  const drop = () => {
    const old = subscriber
    subscriber = null
    // close() waits for the server's answer, which a dead connection never gives.
    if (old !== null) withTimeout(old.close(), 1000, 'closing').catch(() => undefined)
  }

  const ping = async () => {
    const answer = new Promise<void>(resolve => {
      heard = resolve
    })
    await options.db.query('select pg_notify($1, $2)', [pingChannel, JSON.stringify({ from: identity })])
    await withTimeout(answer, pingTimeoutMs, 'our own notification')
  }

  const check = async () => {
    try {
      if (subscriber === null) await subscribe()
      await ping()
      report(true, 'LISTEN works')
    } catch (error) {
      report(false, messageOf(error))
      drop()
    }
    if (!stopped) {
      // While deaf, look for a cure more often.
      timer = setTimeout(check, listening ? pingIntervalMs : Math.min(pingIntervalMs, 5000))
    }
  }

  return {
    start: check,
    isListening: () => listening === true,
    stop: async () => {
      stopped = true
      clearTimeout(timer)
      const old = subscriber
      subscriber = null
      if (old !== null) await withTimeout(old.close(), 1000, 'closing').catch(() => undefined)
    },
  }
}

async function withTimeout<T>(promise: Promise<T>, ms: number, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const timeout = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no answer to ${what} within ${ms} ms`)), ms)
  })
  try {
    return await Promise.race([promise, timeout])
  } finally {
    clearTimeout(timer)
  }
}
