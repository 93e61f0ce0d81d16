// Figures as server-sent events. A bounded number of viewers; one that does not keep up misses readings, not memory.
import { Readable } from 'node:stream'
import { ApiError } from '../api/errors.ts'
import type { Feed, Message } from './feed.ts'
import type { Session } from './session.ts'

const maxViewers = 50
/** A browser opens six connections to one address, and needs some for the rest. */
const maxViewersOfSession = 4
/** Proxies cut what is silent. */
const heartbeatMs = 15_000
/** A viewer that has taken nothing for so many heartbeats is gone without a word. */
const deafHeartbeats = 4
/** How soon a browser comes back after the stream has ended. */
const retryMs = 2000

export interface Viewers {
  /** @throws {ApiError} 503 `too_many_viewers` */
  open(session: Session): Readable
  /** Ends all of them, as if they were done. */
  end(): void
}

export function createViewers(feed: Feed): Viewers {
  const open = new Map<Readable, string>()
  let ended = false

  return {
    open: session => {
      const ofSession = [...open.values()].filter(id => id === session.id).length
      if (ended || open.size >= maxViewers || ofSession >= maxViewersOfSession) {
        throw new ApiError(503, 'too_many_viewers', 'too many pages watch at once: close one of them')
      }
      /** What waits for the viewer to take what it has: of each event the last. */
      const waiting = new Map<string, Message>()
      let ready = true
      let missed = 0
      const send = (text: string) => {
        ready = stream.push(text)
      }
      const stream = new Readable({
        read: () => {
          ready = true
          missed = 0
          for (const message of waiting.values()) {
            if (!ready) break
            waiting.delete(message.event)
            send(textOf(message))
          }
        },
      })
      send(`retry: ${retryMs}\n\n`)
      const unwatch = feed.watch(message => {
        if (ready && waiting.size === 0) send(textOf(message))
        else waiting.set(message.event, message)
      })
      const heartbeat = setInterval(() => {
        if (ready) send(': beat\n\n')
        else if (++missed >= deafHeartbeats) stream.destroy()
      }, heartbeatMs)
      const expiry = setTimeout(() => stream.push(null), session.expiresAt.getTime() - Date.now())
      const close = () => {
        clearInterval(heartbeat)
        clearTimeout(expiry)
        unwatch()
        open.delete(stream)
      }
      stream.once('close', close).once('end', close).once('error', close)
      open.set(stream, session.id)
      return stream
    },
    end: () => {
      ended = true
      for (const stream of open.keys()) stream.push(null)
    },
  }
}

/** JSON has no line break, so each is one line of data. */
const textOf = ({ event, data }: Message) => `event: ${event}\ndata: ${JSON.stringify(data)}\n\n`
