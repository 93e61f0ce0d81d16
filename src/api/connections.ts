// Connections of the HTTP server that do nothing must not keep it from closing, nor take the place of others.
import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'

export interface Connections {
  /** Ends those that have no request under way and are older than this: they were silent, or sent half a request. */
  endIdle(olderThanMs: number): void
}

/** A connection that has sent nothing yet may be about to. */
const graceMs = 1000

export function watchConnections(server: Server): Connections {
  const opened = new Map<Socket, number>()
  const busy = new Map<Socket, number>()
  const endIdle = (olderThanMs: number) => {
    server.closeIdleConnections()
    for (const [socket, since] of opened)
      if (!busy.has(socket) && performance.now() - since >= olderThanMs) socket.destroy()
  }
  server.on('connection', (socket: Socket) => {
    opened.set(socket, performance.now())
    socket.once('close', () => opened.delete(socket))
  })
  server.on('request', ({ socket }: IncomingMessage, response: ServerResponse) => {
    busy.set(socket, (busy.get(socket) ?? 0) + 1)
    response.once('close', () => {
      const left = (busy.get(socket) ?? 1) - 1
      if (left > 0) busy.set(socket, left)
      else busy.delete(socket)
      // Its silence begins now.
      if (opened.has(socket)) opened.set(socket, performance.now())
    })
  })
  // All places are taken: whoever was turned away finds one when it comes again.
  server.on('drop', () => endIdle(graceMs))
  return { endIdle }
}

const lingerMs = 1000

/**
 * Ends the connection after this answer, though the rest of the request may be on its way. What still comes is read
 * and dropped for a moment: if we closed at once, the client would be reset before it has read why.
 */
export function lingerOnClose(socket: Socket): void {
  socket.destroySoon = () => {
    socket.end()
    const timer = setTimeout(() => socket.destroy(), lingerMs)
    socket.once('close', () => clearTimeout(timer))
  }
}
