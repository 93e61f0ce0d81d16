// A TCP proxy that can play every kind of dead: nobody listens, the line is cut, the line is silent.
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'
import { Transform } from 'node:stream'
import { onTestFinished } from 'vitest'

export interface TcpProxy {
  readonly port: number
  /** The same URL, by way of this proxy. */
  through(url: string): string
  /** Connections accepted so far. */
  accepted(): number
  /** Nobody listens any more, and what was connected is cut. */
  refuse(): Promise<void>
  /** Cuts what is connected; new connections are welcome. */
  sever(): void
  /** Connections stay open and nothing gets through, in either direction: the present ones for ever. */
  blackHole(): void
  /** New connections work. */
  recover(): Promise<void>
  /** What is connected is cut, and new connections lead to this server: a failover. */
  retarget(target: string): void
}

/** BackendKeyData: 'K', its length of 12, process id, secret. */
const backendKeyData = Buffer.from([0x4b, 0, 0, 0, 12])

/** Gives the client a process id that is not the backend's, as poolers do. */
function maskProcessId(): Transform {
  let found = false
  return new Transform({
    transform(chunk: Buffer, _encoding, done) {
      const at = found ? -1 : chunk.indexOf(backendKeyData)
      if (at >= 0) {
        found = true
        chunk.writeInt32BE(chunk.readInt32BE(at + 5) + 1, at + 5)
      }
      done(null, chunk)
    },
  })
}

/**
 * In front of the server that `target` names; gone when the test is.
 * @param options.pooler hides the server's process ids
 */
export async function startTcpProxy(target: string, options: { pooler?: boolean } = {}): Promise<TcpProxy> {
  let { hostname, port: targetPort } = new URL(target)
  const sockets = new Set<Socket>()
  let silent = false
  let accepted = 0

  const track = (socket: Socket) => {
    sockets.add(socket)
    socket.on('error', () => undefined)
    socket.on('close', () => sockets.delete(socket))
  }
  const accept = (client: Socket) => {
    accepted++
    track(client)
    if (silent) {
      client.pause()
      return
    }
    const upstream = connect(Number(targetPort), hostname)
    track(upstream)
    client.pipe(upstream)
    if (options.pooler) upstream.pipe(maskProcessId()).pipe(client)
    else upstream.pipe(client)
    client.on('close', () => upstream.destroy())
    upstream.on('close', () => client.destroy())
  }
  const listen = async (port: number): Promise<Server> => {
    const server = createServer(accept)
    server.listen(port, '127.0.0.1')
    await once(server, 'listening')
    return server
  }
  const sever = () => {
    for (const socket of sockets) socket.destroy()
  }

  let server: Server | null = await listen(0)
  const { port } = server.address() as AddressInfo
  onTestFinished(() => {
    server?.close()
    sever()
  })

  return {
    port,
    through: url => {
      const changed = new URL(url)
      changed.host = `127.0.0.1:${port}`
      return changed.href
    },
    accepted: () => accepted,
    refuse: async () => {
      const closing = server
      server = null
      const closed = closing === null ? undefined : once(closing, 'close')
      closing?.close()
      sever()
      await closed
    },
    sever,
    blackHole: () => {
      silent = true
      for (const socket of sockets) {
        socket.unpipe()
        socket.pause()
      }
    },
    recover: async () => {
      silent = false
      server ??= await listen(port)
    },
    retarget: url => {
      ;({ hostname, port: targetPort } = new URL(url))
      sever()
    },
  }
}
