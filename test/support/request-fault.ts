// An S3 endpoint in front of the simulator that answers as it is told: for stores in trouble.
import { createServer, request, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

/**
 * drop: the connection is closed without an answer; drop-answer: once the simulator has done what was asked; hang:
 * nothing, until the client gives up. A status with the code that S3 would give it. A function writes the answer itself.
 */
export type Fault =
  | null
  | 'drop'
  | 'drop-answer'
  | 'hang'
  | number
  | { status: number; code: string }
  | ((outgoing: ServerResponse) => void)

export interface FaultyStore {
  endpoint: string
  /** Asked of every request; null: let it through. */
  fault: (method: string, path: string) => Fault
  requests: { method: string; path: string }[]
  close(): Promise<void>
}

const codes: Record<number, string> = { 403: 'AccessDenied', 503: 'SlowDown' }

export async function startFaultyStore(upstream: string): Promise<FaultyStore> {
  const target = new URL(upstream)
  const server = createServer((incoming, outgoing) => {
    const method = incoming.method ?? ''
    const path = incoming.url ?? ''
    store.requests.push({ method, path })
    const fault = store.fault(method, path)
    if (fault === 'drop') {
      incoming.socket.destroy()
      return
    }
    if (fault === 'hang') {
      incoming.resume()
      return
    }
    if (typeof fault === 'function') {
      incoming.resume()
      incoming.on('end', () => fault(outgoing))
      return
    }
    if (typeof fault === 'number' || (typeof fault === 'object' && fault !== null)) {
      const { status, code } =
        typeof fault === 'number' ? { status: fault, code: codes[fault] ?? 'InternalError' } : fault
      incoming.resume()
      incoming.on('end', () => {
        outgoing.writeHead(status, { 'content-type': 'application/xml' })
        outgoing.end(`<?xml version="1.0"?><Error><Code>${code}</Code><Message>as told</Message></Error>`)
      })
      return
    }
    // The signature covers the host that the client spoke to, which the simulator takes from the header.
    const forwarded = request(
      { host: target.hostname, port: target.port, method, path, headers: incoming.headers },
      answer => {
        if (fault === 'drop-answer') {
          answer.resume()
          answer.on('end', () => incoming.socket.destroy())
          return
        }
        outgoing.writeHead(answer.statusCode ?? 502, answer.headers)
        answer.pipe(outgoing)
      },
    )
    forwarded.on('error', () => outgoing.destroy())
    incoming.pipe(forwarded)
  })
  server.listen(0, '127.0.0.1')
  await new Promise(resolve => server.once('listening', resolve))
  const { port } = server.address() as AddressInfo
  const store: FaultyStore = {
    endpoint: `http://127.0.0.1:${port}${target.pathname}`,
    fault: () => null,
    requests: [],
    close: () =>
      new Promise(resolve => {
        server.close(() => resolve())
        server.closeAllConnections()
      }),
  }
  return store
}
