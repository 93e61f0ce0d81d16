// Connections that can be cut. `end()` of a client waits for the server's part, which a connection in a
// black hole never gives: it would hold up whoever waits for it, and the process's end, for a quarter of an hour.
import { Socket } from 'node:net'
import type pg from 'pg'

export interface Session {
  config: pg.ClientConfig
  /** Closes the socket at once; what waits on the connection fails. */
  cut(): void
}

/** Settings of one connection of its own: direct, or through a pooler in session mode. */
export function openSession(url: string, applicationName: string): Session {
  const socket = new Socket()
  return {
    config: {
      connectionString: url,
      application_name: applicationName,
      connectionTimeoutMillis: 5000,
      keepAlive: true,
      stream: () => socket,
    },
    cut: () => socket.destroy(),
  }
}

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
