// Connections that can be cut. `end()` of a client waits for the server's part, which a connection in a
// black hole never gives: it would hold up whoever waits for it, and the process's end, for a quarter of an hour.
import { randomUUID } from 'node:crypto'
import { Socket } from 'node:net'
import type pg from 'pg'
import type { Queryable } from '../db/pool.ts'
import { type ConnectionUrl, presentUrl } from '../db/url.ts'

export interface Session {
  config: pg.ClientConfig
  /** Closes the socket at once; what waits on the connection fails. */
  cut(): void
}

/** Settings of one connection of its own: direct, or through a pooler in session mode. */
export function openSession(url: ConnectionUrl, applicationName: string): Session {
  const socket = new Socket()
  return {
    config: {
      connectionString: presentUrl(url),
      application_name: applicationName,
      connectionTimeoutMillis: 5000,
      keepAlive: true,
      stream: () => socket,
    },
    cut: () => socket.destroy(),
  }
}

/** How long the server waits for a client that takes nothing in, or has gone without a word. */
export const deadClientMs = 30_000

/**
 * Has the server find out that we are gone, or frozen. By itself it takes hours, and meanwhile keeps our locks; and of
 * a listener that does not read it keeps vacuum back, once the notifications no longer fit into the buffers between.
 * For a session of our own only: the settings stay on the connection.
 */
export async function noticeDeadClient(client: pg.ClientBase): Promise<void> {
  await client.query(`
    set tcp_user_timeout = ${deadClientMs};
    set tcp_keepalives_idle = ${deadClientMs / 2000};
    set tcp_keepalives_interval = ${deadClientMs / 6000};
    set tcp_keepalives_count = 3`)
}

/** The same as a start-up parameter (`options`), which a pooler refuses. */
export const deadClientOptions = `-c tcp_user_timeout=${deadClientMs} -c tcp_keepalives_idle=${deadClientMs / 2000} -c tcp_keepalives_interval=${deadClientMs / 6000} -c tcp_keepalives_count=3`

/** @throws {Error} naming `what`, when the promise has not settled within `ms` */
export async function within<T>(ms: number, what: string, promise: Promise<T>): Promise<T> {
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

const probeChannel = 'lighter_probe'
const heardMs = 2000

/**
 * Whether the connection keeps one server session, as LISTEN and session locks need: it hears what is notified over
 * another. A pooler in session mode passes that on; one in transaction mode takes LISTEN and delivers nothing.
 * @param sender must not be the connection itself, which would hear itself through any pooler
 */
export async function keepsSession(client: pg.Client, sender: Queryable): Promise<boolean> {
  const ours = randomUUID()
  const heard = Promise.withResolvers<boolean>()
  const onNotification = (message: pg.Notification) => {
    if (message.payload === ours) heard.resolve(true)
  }
  client.on('notification', onNotification)
  let timer: NodeJS.Timeout | undefined
  try {
    await client.query(`listen ${probeChannel}`)
    await sender.query('select pg_notify($1, $2)', [probeChannel, ours])
    timer = setTimeout(() => heard.resolve(false), heardMs)
    return await heard.promise
  } finally {
    clearTimeout(timer)
    client.off('notification', onNotification)
    await client.query(`unlisten ${probeChannel}`).catch(() => undefined)
  }
}
